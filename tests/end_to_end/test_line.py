"""The whole line on a tiny phantom: sweep, ensemble, predict, evaluate, and what they leave behind."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_ray import cli, ensemble, evaluate, predict, sweep, trials
from cxrlt_ray.data.tasks import TASK1
from cxrlt_ray.ensembling.pool import candidates
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.runs import store
from cxrlt_ray.runs.predictions import Predictions

SPACE = """
trials: 3
epochs: 2
parameters:
  backbone: {choices: [test_convnext, test_resnet]}
  pretrained: false
  resolution: {choices: [32, 48]}
  lr: {low: 1e-3, high: 1e-2, log: true}
  loss: {choices: [bce, weighted_asl]}
  ema_decay: 0.9
start:
  - {backbone: test_convnext, resolution: 48, lr: 4e-3, loss: bce}
  - {backbone: test_resnet, resolution: 32}
"""
SAID = io.StringIO()  # what the commands print


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    from cxrlt_ray.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom") / "tree"
    write_phantom(str(folder), images=400, size=64, seed=0, say=lambda _: None)
    return str(folder)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(SPACE)
    return str(path)


@pytest.fixture(scope="module")
def storage(ray, phantom, space, tmp_path_factory):
    """A storage with the finished run `line`: three trials on task 1, a part of the validation held out."""
    folder = str(tmp_path_factory.mktemp("storage"))
    with contextlib.redirect_stdout(SAID), contextlib.redirect_stderr(SAID):
        sweep.main("task1", data=phantom, space=space, name="line", storage=folder, holdout=0.3, log_with="tensorboard")
    return folder


@pytest.fixture(scope="module")
def chosen(storage):
    """The greedy ensemble of the run, as a directory."""
    with contextlib.redirect_stdout(SAID), contextlib.redirect_stderr(SAID):
        ensemble.main(select="greedy", storage=storage, zip=True, rounds=50, pruned=True)
    return Path(storage) / "line" / "ensembles" / "greedy"


def run_of(storage):
    return store.load_run(storage, "line")


def test_every_trial_leaves_config_metrics_checkpoint_and_predictions(storage):
    run = run_of(storage)
    assert [trial.name for trial in run.trials()] == ["T0000", "T0001", "T0002"]
    for trial in run.trials():
        assert trial.state in ("finished", "pruned")
        assert {"backbone", "resolution", "lr", "loss", "seed"} <= set(trial.store.read_json("trial.json")["config"])
        assert trial.record.environment.torch
        assert trial.checkpoints == ["fold-0"]
        assert sorted(trial.store.list("fold-0")) == ["model.json", "model.safetensors"]


def test_stored_predictions_are_readable_with_pandas_and_score_what_the_trial_says(storage):
    run = run_of(storage)
    table = run.manifest().of_split("val")
    targets = pd.DataFrame(table.targets(TASK1), index=table.table["image_id"])
    for trial in run.trials():
        frame = pd.read_parquet(f"{trial.store.uri}/predictions/val.parquet").set_index("image_id")
        assert list(frame.columns) == list(TASK1)
        assert (frame.dtypes == "float32").all()
        wanted = targets.loc[frame.index].to_numpy()
        scored = [c for c in range(40) if (wanted[:, c] == 1).any()]
        value = np.mean([average_precision_score(wanted[:, c], frame.iloc[:, c]) for c in scored])
        assert value == pytest.approx(trial.score, abs=1e-9)
        assert trial.score == max(epoch.score for epoch in trial.record.epochs)


def test_the_kept_checkpoint_is_the_one_that_made_the_predictions(storage):
    from cxrlt_ray import models
    from cxrlt_ray.training.job import Job, images_of
    from cxrlt_ray.training.validation import predict_images

    run = run_of(storage)
    trial = run.trials()[0]
    frame = trial.predictions()
    model, _, findings = models.load(Path(trial.store.uri) / "fold-0")
    config = trial.record.config
    assert findings == TASK1
    images = images_of(run.manifest().of_split("val"), TASK1)
    job = Job(run.store, run.shards()[-1:], TASK1, run.record.fingerprint, gpu=False)
    again = predict_images(job, config, model.eval(), images)
    assert list(images.image_id) == list(frame.index)
    assert np.abs(again - frame.to_numpy()).max() < 1e-4


def test_the_studys_database_opens_and_agrees_with_the_store(storage):
    run = run_of(storage)
    study = optuna.load_study(study_name="line", storage=f"sqlite:///{storage}/line/optuna.db")
    assert len(study.trials) == 3
    states = {"finished": "COMPLETE", "pruned": "PRUNED"}
    assert [t.state.name for t in study.trials] == [states[t.state] for t in run.trials()]
    for told, stored in zip(study.trials, run.trials(), strict=True):  # what a pruned trial had reached is known
        assert told.intermediate_values[len(stored.record.epochs)] == pytest.approx(stored.score)
    for trial, stored in zip(study.trials, run.trials(), strict=True):
        assert trial.params == stored.record.params
        assert trial.params["lr"] == pytest.approx(stored.record.config.lr)


def test_tensorboard_has_each_trials_curve_and_the_ensembles_scores(storage, chosen):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def curves(folder):
        read = EventAccumulator(f"{storage}/line/tensorboard/{folder}").Reload()
        return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}

    for trial in run_of(storage).trials():
        epochs = [(epoch.epoch, pytest.approx(epoch.score)) for epoch in trial.record.epochs]
        assert curves(trial.name)["val_map"] == epochs
        assert curves(trial.name)["score"] == [(0, pytest.approx(trial.score))]
    scores = json.loads((chosen / "ensemble.json").read_text())["scores"]["systems"]["greedy ensemble"]
    assert curves("ensemble-greedy")["test/greedy ensemble"] == [(0, pytest.approx(scores["test"]["map"]))]


def test_start_points_were_tried_first(storage):
    first, second, _ = (trial.record.config for trial in run_of(storage).trials())
    assert (first.backbone, first.resolution, first.lr) == ("test_convnext", 48, 4e-3)
    assert (second.backbone, second.resolution) == ("test_resnet", 32)


def test_the_held_out_subjects_were_in_no_training_or_validation(storage):
    table = run_of(storage).manifest().table
    held = set(table.loc[table["split"] == "holdout", "subject_id"])
    assert held
    assert not held & set(table.loc[table["split"] != "holdout", "subject_id"])
    seen = set(run_of(storage).trials()[0].predictions().index)
    assert not seen & set(table.loc[table["split"] == "holdout", "image_id"])


def test_a_finished_run_has_nothing_to_resume_and_can_be_given_more_trials(storage, phantom, space, capsys, tmp_path):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    before = {t.name: t.record for t in run_of(storage).trials()}
    sweep.main("task1", storage=str(copy), resume=True, trials=4)
    after = {t.name: t.record for t in run_of(str(copy)).trials()}
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    assert "1 trial to go" in capsys.readouterr().out


def test_a_killed_sweep_goes_on_with_the_interrupted_trials_own_parameters(storage, tmp_path):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    run = run_of(str(copy))
    lost = run.trials()[2]
    # as kill -9 leaves it, with the head's database gone too
    lost.write(lost.record.model_copy(update={"state": "running", "epochs": [], "score": None}))
    left = lost.predictions()
    shutil.rmtree(f"{lost.store.uri}/predictions")
    (copy / "line" / "optuna.db").unlink()
    assert [trial.name for trial in candidates(run_of(str(copy)), None)] == ["T0000", "T0001"]
    with pytest.raises(UsageError, match="is of task1, not auto"):
        sweep.main("auto", storage=str(copy), resume=True)
    with pytest.raises(UsageError, match=r"made with --quality 95, not 90"):
        sweep.main("task1", storage=str(copy), resume=True, quality="90")
    with pytest.raises(UsageError, match=r"made with --sizes None, not 96"):
        sweep.main("task1", storage=str(copy), resume=True, sizes="96")
    with pytest.raises(UsageError, match=r"made with --holdout 0\.3, not 0\.5"):
        sweep.main("task1", storage=str(copy), resume=True, holdout=0.5)
    sweep.main("task1", storage=str(copy), resume=True)
    found = run_of(str(copy)).trials()
    assert [trial.name for trial in found] == ["T0000", "T0001", "T0002"]
    assert found[2].record.params == lost.record.params
    assert found[2].state == lost.state
    pd.testing.assert_frame_equal(found[2].predictions(), left, check_exact=True)
    study = optuna.load_study(study_name="line", storage=f"sqlite:///{copy}/line/optuna.db")
    assert [trial.params for trial in study.trials] == [trial.record.params for trial in found]


def test_the_submission_has_the_tasks_columns_and_every_test_image(chosen, storage):
    submission = pd.read_csv(chosen / "submission.csv")
    assert list(submission.columns) == ["dicom_id", *TASK1]
    wanted = run_of(storage).manifest().of_split("test").table["image_id"]
    assert sorted(submission["dicom_id"]) == sorted(wanted)
    values = submission[list(TASK1)].to_numpy()
    assert np.isfinite(values).all()
    assert ((values >= 0) & (values <= 1)).all()
    import zipfile

    assert zipfile.ZipFile(chosen / "submission.zip").namelist() == ["submission.csv"]


def test_weights_of_every_finding_sum_to_one_and_make_the_predictions(chosen, storage):
    about = json.loads((chosen / "ensemble.json").read_text())
    weights = pd.DataFrame({member["trial"]: member["weights"] for member in about["members"]})
    assert np.allclose(weights.sum(axis=1), 1)
    run = run_of(storage)
    made = pd.read_parquet(chosen / "predictions.parquet").set_index("image_id")
    combined = 0.0
    for trial in run.trials():
        if trial.name in weights:
            frame = trial.predictions("test").loc[made.index]
            combined = combined + frame.to_numpy(float) * weights[trial.name].loc[list(frame.columns)].to_numpy()
    assert np.abs(combined - made.to_numpy()).max() < 1e-6
    readable = pd.read_csv(chosen / "weights.csv")
    assert set(readable["trial"]) == set(weights)


def test_the_report_holds_optimistic_cross_fitted_holdout_and_test_scores(chosen):
    scores = json.loads((chosen / "ensemble.json").read_text())["scores"]
    assert list(scores["images"]) == ["optimistic", "cross_fitted", "holdout", "test"]
    for system in scores["systems"].values():
        for where, score in system.items():
            assert 0 < score["map"] < 1
            few = score["low"] is None  # positive subjects, to give an interval
            assert few or score["low"] <= score["map"] <= score["high"], where
    assert len(scores["systems"]) == 3


def test_choosing_again_scores_no_image_again(chosen, storage, capsys):
    ensemble.main(select="greedy", storage=storage, rounds=10, explain=True, pruned=True)
    told = capsys.readouterr().out
    assert "Scoring" not in told
    assert "cost, GFLOPs" in told
    why = json.loads((chosen / "explain.json").read_text())
    assert set(why["members"]) == {
        member["trial"] for member in json.loads((chosen / "ensemble.json").read_text())["members"]
    }
    assert all(member["cost"] > 0 for member in why["members"].values())
    assert (chosen / "explain.png").exists()


def test_pruned_trials_are_chosen_among_only_where_asked_for_or_too_few_finished(storage, tmp_path):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    run, told = run_of(str(copy)), []
    for trial, state in zip(run.trials(), ("finished", "pruned", "finished"), strict=True):
        trial.write(trial.record.model_copy(update={"state": state}))

    def names(**options):
        return [trial.name for trial in candidates(run, None, say=told.append, **options)]

    assert names() == ["T0000", "T0002"]
    assert "Left out: 1 pruned trial (--pruned" in told[-1]
    assert names(pruned=True) == ["T0000", "T0001", "T0002"]
    trial = run.trials()[2]
    trial.write(trial.record.model_copy(update={"state": "pruned"}))
    assert names() == ["T0000", "T0001", "T0002"]


def test_without_images_to_score_trials_that_can_score_new_ones_are_chosen(storage, tmp_path):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    trials = run_of(str(copy)).trials()
    for trial, able in ((trials[0], ["T0001", "T0002"]), (trials[2], ["T0001"]), (trials[1], None)):
        for folder in Path(trial.store.uri).glob("fold-*"):
            shutil.rmtree(folder)
        chosen = [trial.name for trial in candidates(run_of(str(copy)), None, pruned=True)]
        assert chosen == (able or ["T0000", "T0001", "T0002"])  # where none is able, weights can still be made


@pytest.mark.parametrize("select", ["mean", "best"])
def test_other_selections_leave_ensembles_of_their_own(storage, chosen, select):
    ensemble.main(select=select, storage=storage, rounds=10, pruned=True)
    about = json.loads((Path(storage) / "line" / "ensembles" / select / "ensemble.json").read_text())
    assert len(about["members"]) == {"mean": 3, "best": 1}[select]
    assert (Path(storage) / "line" / "ensembles" / select / "submission.csv").exists()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("space: logit", marks=pytest.mark.slow),
        pytest.param("space: rank", marks=pytest.mark.slow),
        pytest.param("views: {LATERAL: 0.5}", marks=pytest.mark.slow),
        "space: rank\naggregation: noisy_or",
        "aggregation: auto\nviews: learned",
    ],
)
def test_an_ensemble_of_another_kind_predicts_new_images_as_the_test_images(storage, chosen, phantom, tmp_path, how):
    path = tmp_path / "mine.yaml"
    path.write_text(f"selector: greedy\n{how}\nguard: 5\n")
    ensemble.main(select=str(path), storage=storage, rounds=10, pruned=True)
    folder = Path(storage) / "line" / "ensembles" / "mine"
    out = str(tmp_path / "out")
    Path(out).mkdir()
    for former in ("submission.zip", "asked.csv"):
        (Path(out) / former).write_text("of other images")
    predict.main(str(folder / "ensemble.json"), phantom, split="test", storage=str(tmp_path / "other"), out=out)
    assert not (Path(out) / "submission.zip").exists()
    assert not (Path(out) / "asked.csv").exists()
    first, second = (
        pd.read_parquet(f"{each}/predictions.parquet").set_index("image_id").sort_index() for each in (folder, out)
    )
    pd.testing.assert_frame_equal(first, second, atol=1e-6)


def test_images_without_any_table_can_be_scored(storage, chosen, phantom, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    for path in list(Path(phantom).rglob("*.jpg"))[:5]:
        shutil.copy(path, folder)
    predict.main(str(chosen / "ensemble.json"), str(folder), out=str(tmp_path / "out"), storage=str(tmp_path))
    found = pd.read_csv(tmp_path / "out" / "submission.csv")
    assert sorted(found["dicom_id"]) == sorted(path.stem for path in folder.iterdir())


def test_no_file_but_those_that_are_for_it_holds_an_id(storage, chosen):
    """docs/security.md names those. Ray's own logs and what is printed are looked through as well."""
    import ray

    table = run_of(storage).manifest().table
    ids = {str(value).encode() for column in ("image_id", "subject_id", "study_id") for value in table[column]}

    def held(content):
        return ids & set(re.findall(rb"(?<![0-9])[0-9]{8}(?![0-9])|[0-9a-f]{8}(?:-[0-9a-f]{8}){4}", content))

    assert held((chosen / "submission.csv").read_bytes())
    assert "[3/3]" in SAID.getvalue()
    assert "greedy ensemble" in SAID.getvalue()
    assert not held(SAID.getvalue().encode())
    for_it = ("manifest.parquet", "predictions.parquet", "submission.csv", "submission.zip")
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    files = [path for path in [*Path(storage).rglob("*"), *logs.rglob("*")] if path.is_file()]
    others = [path for path in files if path.name not in for_it and path.parent.name != "predictions"]
    others = [path for path in others if "shards" not in path.parts or path.suffix == ".json"]
    assert len(others) > 20
    assert not [path for path in others if held(path.read_bytes())]


