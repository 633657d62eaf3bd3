"""The paper's results, as its own tables have them, and where they say something beside others."""

from __future__ import annotations

import pytest
from scored_cohort import TASK

from cxrlt_ray.data.tasks import CHALLENGE
from cxrlt_ray.evaluation import metrics
from cxrlt_ray.evaluation.published import TEST_IMAGES, not_comparable, published


@pytest.mark.parametrize("name", TEST_IMAGES)
def test_published_ap_of_each_team_averages_to_its_published_map(name):
    task = CHALLENGE[name]
    paper = published(task)
    assert paper is not None
    for team in paper.teams:
        assert len(paper.ap[team]) == len(task.findings)
        if (name, team) not in {("task3", "H"), ("task3", "I")}:  # the paper's own slips
            assert paper.ap[team].mean() == pytest.approx(paper.scores["map"][team], abs=0.0015)
    assert paper.teams == {"task1": list("ABCD"), "task2": list("CAEF"), "task3": list("GHI")}[name]


def test_published_ap_stands_in_the_tasks_own_order():
    paper = published(CHALLENGE["task2"])
    assert paper.ap["C"][CHALLENGE["task2"].findings.index("Normal")] == 0.726
    assert published(CHALLENGE["task1"]).ap["A"][0] == 0.103  # Adenopathy
    assert published(TASK) is None


def test_published_groups_are_means_of_the_published_findings():
    # the paper's groups hold one finding fewer than ours; head is the same nine
    paper = published(CHALLENGE["task1"])
    head = ("Atelectasis", "Cardiomegaly", "Edema", "Enlarged Cardiomediastinum", "Lung Opacity", "Normal")
    head += ("Pleural Effusion", "Pneumonia", "Support Devices")
    kinds = ["head" if name in head else "tail" for name in CHALLENGE["task1"].findings]
    for team in paper.teams:
        means = metrics.by_rarity(paper.ap[team], kinds)
        assert means["head"] == pytest.approx(paper.scores["head"][team], abs=0.002)


def test_teams_stand_beside_the_releases_test_set_only():
    task = CHALLENGE["task1"]
    assert not_comparable(task, 78_946, phantom=False) is None
    assert "phantom" in not_comparable(task, 78_946, phantom=True)
    assert "78,946 test images of task1, not on these 39,293" in not_comparable(task, 39_293, phantom=False)
    assert not_comparable(CHALLENGE["task2"], 406, phantom=False) is None
