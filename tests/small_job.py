"""A job of a few prepared images, as a sweep gives it to a trial."""

from __future__ import annotations

from collections.abc import Sequence

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import Job


def job_in(folder, cohort: tuple[Manifest, Sequence[Shards]], **options) -> Job:
    """The job of a run in `folder` on a cohort that was prepared, with one thread."""
    manifest, shards = cohort
    run = Store(str(folder))
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    return Job(run, shards, manifest.findings, manifest.fingerprint, threads=1, **options)
