"""Noisy Student whole on tiny images: a teacher, its pseudo-labels of two cohorts, a student; and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray import ensemble, pseudo, sweep
from cxrlt_ray.data.soft_targets import SoftTargets, read_soft_targets
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.objectives.noisy_student import NoisyStudent
from cxrlt_ray.objectives.registry import ObjectiveSpec
from cxrlt_ray.runs.store import load_run
from cxrlt_ray.search.run_data import run_data, soft_targets_for
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store
from cxrlt_ray.training.job import Job, training_images

SPACE = """
trials: 2
epochs: 1
prune: false
parameters:
  backbone: {choices: [test_convnext, test_resnet]}
  pretrained: false
  resolution: 32
  batch_size: 8
  lr: 1e-3
  objective: noisy_student
  cohorts: all
start: [{backbone: test_convnext}, {backbone: test_resnet}]
"""
COLUMNS = ["image_id", "path", "subject_id", "study_id", "view", "split", "Mass", "Nodule"]
MAPPING = "name: other\nreader: table\nfindings: {Mass: Mass, Nodule: Nodule}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """main: 64 images; other: 24, of which every second lacks Nodule; plain: 6 without labels; and the space."""
    folder = tmp_path_factory.mktemp("student")
    write_images(folder / "main", 64).table[COLUMNS].to_csv(folder / "main" / "labels.csv", index=False)
    other = write_images(folder / "other", 24, seed=1).table[COLUMNS]
    other["image_id"] = "o" + other["image_id"]
    other.loc[::2, "Nodule"] = pd.NA
    other.to_csv(folder / "other" / "labels.csv", index=False)
    write_images(folder / "plain", 6, seed=2)
    (folder / "tiny.yaml").write_text(SPACE)
    (folder / "other.yaml").write_text(MAPPING)
    return folder


def cohorts(place):
    return [f"{place}/other.yaml={place}/other", f"images={place}/plain"]


def student(place, name="student", **options):
    given = {"data": f"{place}/main", "space": f"{place}/tiny.yaml", "name": name, "storage": f"{place}/runs"}
    return sweep.SweepRequest(task="auto", **{**given, "trials": 1, **options})


@pytest.fixture(scope="module")
def teacher(ray, place):
    """The ensemble of two trials of run `teacher`, as a directory."""
    with contextlib.redirect_stdout(io.StringIO()):
        sweep.run(student(place, "teacher", trials=2, holdout=0.3))
        ensemble.run(ensemble.EnsembleRequest(select="mean", storage=f"{place}/runs", rounds=20))
    return f"{place}/runs/teacher/ensembles/mean"


@pytest.fixture(scope="module")
def soft(place, teacher):
    """The soft pseudo-labels of both cohorts, and their file."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        made = pseudo.run(pseudo.PseudoRequest(ensemble=teacher, cohort=cohorts(place), out=f"{place}/pseudo"))
    return made, f"{place}/pseudo/{made.teacher.key}.parquet", said.getvalue()


def test_cells_without_a_label_are_filled_and_no_other(place, soft):
    made, file, said = soft
    labels = pd.read_csv(place / "other" / "labels.csv")
    empty = labels["Nodule"].isna().to_numpy()
    table = made.table.reindex("other/" + labels["image_id"])
    assert table["Nodule"].notna().to_numpy().tolist() == empty.tolist()
    assert table["Mass"].isna().all()
    plain = made.table[made.table.index.str.startswith("images/")]
    assert len(plain) == 6
    assert plain.notna().all(axis=None)
    assert len(made.table) == empty.sum() + 6
    assert "To label: 12 images of cohort other, 12 cells without a label" in said
    assert "--soft-targets" in said.splitlines()[-1]
    again = read_soft_targets(file)
    pd.testing.assert_frame_equal(again.table, made.table, check_index_type=False)
    assert again.teacher == made.teacher
    assert oct(Path(file).parent.stat().st_mode)[-3:] == "700"


