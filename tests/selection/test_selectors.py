"""What every selector owes its caller, and each of them against a reference of its own."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.optimize import nnls as scipy_nnls
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss

from cxrlt_ray import selection
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.selection import SELECTORS, SPACES_OF, curve, smooth_ap, spaces
from cxrlt_ray.selection.honest import combine
from cxrlt_ray.selection.registry import Doubt, check

# doubts are told by tests of their own; arithmetic that goes wrong (RuntimeWarning) is an error everywhere
pytestmark = [
    pytest.mark.filterwarnings("error::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:fewer than|identical members|there is one member:UserWarning"),
]

SMOOTH = {"objective": "smooth_ap"}
CASES = {name: (name, {}) for name in SELECTORS} | {"simplex smooth_ap": ("simplex", SMOOTH)}
DRAWN = {"greedy_bagged", "simplex smooth_ap"}  # those that the seed means something to
all_cases = pytest.mark.parametrize("case", CASES)


def cohort(members=5, images=160, findings=4, seed=0, grain=0, prevalence=0.25):
    """Probabilities of members from poor to good, targets with some nulls, two images a subject."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(np.log(prevalence / (1 - prevalence)), 2, (images, findings))
    targets = (rng.random(truth.shape) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    noise = np.linspace(3, 0.7, members)[:, None, None]
    scores = 1 / (1 + np.exp(-(truth + noise * rng.normal(size=(members, images, findings)))))
    if grain:
        scores = np.round(scores * grain) / grain
    targets[rng.random(targets.shape) < 0.1] = -1
    return scores.astype(np.float32), targets, np.arange(images) // 2


def placed(case, scores):
    return spaces.into(SPACES_OF[CASES[case][0]], scores, scores)


def select(case, scores, targets, groups, **more):
    name, options = CASES[case]
    return SELECTORS[name](scores, targets, groups, **options | more)


def ap_of(scores, targets):
    """scikit-learn's AP of each finding of scores [N, C] that has positives."""
    columns = [(t[t >= 0], s[t >= 0]) for t, s in zip(targets.T, scores.T, strict=True)]
    return np.array([average_precision_score(t, s) for t, s in columns if t.any()])


def assert_weights(weights, members, findings):
    assert weights.shape == (members, findings)
    assert weights.dtype == np.float64
    assert (weights >= 0).all()
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-9)


# ---------------------------------------------------------------- the battery: every selector


@all_cases
@settings(max_examples=12, deadline=None)
@given(
    members=st.integers(1, 5),
    images=st.integers(2, 40),
    findings=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    grain=st.sampled_from([0, 1, 4]),
    together=st.booleans(),
)
def test_weights_of_a_finding_sum_to_one_and_none_is_negative(case, members, images, findings, seed, grain, together):
    scores, targets, _ = cohort(members, images, findings, seed, grain)
    weights = select(case, placed(case, scores), targets, np.arange(images), together=together)
    assert_weights(weights, members, findings)
    if together or members == 1:
        assert (weights == weights[:, :1]).all()


@all_cases
def test_one_member_gets_everything(case):
    assert (select(case, *cohort(members=1)) == 1).all()


LABELS = {
    "no positive in one": lambda t: np.where((np.arange(4) == 2) & (t == 1), 0, t),
    "one positive in one": lambda t: np.where(np.arange(4) == 1, np.eye(1, len(t), 5, dtype=int).T, t),
    "no negative in one": lambda t: np.where((np.arange(4) == 0) & (t == 0), 1, t),
    "one unlabelled": lambda t: np.where(np.arange(4) == 3, -1, t),
    "all four of these": lambda t: np.stack(
        [abs(t[:, 0]), np.arange(len(t)) == 5, np.where(t[:, 2] == 1, 0, t[:, 2]), 0 * t[:, 3] - 1], axis=1
    ),
    "none unlabelled": abs,
    "no positive at all": lambda t: np.where(t == 1, 0, t),
    "no negative at all": lambda t: np.where(t == 0, 1, t),
    "no label at all": lambda t: np.full_like(t, -1),
}


@all_cases
@pytest.mark.parametrize("labels", LABELS)
def test_findings_that_cannot_choose_take_the_weights_chosen_for_all(case, labels):
    scores, targets, groups = cohort()
    scores, targets = placed(case, scores), LABELS[labels](targets).astype(np.int8)
    weights = select(case, scores, targets, groups)
    assert_weights(weights, 5, 4)
    few = (targets == 1).sum(axis=0) < 2
    assert np.array_equal(weights[:, few], select(case, scores, targets, groups, together=True)[:, few])


