"""`ensemble --explain`: why these members, in sentences, in a file and drawn."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import cli


def cohort(skills, images=400, findings=3, prevalence=0.2, seed=0):
    """Members whose scores tell `skills` of the labels; two images a subject."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, findings)) < prevalence).astype(np.int8)
    scores = np.array(skills)[:, None, None] * targets + rng.normal(size=(len(skills), images, findings))
    return (1 / (1 + np.exp(-scores))).astype(np.float32), targets, np.arange(images) // 2


def test_explain_tells_writes_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scores, targets, groups = cohort([2.0, 1.2, 1.0, 0.6, 0.0])
    names, ids = list("abcde"), [f"i{n}" for n in range(len(targets))]
    findings = ["Edema", "Mass", "Hernia"]
    labels = pd.DataFrame(targets, columns=findings).assign(image_id=ids, subject_id=groups)
    labels.to_csv("labels.csv", index=False)
    for name, each in zip(names, scores, strict=True):
        pd.DataFrame(each, columns=findings).assign(image_id=ids).to_csv(f"{name}.csv", index=False)
    pd.DataFrame({"member": names, "cost": [5, 1, 1, 1, 1]}).to_csv("costs.csv", index=False)
    args = ["--from", *(f"{name}.csv" for name in names), "--targets", "labels.csv", "--rounds", "20"]
    with pytest.raises(SystemExit) as ended:
        cli.run("ensemble", [*args, "--costs", "costs.csv", "--explain"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for part in (
        "What each member brings",
        "Most needed",
        "the most expensive member, a",
        "What more like these are worth in mAP",
    ):
        assert part in told
    found = json.loads((tmp_path / "ensemble/explain.json").read_text())
    assert found["most_expensive"] == "a"
    assert set(found["findings"]) == set(findings)
    total = sum(member["marginal"]["value"] for member in found["members"].values())
    assert total == pytest.approx(found["macro_ap"]["value"] - found["chance"])
    assert found["members"]["a"]["findings"]["Mass"]["weight"] > 0
    assert [point["trials"] for point in found["growth"]["measured"]][-1] == 5
    assert (tmp_path / "ensemble/explain.png").read_bytes()[:4] == b"\x89PNG"
