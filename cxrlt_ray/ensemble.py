"""`python -m cxrlt_ray.ensemble --select greedy`: the best of a run's trials, stacked.

An ensembles/ file -> the trials' validation predictions -> weights per finding -> cross-fitted scores -> test images
scored by the chosen members only -> RUN/ensembles/NAME/, whose files are named in ensembling/stored.py.
With `--from` the members are predictions from any source, in files (ensembling/from_tables.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cxrlt_ray import cli, output
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.tasks import rarity
from cxrlt_ray.ensembling import from_tables, stored
from cxrlt_ray.ensembling.apply import score_splits
from cxrlt_ray.ensembling.compare import Comparison, ScoredSplit, System, compare, judge
from cxrlt_ray.ensembling.compare_asked import compare_asked, lift_lines, mined_labels
from cxrlt_ray.ensembling.costs import check_costs, frontier
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile, load_ensemble
from cxrlt_ray.ensembling.from_run import contaminations_of, mimic_warnings, pool_of_run
from cxrlt_ray.ensembling.pool import Pool
from cxrlt_ray.ensembling.probabilities import Probabilities, probabilities, write_probabilities
from cxrlt_ray.ensembling.request import EnsembleRequest
from cxrlt_ray.ensembling.submission import FILE as SUBMISSION
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation.scores import UNSEEN
from cxrlt_ray.reporting import calibration as calibration_page
from cxrlt_ray.reporting import comparison as report
from cxrlt_ray.runs.ensemble_record import EnsembleRecord
from cxrlt_ray.runs.records import TRANSDUCTIVE
from cxrlt_ray.runs.store import Run, load_run
from cxrlt_ray.selection import takes_costs
from cxrlt_ray.storage import Store
from cxrlt_ray.tracking import Session, trackers_of

REPORT = "report.html"  # of the run

__all__ = ["EnsembleRequest", "Stacked", "main", "run"]


@dataclass(frozen=True)
class Stacked:
    """The result of `run`: the ensemble's directory, its name, and its comparison with the best member and the mean.

    probabilities: its calibration and thresholds, if requested.
    """

    store: Store
    name: str
    comparison: Comparison
    probabilities: Probabilities


def run(request: EnsembleRequest) -> Stacked:
    """Choose and weight members, score images with them, evaluate the result and write it all to a directory.

        from cxrlt_ray import ensemble
        stacked = ensemble.run(ensemble.EnsembleRequest(select="greedy"))
        stacked.comparison.sets["cross_fitted"].systems["greedy ensemble"].map.value

    Raises UsageError for a request that does not fit the run or the files, CxrltError if these are damaged.
    """
    return _of_tables(request) if request.tables else _of_run(request)


def _of_run(request: EnsembleRequest) -> Stacked:
    """An ensemble of a run's trials."""
    name, file = load_ensemble(request.select)
    check_costs(request.costs, file, request.explain)
    swept = load_run(request.storage, request.run)
    manifest, findings, split = swept.manifest(), swept.record.predicted, request.split or swept.task.scored_split
    request.critical_among(swept.task.findings)
    has_images = len(manifest.of_split(split).table) > 0
    if not has_images:
        print(f"The data has no {split} images: weights are made, no submission")
    pool = pool_of_run(request, swept, manifest, file, split if has_images else None)
    print(f"Run {swept.name}: {counted(len(pool.trials), 'trial')}, {len(pool.image_id):,} validation images")
    if swept.record.transductive:
        print(TRANSDUCTIVE)
    if len(pool.trials) == 1:
        print("There is one trial: the ensemble is that trial")
    systems = _systems(request, file, name, pool)
    unit = request.costs or "GFLOPs"
    _show_frontier(request, file, pool, systems[-1], unit)
    scored = score_splits(swept, manifest, pool, systems, ("holdout", split), request.address, request.score_all)
    members = systems[-1].members.tolist()
    seen = contaminations_of(swept, manifest, pool, members)
    for warning in (*mimic_warnings(manifest, pool, members), *(found.sentence for found in seen)):
        print(warning)
    kinds = kinds_of(findings, manifest, pool)
    comparison = judge(findings, kinds, pool, systems, scored, request.rounds, request.seed)
    report.show(comparison, name, asking=pool.asking)
    for line in lift_lines(pool, systems, scored, mined_labels(manifest, pool)) if pool.asking else ():
        print(line)
    store = swept.store / "ensembles" / name
    explained: tuple[str, ...] = ()
    if request.explain:
        explained = _explain(request, pool, systems[-1], findings, unit, store)
    made = _probabilities(request, pool, systems[-1], swept.task.findings, scored)
    submitted = scored.get(split)
    if submitted is not None:
        submitted = made.applied(submitted, [findings.index(finding) for finding in swept.task.findings])
    files = [*stored.files_of(submitted, request.zip), *write_probabilities(store, made), *explained]
    stored.remove_former(store, files)
    record = stored.write_ensemble(
        store, swept, file, name, pool, systems[-1], comparison, submitted, request.zip, made.calibration, seen
    )
    pages, last = _report(swept, name) if request.report else ([], "")
    _track(swept, record)
    _say_next(swept, store, split, files, comparison, pages, last)
    return Stacked(store, name, comparison, made)