def test_evaluate_gives_the_test_score_that_the_ensemble_gave(chosen, phantom, tmp_path, capsys):
    evaluate.main(str(chosen / "submission.csv"), task="task1", data=phantom, out=str(tmp_path / "scores.json"))
    told = capsys.readouterr().out
    scores = json.loads((chosen / "ensemble.json").read_text())["scores"]["systems"]["greedy ensemble"]["test"]
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]["map"] == pytest.approx(scores["map"], abs=1e-6)
    assert "phantom" in told


def test_predictions_of_another_cohort_are_named_and_left_out(storage, tmp_path, capsys):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    run = run_of(str(copy))
    victim = run.trials()[1]
    frame = victim.predictions()
    elsewhere = Predictions(frame.index.to_numpy(), frame.to_numpy(), TASK1, "val", "0" * 16)
    elsewhere.write(victim.store, "predictions/val.parquet")
    ensemble.main(select="mean", storage=str(copy), rounds=10)
    told = capsys.readouterr().out
    assert "Left out T0001" in told
    assert "made on another cohort" in told


def test_trials_without_a_checkpoint_are_counted_and_not_chosen(storage, tmp_path, capsys):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    for path in (copy / "line" / "trials").glob("*/predictions/test.parquet"):
        path.unlink()
    shutil.rmtree(copy / "line" / "trials" / "T0002" / "fold-0")
    ensemble.main(select="mean", storage=str(copy), rounds=10)
    assert "not chosen: 1 trial" in capsys.readouterr().out
    about = json.loads((copy / "line" / "ensembles" / "mean" / "ensemble.json").read_text())
    assert [member["trial"] for member in about["members"]] == ["T0000", "T0001"]


