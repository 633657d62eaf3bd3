"""`python -m cxrlt_ray.evaluate SUBMISSION.csv --task task1 --data DIR`: what a submission is worth.

The challenge's scores (FORMATS, Scoring), per finding and for head, medium and tail; mAP and AUROC with
95 % intervals, resampled by subject; beside the paper's teams where the images are theirs. Ranked by macro
mAP, ties by macro AUROC. A finding without positives has no AP: it is named, and stands in no mean.
78,946 images of 40 findings take about 10 s on 2 cores, after the cohort's reading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.data.tasks import GROUPS, Task, load_task, rarity
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.published import Published, not_comparable, published
from cxrlt_ray.privacy import PHANTOM_MARKER
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import pandas as pd

    from cxrlt_ray.data.manifest import Manifest

# name in the report and the paper's table -> what a person reads
SUMMARY = {
    "map": "mAP",
    "mauroc": "mAUROC",
    "macro_f1": "macro F1 at 0.5",
    "micro_f1": "micro F1 at 0.5",
    "fnr": "FNR at 0.5",
    "micro_fnr": "micro FNR at 0.5",
    "ece": "ECE",
    "ece_challenge": "ECE, challenge variant",
}
UNSEEN = ""  # the group of a finding that is not labelled in training
FORMATS = ("csv", "json")


@dataclass(frozen=True)
class Report:
    """Scores of N images, `subjects` patients.

    groups: [C] head, medium, tail or "". scores: SUMMARY's names and the groups (their mAP) -> value, nan where
    there is none. intervals: map, mauroc -> 95 % bounds. per_finding: metrics.per_finding's [C] arrays, and
    labelled (a count) and prevalence (a share of it).
    """

    findings: tuple[str, ...]
    groups: tuple[str, ...]
    images: int
    subjects: int
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_finding: dict[str, np.ndarray]

    @property
    def without_positives(self) -> list[str]:
        """The findings that stand in no mean."""
        return [name for name, count in zip(self.findings, self.per_finding["positives"], strict=True) if not count]

    def frame(self) -> pd.DataFrame:
        """A row a finding: finding, group, then per_finding's columns."""
        import pandas as pd

        counts = {name: self.per_finding[name].astype(int) for name in ("positives", "labelled")}
        return pd.DataFrame({"finding": self.findings, "group": self.groups, **self.per_finding, **counts})


def evaluate(
    targets: np.ndarray,
    scores: np.ndarray,
    findings: Sequence[str],
    rarity: Sequence[str],
    groups: np.ndarray,
    rounds: int = 1000,
    seed: int = 0,
) -> Report:
    """Score probabilities.

    targets: int8 [N, C], 1, 0 or -1 (not labelled). scores: float [N, C] in [0, 1]. findings, rarity: [C] names and
    their groups. groups: [N] subjects, drawn whole in each of the `rounds` of bootstrap.
    """
    values = metrics.per_finding(targets, scores)
    labelled = (targets >= 0).sum(axis=0).astype(float)
    values |= {"labelled": labelled, "prevalence": values["positives"] / np.where(labelled, labelled, np.nan)}
    summary = {
        "map": metrics.macro(values["ap"]),
        "mauroc": metrics.macro(values["auroc"]),
        "macro_f1": metrics.macro(values["f1"]),
        "micro_f1": metrics.micro_f1(targets, scores),
        "fnr": metrics.macro(values["fnr"]),
        "micro_fnr": metrics.fnr(targets.ravel(), scores.ravel()),
        "ece": metrics.macro(values["ece"]),
        "ece_challenge": metrics.macro(values["ece_challenge"]),
        **metrics.by_rarity(values["ap"], rarity),
    }
    resampled = metrics.bootstrap(targets, [scores], groups, rounds, seed)
    intervals = {
        "map": metrics.interval(resampled["ap"][0]),
        "mauroc": metrics.interval(resampled["auroc"][0]),
    }
    subjects = len(np.unique(np.asarray(groups).astype(str)))
    return Report(tuple(findings), tuple(rarity), len(targets), subjects, summary, intervals, values)


def render(report: Report, teams: Published | None = None, name: str = "ours") -> list[Any]:
    """What rich prints of a report: its scores beside the teams', its findings, and its findings beside the teams'."""
    shown = [_summary_table(report, teams, name), _findings_table(report)]
    if teams:
        shown.append(_teams_table(report, teams, name))
        shown.append("Teams: Lin et al. 2025, arXiv:2506.07984; '- best': ours less the best of theirs.")
    if report.without_positives:
        shown.append(f"Without positives here, and so in no mean: {', '.join(report.without_positives)}")
    return shown


