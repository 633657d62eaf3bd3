"""Images to predictions by chosen members: one pass over the images for all members, whatever their resolutions.

Ray Data reads and decodes shards in tasks, and actors that hold the members' models (one a GPU, one
on a machine without) score every block with each of them. A shard's scores are written as they come,
so that a killed run goes on where it was; a member's predictions are kept in its trial, so that the
next ensemble finds them.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray.prepare import Shards, resize
from cxrlt_ray.storage import Store
from cxrlt_ray.stream import block_dataset
from cxrlt_ray.trials import Trial, write_predictions

BATCH = 64


@dataclass(frozen=True)
class Member:
    """What scores images: the directories of its checkpoints, whose mean probability counts, and their pixels' edge."""

    resolution: int
    checkpoints: tuple[str, ...]


def member(trial: Trial) -> Member:
    """The trial as a member."""
    return Member(
        trial.about["config"]["resolution"], tuple((trial.store.absolute() / fold).uri for fold in trial.checkpoints)
    )


def score_trials(
    run: Store, shards: Shards, trials: list[Trial], image_ids: np.ndarray, split: str, say: Any = print
) -> None:
    """Store the predictions of `split` in every trial that has none yet; a trial of K folds gives their mean."""
    todo = [trial for trial in trials if not trial.has_predictions(split)]
    if not todo:
        return
    say(f"Scoring {len(image_ids):,} {split} images with {', '.join(trial.name for trial in todo)}", flush=True)
    members = [member(trial) for trial in todo]
    work = run / f"scoring-{split}-{hashlib.sha256(repr((split, members)).encode()).hexdigest()[:8]}"
    found = score(work, shards, members, image_ids)
    scores = np.stack(found["scores"].to_list())
    for k, trial in enumerate(todo):
        about = trial.about
        write_predictions(
            trial.store,
            f"predictions/{split}.parquet",
            found.index.to_numpy(),
            scores[:, k],
            tuple(about["findings"]),
            split,
            about["fingerprint"],
        )
    work.remove()


def score(work: Store, shards: Shards, members: list[Member], image_ids: np.ndarray) -> pd.DataFrame:
    """Probabilities of every member for `image_ids`: index image_id, column `scores` with float32 [M, C] arrays.

    work: where finished shards' scores are kept until all are there.
    """
    import ray

    index = shards.index()
    index = index[index.index.isin(image_ids)]
    files = {name: rows["row"].to_numpy() for name, rows in index.groupby("file", sort=True)}
    done = set(work.list())
    todo = [(name, rows) for name, rows in files.items() if name not in done]
    if todo:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        dataset = block_dataset(shards, todo, shards.size).map_batches(
            Scorer,
            fn_constructor_kwargs={"members": members},
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=max(1, min(gpus, len(todo)))),
            num_gpus=1 if gpus else 0,
            num_cpus=0.5,
        )
        for block in dataset.iter_batches(batch_size=None):
            flat = block["scores"].reshape(len(block["image_id"]), -1)
            frame = pd.DataFrame({"image_id": block["image_id"], "scores": list(flat)})
            with work.place(index.loc[block["image_id"][0], "file"]) as path:
                frame.to_parquet(path, index=False)
    frames = [pd.read_parquet(io.BytesIO(work.read(name))) for name in files]
    table = pd.concat(frames, ignore_index=True).set_index("image_id")
    shape = (len(members), -1)
    table["scores"] = [np.asarray(row, np.float32).reshape(shape) for row in table["scores"]]
    return table.reindex([i for i in image_ids if i in table.index])


class Scorer:
    """An actor with all members' models loaded once; it resizes a block once for each resolution among them."""

    def __init__(self, members: list[Member]) -> None:
        import torch

        from cxrlt_ray import models

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.resolutions = [member.resolution for member in members]
        self.models = []
        for member in members:
            loaded = []
            for uri in member.checkpoints:
                parent, _, name = uri.rpartition("/")
                with Store(parent).fetched(name) as folder:
                    model = models.load(folder)[0].to(self.device).to(memory_format=torch.channels_last)
                    loaded.append(model.eval())
            self.models.append(loaded)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """image_id, and scores float32 [n, M, C]."""
        import torch

        parts = []
        with torch.inference_mode():
            for k in range(0, len(block["image"]), BATCH):
                images = block["image"][k : k + BATCH]
                sized = {size: self._at(images, size) for size in set(self.resolutions)}
                scores = [
                    sum(model(sized[size]).float().sigmoid() for model in models) / len(models)
                    for size, models in zip(self.resolutions, self.models, strict=True)
                ]
                parts.append(torch.stack(scores, dim=1).cpu())
        return {"image_id": block["image_id"], "scores": torch.cat(parts).numpy()}

    def _at(self, images: np.ndarray, size: int) -> Any:
        import torch

        return torch.from_numpy(np.stack([resize(image, size) for image in images])).to(self.device)
