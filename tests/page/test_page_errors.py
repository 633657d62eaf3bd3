"""The section of errors: numbers that are the run's, confusions that were planted, pictures only on request."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.shards import encode, pack
from cxrlt_ray.page import mistake_pictures
from cxrlt_ray.page.facts import Facts
from cxrlt_ray.page.records import Report
from cxrlt_ray.page.render import DRAWN, PICTURES, gathered, render
from cxrlt_ray.page.sections import errors
from cxrlt_ray.runs.records import ShardsRecord
from cxrlt_ray.runs.store import Run, load_run
from cxrlt_ray.storage import Store
from cxrlt_ray.tracking import wandb

sys.path.insert(0, str(Path(__file__).parent))
from browser_page import drawn_run

FINDINGS = ("Effusion", "Mass", "Nodule")


def with_checkpoints(folder: Path, run: Run) -> Run:
    """The run with a model in each trial, untrained, and prepared images of noise."""
    import torch

    from cxrlt_ray.models import build, save

    torch.set_num_threads(1)
    for trial in run.trials():
        config = trial.config.model_copy(update={"resolution": 128})  # a feature map of several places
        trial.write(trial.record.model_copy(update={"config": config}))
        spec = config.spec()
        save(build(spec, 3), spec, FINDINGS, Path(str(trial.store.local)) / "fold-0")
    rng = np.random.default_rng(0)
    ids = run.manifest().table["image_id"].tolist()
    drawn = [encode(rng.integers(0, 256, (40, 40)).astype(np.uint8)) for _ in ids]
    shards = Store(str(folder / "shards" / "drawn-40px"))
    shards.write("train-00000.parquet", pack(pd.DataFrame({"image": drawn, "image_id": ids})))
    packed = pd.read_parquet(folder / "shards" / "drawn-40px" / "train-00000.parquet")
    with shards.place("index.parquet") as path:
        packed[["image_id", "offset", "length"]].assign(file="train-00000.parquet").to_parquet(path, index=False)
    run.write(run.record.model_copy(update={"shards": (ShardsRecord(name="drawn-40px", size=40),)}))
    return load_run(str(folder))


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A run with checkpoints and images, and its report with pictures."""
    folder = tmp_path_factory.mktemp("pictured")
    run = with_checkpoints(folder, drawn_run(folder, trials=2, images=80, findings=FINDINGS))
    return run, gathered(Facts(run, images_shown=True, rounds=20))


def section(report: Report) -> dict:
    assert report.faults == {}
    assert "please report it" not in render(report)
    return report.sections["errors"]


def test_the_worst_mistakes_are_those_of_the_scores(tmp_path):
    facts = Facts(drawn_run(tmp_path, trials=2, findings=FINDINGS), rounds=20)
    rows = section(gathered(facts))["mistakes"]
    images = facts.honest
    for c, finding in enumerate(FINDINGS):
        targets, scores = images.targets[:, c], images.probabilities[:, c]
        own = [row for row in rows if row["finding"] == finding]
        high = sorted(scores[targets == 0], reverse=True)[:3]
        low = sorted(scores[targets == 1])[:3]
        assert [row["score"] for row in own if row["kind"] == "false alarm"] == pytest.approx(high)
        assert [row["score"] for row in own if row["kind"] == "missed"] == pytest.approx(low)
        for row in own:
            assert row["place"] == 1 + (scores[targets >= 0] > row["score"]).sum()
            assert row["labelled"] == (targets >= 0).sum()
            (n,) = np.flatnonzero(scores == row["score"])
            others = {FINDINGS[d] for d in np.flatnonzero(images.targets[n] == 1) if d != c}
            assert set(row["others"].split(", ")) - {"none"} == others


def test_a_planted_confusion_is_the_first_pair(tmp_path):
    run = drawn_run(tmp_path, trials=1, images=900, findings=FINDINGS)
    trial = run.trials()[0]
    stored = trial.stored_predictions()
    labels = run.manifest().table.set_index("image_id").loc[stored.image_id]
    stored.probabilities[:, 1] = 0.5 * stored.probabilities[:, 1] + 0.5 * labels["Effusion"].to_numpy(float)
    stored.write(trial.store, "predictions/val.parquet")
    facts = section(gathered(Facts(load_run(str(tmp_path)), rounds=20)))
    first = facts["pairs"][0]
    assert (first["finding"], first["other"], first["more"]) == ("Mass", "Effusion", True)
    assert first["ratio"]["low"] > 1
    assert facts["confused"].startswith("1 of ")
    row = next(row for row in facts["ratios"] if row["finding"] == "Mass")
    column = [row["finding"] for row in facts["ratios"]].index("Effusion")
    assert row["ratios"][column] == first["ratio"]["value"]