def _track(swept: Run, record: EnsembleRecord) -> None:
    """Tell the run's trackers of the ensemble, and give them the run's report page, where there is one.

    The ensemble stands whatever becomes of them.
    """
    try:
        if names := trackers_of(swept):
            session = Session(swept, names)
            if swept.store.exists(REPORT):
                with swept.store.fetched(REPORT) as path:
                    session.ensemble(record, path)
            else:
                session.ensemble(record)
            session.close()
    except CxrltError as error:
        print(f"The run's trackers are not told of the ensemble: {error}")


def kinds_of(findings: tuple[str, ...], manifest: Manifest, pool: Pool) -> list[str]:
    """Head, medium or tail by training labels; UNSEEN for findings asked for without labels."""
    kinds = rarity(manifest.of_cohort(MAIN).of_split("train").targets(findings))
    asked = pool.asking.asked if pool.asking else ()
    return [UNSEEN if name in asked else kind for name, kind in zip(findings, kinds, strict=True)]


def _systems(request: EnsembleRequest, file: EnsembleFile, name: str, pool: Pool) -> list[System]:
    """The best trial, the mean and the ensemble; for a run that asks for findings by text, one choice for all."""
    if pool.asking is None:
        return compare(file, name, pool, request.seed)
    if request.explain or takes_costs(file.selector):
        raise UsageError(
            f"run {request.run or 'of this task'} asks for findings by text, whose members no label chooses: leave out "
            "--explain, and take a selector that weighs no costs."
        )
    return compare_asked(file, name, pool, request.seed)


def _of_tables(request: EnsembleRequest) -> Stacked:
    """An ensemble of members whose predictions are in files."""
    name, file = load_ensemble(request.select)
    from_tables.check_file(file)
    from_tables.check_out(request)
    tables = from_tables.read(request)
    members = tables.members
    request.critical_among(members.findings)
    for note in tables.notes:
        print(f"Note: {note}")
    print(
        f"{len(members.names)} members, {len(members.image_id):,} images of {len(set(members.groups)):,} subjects, "
        f"{len(members.findings)} findings"
    )
    check_costs(request.costs, file, request.explain)
    pool = from_tables.pool_of_tables(members, file, request.costs)
    systems = compare(file, name, pool, request.seed)
    unit = request.costs or "members"
    _show_frontier(request, file, pool, systems[-1], unit)
    comparison = judge(members.findings, rarity(members.targets), pool, systems, {}, request.rounds, request.seed)
    report.show(comparison, name, swept=False)
    store = Store(request.out)
    explained: tuple[str, ...] = ()
    if request.explain:
        explained = _explain(request, pool, systems[-1], tuple(members.findings), unit, store)
    made = _probabilities(request, pool, systems[-1], tuple(members.findings), {})
    there = [*write_probabilities(store, made), *explained]
    files = [*from_tables.write(store, tables, file, name, pool, systems[-1], comparison, made, there), *there]
    output.result(
        f"Left in {store.absolute().uri}: {', '.join(files)}", _paths(store, files), map=report.scored(comparison)
    )
    return Stacked(store, name, comparison, made)


