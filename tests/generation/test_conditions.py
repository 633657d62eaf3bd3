"""Which findings generated images are to show: whose company they keep, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray.errors import UsageError
from cxrlt_ray.generation.conditions import draw_conditions, encoded, prompt, tail_sets

FINDINGS = ("Mass", "Nodule", "Edema")
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, -1], [0, 0, 1], [1, 0, -1]], np.int8)


def test_unknown_is_half_way_between_present_and_absent_and_nothing_known_is_the_null():
    assert encoded(np.array([[1, 0, -1]], np.int8)).tolist() == [[1, -1, 0]]
    assert not encoded(np.full((2, 3), -1, np.int8)).any()


def test_an_image_alone_shows_its_set_and_nothing_else():
    drawn = draw_conditions(["Mass", "Mass+Nodule"], TARGETS, FINDINGS, 4, "alone", 0)
    assert len(drawn) == 8
    assert (drawn.vectors[:4] == [1, 0, 0]).all()
    assert (drawn.vectors[4:] == [1, 1, 0]).all()
    assert (TARGETS[drawn.source[4:]][:, :2] == 1).all()


@given(each=st.integers(1, 20), seed=st.integers(0, 5))
def test_real_company_is_that_of_a_training_image_and_sources_take_turns(each, seed):
    drawn = draw_conditions(["Mass", "Edema"], TARGETS, FINDINGS, each, "real", seed)
    assert (drawn.vectors == TARGETS[drawn.source]).all()
    assert (drawn.vectors[:each, 0] == 1).all()
    assert (drawn.vectors[each:, 2] == 1).all()
    counts = np.bincount(drawn.source[:each], minlength=5)[[0, 1, 4]]
    assert counts.max() - counts.min() <= 1
    assert len(np.unique(drawn.seed)) == 2 * each


def test_a_set_that_is_added_changes_no_other_sets_images():
    alone = draw_conditions(["Mass"], TARGETS, FINDINGS, 6, "real", 3)
    both = draw_conditions(["Edema", "Mass"], TARGETS, FINDINGS, 6, "real", 3)
    assert (both.seed[6:] == alone.seed).all()
    assert (both.source[6:] == alone.source).all()


def test_tail_findings_are_those_below_a_hundredth_with_a_positive():
    targets = np.zeros((1000, 3), np.int8)
    targets[:5, 0] = targets[:200, 1] = 1
    assert tail_sets(targets, FINDINGS) == ("Mass",)
    assert tail_sets(targets[:, [1, 2]], ("Nodule", "Edema")) == ("Nodule",)  # the rarest with a positive
    with pytest.raises(UsageError, match="none of the findings that were learnt has a positive image"):
        tail_sets(targets[:, [2]], ("Edema",))


def test_a_prompt_names_the_findings_that_are_present():
    assert prompt(np.array([1, 1, 0]), FINDINGS) == "Mass, Nodule"
    assert prompt(np.array([0, -1, 0]), FINDINGS) == "no finding"


@pytest.mark.parametrize(
    ("sets", "company", "said"),
    [
        (["Mas"], "real", "has not learnt 'Mas'; of its 3 findings the nearest are Mass"),
        (["Mass+Dragon"], "alone", "has not learnt 'Dragon'"),
        (["Nodule+Edema"], "real", "no training image has it"),
        (["Mass"], "usual", "--company is alone or real, not 'usual'"),
    ],
)
def test_what_was_not_learnt_cannot_be_drawn(sets, company, said):
    with pytest.raises(UsageError, match=said):
        draw_conditions(sets, TARGETS, FINDINGS, 2, company, 0)