def as_json(report: Report, teams: Published | None = None) -> dict[str, Any]:
    """The report as JSON can hold it; nan is null."""
    finding = report.frame().set_index("finding").to_dict("index")
    content = {
        "images": report.images,
        "subjects": report.subjects,
        "scores": report.scores,
        "intervals": {key: list(bounds) for key, bounds in report.intervals.items()},
        "without_positives": report.without_positives,
        "findings": finding,
        "teams": teams.scores if teams else None,
    }
    return _finite(content)


def main(
    submission: Annotated[str, cli.argument("a submission.csv or .zip: path or URI")],
    data: Annotated[str, cli.option("the cohort that was scored: a directory or URI")],
    task: Annotated[str, cli.option("task1, task2, task3, auto (every finding of the data) or a YAML file")] = "task1",
    format: Annotated[str | None, cli.option("the data's format; found by looking without it")] = None,
    split: Annotated[str | None, cli.option("the split that was scored; the task's own without it")] = None,
    uncertain: Annotated[str, cli.option("CheXpert's -1: null, zero or one")] = "null",
    rounds: Annotated[int, cli.option("bootstrap rounds of the intervals")] = 1000,
    seed: Annotated[int, cli.option("the sweep's seed, which drew the splits of data that has none")] = 0,
    out: Annotated[str | None, cli.option("leave the scores in this .csv (per finding) or .json (all)")] = None,
) -> None:
    """Score a submission where the labels are known.

    python -m cxrlt_ray.evaluate runs/RUN/ensembles/greedy/submission.csv --task task1 --data /data/mimic
    """
    from cxrlt_ray.ensembling.submission import read

    _check_arguments(out, rounds)
    console = cli.console()
    frame = read(submission)
    manifest, notes = _read_cohort(data, format, task, uncertain, seed, split)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    wanted = load_task(task, manifest.findings)
    images, probabilities = aligned(frame, wanted, _of_split(manifest, wanted, split, data), submission)
    with console.status("Resampling subjects"):
        report = evaluate(
            images.targets(wanted.findings),
            probabilities,
            wanted.findings,
            _groups(manifest, wanted),
            images.table["subject_id"].to_numpy(),
            rounds,
            seed,
        )
    teams = published(wanted)
    reason = not_comparable(wanted, report.images, _is_phantom(data, manifest)) if teams else None
    teams = None if reason else teams
    for part in [*render(report, teams), *([reason] if reason else [])]:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
    if out:
        _leave(report, teams, out)
        console.print(f"Left in {out}.", markup=False, soft_wrap=True)


def aligned(frame: pd.DataFrame, task: Task, images: Manifest, name: str) -> tuple[Manifest, np.ndarray]:
    """The images with labels [N] and the submission's probabilities for them, float64 [N, C] in the task's order.

    Images without any label of the task are scored for no one: the submission may hold them or not. Raises
    CxrltError with every fault of the submission `name`.
    """
    from cxrlt_ray.ensembling.submission import ID, check, raise_faults

    labelled = (images.targets(task.findings) >= 0).any(axis=1)
    if not labelled.any():
        raise CxrltError(
            f"the {len(images.table):,} images to score carry no label of {task.name}: a submission for them can be "
            "made and sent, but not scored here."
        )
    unscored = images.table.loc[~labelled, "image_id"].astype(str)
    ids = images.table.loc[labelled, "image_id"].astype(str).to_numpy()
    if ID in frame:
        frame = frame.assign(**{ID: frame[ID].astype(str)})
        frame = frame[~frame[ID].isin(unscored)]
    raise_faults(check(frame, task, ids), name, task)
    return images.where(labelled), frame.set_index(ID).loc[ids, list(task.findings)].to_numpy(np.float64)


def _check_arguments(out: str | None, rounds: int) -> None:
    if out and out.rpartition(".")[2] not in FORMATS:
        raise UsageError(f"--out {out} must end in {' or '.join(f'.{kind}' for kind in FORMATS)}.")
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, not {rounds}.")


