"""Trials score under test-time augmentation where that helps by more than chance, or where it is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_run import make_run, write_predictions
from sklearn.metrics import average_precision_score

from cxrlt_ray.ensembling.pool import gather
from cxrlt_ray.ensembling.tta import under_tta
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.cost import gflops


@pytest.fixture
def made(tmp_path):
    return make_run(tmp_path)


def gathered(made):
    return gather(*made, made[0].trials())


def test_augmentations_that_help_are_taken_and_others_refused_each_with_its_price(made):
    told, plain = [], gathered(made)
    found = under_tta(plain, "auto", say=told.append)
    assert found.tta == (True, False, False)
    assert told[0].startswith("T0000 TTA of 2 passes: +.")
    assert told[0].endswith("at 2.1 times the price: taken")
    assert "T0001 TTA of 2 passes: -." in told[1]
    assert told[1].endswith("refused")
    assert len(told) == 2
    augmented = made[0].trials()[0].predictions("val-tta").loc[found.image_id].to_numpy()
    assert np.array_equal(found.predictions[0], augmented)
    assert np.array_equal(found.predictions[1:], plain.predictions[1:])
    assert not np.array_equal(plain.predictions[0], augmented)  # the pool that was given is as it was
    assert found.split_of(0, "test") == "test-tta"
    assert found.split_of(1, "test") == "test"
    gain = float(told[0].split(": ")[1].split()[0])
    assert gain == pytest.approx(macro(plain, augmented) - macro(plain, plain.predictions[0]), abs=6e-4)


def macro(given, scores):
    return np.mean([average_precision_score(t, s) for t, s in zip(given.targets.T, scores.T, strict=True)])


def test_scores_in_the_same_order_gain_nothing_and_are_refused(made):
    trial = made[0].trials()[0]
    scores = trial.predictions()
    write_predictions(trial.store, scores.index, scores.to_numpy() ** 0.5, "val-tta")
    told = []
    assert under_tta(gathered(made), "auto", say=told.append).tta == (False,) * 3
    assert "+.000 [+.000, +.000] at 2.1 times the price: refused" in told[0]


@pytest.mark.parametrize(
    ("passes", "flip", "sign", "taken"),
    [(2, 0.5, 1, True), (2, 0.5, -1, True), (2, 0.0, 1, False), (2, 0.0, -1, False), (10, 0.5, 1, False)],
)
def test_a_standard_error_decides_for_a_known_mirror_image_and_against_all_else(made, passes, flip, sign, taken):
    trial = made[0].trials()[0]
    trial.record.tta = trial.record.tta.model_copy(update={"augmentations": passes})
    trial.record.config = trial.record.config.model_copy(update={"flip": flip})
    trial.store.write_json("trial.json", trial.record.model_dump(mode="json"))
    frame, plain = trial.predictions(), gathered(made)
    before = macro(plain, plain.predictions[0])
    changed = (frame + np.random.default_rng(seed).normal(0, 0.02, frame.shape) for seed in range(100))
    little = (
        scores
        for scores in changed
        if 0.0003 < sign * (macro(plain, scores.loc[plain.image_id].to_numpy()) - before) < 0.001
    )
    write_predictions(trial.store, frame.index, next(little).to_numpy(), "val-tta")
    told = []
    found = under_tta(gathered(made), "auto", say=told.append)
    assert told[0].startswith(f"T0000 TTA of {passes} passes: {'+' if sign > 0 else '-'}.")
    assert found.tta[0] is taken


def test_on_takes_all_there_are_and_off_none(made):
    told, plain = [], gathered(made)
    assert under_tta(plain, "on", say=told.append).tta == (True, True, False)
    assert told == ["Test-time augmentation: 2 of 3 trials score an image several times; T0002 cannot"]
    assert under_tta(plain, "off") is plain
    assert plain.split_of(0, "test") == "test"


def test_on_without_any_is_refused_with_the_way_to_it(made):
    for trial in made[0].trials()[:2]:
        (Path(trial.store.uri) / "predictions/val-tta.parquet").unlink()
    with pytest.raises(UsageError, match=r"which T0000, T0001, T0002 lack: sweep a space that has `tta`"):
        under_tta(gathered(made), "on")
    assert under_tta(gathered(made), "auto").tta == (False,) * 3


def test_a_trial_that_cannot_score_test_images_so_scores_plainly(made):
    run, _ = made
    shutil.rmtree(f"{run.store.uri}/trials/T0000/fold-0")
    told = []
    assert under_tta(gathered(made), "auto", "test", say=told.append).tta == (False,) * 3
    assert told[0] == "T0000 scores plainly: its checkpoint was dropped, test images cannot be scored otherwise"
    store = run.store / "trials" / "T0000"
    write_predictions(store, ["t0"], np.full((1, 3), 0.5), "test-tta")  # but it has scored them
    assert under_tta(gathered(made), "auto", "test").tta == (True, False, False)
    assert under_tta(gathered(made), "auto", None).tta == (True, False, False)


def test_predictions_that_do_not_fit_are_told_and_left(made):
    short, other = made[0].trials()[:2]
    frame = short.predictions("val-tta")
    write_predictions(short.store, frame.index[:10], frame.to_numpy()[:10], "val-tta")
    write_predictions(other.store, frame.index, frame.to_numpy(), "val-tta", fingerprint="another")
    told = []
    assert under_tta(gathered(made), "auto", say=told.append).tta == (False,) * 3
    assert told[0] == "T0000 scores plainly: its predictions under test-time augmentation lack images"
    assert told[1].startswith("T0001 scores plainly: ")
    assert "made on another cohort" in told[1]


def test_augmentations_are_paid_for(made):
    trials = made[0].trials()
    plain = gflops(trials)
    assert (plain > 0).all()
    assert np.allclose(gflops(trials, (True, False, False)), plain * [2, 1, 1])