SCALES = {
    "logits": lambda s: np.log(s / (1 - s)) * 4,
    "far from zero": lambda s: s + 1e6,
    "huge": lambda s: (s - 0.5) * 3e38,
    "1e-30": lambda s: s * 1e-30,
    "denormal": lambda s: s * 1e-43,
    "two values": np.round,
    "all 0": lambda s: s * 0,
    "all 1": lambda s: s * 0 + 1,
    "all equal": lambda s: s * 0 + 0.1,
    "one member constant": lambda s: np.concatenate([s[:4], s[4:] * 0 + 0.3]),
    "one member huge": lambda s: np.concatenate([s[:4], s[4:] * 1e30]),
    "one member tiny": lambda s: np.concatenate([s[:4], s[4:] * 1e-40]),
    "upside down": lambda s: 1 - s,
}


@all_cases
@pytest.mark.parametrize("scale", SCALES)
def test_scores_of_any_scale_give_weights_and_never_a_warning(case, scale):
    scores, targets, groups = cohort(images=80)
    scores = SCALES[scale](scores.astype(float)).astype(np.float32)
    for together in (False, True):
        assert_weights(select(case, scores, targets, groups, together=together), 5, 4)


@all_cases
@pytest.mark.parametrize("grain", [0, 3])
def test_images_in_another_order_give_the_same_weights(case, grain):
    scores, targets, groups = cohort(grain=grain)
    scores, order = placed(case, scores), np.random.default_rng(1).permutation(len(groups))
    options = {"positives": 9, "negatives": 20} if case == "simplex smooth_ap" else {}  # so that images are drawn
    weights = select(case, scores, targets, groups, **options)
    assert np.allclose(weights, select(case, scores[:, order], targets[order], groups[order], **options), atol=1e-5)


@all_cases
def test_findings_in_another_order_get_the_same_weights(case):
    scores, targets, groups = cohort()
    scores, order = placed(case, scores), [2, 0, 3, 1]
    weights = select(case, scores, targets, groups)
    assert np.allclose(weights[:, order], select(case, scores[:, :, order], targets[:, order], groups), atol=1e-9)


@all_cases
@pytest.mark.parametrize("together", [False, True])
def test_members_in_another_order_take_their_weights_along(case, together):
    scores, targets, groups = cohort()
    scores, order = placed(case, scores), [3, 1, 4, 0, 2]
    options = {"bag_fraction": 1.0} if case == "greedy_bagged" else {}  # which members meet in a bag is drawn by place
    weights = select(case, scores, targets, groups, together=together, **options)
    again = select(case, scores[order], targets, groups, together=together, **options)
    assert np.allclose(weights[order], again, atol=1e-3)  # what is fitted ends within its tolerance


@all_cases
def test_images_without_labels_are_as_if_they_were_not_there(case):
    scores, targets, groups = cohort()
    scores = placed(case, scores)
    hidden = np.where(groups[:, None] % 4 == 0, np.int8(-1), targets)
    scores[:, groups % 4 == 0] = 7  # what they score does not matter
    seen = groups % 4 != 0
    weights = select(case, scores, hidden, groups)
    assert np.allclose(weights, select(case, scores[:, seen], targets[seen], groups[seen]), atol=1e-5)


@all_cases
def test_the_names_of_subjects_do_not_matter(case):
    scores, targets, groups = cohort()
    weights = select(case, scores, targets, groups)
    assert np.array_equal(weights, select(case, scores, targets, [f"p{99 - group}" for group in groups]))


@all_cases
def test_inputs_are_left_as_they_were_however_they_lie_in_memory(case):
    scores, targets, groups = cohort()
    weights = select(case, scores, targets, groups)
    strided = [np.asfortranarray(each) for each in (scores, targets, groups)]
    for each in strided:
        each.setflags(write=False)
    assert np.array_equal(weights, select(case, *strided))
    assert np.array_equal(weights, select(case, scores.astype(float), targets.astype(float), groups.tolist()))


