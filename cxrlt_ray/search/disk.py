"""Whether the storage has room for another trial."""

from __future__ import annotations

from dataclasses import dataclass

from cxrlt_ray import cli
from cxrlt_ray.storage import Store

MARGIN = 3  # trials for which a disk must have room that is left free


@dataclass(frozen=True)
class DiskRoom:
    """Whether the disk will hold more trials. trial_bytes: that a trial may take; concurrent: trials at a time."""

    store: Store
    trial_bytes: float
    concurrent: int

    def shortage(self) -> str:
        """What a user is to know where there is no room for another trial, or nothing."""
        free = self.store.free()
        if free is None or free > self.trial_bytes * (self.concurrent + MARGIN):
            return ""
        return (
            f"{self.store.uri} has {cli.size(free)} free, and a trial may take {cli.size(self.trial_bytes)}: make "
            "room, or keep fewer checkpoints by --keep-checkpoints N"
        )
