"""A run's curves in TensorBoard or Weights & Biases, as `sweep --log-with` asks.

    curves.py       what is sent: epochs, settings and scores; pure
    tensorboard.py  RUN/tensorboard, a folder a trial
    wandb.py        a run of Weights & Biases a trial, grouped by sweep
    trackers.py     the trackers there are, and whether they can be used here
    session.py      what is written and what still is to be: nothing twice, whatever is resumed

All of it is read from the records in the store, by the one process that sweeps; trials know nothing of it. No id of a
patient, no path and no text of a report is sent, and a tracker's fault ends nothing but the tracker.
"""

from cxrlt_ray.tracking.session import Session, trackers_of
from cxrlt_ray.tracking.trackers import TRACKERS, check_trackers, parse_trackers

__all__ = ["TRACKERS", "Session", "check_trackers", "parse_trackers", "trackers_of"]
