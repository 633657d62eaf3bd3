"""`python -m cxrlt_ray.doctor`: what will go wrong in a sweep, before one is started, and how to mend it.

    check.py     a check and its outcome
    machine.py   measurements of one machine, a plain dict
    weights.py   whether a machine will have the models' weights
    judge.py     from the machines' dicts to checks, pure
    store.py     the storage, as the driver sees it
    surroundings.py  terminal, home, temporary files, proxies, other Rays, as the driver finds them
    cluster.py   asks every machine, within a time limit, and Ray for its own records

A sweep runs `preflight`: the same without what takes seconds (speed of the storage, work on each GPU). No message names
a patient or an image: "row 17" is of the data's table, sorted by subject.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from cxrlt_ray import cli, output
from cxrlt_ray.data.shards import QUALITY, shards_store
from cxrlt_ray.doctor.check import FAIL, OK, WARN, Check, guarded, reason
from cxrlt_ray.doctor.cluster import alone, ask_all, of_ray
from cxrlt_ray.doctor.judge import judge
from cxrlt_ray.doctor.machine import Ask, Report
from cxrlt_ray.doctor.store import privacy, reach, write
from cxrlt_ray.doctor.surroundings import examine_surroundings
from cxrlt_ray.doctor.weights import Asset, assets
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.runs.store import DEFAULT_STORAGE
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from rich.table import Table

    from cxrlt_ray.data.manifest import Manifest
    from cxrlt_ray.models import ModelSpec
    from cxrlt_ray.text.encoder_spec import TextSpec

__all__ = ["Check", "checks", "judge", "main", "page", "preflight"]

SAMPLE = 20  # images read on each machine
EDGE = 512  # pixels to decode them for, without a space
GROUPS = {
    "Ray": ("ray", "machines", "jobs", "versions", "clock", "access", "dashboard"),
    "Surroundings": ("terminal", "home", "temporary files", "proxy", "other Rays", "compiled code"),
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
    encoders: Sequence[TextSpec] = (),
) -> Iterator[Check]:
    """All checks, the slow ones too. Starts Ray here, or joins the cluster at `address`.

    data, storage: as for a sweep. specs: models whose weights are needed. findings: the task's, to check files of label
    embeddings. encoders: text encoders that are needed.
    """
    from cxrlt_ray.cluster.start import start_ray

    ray, manifest, needed = None, None, list[Asset]()
    Store(storage)  # a URI that is refused raises at once
    try:
        ray = start_ray(address)
    except Exception as error:
        yield Check("ray", FAIL, reason(error), "`ray start --head`, or leave --address out" if address else "")
    yield from examine_surroundings(address)
    if data is not None:
        try:
            check, manifest = _read(data)
            yield check
        except Exception as error:
            yield Check("data", FAIL, reason(error), f"python -m cxrlt_ray.cohort {shlex.quote(data)} says more")
    try:
        needed = list(assets(specs, findings, encoders))
    except Exception as error:
        yield Check("weights", FAIL, reason(error))
    edge = max((spec.resolution for spec in specs), default=EDGE)
    yield from _examine(storage, ray, address, manifest, edge, needed, images=True, thorough=True)


def preflight(
    storage: str,
    ray: Any | None,
    manifest: Manifest | None = None,
    sizes: Sequence[int] = (),
    quality: int = QUALITY,
    specs: Sequence[ModelSpec] = (),
    address: str | None = None,
    encoders: Sequence[TextSpec] = (),
) -> None:
    """Check every machine before a sweep, in about a second on a single one; prints a line for each warning.

    ray: started or joined; None for this machine without it. manifest, sizes, quality: as for `prepare`; images are
    checked where shards are still to be made. specs, encoders: models and text encoders whose weights other machines
    need; a sweep has loaded them here. Raises CxrltError that names every failed check and its remedy.
    """
    prepared = [
        shards_store(manifest, storage, size, quality).exists("summary.json") for size in sizes if manifest is not None
    ]
    needed = [] if alone(ray, address) else list(assets(specs, encoders=encoders))
    edge, images = max(sizes, default=EDGE), not prepared or not all(prepared)
    outcomes = list(_examine(storage, ray, address, manifest, edge, needed, images, thorough=False))
    for check in outcomes:
        if check.state == WARN:
            print(f"Warning: {check}")
    if failed := [str(check) for check in outcomes if check.state == FAIL]:
        raise CxrltError(f"the sweep was not started, as it would fail: {'; '.join(failed)}.")


def _examine(
    storage: str,
    ray: Any | None,
    address: str | None,
    manifest: Manifest | None,
    edge: int,
    needed: list[Asset],
    images: bool,
    thorough: bool,
) -> Iterator[Check]:
    """Checks of the storage, all machines and Ray. What was written to the storage is removed."""
    base = Store(storage).absolute()
    shared, token = base / f".doctor-{os.urandom(4).hex()}", os.urandom(8).hex()
    created = [folder for folder in (base.local, *base.local.parents) if not folder.exists()] if base.local else []
    ask = Ask(shared=shared.uri, edge=edge, needed=tuple(needed), stored=str(base.local or ""), thorough=thorough)
    if manifest is not None and images:
        ask = replace(ask, root=manifest.root, rows=_sample(manifest))
    reached = False
    try:
        for check in guarded("storage", lambda: write(shared, token, thorough)):
            reached = reached or (check.name, check.state) == ("storage", OK)
            yield check
        ask = replace(ask, token=token if reached else "")
        yield from guarded(
            "machines", lambda: judge([_with_reply(report, ask) for report in ask_all(ray, address, ask)])
        )
        if ray is not None:
            yield from guarded("ray", lambda: of_ray(ray))
        if reached:
            yield from guarded("privacy", lambda: privacy(base))
    finally:
        if reached or base.local:
            with suppress(Exception):
                shared.remove()
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def _with_reply(report: Report, ask: Ask) -> Report:
    """The report of a machine; its `shared` holds only if its file in the storage can be read here too."""
    if report.get("shared"):
        folder, name = Store(ask.shared), report["node"]
        return report | {"shared": folder.exists(name) and folder.read(name).decode() == ask.token}
    return report


def _read(data: str) -> tuple[Check, Manifest]:
    """A check of the table of `data`, and its manifest."""
    from cxrlt_ray.data.cohort import examine
    from cxrlt_ray.data.manifest import MAIN

    if Store(data).local is None:
        reach(Store(data), "exists", "")
    cohort, problems = examine(data, task="auto")
    manifest = cohort.manifest
    counts = manifest.of_cohort(MAIN).table["split"].value_counts()
    parts = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    message = f"{manifest.source}, {len(manifest.table):,} images: {parts}"
    if problems:
        message += f"; a sweep would refuse it for {len(problems)} reason{'s' * (len(problems) > 1)}"
        return Check("data", FAIL, message, f"python -m cxrlt_ray.cohort {shlex.quote(data)} lists them"), manifest
    if "test" not in counts:
        return Check("data", WARN, message, "without a test split nothing is scored at the end"), manifest
    return Check("data", OK, message), manifest


def _sample(manifest: Manifest) -> tuple[tuple[int, str, bool], ...]:
    """Row, path and whether it is inverted, of SAMPLE images."""
    rows = manifest.table.sample(min(SAMPLE, len(manifest.table)), random_state=0).sort_index()
    inverted = rows["photometric"].eq("MONOCHROME1").fillna(False) if "photometric" in rows else rows["path"].isna()
    return tuple(zip(map(int, rows.index), map(str, rows["path"]), map(bool, inverted), strict=True))


def page(outcomes: Sequence[Check]) -> Table:
    """A rich table of checks, by group."""
    from rich.text import Text

    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("checks", box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title, names in GROUPS.items():
        members = [check for name in names for check in outcomes if check.name == name]
        if members:
            table.add_row(Text(title, "bold"))
        for check in members:
            message = f"{check.message}\nmend: {check.mend}" if check.mend else check.message
            cells = (Text(f"  {check.name}"), Text(check.state, COLOURS[check.state]), Text(message))
            table.add_record({"group": title, **vars(check)}, *cells)
    return table


def main(
    data: Annotated[str | None, cli.option("the data's directory or URI")] = None,
    storage: Annotated[str, cli.option("where runs will go: a directory or URI")] = DEFAULT_STORAGE,
    address: Annotated[str | None, cli.option("a Ray cluster to join; auto on its head node")] = None,
    space: Annotated[str | None, cli.option("search space, whose weights to check")] = None,
) -> None:
    """Say what will go wrong in a sweep, before one is started, and how to mend it.

    Exit code 1 if something would fail, 0 with warnings.

    python -m cxrlt_ray.doctor

    python -m cxrlt_ray.doctor --data /data/mimic --space task1

    python -m cxrlt_ray.doctor --data s3://BUCKET/mimic --storage s3://BUCKET/runs --address auto
    """
    specs, encoders = [], []
    if space is not None:
        from cxrlt_ray.search.run_texts import all_encoders
        from cxrlt_ray.search.space_file import load_space

        loaded = load_space(space, storage=storage)
        specs, encoders = loaded.specs(), all_encoders(loaded)
    console, start = cli.console(), time.perf_counter()
    outcomes = list(checks(data, storage, address, specs, encoders=encoders))
    console.print(page(outcomes))
    failed, warned = (sum(check.state == state for check in outcomes) for state in (FAIL, WARN))
    seconds = time.perf_counter() - start
    line = f"\n{len(outcomes)} checks in {seconds:.1f} s: {failed} failed, {warned} with a warning"
    output.result(line, exit_code=int(failed > 0), checks=len(outcomes), failed=failed, warned=warned)
    if failed:
        raise SystemExit(1)
