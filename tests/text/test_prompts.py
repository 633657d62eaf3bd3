"""Prompts: what every style keeps to, and the forms of the published ones."""

from __future__ import annotations

import re

import pytest

from cxrlt_ray.errors import UsageError
from cxrlt_ray.privacy import unfit
from cxrlt_ray.text.descriptions import load_descriptions, shipped
from cxrlt_ray.text.prompts import STYLES, denial, prompts, register_style

BULLA = load_descriptions(["Bulla"])["Bulla"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("description", shipped(), ids=lambda each: each.finding)
def test_prompts_are_plain_distinct_and_the_same_for_the_same_seed(style, description):
    texts = prompts(description, style, seed=3)
    assert texts == prompts(description, style, seed=3)
    assert len(texts) == len(set(texts)) >= 1
    for text in (*texts, *denial(description)):
        assert text == text.strip() != ""
        assert not unfit(text)
        assert not re.search(r"[<>\[\]{}]", text)


@pytest.mark.parametrize("style", STYLES)
def test_no_two_findings_have_the_same_prompts(style):
    texts = [prompts(description, style) for description in shipped()]
    assert len(set(texts)) == len(texts)


def test_keywords_come_three_times_in_orders_that_the_seed_draws():
    texts = prompts(BULLA, "keywords", seed=0)
    assert len(texts) == 3
    assert all(sorted(text.split(", ")) == sorted(BULLA.keywords) for text in texts)
    assert len({prompts(BULLA, "keywords", seed) for seed in range(20)}) > 10


def test_the_forms_of_the_teams():
    assert prompts(BULLA, "name") == ("bulla",)
    assert prompts(BULLA, "names") == BULLA.wordings
    assert prompts(BULLA, "phrases") == tuple(f"{wording} seen" for wording in BULLA.wordings)
    (question,) = prompts(BULLA, "question")
    assert question.startswith("Is bulla seen in the image?")
    assert BULLA.appearance in question
    assert all(keyword in question for keyword in BULLA.keywords)
    (described,) = prompts(BULLA, "description")
    assert BULLA.appearance in described
    assert all(place in described for place in BULLA.place)


def test_a_denial_denies_and_is_no_prompt_of_the_finding():
    for description in shipped():
        affirmed = {text for style in STYLES for text in prompts(description, style)}
        assert affirmed.isdisjoint(denial(description))
    assert "no bulla seen" in denial(BULLA)
    normal = load_descriptions(["Normal"])["Normal"]
    assert "abnormal chest radiograph" in denial(normal)
    assert not any(text.startswith("no normal") for text in denial(normal))


def test_an_unknown_style_is_refused_and_a_new_one_is_added_in_one_place(monkeypatch):
    with pytest.raises(UsageError, match=r"no style of prompts 'poem': there are name, names"):
        prompts(BULLA, "poem")
    monkeypatch.setattr("cxrlt_ray.text.prompts.STYLES", dict(STYLES))
    register_style("poem")(lambda description, generator: (f"oh {description.names[0]}",))
    assert prompts(BULLA, "poem") == ("oh bulla",)
