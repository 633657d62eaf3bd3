"""The trial store: what a sweep leaves behind, readable with pandas and json alone.

    RUN/run.json                     task, data, space, seed, resources; the fingerprint of the manifest
    RUN/manifest.parquet             the cohort as split for this run
    RUN/space.yaml                   the search space as it was
    RUN/optuna.db                    the search's state, for optuna-dashboard; made anew from the trials where it lacks
    RUN/trials/T0001/trial.json      state, parameters, metrics by epoch, environment, reason of a failure
                    /fold-0/         the kept checkpoint: model.safetensors, model.json; refit/ beside it, if asked for
                    /predictions/val.parquet    image_id, then one float32 probability per finding
                                 val-tta.parquet        the same, under test-time augmentation
                    /midway-000003.safetensors  while it runs: all it needs to go on after an epoch
                    /retries.json    why it was begun anew, where a fault ended it
    RUN/stages/KEY/                  weights of stages on other cohorts, for all trials that share them

Predictions are those of the kept checkpoint; their file carries findings, split and fingerprint in
its metadata, and is refused where they do not fit the run.
"""

from __future__ import annotations

import datetime
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.data.prepare import Shards
    from cxrlt_ray.training.config import TrialConfig

RUNNING, FINISHED, PRUNED, FAILED = "running", "finished", "pruned", "failed"
REFIT = "refit"  # the checkpoint trained on train and validation images
DEFAULT_STORAGE = "runs"


def looked_at(split: str, tta: bool) -> str:
    """The name under which predictions of `split` are kept; those under test-time augmentation have their own."""
    return f"{split}-tta" if tta else split


@dataclass(frozen=True)
class Trial:
    """One trial of a run: its directory and what its trial.json says."""

    store: Store
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """T0000, T0001 ... after the search's own number."""
        return self.about["name"]

    @property
    def state(self) -> str:
        """The trial's state: running, finished, pruned or failed."""
        return self.about["state"]

    @property
    def val_map(self) -> float:
        """Validation mAP of the kept predictions; nan where there are none."""
        value = self.about.get("val_map")
        return float("nan") if value is None else value

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints that score new images: the refit one, else one a fold; [] once dropped."""
        names = self.store.list()
        return [REFIT] if REFIT in names else [name for name in names if name.startswith("fold-")]

    @property
    def config(self) -> TrialConfig:
        """The configuration of the stage whose checkpoint and predictions are kept: the last it came to."""
        from cxrlt_ray.training.config import TrialConfig

        return TrialConfig(**self.about["config"]).staged()[self.about.get("stage", -1)]

    def has_predictions(self, split: str = "val") -> bool:
        """Whether the predictions of `split` were stored."""
        return self.store.exists(f"predictions/{split}.parquet")

    def predictions(self, split: str = "val") -> pd.DataFrame:
        """Probabilities in [0, 1]: float32, index image_id, one column per finding of the run's task.

        Raises CxrltError, naming the file, where it is of other findings, split or manifest.
        """
        return read_predictions(
            self.store, f"predictions/{split}.parquet", self.about["findings"], split, self.about["fingerprint"]
        )


@dataclass(frozen=True)
class Run:
    """A sweep's directory."""

    store: Store
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.about["name"]

    @property
    def task(self) -> Task:
        """The task the run was trained for."""
        return Task(**{**self.about["task"], "findings": tuple(self.about["task"]["findings"])})

    def check_layout(self) -> None:
        """Raise UsageError for a run whose shards are laid out as they were before several sizes stood side by side."""
        if not isinstance(self.about["shards"], list):
            raise UsageError(
                f"run {self.name} was made by an earlier version of cxrlt_ray, whose shards are not read any more: "
                "make a new one."
            )

    def shards(self) -> tuple[Shards, ...]:
        """The prepared images that the run's trials were trained on, by size; they lie beside the run."""
        from cxrlt_ray.data.prepare import Shards

        self.check_layout()
        storage = Store(self.store.absolute().uri.rpartition("/")[0])
        return tuple(Shards(storage / "shards" / each["name"], each["size"]) for each in self.about["shards"])

    def manifest(self) -> Manifest:
        """The cohort as split for this run."""
        with self.store.fetched("manifest.parquet") as path:
            return Manifest.read(path)

    def trials(self) -> list[Trial]:
        """All trials that left a trial.json, by name."""
        folder = self.store / "trials"
        return [read_trial(folder / name) for name in folder.list() if (folder / name).exists("trial.json")]


def read_trial(store: Store) -> Trial:
    """The trial in directory `store`."""
    return Trial(store, store.read_json("trial.json"))


def check_free(storage: str, name: str) -> None:
    """Raise UsageError if the run's name is taken, or is none."""
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"--name '{name}' cannot be a directory's name.")
    if (Store(storage) / name).exists("run.json"):
        raise UsageError(
            f"run '{name}' already exists in {storage}: give --resume to continue it, or another --name to start one."
        )


def create_run(storage: str, name: str, about: dict[str, Any], manifest: Manifest, files: dict[str, bytes]) -> Run:
    """Make RUN/ with manifest.parquet, the `files` and, last, run.json. Raises UsageError if the name is taken."""
    check_free(storage, name)
    store = Store(storage) / name
    if store.local is not None:
        private_dir(store.local)  # ids are in it
    with store.place("manifest.parquet") as path:
        manifest.write(path)
    for file, content in files.items():
        store.write(file, content)
    about = {**about, "name": name, "created": now(), "fingerprint": manifest.fingerprint}
    store.write_json("run.json", about)
    return Run(store, about)


