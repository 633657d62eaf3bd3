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
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from cxrlt_ray import cli, selection
from cxrlt_ray.data.manifest import MAIN, Manifest, studies
from cxrlt_ray.data.tasks import GROUPS, rarity
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile, load_ensemble
from cxrlt_ray.ensembling.pool import AGAIN, ANOTHER, COPIES, Pool, candidates, gather, read_costs, under_tta
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.runs.cost import gflops
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.store import DEFAULT_STORAGE, Run, load_run
from cxrlt_ray.selection import curve, spaces, takes_costs
from cxrlt_ray.selection.honest import AUTO, Fitted, as_given, combine, fit
from cxrlt_ray.selection.views import StudyRule
from cxrlt_ray.storage import Store

VERSION = 2
NAMED = {"optimistic": "validation\noptimistic", "cross_fitted": "validation\ncross-fitted"}


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a system's scores [N, C] on validation, optimistic and (each repeat) cross-fitted."""

    title: str
    optimistic: np.ndarray
    crossed: list[np.ndarray]
    values: np.ndarray  # [M, N, C] what the weights are for: the predictions in `space`, joined by `rule`
    fitted: Fitted
    space: str
    rule: StudyRule

    @property
    def weights(self) -> np.ndarray:
        """[M, C], chosen on all validation images."""
        return self.fitted.weights


def check_costs(costs: str | None, file: EnsembleFile, explain: bool) -> None:
    """Raise UsageError for --costs where nothing would come of them."""
    if costs and not takes_costs(file.selector) and not explain:
        raise UsageError(f"--costs: selector {file.selector} does not weigh costs; selector frontier and --explain do.")


def tell_why(findings: Sequence[str], pool: Pool, row: Row, unit: str, seed: int, store: Store) -> None:
    """Print and leave what --explain promises of the ensemble `row`."""
    from cxrlt_ray.ensembling import explain

    if row.fitted.fold is None:
        raise CxrltError("--explain needs images of 2 subjects or more: it tells of cross-fitted scores.")
    if others := sum(rule != row.fitted.rule for rule in row.fitted.rules):
        print(f"Note: explained as if all folds had chosen {row.rule}; {others} of {len(row.fitted.rules)} did not")
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


def compare(file: EnsembleFile, title: str, pool: Pool, seed: int) -> list[Row]:
    """The best single trial, the plain mean and the ensemble of `file`, on validation."""
    if not any(Path(selection.__file__).parent.glob("__pycache__/*.nbi")):
        print("Compiling what selection counts with (once, about 20 s)", flush=True)
    rows = []
    systems = (("best", EnsembleFile(selector="best")), ("mean", EnsembleFile(selector="mean")), (title, file))
    folds = min(file.folds, len(np.unique(pool.groups)))
    for name, each in systems:
        rules = _rules(each, pool)
        made = [partial(_values, each.place(), rule, pool) for rule in rules]
        single = len(rules) == 1  # is applied once; of several one is held at a time
        values = made[0](pool.predictions) if single else pool.predictions
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
                rules=[as_given] if single else made,
            )
        values = values if single else made[fitted.rule](pool.predictions)
        if each is file:  # told once
            for doubt in dict.fromkeys(str(warning.message) for warning in doubts):
                print(f"Note: {doubt}")
            if told := _told(each, rules, fitted):
                print(f"Chosen by cross-fitting: {told}")
        label = f"{title} ensemble"
        if each is not file:
            best = pool.names[int(fitted.weights[:, 0].argmax())]
            kind = "trial" if pool.trials else "member"
            label = f"best {kind} {best}" if name == "best" else f"mean of {len(pool.names)} {kind}s"
        optimistic = spaces.out_of(each.place(), combine(values, fitted.weights))
        crossed = [spaces.out_of(each.place(), scores) for scores in fitted.crossed]
        rows.append(Row(label, optimistic, crossed, values, fitted, each.place(), rules[fitted.rule]))
    return rows