@all_cases
def test_the_seed_decides_what_is_drawn_and_nothing_else(case):
    scores, targets, groups = cohort()
    options = {"positives": 9, "negatives": 20} if case == "simplex smooth_ap" else {}
    weights = select(case, scores, targets, groups, seed=3, **options)
    assert np.array_equal(weights, select(case, scores, targets, groups, seed=3, **options))
    others = [select(case, scores, targets, groups, seed=seed, **options) for seed in (4, 5)]
    assert any(not np.array_equal(weights, other) for other in others) == (case in DRAWN)


def spoilt(array, at, value):
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda s, t, g: (s[0], t, g), r"must be \[members, images, findings\]"),
        (lambda s, t, g: (s[:0], t, g), "nothing to select from: 0 members"),
        (lambda s, t, g: (s[:, :0], t[:0], g[:0]), "nothing to select from: 5 members, 0 images"),
        (lambda s, t, g: (s[:, :, :0], t[:, :0], g), "nothing to select from"),
        (lambda s, t, g: ([["a"]], t, g), "must be numbers"),
        (lambda s, t, g: (s, t[:-1], g), "targets of shape"),
        (lambda s, t, g: (s, t.T, g), "targets of shape"),
        (lambda s, t, g: (s, spoilt(t, (9, 1), 2), g), "target of image 9, finding 1 is 2: .*1, 0 or -1"),
        (lambda s, t, g: (s, spoilt(t.astype(float), (9, 1), np.nan), g), "target of image 9, finding 1 is nan"),
        (lambda s, t, g: (spoilt(s, (3, 7, 2), np.nan), t, g), "member 3 for image 7, finding 2 is not finite .nan"),
        (lambda s, t, g: (spoilt(s, (1, 0, 3), -np.inf), t, g), "member 1 for image 0, finding 3 is not finite .-inf"),
        (lambda s, t, g: (spoilt(s.astype(float), (4, 2, 0), 1e300), t, g), "member 4 for image 2, finding 0"),
        (lambda s, t, g: (s, t, g[:-1]), "groups of shape"),
        (lambda s, t, g: (s, t, g * 0), "all 160 images are of one group"),
        (lambda s, t, g: (s, t, spoilt(g.astype(float), 6, np.nan)), "image 6 has no group"),
        (lambda s, t, g: (s, t, ["a", None, *g[2:]]), "image 1 has no group"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(name, fault, told):
    with pytest.raises(CxrltError, match=told):
        SELECTORS[name](*fault(*cohort()))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(
    ("doubtful", "told"),
    [
        (lambda s, t, g: (s[:1], t, g), "one member only"),
        (lambda s, t, g: (s, spoilt(t, np.s_[:, 2], 0), g), "fewer than 2 positives in findings 2:"),
        (lambda s, t, g: (s[[0, 1, 2, 1, 0]], t, g), "identical members 1 and 3, 0 and 4:"),
    ],
)
def test_what_hardly_makes_sense_is_said_to_the_caller(name, doubtful, told):
    with pytest.warns(UserWarning, match=told) as told_of:
        SELECTORS[name](*doubtful(*cohort()))
    assert [each.filename for each in told_of] == [__file__]


@pytest.mark.parametrize("name", SELECTORS)
def test_what_makes_sense_gives_no_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SELECTORS[name](*cohort())


def test_long_lists_in_a_warning_are_cut_short():
    scores, targets, groups = cohort(findings=9)
    with pytest.warns(UserWarning, match="findings 0, 1, 2, 3, 4 and 4 more:"):
        check(scores, np.zeros_like(targets), groups)


def test_a_subject_is_not_named_where_all_images_are_of_one():
    scores, targets, groups = cohort()
    with pytest.raises(CxrltError) as caught:
        check(scores, targets, np.full(len(groups), "p10012345"))
    assert "p10012345" not in str(caught.value)


def test_a_doubt_is_told_by_names_to_who_knows_them():
    scores, targets, groups = cohort()
    with pytest.warns(Doubt) as doubts:
        check(scores[[0, 1, 0]], spoilt(targets, np.s_[:, 2], 0), groups)
    findings, members = (warning.message for warning in doubts)
    names = [f"name {k}" for k in range(10)]
    assert str(findings).startswith("fewer than 2 positives in findings 2: ")
    assert findings.named(names).startswith("fewer than 2 positives in findings 'name 2': ")
    assert members.named(names).startswith("identical members 'name 0' and 'name 2': ")


def test_float32_predictions_are_not_copied():
    scores, targets, groups = cohort()
    values, labels, _ = check(scores, targets, groups)
    assert values is scores
    assert labels is targets


def test_rank_and_logit_are_the_spaces_of_those_that_need_them():
    assert set(SPACES_OF) == set(SELECTORS)
    assert set(SPACES_OF.values()) <= set(spaces.SPACES)
    assert (SPACES_OF["rank_mean"], SPACES_OF["logistic"], SPACES_OF["mean"]) == ("rank", "logit", "probability")


# ---------------------------------------------------------------- settings

# for each setting: another value, and what else must be set for it to matter
OTHER = {
    ("topk_mean", "k"): (2, {}),
    ("ap_weighted", "power"): (4.0, {}),
    ("greedy", "rounds"): (2, {}),
    ("greedy_global", "rounds"): (2, {}),
    ("greedy_bagged", "rounds"): (1, {}),
    ("greedy_bagged", "bags"): (3, {}),
    ("greedy_bagged", "bag_fraction"): (0.9, {}),
    ("logistic", "l2"): (50.0, {}),
    ("simplex", "objective"): ("smooth_ap", {}),
    ("simplex", "steps"): (1, {}),
    ("simplex", "temperature"): (1.0, SMOOTH),
    ("simplex", "positives"): (5, SMOOTH),
    ("simplex", "negatives"): (5, SMOOTH),
    ("greedy_lift", "rounds"): (1, {}),
    ("frontier", "budget"): (1, {}),
    ("frontier", "rounds"): (1, {}),
    ("frontier", "most"): (1, {"budget": 3}),
}
every_setting = pytest.mark.parametrize(
    ("name", "setting"), [(name, setting) for name in SELECTORS for setting in selection.settings(name)]
)


@every_setting
def test_each_setting_changes_the_weights_and_its_default_does_not(name, setting):
    value, besides = OTHER[name, setting]
    scores, targets, groups = cohort()
    scores, default = placed(name, scores), selection.settings(name)[setting]
    plain = SELECTORS[name](scores, targets, groups, **besides)
    assert np.array_equal(plain, SELECTORS[name](scores, targets, groups, **besides, **{setting: default}))
    assert not np.allclose(plain, SELECTORS[name](scores, targets, groups, **besides, **{setting: value}), atol=1e-3)


@every_setting
@pytest.mark.parametrize("value", ["many", -1, np.nan, True])
def test_a_setting_out_of_range_is_refused_by_name(name, setting, value):
    with pytest.raises(UsageError, match=f"setting '{setting}' must be .* given {value!r}"):
        SELECTORS[name](*cohort(), **{setting: value})


def test_settings_are_told_without_what_all_selectors_share():
    assert selection.settings("mean") == {}
    assert selection.settings("topk_mean") == {"k": 5}
    assert set(selection.settings("frontier")) == {"budget", "rounds", "most"}
    assert [name for name in SELECTORS if selection.takes_costs(name)] == ["frontier"]


# ---------------------------------------------------------------- copies and useless members


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("case", "options", "near"),
    [
        ("best", {}, 0),
        ("greedy", {}, 0),
        ("greedy_global", {}, 0),
        ("frontier", {}, 0),
        ("nnls", {}, 1e-6),
        ("logistic", {"l2": 0.0}, 1e-3),
        ("simplex", {"steps": 2000}, 5e-3),
    ],
)
def test_copies_of_a_member_change_nothing_in_the_combined_score(case, options, near, together):
    scores, targets, groups = cohort(images=400)
    scores = placed(case, scores)
    copied = scores[[0, 1, 2, 3, 4, 3, 3, 1]]
    before, after = (
        combine(each, select(case, each, targets, groups, together=together, **options)) for each in (scores, copied)
    )
    assert np.abs(before - after).max() <= near


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("case", ["nnls", "logistic", "simplex", "greedy", "greedy_global", "frontier", "best"])
def test_a_useless_member_gets_nearly_nothing(case, together):
    scores, targets, groups = cohort(members=4, images=3000, prevalence=0.4)
    noise = np.random.default_rng(1).permutation(scores[3])  # as the best one is spread, and knows nothing
    weights = select(case, placed(case, np.concatenate([scores, noise[None]])), targets, groups, together=together)
    assert (weights[4] < 0.05).all()
    assert (weights[3] > 0.2).all()