def test_small_cells_are_not_shown(tmp_path):
    facts = section(gathered(Facts(drawn_run(tmp_path, trials=1, images=60, findings=FINDINGS), rounds=20)))
    assert facts["pairs"] == []
    assert "Too few images" in facts["confused"]
    assert facts["mistakes"]


def test_without_test_labels_it_says_whose_errors_they_are(tmp_path):
    facts = section(gathered(Facts(drawn_run(tmp_path, trials=1, findings=FINDINGS), rounds=20)))
    assert "There are no scored test images with labels" in facts["about"]


def test_a_run_without_scores_says_so(tmp_path):
    report = gathered(Facts(drawn_run(tmp_path, trials=0, findings=FINDINGS), rounds=20))
    assert report.absent["errors"].startswith("No labelled image has been scored yet")


def test_many_findings_have_a_section_of_bounded_size(tmp_path):
    run = drawn_run(tmp_path, trials=1, images=120, findings=tuple(f"Finding {k}" for k in range(500)))
    facts = section(gathered(Facts(run, rounds=5)))
    assert len(facts["mistakes"]) <= errors.ROWS
    assert len(json.dumps(facts)) < 150_000


def test_pictures_are_shown_only_on_request_and_announced_at_the_top(pictured):
    run, report = pictured
    without = gathered(Facts(run, rounds=20))
    assert "data:image" not in render(without)
    assert "--images" in section(without)["pictured"]
    assert PICTURES not in render(without)
    page = render(report)
    assert page.index(PICTURES) < page.index("<main")
    assert DRAWN not in page
    assert wandb.PICTURE in page.encode()


def test_a_picture_is_the_image_above_its_heatmap(pictured):
    facts = section(pictured[1])
    assert 1 <= len(facts["pictures"]) <= 2 * len(FINDINGS)
    for picture in facts["pictures"]:
        content = base64.b64decode(picture["image"].removeprefix("data:image/jpeg;base64,"))
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (256, 128, 3)
        colours = np.ptp(image.astype(int), axis=2)
        assert colours[:120].mean() < colours[136:].mean() / 2
    check = facts["check"]
    assert -1 <= check["low"] <= check["mean"] <= check["high"] <= 1
    assert "random order" in facts["meaning"]


def test_no_id_and_no_path_is_in_a_page_with_pictures(pictured):
    run, report = pictured
    content = render(report) + report.model_dump_json()
    assert not re.search(r"\b(image|study|subject)-\d", content)
    assert str(run.store.uri) not in content
    assert "drawn.jpg" not in content


def test_pictures_that_would_be_too_many_bytes_are_left_out_and_counted(pictured, monkeypatch):
    every = len(section(pictured[1])["pictures"])
    monkeypatch.setattr(mistake_pictures, "BYTES", 20_000)
    facts = section(gathered(Facts(pictured[0], images_shown=True, rounds=20)))
    assert sum(len(picture["image"]) for picture in facts["pictures"]) <= 20_000
    assert f"{every - len(facts['pictures'])} more pictures are left out" in facts["pictured"]
    assert facts["pictures"]


def test_damaged_checkpoints_and_images_leave_a_sentence_and_the_numbers(tmp_path):
    run = with_checkpoints(tmp_path, drawn_run(tmp_path, trials=2, images=80, findings=FINDINGS))
    for trial in run.trials():
        (Path(str(trial.store.local)) / "fold-0" / "model.safetensors").write_bytes(b"no")
    facts = gathered(Facts(run, images_shown=True, rounds=20)).sections["errors"]
    assert re.fullmatch(r"There are no pictures: the checkpoint of T\d+ cannot be loaded \(\w+\)\.", facts["pictured"])
    assert facts["mistakes"]
    run.write(run.record.model_copy(update={"shards": ()}))
    facts = gathered(Facts(load_run(str(tmp_path)), images_shown=True, rounds=20)).sections["errors"]
    assert facts["pictured"] == "There are no pictures: the run has no prepared images."


@pytest.mark.parametrize(("value", "word"), [(0.9, "high"), (0.1, "low"), (0.5, "in between")])
def test_the_check_says_what_its_number_means(value, word):
    found = errors._check([value, value])
    assert f"correlation that is {word}:" in found["meaning"]
    assert found["check"].mean == value
