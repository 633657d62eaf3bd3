"""Images to predictions by chosen members: one pass over the images for all members of one size.

Ray Data hands shards to actors that hold the members' models (one a GPU, else one a machine). An actor reads, decodes
and resizes a shard's images in its own threads, once for every view among its members, and scores them with each; a
study's images come together, for members that fuse views. A shard's scores are written as they come, so that a killed
run goes on where it was; a member's predictions are kept in its trial, so that the next ensemble finds them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cxrlt_ray.cli import say, with_progress
from cxrlt_ray.cluster.processors import available_processors
from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.data.image_transform import AugmentedView
from cxrlt_ray.data.manifest import codes
from cxrlt_ray.data.shards import Shards, nearest
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.predictions import Predictions, augmented_name
from cxrlt_ray.runs.store import Trial
from cxrlt_ray.storage import Store
from cxrlt_ray.training.device import precision
from cxrlt_ray.training.inference import Member, augmented_batches, augmented_views, infer
from cxrlt_ray.training.job import Images


@dataclass(frozen=True)
class StoredMember:
    """A trial that scores images: its checkpoints, the views of an image it uses; the mean over both counts.

    precision: auto, bf16 or fp32, as it was trained. findings: which of its outputs are wanted, by name. asked: label
    embeddings [A, E] of findings that it is asked for too, None where it cannot be; more: A, whose scores come last,
    without meaning for such a member.
    """

    views: tuple[AugmentedView, ...]
    checkpoints: tuple[str, ...]
    precision: str
    findings: tuple[str, ...]
    asked: np.ndarray | None = field(default=None, compare=False, repr=False)
    more: int = 0


def member(trial: Trial, tta: bool = False, findings: tuple[str, ...] = ()) -> StoredMember:
    """The trial as a member, under its test-time augmentation if `tta`; of `findings`, or all that it predicts."""
    config = trial.config
    uris = tuple((trial.store.absolute() / name).uri for name in trial.checkpoints)
    views = augmented_views(config.resolution, config.crop, config.tta if tta else "none")
    return StoredMember(views, uris, config.precision, findings or trial.record.findings)


def score_trials(
    run: Store,
    shards: tuple[Shards, ...],
    trials: list[Trial],
    images: pd.DataFrame,
    split: str,
    say: Callable[..., None] = print,
    tta: Sequence[bool] | None = None,
    track: str | None = None,
) -> None:
    """Store the predictions of `split` in every trial that has none yet; a trial of K folds gives their mean.

    images: a manifest's rows. tta: which of the trials score under test-time augmentation. track: of the run.
    """
    flags = list(tta) if tta is not None else [False] * len(trials)
    requests = [(trial, flag, augmented_name(split, flag)) for trial, flag in zip(trials, flags, strict=True)]
    missing = [request for request in requests if not request[0].has_predictions(request[2])]
    if not missing:
        return
    say(f"Scoring {len(images):,} {split} images with {', '.join(trial.name for trial, *_ in missing)}", flush=True)
    members = [member(trial, flag) for trial, flag, _ in missing]
    work = run / f"scoring-{split}-{hashlib.sha256(repr((split, members)).encode()).hexdigest()[:8]}"
    frame = score(work, shards, members, images)
    scores = np.stack(frame["scores"].to_list())
    for k, (trial, _, name) in enumerate(missing):
        record, precision = trial.record, frame.attrs["precision"][k]
        ids = frame.index.to_numpy()
        predictions = Predictions(ids, scores[:, k], record.findings, name, record.fingerprint, precision, track)
        predictions.write(trial.store, f"predictions/{name}.parquet")
    work.remove()


def score(work: Store, shards: tuple[Shards, ...], members: list[StoredMember], images: pd.DataFrame) -> pd.DataFrame:
    """Probabilities of every member for `images`: index image_id, column `scores` with float32 [M, C] arrays.

    images: image_id, study_id and view of a manifest; a study's images are scored together. A member sees the shards
    it was trained on, those nearest the edge that its images had. work: where finished shards' scores are kept until
    all are there. The table's attrs name the precision of each member's forward passes.
    """
    groups: dict[Shards, list[int]] = {}
    for k, stored in enumerate(members):
        groups.setdefault(nearest(shards, stored.views[0].edge), []).append(k)
    passes = [
        _pass(work / f"{source.size}px", source, [members[k] for k in chosen], images)
        for source, chosen in groups.items()
    ]
    # shards of every size hold the same images: what cannot be decoded cannot at any
    scores = np.concatenate([part.scores for part in passes], axis=1)
    back = np.argsort(np.concatenate(list(groups.values())))
    frame = pd.DataFrame({"scores": list(scores[:, back])}, index=pd.Index(passes[0].image_id, name="image_id"))
    precision = [name for part in passes for name in part.precision]
    frame.attrs["precision"] = [precision[k] for k in back]
    return frame


@dataclass(frozen=True)
class Pass:
    """What one pass over the shards of a size gives: image_id [N], scores float32 [N, M, C], precision [M]."""

    image_id: np.ndarray
    scores: np.ndarray
    precision: list[str]


def _pass(work: Store, shards: Shards, members: list[StoredMember], images: pd.DataFrame) -> Pass:
    """Score what was prepared of `images`, in their order; shards that an earlier process scored are read."""
    items = {item["file"]: item for item in _items(shards, images)}
    if not items:
        raise CxrltError(f"none of the {len(images):,} images to score could be decoded: see quarantine.parquet.")
    done = set(work.list())
    todo = [item for name, item in items.items() if name not in done]
    if todo:
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        actors = gpus or sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
        data_context()
        dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            Scorer,
            fn_constructor_kwargs={"shards": shards, "members": members},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=max(1, min(actors, len(todo)))),
            num_gpus=1 if gpus else 0,
            num_cpus=DATA_CPUS,
        )
        counts = {name: len(item["image_id"]) for name, item in items.items()}
        blocks = dataset.iter_batches(batch_size=None)
        images_to_do = sum(len(item["image_id"]) for item in todo)
        _write_shards(with_progress(blocks, images_to_do, say, lambda block: len(block["file"])), counts, work)
    frames = [pd.read_parquet(io.BytesIO(work.read(name))) for name in items]
    table = pd.concat(frames, ignore_index=True).set_index("image_id")
    ids = np.array([i for i in images["image_id"] if i in table.index], object)
    scores = np.stack(table.loc[ids, "scores"].to_list()).astype(np.float32)
    return Pass(ids, scores.reshape(len(ids), len(members), -1), str(table["precision"].iloc[0]).split())


def _write_shards(blocks: Iterable[dict[str, np.ndarray]], counts: dict[str, int], work: Store) -> None:
    """Write the scores of each shard as soon as all its images have come: Ray Data may cut a shard into blocks.

    counts: how many images each shard has, by its file's name.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for block in blocks:
        for name in map(str, np.unique(block["file"])):
            rows = block["file"] == name
            part = pd.DataFrame({key: block[key][rows] for key in ("image_id", "precision")})
            part["scores"] = list(block["scores"][rows].reshape(rows.sum(), -1))
            parts.setdefault(name, []).append(part)
            if sum(map(len, parts[name])) < counts[name]:
                continue
            frame = pd.concat(parts.pop(name), ignore_index=True)
            with work.place(name) as path:
                frame.to_parquet(path, index=False)