def _rules(file: EnsembleFile, pool: Pool) -> list[StudyRule]:
    """The rules to choose among; the first alone where the pool's images cannot tell them apart."""
    rules = file.rules()
    if len(rules) > 1 and (pool.study is None or len(np.unique(pool.study)) == len(pool.study)):
        print(f"No study has two validation images: {rules[0]}, for there is nothing to choose by")
        return rules[:1]
    return rules


def _values(space: str, rule: StudyRule, pool: Pool, predictions: np.ndarray) -> np.ndarray:
    """The pool's predictions in `space`, joined by `rule`; where no study is known each image stands by itself."""
    if pool.study is None or pool.view is None:
        return spaces.into(space, predictions, predictions)
    return rule.values(space, predictions, predictions, pool.study, pool.view)


def _told(file: EnsembleFile, rules: list[StudyRule], fitted: Fitted) -> str:
    """What cross-fitting chose, and in how many folds it chose the same rule; "" where there was no choice."""
    parts = []
    if len(file.methods()) > 1 or file.guard == AUTO:
        guard = f", guard {fitted.method.guard:g}" if file.guard == AUTO else ""
        parts.append(f"selector {fitted.method.selector}{guard}")
    if len(rules) > 1 and fitted.rules:
        agreeing = sum(rule == fitted.rule for rule in fitted.rules)
        parts.append(f"{rules[fitted.rule]} (so do {agreeing} of {len(fitted.rules)} folds)")
    return "; ".join(parts)


@dataclass(frozen=True)
class Scored:
    """A split's predictions float32 [N, C] by member m of a pool, read when asked for; nan for bad images."""

    pool: Pool
    split: str
    image_id: np.ndarray
    findings: list[str]

    def __getitem__(self, m: int) -> np.ndarray:
        frame = self.pool.trials[m].predictions(self.pool.split_of(m, self.split))
        return np.ascontiguousarray(frame.reindex(self.image_id)[self.findings], np.float32)


def score_split(
    run: Run, pool: Pool, members: np.ndarray, images: pd.DataFrame, split: str, address: str | None
) -> Scored:
    """Have `split` scored by those of `members` (a mask [M]) that have not done so.

    images: image_id, study_id and view of a manifest. Each member looks as the pool says (Pool.tta).
    """
    from cxrlt_ray.ensembling.score import score_trials

    chosen = [int(m) for m in np.flatnonzero(members)]
    if any(not pool.trials[m].has_predictions(pool.split_of(m, split)) for m in chosen):
        from cxrlt_ray.cluster.start import start_ray

        start_ray(address)
        flags = [bool(pool.tta and pool.tta[m]) for m in chosen]
        score_trials(run.store.absolute(), run.shards(), [pool.trials[m] for m in chosen], images, split, tta=flags)
    return Scored(pool, split, images["image_id"].to_numpy(), list(run.task.findings))


