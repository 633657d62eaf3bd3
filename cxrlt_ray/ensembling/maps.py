"""Attention maps of an ensemble: where the heaviest of its members that has such maps looks for a finding.

A map depends on the finding's text alone, so that own findings and those asked for by text are alike. They are computed
in this process: some images a second on a core, for pictures to look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import codes
from cxrlt_ray.data.shards import Shards, nearest
from cxrlt_ray.ensembling.asked import spec_of
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.text.descriptions import own_labels
from cxrlt_ray.training.inference import augmented_views, plain_batches
from cxrlt_ray.training.job import Images

BATCH = 16


def mapping_member(trials: Sequence[Trial], weights: np.ndarray) -> int:
    """Which of the members [M] gives the maps: the heaviest whose head has them. weights: float64 [M, C].

    Raises UsageError where none has.
    """
    from cxrlt_ray.models.heads import HEADS
    from cxrlt_ray.models.spec import NO_FUSION

    specs = [spec_of(trial)[0] for trial in trials]
    able = [m for m, spec in enumerate(specs) if HEADS[spec.head].gives_maps and spec.fusion == NO_FUSION]
    if not able:
        heads = ", ".join(name for name, head in HEADS.items() if head.gives_maps)
        raise UsageError(f"--maps needs a member with head {heads} and without fusion, which this ensemble lacks.")
    return max(able, key=lambda m: float(weights[m].mean()))


def attention_maps(
    trial: Trial, rows: Mapping[str, np.ndarray], names: Sequence[str], shards: tuple[Shards, ...], images: pd.DataFrame
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each of `images` that could be decoded: its row, pixels uint8 [H, W] and maps float32 [A, side, side].

    rows: label embeddings [E] of those of `names` [A] that are asked for by text; the others are the trial's own. A
    trial of several checkpoints gives the mean of their maps.
    """
    import torch

    from cxrlt_ray.models import asked, load

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = []
    for checkpoint in trial.checkpoints:
        with trial.store.fetched(checkpoint) as folder:
            model, _, findings = load(folder)
        stored = model.head.embeddings
        assert isinstance(stored, torch.Tensor)
        own = own_labels(findings, names)
        texts = [torch.from_numpy(rows[n]) if n in rows else stored[findings.index(own[n])] for n in names]
        models.append(asked(model, torch.stack(texts)).to(device).eval())
    config = trial.config
    (view,) = augmented_views(config.resolution, config.crop)
    ids = images["image_id"].to_numpy()
    wanted = Images(ids, np.empty((len(ids), 0), np.int8), *codes(images))
    for batch in plain_batches(nearest(shards, config.edge), wanted, view, BATCH, device):
        pixels = batch.pixels[view]
        with torch.inference_mode():
            maps = torch.stack([model.with_maps(pixels)[1] for model in models]).mean(dim=0)
        yield from zip(batch.rows.tolist(), pixels.cpu().numpy(), maps.cpu().numpy(), strict=True)
