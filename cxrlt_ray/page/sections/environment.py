"""Cost and environment: hours by device, where the time and the disk went, versions, seeds, fingerprints, commands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from cxrlt_ray import __version__
from cxrlt_ray.page import charts
from cxrlt_ray.page.costs import seconds_of
from cxrlt_ray.page.facts import Facts, public
from cxrlt_ray.page.parts import Column, Commands, Figure, Heading, Part, Table, Tile, Tiles
from cxrlt_ray.page.records import SectionFacts
from cxrlt_ray.page.reproduction import Command, making_commands
from cxrlt_ray.page.sections.registry import register_section

PACKAGES = ("ray", "numpy", "pandas", "scikit-learn", "optuna", "pyarrow")  # of this machine; trials record theirs
KINDS = {"fold-": "checkpoints", "refit": "checkpoints", "predictions": "predictions", "resume-": "resume states"}


class DeviceRow(SectionFacts):
    """A device's trials and their time, by how they ended."""

    device: str
    trials: int
    seconds: float
    finished: float
    pruned: float
    other: float


class Amount(SectionFacts):
    """Seconds or bytes of a part."""

    part: str
    amount: float


class Detail(SectionFacts):
    """A fact that a reproduction needs, and its value or values."""

    what: str
    value: str


class Environment(SectionFacts):
    """What the run cost, on what, and how it is made again. seconds: of all trials together."""

    trials: int
    seconds: float
    bytes: int
    devices: tuple[DeviceRow, ...]
    parts: tuple[Amount, ...]
    disk: tuple[Amount, ...]
    details: tuple[Detail, ...]
    commands: tuple[Command, ...]


def gather(facts: Facts) -> Environment | str:
    """Cost and environment."""
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    parts: dict[str, float] = defaultdict(float)
    for trial in facts.trials:
        device = trial.record.environment.device or "not recorded"
        ended = trial.state if trial.state in ("finished", "pruned") else "other"
        spent[device]["trials"] += 1
        spent[device][ended] += seconds_of(trial) or 0.0
        for part, seconds in (trial.record.seconds or {}).items():
            parts[part] += seconds
    disk = _disk(facts.files)
    return Environment(
        trials=len(facts.trials),
        seconds=sum(row[kind] for row in spent.values() for kind in ("finished", "pruned", "other")),
        bytes=int(sum(disk.values())),
        devices=tuple(_device(device, row) for device, row in sorted(spent.items())),
        parts=_amounts(parts),
        disk=_amounts(disk),
        details=tuple(_details(facts)),
        commands=making_commands(facts.run, facts.ensemble),
    )


def _device(device: str, row: Mapping[str, float]) -> DeviceRow:
    kinds = {kind: row.get(kind, 0.0) for kind in ("finished", "pruned", "other")}
    return DeviceRow(device=public(device), trials=int(row["trials"]), seconds=sum(kinds.values()), **kinds)


def _amounts(parts: Mapping[str, float]) -> tuple[Amount, ...]:
    order = sorted(parts.items(), key=lambda part: -part[1])
    return tuple(Amount(part=part.replace("_", " "), amount=amount) for part, amount in order)


def _disk(files: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Bytes of the trials' files by kind."""
    disk: dict[str, float] = defaultdict(float)
    for of_trial in files.values():
        for path, size in of_trial.items():
            disk[next((kind for start, kind in KINDS.items() if path.startswith(start)), "records")] += size
    return disk


def _details(facts: Facts) -> list[Detail]:
    record = facts.run.record
    versions: dict[str, set[str]] = defaultdict(set)
    for trial in facts.trials:
        for name, value in trial.record.environment.model_dump().items():
            if name != "device" and value:
                versions[name].add(str(value))
    seeds = sorted({trial.record.config.seed for trial in facts.trials if trial.record.config})
    pairs = [
        ("run", record.name),
        ("made", record.created[:16].replace("T", " ") + " UTC" if record.created else ""),
        ("fingerprint of the manifest", record.fingerprint),
        ("fingerprint of the ensemble's manifest", facts.ensemble.record.fingerprint if facts.ensemble else ""),
        ("seed of the run", str(record.seed)),
        ("seeds of the trials", f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else ", ".join(map(str, seeds))),
        *((name, ", ".join(sorted(values))) for name, values in sorted(versions.items())),
        ("this page's cxrlt_ray", __version__),
        *((f"{name}, of this page", _version(name)) for name in PACKAGES),
    ]
    whole = ("run", "fingerprint", "seed")  # the page's title, and long numbers that name nobody
    return [
        Detail(what=what, value=value if what.startswith(whole) else public(value)) for what, value in pairs if value
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@register_section("environment", "Cost and environment", order=90, facts=Environment, gather=gather)
def environment(facts: Environment) -> list[Part]:
    """Totals, where time and disk went, versions, and the commands."""
    tiles = [
        Tile("Time of all trials", "seconds", "seconds", "the sum, however many ran side by side"),
        Tile("Disk of the trials", "bytes", "bytes"),
        Tile("Trials", "trials", "count"),
    ]
    parts: list[Part] = [Tiles(tiles)]
    columns = [Column("device", "device"), Column("trials", "trials", "count"), Column("time", "seconds", "seconds")]
    columns += [Column("of finished", "finished", "seconds"), Column("of pruned", "pruned", "seconds")]
    parts.append(Table("By device", "devices", [*columns, Column("of others", "other", "seconds")]))
    if facts.parts:
        rows = [(row.part, row.amount / 60) for row in facts.parts]
        words = ", ".join(f"{name} {value:.1f}" for name, value in rows)
        drawing = charts.bars("Minutes by part of the trials", words, rows, "minutes, all trials together")
        table = Table(
            "Time by part", "parts", [Column("part", "part"), Column("time", "amount", "seconds")], folded=True
        )
        parts.append(Figure("Where the time went", [drawing], "", table))
    parts.append(Table("Disk by kind", "disk", [Column("kind", "part"), Column("size", "amount", "bytes")]))
    parts.append(
        Table("Versions, seeds, fingerprints", "details", [Column("what", "what"), Column("value", "value", "code")])
    )
    words = "DATA and STORAGE stand for the directories of the machine; run.json has them."
    return [*parts, Heading("To make it again", words), Commands("commands")]
