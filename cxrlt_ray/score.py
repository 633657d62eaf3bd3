"""Images to predictions by chosen members: one pass over the images for all members that see them at one size.

Ray Data hands shards to actors that hold the members' models (one a GPU, else one a machine). An actor
reads, decodes and resizes a shard's images in its own threads, once for every resolution among its members,
and scores them with each. A shard's scores are written as they come, so that a killed run goes on where it
was; a member's predictions are kept in its trial, so that the next ensemble finds them.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray.prepare import Shards, nearest
from cxrlt_ray.storage import Store
from cxrlt_ray.trials import Trial, write_predictions

BATCH = 64


@dataclass(frozen=True)
class Member:
    """What scores images: its pixels' edge, its crop, and the directories of its checkpoints, whose mean counts."""

    resolution: int
    crop: float
    checkpoints: tuple[str, ...]


def member(trial: Trial) -> Member:
    """The trial as a member."""
    config = trial.about["config"]
    uris = tuple((trial.store.absolute() / fold).uri for fold in trial.checkpoints)
    return Member(config["resolution"], config["crop"], uris)


def score_trials(
    run: Store, shards: tuple[Shards, ...], trials: list[Trial], image_ids: np.ndarray, split: str, say: Any = print
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


def score(work: Store, shards: tuple[Shards, ...], members: list[Member], image_ids: np.ndarray) -> pd.DataFrame:
    """Probabilities of every member for `image_ids`: index image_id, column `scores` with float32 [M, C] arrays.

    A member sees the shards it was trained on, those nearest its resolution. work: where finished shards'
    scores are kept until all are there.
    """
    groups: dict[Shards, list[int]] = {}
    for k, each in enumerate(members):
        groups.setdefault(nearest(shards, each.resolution), []).append(k)
    passes = [
        _pass(work / f"{source.size}px", source, [members[k] for k in chosen], image_ids)
        for source, chosen in groups.items()
    ]
    # shards of every size hold the same images: what cannot be decoded cannot at any
    scores = np.concatenate([part for _, part in passes], axis=1)
    back = np.argsort(np.concatenate(list(groups.values())))
    return pd.DataFrame({"scores": list(scores[:, back])}, index=pd.Index(passes[0][0], name="image_id"))


def _pass(work: Store, shards: Shards, members: list[Member], image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N] of what was prepared of `image_ids`, in their order, and scores float32 [N, M, C]."""
    import ray

    index = shards.index()
    index = index[index.index.isin(image_ids)]
    files = {str(name): rows.index.to_numpy() for name, rows in index.groupby("file", observed=True)}
    done = set(work.list())
    todo = [{"file": name, "image_id": ids.tolist()} for name, ids in files.items() if name not in done]
    if todo:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actors = gpus or sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            Scorer,  # type: ignore[arg-type]
            fn_constructor_kwargs={"shards": shards, "members": members},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=max(1, min(actors, len(todo)))),
            num_gpus=1 if gpus else 0,
            num_cpus=0.5,
        )
        for block in dataset.iter_batches(batch_size=None):
            for name in np.unique(block["file"]):
                mine = block["file"] == name
                frame = pd.DataFrame({"image_id": block["image_id"][mine]})
                frame["scores"] = list(block["scores"][mine].reshape(mine.sum(), -1))
                with work.place(str(name)) as path:
                    frame.to_parquet(path, index=False)
    frames = [pd.read_parquet(io.BytesIO(work.read(name))) for name in files]
    table = pd.concat(frames, ignore_index=True).set_index("image_id")["scores"]
    found = np.array([i for i in image_ids if i in table.index], object)
    return found, np.stack(table.loc[found].to_list()).astype(np.float32).reshape(len(found), len(members), -1)


class Scorer:
    """An actor with the models of all members that see `shards`, loaded once."""

    def __init__(self, shards: Shards, members: list[Member]) -> None:
        import torch

        from cxrlt_ray import models

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.shards, self.members, self.models = shards, members, []
        for each in members:
            loaded = []
            for uri in each.checkpoints:
                parent, _, name = uri.rpartition("/")
                with Store(parent).fetched(name) as folder:
                    model = models.load(folder)[0].to(self.device).to(memory_format=torch.channels_last)
                    loaded.append(model.eval())
            self.models.append(loaded)

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """File and image_id [n], and scores float32 [n, M, C]."""
        import torch

        from cxrlt_ray.stream import views

        ids = np.asarray(list(item["image_id"][0]), object)
        looks = sorted({(each.resolution, each.crop) for each in self.members})
        parts = []
        with torch.inference_mode():
            for found in views(self.shards, ids, looks, BATCH):
                seen = {look: torch.from_numpy(view).to(self.device) for look, view in zip(looks, found, strict=True)}
                scores = [
                    sum(model(seen[each.resolution, each.crop]).float().sigmoid() for model in models) / len(models)
                    for each, models in zip(self.members, self.models, strict=True)
                ]
                parts.append(torch.stack(scores, dim=1).cpu())
        file = np.full(len(ids), item["file"][0], object)
        return {"file": file, "image_id": ids, "scores": torch.cat(parts).numpy()}
