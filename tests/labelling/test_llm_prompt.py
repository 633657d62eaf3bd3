"""One finding a request, the report first; a reply counts with a quote of the report's own words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.rules import FindingRule

EDEMA = FindingRule(finding="Edema", definition="Fluid in the lungs.")
MASS = FindingRule(finding="Mass", definition="A lesion above 3 cm.", uncertain="one")
REPORT = "FINDINGS: No\n  pulmonary edema.  A large mass is seen.\nIMPRESSION: Mass."


def written(rule, report=REPORT, **options):
    return json.dumps(prompt.messages(report, prompt.question(rule, **options)))


def usable(reply, report=REPORT, finish_reason="stop"):
    return prompt.read_reply(reply if isinstance(reply, str) else json.dumps(reply), finish_reason, report)


def refused(reply, report=REPORT, finish_reason="stop"):
    with pytest.raises(prompt.Unusable) as caught:
        usable(reply, report, finish_reason)
    return str(caught.value)


def test_all_questions_of_a_report_begin_alike_up_to_the_end_of_the_report():
    edema, mass = written(EDEMA), written(MASS)
    end = edema.index("</report>")
    assert json.dumps(REPORT)[1:-1] in edema[:end]
    assert mass[:end] == edema[:end]
    assert EDEMA.definition in edema
    assert MASS.definition not in edema


def test_the_prompt_holds_the_findings_policy_for_uncertain():
    assert "count as present" in written(MASS)
    assert "count as present" not in written(EDEMA)


def test_the_schema_asks_for_the_quote_before_the_label_and_for_reasoning_before_both():
    def fields(cot):
        return list(prompt.response_format(cot)["json_schema"]["schema"]["properties"])

    assert fields(False) == ["evidence", "label"]
    assert fields(True) == ["reasoning", "evidence", "label"]
    assert "reasoning" in written(EDEMA, cot=True)
    assert "reasoning" not in written(EDEMA)


def test_a_quote_is_found_whatever_its_white_space_and_gives_its_place_in_the_original():
    reply = usable({"evidence": " No pulmonary edema.", "label": "absent"})
    assert reply.label == "absent"
    assert REPORT[reply.begin : reply.end] == "No\n  pulmonary edema."


@pytest.mark.parametrize("quote", ["No edema", "no pulmonary edema", "pulmonary ... mass", "pulm", "ass", "x" * 1000])
def test_a_quote_that_is_not_in_the_report_is_refused(quote):
    assert refused({"evidence": quote, "label": "present"}) == prompt.FOREIGN


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", prompt.NO_JSON),
        ('{"evidence": "Mass", "la', prompt.NO_JSON),
        ("[1]", prompt.NO_JSON),
        ("Sure! The finding is present.", prompt.NO_JSON),
        ({"evidence": "Mass"}, prompt.NO_LABEL),
        ({"evidence": "Mass", "label": "positive"}, prompt.NO_LABEL),
        ({"evidence": "Mass", "label": ["present"]}, prompt.NO_LABEL),
        ({"evidence": None, "label": "present"}, prompt.NO_LABEL),
        ({"evidence": " ", "label": "uncertain"}, prompt.NO_QUOTE),
    ],
)
def test_replies_that_give_no_label(reply, reason):
    assert refused(reply) == reason


def test_a_truncated_reply_is_refused_though_it_is_complete_json():
    assert refused({"evidence": "Mass", "label": "present"}, finish_reason="length") == prompt.TRUNCATED
    assert refused({"evidence": "Mass", "label": "present"}, finish_reason="content_filter") == prompt.WITHHELD


def test_what_is_not_mentioned_needs_no_quote():
    assert usable({"evidence": "", "label": "not_mentioned"}) == prompt.Reply("not_mentioned")


@given(st.text(min_size=1), st.data())
def test_words_of_a_text_are_found_in_it(text, data):
    words = text.split()
    if words:
        first = data.draw(st.integers(0, len(words) - 1))
        quote = "\t ".join(words[first : data.draw(st.integers(first, len(words) - 1)) + 1])
        if len(quote) <= prompt.MOST_QUOTED:
            begin, end = prompt.place(quote, text)
            assert text[begin:end].split() == quote.split()


def test_an_answer_is_kept_for_its_text_finding_prompt_model_and_parameters_alone():
    def key(text=REPORT, rule=EDEMA, model="m", cot=False, **parameters):
        return prompt.key(prompt.text_digest(text), prompt.digest(rule, model, cot, parameters))

    keys = [
        key(),
        key(text=REPORT + " "),
        key(rule=MASS),
        key(rule=EDEMA.model_copy(update={"definition": "Another."})),
        key(model="n"),
        key(cot=True),
        key(seed=1),
        key(seed=2),
    ]
    assert len(set(keys)) == len(keys)
    assert key(seed=1, temperature=0) == key(temperature=0, seed=1)
    assert key(rule=EDEMA.model_copy(update={"phrases": ("edema",)})) == key()