def test_hard_labels_need_no_second_pass_and_leave_the_middle_out(place, teacher, soft, capsys):
    request = pseudo.PseudoRequest(
        ensemble=teacher, cohort=cohorts(place), out=f"{place}/pseudo", values="hard", keep=0.5
    )
    hard = pseudo.run(request)
    assert "scores of these images are there already" in capsys.readouterr().out
    assert set(np.unique(hard.table.to_numpy())[:2]) <= {0.0, 1.0}
    nodule = hard.table["Nodule"][hard.table.index.str.startswith("other/")].dropna()
    assert len(nodule) == 6  # of 12 cells
    values = soft[0].table["Nodule"]
    assert values[nodule.index[nodule == 1]].min() >= values[nodule.index[nodule == 0]].max()


def test_the_report_compares_with_known_cells_of_the_cohort(place, soft):
    report = json.loads((place / "pseudo" / f"{soft[0].teacher.key}.json").read_text())
    assert [part["name"] for part in report["cohorts"]] == ["validation", "images", "other"]
    labels = pd.read_csv(place / "other" / "labels.csv")
    asked = labels[labels["Nodule"].isna()]
    mass, nodule = report["cohorts"][2]["findings"]
    assert (mass["cells"], mass["positives"]) == (len(asked), asked["Mass"].sum())
    assert mass["filled"] == 0
    assert (nodule["cells"], nodule["filled"]) == (0, len(asked))
    assert 0 <= mass["brier"] <= 1
    assert mass["low"] <= mass["ratio"]


def test_a_student_learns_outside_cells_and_unlabelled_images_and_its_labels_stay(place, soft, tmp_path, capsys):
    request = student(place, soft_targets=soft[1], cohort=cohorts(place), holdout=0.3)
    data = run_data(request, load_space(request.space), 0, soft_targets_for(request, load_space(request.space)))
    assert "Pseudo-labels: 24 cells without a label in 18 images" in capsys.readouterr().out
    images = training(data.manifest, data.soft, Store(str(tmp_path)))
    assert sum(name.startswith("images/") for name in images.image_id) == 6
    made = NoisyStudent(ObjectiveSpec(objective="noisy_student"), images.targets, images.soft)
    table, labelled = made.table(), images.targets >= 0
    np.testing.assert_array_equal(table[labelled], images.targets[labelled])
    np.testing.assert_array_equal(table[~labelled], soft[0].at(images.image_id, ("Mass", "Nodule"))[~labelled])
    assert (table >= 0).all()
    np.testing.assert_array_equal(made.counts[0], (images.targets == 1).sum(axis=0))


def training(manifest, soft, store):
    """The training images of a run's only model, of all cohorts."""
    soft.write(store)
    return training_images(manifest, Job(store, (), ("Mass", "Nodule"), "", soft_targets=True), 0, "all")


def test_without_pseudo_labels_the_space_trains_the_teacher_on_labels(place, teacher):
    run = load_run(f"{place}/runs", "teacher")
    assert run.record.soft_targets is None
    assert {trial.record.config.objective for trial in run.trials()} == {"noisy_student"}


def test_test_images_are_for_those_who_ask_and_flagged_in_all_that_follows(place, teacher, tmp_path, capsys):
    with pytest.raises(UsageError, match="nothing to pseudo-label: every training image of run teacher has all labels"):
        pseudo.run(pseudo.PseudoRequest(ensemble=teacher, out=f"{place}/pseudo"))
    made = pseudo.run(pseudo.PseudoRequest(ensemble=teacher, on="test", values="raw", out=f"{place}/pseudo"))
    assert "TRANSDUCTIVE" in capsys.readouterr().out
    assert made.teacher.transductive
    assert "TRANSDUCTIVE" in made.provenance
    expected = pd.read_parquet(f"{teacher}/predictions.parquet").set_index("image_id")  # of the plain mean, too
    np.testing.assert_allclose(made.table.loc[expected.index], expected, atol=1e-5)
    run = sweep.run(student(place, "seen", soft_targets=f"{place}/pseudo/{made.teacher.key}.parquet", holdout=0.3))
    said = capsys.readouterr().out
    assert "TRANSDUCTIVE: 16 test images train by pseudo-labels" in said
    assert "TRANSDUCTIVE: test images trained these models" in said
    assert run.record.soft_targets == made.provenance
    assert load_run(f"{place}/runs", "seen").record.transductive
    (trial,) = run.trials()
    assert trial.state == "finished"
    images, table = training(run.manifest(), made, Store(str(tmp_path))), run.manifest().table.set_index("image_id")
    test = table.loc[images.image_id, "split"].to_numpy() == "test"
    assert test.sum() == 16
    assert (images.targets[test] == -1).all()  # their labels are in the data, and not learnt
    assert (images.targets[~test] >= 0).all()
    stacked = ensemble.run(ensemble.EnsembleRequest(select="mean", storage=f"{place}/runs", run="seen", rounds=20))
    assert "TRANSDUCTIVE" in capsys.readouterr().out
    assert json.loads((Path(stacked.store.uri) / "ensemble.json").read_text())["transductive"]


