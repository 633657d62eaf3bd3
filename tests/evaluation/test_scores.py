"""The challenge's scores, means without findings that have no positives, intervals by subject."""

from __future__ import annotations

import numpy as np
import pytest
from scored_cohort import some_scores

from cxrlt_ray.evaluation.scores import SUMMARY


def test_report_holds_the_challenges_scores():
    report = some_scores()
    ap = report.per_finding["ap"]
    assert report.scores["map"] == pytest.approx(np.nanmean(ap))
    assert report.scores["head"] == pytest.approx(ap[0])
    assert report.scores["medium"] == pytest.approx(ap[1])
    assert np.isnan(report.scores["tail"])
    assert set(SUMMARY) < set(report.scores)
    assert (report.images, report.subjects) == (60, 30)
    np.testing.assert_allclose(report.per_finding["prevalence"], report.per_finding["positives"] / 60)


def test_intervals_are_those_of_subjects_drawn_whole_and_hold_the_score():
    report = some_scores(rounds=300)
    for name in ("map", "mauroc"):
        low, high = report.intervals[name]
        assert low < report.scores[name] < high
