"""`python -m cxrlt_ray.doctor`: what will go wrong in a sweep, before one is started, and how to mend it.

    check.py     a check and its outcome
    machine.py   what each machine measures of itself: a plain dict; weights.py: whether it will have its weights
    judge.py     what the machines' dicts mean, pure
    store.py     the storage, as the driver finds it
    cluster.py   asking every machine, within a time limit, and what Ray's own books say

A sweep runs `preflight`: the same without what takes seconds (speed of the storage, work on each GPU). Nothing that is
told names a patient or an image: "row 17" is of the data's table, sorted by subject.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cxrlt_ray import cli
from cxrlt_ray.data.shards import QUALITY, shards_store
from cxrlt_ray.doctor.check import FAIL, OK, WARN, Check, guarded, reason
from cxrlt_ray.doctor.cluster import alone, ask_all, of_ray
from cxrlt_ray.doctor.judge import judge
from cxrlt_ray.doctor.machine import Ask, Report
from cxrlt_ray.doctor.store import privacy, reach, write
from cxrlt_ray.doctor.weights import Want, wants
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.store import DEFAULT_STORAGE
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.models import ModelSpec

__all__ = ["Check", "checks", "judge", "main", "page", "preflight"]

SAMPLE = 20  # images looked at on each machine
EDGE = 512  # pixels to decode them for, where no space says
GROUPS = {
    "Ray": ("ray", "machines", "jobs", "versions", "clock", "access", "dashboard"),
    "Machines": ("gpu", "memory", "shared memory", "open files", "disk"),
    "Storage": ("storage", "shared", "locks", "speed", "privacy"),
    "Data and weights": ("data", "images", "weights"),
}
COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


def checks(
    data: str | None,
    storage: str,
    address: str | None,
    specs: Sequence[ModelSpec] = (),
    findings: Sequence[str] = (),
) -> Iterator[Check]:
    """Everything, thoroughly. Starts Ray here, or joins the cluster at `address`.

    data, storage: as a sweep takes them. specs: models whose weights must be had. findings: the task's, where label
    embeddings are to be looked for.
    """
    from cxrlt_ray.cluster.start import start_ray

    ray, manifest, wanted = None, None, list[Want]()
    Store(storage)  # a URI that is refused is told at once
    try:
        ray = start_ray(address)
    except Exception as error:
        yield Check("ray", FAIL, reason(error), "`ray start --head`, or leave --address out" if address else "")
    if data is not None:
        try:
            check, manifest = _read(data)
            yield check
        except Exception as error:
            yield Check("data", FAIL, reason(error), f"python -m cxrlt_ray.cohort {data} says more")
    try:
        wanted = list(wants(specs, findings))
    except Exception as error:
        yield Check("weights", FAIL, reason(error))
    edge = max((spec.resolution for spec in specs), default=EDGE)
    yield from _examine(storage, ray, address, manifest, edge, wanted, images=True, thorough=True)


def preflight(
    storage: str,
    ray: Any | None,
    manifest: Manifest | None = None,
    sizes: Sequence[int] = (),
    quality: int = QUALITY,
    specs: Sequence[ModelSpec] = (),
    address: str | None = None,
) -> None:
    """Look at every machine before a sweep, in about a second where there is one; a line for each warning.

    ray: started or joined; None for this machine without it. manifest, sizes, quality: as for `prepare`; images are
    looked for where it has shards to make. specs: models whose weights other machines must have; a sweep has loaded
    them here. Raises CxrltError that names every failed check and how to mend it.
    """
    made = [
        shards_store(manifest, storage, size, quality).exists("summary.json") for size in sizes if manifest is not None
    ]
    wanted = [] if alone(ray, address) else list(wants(specs))
    edge, images = max(sizes, default=EDGE), not made or not all(made)
    found = list(_examine(storage, ray, address, manifest, edge, wanted, images, thorough=False))
    for check in found:
        if check.state == WARN:
            print(f"Warning: {check}")
    if failed := [str(check) for check in found if check.state == FAIL]:
        raise CxrltError(f"the sweep was not started, as it would fail: {'; '.join(failed)}.")


def _examine(
    storage: str,
    ray: Any | None,
    address: str | None,
    manifest: Manifest | None,
    edge: int,
    wanted: list[Want],
    images: bool,
    thorough: bool,
) -> Iterator[Check]:
    """The storage, then all machines, then Ray's books. What was written to the storage is removed."""
    base = Store(storage).absolute()
    shared, token = base / f".doctor-{os.urandom(4).hex()}", os.urandom(8).hex()
    lacking = [each for each in (base.local, *base.local.parents) if not each.exists()] if base.local else []
    ask = Ask(shared=shared.uri, edge=edge, wants=tuple(wanted), stored=str(base.local or ""), thorough=thorough)
    if manifest is not None and images:
        ask = replace(ask, root=manifest.root, rows=_sample(manifest))
    reached = False
    try:
        for check in guarded("storage", lambda: write(shared, token, thorough)):
            reached = reached or (check.name, check.state) == ("storage", OK)
            yield check
        ask = replace(ask, token=token if reached else "")
        yield from guarded("machines", lambda: judge([_with_reply(each, ask) for each in ask_all(ray, address, ask)]))
        if ray is not None:
            yield from guarded("ray", lambda: of_ray(ray))
        if reached:
            yield from guarded("privacy", lambda: privacy(base))
    finally:
        if reached or base.local:
            with suppress(Exception):
                shared.remove()
        for folder in lacking:
            with suppress(OSError):
                folder.rmdir()


