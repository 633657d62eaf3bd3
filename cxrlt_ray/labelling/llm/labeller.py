"""Labels of studies by a language model: reports in, labels out.

All answers go by the cache: what was asked now, in an earlier run, or of another report with the same text.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.labelling.labelled import RuleSet
from cxrlt_ray.labelling.labeller import Labeller
from cxrlt_ray.labelling.labels import STUDY, StudyLabels, as_tables
from cxrlt_ray.labelling.llm import outcome, plan, prompt
from cxrlt_ray.labelling.llm.asker import Asked, Asker, Asking, TextQuestions, ask_all
from cxrlt_ray.labelling.llm.cache import Answers, Journal, read_answers
from cxrlt_ray.labelling.llm.endpoint import Endpoint
from cxrlt_ray.labelling.llm.options import LlmOptions, endpoint_of
from cxrlt_ray.labelling.llm.questions import Questions, to_ask
from cxrlt_ray.labelling.llm.tally import Ceiling, Counts, Tally, reasons
from cxrlt_ray.labelling.reports import PIECE, Report, Reports
from cxrlt_ray.labelling.request import LabelRequest
from cxrlt_ray.labelling.rules import Rules
from cxrlt_ray.storage import Store
from cxrlt_ray.storage.claim import Taken, claim

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RAY_FROM = 5000  # questions below which starting Ray, some 10 s, is not worth it
UNANSWERED = "unanswered.csv"  # beside the labels

Say = Callable[[str], None]


@dataclass(frozen=True)
class Output:
    """Where the labels go, and what the column of studies' ids is called there."""

    store: Store
    id_column: str = STUDY


def labelled_by_llm(
    request: LabelRequest, reports: Reports, rule_set: RuleSet
) -> Iterator[tuple[pa.Table, pa.Table]] | None:
    """(labels, evidence) of the reports, in pieces, as `labelled` gives them by rules; None with --plan.

    Raises what `label_by_llm` raises.
    """
    rules = rule_set.load()
    out = Output(Store.holding(request.out)[0], reports.id_column)
    studies = label_by_llm(request, list(reports), rules, _mentioned(Labeller(rules)), out, request.address)
    if studies is None:
        return None
    pieces = iter(lambda: list(islice(studies, PIECE)), [])
    return (as_tables(piece, reports.id_column, rules.names, rule_set.policies(rules)) for piece in pieces)


def label_by_llm(
    options: LlmOptions,
    reports: Sequence[Report],
    rules: Rules,
    mentioned: Callable[[str], set[str]],
    out: Output,
    address: str | None = None,
    say: Say = cli.say,
) -> Iterator[StudyLabels] | None:
    """The labels of `reports` by a language model, in their order; None with --plan, which asks nothing.

    mentioned: the findings that the rules find mentioned in a text. address: of a Ray cluster. A question without a
    usable answer gives no label: UNANSWERED in `out` lists them. Raises UsageError where the server refuses, CxrltError
    where it does not answer or more fails than may.
    """
    endpoint, folder = endpoint_of(options), Path(options.cache).absolute()
    say(destination(endpoint))
    asking = _asking(options, endpoint, rules)
    digests = [asked.digest for asked in asking.asked]
    if options.ask == "mentioned":
        questions = to_ask(reports, rules.names, digests, mentioned, options.audit, options.seed)
    else:
        questions = to_ask(reports, rules.names, digests)
    if options.plan:
        _say_plan(options, asking, questions, _to_send(options, questions, read_answers(folder), say), say)
        return None
    try:
        with claim(Store(str(folder))):
            _ask(options, asking, questions, folder, address, say)
            answers = read_answers(folder)
    except Taken as taken:
        raise CxrltError(f"--cache {options.cache}: {taken} writes there now; wait, or name another folder.") from None
    if options.ask == "mentioned":
        say(outcome.audit_line(questions, answers))
    _write_unanswered(outcome.unanswered(questions, answers, reports, out.id_column), out.store, say)
    return outcome.study_labels(questions, answers, reports, rules)


def _mentioned(labeller: Labeller) -> Callable[[str], set[str]]:
    """The findings that stand in a text by the rules, whatever is said of them."""

    def mentioned(text: str) -> set[str]:
        reading = labeller.read(text)
        return {span.finding for span in reading.spans} | set(reading.labels)

    return mentioned


