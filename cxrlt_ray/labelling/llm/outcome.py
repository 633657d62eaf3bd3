"""What the answers come to: the labels of studies, what the audit found, what has no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from cxrlt_ray.labelling.labels import Evidence, StudyLabels
from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.cache import FAILED, Answer, Answers
from cxrlt_ray.labelling.llm.questions import Questions
from cxrlt_ray.labelling.reports import Report

READ, NOT_READ = "all", "none"  # of a report, as the column `source` of the labels says: the model reads it whole
FOUND = ("present", "uncertain")
NO_REPLY = "no reply"
LEVEL = 1.96  # standard errors of a 95 % interval


def known(questions: Questions, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Which questions have a label in the cache, and which have failed, bool [Q] each."""
    parts = [answers.known(questions.keys(text)) for text in range(len(questions.texts))]
    labelled, failed = zip(*parts, strict=True) if parts else ([np.zeros(0, bool)], [np.zeros(0, bool)])
    return np.concatenate(labelled), np.concatenate(failed)


def study_labels(questions: Questions, answers: Answers, reports: Sequence[Report]) -> Iterator[StudyLabels]:
    """The labels of reports, in their order. reports: those of the questions."""
    for report, text in zip(reports, questions.text_of.tolist(), strict=True):
        labels: dict[str, int] = {}
        evidence = []
        for finding, answer in _answers(questions, answers, text):
            value = None if answer is None else prompt.LABELS.get(answer.label)
            if answer is not None and value is not None:
                labels[finding] = value
                evidence.append(_evidence(report, finding, value, answer))
        source = READ if text >= 0 else NOT_READ
        yield StudyLabels(report.study_id, report.subject_id, labels, tuple(evidence), source)


def unanswered(questions: Questions, answers: Answers, reports: Sequence[Report]) -> pd.DataFrame:
    """The questions without a usable answer, in columns study_id, finding and reason."""
    rows = [
        (report.study_id, finding, answer.reason if answer else NO_REPLY)
        for report, text in zip(reports, questions.text_of.tolist(), strict=True)
        for finding, answer in _answers(questions, answers, text)
        if answer is None or answer.label == FAILED
    ]
    return pd.DataFrame(rows, columns=["study_id", "finding", "reason"])


def failures(questions: Questions, answers: Answers) -> Counter[str]:
    """Why questions have no usable reply, of those that had some reply."""
    reasons: Counter[str] = Counter()
    for text in range(len(questions.texts)):
        of_text = (answer for _, answer in _answers(questions, answers, text))
        reasons.update(answer.reason for answer in of_text if answer is not None and answer.label == FAILED)
    return reasons


def audit_line(questions: Questions, answers: Answers) -> str:
    """How often the model finds what the rules do not find mentioned."""
    labels = []
    for text in range(len(questions.texts)):
        audited = questions.audit[questions.of_text(text)]
        of_text = [answer for _, answer in _answers(questions, answers, text)] if audited.any() else []
        labels += [a.label for a, is_audit in zip(of_text, audited, strict=False) if is_audit and a is not None]
    total, count = sum(label != FAILED for label in labels), sum(label in FOUND for label in labels)
    if not total:
        return "Audit: nothing was asked that the rules do not find mentioned (--audit is its share)"
    low, high = wilson(count, total)
    return (
        f"Audit: of {total:,} random pairs of text and finding that the rules do not find mentioned, the model calls "
        f"{count:,} present or uncertain ({count / total:.1%}, 95 % interval {low:.1%} to {high:.1%})"
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, `count` of `total` (Wilson 1927); (0, 1) of nothing.

    >>> [round(bound, 3) for bound in wilson(0, 100)], wilson(0, 0)
    ([0.0, 0.037], (0.0, 1.0))
    """
    if not total:
        return 0.0, 1.0
    share, square = count / total, LEVEL**2 / total
    middle = (share + square / 2) / (1 + square)
    half = LEVEL * (share * (1 - share) / total + square / total / 4) ** 0.5 / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _answers(questions: Questions, answers: Answers, text: int) -> Iterator[tuple[str, Answer | None]]:
    """The findings that are asked of a text, with the answers; none of text -1."""
    if text >= 0:
        numbers = questions.finding[questions.of_text(text)]
        yield from zip((questions.findings[k] for k in numbers), answers.get(questions.keys(text)), strict=True)


def _evidence(report: Report, finding: str, value: int, answer: Answer) -> Evidence:
    """The quote that an answer stands on, with its place in the column that it is from."""
    begin, end, column = answer.begin, answer.end, ""
    for name, first, last in report.cells:
        if first <= begin < last:
            column, begin, end = name, begin - first, end - first
            break
    quote = report.text[answer.begin : answer.end]
    return Evidence(report.study_id, finding, value, column, "", -1, begin, end, quote, answer.reasoning)
