"""`python -m cxrlt_ray.ensemble --select greedy`: the best of a run's trials, stacked.

The story: an ensembles/ file -> the trials' validation predictions -> weights per finding -> how good,
honestly -> test images scored by the chosen members only -> RUN/ensembles/NAME/:

    weights.csv            a row a member, a column a finding
    predictions.parquet    image_id, one float32 score per finding
    submission.csv         as the challenge wants it (and .zip)
    ensemble.json          members, weights, fingerprints, scores; written last: the rest is whole
"""

from __future__ import annotations

import hashlib
import io
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from cxrlt_ray import cli, metrics, selection
from cxrlt_ray.config import Config, find, read_yaml, validate
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.manifest import Manifest
from cxrlt_ray.selection import SELECTORS, SPACES_OF, curve, spaces, takes_costs
from cxrlt_ray.selection import settings as settings_of
from cxrlt_ray.selection.honest import AUTO, Fitted, Method, combine, fit, side_by_side
from cxrlt_ray.selection.views import by_study
from cxrlt_ray.storage import Store
from cxrlt_ray.tasks import GROUPS, rarity
from cxrlt_ray.trials import DEFAULT_STORAGE, FINISHED, PRUNED, Run, Trial, load_run, write_predictions

VERSION = 2
ENOUGH = 2  # finished trials, without which pruned ones are chosen among
CHOICES = ("mean", "best", "greedy_bagged")  # all in one space
NAMED = {"optimistic": "validation\noptimistic", "cross_fitted": "validation\ncross-fitted"}


class EnsembleFile(Config):
    """The keys of an ensembles/ file; see selection.honest.Method for what they mean."""

    selector: str
    settings: dict[str, int | float | str | bool] = Field(default={})
    fallback: list[str] = Field(default=[])  # taken instead where better by more than one standard error
    choices: list[str] = Field(default=list(CHOICES))  # of selector auto, the simplest first
    space: Literal["probability", "logit", "rank"] | None = None  # without it, the selector's own
    views: dict[Literal["PA", "AP", "LATERAL", "OTHER", "UNKNOWN"], Annotated[float, Field(ge=0)]] | None = None
    guard: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    members: Annotated[int, Field(ge=1)] | None = None
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Annotated[int, Field(ge=1)] = 1

    def methods(self) -> list[Method]:
        """What selection.honest chooses among, in order of preference."""
        if self.selector == AUTO:
            return [Method(name, {}, self.guard, self.members) for name in self.choices]
        others = [Method(name, {}, 0.0, self.members) for name in self.fallback]
        return [Method(self.selector, dict(self.settings), self.guard, self.members), *others]

    def margin(self) -> float:
        """By how many standard errors a method must be better than those before it: of auto's, by any."""
        return 0.0 if self.selector == AUTO else 1.0

    def joined(self, values: np.ndarray, study: np.ndarray | None, view: np.ndarray | None) -> np.ndarray:
        """Values [M, N, C] with one voice a study where `views` says so; a view it does not name has weight 1."""
        if self.views is None or study is None or view is None:
            return values
        given = {str(each): weight for each, weight in self.views.items()}
        return by_study(values, study, np.array([given.get(str(each), 1.0) for each in view]))

    def place(self) -> str:
        """The space in which predictions are combined."""
        return self.space or SPACES_OF.get(self.selector, "probability")


@dataclass(frozen=True)
class Pool:
    """What there is to choose from: M trials' predictions float32 [M, N, C] of the same N validation images."""

    names: list[str]
    image_id: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    groups: np.ndarray
    trials: list[Trial]  # [] where the predictions are not of a run
    costs: np.ndarray | None = None  # [M], of scoring an image; None where not known
    study: np.ndarray | None = None
    view: np.ndarray | None = None


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a system's scores [N, C] on validation, optimistic and (each repeat) cross-fitted."""

    title: str
    optimistic: np.ndarray
    crossed: list[np.ndarray]
    values: np.ndarray  # [M, N, C] what the weights are for
    fitted: Fitted

    @property
    def weights(self) -> np.ndarray:
        """[M, C], chosen on all validation images."""
        return self.fitted.weights