# ---------------------------------------------------------------- by AP: best, topk_mean, ap_weighted, greedy_bagged


@pytest.mark.parametrize("together", [False, True])
def test_best_topk_and_ap_weighted_follow_scikit_learns_ap(together):
    scores, targets, groups = cohort(grain=20)
    ap = np.array([ap_of(each, targets) for each in scores])
    mean = np.repeat(ap.mean(axis=1, keepdims=True), 4, axis=1)
    used = mean if together else ap
    best = SELECTORS["best"](scores, targets, groups, together=together)
    assert (best[mean[:, 0].argmax()] == 1).all()
    top = SELECTORS["topk_mean"](scores, targets, groups, k=2, together=together)
    assert np.array_equal(top, np.where(np.argsort(np.argsort(-used, axis=0), axis=0) < 2, 0.5, 0))
    weighed = SELECTORS["ap_weighted"](scores, targets, groups, power=3.0, together=together)
    assert np.allclose(weighed, used**3 / (used**3).sum(axis=0), atol=1e-12)


def test_among_equal_members_the_first_is_taken_by_those_that_take_one():
    scores, targets, groups = cohort()
    same = scores[[2, 2, 2, 2]]
    assert SELECTORS["best"](same, targets, groups)[:, 0].tolist() == [1, 0, 0, 0]
    assert SELECTORS["topk_mean"](same, targets, groups, k=2)[:, 0].tolist() == [0.5, 0.5, 0, 0]
    assert SELECTORS["frontier"](same, targets, groups)[:, 0].tolist() == [1, 0, 0, 0]


