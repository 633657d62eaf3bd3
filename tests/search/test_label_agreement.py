"""Agreement of two labellings as a run's record keeps it: by scikit-learn's kappa and F1."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from cxrlt_ray.data.two_labellings import TwoLabellings
from cxrlt_ray.search.given_labels import agreement_of, record_of_labels


@pytest.fixture
def labellings():
    """400 studies of 200 subjects, a quarter scored; the third finding is never labelled by the cohort where scored."""
    rng = np.random.default_rng(0)
    own = (rng.random((400, 3)) < (0.4, 0.1, 0.2)).astype(np.int8)
    given = np.where(rng.random(own.shape) < 0.15, 1 - own, own).astype(np.int8)
    own[rng.random(own.shape) < 0.1] = -1
    scored = np.arange(400) < 100
    own[scored, 2] = -1
    subjects = np.repeat(np.arange(200), 2).astype(str)
    return TwoLabellings(("Effusion", "Mass", "Nodule"), own, given, subjects, scored)


def test_rates_are_scikit_learns_on_what_both_label(labellings):
    rows = agreement_of(labellings)
    assert [(row.finding, row.scored) for row in rows] == [
        ("Effusion", True),
        ("Mass", True),
        ("Effusion", False),
        ("Mass", False),
        ("Nodule", False),
    ]
    for row in rows:
        c = labellings.findings.index(row.finding)
        known = (labellings.own[:, c] >= 0) & (labellings.scored == row.scored)
        own, given = labellings.own[known, c], labellings.given[known, c]
        assert row.studies == known.sum()
        assert (row.own, row.given, row.both) == (own.sum(), given.sum(), (own * given).sum())
        assert row.f1.value == pytest.approx(f1_score(own, given))
        assert row.kappa.value == pytest.approx(cohen_kappa_score(own, given))
        if row.own > 20:  # of fewer positives there is no interval
            assert row.kappa.low < row.kappa.value < row.kappa.high


def test_what_is_not_known_is_none_and_nothing_is_kept_without_labels(labellings):
    labellings.own[:] = 0
    labellings.given[:] = 0
    assert all(row.f1.value is None and row.kappa.value is None for row in agreement_of(labellings))
    assert record_of_labels(None, labellings) == {}
