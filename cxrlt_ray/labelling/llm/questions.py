"""Which findings are asked of which report: all of them, or those that the rules find mentioned and an audit.

Equal texts are asked once. The audit is a random share of what the rules do not find mentioned: how often the model
says otherwise there is what `--ask mentioned` misses. What falls into it depends on text, finding and seed alone, so a
run that goes on asks the same.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.asker import TextQuestions
from cxrlt_ray.labelling.reports import Report

LONGEST = 40_000  # characters of a text that is sent: some 10,000 tokens, more than any report of chest X-rays


@dataclass(frozen=True)
class Questions:
    """What is asked of reports: questions [Q] in the texts' order, 10 million of them for MIMIC, hence arrays.

    findings, digests: the findings by number, their names and how they are asked (`prompt.digest`). texts [T]:
    distinct, in the reports' order. text_of [N]: each report's, -1 for one that is not asked. finding [Q]: by number.
    audit [Q]: asked though nothing mentions the finding. begin [T + 1]: where each text's questions begin. too_long:
    reports that are not asked for that.
    """

    findings: tuple[str, ...]
    digests: tuple[bytes, ...]
    texts: tuple[str, ...]
    text_of: np.ndarray
    finding: np.ndarray
    audit: np.ndarray
    begin: np.ndarray
    too_long: int

    def __len__(self) -> int:
        return len(self.finding)

    def keys(self, text: int) -> list[bytes]:
        """The names in the cache of the answers to a text's questions; none of text -1."""
        if text < 0:
            return []
        of_text = prompt.text_digest(self.texts[text])
        return [prompt.key(of_text, self.digests[k]) for k in self.finding[self.of_text(text)]]

    def of_text(self, text: int) -> slice:
        """Where a text's questions are."""
        return slice(self.begin[text], self.begin[text + 1])

    def grouped(self, asked: np.ndarray) -> list[TextQuestions]:
        """The questions where `asked`, bool [Q], a text at a time."""
        parts = ((text, self.of_text(k)) for k, text in enumerate(self.texts))
        return [
            TextQuestions(text, tuple(self.finding[part][asked[part]].tolist()))
            for text, part in parts
            if asked[part].any()
        ]


def to_ask(
    reports: Iterable[Report],
    findings: Sequence[str],
    digests: Sequence[bytes],
    mentioned: Callable[[str], set[str]] | None = None,
    audit: float = 0.0,
    seed: int = 0,
) -> Questions:
    """The questions to ask of `reports`.

    digests: of the findings as they are asked. mentioned: the findings that the rules find mentioned in a text; None
    asks all. audit: share of the others that is asked.
    """
    numbers: dict[str, int] = {}
    text_of, too_long = [], 0
    for report in reports:
        is_too_long = len(report.text) > LONGEST
        too_long += is_too_long
        is_asked = bool(report.text.strip()) and not is_too_long
        text_of.append(numbers.setdefault(report.text, len(numbers)) if is_asked else -1)
    finding, audited, begin = array("h"), array("b"), [0]
    for text in numbers:
        named = set(findings) if mentioned is None else mentioned(text)
        drawn = {name for name in findings if name not in named and audit and _drawn(text, name, seed) < audit}
        asked = [k for k, name in enumerate(findings) if name in named or name in drawn]
        finding.extend(asked)
        audited.extend(findings[k] in drawn for k in asked)
        begin.append(len(finding))
    return Questions(
        findings=tuple(findings),
        digests=tuple(digests),
        texts=tuple(numbers),
        text_of=np.array(text_of, int),
        finding=np.array(finding, np.int16),
        audit=np.array(audited, bool),
        begin=np.array(begin),
        too_long=too_long,
    )


def _drawn(text: str, finding: str, seed: int) -> float:
    """A number in [0, 1) that looks random, the same for the same text, finding and seed."""
    drawn = hashlib.sha256(f"{seed} {finding} ".encode() + prompt.text_digest(text)).digest()
    return int.from_bytes(drawn[:7], "big") / 2**56