def test_ap_weighted_goes_from_the_mean_to_the_best_by_its_power():
    inputs = cohort()
    assert np.allclose(SELECTORS["ap_weighted"](*inputs, power=0.0), SELECTORS["mean"](*inputs))
    assert np.allclose(SELECTORS["ap_weighted"](*inputs, power=1e6), SELECTORS["topk_mean"](*inputs, k=1))


def test_topk_of_more_than_there_are_is_the_mean_and_ranks_forget_a_members_scale():
    scores, targets, groups = cohort()
    assert np.allclose(SELECTORS["topk_mean"](scores, targets, groups, k=99), 1 / 5)
    bent = scores ** np.array([1, 2, 3, 1, 2])[:, None, None]
    combined = [
        combine(spaces.into("rank", each, each), SELECTORS["rank_mean"](each, targets, groups))
        for each in (scores, bent)
    ]
    assert np.allclose(*combined, atol=1e-6)
    ordinary = [combine(each, SELECTORS["mean"](each, targets, groups)) for each in (scores, bent)]
    assert not np.allclose(*ordinary, atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 25), st.floats(0, 1), st.integers(0, 99))
def test_every_member_is_in_as_many_bags_as_any_other(members, bags, fraction, seed):
    scores, targets, groups = cohort(members, images=20, findings=1)
    bare = inspect.unwrap(SELECTORS["greedy_bagged"])  # without positives a bag's members share its weight alike
    weights = bare(scores, 0 * targets, groups, bags=bags, bag_fraction=fraction, seed=seed)
    size = max(1, round(fraction * members))
    times = weights[:, 0] * bags * size
    assert np.allclose(times, times.round(), atol=1e-9)
    assert times.sum() == pytest.approx(bags * size)
    assert times.max() - times.min() < 1.5


def test_bags_favour_no_place_among_equal_members():
    scores, targets, groups = cohort(members=1)
    weights = SELECTORS["greedy_bagged"](np.repeat(scores, 6, axis=0), targets, groups, bags=300, rounds=2)
    assert np.abs(weights - 1 / 6).max() < 0.1


def test_a_bag_of_all_members_is_greedy():
    inputs = cohort()
    bagged = SELECTORS["greedy_bagged"](*inputs, bag_fraction=1.0, bags=3, rounds=30)
    assert np.allclose(bagged, SELECTORS["greedy"](*inputs, rounds=30), atol=1e-12)


# ---------------------------------------------------------------- nnls


