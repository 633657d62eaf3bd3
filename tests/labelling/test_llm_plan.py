"""What a run will ask, and when a request may be sent."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import numpy as np
import pytest
from scipy.stats import binomtest

from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.asker import TextQuestions
from cxrlt_ray.labelling.llm.outcome import wilson
from cxrlt_ray.labelling.llm.pace import FIRST_WAIT, LONGEST_ASKED, LONGEST_WAIT, backoff, retry_after
from cxrlt_ray.labelling.llm.plan import lines_of, plan_of
from cxrlt_ray.labelling.llm.questions import to_ask
from cxrlt_ray.labelling.reports import Report

QUESTIONS = ["is it a mass? " * 10, "is it an edema? " * 10]


def test_a_plan_counts_what_would_be_sent():
    texts = [TextQuestions("a" * 4000, (0, 1)), TextQuestions("b" * 400, (1,))]
    plan = plan_of(texts, QUESTIONS, cot=False, concurrency=10, rate=2.0)
    sent = [prompt.messages(text.text, QUESTIONS[k]) for text in texts for k in text.findings]
    characters = sum(len(message["content"]) for chat in sent for message in chat)
    assert (plan.requests, plan.texts, plan.seconds) == (3, 2, 1.5)
    assert plan.prompt_tokens == pytest.approx(characters / 4, rel=0.1)
    assert plan.repeated == pytest.approx((4000 + len(prompt.SYSTEM)) / 4, rel=0.1)
    assert plan.cost(2.0, 0.0) == pytest.approx(plan.prompt_tokens * 2 / 1e6)
    assert plan_of(texts, QUESTIONS, True, 10, 2.0).reply_tokens > plan.reply_tokens


def test_a_plan_without_a_rate_says_what_it_assumes():
    lines = lines_of(plan_of([TextQuestions("a", (0,))], QUESTIONS, False, 64, None), None, None, 64)
    assert any("if one takes 1 s and 64 are under way" in line for line in lines)
    assert not any("Cost" in line for line in lines)


def test_the_audit_draws_its_share_of_what_is_not_mentioned_at_random():
    reports = [Report(f"s{k}", None, f"text {k}") for k in range(4000)]

    def drawn(seed):
        asked = to_ask(reports, ["A", "B"], [b"", b""], lambda text: {"A"}, audit=0.1, seed=seed)
        assert (asked.finding[~asked.audit] == 0).all()
        assert (asked.finding[asked.audit] == 1).all()
        return {text for text in range(4000) if asked.audit[asked.of_text(text)].any()}

    first, other = drawn(0), drawn(1)
    assert binomtest(len(first), 4000, 0.1).pvalue > 1e-3
    assert first == drawn(0)
    assert binomtest(len(first & other), len(first), 0.1).pvalue > 1e-3


@pytest.mark.parametrize(("count", "total"), [(0, 20), (3, 50), (50, 50), (500, 1000)])
def test_the_audits_interval_is_wilsons(count, total):
    reference = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson(count, total) == pytest.approx((reference.low, reference.high), abs=1e-4)


def test_waits_double_at_random_up_to_a_longest():
    for fault in range(12):
        longest = min(FIRST_WAIT * 2**fault, LONGEST_WAIT)
        waits = [backoff(fault) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert np.std(waits) > 0.05 * longest


def test_retry_after_is_read_as_seconds_and_as_a_date():
    now = datetime(2026, 11, 29, 12, tzinfo=UTC)
    date = format_datetime(datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC), usegmt=True)
    assert retry_after({"Retry-After": date}, now.timestamp()) == 30
    assert retry_after({"Retry-After": "1e9"}) == LONGEST_ASKED
    assert retry_after({"Retry-After": "-5"}) == retry_after({"Retry-After": "nan"}) == 0