def _with_reply(report: Report, ask: Ask) -> Report:
    """The report of a machine; `shared` where also what it wrote to the storage is read here."""
    if report.get("shared"):
        folder, name = Store(ask.shared), report["node"]
        return report | {"shared": folder.exists(name) and folder.read(name).decode() == ask.token}
    return report


def _read(data: str) -> tuple[Check, Manifest]:
    """The table of `data`, and what it holds."""
    from cxrlt_ray.data.cohort import examine
    from cxrlt_ray.data.manifest import MAIN

    if Store(data).local is None:
        reach(Store(data), "exists", "")
    cohort, problems = examine(data, task="auto")
    manifest = cohort.manifest
    counts = manifest.of_cohort(MAIN).table["split"].value_counts()
    told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    told = f"{manifest.source}, {len(manifest.table):,} images: {told}"
    if problems:
        told += f"; a sweep would refuse it for {len(problems)} reason{'s' * (len(problems) > 1)}"
        return Check("data", FAIL, told, f"python -m cxrlt_ray.cohort {data} lists them"), manifest
    if "test" not in counts:
        return Check("data", WARN, told, "without a test split nothing is scored at the end"), manifest
    return Check("data", OK, told), manifest


def _sample(manifest: Manifest) -> tuple[tuple[int, str, bool], ...]:
    """Row, path and whether it is inverted, of SAMPLE images."""
    rows = manifest.table.sample(min(SAMPLE, len(manifest.table)), random_state=0).sort_index()
    inverted = rows["photometric"].eq("MONOCHROME1").fillna(False) if "photometric" in rows else rows["path"].isna()
    return tuple(zip(map(int, rows.index), map(str, rows["path"]), map(bool, inverted), strict=True))


def page(found: Sequence[Check]) -> Any:
    """A rich table of checks, by group."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for title, names in GROUPS.items():
        those = [each for name in names for each in found if each.name == name]
        if those:
            table.add_row(Text(title, "bold"))
        for each in those:
            told = f"{each.told}\nmend: {each.mend}" if each.mend else each.told
            table.add_row(Text(f"  {each.name}"), Text(each.state, COLOURS[each.state]), Text(told))
    return table


def main(
    data: Annotated[str | None, cli.option("the data's directory or URI")] = None,
    storage: Annotated[str, cli.option("where runs will go: a directory or URI")] = DEFAULT_STORAGE,
    address: Annotated[str | None, cli.option("join a Ray cluster, from its head: auto")] = None,
    space: Annotated[str | None, cli.option("search space, for the weights it wants")] = None,
) -> None:
    """Say what will go wrong in a sweep, before one is started, and how to mend it.

    Exit code 1 if something would fail, 0 with warnings.

    python -m cxrlt_ray.doctor

    python -m cxrlt_ray.doctor --data /data/mimic --space task1

    python -m cxrlt_ray.doctor --data s3://BUCKET/mimic --storage s3://BUCKET/runs --address auto
    """
    specs = []
    if space is not None:
        from cxrlt_ray.search.space_file import load_space

        specs = load_space(space, storage=storage).specs()
    console, start = cli.console(), time.perf_counter()
    found = list(checks(data, storage, address, specs))
    console.print(page(found))
    failed, warned = (sum(each.state == state for each in found) for state in (FAIL, WARN))
    seconds = time.perf_counter() - start
    console.print(f"\n{len(found)} checks in {seconds:.1f} s: {failed} failed, {warned} with a warning")
    if failed:
        raise SystemExit(1)
