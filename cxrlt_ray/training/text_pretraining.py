"""A text encoder trained on a knowledge graph's pairs of texts, epoch by epoch, and saved as transformers reads it.

After each epoch all that the next one needs is in OUT.partial; a process that is begun again goes on from there, and
comes to the same weights. OUT itself appears when all is done.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.text.encoder_spec import PROJECTED, TextSpec
from cxrlt_ray.text.graph import SEPARATOR, Graph, Pair, pairs
from cxrlt_ray.training import device as device_

if TYPE_CHECKING:
    import torch

    from cxrlt_ray.objectives.entity_network import EntityNetwork
    from cxrlt_ray.text.encoders import TextEncoder

STATE, SETTINGS = "state.safetensors", "pretraining.json"
WARMUP = 0.1  # of the steps; then the rate falls to 0 along a line
CLIP_NORM = 1.0
POOLING_MODES = {"mean": "mean_tokens", "last": "lasttoken", "cls": "cls_token"}  # sentence-transformers' names


@dataclass(frozen=True)
class Pretraining:
    """How a text encoder is trained. batch_size: pairs. graph: where the pairs came from, for the record."""

    spec: TextSpec
    graph: str
    epochs: int = 3
    batch_size: int = 256
    lr: float = 2e-5
    weight_decay: float = 0.01
    seed: int = 0


def pretrain_text(graph: Graph, how: Pretraining, out: Path, say: Callable[[str], None]) -> list[float]:
    """Train, and save the encoder in the folder `out`; the mean loss of each epoch that this process did.

    Raises UsageError where `out` exists, for a graph without pairs of two concepts, for an encoder whose projection
    cannot be kept, and where OUT.partial is of other settings; CxrltError where the encoder cannot be had; Diverged
    where the loss is not finite.
    """
    import torch

    from cxrlt_ray.objectives.entity_network import EntityNetwork
    from cxrlt_ray.text.encoders import build_text_encoder

    if out.exists():
        raise UsageError(f"--out {out} exists: give another folder.")
    torch.manual_seed(how.seed)  # of LoRA's adapters
    encoder = build_text_encoder(how.spec)
    if encoder.pooling == PROJECTED:
        raise UsageError(f"text encoder '{how.spec.encoder}': its projection is not trained here: give --pooling cls.")
    tokenizer = encoder.tokenizer
    known = list(pairs(graph, tokenizer.sep_token or tokenizer.eos_token or SEPARATOR))
    if len({pair.concept for pair in known}) < 2:
        raise UsageError(
            f"{how.graph}: the graph has {len(known)} pairs of texts, of fewer than two concepts: it needs English "
            "definitions or relations."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = EntityNetwork(encoder).to(device)
    partial = out.with_name(out.name + ".partial")
    losses = _train(network, known, how, partial, say)
    _save(encoder, partial, how)
    os.replace(partial, out)
    return losses


def _train(
    network: EntityNetwork, known: Sequence[Pair], how: Pretraining, partial: Path, say: Callable[[str], None]
) -> list[float]:
    """Train for the epochs that are left."""
    import torch

    number = {name: k for k, name in enumerate(dict.fromkeys(pair.concept for pair in known))}
    concepts = np.array([number[pair.concept] for pair in known])
    steps = math.ceil(len(known) / how.batch_size)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how.lr, weight_decay=how.weight_decay)
    begin, losses = _restored(network, optimizer, how, partial), []
    amp = device_.autocast("auto", network.encoder.device)
    network.train()
    for epoch in range(begin, how.epochs):
        torch.manual_seed(int(np.random.SeedSequence([how.seed, epoch]).generate_state(1)[0]))
        order = np.random.default_rng([how.seed, epoch]).permutation(len(known))
        total = 0.0
        for step, rows in enumerate(np.array_split(order, steps)):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * _rate(epoch * steps + step, how.epochs * steps)
            with amp():
                batch = [known[row] for row in rows]
                left, right = [pair.left for pair in batch], [pair.right for pair in batch]
                loss = network(left, right, torch.from_numpy(concepts[rows]))
            if not torch.isfinite(loss):
                raise Diverged("diverged: the loss of the texts was not finite; lower --lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            network.scale.limit()
            total += float(loss.detach())
        losses.append(total / steps)
        _keep(network, optimizer, how, partial, epoch)
        say(f"  epoch {epoch + 1} of {how.epochs}: loss {losses[-1]:.3f}, {len(known):,} pairs")
    return losses


def _rate(step: int, steps: int) -> float:
    """The share of the rate in a step, from 0."""
    warm = max(1, round(WARMUP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm + 1))


def _keep(
    network: EntityNetwork, optimizer: torch.optim.Optimizer, how: Pretraining, partial: Path, epoch: int
) -> None:
    """Write the state after an epoch, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"network/{name}": tensor.cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor.cpu().clone() for name, tensor in moments.items()}
    partial.mkdir(parents=True, exist_ok=True)
    about = json.dumps(asdict(how))
    save_file(tensors, partial / f"{STATE}.new", {"how": about, "epoch": str(epoch)})
    os.replace(partial / f"{STATE}.new", partial / STATE)


def _restored(network: EntityNetwork, optimizer: torch.optim.Optimizer, how: Pretraining, partial: Path) -> int:
    """Take over the state of an earlier process, if there is one; the first epoch that is to be done.

    Raises UsageError for one of other settings, CxrltError for one that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not (partial / STATE).is_file():
        return 0
    try:
        with safe_open(partial / STATE, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise CxrltError(f"{partial / STATE} cannot be read ({error}): remove {partial} and begin anew.") from None
    if json.loads(about["how"]) != json.loads(json.dumps(asdict(how))):
        raise UsageError(f"{partial} was begun with other options: give those, remove it, or give another --out.")
    network.load_state_dict({k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")})
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(about["epoch"]) + 1


def _save(encoder: TextEncoder, folder: Path, how: Pretraining) -> None:
    """The encoder as `text: FOLDER` reads it; LoRA's adapters are added to its weights."""
    from cxrlt_ray.text.encoder_spec import LORA
    from cxrlt_ray.text.lora import merge_lora

    model = merge_lora(encoder.model) if how.spec.tuning == LORA else encoder.model
    model.cpu().save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    encoder.tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    mode = f"pooling_mode_{POOLING_MODES[encoder.pooling]}"
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    (folder / SETTINGS).write_text(json.dumps(asdict(how), indent=2))
    (folder / STATE).unlink(missing_ok=True)