def test_ensemble_and_predict_give_machines_their_paths_and_scores(storage, chosen, phantom, tmp_path, capsys):
    def last(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.run(words[0], [*words[1:], "--storage", storage, "--json"])
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert exit.value.code == events[-1]["exit_code"] == 0
        return events[-1]

    made = last("ensemble", "--select", "greedy", "--rounds", "50", "--pruned", "--zip")
    scores = json.loads((chosen / "ensemble.json").read_text())["scores"]["systems"]["greedy ensemble"]
    assert made["map"]["test"]["value"] == pytest.approx(scores["test"]["map"])
    out = str(tmp_path / "out")
    words = ["--ensemble", str(chosen / "ensemble.json"), "--data", phantom, "--split", "test", "--out", out]
    assert all(Path(path).exists() for path in last("predict", *words)["paths"])


def test_a_changed_checkpoint_is_refused_by_predict(storage, chosen, phantom, tmp_path):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    about = json.loads((chosen / "ensemble.json").read_text())
    path = copy / "line" / "ensembles" / "greedy" / "ensemble.json"
    path.write_text(json.dumps({**about, "run": str(copy / "line")}))
    model = copy / "line" / "trials" / about["members"][0]["trial"] / "fold-0" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CxrltError, match="changed since"):
        predict.main(str(path), phantom, out=str(tmp_path / "out"), storage=str(tmp_path))


