"""The resume state of a trial: all it needs to go on after any end as if nothing had happened.

    RUN/trials/T0001/resume-000012.safetensors     after its 12th epoch, all folds, stages and the refit counted

One file, complete or not there: weights, optimizer, averages and scores as tensors, the rest (the trial's record, and
where it is) as JSON in its header. It is written before the epoch is reported to anyone and before the checkpoint that
is kept, which is written again from it if the process ended in between. What is random in an epoch begins from its own
seed, so that nothing of a generator is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.storage import NotThere, Store
from cxrlt_ray.storage.patience import patiently
from cxrlt_ray.training.heartbeat import beat

if TYPE_CHECKING:
    import torch

PREFIX, SUFFIX = "resume-", ".safetensors"


@dataclass(frozen=True)
class ResumeState:
    """The state after an epoch: `fold` (K: the refit), `stage`, and `epoch` of the stage, each from 0.

    record: the trial's at that time. tensors: by name, its first part what they are of (model, ema, optimizer ...).
    """

    fold: int
    stage: int
    epoch: int
    record: TrialRecord
    tensors: dict[str, torch.Tensor] = field(repr=False)

    def of(self, part: str) -> dict[str, torch.Tensor]:
        """The tensors of `part`, by the rest of their names; {} where there are none."""
        return {name.removeprefix(f"{part}/"): t for name, t in self.tensors.items() if name.startswith(f"{part}/")}


def keep(store: Store, state: ResumeState) -> None:
    """Write the state to the trial's directory, then remove the one before. Raises CxrltError where it cannot be."""
    from safetensors.torch import save_file

    before = names(store)
    done = int(before[-1].removeprefix(PREFIX).removesuffix(SUFFIX)) if before else 0
    header = {
        "fold": state.fold,
        "stage": state.stage,
        "epoch": state.epoch,
        "record": state.record.content(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    with store.place(f"{PREFIX}{done + 1:06d}{SUFFIX}") as path:
        save_file(tensors, path, {"cxrlt_ray": json.dumps(header)})
    for name in before:
        store.delete(name)


def latest(store: Store) -> ResumeState | None:
    """The trial's last state, on the CPU; None where there is none or it is damaged: the trial then begins anew.

    Storage that does not answer is waited for: to begin anew would overwrite a good state. Raises CxrltError where it
    does not come back.
    """
    for name in reversed(patiently(lambda: names(store), beat=beat)):
        if (state := patiently(lambda name=name: _read(store, name), beat=beat)) is not None:  # type: ignore[misc]
            return state
    return None


def _read(store: Store, name: str) -> ResumeState | None:
    """The state in file `name`; None where it is damaged or gone. Raises CxrltError where storage does not answer."""
    from safetensors import SafetensorError, safe_open

    try:
        with store.fetched(name) as path:
            try:
                with safe_open(path, "pt") as file:
                    header = json.loads(file.metadata()["cxrlt_ray"])
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
                record = TrialRecord.parse(header["record"], name)
                return ResumeState(header["fold"], header["stage"], header["epoch"], record, tensors)
            except UsageError:  # of a later version: to begin anew would overwrite it
                raise
            except (SafetensorError, ValueError, KeyError, TypeError, CxrltError, FileNotFoundError):
                return None
            except OSError as error:
                raise CxrltError(f"{store.uri}/{name} cannot be read: {error}") from None
    except NotThere:
        return None


def forget(store: Store) -> None:
    """Remove the trial's states: it is done."""
    for name in names(store):
        store.delete(name)


def names(store: Store) -> list[str]:
    """The files of states in a trial's directory, oldest first."""
    return [name for name in store.list() if name.startswith(PREFIX) and name.endswith(SUFFIX)]
