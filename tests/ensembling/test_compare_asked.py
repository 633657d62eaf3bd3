"""Findings asked for by text: what mined labels show beside the folds of seen findings, and what they never choose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.asking import ALWAYS, MINED, SCRUBBED, Asking
from cxrlt_ray.data.manifest import META, Manifest
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.ensembling.compare_asked import compare_asked, lift_lines, mined_labels
from cxrlt_ray.ensembling.ensemble_file import EnsembleFile, load_ensemble
from cxrlt_ray.ensembling.pool import Pool, chosen_by
from cxrlt_ray.evaluation.lift import lifts
from cxrlt_ray.reporting.trials import runs_table
from cxrlt_ray.runs.records import RunRecord, TrialRecord
from cxrlt_ray.runs.store import create_run
from cxrlt_ray.storage import Store

FINDINGS, IMAGES = ("Mass", "Edema", "Bulla"), 60


def drawn(track=MINED, by_mined=False, seed=0):
    """A pool of three members; its second is the best at the asked finding, its first at the seen ones."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((IMAGES, 3)) < 0.3).astype(np.int8)
    table = pd.DataFrame([dict.fromkeys(META)] * IMAGES)
    table["image_id"], table["split"] = [f"i{n:03d}" for n in range(IMAGES)], "val"
    table[list(FINDINGS)] = targets
    manifest = Manifest(table.astype(dict.fromkeys(FINDINGS, "Int8")), FINDINGS, "table", ".")
    fold = (ALWAYS, ALWAYS) if by_mined else (0, 1)
    asking = Asking(("Bulla",), FINDINGS[:2], fold, track, by_mined)
    record = RunRecord(name="r", task=Task("asked", ("Bulla",), "test"), asking=asking)
    columns = [FINDINGS.index(name) for name in record.predicted]
    signal = np.array([[3, 3, 0], [0, 0, 3], [1, 1, 1]])[:, None] * targets
    scores = (rng.normal(size=(3, IMAGES, 3)) + signal)[:, :, columns]
    probabilities = (1 / (1 + np.exp(-scores))).astype(np.float32)
    pool = Pool(
        names=["T0000", "T0001", "T0002"],
        image_id=table["image_id"].to_numpy()[::-1],  # in another order than the manifest
        predictions=probabilities[:, ::-1],
        targets=chosen_by(manifest, record)[::-1],
        groups=np.arange(IMAGES),
        trials=[],
        study=np.arange(IMAGES),
        view=np.zeros(IMAGES, np.int64),
        findings=record.predicted,
        asking=asking,
    )
    return pool, manifest


def systems_of(pool):
    name, file = load_ensemble("greedy")
    return compare_asked(file, name, pool, 0, say=lambda line: None)


def test_mined_labels_are_shown_and_choose_nothing():
    pool, manifest = drawn()
    mined = mined_labels(manifest, pool)
    systems = systems_of(pool)
    assert systems[0].title == "best trial T0000"  # by the seen findings, not by the asked one
    lines = lift_lines(pool, systems, {}, mined)
    shown = lines[
        lines.index("Lift of the asked findings by labels mined from validation reports, which chose nothing:") :
    ]
    own = manifest.targets(FINDINGS)[::-1, 2:]
    for line, system in zip(shown[1:4], systems, strict=True):
        told = float(line.rpartition(" ")[2])
        assert told == pytest.approx(lifts(own, system.crossed[0][:, 2:])[0], abs=0.005)
    assert shown[4].startswith("  A mined label says what a report mentions")
    assert len(lines) == 4 + len(shown)
    other = dataclasses.replace(manifest, table=manifest.table.assign(Bulla=1 - manifest.table["Bulla"]))
    assert not np.array_equal(mined_labels(other, pool), mined)
    np.testing.assert_array_equal(systems_of(pool)[-1].weights, systems[-1].weights)


def test_where_mined_labels_chose_they_are_told_so_and_no_folds_are_shown():
    pool, manifest = drawn(by_mined=True)
    systems = systems_of(pool)
    assert systems[0].title == "best trial T0001"
    lines = lift_lines(pool, systems, {}, mined_labels(manifest, pool))
    assert lines[0] == (
        "Lift of the asked findings by labels mined from validation reports, which chose trials and weights:"
    )
    assert not any("seen findings" in line for line in lines)


def test_without_mined_labels_nothing_is_said_of_them():
    pool, manifest = drawn(track=SCRUBBED)
    assert mined_labels(manifest, pool) is None
    assert not any("mined" in line for line in lift_lines(pool, systems_of(pool), {}, mined_labels(manifest, pool)))
    pool, manifest = drawn()
    none = dataclasses.replace(manifest, table=manifest.table.assign(Bulla=0))
    assert mined_labels(none, pool) is None


@pytest.mark.parametrize("seed", range(6))
def test_the_rule_that_joins_a_findings_studies_is_not_chosen_by_its_own_labels(seed):
    pool, _ = drawn(track=SCRUBBED, seed=seed)
    pool = dataclasses.replace(pool, study=np.arange(IMAGES) // 2)
    file = EnsembleFile(selector="mean", aggregation="auto")
    crossed = []
    for labels in (pool.targets[:, 0], 1 - pool.targets[:, 0]):
        told = dataclasses.replace(pool, targets=np.column_stack([labels, pool.targets[:, 1:]]))
        crossed.append(compare_asked(file, "mine", told, 0, say=lambda line: None)[-1].crossed[0][:, 0])
    np.testing.assert_array_equal(*crossed)


def test_keys_that_are_of_single_findings_are_named_as_not_applied():
    pool, _ = drawn()
    said: list[str] = []
    compare_asked(EnsembleFile(selector="mean", guard=100, blend=["nnls"]), "mine.yaml", pool, 0, say=said.append)
    assert said == ["Findings without labels share one choice: mine.yaml's guard, blend do not apply"]


def test_the_table_of_runs_names_the_track_and_the_metric(tmp_path):
    from rich.console import Console

    pool, manifest = drawn()
    record = RunRecord(name="mine", task=Task("asked", ("Bulla",), "test"), asking=pool.asking)
    create_run(str(tmp_path), record, manifest, {})
    metric = {"name": "val_log_lift", "mode": "max", "title": "val log lift"}
    trial = TrialRecord(name="T0000", state="finished", metric=metric, score=0.25)
    trial.write(Store(str(tmp_path)) / "mine" / "trials" / "T0000", "trial.json")
    console = Console(width=200, record=True)
    console.print(runs_table(str(tmp_path)))
    text = console.export_text()
    assert "track" in text
    row = next(line for line in text.splitlines() if "mine" in line)
    assert "mined" in row
    assert "val log lift 0.2500" in row