def _items(shards: Shards, images: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """For each shard the images to score with it: those of the studies whose first image lies there, study by study."""
    index = shards.index()
    images = images[images["image_id"].isin(index.index)]
    rows = index.index.get_indexer(images["image_id"])
    study, view = codes(images)
    first = np.full(study.max(initial=-1) + 1, len(index))
    np.minimum.at(first, study, rows)
    order = np.lexsort([rows, first[study]])  # studies as they lie, and their images as they lie
    files = index["file"].astype(str).to_numpy()[first[study[order]]]
    ids = images["image_id"].to_numpy()[order]
    for name in np.unique(files):
        in_file = files == name
        chosen = order[in_file]
        yield {
            "file": name,
            "image_id": ids[in_file].tolist(),
            "study": study[chosen].tolist(),
            "view": view[chosen].tolist(),
        }


class Scorer:
    """An actor with the models of all members that use `shards`, loaded once."""

    def __init__(self, shards: Shards, members: list[StoredMember]) -> None:
        import torch

        from cxrlt_ray import models
        from cxrlt_ray.models.asking import Both

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(available_processors())  # Ray gives an actor of half a CPU one thread
        self.shards, self.members = shards, []
        self.count = len(members[0].findings) + members[0].more
        for stored in members:
            loaded: list[torch.nn.Module] = []
            findings = stored.findings
            for uri in stored.checkpoints:
                store, name = Store.holding(uri)
                with store.fetched(name) as folder:
                    model, _, findings = models.load(folder)
                model = model.to(self.device).to(memory_format=torch.channels_last).eval()
                loaded.append(model if stored.asked is None else Both(model, torch.from_numpy(stored.asked)).eval())
            outputs = np.array([findings.index(finding) for finding in stored.findings])
            more = np.arange(stored.more)
            outputs = np.concatenate([outputs, more * 0 if stored.asked is None else len(findings) + more])
            self.members.append(Member(loaded, stored.views, stored.precision, outputs))
        self.precision = " ".join(precision(stored.precision, self.device) for stored in members)

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """File, image_id and precision [n], and scores float32 [n, M, C]."""
        ids, study, view = (np.asarray(list(item[key][0])) for key in ("image_id", "study", "view"))
        ids = ids.astype(object)
        images = Images(ids, np.empty((len(ids), 0), np.int8), study, view)
        views = [augmented for member in self.members for augmented in member.views]
        stream = augmented_batches(self.shards, images, views, self.device, grouped=True)
        scores = infer(self.members, stream, (len(ids), self.count), self.device)
        shared = {"file": item["file"][0], "precision": self.precision}
        columns = {key: np.full(len(ids), value, object) for key, value in shared.items()}
        return {**columns, "image_id": ids, "scores": scores}
