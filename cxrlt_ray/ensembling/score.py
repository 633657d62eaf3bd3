"""Images to predictions by chosen members: one pass over the images for all members that see them at one size.

Ray Data hands shards to actors that hold the members' models (one a GPU, else one a machine). An actor reads, decodes
and resizes a shard's images in its own threads, once for every look among its members, and scores them with each; a
study's images come together, for members that fuse views. A shard's scores are written as they come, so that a killed
run goes on where it was; a member's predictions are kept in its trial, so that the next ensemble finds them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.data.manifest import codes
from cxrlt_ray.data.shards import Shards, nearest
from cxrlt_ray.data.stream import Look
from cxrlt_ray.runs.store import Trial, looked_at, write_predictions
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import torch

BATCH = 64
CROP = 0.9  # of the edge, of the crops of test-time augmentation
ZOOMS = (0.9, 0.8)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


@dataclass(frozen=True)
class Member:
    """What scores images: how it looks at them, and the directories of its checkpoints; the mean over both counts."""

    looks: tuple[Look, ...]
    checkpoints: tuple[str, ...]


def looks_of(resolution: int, crop: float, tta: str = "none") -> tuple[Look, ...]:
    """How a model looks at an image: the plain way first, then what test-time augmentation adds to it.

    tta: `none`, or of these, joined by +.  crops: five of CROP of the edge, from the centre and the corners.
    zooms: the centre at ZOOMS of the edge.  flip: the mirror image of every look.
    """
    kinds = set() if tta == "none" else set(tta.split("+"))
    looks = [Look(resolution, crop)]
    if "crops" in kinds:
        looks += [Look(resolution, crop * CROP, place) for place in ((0.5, 0.5), *CORNERS)]
    if "zooms" in kinds:
        looks += [Look(resolution, crop * zoom) for zoom in ZOOMS]
    if "flip" in kinds:
        looks += [replace(look, mirrored=True) for look in looks]
    return tuple(dict.fromkeys(looks))


def member(trial: Trial, tta: bool = False) -> Member:
    """The trial as a member, under its test-time augmentation if `tta`."""
    config = trial.config
    uris = tuple((trial.store.absolute() / name).uri for name in trial.checkpoints)
    return Member(looks_of(config.resolution, config.crop, config.tta if tta else "none"), uris)


def score_trials(
    run: Store,
    shards: tuple[Shards, ...],
    trials: list[Trial],
    images: pd.DataFrame,
    split: str,
    say: Any = print,
    tta: Sequence[bool] | None = None,
) -> None:
    """Store the predictions of `split` in every trial that has none yet; a trial of K folds gives their mean.

    images: a manifest's rows. tta: which of the trials look under test-time augmentation.
    """
    flags = list(tta) if tta is not None else [False] * len(trials)
    asked = [(trial, flag, looked_at(split, flag)) for trial, flag in zip(trials, flags, strict=True)]
    todo = [each for each in asked if not each[0].has_predictions(each[2])]
    if not todo:
        return
    say(f"Scoring {len(images):,} {split} images with {', '.join(trial.name for trial, *_ in todo)}", flush=True)
    members = [member(trial, flag) for trial, flag, _ in todo]
    work = run / f"scoring-{split}-{hashlib.sha256(repr((split, members)).encode()).hexdigest()[:8]}"
    found = score(work, shards, members, images)
    scores = np.stack(found["scores"].to_list())
    for k, (trial, _, name) in enumerate(todo):
        about = trial.about
        write_predictions(
            trial.store,
            f"predictions/{name}.parquet",
            found.index.to_numpy(),
            scores[:, k],
            tuple(about["findings"]),
            name,
            about["fingerprint"],
        )
    work.remove()


def score(work: Store, shards: tuple[Shards, ...], members: list[Member], images: pd.DataFrame) -> pd.DataFrame:
    """Probabilities of every member for `images`: index image_id, column `scores` with float32 [M, C] arrays.

    images: image_id, study_id and view of a manifest; a study's images are scored together. A member sees the shards
    it was trained on, those nearest its resolution. work: where finished shards' scores are kept until all are there.
    """
    groups: dict[Shards, list[int]] = {}
    for k, each in enumerate(members):
        groups.setdefault(nearest(shards, each.looks[0].resolution), []).append(k)
    passes = [
        _pass(work / f"{source.size}px", source, [members[k] for k in chosen], images)
        for source, chosen in groups.items()
    ]
    # shards of every size hold the same images: what cannot be decoded cannot at any
    scores = np.concatenate([part for _, part in passes], axis=1)
    back = np.argsort(np.concatenate(list(groups.values())))
    return pd.DataFrame({"scores": list(scores[:, back])}, index=pd.Index(passes[0][0], name="image_id"))


def _pass(work: Store, shards: Shards, members: list[Member], images: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N] of what was prepared of `images`, in their order, and scores float32 [N, M, C]."""
    import ray

    items = {item["file"]: item for item in _items(shards, images)}
    done = set(work.list())
    todo = [item for name, item in items.items() if name not in done]
    if todo:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actors = gpus or sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
        data_context()
        dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            Scorer,  # type: ignore[arg-type]
            fn_constructor_kwargs={"shards": shards, "members": members},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=max(1, min(actors, len(todo)))),
            num_gpus=1 if gpus else 0,
            num_cpus=DATA_CPUS,
        )
        for block in dataset.iter_batches(batch_size=None):
            for name in np.unique(block["file"]):
                mine = block["file"] == name
                frame = pd.DataFrame({"image_id": block["image_id"][mine]})
                frame["scores"] = list(block["scores"][mine].reshape(mine.sum(), -1))
                with work.place(str(name)) as path:
                    frame.to_parquet(path, index=False)
    frames = [pd.read_parquet(io.BytesIO(work.read(name))) for name in items]
    table = pd.concat(frames, ignore_index=True).set_index("image_id")["scores"]
    found = np.array([i for i in images["image_id"] if i in table.index], object)
    return found, np.stack(table.loc[found].to_list()).astype(np.float32).reshape(len(found), len(members), -1)