def _probabilities(
    request: EnsembleRequest,
    pool: Pool,
    system: System,
    findings: tuple[str, ...],
    splits: Mapping[str, ScoredSplit],
) -> Probabilities:
    """Compute and show the requested calibration and thresholds."""
    if not (request.calibrate or request.aims):
        return Probabilities(findings, None, {}, (), {})
    made = probabilities(request, pool, system, findings, splits)
    calibration_page.show(made)
    return made


def _show_frontier(request: EnsembleRequest, file: EnsembleFile, pool: Pool, system: System, unit: str) -> None:
    """Show score against cost, if the selector takes costs."""
    if takes_costs(file.selector):
        report.show_frontier(frontier(pool, file, system.values, request.rounds, request.seed), unit)


def _explain(
    request: EnsembleRequest, pool: Pool, system: System, findings: tuple[str, ...], unit: str, store: Store
) -> tuple[str, ...]:
    """Show and write the reasons for the ensemble's members; returns the files' names."""
    from cxrlt_ray.ensembling.explain import explain_system
    from cxrlt_ray.reporting import explanation as page

    explanation = explain_system(pool, system, findings, unit, request.seed)
    page.show(explanation)
    page.write(explanation, store)
    return stored.EXPLAINED


def _report(swept: Run, name: str) -> tuple[list[str], str]:
    """Write the run's page; returns its address and the last line. A failing page does not affect the ensemble."""
    try:
        from cxrlt_ray.page.written import write_report

        page = write_report(swept, ensemble=name).uri
        return [page], page
    except Exception as error:  # nothing in a page is worth a finished ensemble
        reason = str(error).rstrip(".") if isinstance(error, CxrltError) else type(error).__name__
        return [], f"The report could not be written ({reason}): `python -m cxrlt_ray.report` tries again."


def _say_next(
    swept: Run,
    store: Store,
    split: str,
    made: list[str],
    comparison: Comparison,
    pages: list[str],
    last: str,
) -> None:
    """Print the files written, the command that scores the submission, and the last line."""
    files = ["ensemble.json", "weights.csv", *made]
    lines = [f"Left in {store.uri}: {', '.join(files)}"]
    # its run knows the images, labels and splits; the data, read anew, may give others
    if SUBMISSION in made and split in comparison.sets:
        other = "" if split == swept.task.scored_split else f" --split {split}"
        lines.append(f"Next: python -m cxrlt_ray.evaluate {shlex.quote(store.uri)}{other}")
    if pages:
        lines.append("The run as one page, for a browser:")
    lines += [last] if last else []
    output.result("\n".join(lines), _paths(store, files) + pages, map=report.scored(comparison))


def _paths(store: Store, files: Sequence[str]) -> list[str]:
    return [f"{store.absolute().uri}/{file}" for file in files]


main = cli.command(
    EnsembleRequest,
    run,
    """Choose and weight a run's trials, score the test images with them, write the submission.

    Or do the same with predictions from any source, matched by image id and column name.

    python -m cxrlt_ray.ensemble --select greedy
    python -m cxrlt_ray.ensemble --select my.yaml --run task1-20261125-101500 --zip
    python -m cxrlt_ray.ensemble --calibrate --thresholds f1 critical=0.05
    python -m cxrlt_ray.ensemble --from a.csv b.parquet --targets labels.csv --apply test_a.csv test_b.csv
    """,
    many=("--from", "--apply", "--findings", "--scores", "--thresholds"),
)


if __name__ == "__main__":
    cli.run("ensemble")
