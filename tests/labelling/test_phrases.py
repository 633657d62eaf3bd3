"""The grammar of phrases, and the matcher, against a plain enumeration of what a phrase stands for."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.phrases import Matcher, check_phrase, words_of


def places(phrase: str, sentence: str) -> list[str]:
    """The parts of a sentence that match, each once."""
    words = words_of(sentence)
    spans = {(m.begin, m.end) for m in Matcher([phrase]).matches(words)}
    return [sentence[words.spans[b][0] : words.spans[e - 1][1]] for b, e in sorted(spans)]


@pytest.mark.parametrize(
    ("phrase", "sentence", "matched"),
    [
        ("pleural effusion", "Small PLEURAL\n effusion.", ["PLEURAL\n effusion"]),
        ("air-fluid level", "An air/fluid level", ["air/fluid level"]),
        ("opaci*", "Opacities, opacification; opaque", ["Opacities", "opacification"]),
        ("(right|left lower) lobe", "left lower lobe and right lobe", ["left lower lobe", "right lobe"]),
        ("[small|tiny] nodule", "tiny nodule", ["tiny nodule", "nodule"]),
        ("heart ... enlarged", "heart is now much more enlarged", ["heart is now much more enlarged"]),
        ("heart ... enlarged", "heart is now much more widely enlarged", []),
        ("heart ...6 enlarged", "heart is now much more widely enlarged", ["heart is now much more widely enlarged"]),
        ("heart ... enlarged", "heart is normal, aorta enlarged", []),
    ],
)
def test_what_a_phrase_matches(phrase, sentence, matched):
    assert places(phrase, sentence) == matched


@pytest.mark.parametrize(
    "phrase",
    ["(a", "a)", "[a|b]", "", "...3", "... effusion", "effusion ...", "effusion ... [small]", "a ... ... b", "ab*", "*",
     "heart ...11 large", "heart ...0 large", "a.b|c{2}", "x ... y ... z ... w", "word " * 200, "(" * 300],
)  # fmt: skip
def test_what_is_not_in_the_grammar_is_refused_with_the_phrase(phrase):
    with pytest.raises(UsageError, match=r"phrase"):
        check_phrase(phrase)


WORDS = ("lung", "mass", "large", "right")


@given(
    st.lists(
        st.tuples(st.sampled_from(["(", "["]), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=7),
)
def test_matches_are_those_of_all_word_sequences_that_a_phrase_stands_for(groups, sentence):
    phrase = "lung " + " ".join(k + "|".join(w) + {"(": ")", "[": "]"}[k] for k, w in groups)
    choices = [[(word,) for word in words] + ([()] if kind == "[" else []) for kind, words in groups]
    sequences = {("lung", *itertools.chain(*choice)) for choice in itertools.product(*choices)}
    expected = {
        (begin, begin + len(s)) for s in sequences for begin in range(len(sentence))
        if tuple(sentence[begin : begin + len(s)]) == s
    }  # fmt: skip
    assert {(m.begin, m.end) for m in Matcher([phrase]).matches(words_of(" ".join(sentence)))} == expected


def test_a_pattern_that_would_explode_as_a_regular_expression_takes_no_time():
    phrase = "(a|a|a|a) " * 20 + "... a " + "[a|a] " * 10 + "... b"
    started = time.monotonic()
    matches = Matcher([phrase]).matches(words_of("a " * 3000))
    assert not matches
    assert time.monotonic() - started < 20


def test_many_phrases_are_found_beside_each_other():
    phrases = ["effusion*", "pleural effusion", "no effusion", "pleural ... effusion"]
    found = Matcher(phrases).matches(words_of("pleural effusion"))
    assert sorted(phrases[m.number] for m in found) == ["effusion*", "pleural ... effusion", "pleural effusion"]