def load_ensemble(name: str) -> tuple[str, EnsembleFile]:
    """The name and content of an ensembles/ file; a selector's own name will do. Raises UsageError naming file, key."""
    try:
        path = find("ensembles", name)
    except UsageError:
        if name in SELECTORS or name == AUTO:
            return name, EnsembleFile(selector=name)
        raise
    content = validate(EnsembleFile, read_yaml(path), path)
    others = [(key, each) for key in ("fallback", "choices") for each in getattr(content, key)]
    for key, given in [("selector", content.selector), *others]:
        if given not in SELECTORS and not (key == "selector" and given == AUTO):
            raise UsageError(
                f"{path}: key '{key}': given '{given}': there is no such selector; there are {', '.join(SELECTORS)}"
                + (f" and {AUTO}." if key == "selector" else ".")
            )
    lost = "fallback" if content.selector == AUTO else "choices"
    if lost in content.model_fields_set:
        uses = "which takes 'choices'" if content.selector == AUTO else f"only to selector {AUTO}; 'fallback' does"
        raise UsageError(f"{path}: key '{lost}' means nothing to selector {content.selector}, {uses}.")
    known = settings_of(content.selector) if content.selector in SELECTORS else {}
    if unknown := set(content.settings) - set(known):
        raise UsageError(
            f"{path}: unknown key 'settings.{sorted(unknown)[0]}'; selector {content.selector} has "
            f"{', '.join(known) or 'none'}."
        )
    return path.stem, content


def candidates(run: Run, split: str | None, pruned: bool = False, say: Any = print) -> list[Trial]:
    """Trials that can be chosen: with validation predictions, and able to score `split` or having done so.

    Pruned ones only if asked for, or where fewer than ENOUGH finished: chosen among, they cost an ensemble of what
    it finds on other subjects (benchmarks/search.py). Raises CxrltError where there is none.
    """
    # a trial that still runs would change under the ensemble, or be run anew by --resume
    judged = [trial for trial in run.trials() if trial.state in (FINISHED, PRUNED) and trial.has_predictions()]
    able = [t for t in judged if split is None or t.checkpoints or t.has_predictions(split)]
    if len(able) < len(judged):
        say(f"{len(judged) - len(able)} trial(s) cannot be chosen: their checkpoints were dropped")
    finished = [trial for trial in able if trial.state == FINISHED]
    if not pruned and len(finished) >= ENOUGH and len(finished) < len(able):
        say(f"{len(able) - len(finished)} pruned trial(s) left out (--pruned chooses among them too)")
        able = finished
    if not able:
        raise CxrltError(
            f"run {run.name} has no finished trial to choose from: `python -m cxrlt_ray.trials {run.name}` says why; "
            f"continue it with `python -m cxrlt_ray.sweep {run.about['task_argument']} --resume --name {run.name}`."
        )
    return able


def gather(run: Run, manifest: Manifest, trials: list[Trial], say: Any = print) -> Pool:
    """The trials' validation predictions side by side; a trial whose file does not fit is named and left out."""
    kept, frames = [], []
    for trial in trials:
        try:
            frames.append(trial.predictions())
            kept.append(trial)
        except CxrltError as error:
            say(f"Left out {trial.name}: {error}")
    if not kept:
        raise CxrltError(f"none of the {len(trials)} trials of run {run.name} has predictions that fit it.")
    shared = frames[0].index
    for frame in frames[1:]:
        shared = shared.intersection(frame.index)
    table = manifest.table.set_index("image_id")
    rows = pd.Index(table.index).get_indexer(shared)
    return Pool(
        [trial.name for trial in kept],
        shared.to_numpy(),
        side_by_side(np.stack([frame.loc[shared, list(run.task.findings)].to_numpy(np.float32) for frame in frames])),
        manifest.targets(run.task.findings)[rows],
        table["subject_id"].to_numpy()[rows],
        kept,
        *studies(manifest.table.iloc[rows]),
    )


def gflops(trials: list[Trial]) -> np.ndarray:
    """What it costs each trial [M] to score an image: 10^9 floating-point operations, of all its folds."""
    from cxrlt_ray.models import flops
    from cxrlt_ray.search import TrialConfig

    each = [flops(TrialConfig(**trial.about["config"]).spec(), len(trial.about["findings"])) for trial in trials]
    return np.array([cost * max(len(trial.checkpoints), 1) / 1e9 for cost, trial in zip(each, trials, strict=True)])


