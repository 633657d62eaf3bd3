"""Folds of findings: relatives together, no fold empty, the same mixture of rarities, the same again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_ray.data.tasks import GROUPS, HEAD, MEDIUM, TAIL, TASK1, TASK1_2026, rarity_of
from cxrlt_ray.errors import UsageError
from cxrlt_ray.text.descriptions import load_descriptions
from cxrlt_ray.text.groups import ALWAYS, LEAST, finding_folds, parents

SHARES = st.sampled_from([0.3, 0.15, 0.05, 0.02, 0.004, 0.0005])


@st.composite
def family(draw):
    """Findings with shares and a forest of parents above them."""
    count = draw(st.integers(6, 30))
    names = [f"finding {k}" for k in range(count)]
    above = {names[k]: [names[draw(st.integers(0, k - 1))]] for k in range(1, count) if draw(st.integers(0, 3)) == 0}
    return names, np.array(draw(st.lists(SHARES, min_size=count, max_size=count))), above


def counts(folds, prevalence, number):
    """Findings of each kind by fold, int [folds, GROUPS]."""
    kinds = [rarity_of(share) for share in prevalence]
    return np.array(
        [[sum(kinds[k] == kind for k in np.flatnonzero(folds == fold)) for kind in GROUPS] for fold in range(number)]
    )


@settings(max_examples=30, deadline=None)
@given(family(), st.integers(2, 5), st.integers(0, 3))
def test_relatives_share_a_fold_and_no_fold_is_empty(drawn, number, seed):
    names, prevalence, above = drawn
    roots = len(names) - len(above)
    if number > roots:
        with pytest.raises(UsageError, match=f"give 2 to {roots}"):
            finding_folds(names, prevalence, number, seed, above)
        return
    folds = finding_folds(names, prevalence, number, seed, above)
    assert set(folds.tolist()) == set(range(number))
    for child, (parent,) in above.items():
        assert folds[names.index(child)] == folds[names.index(parent)]
    assert folds.tolist() == finding_folds(names, prevalence, number, seed, above).tolist()


@settings(max_examples=30, deadline=None)
@given(st.lists(SHARES, min_size=10, max_size=30), st.integers(2, 5), st.integers(0, 3))
def test_unrelated_findings_are_spread_evenly_by_rarity(shares, number, seed):
    names, prevalence = [f"finding {k}" for k in range(len(shares))], np.array(shares)
    of_kinds = counts(finding_folds(names, prevalence, number, seed, {}), prevalence, number)
    assert (np.ptp(of_kinds, axis=0) <= 1).all()
    for column, kind in enumerate(GROUPS):
        if of_kinds[:, column].sum() >= number * LEAST[kind]:
            assert of_kinds[:, column].min() >= LEAST[kind]


def realistic(findings):
    """Shares with the heads of CXR-LT 2024 and a tail."""
    heads = dict.fromkeys(("Support Devices", "Lung Opacity", "Cardiomegaly", "Pleural Effusion", "Atelectasis"), 0.25)
    spread = np.geomspace(0.06, 0.0008, len(findings))
    return np.array([heads.get(name, share) for name, share in zip(findings, spread, strict=True)])


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_challenge_has_a_head_two_medium_and_two_tail_findings_in_each_fold(number):
    prevalence = realistic(TASK1)
    folds = finding_folds(TASK1, prevalence, number)
    of = dict(zip(TASK1, folds.tolist(), strict=True))
    assert of["Normal"] == ALWAYS == -1
    assert of["Rib Fracture"] == of["Fracture"] == of["Clavicle Fracture"]
    assert of["Hydropneumothorax"] == of["Pneumothorax"] == of["Pleural Effusion"]
    assert of["Pneumonia"] == of["Consolidation"] == of["Lung Opacity"] == of["Nodule"] == of["Round(ed) Atelectasis"]
    assert of["Cardiomegaly"] == of["Enlarged Cardiomediastinum"]
    normal = TASK1.index("Normal")
    of_kinds = counts(np.delete(folds, normal), np.delete(prevalence, normal), number)
    assert (of_kinds >= [LEAST[kind] for kind in (HEAD, MEDIUM, TAIL)]).all()


def test_a_generation_that_is_not_asked_for_still_relates_but_siblings_without_their_parent_do_not():
    above = {"a": ["b"], "b": ["c"], "d": ["e"], "f": ["e"]}
    shares = np.full(4, 0.05)
    folds = [finding_folds(["a", "c", "d", "f"], shares, 3, seed, above) for seed in range(10)]
    assert all(fold[0] == fold[1] for fold in folds)
    assert all(fold[2] != fold[3] for fold in folds)


def test_other_spellings_and_labels_are_the_same_finding():
    names = [
        "cardiomegaly",
        "Enlarged cardiomediastinum",
        "Tortuous Aorta",
        "aortic elongation",
        "Hernia",
        "no finding",
    ]
    folds = finding_folds(names, np.full(6, 0.05), 3)
    assert folds[0] == folds[1]
    assert folds[2] == folds[3]
    assert folds[5] == ALWAYS
    folds = dict(zip(TASK1_2026, finding_folds(TASK1_2026, np.full(30, 0.05), 4).tolist(), strict=True))
    assert folds["Hydropneumothorax"] == folds["Pneumothorax"] == folds["pleural effusion"]
    assert folds["central venous catheter"] == folds["Support Devices"]


def test_parents_are_those_of_the_hierarchy_the_rules_and_the_descriptions(tmp_path):
    known = parents()
    assert known["Pneumonia"] == ("Consolidation",)
    assert known["Hydropneumothorax"] == ("Pneumothorax", "Pleural Effusion")
    assert "Lung Opacity" in known["Infiltration"]
    path = tmp_path / "mine.yaml"
    path.write_text(
        "finding: Pleural Mass\nnames: [pleural mass]\nappearance: A mass.\nkeywords: [a, b, c]\nparents: [Mass]\n"
    )
    mine = load_descriptions(["Pleural Mass"], path)
    assert parents(tuple(mine.values()))["Pleural Mass"] == ("Mass",)


def test_an_alias_of_the_users_keeps_its_own_relatives():
    (mass,) = load_descriptions(["Mass"]).values()
    own = mass.model_copy(update={"finding": "Tumour", "aliases": ("Mass", "Growth"), "names": ("tumour",)})
    related = parents((own,))
    assert {"Lung Lesion", "Tumour"} <= set(related["Mass"])
    for names in (("Mass", "Lung Lesion"), ("Tumour", "Lung Lesion"), ("Mass", "Growth")):
        fold = finding_folds((*names, "Scoliosis", "Hernia"), np.full(4, 0.05), 2, hierarchy=related)
        assert fold[0] == fold[1]
        with pytest.raises(UsageError, match="3 folds of findings: give 2 to 2"):
            finding_folds((*names, "Scoliosis"), np.full(3, 0.05), 3, hierarchy=related)


def test_wrong_numbers_of_folds_and_shares_are_refused():
    with pytest.raises(UsageError, match="1 folds of findings: give 2 to"):
        finding_folds(TASK1, np.full(40, 0.1), 1)
    with pytest.raises(UsageError, match="40 findings and 39 prevalences"):
        finding_folds(TASK1, np.full(39, 0.1), 3)
    assert set(finding_folds(["a", "b"], np.array([np.nan, 0.5]), 2, 0, {}).tolist()) == {0, 1}
