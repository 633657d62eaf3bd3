"""A trial in the middle: all it needs to go on after any end as if nothing had happened.

    RUN/trials/T0001/midway-000012.safetensors     after its 12th epoch, all folds, stages and the refit counted

One file, complete or not there: weights, optimiser, averages and scores as tensors, the rest (the trial's record, and
where it is) as JSON in its header. It is written before the epoch is told to anyone and before the checkpoint that
is kept, which is written again from it if the process ended in between. What is random in an epoch begins from its own
seed, so that nothing of a generator is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

PREFIX, SUFFIX = "midway-", ".safetensors"


@dataclass(frozen=True)
class Midway:
    """The state after an epoch: `fold` (K: the refit), `stage`, and `epoch` of the stage, each from 0.

    about: the trial's record (trial.json) at that time. tensors: by name, its first part what they are of (model, ema).
    """

    fold: int
    stage: int
    epoch: int
    about: dict[str, Any]
    tensors: dict[str, Any] = field(repr=False)

    def of(self, part: str) -> dict[str, Any]:
        """The tensors of `part`, by the rest of their names; {} where there are none."""
        return {name.removeprefix(f"{part}/"): t for name, t in self.tensors.items() if name.startswith(f"{part}/")}


def keep(store: Store, midway: Midway) -> None:
    """Write the state to the trial's directory, then remove the one before. Raises CxrltError where it cannot be."""
    from safetensors.torch import save_file

    before = names(store)
    done = int(before[-1].removeprefix(PREFIX).removesuffix(SUFFIX)) if before else 0
    told = {"fold": midway.fold, "stage": midway.stage, "epoch": midway.epoch, "about": midway.about}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in midway.tensors.items()}
    with store.place(f"{PREFIX}{done + 1:06d}{SUFFIX}") as path:
        save_file(tensors, path, {"cxrlt_ray": json.dumps(told)})
    for name in before:
        store.delete(name)


def latest(store: Store) -> Midway | None:
    """The trial's last state, on the CPU; None where there is none or it is damaged: the trial then begins anew."""
    from safetensors import SafetensorError, safe_open

    for name in reversed(names(store)):
        try:
            with store.fetched(name) as path, safe_open(path, "pt") as file:
                told = json.loads(file.metadata()["cxrlt_ray"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
                return Midway(told["fold"], told["stage"], told["epoch"], told["about"], tensors)
        except (SafetensorError, CxrltError, OSError, ValueError, KeyError, TypeError):
            continue
    return None


def forget(store: Store) -> None:
    """Remove the trial's states: it is done."""
    for name in names(store):
        store.delete(name)


def names(store: Store) -> list[str]:
    """The files of states in a trial's directory, oldest first."""
    return [name for name in store.list() if name.startswith(PREFIX) and name.endswith(SUFFIX)]