def _read_cohort(
    data: str, format: str | None, task: str, uncertain: str, seed: int, split: str | None
) -> tuple[Manifest, tuple[str, ...]]:
    """The cohort as a sweep with that seed reads it; where it has no training images, as it is."""
    from cxrlt_ray.data.cohort import read_cohort

    options: dict[str, Any] = {"format": format, "task": task, "uncertain": uncertain, "seed": seed}
    cohort = read_cohort(data, **options, training=False)
    there = set(cohort.manifest.table["split"].dropna())
    scored = split or load_task(task, cohort.manifest.findings).scored_split
    # a sweep carves what the data lacks from its training images
    if not there or ("train" in there and not {"val", scored} <= there):
        cohort = read_cohort(data, **options)
    return cohort.manifest, cohort.notes


def _of_split(manifest: Manifest, task: Task, split: str | None, data: str) -> Manifest:
    images = manifest.of_split(split or task.scored_split)
    if images.table.empty:
        splits = ", ".join(manifest.table["split"].dropna().unique()) or "none"
        raise UsageError(f"{data} has no images of split {split or task.scored_split}: give --split, one of {splits}.")
    return images


def _groups(manifest: Manifest, task: Task) -> list[str]:
    """Head, medium or tail by training counts; UNSEEN where a finding is not labelled in training."""
    targets = manifest.of_split("train").targets(task.findings)
    seen = np.any(targets >= 0, axis=0).tolist()
    return [group if known else UNSEEN for group, known in zip(rarity(targets), seen, strict=True)]


def _is_phantom(data: str, manifest: Manifest) -> bool:
    return any(Store(root).exists(PHANTOM_MARKER) for root in (data, manifest.root))


def _summary_table(report: Report, teams: Published | None, name: str) -> Any:
    from rich import box
    from rich.table import Column, Table

    title = f"{report.images:,} images of {report.subjects:,} subjects"
    heads = [title, name, "95 % interval", *(teams.teams if teams else ())]
    table = Table(*(Column(head, no_wrap=True) for head in heads), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    chance = metrics.macro(np.where(report.per_finding["positives"] > 0, report.per_finding["prevalence"], np.nan))
    counts = {group: report.groups.count(group) for group in GROUPS}
    rows = {**SUMMARY, **{group: f"mAP of {counts[group]} {group} findings" for group in GROUPS if counts[group]}}
    for key, label in rows.items():
        low, high = report.intervals.get(key, (np.nan, np.nan))
        bounds = f"[{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
        theirs = [_number(teams.scores.get(key, {}).get(team)) for team in teams.teams] if teams else []
        table.add_row(label, _number(report.scores[key]), bounds, *theirs)
        if key == "map":
            table.add_row("  (chance: prevalence)", _number(chance))
    return table


def _findings_table(report: Report) -> Any:
    from rich import box
    from rich.table import Column, Table

    names = {"ap": "AP", "auroc": "AUROC", "f1": "F1", "fnr": "FNR", "ece": "ECE"}
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("pos.", "%", *names.values())]
    table = Table(Column("finding", no_wrap=True), "group", *numbers, box=box.SIMPLE_HEAD, padding=0)
    values = report.per_finding
    for c, (finding, group) in enumerate(zip(report.findings, report.groups, strict=True)):
        share = f"{100 * values['prevalence'][c]:.2f}" if values["labelled"][c] else "-"
        cells = [f"{int(values['positives'][c]):,}", share, *(_number(values[name][c]) for name in names)]
        table.add_row(finding, group or "-", *cells)
    return table


def _teams_table(report: Report, teams: Published, name: str) -> Any:
    from rich import box
    from rich.table import Column, Table

    table = Table(Column("AP", no_wrap=True), name, *teams.teams, "- best", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for c, finding in enumerate(report.findings):
        theirs = [teams.ap[team][c] for team in teams.teams]
        own = report.per_finding["ap"][c]
        table.add_row(finding, _number(own), *map(_number, theirs), f"{own - max(theirs):+.3f}")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def _finite(content: Any) -> Any:
    """JSON has no nan: null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content


def _leave(report: Report, teams: Published | None, out: str) -> None:
    folder, slash, name = out.rpartition("/")
    if name.endswith(".csv"):
        content = report.frame().to_csv(index=False)
    else:
        content = json.dumps(as_json(report, teams), indent=1, allow_nan=False)
    Store(folder or slash or ".").write(name, content.encode())


if __name__ == "__main__":
    cli.run("evaluate")
