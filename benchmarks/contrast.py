"""Our contrastive step against open_clip's own loss: the same towers, batch and optimizer, on the CPUs at hand.

Pairs/s of forward, loss, backward and step, in turns; a towers-only step shows what either loss costs. The same of an
image encoder (EfficientNet-Lite0 at 112 px) beside a frozen MiniLM that reads reports in every batch, and beside stored
vectors of them. Then the largest tensor that the loss keeps for its backward pass on one of W workers, ours against
open_clip's with and without `local_loss`, counted from the shapes that one process of W would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from report import options, publish, ratios, spread, turns

from cxrlt_ray.objectives.terms.contrast import LogScale, cross_entropies, info_nce, sigmoid_loss
from cxrlt_ray.objectives.terms.gather import Share

if TYPE_CHECKING:
    Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

FEATURES, WIDTH, BIAS = 768, 512, -10.0
WORDS, PIXELS = 80, 112  # of a report, of an image's edge
REPORT = ("heart", "is", "normal", "no", "pleural", "effusion", "small", "left", "lower", "lobe", "opacity")


def normalised(loss: torch.nn.Module, *more: float) -> Loss:
    """open_clip's loss of features that it expects to be normalised."""
    return lambda a, b, scale: loss(F.normalize(a, dim=-1), F.normalize(b, dim=-1), scale, *more)


def losses() -> dict[str, Loss]:
    """By name; ours hold numbers of texts, as in training."""
    from open_clip.loss import ClipLoss, SigLipLoss

    number = lambda a: torch.arange(1, 1 + len(a))  # noqa: E731
    return {
        "ours, InfoNCE": lambda a, b, scale: info_nce(a, b, scale, number(a)),
        "open_clip, ClipLoss": normalised(ClipLoss()),
        "ours, sigmoid": lambda a, b, scale: sigmoid_loss(a, b, scale, BIAS, number(a)),
        "open_clip, SigLipLoss": normalised(SigLipLoss(), BIAS),
        "towers alone": lambda a, b, scale: (a.square().mean() + b.square().mean()) * scale,
    }


def stepping(loss: Loss, batch: int, seconds: float) -> Callable[[], float]:
    """Pairs/s of training steps over about so many seconds, at each call."""
    torch.manual_seed(0)
    towers = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Linear(FEATURES, FEATURES), torch.nn.GELU(), torch.nn.Linear(FEATURES, WIDTH))
        for _ in range(2)
    )
    scale = LogScale()
    optimizer = torch.optim.AdamW([*towers.parameters(), *scale.parameters()], 1e-4, fused=True)
    images, texts = torch.randn(batch, FEATURES), torch.randn(batch, FEATURES)

    def step() -> None:
        loss(towers[0](images), towers[1](texts), scale()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, batch, seconds)


def reading(stored: bool, pairs: int, seconds: float) -> Callable[[], float]:
    """Pairs/s of training steps of an image encoder against reports of a frozen text encoder, at each call."""
    from cxrlt_ray import models
    from cxrlt_ray.text.encoder_spec import TextSpec
    from cxrlt_ray.text.encoders import build_text_encoder

    torch.manual_seed(0)
    encoder = build_text_encoder(TextSpec("minilm")).eval()
    drawn = torch.randint(len(REPORT), (pairs, WORDS))
    tokens = encoder.tokenize([" ".join(REPORT[k] for k in row) for row in drawn.tolist()])
    backbone = models.build(models.ModelSpec("tf_efficientnet_lite0", PIXELS), ["finding"]).backbone
    images = torch.randn(pairs, 3, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        vectors, features = encoder(tokens), backbone(images)
    towers = torch.nn.ModuleList(torch.nn.Linear(part.shape[1], WIDTH) for part in (vectors, features))
    scale, trained = LogScale(), torch.nn.ModuleList([backbone, towers])
    optimizer = torch.optim.AdamW([*trained.parameters(), *scale.parameters()], 1e-4, fused=True)

    def step() -> None:
        with torch.no_grad():
            texts = vectors if stored else encoder(tokens)
        info_nce(towers[1](backbone(images)), towers[0](texts), scale(), torch.arange(1, 1 + pairs)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, pairs, seconds)


def timed(step: Callable[[], None], batch: int, seconds: float) -> Callable[[], float]:
    """Pairs/s of steps over about so many seconds, at each call."""

    def run() -> float:
        step()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step()
            count += batch
        return count / (time.perf_counter() - start)

    return run


def kept(make: Callable[[], torch.Tensor]) -> int:
    """Bytes of the largest tensor that is saved for the backward pass."""
    sizes = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        make()
    return max(sizes)


def memory(batch: int, workers: int) -> list[str]:
    """The largest kept tensor of one of `workers`: its own rows, as ours, and all rows, as open_clip's default."""
    total = batch * workers
    own, everyone = (torch.randn(count, WIDTH, requires_grad=True) for count in (batch, total))
    share = Share(0, (batch,) * workers)
    allowed = torch.ones(batch, total, dtype=torch.bool)
    ours = kept(lambda: cross_entropies(own @ everyone.T, share, allowed).mean())
    theirs = kept(lambda: F.cross_entropy(everyone @ everyone.T, torch.arange(total)))
    return [
        "",
        f"Largest kept tensor of one of {workers} workers of {batch} pairs: {ours / 2**20:,.1f} MiB (its rows against "
        f"all columns), {theirs / 2**20:,.1f} MiB with open_clip's default of all rows on every worker.",
    ]


def main() -> None:
    numbers = {"batch": 256, "pairs": 32, "rounds": 5, "seconds": 2, "workers": 8}
    asked = options(__doc__, numbers).parse_args()
    work = {name: stepping(loss, asked.batch, asked.seconds) for name, loss in losses().items()}
    figures = turns(work, asked.rounds)
    lines = ["| step | pairs/s, median (least-most) |", "|---|---|"]
    lines += [f"| {name} | {spread(values)} |" for name, values in figures.items()]
    pairs = (("ours, InfoNCE", "open_clip, ClipLoss"), ("ours, sigmoid", "open_clip, SigLipLoss"))
    rows = [(f"pairs/s: {one}", other, ratios(figures[one], figures[other]), "1.0 or better") for one, other in pairs]
    read = {"encoder in every batch": reading(False, asked.pairs, asked.seconds)}
    read["stored vectors"] = reading(True, asked.pairs, asked.seconds)
    shown = turns(read, asked.rounds)
    lines += ["", f"| frozen MiniLM, reports of {WORDS} words | pairs/s |", "|---|---|"]
    lines += [f"| {name} | {spread(values)} |" for name, values in shown.items()]
    gain = ratios(shown["stored vectors"], shown["encoder in every batch"])
    rows.append(("images/s: stored vectors of reports", "the encoder in every batch", gain, ""))
    lines += ["", *(f"{work}, against {peer}: {ratio} times." for work, peer, ratio, _ in rows)]
    lines += memory(asked.batch, asked.workers)
    publish("contrast", "Contrast of images and texts", f", batches of {asked.batch}", lines, asked.write, rows)


if __name__ == "__main__":
    main()
