"""Images to probabilities: the one loop that scores validation, test and new images, plain or under augmentation.

Whoever scores gives batches of pixels, one tensor for each view of an image that a member uses. A member is one or
more models (the folds of a trial) and the views whose probabilities are averaged. The forward pass runs under the
trial's own precision everywhere, so that a validation score and a test score differ by the images alone. Each forward
pass sends a heartbeat: scoring under test-time augmentation takes longer than a watchdog waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.batching import pieces
from cxrlt_ray.data.features import StoredFeatures
from cxrlt_ray.data.image_transform import AugmentedView
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.data.stream import Ingest, batches, stream_views
from cxrlt_ray.errors import CxrltError, Diverged
from cxrlt_ray.training.device import ahead, autocast
from cxrlt_ray.training.heartbeat import beat
from cxrlt_ray.training.job import Images

if TYPE_CHECKING:
    import torch

BATCH = 64  # images of a batch under test-time augmentation; more where a study has more
CROP = 0.9  # of the edge, of the crops of test-time augmentation
ZOOMS = (0.9, 0.8)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


@dataclass(frozen=True)
class Member:
    """Models whose probabilities are averaged over all of them and all `views`.

    precision: auto, bf16 or fp32, as in TrialConfig. outputs: which outputs [C] of the models are wanted; None: all.
    """

    models: Sequence[torch.nn.Module]
    views: tuple[AugmentedView, ...]
    precision: str = "auto"
    outputs: np.ndarray | None = None


@dataclass(frozen=True)
class PixelBatch:
    """rows: int64 [B], places among the images to score. pixels: uint8 [B, H, W] by view, mirrored ones left out; or
    stored features float16 [B, N, D] by view. study, view: codes [B].
    """

    rows: np.ndarray
    pixels: dict[AugmentedView, torch.Tensor]
    study: torch.Tensor | None = None
    view: torch.Tensor | None = None


def augmented_views(resolution: int, crop: float, tta: str = "none") -> tuple[AugmentedView, ...]:
    """The views of an image that are scored: the plain one first, then those of test-time augmentation.

    tta: `none`, or of these, joined by +.  crops: five of CROP of the edge, from the centre and the corners.
    zooms: the centre at ZOOMS of the edge.  flip: the mirror image of every view.
    """
    kinds = set() if tta == "none" else set(tta.split("+"))
    chosen = [AugmentedView(resolution, crop)]
    if "crops" in kinds:
        chosen += [AugmentedView(resolution, crop * CROP, corner) for corner in ((0.5, 0.5), *CORNERS)]
    if "zooms" in kinds:
        chosen += [AugmentedView(resolution, crop * zoom) for zoom in ZOOMS]
    if "flip" in kinds:
        chosen += [replace(view, mirrored=True) for view in chosen]
    return tuple(dict.fromkeys(chosen))


def infer(
    members: Sequence[Member], stream: Iterable[PixelBatch], shape: tuple[int, int], device: torch.device
) -> np.ndarray:
    """Probabilities float32 [N, M, C] of `shape` (N, C); nan for rows that the stream does not bring.

    Models are in evaluation mode. Raises Diverged where a model's predictions are not finite.
    """
    import torch

    contexts = [autocast(member.precision, device) for member in members]
    scores = np.full((shape[0], len(members), shape[1]), np.nan, np.float32)
    with torch.inference_mode():
        for batch in stream:
            parts = [_forward(member, batch, amp) for member, amp in zip(members, contexts, strict=True)]
            part = torch.stack(parts, dim=1).cpu().numpy()
            if not np.isfinite(part).all():
                raise Diverged("diverged: the model's predictions are not finite; lower lr")
            scores[batch.rows] = part
    return scores


def check_any(scores: np.ndarray) -> np.ndarray:
    """`scores`, unless no image has any. Raises CxrltError then."""
    if np.isnan(scores).all():
        raise CxrltError("none of the images to score could be decoded: see quarantine.parquet beside the shards.")
    return scores


def _forward(member: Member, batch: PixelBatch, amp: Callable[[], AbstractContextManager[None]]) -> torch.Tensor:
    """A member's probabilities [B, C] of a batch."""
    codes = () if batch.study is None or batch.view is None else (batch.study, batch.view)
    total: torch.Tensor | float = 0.0
    for view in member.views:
        pixels = batch.pixels[view] if view in batch.pixels else batch.pixels[replace(view, mirrored=False)].flip(-1)
        probabilities: torch.Tensor | float = 0.0
        for model in member.models:
            with amp():
                logits = model(pixels, *codes)
            probabilities = probabilities + logits.float().sigmoid()
            beat()
        total = total + probabilities
    mean = total / (len(member.views) * len(member.models))
    assert not isinstance(mean, float)
    return mean if member.outputs is None else mean[:, member.outputs]


def plain_batches(
    shards: Shards,
    images: Images,
    view: AugmentedView,
    batch_size: int,
    device: torch.device,
    ingest: Ingest | None = None,
    fused: bool = False,
    rank: int = 0,
    world: int = 1,
    features: StoredFeatures | None = None,
) -> Iterator[PixelBatch]:
    """Images under one view in storage order, streamed as in training; one in quarantine is left out.

    fused: whole studies, `batch_size` of them a batch, with their codes. rank, world: this worker's share of a batch.
    features: stored ones of the view, in the images' place.
    """
    stream = batches(
        shards,
        images.image_id,
        view.resolution,
        batch_size,
        crop=view.crop,
        study=images.study if fused else None,
        ingest=ingest,
        rank=rank,
        world=world,
        features=features,
    )
    for batch, pixels in ahead(stream, device):
        if len(batch.rows):
            yield PixelBatch(batch.rows, {view: pixels}, *(_codes(images, batch.rows, device) if fused else ()))


def augmented_batches(
    shards: Shards,
    images: Images,
    chosen: Sequence[AugmentedView],
    device: torch.device,
    threads: int = 2,
    grouped: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Iterator[PixelBatch]:
    """Images study by study under several views: each is decoded once, each view made once, mirrored ones not at all.

    One in quarantine is left out. grouped: they come study by study, in the order wanted. rank, world: this worker's
    share, of whole studies.
    """
    import torch

    plain = sorted({replace(view, mirrored=False) for view in chosen}, key=repr)
    rows = np.flatnonzero(np.isin(images.image_id, shards.index().index))
    rows = rows if grouped else rows[np.argsort(images.study[rows], kind="stable")]
    if world > 1:
        studies = np.unique(images.study[rows])
        rows = rows[np.isin(images.study[rows], np.array_split(studies, world)[rank])]
    parts = pieces(len(rows), BATCH, images.study[rows])
    made = stream_views(shards, images.image_id[rows], plain, parts, threads)
    for part, arrays in zip(parts, made, strict=True):
        pixels = {view: torch.from_numpy(array).to(device) for view, array in zip(plain, arrays, strict=True)}
        yield PixelBatch(rows[part], pixels, *_codes(images, rows[part], device))


def _codes(images: Images, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    study, view = (torch.from_numpy(np.asarray(codes[rows], np.int64)) for codes in (images.study, images.view))
    return study.to(device), view.to(device)