def nnls_of_all_images(scores, targets, columns):
    """SciPy's NNLS on the matrix of all labelled images, each finding's columns centred; sum 1."""
    rows, aims = [], []
    for c in columns:
        known = targets[:, c] >= 0
        x, y = scores[:, known, c].T.astype(float), targets[known, c].astype(float)
        rows.append(x - x.mean(axis=0))
        aims.append(y - y.mean())
    result = scipy_nnls(np.concatenate(rows), np.concatenate(aims))[0]
    return result / result.sum()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 8),
    st.sampled_from([0, 10]),
    st.sampled_from([1.0, 1e-20, 1e8]),
    st.booleans(),
)
def test_nnls_is_scipys_on_all_images(seed, members, grain, scale, together):
    scores, targets, groups = cohort(members, 120, 2, seed, grain)
    scores = (scores * scale).astype(np.float32)
    weights = SELECTORS["nnls"](scores, targets, groups, together=together)
    for c in range(2):
        expected = nnls_of_all_images(scores / scale, targets, range(2) if together else [c])
        assert np.allclose(weights[:, c], expected, atol=1e-6)


def test_members_that_only_mislead_are_weighed_alike():
    scores, targets, groups = cohort(images=1000, prevalence=0.4)
    for name in ("nnls", "logistic"):
        for together in (False, True):
            assert np.allclose(SELECTORS[name](-scores, targets, groups, together=together), 1 / 5)


# ---------------------------------------------------------------- logistic


def test_logistic_is_scikit_learns_where_all_coefficients_are_positive():
    scores, targets, groups = cohort(members=4, images=1500, prevalence=0.4)
    logits = spaces.into("logit", scores, scores).astype(float)
    weights = SELECTORS["logistic"](logits, targets, groups, l2=1e-6)
    for c in range(4):
        known = targets[:, c] >= 0
        model = LogisticRegression(C=1e8, tol=1e-10, max_iter=10_000).fit(logits[:, known, c].T, targets[known, c])
        assert (model.coef_ > 0).all()
        assert np.allclose(weights[:, c], model.coef_[0] / model.coef_.sum(), atol=1e-4)


def test_logistic_for_all_findings_is_scikit_learns_with_an_intercept_each():
    scores, targets, groups = cohort(members=4, images=1500, prevalence=0.4)
    logits = spaces.into("logit", scores, scores)
    weights = SELECTORS["logistic"](logits, targets, groups, l2=1e-6, together=True)
    image, finding = np.nonzero(targets >= 0)
    columns = np.concatenate([logits[:, image, finding].T, np.eye(4)[finding]], axis=1)
    model = LogisticRegression(C=1e8, tol=1e-10, max_iter=10_000, fit_intercept=False)
    result = model.fit(columns, targets[image, finding]).coef_[0, :4]
    assert (result > 0).all()
    assert np.allclose(weights[:, 0], result / result.sum(), atol=1e-4)


@pytest.mark.parametrize("l2", [0.01, 1.0, 30.0])
def test_logistic_weights_are_the_least_of_its_loss_on_the_simplex(l2):
    scores, targets, groups = cohort(members=4, findings=1)
    logits = spaces.into("logit", scores, scores)
    weights = SELECTORS["logistic"](logits, targets, groups, l2=l2)[:, 0]
    known = targets[:, 0] >= 0
    x, y = logits[:, known, 0].astype(float), targets[known, 0]
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1).mean())

    def least(simplex):
        """The summed log loss and the pull, at the best scale and intercept for these proportions."""
        z, apart = simplex @ x, ((simplex - simplex.mean()) ** 2).sum()

        def loss(at):
            return (np.logaddexp(0, at[0] * z + at[1]) - y * (at[0] * z + at[1])).sum() + l2 / 2 * at[0] ** 2 * apart

        return minimize(loss, (1.0, 0.0), tol=1e-12).fun

    rng = np.random.default_rng(0)
    others = [0.9 * weights + 0.1 * rng.dirichlet(np.ones(4)) for _ in range(40)] + list(rng.dirichlet(np.ones(4), 20))
    assert min(least(other) for other in others) > least(weights) - 1e-6


def test_a_strong_pull_ends_in_the_mean():
    scores, targets, groups = cohort()
    logits = spaces.into("logit", scores, scores)
    apart = [np.ptp(SELECTORS["logistic"](logits, targets, groups, l2=l2), axis=0).max() for l2 in (0.1, 10, 1e3, 1e9)]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-6


# ---------------------------------------------------------------- simplex


