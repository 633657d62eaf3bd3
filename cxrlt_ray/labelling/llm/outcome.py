"""What the answers come to: the labels of studies, what the audit found, what has no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cxrlt_ray.labelling.closure import NORMAL, closed, is_normal
from cxrlt_ray.labelling.labels import ALL, NOTHING, Evidence, StudyLabels
from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.cache import FAILED, Answer, Answers
from cxrlt_ray.labelling.llm.questions import Questions
from cxrlt_ray.labelling.reports import Report
from cxrlt_ray.labelling.rules import NEGATIVE, Rules

FOUND = ("present", "uncertain")
NO_REPLY = "no reply"
PIECE = 500  # texts

Said = list[tuple[str, Answer | None]]  # a finding and its answer


def known(questions: Questions, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Which questions have a label in the cache, and which have failed, bool [Q] each."""
    labelled, failed = [np.zeros(0, bool)], [np.zeros(0, bool)]
    for texts in _pieces(range(len(questions.texts))):
        of_texts = answers.known([key for text in texts for key in questions.keys(text)])
        labelled.append(of_texts[0])
        failed.append(of_texts[1])
    return np.concatenate(labelled), np.concatenate(failed)


def study_labels(
    questions: Questions, answers: Answers, reports: Sequence[Report], rules: Rules
) -> Iterator[StudyLabels]:
    """The labels of reports, in their order, with what they imply. reports, rules: those of the questions.

    Normal is the model's own answer, but for a report with a finding that is not normal.
    """
    for report, (text, said) in zip(reports, _answers(questions, answers, questions.text_of.tolist()), strict=True):
        labels: dict[str, int] = {}
        evidence: dict[str, Evidence] = {}
        for finding, answer in said:
            value = None if answer is None else prompt.LABELS.get(answer.label)
            if answer is not None and value is not None:
                labels[finding] = value
                evidence[finding] = _evidence(report, finding, value, answer)
        closure = closed(labels, rules)
        for finding, (value, cause) in closure.items():
            if cause and finding in rules.names:
                while closure[cause][1]:  # what was said itself
                    cause = closure[cause][1]
                labels[finding] = value
                phrase = f"{cause}: {evidence[cause].phrase}"
                evidence[finding] = replace(evidence[cause], finding=finding, phrase=phrase)
        if labels.get(NORMAL) and not is_normal(labels, (), rules):
            labels[NORMAL] = NEGATIVE
            del evidence[NORMAL]
        source = ALL if text >= 0 else NOTHING
        yield StudyLabels(report.study_id, report.subject_id, labels, tuple(evidence.values()), source)


def unanswered(questions: Questions, answers: Answers, reports: Sequence[Report], id_column: str) -> pd.DataFrame:
    """The questions without a usable answer, in columns `id_column`, finding and reason."""
    if known(questions, answers)[0].all():
        return pd.DataFrame(columns=[id_column, "finding", "reason"])
    rows = [
        (report.study_id, finding, answer.reason if answer else NO_REPLY)
        for report, (_, said) in zip(reports, _answers(questions, answers, questions.text_of.tolist()), strict=True)
        for finding, answer in said
        if answer is None or answer.label == FAILED
    ]
    return pd.DataFrame(rows, columns=[id_column, "finding", "reason"])


def failures(questions: Questions, answers: Answers) -> Counter[str]:
    """Why questions have no usable reply, of those that had some reply."""
    reasons: Counter[str] = Counter()
    for _, said in _answers(questions, answers, range(len(questions.texts))):
        reasons.update(answer.reason for _, answer in said if answer is not None and answer.label == FAILED)
    return reasons


def audit_line(questions: Questions, answers: Answers) -> str:
    """How often the model finds what the rules do not find mentioned."""
    labels = []
    for text, said in _answers(questions, answers, range(len(questions.texts))):
        audited = questions.audit[questions.of_text(text)]
        labels += [a.label for (_, a), is_audit in zip(said, audited, strict=True) if is_audit and a is not None]
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
    from scipy.stats import binomtest

    if not total:
        return 0.0, 1.0
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _answers(questions: Questions, answers: Answers, texts: Sequence[int]) -> Iterator[tuple[int, Said]]:
    """Each of `texts`, by number, with the findings that are asked of it and the answers; none of text -1."""
    for piece in _pieces(texts):
        keys = [questions.keys(text) for text in piece]
        known_answers = iter(answers.get([key for of_text in keys for key in of_text]))
        for text, of_text in zip(piece, keys, strict=True):
            names = [questions.findings[k] for k in questions.finding[questions.of_text(text)]] if of_text else []
            yield text, [(name, next(known_answers)) for name in names]


def _pieces(texts: Sequence[int]) -> Iterator[Sequence[int]]:
    """`texts` by PIECE: their answers are looked up together."""
    return (texts[k : k + PIECE] for k in range(0, len(texts), PIECE))


def _evidence(report: Report, finding: str, value: int, answer: Answer) -> Evidence:
    """The quote that an answer stands on, with its place in the column that it is from."""
    column, start = report.cell_at(answer.begin)
    quote, place = report.text[answer.begin : answer.end], (answer.begin - start, answer.end - start)
    return Evidence(report.study_id, finding, value, column, "", -1, *place, quote, answer.reasoning)
