"""The scale of scores is told by their values, or refused; what is read keeps its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.metrics import average_precision_score

from cxrlt_ray.data.score_scale import in_order, read_scores, rounded, scale_of
from cxrlt_ray.errors import CxrltError

FINDINGS = ["Edema", "Mass", "Hernia"]
TARGETS = np.random.default_rng(0).random((400, 3)) < [0.3, 0.15, 0.05]
LOGITS = 2 * TARGETS - 1.5 + np.random.default_rng(1).normal(0, 1.5, (400, 3))
PROBABILITIES = expit(LOGITS)


def with_finding(scores: np.ndarray, c: int, column: np.ndarray | float) -> np.ndarray:
    changed = scores.copy()
    changed[:, c] = column
    return changed


def refused(scores: np.ndarray) -> str:
    with pytest.raises(CxrltError) as caught:
        scale_of(scores, FINDINGS[: scores.shape[1]])
    return str(caught.value)


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        (PROBABILITIES, "probability"),
        (PROBABILITIES + 5e-5, "probability"),
        (PROBABILITIES.astype(np.float16).astype(float), "probability"),
        (TARGETS.astype(float), "probability"),
        (100 * PROBABILITIES, "percent"),
        (100 * PROBABILITIES + 0.005, "percent"),
        (LOGITS, "logit"),
        (12 * LOGITS, "logit"),
        (with_finding(LOGITS, 2, LOGITS[:, 2] - 4), "logit"),  # a rare one has negative scores only
        (with_finding(LOGITS, 0, 0.0), "logit"),  # one score throughout says nothing
        (with_finding(100 * PROBABILITIES, 0, 0.0), "percent"),
        (with_finding(PROBABILITIES, 1, np.nan), "probability"),
        (np.full((400, 3), np.nan), "probability"),
        (np.full((400, 3), 0.5), "probability"),
    ],
)
def test_scores_beyond_doubt_are_recognised(scores, scale):
    assert scale_of(scores, FINDINGS) == scale


@pytest.mark.parametrize(
    "scores",
    [
        2 * PROBABILITIES - 1,  # cosines
        np.log(PROBABILITIES),  # no logits
        10 * PROBABILITIES,
        1000 * PROBABILITIES,
        1.05 * PROBABILITIES,
        PROBABILITIES - 0.01,
        PROBABILITIES[:, :1] + 60 * (np.arange(400) == 7)[:, None],  # one slip is no scale
        PROBABILITIES[:, :1] - 3 * (np.arange(400) < 20)[:, None],
    ],
)
def test_scores_in_doubt_are_refused_with_a_finding_and_its_extremes(scores):
    message = refused(scores)
    column = next(c for c, name in enumerate(FINDINGS) if f"finding '{name}'" in message)
    assert f"from {scores[:, column].min():.4g} to {scores[:, column].max():.4g}" in message


@pytest.mark.parametrize("column", [LOGITS[:, 1], 100 * PROBABILITIES[:, 1], PROBABILITIES[:, 1] - 2.0])
def test_the_finding_that_disagrees_is_named(column):
    message = refused(with_finding(PROBABILITIES, 1, column))
    assert message.startswith(f"finding 'Mass' has scores from {column.min():.4g} to {column.max():.4g}")


def test_a_finding_of_one_score_must_be_on_the_scale_of_the_others():
    with pytest.raises(CxrltError, match=r"a\.csv: finding 'Mass' has scores from -3 to -3, where probabilities"):
        read_scores(with_finding(PROBABILITIES, 1, -3.0), FINDINGS, "a.csv")


def test_a_scale_that_is_given_is_kept_to():
    rare = with_finding(100 * PROBABILITIES, 2, 0.9 * PROBABILITIES[:, 2])  # percentages below 1
    with pytest.raises(CxrltError, match="'Hernia'"):
        read_scores(rare, FINDINGS, "a.csv")
    np.testing.assert_allclose(read_scores(rare, FINDINGS, "a.csv", "percent").probabilities, rare / 100)
    with pytest.raises(CxrltError, match="where percentages are from 0 to 100"):
        read_scores(LOGITS, FINDINGS, "a.csv", "percent")


def test_nan_stays_where_there_is_no_score():
    scaled = read_scores(with_finding(LOGITS, 1, np.nan), FINDINGS, "a.csv")
    assert np.isnan(scaled.probabilities[:, 1]).all()
    assert np.isfinite(scaled.probabilities[:, [0, 2]]).all()


@pytest.mark.parametrize("times", [1, 12, 300])
def test_average_precision_of_logits_is_that_of_their_probabilities_in_float32(times):
    scaled = rounded(read_scores(times * LOGITS, FINDINGS, "a.csv").probabilities)
    assert scaled.dtype == np.float32
    for c in range(3):
        expected = average_precision_score(TARGETS[:, c], LOGITS[:, c])
        assert average_precision_score(TARGETS[:, c], scaled[:, c]) == expected
    np.testing.assert_allclose(scaled, expit(times * LOGITS), atol=1e-4)


@given(arrays(np.float64, (40, 1), elements=st.floats(-800, 800, width=16)))
def test_order_and_ties_are_those_of_what_was_rounded(order):
    values = expit(order).astype(np.float32)
    kept = in_order(values, order)
    assert kept.min() >= 0
    assert kept.max() <= 1
    np.testing.assert_array_equal(np.sign(kept - kept.T), np.sign(order - order.T))