def applied(
    space: str,
    rule: StudyRule,
    predictions: np.ndarray | Scored,
    reference: np.ndarray,
    weights: np.ndarray,
    study: np.ndarray,
    view: np.ndarray,
) -> np.ndarray:
    """An ensemble's scores float64 [N, C] in [0, 1] of predictions [M, N, C]; nan where a needed one is missing.

    reference: the members' validation predictions [M, V, C], images by themselves. study, view: [N].
    """
    total = np.zeros((len(study), weights.shape[1]))
    for m in np.flatnonzero(weights.sum(axis=1) > 0).tolist():  # one at a time: all would be as large as the pool
        (values,) = rule.values(space, predictions[m][None], reference[m][None], study, view)
        total += values * weights[m]
    return spaces.out_of(space, total)


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
    most: Annotated[int | None, cli.option("choose among so many trials; as many as memory holds")] = None,
) -> None:
    """Choose and weigh a run's trials, score the test images with them, write the submission.

    Or do so with predictions from anywhere, matched by image id and column name.

    python -m cxrlt_ray.ensemble --select greedy
    python -m cxrlt_ray.ensemble --select my.yaml --run task1-20261125-101500 --zip
    python -m cxrlt_ray.ensemble --from a.csv b.parquet --targets labels.csv --apply test_a.csv test_b.csv
    """
    if tables:
        from cxrlt_ray.ensembling.from_tables import stack

        inputs = (tables, targets, groups, apply, findings, id_column, drop_missing)
        stack(select, *inputs, out, rounds, seed, costs, explain)
        return
    if given := [name for name, value in (("--targets", targets), ("--groups", groups), ("--apply", apply)) if value]:
        raise UsageError(f"{given[0]} goes with --from, the tables of predictions to choose from.")
    if most is not None and most < 1:
        raise UsageError(f"--most is 1 or more trials to choose among, not {most}.")
    name, file = load_ensemble(select)
    check_costs(costs, file, explain)
    loaded = load_run(storage, run)
    task, manifest = loaded.task, loaded.manifest()
    split = split or task.scored_split
    scored = manifest.of_split(split)
    if not len(scored.table):
        print(f"The data has no {split} images: weights are made, no submission")
    able = split if len(scored.table) else None
    copies = COPIES + ANOTHER * (file.place() != "probability" or file.joined() != "none") + AGAIN * explain
    pool = gather(loaded, manifest, candidates(loaded, able, pruned), most=most, copies=copies)
    pool = under_tta(pool, file.tta, able, seed)
    if takes_costs(file.selector) or explain:
        pool = replace(pool, costs=read_costs(costs, pool.names) if costs else gflops(pool.trials, pool.tta))
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
            predictions = score_split(loaded, pool, needed, images.table, part, address)
            study, view = studies(images.table)
            found = [
                None
                if ((row.weights.sum(axis=1) > 0) & ~needed).any()  # a member that has not scored
                else applied(row.space, row.rule, predictions, pool.predictions, row.weights, study, view)
                for row in rows
            ]
            parts[part] = (images, found)
    _warn_of_mimic(manifest, pool, weights)
    kinds = rarity(manifest.of_cohort(MAIN).of_split("train").targets(task.findings))
    report = judge(task.findings, kinds, pool, rows, parts, rounds, seed)
    show(report, name)
    if explain:
        tell_why(task.findings, pool, rows[-1], costs or "GFLOPs", seed, store)
    _write(store, loaded, file, name, pool, rows[-1], parts.get(split), report, zip)
    _next(loaded, store, split, parts.get(split))


def _warn_of_mimic(manifest: Manifest, pool: Pool, weights: np.ndarray) -> None:
    """Say of chosen trials whose pretrained weights have seen images of MIMIC-CXR, where these are scored."""
    from cxrlt_ray.models.weights import saw_mimic

    if not manifest.source.startswith("cxrlt"):
        return
    for trial, used in zip(pool.trials, weights.sum(axis=1) > 0, strict=True):
        if used and saw_mimic(told := trial.record.weights):
            print(
                f"{trial.name}'s weights ({told}) were pretrained on images of MIMIC-CXR: where the scored images are "
                "of its training split (403 of task 2's 406 studies), the score promises too much."
            )


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
    from rich.text import Text

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
        groups.add_row(Text(NAMED.get(where, where).replace("\n", " "), style="bold"))
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
    row: Row,
    part: tuple[Manifest, list[np.ndarray | None]] | None,
    report: dict[str, Any],
    zip: bool,
) -> None:
    """Leave the ensemble's files; each is whole or not there, ensemble.json comes last."""
    from cxrlt_ray.ensembling import submission

    findings, weights = run.task.findings, row.weights
    used = np.flatnonzero(weights.sum(axis=1) > 0)
    with store.place("weights.csv") as path:
        weights_table(pool, weights, findings).to_csv(path, index=False)
    if part is not None:
        images, scores = part[0], part[1][-1]
        assert scores is not None
        ids = images.table["image_id"].to_numpy()
        scores = filled(scores)
        Predictions(ids, scores, findings, images.table["split"].iloc[0], run.record.fingerprint).write(
            store, "predictions.parquet"
        )
        frame = submission.build(ids, scores, findings)
        submission.write(store, frame, run.task, ids, zip=zip)
    store.write_json(
        "ensemble.json",
        {
            "version": VERSION,
            "name": name,
            "task": asdict(run.task),
            "run": run.store.absolute().uri,
            "fingerprint": run.record.fingerprint,
            "sizes": run.record.sizes_of_shards,
            "quality": run.record.quality,
            **kept(file, row),
            "members": [_member(pool, int(m), weights[m], findings) for m in used],
            "scores": report,
        },
    )


