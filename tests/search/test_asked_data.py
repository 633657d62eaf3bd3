"""Which labels of asked findings a run may train on, by its track."""

from __future__ import annotations

import pandas as pd
import pytest

from cxrlt_ray.data.asking import MINED, OUTSIDE_LABELS, REPORTS, SCRUBBED, TRACKS, Asking
from cxrlt_ray.data.manifest import MAIN, Manifest
from cxrlt_ray.errors import UsageError
from cxrlt_ray.search.asking import lines, out_of_reach
from cxrlt_ray.search.request import SweepRequest
from cxrlt_ray.search.run_data import check_reports
from cxrlt_ray.search.space_file import load_space


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