def pool_loss(scores, targets, weights):
    """Log loss of the pool of weights [M] over all labelled images of all findings."""
    known = targets >= 0
    return log_loss(targets[known], np.tensordot(weights, scores.astype(float), 1)[known])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_no_point_of_the_simplex_has_a_lower_log_loss(seed, together):
    scores, targets, groups = cohort(findings=2, seed=seed, images=120)
    scores = scores.clip(0.001, 0.999)  # scikit-learn's clip is another
    weights = SELECTORS["simplex"](scores, targets, groups, steps=2000, together=together)
    points = [*np.eye(5), np.full(5, 0.2), *np.random.default_rng(seed).dirichlet(np.ones(5), 40)]
    for c in [slice(None)] if together else [slice(0, 1), slice(1, 2)]:
        reached = pool_loss(scores[:, :, c], targets[:, c], weights[:, c][:, 0])
        near = [0.98 * weights[:, c][:, 0] + 0.02 * point for point in points]
        assert min(pool_loss(scores[:, :, c], targets[:, c], each) for each in points + near) > reached - 3e-6


def test_log_loss_never_rises_with_another_step():
    scores, targets, groups = cohort(members=8, findings=1)
    scores = scores.clip(0.001, 0.999)
    weights = [SELECTORS["simplex"](scores, targets, groups, steps=steps)[:, 0] for steps in range(1, 40)]
    losses = np.array([pool_loss(scores, targets, each) for each in [np.full(8, 1 / 8), *weights]])
    assert (np.diff(losses) < 2e-6).all()  # leaving out the least weights may cost 1e-6
    assert losses[-1] < losses[0] - 1e-2


def test_threads_change_no_weight_of_the_pool():
    from cxrlt_ray.selection import em

    scores, targets, _ = cohort(members=3, images=9000, findings=1)
    inputs = scores[:, :, 0], targets[:, 0], np.full(3, 1 / 3), 0.0, 1.0
    assert np.array_equal(em._in_turn(*inputs), em._in_parallel(*inputs))


def test_the_pool_takes_more_members_than_a_least_weight_allows():
    scores = np.full((20_000, 4, 1), 0.5, np.float32)
    assert np.allclose(SELECTORS["simplex"](scores, np.array([[1], [0], [1], [0]]), np.arange(4)), 1 / 20_000)


def mean_ap(scores, targets, weights):
    return ap_of(combine(scores, np.broadcast_to(weights, (len(scores), targets.shape[1]))).astype(np.float32), targets)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 4]), st.sampled_from([0.01, 0.1, 10.0]), st.booleans())
def test_smooth_ap_is_never_worse_than_equal_weights_by_ap(seed, grain, temperature, together):
    scores, targets, groups = cohort(findings=2, seed=seed, grain=grain, images=80)
    options = SMOOTH | {"temperature": temperature, "steps": 30, "together": together}
    weights = SELECTORS["simplex"](scores, targets, groups, **options)
    gain = mean_ap(scores, targets, weights) - mean_ap(scores, targets, np.full((5, 1), 0.2))
    assert (gain.mean() if together else gain.min()) > -1e-9


def test_smooth_ap_is_better_where_a_member_misleads():
    scores, targets, groups = cohort(images=400)
    scores[0] = 1 - scores[4]
    for together in (False, True):
        weights = SELECTORS["simplex"](scores, targets, groups, together=together, **SMOOTH)
        assert (weights[0] < 0.05).all()
        gain = mean_ap(scores, targets, weights) - mean_ap(scores, targets, np.full((5, 1), 0.2))
        assert gain.min() > 0.01


def test_the_slope_is_that_of_the_smooth_ap_of_the_paper():
    rng = np.random.default_rng(0)
    sample, shares, positives, width = rng.normal(size=(3, 12)), np.r_[np.ones(4), np.full(8, 2.5)], 4, 0.3

    def value(weights):
        """Brown et al. 2020, eq. 6: a positive's rank among positives to that among all; a negative counts `share`."""
        scores, total = weights @ sample, 0.0
        for i in range(positives):
            above = shares / (1 + np.exp(-(scores - scores[i]) / width))
            above[i] = 0
            total += (1 + above[:positives].sum()) / (1 + above.sum())
        return total / positives

    weights = np.array([0.5, 0.2, 0.3])
    expected = [(value(weights + step) - value(weights - step)) / 2e-6 for step in np.eye(3) * 1e-6]
    assert np.allclose(smooth_ap._slope(weights, sample, shares, positives, width), expected, atol=1e-6)


# ---------------------------------------------------------------- frontier


COSTS = np.array([1.0, 2.0, 4.0, 3.0, 7.0])