def kept(file: EnsembleFile, row: Row) -> dict[str, Any]:
    """An ensembles/ file as it was applied: with the space, the rule and (`chosen`) the selector that were taken.

    chosen.guard is null where all findings are weighed alike.
    """
    method = row.fitted.method
    return {
        **file.model_dump(),
        "space": row.space,
        "aggregation": row.rule.how,
        "views": None if row.rule.views is None else dict(row.rule.views),
        "chosen": {"selector": method.selector, "guard": float(method.guard)},
    }


def filled(scores: np.ndarray, say: Any = print) -> np.ndarray:
    """Scores [N, C] where images that could not be decoded get each finding's mean: a submission needs every row."""
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        say(f"{bad.sum()} image(s) could not be decoded: they get each finding's mean score (see quarantine.parquet)")
        scores = np.where(bad[:, None], np.nanmean(scores, axis=0), scores)
    return scores


def weights_table(pool: Pool, weights: np.ndarray, findings: tuple[str, ...]) -> pd.DataFrame:
    """A row a member, heaviest first: what it is, val mAP, its mean weight, then its weight per finding."""
    rows = [
        {
            "trial": trial.name,
            "backbone": trial.config.backbone,
            "resolution": trial.config.resolution,
            "loss": trial.config.loss,
            "looks": pool.passes(m),
            "val_map": round(trial.score, 4),
            "mean_weight": round(float(weight.mean()), 4),
            **dict(zip(findings, weight.round(4).tolist(), strict=True)),
        }
        for m, (trial, weight) in enumerate(zip(pool.trials, weights, strict=True))
        if weight.sum() > 0
    ]
    return pd.DataFrame(rows).sort_values("mean_weight", ascending=False, kind="stable")


def _member(pool: Pool, m: int, weights: np.ndarray, findings: tuple[str, ...]) -> dict[str, Any]:
    trial = pool.trials[m]
    return {
        "trial": trial.name,
        "resolution": trial.config.resolution,
        "tta": bool(pool.tta and pool.tta[m]),
        "checkpoints": {name: fingerprint(trial.store, name) for name in trial.checkpoints},
        "weights": dict(zip(findings, weights.tolist(), strict=True)),
    }


def fingerprint(store: Store, checkpoint: str) -> str:
    """16 hex digits of a checkpoint's weights."""
    return hashlib.sha256(store.read(f"{checkpoint}/model.safetensors")).hexdigest()[:16]


def _options(run: Run, split: str) -> Iterator[str]:
    """What evaluate must be told to read the data as the run did."""
    if split != run.task.scored_split:
        yield f" --split {split}"
    for option, usual in (("seed", 0), ("uncertain", "null")):
        if (value := getattr(run.record, option)) != usual:
            yield f" --{option} {value}"


def _next(run: Run, store: Store, split: str, part: Any) -> None:
    print(
        f"Left in {store.uri}: ensemble.json, weights.csv" + (", predictions.parquet, submission.csv" if part else "")
    )
    if part:
        print(
            f"Next: python -m cxrlt_ray.evaluate {store.uri}/submission.csv --task {run.record.task_argument} "
            f"--data {shlex.quote(run.record.data or '')}" + "".join(_options(run, split))
        )


main.many = ("--from", "--apply", "--findings")  # type: ignore[attr-defined]


if __name__ == "__main__":
    cli.run("ensemble")
