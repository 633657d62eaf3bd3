"""What names a finding beside the phrases of its rules: the words of its description, and a user's own list.

All become phrases of the rules' grammar (labelling/phrases.py), so that one matcher searches them. Names and synonyms
count as they are. A keyword counts where it has two words or more and names no other finding: "lucency" or "enlarged
cardiac silhouette", which is Cardiomegaly's, would take reports apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import RootModel

from cxrlt_ray.config import read_yaml, validate
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.phrases import LENGTH, Matcher, check_phrase, words_of
from cxrlt_ray.labelling.rules import Rules
from cxrlt_ray.text.descriptions import Own, look_up, meanings, shipped

ARTICLES = ("the", "a", "an")
BETWEEN = "[the|a|an] [right|left|both|bilateral]"  # may stand before a word of a name
GRAMMAR = re.compile(r"[*()|\[\]]|\.\.\.")
SHORT = 4  # letters below which a word has no other form


class PhraseFile(RootModel[dict[str, tuple[str, ...]]]):
    """A user's list: finding -> phrases."""


def described_phrases(findings: Sequence[str], rules: Rules, own: Own = None) -> tuple[str, ...]:
    """The phrases that the findings' descriptions name them by; () for a finding without description.

    own: the user's descriptions, whose words count beside those of the package.
    """
    every = [*look_up(findings).values(), *(look_up(findings, own).values() if own else ())]
    described = [description for description in every if description is not None]
    others = _others(rules, frozenset(findings))
    texts = [wording for description in described for wording in description.wordings]
    texts += [text for description in described for text in description.keywords if _names_one(text, others)]
    return tuple(dict.fromkeys(as_phrase(text) for text in texts))


def read_phrases(path: str) -> dict[str, tuple[str, ...]]:
    """A user's list, a YAML file of findings with phrases: plain words, or the rules' grammar where it has its signs.

    Raises UsageError, naming file and phrase, for what is neither.
    """
    content = validate(PhraseFile, read_yaml(Path(path)), path).root
    for finding, phrases in content.items():
        for phrase in phrases:
            try:
                check_phrase(as_phrase(phrase))
            except UsageError as error:
                raise UsageError(f"{path}: key '{finding}': {error}") from None
    return content


def own_phrases(
    findings: Iterable[str], phrases: Mapping[str, Sequence[str]] | None, own: Own = None
) -> tuple[str, ...]:
    """Those phrases of a user's list that are of `findings`, in the rules' grammar; an alias is its finding.

    own: the user's descriptions, whose aliases count too.
    """
    lists = phrases or {}
    wanted = set(meanings(findings, own).values())
    return tuple(
        as_phrase(text) for name, meaning in meanings(lists, own).items() if meaning in wanted for text in lists[name]
    )


def as_phrase(text: str) -> str:
    """Plain words -> a phrase that matches them in singular and plural, with articles and sides between or without.

    What has signs of the grammar is one already.

    >>> as_phrase("thin-walled lucency").replace(BETWEEN, "~")
    '(thin|thins) ~ (walled|walleds) ~ (lucencies|lucency)'
    """
    if GRAMMAR.search(text):
        return text
    every = re.findall(r"\w+", text.lower())
    if not every:
        raise UsageError(f"phrase '{text[:40]}' has no word: write words.")
    words = [word for word in every if word not in ARTICLES] or every
    phrase = f" {BETWEEN} ".join(_forms(word) for word in words)
    return phrase if len(phrase) <= LENGTH else " ".join(every)


def _forms(word: str) -> str:
    """Singular and plural of a word that may be a noun, as alternatives."""
    if len(word) < SHORT or not word.isalpha():
        return word
    forms = sorted({one for single in {word, *_singular(word)} for one in (single, _plural(single))})
    return f"({'|'.join(forms)})"


def _singular(word: str) -> list[str]:
    if word.endswith("ies"):
        return [f"{word[:-3]}y"]
    if re.search("(s|x|z|ch|sh)es$", word):
        return [word[:-2]]
    return [word[:-1]] if re.search("[^sui]s$", word) else []


def _plural(word: str) -> str:
    if re.search("[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    if word.endswith("is"):
        return f"{word[:-2]}es"
    if word.endswith("s"):
        return word if re.search("[^sui]s$", word) else f"{word}es"
    return f"{word}{'es' if re.search('(x|z|ch|sh)$', word) else 's'}"


def _names_one(keyword: str, others: Matcher) -> bool:
    return len(re.findall(r"\w+", keyword)) > 1 and not others.matches(words_of(keyword))


@lru_cache(maxsize=8)
def _others(rules: Rules, findings: frozenset[str]) -> Matcher:
    """What names findings but these: the phrases of their rules, and their descriptions' names and synonyms."""
    of_rules = [phrase for rule in rules.every if rule.finding not in findings for phrase in rule.phrases]
    descriptions = [description for description in shipped() if findings.isdisjoint(description.labels)]
    names = [as_phrase(wording) for description in descriptions for wording in description.wordings]
    return Matcher([*of_rules, *names])
