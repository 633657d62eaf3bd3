"""Charts: marks stand where their values are, names are escaped, and what is not known is left out."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from cxrlt_ray.page import charts
from cxrlt_ray.page.cohort_facts import difference, prevalence
from cxrlt_ray.page.sections.findings import precision_recall
from cxrlt_ray.page.svg import Scale, plain

HOSTILE = '<script>"&'


def drawn() -> dict[str, str]:
    mark = charts.Mark(0.5, 0.4, 0.7, 0, HOSTILE)
    return {
        "lines": charts.lines(HOSTILE, "d", [charts.Line(HOSTILE, [(1, 0.1), (2, 0.3)], strong=True)], "x", "y"),
        "intervals": charts.intervals(HOSTILE, "d", [(HOSTILE, [mark]), ("b", [])], [HOSTILE], "x"),
        "bars": charts.bars(HOSTILE, "d", [(HOSTILE, 0.3), ("b", 0.0)], "x"),
        "scatter": charts.scatter(HOSTILE, "d", [charts.Dot(HOSTILE, 1, 2, labelled=True)], "x", "y", (True, False)),
        "heatmap": charts.heatmap(HOSTILE, "d", [[0.1, None]], [HOSTILE], ["a", HOSTILE]),
        "parallel": charts.parallel(
            HOSTILE, "d", [("lr", [1e-3, None]), (HOSTILE, ["a", HOSTILE])], ["a", "b"], [1, 2]
        ),
        "curve": charts.precision_recall(HOSTILE, "d", [(0, 1), (1, 0.2)], 0.2),
    }


@pytest.mark.parametrize("kind", list(drawn()))
def test_a_chart_is_an_image_with_a_name_and_a_description(kind):
    root = ET.fromstring(drawn()[kind])
    assert root.attrib["role"] == "img"
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert root[0].text == HOSTILE


@pytest.mark.parametrize("kind", ["empty", "equal", "single"])
def test_charts_of_no_values_or_equal_ones_are_drawn(kind):
    points = {"empty": [], "equal": [(1, 0.5), (2, 0.5)], "single": [(1, 0.5)]}[kind]
    ET.fromstring(charts.lines("t", "d", [charts.Line("a", points, strong=True)], "x", "y"))
    ET.fromstring(
        charts.scatter("t", "d", [charts.Dot("a", x, y) for x, y in points], "x", "y", (True, True), diagonal=True)
    )
    ET.fromstring(charts.intervals("t", "d", [("a", [charts.Mark(y) for _, y in points])], ["s"], "x"))


def test_dots_stand_at_their_values():
    rows = [(str(k), [charts.Mark(value)]) for k, value in enumerate((0.0, 0.25, 1.0))]
    circles = [
        float(c.attrib["cx"]) for c in ET.fromstring(charts.intervals("t", "d", rows, ["s"], "x")).iter("circle")
    ]
    assert (circles[1] - circles[0]) / (circles[2] - circles[0]) == pytest.approx(0.25, abs=1e-3)


def test_a_heatmaps_shade_is_the_share_of_the_largest_value():
    cells = ET.fromstring(charts.heatmap("t", "d", [[0.0, 0.5], [1.0, None]], ["a", "b"], ["c", "d"])).iter("rect")
    shades = [float(cell.attrib["fill-opacity"]) for cell in cells if cell.find("title") is not None]
    assert shades == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (0.213, 0.216, False), (3, 4000, True), (1e-5, 2e-5, True)]
)
def test_ticks_are_few_round_and_within_the_scale(low, high, log):
    ticks = Scale(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert all(float(plain(tick).replace(",", "")) == pytest.approx(tick, rel=0.02, abs=1e-9) for tick in ticks)


def test_points_of_a_thinned_curve_are_points_of_scikit_learns():
    from sklearn.metrics import precision_recall_curve

    rng = np.random.default_rng(0)
    targets = (rng.random(2000) < 0.2).astype(int)
    scores = rng.random(2000) + 0.3 * targets
    precision, recall, _ = precision_recall_curve(targets, scores)
    whole = {(round(float(r), 4), round(float(p), 4)) for r, p in zip(recall, precision, strict=True)}
    points = precision_recall(np.r_[targets, [-1, -1]], np.r_[scores, [9, 9]])
    assert 20 < len(points) <= 60
    assert set(points) <= whole
    assert precision_recall(np.array([0, -1]), np.array([0.1, 0.2])) == ()


def test_prevalences_error_is_that_of_clusters():
    """Of subjects with one image each it is the binomial one; of a subject's copies it is as if there were one."""
    rng = np.random.default_rng(0)
    targets = (rng.random((500, 1)) < 0.3).astype(np.int8)
    share, error = prevalence(targets, np.arange(500))
    assert share[0] == targets.mean()
    assert error[0] == pytest.approx(targets.std(ddof=1) / np.sqrt(500))
    _, doubled = prevalence(np.repeat(targets, 3, axis=0), np.repeat(np.arange(500), 3))
    assert doubled[0] == pytest.approx(error[0])


def test_drift_is_found_where_it_is_and_rarely_where_it_is_not():
    rng = np.random.default_rng(1)
    subjects = np.arange(3000) // 2
    train = (rng.random((3000, 20)) < 0.1).astype(np.int8)
    test = (rng.random((3000, 20)) < np.r_[0.2, np.full(19, 0.1)]).astype(np.int8)
    intervals, drifts = difference(prevalence(train, subjects), prevalence(test, subjects), 20)
    assert drifts[0]
    assert sum(drifts[1:]) <= 1
    assert intervals[0].value == pytest.approx(0.1, abs=0.03)
    assert np.isnan(prevalence(np.full((5, 1), -1, np.int8), np.arange(5))[0][0])
