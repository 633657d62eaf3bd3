"""Which labels of asked findings a run may train on, by its track."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.asking import ALWAYS, CORPUS, MINED, OUTSIDE_LABELS, REPORTS, SCRUBBED, TRACKS, Asking
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.data.mined_labels import MinedLabels
from cxrlt_ray.data.tasks import Task
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.search.asking import asking_of, corpora_of, lines, out_of_reach, task_of, with_mined
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.run_data import check_reports
from cxrlt_ray.search.space_file import load_space
from cxrlt_ray.storage import Store
from cxrlt_ray.text.build import build_corpus
from cxrlt_ray.training.job import Job, images_of, training_images, validation_images


def manifest(other: str = "Bulla") -> Manifest:
    """Rows of the main cohort in every split, and of PadChest in train, where all have both labels."""
    rows = [(MAIN, "train"), (MAIN, "val"), (MAIN, "test"), ("padchest", "train"), ("padchest", "train")]
    table = pd.DataFrame(rows, columns=["cohort", "split"])
    table["image_id"] = [f"i{k}" for k in range(len(table))]
    labels = {"Mass": [1, 0, 1, 1, 0], "Scoliosis": [1, 0, 1, 0, 1], "Bulla": [1, 0, 1, 1, 0]}
    for finding, values in labels.items():
        table[finding] = pd.array(values, "Int8")
    for finding in {"Scoliosis", "Bulla"} - {other}:
        table.loc[table["cohort"] == "padchest", finding] = pd.NA
    return Manifest(table, tuple(labels), "table", "")


def asking(track: str) -> Asking:
    return Asking(("Bulla", "Scoliosis"), ("Mass",), (0,), track)


@pytest.mark.parametrize("track", sorted(TRACKS))
def test_labels_of_asked_findings_train_on_the_tracks_that_say_so_alone(track):
    table = out_of_reach(manifest(), asking(track)).table.set_index("image_id")
    main, test, other = (table.loc[rows] for rows in (["i0", "i1"], ["i2"], ["i3", "i4"]))
    assert main["Mass"].tolist() == [1, 0]
    assert other["Mass"].tolist() == [1, 0]
    assert test["Bulla"].tolist() == [1]
    assert main["Bulla"].isna().all() == (track != MINED)  # mined ones take the place of the cohort's own
    assert other["Bulla"].isna().all() == (track in (SCRUBBED, REPORTS))


@pytest.mark.parametrize("track", sorted(TRACKS))
def test_a_model_learns_asked_findings_on_the_tracks_that_say_so_alone(track):
    hidden = {"Mass"} if track in (MINED, OUTSIDE_LABELS) else {"Mass", "Bulla", "Scoliosis"}
    assert asking(track).hidden(0) == hidden
    assert asking(track).judged(0) == {"Mass"}  # whatever trains, seen findings choose


def test_the_lines_name_what_other_cohorts_label():
    said = "\n".join(lines(asking(OUTSIDE_LABELS), manifest()))
    assert "track outside: labels that other cohorts have of the asked findings were trained on" in said
    assert "Bulla: 1 positive and 1 negative images of padchest train" in said
    assert "Scoliosis: " not in said


def test_a_track_of_other_cohorts_labels_wants_such_labels():
    alone = manifest().of_cohort(MAIN)
    with pytest.raises(UsageError, match="no other cohort is given, by --cohort"):
        lines(asking(OUTSIDE_LABELS), alone)
    with pytest.raises(UsageError, match="padchest labels none of them"):
        lines(asking(OUTSIDE_LABELS), manifest(other=""))


def test_a_track_of_other_cohorts_labels_wants_a_space_that_trains_on_them():
    request = SweepRequest(task="task3", track=OUTSIDE_LABELS)
    with pytest.raises(UsageError, match="team_h_task3 trains on the main cohort only"):
        check_reports(request, load_space("team_h_task3"))
    assert check_reports(request, load_space("team_b_task3")) is False


def seen_cohort():
    """Twenty images of a subject each that train or validate, with four findings that half of them have."""
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(20)], "study_id": [f"s{k}" for k in range(20)]})
    table = table.assign(cohort=MAIN, split=["train", "val"] * 10, view="PA")
    findings = ("Mass", "Bulla", "Hernia", "Scoliosis")
    for finding in findings:
        table[finding] = pd.array([k // 2 % 2 for k in range(20)], "Int8")
    return Manifest(table, findings, "table", "")


def test_a_finding_asked_for_in_another_spelling_is_not_trained_on():
    request = SweepRequest(task="auto", ask="bulla, SCOLIOSIS, Pleural Mass", finding_folds=1)
    made = asking_of(request, seen_cohort())
    assert made.asked == ("Bulla", "Scoliosis", "Pleural Mass")
    assert made.seen == ("Mass", "Hernia")
    assert task_of(request, Task("auto", seen_cohort().findings), made).findings == made.asked
    assert out_of_reach(seen_cohort(), made).targets(("Bulla", "Scoliosis")).max() == -1
    with pytest.raises(UsageError, match="names Bulla and bulla, which is one finding"):
        SweepRequest(task="auto", ask="Bulla,bulla")


def test_another_label_of_an_asked_finding_is_not_trained_on(tmp_path):
    table = seen_cohort().table.assign(Pneumoperitoneum=pd.array([k // 2 % 2 for k in range(20)], "Int8"))
    cohort = Manifest(table, ("Mass", "Hernia", "Pneumoperitoneum", "Bulla"), "table", "")
    made = asking_of(SweepRequest(task="auto", ask="pneumoperitoneo", finding_folds=1), cohort)
    assert made.asked == ("Pneumoperitoneum",)
    assert made.seen == ("Mass", "Hernia", "Bulla")
    own = tmp_path / "own.yaml"
    own.write_text("finding: Tumour\naliases: [Mass]\nnames: [tumour]\nappearance: Round.\nkeywords: [a, b, c]\n")
    request = SweepRequest(task="auto", ask="Tumour", finding_folds=1, descriptions=str(own))
    assert "Mass" not in asking_of(request, cohort).trained[1:-1]
    assert asking_of(request, cohort).asked == ("Mass",)
    with pytest.raises(UsageError, match="names Pneumoperitoneum and pneumoperitoneo, which is one finding"):
        asking_of(SweepRequest(task="auto", ask="Pneumoperitoneum,pneumoperitoneo", finding_folds=1), cohort)


def test_a_list_to_scrub_of_what_is_no_finding_is_refused(tmp_path):
    (tmp_path / "reports.csv").write_text("study_id,text\ns1,FINDINGS: An air cyst. Clear lungs.\n")
    corpus, _ = build_corpus(str(tmp_path / "reports.csv"), seen_cohort(), Store(str(tmp_path)), most_without=1)
    made = Asking(("Bulla",), ("Mass",), (ALWAYS,))
    (tmp_path / "words.yaml").write_text("Bula: [air cyst]\n")
    request = SweepRequest(task="auto", ask="Bulla", scrub=str(tmp_path / "words.yaml"))
    with pytest.raises(UsageError, match=r"words.yaml: key 'Bula' is no finding .* nearest: Bulla"):
        corpora_of(corpus, made, request)
    (tmp_path / "words.yaml").write_text("bulla: [air cyst]\n")
    scrubbed = corpora_of(corpus, made, request)[CORPUS]
    assert scrubbed.draw(np.array([0]), "report", 0, 0) == ["FINDINGS: Clear lungs."]
    (tmp_path / "own.yaml").write_text(
        "finding: Bulla\naliases: [Air sac]\nnames: [bulla]\nappearance: Round.\nkeywords: [a, b, c]\n"
    )
    (tmp_path / "words.yaml").write_text("Air sac: [air cyst]\n")  # by an alias of the user's own
    own = SweepRequest(task="auto", ask="Air sac", scrub=request.scrub, descriptions=str(tmp_path / "own.yaml"))
    for asked in ("Air sac", "Bulla"):
        scrubbed = corpora_of(corpus, Asking((asked,), ("Mass",), (ALWAYS,)), own)[CORPUS]
        assert scrubbed.draw(np.array([0]), "report", 0, 0) == ["FINDINGS: Clear lungs."]


def test_a_list_to_scrub_is_taken_by_a_space_that_learns_sentences(tmp_path):
    request = SweepRequest(task="task3", data="cohort", reports="reports", scrub="words.yaml")
    assert check_reports(request, load_space("team_i_task3"))
    with pytest.raises(UsageError, match="--scrub: search space laptop_text reads no reports"):
        check_reports(SweepRequest(task="task3", data="cohort", scrub="words.yaml"), load_space("laptop_text"))


def test_a_test_image_that_trains_by_pseudo_labels_brings_no_report():
    table = manifest().table
    table = table.assign(study_id=table["image_id"], subject_id=table["image_id"], view="PA")
    cohort = Manifest(table, ("Mass",), "table", "")
    soft = SimpleNamespace(transductive=True, teacher=None, table=pd.DataFrame(index=["i2", "i3"]))
    soft.at = lambda ids, findings, fold: np.full((len(ids), len(findings)), np.nan, np.float32)
    corpus = SimpleNamespace(rows_of=lambda manifest: np.arange(len(manifest.table)))
    images = images_of(cohort, ("Mass",), soft, corpus)
    assert images.report.tolist() == [0, 1, -1, 3, 4]  # i2 is of the test split
    assert images.targets[2].tolist() == [-1]


def test_without_a_seen_finding_there_is_one_model():
    assert Asking(("Bulla",), (), (), MINED, by_mined=True).folds == 1


def test_reports_of_another_cohort_give_no_mined_labels(tmp_path):
    (tmp_path / "reports.csv").write_text("study_id,text\nother,There is scoliosis.\n")
    with pytest.raises(UsageError, match="no study of the splits train, val has a report"):
        with_mined(seen_cohort(), asking(MINED), str(tmp_path / "reports.csv"), None)


def test_mined_labels_without_a_positive_of_validation_cannot_choose(tmp_path):
    (tmp_path / "reports.csv").write_text("study_id,text\ns0,There is scoliosis.\ns1,No scoliosis. No bulla.\n")
    reports, chosen = str(tmp_path / "reports.csv"), Asking(("Bulla", "Scoliosis"), ("Mass",), (-1,), MINED, True)
    with pytest.raises(UsageError, match="--choose-by mined: no validation report affirms Bulla, Scoliosis"):
        with_mined(seen_cohort(), chosen, reports, None)
    with_mined(seen_cohort(), asking(MINED), reports, None)  # folds choose
    (tmp_path / "reports.csv").write_text("study_id,text\ns0,No scoliosis.\ns1,There is scoliosis.\n")
    with_mined(seen_cohort(), chosen, reports, None)


def test_on_track_mined_a_fold_learns_its_findings_as_reports_say_and_is_judged_by_their_labels(tmp_path):
    rows = [f"s{k},{'There is a mass.' if k < 5 else 'No mass.' if k < 10 else 'Clear.'} Scoliosis." for k in range(18)]
    (tmp_path / "reports.csv").write_text("\n".join(["study_id,text", *rows]) + "\n")
    made = Asking(("Bulla", "Scoliosis"), ("Mass", "Hernia", "Thing"), (0, 1, 0), MINED)
    cohort = seen_cohort()
    cohort = Manifest(cohort.table.assign(Thing=cohort.table["Mass"]), (*cohort.findings, "Thing"), "table", "")
    manifest, mined = with_mined(cohort, made, str(tmp_path / "reports.csv"), None)
    mined.write(Store(str(tmp_path)))
    job = Job(Store(str(tmp_path)), None, made.predicted, "", trained_findings=made.trained, asking=made)
    for fold, own, other in ((0, "Mass", "Hernia"), (1, "Hernia", "Mass")):
        training, validation = training_images(manifest, job, fold), validation_images(manifest, job, fold)
        labels = manifest.table.set_index("image_id")
        columns = {name: training.targets[:, made.trained.index(name)] for name in made.trained}
        np.testing.assert_array_equal(columns[other], labels.loc[training.image_id, other])
        numbers = [int(name[1:]) for name in training.image_id]
        said = {
            "Mass": [int(k < 5) if k < 18 else -1 for k in numbers],
            "Hernia": [0 if k < 18 else -1 for k in numbers],
        }
        np.testing.assert_array_equal(columns[own], said[own])
        if fold == 0:  # there are no rules for it: it is asked for by its text alone
            assert set(columns["Thing"]) == {-1}
        judged = validation.targets[:, made.predicted.index(own)]
        np.testing.assert_array_equal(judged, labels.loc[validation.image_id, own])
    asked = training.targets[:, made.trained.index("Scoliosis")]
    assert set(asked.tolist()) == {1, -1}


@pytest.mark.parametrize(
    ("track", "expected"), [(OUTSIDE_LABELS, [-1, 1, 0]), (SCRUBBED, [-1, -1, -1]), (REPORTS, [-1, -1, -1])]
)
def test_on_track_outside_a_fold_learns_its_findings_from_other_cohorts_alone(tmp_path, track, expected):
    table = manifest().table
    table = table.assign(study_id=table["image_id"], subject_id=table["image_id"], view="PA")
    made = Asking(("Bulla",), ("Mass", "Scoliosis"), (0, ALWAYS), track)
    cohort = out_of_reach(Manifest(table, ("Mass", "Scoliosis", "Bulla"), "table", ""), made)
    job = Job(Store(str(tmp_path)), None, made.predicted, "", trained_findings=made.trained, asking=made)
    training = training_images(cohort, job, 0, "all")
    assert training.image_id.tolist() == ["i0", "i3", "i4"]
    assert training.targets[:, made.trained.index("Mass")].tolist() == expected
    assert training.targets[:, made.trained.index("Scoliosis")].tolist() == [1, -1, -1]
    assert validation_images(cohort, job, 0).targets[:, made.predicted.index("Mass")].tolist() == [0]


def test_a_table_of_mined_labels_that_is_damaged_is_refused(tmp_path):
    (tmp_path / "mined.parquet").write_bytes(b"no table")
    with pytest.raises(CxrltError, match=r"mined.parquet is no table of mined labels"):
        MinedLabels.read(Store(str(tmp_path)))


def test_folds_are_as_many_as_unrelated_findings_allow():
    nih = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Mass", "Nodule", "Pneumonia", "Infiltration"]
    table = seen_cohort().table[["image_id", "study_id", "cohort", "split", "view"]]
    table = table.assign(**{name: pd.array([k // 2 % 2 for k in range(20)], "Int8") for name in nih})
    made = asking_of(SweepRequest(task="auto", ask="Hernia", finding_folds=2), Manifest(table, tuple(nih), "table", ""))
    assert made.folds == 2
    assert set(made.of_fold(0)) | set(made.of_fold(1)) | set(made.of_fold(ALWAYS)) == set(nih)
    related = {"Consolidation", "Pneumonia"}  # CheXpert's hierarchy
    assert any(related <= set(made.of_fold(k)) for k in (0, 1, ALWAYS))
    with pytest.raises(UsageError, match="8 findings have labels to train on: 7 folds of unrelated ones"):
        asking_of(SweepRequest(task="auto", ask="Hernia", finding_folds=7), Manifest(table, tuple(nih), "table", ""))