def destination(endpoint: Endpoint) -> str:
    """Where reports are sent, as the first line of a run says it."""
    if endpoint.is_local:
        return f"Reports are sent to {endpoint.host}, on this machine"
    encrypted = "" if endpoint.is_encrypted else ", UNENCRYPTED"
    return f"Reports LEAVE THIS MACHINE: their whole text is sent to {endpoint.host}{encrypted}"


def _asking(options: LlmOptions, endpoint: Endpoint, rules: Rules) -> Asking:
    cot, model, parameters = options.cot, endpoint.model, endpoint.parameters
    asked = [Asked(prompt.question(rule, cot), prompt.digest(rule, model, cot, parameters)) for rule in rules.findings]
    return Asking(endpoint, tuple(asked), cot, options.concurrency, options.rate)


def _to_send(options: LlmOptions, questions: Questions, answers: Answers, say: Say) -> np.ndarray:
    """The questions that the cache does not answer, bool [Q], with a line on all."""
    labelled, failed = outcome.known(questions, answers)
    to_send = ~labelled if options.retry_failed else ~(labelled | failed)
    too_long = f"; {questions.too_long:,} reports are too long to be sent" if questions.too_long else ""
    say(
        f"{len(questions):,} questions on {len(questions.texts):,} distinct texts of {len(questions.text_of):,} "
        f"reports, {len(questions) - to_send.sum():,} of them in the cache{too_long}"
    )
    return to_send


def _say_plan(options: LlmOptions, asking: Asking, questions: Questions, to_send: np.ndarray, say: Say) -> None:
    known = [asked.question for asked in asking.asked]
    texts = questions.grouped(to_send)
    request_plan = plan.plan_of(texts, known, options.cot, options.concurrency, options.rate)
    is_priced = options.price_in is not None or options.price_out is not None
    prices = (options.price_in or 0.0, options.price_out or 0.0) if is_priced else None
    for line in plan.lines_of(request_plan, options.rate, prices, options.concurrency):
        say(line)


def _ask(
    options: LlmOptions, asking: Asking, questions: Questions, folder: Path, address: str | None, say: Say
) -> None:
    """Ask what the cache does not answer; the first question alone, which tells whether the server answers at all."""
    answers = read_answers(folder)
    to_send = _to_send(options, questions, answers, say)
    tally = Tally(
        total=int(to_send.sum()),
        questions=len(questions),
        before=Counter() if options.retry_failed else outcome.failures(questions, answers),
        ceiling=Ceiling(options.max_failed, options.most_failed),
        silence=2 * options.concurrency,
        host=asking.endpoint.host,
        say=say,
    )
    if not tally.total:
        return
    head, *texts = questions.grouped(to_send)
    first, rest = replace(head, findings=head.findings[:1]), replace(head, findings=head.findings[1:])
    _ask_here(replace(asking, concurrency=1), folder, [first], tally.add_first, say)
    texts = [rest, *texts] if rest.findings else texts
    if tally.total < RAY_FROM and address is None:
        _ask_here(asking, folder, texts, tally.add, say)
    else:
        from cxrlt_ray.cluster.start import start_ray
        from cxrlt_ray.labelling.llm.actor import ask_on_ray

        start_ray(address)
        ask_on_ray(asking, folder, texts, tally.add)
    counts = tally.counts
    say(
        f"{counts.answered:,} questions answered in {counts.requests:,} requests; tokens, by the server's count: "
        f"{counts.prompt_tokens:,} of prompts, {counts.completion_tokens:,} of replies"
    )


def _ask_here(
    asking: Asking, folder: Path, texts: list[TextQuestions], report: Callable[[Counts], None], say: Say
) -> None:
    """Ask by the coroutine in this process."""

    async def ask() -> None:
        await ask_all(Asker(asking, Journal(folder), say), texts, report)

    asyncio.run(ask())


def _write_unanswered(table: pd.DataFrame, store: Store, say: Say) -> None:
    """List the questions without a usable answer; remove an older list where there are none."""
    if len(table):
        store.write(UNANSWERED, table.to_csv(index=False).encode())
        why = reasons(table["reason"].value_counts())
        say(f"{len(table):,} labels stay empty for lack of an answer ({why}): {store.uri}/{UNANSWERED} lists them")
    elif store.exists(UNANSWERED):
        store.delete(UNANSWERED)
