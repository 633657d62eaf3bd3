"""Trials that do not all fit into memory: which are chosen among, and that nothing is lost by it where that is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn_run import CONFIG, FINDINGS, IMAGES, make_run, write_predictions

from cxrlt_ray.data.asking import Asking
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.ensembling import shortlist
from cxrlt_ray.ensembling.compare import compare
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile
from cxrlt_ray.ensembling.pool import gather
from cxrlt_ray.errors import CxrltError, UsageError

TRIALS, ROUNDS = 24, 6
GREEDY = EnsembleFile(selector="greedy", settings={"rounds": ROUNDS}, folds=3, tta="off")


@pytest.fixture
def made(tmp_path):
    """A run of TRIALS trials of unequal noise, of which two lack images that the others have."""
    run, manifest = make_run(tmp_path)
    rng = np.random.default_rng(1)
    targets, ids = manifest.targets(FINDINGS), manifest.table["image_id"].to_numpy()
    for m in range(TRIALS):
        store = run.store / "trials" / f"T{m:04d}"
        logits = 2 * targets - 2 + rng.normal(0, rng.uniform(1, 3), targets.shape)
        kept = slice(5, None) if m in (3, 7) else slice(None, None, -1) if m == 4 else slice(None)
        write_predictions(store, ids[kept], 1 / (1 + np.exp(-logits[kept])), "val")
        trial = {"name": store.uri.rpartition("/")[2], "state": "finished", "config": CONFIG, "fingerprint": "f"}
        store.write_json("trial.json", trial | {"findings": list(FINDINGS), "val_map": 0.5})
    return run, manifest


def chosen(made, file, most, say=lambda _: None):
    run, manifest = made
    first = shortlist.first_pass_of(file, seed=0)
    return gather(run, manifest, run.trials(), say, most=most, first=first)


def test_greedy_among_the_shortlist_is_greedy_among_all(made):
    lines: list[str] = []
    pools = chosen(made, GREEDY, None), chosen(made, GREEDY, TRIALS - 4, lines.append)
    assert [len(pool.trials) for pool in pools] == [TRIALS, TRIALS - 4]
    assert len(pools[1].image_id) == IMAGES - 5
    everyone, short = (compare(GREEDY, "mine", pool, seed=0, say=lambda _: None)[-1] for pool in pools)
    by_name = dict(zip(pools[1].names, short.weights, strict=True))
    expected = dict(zip(pools[0].names, everyone.weights, strict=True))
    assert {name: row.tolist() for name, row in expected.items() if row.any()} == {
        name: row.tolist() for name, row in by_name.items() if row.any()
    }
    np.testing.assert_array_equal(short.crossed, everyone.crossed)
    assert "greedy selection among all 24 picks" in lines[-2]
    assert lines[-1] == "Left out: 5 of 600 validation images, which some trials have not scored"


def test_of_more_picks_than_may_stay_the_earliest_do(made):
    lines: list[str] = []
    pool = chosen(made, GREEDY, 3, lines.append)
    assert len(pool.trials) == 3
    assert any("Chosen among: the first 3 of the" in line for line in lines)
    ap = np.array([trial.store.uri for trial in pool.trials])
    assert sorted(ap) == list(ap)  # in the run's order


def test_other_selectors_and_a_full_disk_take_the_foremost_by_ap(made, monkeypatch):
    by_ap, lines = chosen(made, EnsembleFile(selector="nnls"), 5), []
    monkeypatch.setattr(shortlist, "has_room", lambda *size: False)
    without_room = chosen(made, GREEDY, 5, lines.append)
    assert without_room.names == by_ap.names
    assert any("TMPDIR" in line for line in lines)


def test_a_damaged_file_is_named_and_left_out_of_the_first_pass(made):
    run, _ = made
    (run.store.local / "trials" / "T0002" / "predictions" / "val.parquet").write_bytes(b"half")
    lines: list[str] = []
    pool = chosen(made, GREEDY, TRIALS - 1, lines.append)
    assert "T0002" not in pool.names
    assert len(pool.names) == TRIALS - 1
    assert sum("Left out T0002" in line for line in lines) == 1


@pytest.mark.parametrize("selector", ["greedy", "greedy_lift"])
def test_labels_of_findings_asked_for_by_text_shortlist_nobody(made, selector):
    run, manifest = made
    asking = Asking(("Edema",), ("Mass", "Nodule"), (0, 1))
    asked = replace(run, record=run.record.model_copy(update={"asking": asking}))
    assert asked.record.predicted == FINDINGS
    others = Manifest(manifest.table.assign(Edema=1 - manifest.table["Edema"]), FINDINGS, "table", manifest.root)
    file = EnsembleFile(selector=selector, folds=3, tta="off")
    names = [chosen((asked, labels), file, 5).names for labels in (manifest, others)]
    assert names[0] == names[1]
    assert chosen((run, manifest), file, 5).names != chosen((run, others), file, 5).names  # where they do choose


def test_that_cross_fitting_does_not_undo_a_shortlist_by_score_is_told(made):
    lines: list[str] = []
    chosen(made, EnsembleFile(selector="mean"), 5, lines.append)
    chosen(made, GREEDY, TRIALS - 1, lines.append)
    assert sum("cross-fitting does not undo" in line for line in lines) == 2


@pytest.mark.parametrize("rounds", [0, "many"])
def test_rounds_that_are_no_number_are_refused_before_the_first_pass(rounds):
    with pytest.raises(UsageError, match="'rounds' must be a whole number from 1 up"):
        shortlist.first_pass_of(EnsembleFile(selector="greedy", settings={"rounds": rounds}), seed=0)


def test_trials_whose_predictions_are_all_damaged_are_named(made):
    for trial in made[0].trials():
        trial.store.write("predictions/val.parquet", b"damaged")
    lines: list[str] = []
    with pytest.raises(CxrltError, match="no trial of run r has predictions that fit it"):
        chosen(made, GREEDY, 2, lines.append)
    assert sum(line.startswith("Left out T0003: ") for line in lines) == 1