def macro(scores, targets, weights):
    return ap_of(combine(scores, weights), targets).mean()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.floats(0.5, 9), min_size=5, max_size=5),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from([0, 5]),
)
def test_the_curve_rises_and_each_point_is_within_the_budget(seed, costs, share, together, grain):
    scores, targets, groups = cohort(images=80, seed=seed, grain=grain)
    costs = np.array(costs)
    budget = costs.min() + share * (costs.sum() - costs.min())
    points = curve(scores, targets, groups, costs, budget=budget, rounds=10, together=together)
    assert points
    for point in points:
        assert_weights(point.weights, 5, 4)
        assert point.members == tuple(np.flatnonzero(point.weights.any(axis=1)))
        assert point.cost == pytest.approx(costs[list(point.members)].sum())
        assert point.cost <= budget * (1 + 1e-9)
        assert point.score == pytest.approx(macro(scores, targets, point.weights), abs=1e-5)
    assert (np.diff([point.cost for point in points]) > 0).all()
    assert (np.diff([point.score for point in points]) > 0).all()


@pytest.mark.parametrize("together", [False, True])
def test_no_member_alone_nor_greedy_on_all_beats_the_curve_at_its_cost(together):
    scores, targets, groups = cohort()
    points = curve(scores, targets, groups, COSTS, together=together)
    alone = np.array([ap_of(each, targets).mean() for each in scores])
    for cost, score in zip(COSTS, alone, strict=True):
        assert max(point.score for point in points if point.cost <= cost) >= score - 1e-9
    every = SELECTORS["greedy"](scores, targets, groups, together=together)
    assert points[-1].score >= macro(scores, targets, every) - 1e-6


def test_a_budget_without_limit_gives_the_best_ensemble_of_the_curve():
    scores, targets, groups = cohort()
    best = curve(scores, targets, groups, COSTS)[-1].weights
    for budget in (None, np.inf, COSTS.sum()):
        assert np.array_equal(SELECTORS["frontier"](scores, targets, groups, costs=COSTS, budget=budget), best)


@pytest.mark.parametrize("together", [False, True])
def test_frontier_spends_no_more_than_its_budget_and_scores_more_for_more(together):
    scores, targets, groups = cohort(images=400)
    reached = []
    for budget in (1, 3, 5, 10, 17):
        weights = SELECTORS["frontier"](scores, targets, groups, costs=COSTS, budget=budget, together=together)
        assert COSTS[weights.any(axis=1)].sum() <= budget
        reached.append(macro(scores, targets, weights))
    assert reached[0] < reached[2] < reached[4]


def test_findings_of_few_positives_cost_nothing_beyond_the_budget():
    scores, targets, groups = cohort()
    targets[:, 3] = np.arange(160) == 7
    weights = SELECTORS["frontier"](scores, targets, groups, costs=COSTS, budget=6)
    assert COSTS[weights.any(axis=1)].sum() <= 6


def test_costs_that_sum_to_the_budget_are_within_it():
    scores, targets, groups = cohort(members=3)  # 0.1 + 0.1 + 0.1 > 0.3 in float64
    weights = SELECTORS["frontier"](scores, targets, groups, costs=np.full(3, 0.1), budget=0.3)
    assert np.array_equal(weights, SELECTORS["frontier"](scores, targets, groups, costs=np.full(3, 0.1)))
    assert weights.any(axis=1).all()


def test_what_costs_less_for_the_same_is_taken():
    scores, targets, groups = cohort()
    twice = scores[[4, 3, 4]]
    weights = SELECTORS["frontier"](twice, targets, groups, costs=[5.0, 1.0, 2.0])
    assert not weights[0].any()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"costs": COSTS, "budget": 0.5}, r"budget of 0.5 is below the cheapest member's cost, 1 \(member 0\)"),
        ({"costs": COSTS[:4]}, "costs of shape .4,. do not fit 5 members"),
        ({"costs": [1, 2, 0, 4, 5]}, "member 2 costs 0"),
        ({"costs": [1, 2, 3, np.nan, 5]}, "member 3 costs nan"),
        ({"costs": [1, 2, 3, 4, np.inf]}, "member 4 costs inf"),
        ({"costs": ["1", "a", "3", "4", "5"]}, "costs must be numbers"),
    ],
)
def test_costs_that_make_no_sense_are_refused(options, told):
    with pytest.raises(CxrltError, match=told):
        SELECTORS["frontier"](*cohort(), **options)
