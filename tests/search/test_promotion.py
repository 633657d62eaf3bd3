"""Promotion by the ensemble: which trials go on, what a cut changes (nothing), and what is left of damaged files."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import UsageError
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.runs.predictions import Predictions
from cxrlt_ray.runs.promotion_record import FILE, PromotionRecord, rung_file
from cxrlt_ray.runs.records import EpochRecord, RunRecord, TrialRecord
from cxrlt_ray.runs.store import Trial, create_run
from cxrlt_ray.search.promotion import Promoter, check_promotion, sampled
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.space_file import load_space

FINDINGS = ("Mass", "Nodule")
RECORD = RunRecord(name="mine", task=Task("auto", FINDINGS), promote="ensemble")
IMAGES = 400
SPACE = """
trials: 9
epochs: 9
{more}
parameters: {{backbone: test_resnet, pretrained: false, resolution: 32, lr: {{low: 1e-4, high: 1e-1}}}}
"""


@pytest.fixture(scope="module")
def manifest():
    random = np.random.default_rng(0)
    rows = [
        dict.fromkeys(META)
        | {"image_id": f"i{k}", "study_id": f"s{k}", "subject_id": str(k // 2), "view": "PA", "path": f"{k}.jpg"}
        | {"split": "train" if k < 8 else "val"}
        | {finding: int(random.random() < 0.25) for finding in FINDINGS}
        for k in range(IMAGES + 8)
    ]
    return Manifest(pd.DataFrame(rows).astype(dict.fromkeys(FINDINGS, "Int8")), FINDINGS, "table", "")


@pytest.fixture
def run(tmp_path, manifest):
    return create_run(str(tmp_path / "runs"), RECORD, manifest, {})


def trained(run, name, errors, skill=1.5, epochs=1, state="running"):
    """A trial that has come so far, and leaves its predictions with the `errors` [N, C]; its score."""
    validation = run.manifest().of_split("val")
    targets = validation.targets(FINDINGS)
    scores = (1 / (1 + np.exp(1 - skill * targets - errors))).astype(np.float32)
    score = metrics.macro(metrics.per_finding(targets, scores, ("ap",))["ap"])
    store = run.store / "trials" / name
    fingerprint = run.record.fingerprint
    ids = validation.table["image_id"].to_numpy()
    Predictions(ids, scores, FINDINGS, "val", fingerprint).write(store, "predictions/val.parquet")
    curve = [EpochRecord(fold=0, stage=0, epoch=k, score=score) for k in range(epochs)]
    record = TrialRecord(name=name, state=state, findings=FINDINGS, fingerprint=fingerprint, epochs=curve, score=score)
    Trial(store, record).write(record)
    return score


def noise(seed):
    return np.random.default_rng(seed).normal(size=(IMAGES, len(FINDINGS)))


def swept(run, cut=()):
    """Twelve trials of three families, judged one after the other; before some of them the sweep is cut and resumed."""
    promoter, decisions = Promoter(run, (1, 3)), {}
    for k in range(12):
        if k in cut:
            promoter = Promoter(run, (1, 3))
            promoter.recall(run.trials())
        name = f"T{k:04d}"
        score = trained(run, name, noise(k % 3) + 0.5 * noise(100 + k), skill=1.0 + 0.1 * (k * 7 % 5))
        decisions[name] = promoter.goes_on(name, 1, score)
    return decisions


def records(run):
    return {trial.name: PromotionRecord.read(trial.store, FILE).rungs for trial in run.trials()}


def test_decisions_after_a_cut_are_those_of_a_sweep_that_was_not_cut(tmp_path, manifest, run):
    whole = swept(run)
    other = create_run(str(tmp_path / "other"), RECORD, manifest, {})
    assert swept(other, cut=(1, 4, 5, 11)) == whole
    assert records(other) == records(run)
    assert 3 <= sum(whole.values()) <= 8  # the first one goes on, and of the others about a third


def test_a_trial_that_errs_elsewhere_goes_on_among_better_ones_that_err_alike(run):
    promoter = Promoter(run, (1,))
    family = 1.5 * noise(0)
    for k in range(4):
        promoter.goes_on(f"T{k:04d}", 1, trained(run, f"T{k:04d}", family + 0.1 * noise(10 + k), skill=2.0))
    least = min(trial.score for trial in run.trials())
    copy = trained(run, "T0004", family + 0.1 * noise(20), skill=1.98)
    other = trained(run, "T0005", 1.5 * noise(1), skill=1.6)
    assert other < least
    promoter.goes_on("T0004", 1, copy)
    assert promoter.goes_on("T0005", 1, other)
    worth = {name: rungs[0].worth for name, rungs in records(run).items()}
    assert worth["T0005"] > worth["T0004"] + 0.01


def test_a_trial_is_judged_once_at_a_rung(run):
    promoter = Promoter(run, (1, 3))
    assert promoter.goes_on("T0000", 1, trained(run, "T0000", noise(0), skill=3.0))
    low = trained(run, "T0001", noise(0) + noise(1), skill=0.2)
    assert not promoter.goes_on("T0001", 1, low)
    better = trained(run, "T0001", noise(1), skill=5.0)
    assert not promoter.goes_on("T0001", 1, better)  # reported again after a fault
    assert promoter.goes_on("T0000", 2, 0.9)
    assert len(records(run)["T0001"]) == 1


def test_a_trial_that_was_stopped_but_not_ended_when_the_sweep_was_cut_is_stopped_by_the_resumed_one(run):
    promoter = Promoter(run, (1,))
    promoter.goes_on("T0000", 1, trained(run, "T0000", noise(0), skill=3.0))
    assert not promoter.goes_on("T0001", 1, trained(run, "T0001", noise(0) + noise(1), skill=0.2))
    assert Promoter(run, (1,)).recall(run.trials()) == [1]


def test_a_report_that_was_cut_off_before_its_decision_is_judged_when_the_sweep_is_resumed(run):
    promoter = Promoter(run, (1,))
    promoter.goes_on("T0000", 1, trained(run, "T0000", noise(0), skill=3.0))
    trained(run, "T0001", noise(0) + noise(1), skill=0.2)
    assert Promoter(run, (1,)).recall(run.trials()) == [1]
    assert not records(run)["T0001"][0].promoted


def missing(run, store):
    store.delete("predictions/val.parquet")


def damaged(run, store):
    store.write("predictions/val.parquet", store.read("predictions/val.parquet")[:-200])


def of_other_images(run, store):
    scores = np.full((IMAGES, 2), 0.5, np.float32)
    ids = np.array([f"other{k}" for k in range(IMAGES)])
    Predictions(ids, scores, FINDINGS, "val", run.record.fingerprint).write(store, "predictions/val.parquet")


def of_another_run(run, store):
    Predictions(np.array(["i8"]), np.full((1, 2), 0.5), FINDINGS, "val", "x").write(store, "predictions/val.parquet")


def of_another_epoch(run, store):
    trained(run, store.uri.rpartition("/")[2], noise(77), skill=0.7)


@pytest.mark.parametrize("spoil", [missing, damaged, of_other_images, of_another_run, of_another_epoch])
def test_predictions_that_cannot_be_used_leave_the_trials_own_map_and_a_line(run, spoil, capsys):
    promoter = Promoter(run, (1,))
    for k in range(3):
        promoter.goes_on(f"T{k:04d}", 1, trained(run, f"T{k:04d}", noise(k), skill=1.5))
    capsys.readouterr()
    for name, skill, goes_on in (("T0003", 3.0, True), ("T0004", 0.3, False)):
        score = trained(run, name, noise(9), skill=skill)
        spoil(run, run.store / "trials" / name)
        assert promoter.goes_on(name, 1, score) is goes_on
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"  {name} is promoted by its own mAP at epoch 1, not by the ensemble: ")
    last = trained(run, "T0005", noise(5), skill=1.5)
    promoter.goes_on("T0005", 1, last)
    assert [rungs[0].worth is None for rungs in records(run).values()] == [True, False, False, True, True, False]


def test_kept_predictions_and_decisions_that_are_damaged_cost_a_line_each(run, capsys):
    swept(run)
    (run.store / "trials" / "T0002").write(rung_file(1), b"half")
    (run.store / "trials" / "T0003").write(FILE, b"{")
    capsys.readouterr()
    promoter = Promoter(run, (1, 3))
    promoter.recall(run.trials())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " own mAP " in line or "judged again" in line] == ["T0003", "T0002"]
    score = trained(run, "T0012", noise(1), skill=2.5)
    assert promoter.goes_on("T0012", 1, score)


def test_the_scheduler_stops_at_rungs_and_at_the_end_and_minds_no_other_metric(run):
    from ray.tune.schedulers import TrialScheduler

    from cxrlt_ray.search.asha import EnsembleASHA

    scheduler = EnsembleASHA(Promoter(run, (1, 3)), "val_map", 9)

    def reported(number, **result):
        return scheduler.on_trial_result(None, SimpleNamespace(config={"number": number}), result)

    stop, going = TrialScheduler.STOP, TrialScheduler.CONTINUE
    score = trained(run, "T0000", noise(0), skill=3.0)
    assert reported(0, epoch=1, val_map=score) == going
    assert reported(0, epoch=9, val_map=score) == stop
    assert reported(1, epoch=1, val_loss=1.0) == going
    assert reported(1, epoch=1, val_map=math.nan) == going
    assert reported(1, epoch=1, val_map=trained(run, "T0001", noise(0) + noise(1), skill=0.2)) == stop


@pytest.mark.parametrize(("steps", "first"), [(1, 1), (2, 1), (9, 2), (10, 2), (55, 2)])
def test_rungs_are_those_of_rays_scheduler(tmp_path, steps, first):
    from ray.tune.schedulers import ASHAScheduler

    space = space_of(tmp_path)
    assert space.grace(steps) == first
    theirs = ASHAScheduler(
        "epoch", metric="m", mode="max", max_t=steps, grace_period=space.grace(steps), reduction_factor=3
    )
    milestones = sorted(milestone for milestone, _ in theirs._brackets[0]._rungs)
    assert list(space.rungs(steps)) == [milestone for milestone in milestones if milestone < steps]


def space_of(folder, more=""):
    path = folder / "mine.yaml"
    path.write_text(SPACE.format(more=more))
    return load_space(str(path))


@pytest.mark.parametrize(
    ("more", "changes", "words"),
    [
        ("prune: false", {}, "stops no trial early"),
        ("", {"folds": 3}, "give --folds 0"),
        ("", {"finding_folds": 3}, "asked for findings by text"),
    ],
)
def test_what_promotion_by_the_ensemble_lacks_is_refused_with_the_way_on(tmp_path, more, changes, words):
    space = dataclasses.replace(space_of(tmp_path, more), promote="ensemble")
    with pytest.raises(UsageError, match=words) as error:
        check_promotion(space, RECORD.model_copy(update=changes))
    assert "leave out --promote ensemble" in str(error.value)
    check_promotion(dataclasses.replace(space, promote="map"), RECORD.model_copy(update=changes))


def test_a_space_that_is_judged_by_another_metric_promotes_by_that(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE.format(more="promote: ensemble").replace("resolution", "objective: simclr, resolution"))
    with pytest.raises(UsageError, match="needs validation mAP"):
        check_promotion(load_space(str(path)), RECORD)


def test_a_small_search_that_a_time_budget_let_run_to_its_end_goes_on_unpromoted(tmp_path):
    space = dataclasses.replace(space_of(tmp_path), promote="ensemble", prune=False)
    check_promotion(space, RECORD.model_copy(update={"prune": False}))


def test_a_space_may_say_by_what_it_promotes_and_nothing_else(tmp_path):
    assert space_of(tmp_path).promote == "map"
    assert space_of(tmp_path, "promote: ensemble").promote == "ensemble"
    with pytest.raises(UsageError, match="promote"):
        space_of(tmp_path, "promote: best")
    with pytest.raises(UsageError, match="--promote is map or ensemble, not 'best'"):
        SweepRequest(task="auto", promote="best")


LABELS = (np.random.default_rng(3).random((2000, 4)) < [0.4, 0.1, 0.02, 0.004]).astype(np.int8)
SUBJECTS = np.arange(2000) // 3


def test_a_sample_keeps_whole_subjects_and_the_rare_positives():
    kept = sampled(LABELS, SUBJECTS, images=300, positives=20)
    assert 280 <= kept.sum() <= 300
    assert all(len(set(kept[subject == SUBJECTS])) == 1 for subject in np.unique(SUBJECTS))
    before, after = LABELS.sum(axis=0), LABELS[kept].sum(axis=0)
    assert (after >= np.minimum(before, 20)).all()


def test_a_sample_depends_on_the_seed_and_not_on_the_order_of_images():
    kept = sampled(LABELS, SUBJECTS, images=300)
    order = np.random.default_rng(0).permutation(2000)
    moved = sampled(LABELS[order], SUBJECTS[order], images=300)
    assert (moved == kept[order]).all()
    assert (sampled(LABELS, SUBJECTS, images=300, seed=1) != kept).any()
    assert sampled(LABELS, SUBJECTS, images=2000).all()