def test_a_plan_and_a_smoke_start_from_what_there_is(place, teacher, capsys):
    assert pseudo.run(pseudo.PseudoRequest(ensemble=teacher, cohort=cohorts(place), plan=True, out="nowhere")) is None
    said = capsys.readouterr().out
    assert "To prepare: 18 images" in said
    assert "Forward passes: 36 (2 members, 1 fold(s))" in said
    assert "Plan only: nothing was started" in said
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"holdout": 0.3, "seed": 5}, "of this run, by which the student is judged|trained on .* subjects"),
        ({"holdout": 0.3, "folds": 2}, "trained on .* Its run has --folds 0"),
        (
            {"holdout": 0.3, "cohort": None},
            "none of the cohort's training images: give --cohort images=DIR --cohort other=DIR",
        ),
    ],
)
def test_a_student_that_its_teacher_could_help_to_cheat_is_refused(place, soft, change, message):
    options = {"soft_targets": soft[1], "cohort": cohorts(place), **change}
    if "seed" in change:  # other validation subjects: the data has its own split, so take it away
        options["data"] = str(without_split(place))
        options["cohort"] = [f"{place}/other.yaml={place}/other"]
    with pytest.raises(UsageError, match=message):
        sweep.run(student(place, "refused", **options))
    assert not (place / "runs" / "refused").exists()


def without_split(place):
    folder = place / "unsplit"
    if not folder.exists():
        shutil.copytree(place / "main", folder)
        pd.read_csv(folder / "labels.csv").drop(columns="split").to_csv(folder / "labels.csv", index=False)
    return folder


def test_a_teacher_whose_weights_validation_chose_teaches_nobody_whom_validation_judges(place, teacher, capsys):
    request = {"ensemble": teacher, "cohort": cohorts(place), "weights": "chosen", "out": f"{place}/pseudo"}
    made = pseudo.run(pseudo.PseudoRequest(**request))
    assert "a student that the same subjects judge is refused" in capsys.readouterr().out
    options = {"soft_targets": f"{place}/pseudo/{made.teacher.key}.parquet", "cohort": cohorts(place)}
    with pytest.raises(UsageError, match=r"chose the teacher's weights.*pseudo --weights mean"):
        sweep.run(student(place, "refused", holdout=0.3, **options))


def test_pseudo_labels_of_validation_or_holdout_images_are_refused(place, soft):
    made, table = soft[0], load_run(f"{place}/runs", "teacher").manifest().table
    for split in ("val", "holdout"):
        with pytest.raises(UsageError, match=f"--on {split}: these images judge the student"):
            pseudo.PseudoRequest(ensemble="x", on=split)
        ids = table.loc[table["split"] == split, "image_id"]
        extra = pd.DataFrame(0.5, pd.Index(ids, name="image_id"), ["Mass", "Nodule"], np.float32)
        wrong = SoftTargets(pd.concat([made.table, extra]), made.provenance, (), made.teacher)
        wrong.write(Store(str(place)), "wrong.parquet")
        options = {"soft_targets": f"{place}/wrong.parquet", "cohort": cohorts(place), "holdout": 0.3}
        with pytest.raises(UsageError, match=f"pseudo-labels of {len(ids)} {split} images of this run"):
            sweep.run(student(place, "refused", **options))


