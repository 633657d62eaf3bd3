"""A selection says how far it is: never backwards, to its end, and without a change of its result."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cxrlt_ray.selection.honest import as_given, fit
from cxrlt_ray.selection.method import AUTO, Method


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 6)) < 0.3).astype(np.int8)
    scores = np.clip(0.3 * targets + rng.random((5, 300, 6)), 0, 1.3).astype(np.float32) / 1.3
    return scores, targets, np.arange(300)


CASES = {
    "one selector": {"methods": Method("greedy")},
    "guarded by all findings": {"methods": Method("greedy", guard=20.0)},
    "guarded by the mean": {"methods": Method("greedy", guard=20.0, lean="mean")},
    "blended": {"methods": Method("greedy_bagged", guard=20.0, lean="sound", blend=("simplex", "nnls"))},
    "a guard to choose": {"methods": Method("greedy", guard=AUTO)},
    "selectors to choose": {"methods": [Method("greedy"), Method("mean")]},
    "twice": {"methods": Method("greedy"), "repeats": 2},
    "rules to choose": {"methods": Method("greedy"), "rules": [as_given, np.sqrt]},
    "all at once": {"methods": Method("greedy"), "folds": 0},
    "under a budget": {"methods": Method("frontier", {"rounds": 3}), "costs": np.ones(5)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_share_done_rises_to_the_whole(drawn, case):
    shares = []
    options = {"folds": 3, **CASES[case]}
    methods = options.pop("methods")
    with_progress = fit(methods, *drawn, **options, progress=shares.append)
    assert len(shares) >= 4 or case == "all at once"
    assert all(0 < one <= other for one, other in itertools.pairwise(shares))
    assert shares[-1] == pytest.approx(1.0, abs=0.15)  # how often it selects is known about, where it chooses
    assert sum(share == 1.0 for share in shares) <= 0.25 * len(shares) + 1
    assert np.array_equal(with_progress.weights, fit(methods, *drawn, **options).weights)


def test_a_finding_after_the_other_is_counted_within_a_selection(drawn):
    shares = []
    fit(Method("greedy"), *drawn, folds=0, progress=shares.append)
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])


def test_a_line_of_progress_comes_from_time_to_time_with_the_time_left(monkeypatch):
    from cxrlt_ray.ensembling import compare

    now, lines = [100.0], []  # what came before the first share does not count
    monkeypatch.setattr(compare.time, "monotonic", lambda: now[0])
    with compare._progress(lines.append) as report:
        for moment, share in ((130, 0.1), (137, 0.2), (200, 0.25), (270, 0.5)):
            now[0] = moment
            report(share)
        assert lines == ["  25% of the selection done, 6 min left", "  50% of the selection done, 3 min left"]