def _items(shards: Shards, images: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """For each shard the images to score with it: those of the studies whose first image lies there, study by study."""
    index = shards.index()
    images = images[images["image_id"].isin(index.index)]
    at = index.index.get_indexer(images["image_id"])
    study, view = codes(images)
    first = np.full(study.max(initial=-1) + 1, len(index))
    np.minimum.at(first, study, at)
    order = np.lexsort([at, first[study]])  # studies as they lie, and their images as they lie
    files = index["file"].astype(str).to_numpy()[first[study[order]]]
    ids = images["image_id"].to_numpy()[order]
    for name in np.unique(files):
        mine = files == name
        chosen = order[mine]
        yield {
            "file": name,
            "image_id": ids[mine].tolist(),
            "study": study[chosen].tolist(),
            "view": view[chosen].tolist(),
        }


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
        ids, study, view = (np.asarray(list(item[key][0])) for key in ("image_id", "study", "view"))
        ids = ids.astype(object)
        several = [(models, each.looks) for models, each in zip(self.models, self.members, strict=True)]
        scores = _looked(several, self.shards, ids, study, view, self.device, threads=2)
        return {"file": np.full(len(ids), item["file"][0], object), "image_id": ids, "scores": scores}


def predict_looks(
    model: Any,
    shards: Shards,
    image_ids: np.ndarray,
    looks: Sequence[Look],
    study: np.ndarray,
    view: np.ndarray,
    threads: int = 2,
) -> np.ndarray:
    """Probabilities float32 [N, C] of prepared images: the mean over `looks`. study, view: codes [N]."""
    device = next(model.parameters()).device
    order = np.argsort(study, kind="stable")
    scores = _looked([([model], tuple(looks))], shards, image_ids[order], study[order], view[order], device, threads)
    found = np.empty_like(scores[:, 0])
    found[order] = scores[:, 0]
    return found


def _looked(
    several: list[tuple[list[Any], tuple[Look, ...]]],
    shards: Shards,
    ids: np.ndarray,
    study: np.ndarray,
    view: np.ndarray,
    device: torch.device,
    threads: int,
) -> np.ndarray:
    """Scores float32 [N, M, C] of M times (models, looks): each image is decoded once, each look made once.

    Images of a study stand together, and are never parted between batches.
    """
    import torch

    from cxrlt_ray.data.stream import pieces, views

    plain = sorted({replace(look, mirrored=False) for _, looks in several for look in looks}, key=repr)
    parts, found = pieces(len(ids), BATCH, study), []
    with torch.inference_mode():
        for part, images in zip(parts, views(shards, ids, plain, parts, threads), strict=True):
            seen = {look: torch.from_numpy(each).to(device) for look, each in zip(plain, images, strict=True)}
            coded = [torch.from_numpy(np.asarray(each[part], np.int64)).to(device) for each in (study, view)]
            scores = []
            for models, looks in several:
                total: Any = 0.0
                for look in looks:
                    pixels = seen[replace(look, mirrored=False)]
                    pixels = pixels.flip(-1) if look.mirrored else pixels
                    total = total + sum(model(pixels, *coded).float().sigmoid() for model in models)
                scores.append(total / (len(looks) * len(models)))
            found.append(torch.stack(scores, dim=1).cpu())
    return torch.cat(found).numpy()
