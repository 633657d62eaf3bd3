"""`sweep --boxes`, findings asked for by text by models that learn where findings are, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from test_zero_shot import ASKED, SEEN, write_cohort

from cxrlt_ray import sweep
from cxrlt_ray.errors import UsageError
from cxrlt_ray.text.embedding_store import text_keys

SPACE = """
trials: 1
epochs: 1
prune: false
parameters:
  backbone: test_convnext
  pretrained: false
  resolution: 32
  batch_size: 8
  lr: 1e-3
  head: {head}
  text: minilm
  objective: {objective}
"""
HEAD = "image_id,finding,x,y,width,height\n"


def request(tmp_path, objective, head, **options):
    (tmp_path / "grounded.yaml").write_text(SPACE.format(objective=objective, head=head))
    given = {"task": "auto", "data": str(tmp_path / "data"), "space": str(tmp_path / "grounded.yaml"), "name": "mine"}
    given |= {"ask": ",".join(ASKED), "finding_folds": 2, "storage": str(tmp_path / "runs")}
    return sweep.SweepRequest(**{**given, **options})


def write_boxes(folder):
    """A box of a seen finding in a training image, and one of an asked one."""
    (folder / "boxes.csv").write_text(f"{HEAD}i000,{SEEN[0]},4,8,16,20\ni001,{ASKED[0]},4,8,16,20\n")
    return str(folder / "boxes.csv")


def test_asked_findings_are_grounded_and_the_run_keeps_the_boxes_of_seen_ones(ray, tmp_path, capsys):
    write_cohort(tmp_path / "data")
    boxes = write_boxes(tmp_path)
    run = sweep.run(request(tmp_path, "zero_shot_grounding", "film", boxes=boxes))
    assert "Boxes: 1 of 2 boxes, in 1 training images" in capsys.readouterr().out
    assert run.record.boxes.startswith(f"{boxes} (sha256 ")
    assert run.store.exists("boxes.parquet")
    (trial,) = run.trials()
    assert (trial.state, trial.record.metric.name) == ("finished", "val_log_lift")
    predictions = trial.predictions()
    assert predictions.columns.tolist() == list(run.record.predicted)
    again = {"task": "auto", "name": "mine", "storage": str(tmp_path / "runs"), "resume": True}
    (tmp_path / "other.csv").write_text(f"{HEAD}i001,{SEEN[0]},4,8,16,20\n")
    with pytest.raises(UsageError, match="was made with --boxes"):
        sweep.run(sweep.SweepRequest(**again, boxes=str(tmp_path / "other.csv")))
    assert np.isfinite(predictions[list(SEEN)].to_numpy()).any()


@pytest.mark.parametrize(
    ("objective", "head"), [("zero_shot_stated_grounding", "film"), ("zero_shot_stated", "bilinear")]
)
def test_sentences_of_reports_are_phrases_and_their_embeddings_are_kept(ray, tmp_path, objective, head):
    table = pd.read_csv(write_cohort(tmp_path / "data") / "labels.csv")
    said = [f"There is {'a' if row.Mass else 'no'} mass. Lungs are clear." for row in table.itertuples()]
    table.assign(text=said)[["study_id", "text"]].to_csv(tmp_path / "reports.csv", index=False)
    given = {"reports": str(tmp_path / "reports.csv"), "track": "reports"}
    run = sweep.run(request(tmp_path, objective, head, **given))
    (trial,) = run.trials()
    assert trial.state == "finished"
    assert np.isfinite(trial.predictions().to_numpy()).all()
    kept = np.concatenate([load_file(path)["texts"] for path in tmp_path.glob("runs/features/*/texts-*.safetensors")])
    assert text_keys(["There is a mass."]).tobytes() in {row.tobytes() for row in kept}


@pytest.mark.parametrize(
    ("objective", "head", "options", "told"),
    [
        (
            "grounding",
            "film",
            {},
            "objective grounding.*need objective zero_shot or zero_shot_grounding or zero_shot_lo",
        ),
        ("zero_shot_grounding", "film", {"ask": None, "finding_folds": None}, "trains models to be asked by text"),
        (
            "zero_shot",
            "film",
            {"boxes": "boxes.csv"},
            "--boxes: search space grounded has no objective that learns them",
        ),
        ("zero_shot_grounding", "film", {"reports": "r.csv"}, "--reports: search space grounded has no objective that"),
        ("zero_shot_grounding", "query_decoder", {}, "looks into head film, not query_decoder"),
        ("zero_shot_location", "film", {}, "looks into head query_decoder, not film"),
        ("zero_shot_location", "query_decoder", {"track": "reports"}, "--track reports learns from reports: give"),
        ("zero_shot_stated_grounding", "film", {"track": "reports"}, "--track reports learns from reports: give"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path, objective, head, options, told):
    write_cohort(tmp_path / "data")
    with pytest.raises(UsageError, match=told):
        sweep.run(request(tmp_path, objective, head, **options))
    assert not (tmp_path / "runs/mine/run.json").exists()
