"""`verdict.json`: the record with which the sweep ended a trial from outside; it stands, whatever its process writes.

Two processes write a trial's record: its own after each epoch, and the sweep's where it stops the trial, which may be
in an epoch still. No lock holds on every storage, so each writes first and looks then: the sweep writes its verdict to
a file of its own and then the record; the trial's process writes the record, and puts the verdict in its place where
there is one. Whoever is last, the record is the sweep's.
"""

from __future__ import annotations

from cxrlt_ray.runs.records import TrialRecord
from cxrlt_ray.runs.trial_index import RECORD
from cxrlt_ray.storage import Store

FILE = "verdict.json"


def declare(store: Store, record: TrialRecord) -> None:
    """Write the verdict on the trial in directory `store`; its record is to be written after it."""
    record.write(store, FILE)


def uphold(store: Store) -> bool:
    """Put the verdict, if there is one, in the place of the trial's record; whether there is one."""
    if not store.exists(FILE):
        return False
    TrialRecord.read(store, FILE).write(store, RECORD)
    return True


def withdraw(store: Store) -> None:
    """The trial goes on: no verdict stands. It is to be called before its record says so."""
    if store.exists(FILE):
        store.delete(FILE)