def read_costs(path: str, names: list[str]) -> np.ndarray:
    """The members' costs [M] in a CSV of two columns, member and cost. Raises CxrltError naming what is wrong."""
    folder, _, name = path.rpartition("/")
    try:
        table = pd.read_csv(io.BytesIO(Store(folder or ".").read(name)), dtype={0: str}).iloc[:, :2]
        costs = pd.to_numeric(table.set_index(table.columns[0]).iloc[:, 0])
    except (ValueError, IndexError) as error:
        raise CxrltError(f"{path} is no table of members and their costs: {error}.") from None
    if lacking := [each for each in names if each not in costs.index]:
        raise CxrltError(f"{path} has no cost of {lacking[0]}: give each of {', '.join(names)} a row.")
    return costs[~costs.index.duplicated()].loc[names].to_numpy(float)


def check_costs(costs: str | None, file: EnsembleFile, explain: bool) -> None:
    """Raise UsageError for --costs where nothing would come of them."""
    if costs and not takes_costs(file.selector) and not explain:
        raise UsageError(f"--costs: selector {file.selector} does not weigh costs; selector frontier and --explain do.")


def tell_why(findings: Sequence[str], pool: Pool, row: Row, unit: str, seed: int, store: Store) -> None:
    """Print and leave what --explain promises of the ensemble `row`."""
    from cxrlt_ray import explain

    if row.fitted.fold is None:
        raise CxrltError("--explain needs images of 2 subjects or more: it tells of cross-fitted scores.")
    found = explain.examine(
        pool.names, findings, row.values, pool.targets, pool.groups, row.fitted, pool.costs, unit, seed
    )
    explain.tell(found)
    explain.leave(found, store)