def load_run(storage: str = DEFAULT_STORAGE, name: str | None = None) -> Run:
    """The run `name`, or the latest. Raises UsageError, naming those there are."""
    names = runs(storage)
    if name is None:
        if not names:
            raise UsageError(f"no run in {storage}: start one with `python -m cxrlt_ray.sweep task1`.")
        loaded = [Run(Store(storage) / each, (Store(storage) / each).read_json("run.json")) for each in names]
        return max(loaded, key=lambda run: run.about["created"])
    if name not in names:
        raise UsageError(f"no run '{name}' in {storage}; there are: {', '.join(names) or 'none'}.")
    store = Store(storage) / name
    return Run(store, store.read_json("run.json"))


def damage(trial: Trial) -> str:
    """What is wrong with the files that a trial which ended well should have left, or nothing."""
    from cxrlt_ray.training.resume import whole

    try:
        trial.predictions()
    except CxrltError as error:
        return str(error).rstrip(".")
    if trial.about.get("dropped"):
        return ""
    names = trial.checkpoints
    if not names:
        return "its checkpoint is not there"
    for name in names:
        with trial.store.fetched(f"{name}/model.safetensors") as path:
            if not path.exists() or not whole(path):
                return f"{trial.store.uri}/{name}/model.safetensors is damaged"
    return ""


def drop_checkpoints(run: Run, keep: int) -> None:
    """Remove the checkpoints of trials that have ended and are not among the `keep` best; their predictions stay."""
    done = [trial for trial in run.trials() if trial.state in (FINISHED, PRUNED) and not trial.about.get("dropped")]
    for trial in sorted(done, key=lambda trial: -trial.val_map if trial.val_map == trial.val_map else 1.0)[keep:]:
        trial.store.write_json("trial.json", {**trial.about, "dropped": True})
        for name in trial.checkpoints:
            (trial.store / name).remove()


def weights_of(storage: str, source: str, backbone: str) -> str:
    """Where the weights lie that `init_from: RUN/TRIAL` means, or RUN alone: those of its best trial of `backbone`.

    Raises UsageError where there is no such trial, or none of that backbone.
    """
    name, _, wanted = source.partition("/")
    trials = load_run(storage, name).trials()
    named = [trial for trial in trials if wanted in ("", trial.name)]
    if not named:
        raise UsageError(
            f"init_from '{source}': run {name} has no trial {wanted}; it has {', '.join(t.name for t in trials)}."
        )
    able = [trial for trial in named if trial.checkpoints and trial.about["config"].get("backbone") == backbone]
    if not able:
        there = sorted({str(trial.about["config"].get("backbone")) for trial in named if trial.checkpoints})
        raise UsageError(
            f"init_from '{source}' has no weights of backbone '{backbone}'; it has {', '.join(there) or 'none left'}."
        )
    best = max(able, key=lambda trial: -1 if trial.val_map != trial.val_map else trial.val_map)
    return (best.store.absolute() / best.checkpoints[0]).uri + "/model.safetensors"


def runs(storage: str) -> list[str]:
    """The names of the runs in `storage`, sorted."""
    store = Store(storage)
    return [name for name in store.list() if store.exists(f"{name}/run.json")]


def write_predictions(
    store: Store,
    name: str,
    image_ids: np.ndarray | list[str],
    probabilities: np.ndarray,
    findings: tuple[str, ...],
    split: str,
    fingerprint: str,
) -> None:
    """Write probabilities [N, C] in [0, 1] of `image_ids` [N] as Parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image_id": pa.array(list(image_ids), pa.string())}
    columns |= {name: pa.array(probabilities[:, c], pa.float32()) for c, name in enumerate(findings)}
    about = {"findings": list(findings), "split": split, "fingerprint": fingerprint}
    table = pa.table(columns).replace_schema_metadata({b"cxrlt_ray": json.dumps(about).encode()})
    with store.place(name) as path:
        pq.write_table(table, path, write_page_checksum=True)


def read_predictions(
    store: Store, name: str, findings: list[str] | tuple[str, ...], split: str, fingerprint: str
) -> pd.DataFrame:
    """Read and check what `write_predictions` wrote. Raises CxrltError naming the file that does not fit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = f"{store.uri}/{name}"
    try:
        table = pq.read_table(io.BytesIO(store.read(name)), page_checksum_verification=True)
        about = json.loads((table.schema.metadata or {})[b"cxrlt_ray"])
    except (KeyError, ValueError, OSError, pa.ArrowException) as error:
        raise CxrltError(f"{where} is not a file of predictions ({error}).") from None
    expected = {"findings": list(findings), "split": split, "fingerprint": fingerprint}
    for key, value in expected.items():
        if about.get(key) != value:
            raise CxrltError(
                f"{where} does not fit this run: its {key} is {short(about.get(key))}, the run's {short(value)}; "
                "it was made on another cohort or task."
            )
    if table.column_names != ["image_id", *findings]:
        raise CxrltError(f"{where} is damaged: its columns are not the findings that it says it has.")
    return table.to_pandas().set_index("image_id")


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