def test_pseudo_labels_of_other_images_or_findings_are_refused(place, soft):
    made = soft[0]
    options = {"soft_targets": f"{place}/strange.parquet", "cohort": cohorts(place), "holdout": 0.3}
    strangers = SoftTargets(made.table.set_axis("x" + made.table.index), made.provenance, (), made.teacher)
    strangers.write(Store(str(place)), "strange.parquet")
    with pytest.raises(CxrltError, match=r"cohort images .* has no image to train on"):
        sweep.run(student(place, "refused", **options))
    renamed = SoftTargets(made.table.set_axis(["Edema", "Hernia"], axis=1), made.provenance, (), made.teacher)
    renamed.write(Store(str(place)), "strange.parquet")
    with pytest.raises(UsageError, match="none of the findings that are trained; its columns are Edema, Hernia"):
        sweep.run(student(place, "refused", **options))
    SoftTargets(made.table, "somewhere").write(Store(str(place)), "strange.parquet")
    with pytest.raises(UsageError, match="objective noisy_student learns pseudo-labels, whose teacher is on record"):
        sweep.run(student(place, "refused", **options))


def test_a_space_that_does_not_train_on_the_cohort_is_refused(place, soft):
    (place / "main.yaml").write_text(SPACE.replace("cohorts: all", "cohorts: main"))
    options = {"soft_targets": soft[1], "cohort": cohorts(place), "holdout": 0.3, "space": f"{place}/main.yaml"}
    with pytest.raises(UsageError, match=r"nothing of it would be learnt. .* are of images, other; search space main"):
        sweep.run(student(place, "refused", **options))


def test_an_ensemble_that_cannot_teach_is_refused(place, teacher, tmp_path):
    request = {"cohort": cohorts(place), "out": str(tmp_path / "pseudo")}
    with pytest.raises(UsageError, match="there is no ensemble in"):
        pseudo.run(pseudo.PseudoRequest(ensemble=f"{place}/runs/teacher", **request))
    shutil.copytree(teacher, tmp_path / "runs" / "gone" / "ensembles" / "mean")
    file = tmp_path / "runs" / "gone" / "ensembles" / "mean" / "ensemble.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "run": str(tmp_path / "lost")}))
    with pytest.raises(CxrltError, match="the run of this ensemble is not at"):
        pseudo.run(pseudo.PseudoRequest(ensemble=str(file.parent), **request))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CxrltError, match="no image"):
        pseudo.run(pseudo.PseudoRequest(ensemble=teacher, cohort=[f"images={tmp_path}/empty"], out=request["out"]))


def test_a_refit_member_teaches_by_its_fold_checkpoints_or_not_at_all(place, teacher, tmp_path):
    """What was trained on validation images never scores, whatever the ensemble scores with."""
    runs = tmp_path / "runs"
    shutil.copytree(place / "runs" / "teacher", runs / "teacher")
    shutil.copytree(place / "runs" / "shards", runs / "shards")
    folder = runs / "teacher"
    shutil.copytree(folder / "trials/T0000/fold-0", folder / "trials/T0000/refit")
    file = folder / "ensembles" / "mean" / "ensemble.json"
    content = json.loads(file.read_text())
    member = content["members"][0]
    member["checkpoints"] = {"refit": member["checkpoints"]["fold-0"]}
    file.write_text(json.dumps({**content, "run": str(folder)}))
    from cxrlt_ray.ensembling.teacher import teacher_of

    assert teacher_of(str(file.parent), "mean").checkpoints == [("fold-0",), ("fold-0",)]
    shutil.rmtree(folder / "trials/T0000/fold-0")
    with pytest.raises(
        UsageError, match=r"T0000 .*its fold-0 checkpoint is gone, and its refit one was trained on val"
    ):
        teacher_of(str(file.parent), "mean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": "best"}, "--values is soft or hard or raw, not 'best'"),
        ({"weights": "greedy"}, "--weights is mean or chosen, not 'greedy'"),
        ({"keep": 0.5}, "--keep is for --values hard"),
        ({"keep": 0.0, "values": "hard"}, "--keep is a share above 0"),
        ({"on": "train"}, "--on is test, not 'train'"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UsageError, match=message):
        pseudo.PseudoRequest(ensemble="x", **options)