def show_curve(pool: Pool, file: EnsembleFile, values: np.ndarray, unit: str, rounds: int, seed: int) -> None:
    """Print the ensembles among which `frontier` chooses: what they cost, what they score where they were chosen."""
    from rich import box
    from rich.table import Table

    options = {key: value for key, value in file.settings.items() if key != "budget"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = curve(values, pool.targets, pool.groups, pool.costs, **options)
    table = Table(f"cost an image, {unit}", "validation mAP, optimistic", "members", box=box.SIMPLE_HEAD)
    systems = [combine(values, point.weights) for point in points]
    drawn = metrics.bootstrap_map(pool.targets, systems, pool.groups, rounds=rounds, seed=seed)
    for point, draws in zip(points, drawn, strict=True):
        score = cli.ranged(point.score, *metrics.interval(draws))
        table.add_row(f"{point.cost:.4g}", score, ", ".join(pool.names[m] for m in point.members))
    cli.console().print(table)


def studies(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Study and view of each image of a manifest's table; an image of no known study is a study of its own."""
    return table["study_id"].fillna(table["image_id"]).to_numpy(), table["view"].fillna("UNKNOWN").to_numpy()


def compare(file: EnsembleFile, title: str, pool: Pool, seed: int) -> list[Row]:
    """The best single trial, the plain mean and the ensemble of `file`, on validation."""
    if not any(Path(selection.__file__).parent.glob("__pycache__/*.nbi")):
        print("Compiling what selection counts with (once, about 20 s)", flush=True)
    rows = []
    systems = (("best", EnsembleFile(selector="best")), ("mean", EnsembleFile(selector="mean")), (title, file))
    folds = min(file.folds, len(np.unique(pool.groups)))
    for name, each in systems:
        values = each.joined(spaces.into(each.place(), pool.predictions, pool.predictions), pool.study, pool.view)
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            fitted = fit(
                each.methods(),
                values,
                pool.targets,
                pool.groups,
                folds=folds,
                repeats=file.repeats,
                seed=seed,
                costs=pool.costs,
                margin=each.margin(),
            )
        if each is file:  # told once
            for doubt in dict.fromkeys(str(warning.message) for warning in doubts):
                print(f"Note: {doubt}")
        label = f"{title} ensemble"
        if each is not file:
            best = pool.names[int(fitted.weights[:, 0].argmax())]
            kind = "trial" if pool.trials else "member"
            label = f"best {kind} {best}" if name == "best" else f"mean of {len(pool.names)} {kind}s"
        elif len(each.methods()) > 1 or each.guard == AUTO:
            guard = f", guard {fitted.method.guard:g}" if each.guard == AUTO else ""
            print(f"Chosen by cross-fitting: selector {fitted.method.selector}{guard}")
        optimistic = spaces.out_of(each.place(), combine(values, fitted.weights))
        crossed = [spaces.out_of(each.place(), scores) for scores in fitted.crossed]
        rows.append(Row(label, optimistic, crossed, values, fitted))
    return rows


def score_split(run: Run, pool: Pool, members: np.ndarray, image_ids: np.ndarray, split: str, address: str | None):
    """Predictions float32 [M, N, C] of `split` by `members` (a mask [M]); nan for the others and for bad images."""
    from cxrlt_ray.score import score_trials

    chosen = [trial for trial, member in zip(pool.trials, members, strict=True) if member]
    if any(not trial.has_predictions(split) for trial in chosen):
        from cxrlt_ray.stream import start_ray

        start_ray(address)
        score_trials(run.store.absolute(), run.shards(), chosen, image_ids, split)
    findings = list(run.task.findings)
    found = np.full((len(pool.trials), len(image_ids), len(findings)), np.nan, np.float32)
    for m, trial in enumerate(pool.trials):
        if members[m]:
            found[m] = trial.predictions(split).reindex(image_ids)[findings].to_numpy(np.float32)
    return found


def applied(
    file: EnsembleFile,
    predictions: np.ndarray,
    reference: np.ndarray,
    weights: np.ndarray,
    study: np.ndarray | None = None,
    view: np.ndarray | None = None,
) -> np.ndarray:
    """An ensemble's scores float64 [N, C] in [0, 1] of predictions [M, N, C]; nan where a needed one is missing.

    reference: the members' validation predictions [M, V, C]. study, view: [N], for files that weigh views.
    """
    used = weights.sum(axis=1) > 0
    values = file.joined(spaces.into(file.place(), predictions[used], reference[used]), study, view)
    return spaces.out_of(file.place(), combine(values, weights[used]))


def main(
    select: Annotated[str, cli.option("a selector, a file of ensembles/, or the path of a YAML file")] = "greedy",
    run: Annotated[str | None, cli.option("the run; the latest without it")] = None,
    storage: Annotated[str, cli.option("where the runs are: a directory or URI")] = DEFAULT_STORAGE,
    split: Annotated[str | None, cli.option("the split to submit; the task's scored one without it")] = None,
    score_all: Annotated[bool, cli.option("score the test images with every trial, to compare", "--score-all")] = False,
    zip: Annotated[bool, cli.option("also write submission.zip", "--zip")] = False,
    rounds: Annotated[int, cli.option("bootstrap rounds of the intervals")] = 1000,
    seed: Annotated[int, cli.option("seed of bags, folds and bootstrap")] = 0,
    address: Annotated[str | None, cli.option("join a Ray cluster, from its head: auto")] = None,
    costs: Annotated[str | None, cli.option("a CSV of member and cost, for selector frontier; else GFLOPs")] = None,
    tables: Annotated[
        list[str] | None, cli.option("no run: a table of predictions a member, or one .npz", "--from")
    ] = None,
    targets: Annotated[str | None, cli.option("with --from: the table of labels")] = None,
    groups: Annotated[str | None, cli.option("with --from: the labels' column of subjects, or a table of them")] = None,
    apply: Annotated[list[str] | None, cli.option("with --from: the members' tables of images to score")] = None,
    findings: Annotated[list[str] | None, cli.option("with --from: only these columns")] = None,
    id_column: Annotated[str | None, cli.option("with --from: the tables' column of image ids")] = None,
    drop_missing: Annotated[bool, cli.option("with --from: leave out images a member lacks", "--drop-missing")] = False,
    out: Annotated[str, cli.option("with --from: where to leave the ensemble")] = "ensemble",
    explain: Annotated[bool, cli.option("why these members, and what more trials would bring", "--explain")] = False,
    pruned: Annotated[bool, cli.option("choose among pruned trials too", "--pruned")] = False,
) -> None:
    """Choose and weigh a run's trials, score the test images with them, write the submission.

    Or do so with predictions from anywhere, matched by image id and column name.

    python -m cxrlt_ray.ensemble --select greedy
    python -m cxrlt_ray.ensemble --select my.yaml --run task1-20261125-101500 --zip
    python -m cxrlt_ray.ensemble --from a.csv b.parquet --targets labels.csv --apply test_a.csv test_b.csv
    """
    if tables:
        from cxrlt_ray.anywhere import stack

        inputs = (tables, targets, groups, apply, findings, id_column, drop_missing)
        stack(select, *inputs, out, rounds, seed, costs, explain)
        return
    if given := [name for name, value in (("--targets", targets), ("--groups", groups), ("--apply", apply)) if value]:
        raise UsageError(f"{given[0]} goes with --from, the tables of predictions to choose from.")
    name, file = load_ensemble(select)
    check_costs(costs, file, explain)
    loaded = load_run(storage, run)
    loaded.check_layout()
    task, manifest = loaded.task, loaded.manifest()
    split = split or task.scored_split
    scored = manifest.of_split(split)
    if not len(scored.table):
        print(f"The data has no {split} images: weights are made, no submission")
    pool = gather(loaded, manifest, candidates(loaded, split if len(scored.table) else None, pruned))
    if takes_costs(file.selector) or explain:
        pool = replace(pool, costs=read_costs(costs, pool.names) if costs else gflops(pool.trials))
    print(f"Run {loaded.name}: {len(pool.trials)} trials, {len(pool.image_id):,} validation images")
    if len(pool.trials) == 1:
        print("There is one trial: the ensemble is that trial")
    rows = compare(file, name, pool, seed)
    if takes_costs(file.selector):
        show_curve(pool, file, rows[-1].values, costs or "GFLOPs", rounds, seed)
    weights = rows[-1].weights
    store = loaded.store / "ensembles" / name
    compared = [rows[0].weights, *([rows[1].weights] if score_all else []), weights]
    needed = np.sum(compared, axis=0).sum(axis=1) > 0
    parts = {}
    for part in dict.fromkeys(["holdout", split]):
        images = manifest.of_split(part)
        if len(images.table):
            ids = images.table["image_id"].to_numpy()
            predictions = score_split(loaded, pool, needed, ids, part, address)
            plain = EnsembleFile(selector="mean")
            found = [
                None
                if ((row.weights.sum(axis=1) > 0) & ~needed).any()  # a member that has not scored
                else applied(
                    file if row is rows[-1] else plain,
                    predictions,
                    pool.predictions,
                    row.weights,
                    *studies(images.table),
                )
                for row in rows
            ]
            parts[part] = (images, found)
    kinds = rarity(manifest.of_split("train").targets(task.findings))
    report = judge(task.findings, kinds, pool, rows, parts, rounds, seed)
    show(report, name)
    if explain:
        tell_why(task.findings, pool, rows[-1], costs or "GFLOPs", seed, store)
    _write(store, loaded, file, name, pool, rows[-1].fitted, parts.get(split), report, zip)
    _next(loaded, store, split, parts.get(split))


def judge(
    findings: Sequence[str],
    kinds: list[str],
    pool: Pool,
    rows: list[Row],
    parts: dict[str, tuple[Manifest, list[np.ndarray | None]]],
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """Scores of every system: {system: {set: {map, low, high, head, medium, tail, ...}}}, and paired gains over others.

    Sets: `optimistic` and `cross_fitted` (validation), and each split with labels. Intervals: 95 %, bootstrap
    by subject; gains are of the same resampled subjects. kinds [C]: head, medium or tail, as tasks.rarity.
    """
    # of each system the scores, or those of each repeat of the cross-fitting
    sets: dict[str, tuple[np.ndarray, np.ndarray, list[list[np.ndarray] | None]]] = {
        "optimistic": (pool.targets, pool.groups, [[row.optimistic] for row in rows]),
        "cross_fitted": (pool.targets, pool.groups, [row.crossed for row in rows]),
    }
    for part, (images, found) in parts.items():
        targets = images.targets(tuple(findings))
        if (targets == 1).any():
            each = [None if scores is None else [scores] for scores in found]
            sets[part] = (targets, images.table["subject_id"].to_numpy(), each)
    counts = {group: kinds.count(group) for group in GROUPS}
    report: dict[str, Any] = {
        "systems": {row.title: {} for row in rows},
        "gains": {},
        "prevalence": {},
        "groups": counts,
    }
    for where, (targets, groups, all_scores) in sets.items():
        scored = {k: scores for k, scores in enumerate(all_scores) if scores is not None}
        there = list(scored)
        good = np.all([np.isfinite(scores).all(axis=1) for each in scored.values() for scores in each], axis=0)
        targets, groups = targets[good], groups[good]
        stacked = [[scores[good] for scores in some] for some in scored.values()]
        systems = [scores for some in stacked for scores in some]
        drawn = metrics.bootstrap_ap(targets, systems, groups, rounds=rounds, seed=seed)
        drawn = drawn.reshape(len(stacked), -1, *drawn.shape[1:]).mean(axis=1)  # [system, C, rounds], over repeats
        samples = metrics.means(drawn)
        labelled = np.maximum((targets >= 0).sum(axis=0), 1)
        seen = (targets == 1).any(axis=0)
        report["prevalence"][where] = float(((targets == 1).sum(axis=0) / labelled)[seen].mean())
        for k, some, draws, sample in zip(there, stacked, drawn, samples, strict=True):
            ap = np.mean([metrics.per_finding(targets, scores, which=("ap",))["ap"] for scores in some], axis=0)
            low, high = metrics.interval(sample)
            report["systems"][rows[k].title][where] = {
                "map": metrics.macro(ap),
                "low": low,
                "high": high,
                **(means := metrics.by_rarity(ap, kinds)),
                "intervals": {
                    group: metrics.interval(metrics.means(draws[np.array(kinds) == group])) for group in means
                },
                "ap": dict(zip(findings, ap.tolist(), strict=True)),
            }
        values = [report["systems"][rows[k].title][where]["map"] for k in there]
        report["gains"][where] = {}
        for k, value, sample in zip(there[:-1], values, samples, strict=False):
            low, high = metrics.interval(samples[-1] - sample)
            report["gains"][where][rows[k].title] = {"map": values[-1] - value, "low": low, "high": high}
        report.setdefault("images", {})[where] = int(good.sum())
    return report


def show(report: dict[str, Any], name: str, swept: bool = True) -> None:
    """Print `report` of judge. swept: the members come of a sweep, which has seen the validation subjects."""
    from rich import box
    from rich.table import Table

    console = cli.console()
    table = Table("mAP", box=box.SIMPLE_HEAD)
    for where, count in report["images"].items():
        table.add_column(f"{NAMED.get(where, where)}\n{count:,} images", no_wrap=True)
    for title, scores in report["systems"].items():
        table.add_row(title, *(_cell(scores.get(where)) for where in report["images"]))
    table.add_row("prevalence (chance)", *(cli.short(report["prevalence"][where]) for where in report["images"]))
    console.print(table)
    honest = [where for where in report["images"] if where != "optimistic"]
    groups = Table("mAP of", *(f"{count} {group}" for group, count in report["groups"].items()), box=box.SIMPLE_HEAD)
    for where in honest:
        groups.add_row(f"[bold]{NAMED.get(where, where)}[/]".replace("\n", " "))
        for title, scores in report["systems"].items():
            groups.add_row(title, *_groups(scores.get(where)))
    console.print(groups)
    for where in honest:
        for title, gain in report["gains"][where].items():
            sure = gain["low"] > 0 or gain["high"] < 0
            console.print(
                f"{name} ensemble less {title}, {NAMED.get(where, where).replace(chr(10), ' ')}: {gain['map']:+.3f} "
                f"[{gain['low']:+.3f}, {gain['high']:+.3f}]" + (": a real difference" if sure else ": within chance")
            )
    print(
        "[ , ] are 95 % intervals, bootstrapped by subject, of what so many images give: of rare findings that is more"
    )
    print("than many images would. Optimistic: chosen and scored on the same images.")
    if swept:
        print("Cross-fitted: chosen without the subjects scored. It undoes the selector's optimism only: epoch choice,")
        print("ASHA and the search have seen all validation subjects (sweep --holdout F keeps some from everything).")
    else:
        print(
            "Cross-fitted: chosen without the subjects scored, of members as they are: what their training has seen of"
        )
        print("these subjects is not undone.")


def _cell(score: dict[str, float] | None) -> str:
    return "not scored" if score is None else cli.ranged(score["map"], score["low"], score["high"])


def _groups(score: dict[str, Any] | None) -> list[str]:
    if score is None:
        return ["not scored"]
    return [cli.ranged(score[group], *score["intervals"][group]) for group in GROUPS]


def _write(
    store: Store,
    run: Run,
    file: EnsembleFile,
    name: str,
    pool: Pool,
    fitted: Fitted,
    part: tuple[Manifest, list[np.ndarray | None]] | None,
    report: dict[str, Any],
    zip: bool,
) -> None:
    """Leave the ensemble's files; each is whole or not there, ensemble.json comes last."""
    from cxrlt_ray import submission

    findings, weights = run.task.findings, fitted.weights
    used = np.flatnonzero(weights.sum(axis=1) > 0)
    with store.place("weights.csv") as path:
        weights_table(pool, weights, findings).to_csv(path, index=False)
    if part is not None:
        images, scores = part[0], part[1][-1]
        assert scores is not None
        ids = images.table["image_id"].to_numpy()
        scores = filled(scores)
        write_predictions(
            store, "predictions.parquet", ids, scores, findings, images.table["split"].iloc[0], run.about["fingerprint"]
        )
        frame = submission.build(ids, scores, findings)
        submission.write(store, frame, run.task, ids, zip=zip)
    store.write_json(
        "ensemble.json",
        {
            "version": VERSION,
            "name": name,
            "task": run.about["task"],
            "run": run.store.absolute().uri,
            "fingerprint": run.about["fingerprint"],
            "sizes": [each["size"] for each in run.about["shards"]],
            "quality": run.about["quality"],
            **file.model_dump(),
            "space": file.place(),
            "chosen": chosen(fitted),
            "members": [_member(pool.trials[m], weights[m], findings) for m in used],
            "scores": finite(report),
        },
    )


def chosen(fitted: Fitted) -> dict[str, Any]:
    """The selector that was taken and its guard; null: all findings are weighed alike."""
    return finite({"selector": fitted.method.selector, "guard": float(fitted.method.guard)})


def filled(scores: np.ndarray, say: Any = print) -> np.ndarray:
    """Scores [N, C] where images that could not be decoded get each finding's mean: a submission needs every row."""
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        say(f"{bad.sum()} image(s) could not be decoded: they get each finding's mean score (see quarantine.parquet)")
        scores = np.where(bad[:, None], np.nanmean(scores, axis=0), scores)
    return scores


def weights_table(pool: Pool, weights: np.ndarray, findings: tuple[str, ...]) -> pd.DataFrame:
    """A row a member, heaviest first: trial, backbone, px, val mAP, its mean weight, then its weight per finding."""
    rows = [
        {
            "trial": trial.name,
            "backbone": trial.about["config"]["backbone"],
            "resolution": trial.about["config"]["resolution"],
            "loss": trial.about["config"]["loss"],
            "val_map": round(trial.val_map, 4),
            "mean_weight": round(float(weight.mean()), 4),
            **dict(zip(findings, weight.round(4).tolist(), strict=True)),
        }
        for trial, weight in zip(pool.trials, weights, strict=True)
        if weight.sum() > 0
    ]
    return pd.DataFrame(rows).sort_values("mean_weight", ascending=False, kind="stable")


def _member(trial: Trial, weights: np.ndarray, findings: tuple[str, ...]) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "resolution": trial.about["config"]["resolution"],
        "checkpoints": {name: fingerprint(trial.store, name) for name in trial.checkpoints},
        "weights": dict(zip(findings, weights.tolist(), strict=True)),
    }


def fingerprint(store: Store, checkpoint: str) -> str:
    """16 hex digits of a checkpoint's weights."""
    return hashlib.sha256(store.read(f"{checkpoint}/model.safetensors")).hexdigest()[:16]


def finite(value: Any) -> Any:
    """JSON has no nan: null."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _options(run: Run, split: str) -> Iterator[str]:
    """What evaluate must be told to read the data as the run did."""
    if split != run.task.scored_split:
        yield f" --split {split}"
    for option, usual in (("seed", 0), ("uncertain", "null")):
        if run.about[option] != usual:
            yield f" --{option} {run.about[option]}"


def _next(run: Run, store: Store, split: str, part: Any) -> None:
    print(
        f"Left in {store.uri}: ensemble.json, weights.csv" + (", predictions.parquet, submission.csv" if part else "")
    )
    if part:
        print(
            f"Next: python -m cxrlt_ray.evaluate {store.uri}/submission.csv --task {run.about['task_argument']} "
            f"--data {shlex.quote(run.about['data'])}" + "".join(_options(run, split))
        )


main.many = ("--from", "--apply", "--findings")  # type: ignore[attr-defined]


if __name__ == "__main__":
    cli.run("ensemble")
