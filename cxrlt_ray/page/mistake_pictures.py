"""Pictures of a system's worst mistakes under heatmaps of one of its members, and whether these say anything.

Made in this process: at most MOST pictures, and DRAWS randomised copies of the model on CHECKED of them. That is 48
forward and backward passes of one image at most: seconds for a small model on a core, minutes for a large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray.data.image_transform import AugmentedView
from cxrlt_ray.data.shards import Shards, decoded, nearest
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.page.facts import Facts
from cxrlt_ray.page.pictures import data_uri, smaller
from cxrlt_ray.runs.records import FINISHED
from cxrlt_ray.runs.store import Trial, best_first

if TYPE_CHECKING:
    from cxrlt_ray.models import Classifier

MOST = 24  # pictures
BYTES = 600_000  # of all their data URIs
CHECKED, DRAWS = 8, 3
BATCH = 8
METHODS = {
    "attention": "the attention of its head, 0 (dark) to 1 (yellow)",
    "cam": "class activation maps, which add up to its logit; each scaled to its own largest value",
    "grad_cam": "Grad-CAM on its last feature map; each scaled to its own largest value",
}


@dataclass(frozen=True)
class Mistake:
    """What a picture is of: an image's id, which stays here, and the finding that was mistaken."""

    image_id: str
    finding: str


@dataclass(frozen=True)
class Drawn:
    """images: data URIs by the number of their mistake. trial: whose heatmaps. left_out: how many, for their bytes.

    likenesses: of each heatmap checked, its rank correlation with that of randomised weights, the mean over draws.
    """

    images: dict[int, str]
    trial: str
    method: str
    left_out: int
    likenesses: tuple[float, ...]


def draw(facts: Facts, mistakes: Sequence[Mistake]) -> Drawn:
    """The pictures of the first MOST mistakes. Raises CxrltError, or UsageError, where there can be none."""
    import torch

    from cxrlt_ray.models.heatmaps import heatmaps, method_of

    trial, model, findings = _member(facts)
    config = trial.config
    shards = nearest(facts.run.shards(), config.edge)
    view = AugmentedView(config.resolution, config.crop)
    pixels = _pixels(shards, view, mistakes, findings)
    if not pixels:
        raise CxrltError("none of the images is among the prepared ones.")
    numbers = list(pixels)
    images = torch.from_numpy(np.stack([pixels[k] for k in numbers]))
    outputs = torch.tensor([findings.index(mistakes[k].finding) for k in numbers])
    pieces = [slice(at, at + BATCH) for at in range(0, len(numbers), BATCH)]
    maps = torch.cat([heatmaps(model, images[piece], outputs[piece]) for piece in pieces]).numpy()
    likenesses = _checked(model, images[:CHECKED], outputs[:CHECKED], maps)
    method, uris, used = method_of(model), {}, 0
    for k, image, heat in zip(numbers, images.numpy(), maps, strict=True):
        uri = _picture(image, heat if method == "attention" else heat / max(float(heat.max()), 1e-12))
        used += len(uri)
        if used > BYTES:
            break
        uris[k] = uri
    return Drawn(uris, trial.name, METHODS[method], len(numbers) - len(uris), likenesses)


def _candidates(facts: Facts) -> Iterator[Trial]:
    """The ensemble's members, the heaviest first; of a run without one its trials, the best first."""
    trials = {trial.name: trial for trial in facts.trials}
    if facts.ensemble is not None:
        members = facts.ensemble.record.members
        heaviest = sorted(members, key=lambda member: -sum(member.weights.values()))
        yield from (trials[member.trial] for member in heaviest if member.trial in trials)
    yield from best_first([trial for trial in facts.trials if trial.state == FINISHED])


def _member(facts: Facts) -> tuple[Trial, Classifier, tuple[str, ...]]:
    """The first candidate whose first checkpoint can be loaded and has heatmaps."""
    from cxrlt_ray.models import load
    from cxrlt_ray.models.heatmaps import method_of

    if not facts.run.shards():
        raise CxrltError("the run has no prepared images.")
    reason = "no trial has kept a checkpoint."
    for trial in _candidates(facts):
        for checkpoint in trial.checkpoints[:1]:
            try:
                with trial.store.fetched(checkpoint) as folder:
                    model, _, findings = load(folder)
                method_of(model)
            except UsageError as error:
                reason = str(error)
            except Exception as error:  # a damaged checkpoint fails in as many ways as there are libraries below
                reason = f"the checkpoint of {trial.name} cannot be loaded ({type(error).__name__})."
            else:
                return trial, model, findings
    raise CxrltError(reason)


def _pixels(
    shards: Shards, view: AugmentedView, mistakes: Sequence[Mistake], findings: Sequence[str]
) -> dict[int, np.ndarray]:
    """What the model sees of the first MOST mistakes that can be shown, uint8 [H, W], by their number."""
    index = shards.index()
    pixels: dict[int, np.ndarray] = {}
    for k, mistake in enumerate(mistakes):
        if len(pixels) == MOST:
            break
        if mistake.image_id not in index.index or mistake.finding not in findings:
            continue
        place = index.loc[mistake.image_id]
        filesystem, path = shards.store.opened(str(place["file"]))
        with filesystem.open_input_file(path) as file:
            content = file.read_at(int(place["length"]), int(place["offset"]))
        pixels[k] = view.apply(decoded(content))
    return pixels


def _checked(model: Classifier, images: object, findings: object, maps: np.ndarray) -> tuple[float, ...]:
    """Adebayo et al. 2018: how like the heatmaps are those of randomised weights; those not known left out."""
    import torch

    from cxrlt_ray.models.heatmaps import heatmaps, likeness, randomised

    assert isinstance(images, torch.Tensor)
    assert isinstance(findings, torch.Tensor)
    by_draw = []
    for seed in range(DRAWS):
        others = heatmaps(randomised(model, images, seed), images, findings).numpy()
        by_draw.append([likeness(one, other) for one, other in zip(maps, others, strict=False)])
    table = np.array(by_draw)
    known = table[:, ~np.isnan(table).all(axis=0)]
    return tuple(float(value) for value in np.nanmean(known, axis=0)) if known.size else ()


def _picture(image: np.ndarray, heat: np.ndarray) -> str:
    """The image, and below it the image under its heatmap."""
    import cv2

    from cxrlt_ray.reporting.maps import laid_over

    gray = smaller(image)
    return data_uri(np.concatenate([cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), laid_over(gray, heat)]))