def test_a_run_without_a_finished_trial_is_told_with_the_way_on(storage, tmp_path):
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    shutil.rmtree(copy / "line" / "trials")
    with pytest.raises(CxrltError, match=r"no finished trial.*--resume"):
        ensemble.main(storage=str(copy))


def test_runs_and_trials_are_listed(storage, capsys):
    trials.main(storage=storage)
    assert "line" in capsys.readouterr().out
    trials.main("line", storage=storage)
    told = capsys.readouterr().out
    assert all(name in told for name in ("T0000", "T0001", "T0002", "test_convnext"))
    with pytest.raises(UsageError, match=r"no run 'nope'.*line"):
        trials.main("nope", storage=storage)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Another phantom, which poses as NIH's images."""
    from cxrlt_ray.phantom import write_phantom

    folder = tmp_path_factory.mktemp("elsewhere") / "tree"
    write_phantom(str(folder), images=400, size=64, seed=1, say=lambda _: None)
    return f"nih=phantom:{folder}"


def test_an_ensemble_is_compared_by_group_and_with_another_site(chosen, elsewhere, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    scores = evaluate.run(
        evaluate.EvaluateRequest(
            submission=str(chosen), external=[elsewhere], by="sex,age,cohort", min_group=5, rounds=50, out=str(out)
        )
    )
    printed = capsys.readouterr().out
    assert "By sex" in printed
    assert "nih: " in printed
    alone = evaluate.run(evaluate.EvaluateRequest(submission=str(chosen), rounds=50))
    assert scores.scores == pytest.approx(alone.scores, nan_ok=True)
    assert set(scores.by_group.common) == {"sex", "age"}  # cohort is what sites are compared by
    site = scores.sites[0]
    assert {drop.finding for drop in site.drops} - {"mean"} <= set(TASK1)
    assert "Fracture" in site.not_labelled
    table = pd.read_csv(tmp_path / "scores.sites.csv").set_index("finding")
    assert table.loc["mean", "ap_difference"] == pytest.approx(site.drops[0].differences["ap"].value)
    # scored by the same ensemble as predict scores them
    folder = elsewhere.removeprefix("nih=phantom:")
    predict.main(str(chosen / "ensemble.json"), folder, split="test", out=str(tmp_path / "out"), storage=str(tmp_path))
    new = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("image_id")
    kept = pd.read_parquet(chosen / "sites" / "nih" / "predictions.parquet").set_index("image_id")
    new.index = "nih/" + new.index
    pd.testing.assert_frame_equal(kept, new.loc[kept.index], atol=1e-5)


def test_a_site_is_scored_once(chosen, elsewhere, capsys):
    request = evaluate.EvaluateRequest(submission=str(chosen / "ensemble.json"), external=[elsewhere], rounds=20)
    first = evaluate.run(request)
    capsys.readouterr()
    again = evaluate.run(request)
    assert "are read from" in capsys.readouterr().out
    assert again.sites[0].frame().equals(first.sites[0].frame())


def test_home_itself_is_no_other_site(chosen, phantom):
    with pytest.raises(CxrltError, match="has no image to score"):
        evaluate.main(str(chosen), external=[f"nih=phantom:{phantom}"])
