"""Requests, tokens, time and cost of a run, before its first request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cxrlt_ray import cli
from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.asker import TextQuestions

CHARACTERS = 4.0  # of a token, in English reports and our questions (SmolLM2: 4.0)
FRAME_TOKENS = 20  # of a chat's frame
REPLY_TOKENS, REASONING_TOKENS = 35, 90  # of a reply: a quote of some ten words and a label; three sentences before
SECONDS = 1.0  # of a request, where no rate is given


@dataclass(frozen=True)
class RequestPlan:
    """What is to be asked. repeated: tokens of prompts that a server's prefix cache may serve. seconds: all of it."""

    requests: int
    texts: int
    prompt_tokens: int
    repeated: int
    reply_tokens: int
    seconds: float

    def cost(self, price_in: float, price_out: float) -> float:
        """At prices of a million tokens, none of them cheaper for being cached."""
        return (self.prompt_tokens * price_in + self.reply_tokens * price_out) / 1e6


def plan_of(
    texts: Sequence[TextQuestions], questions: Sequence[str], cot: bool, concurrency: int, rate: float | None
) -> RequestPlan:
    """The plan for `texts`. questions: what is asked, by finding. rate: requests a second, if limited."""
    of_question = [len(question) + len(prompt.SYSTEM) for question in questions]
    requests = sum(len(text.findings) for text in texts)
    of_texts = [len(text.text) for text in texts]
    asked = sum(of_question[k] for text in texts for k in text.findings)
    sent = sum(length * len(text.findings) for length, text in zip(of_texts, texts, strict=True))
    shared = sum(length + len(prompt.SYSTEM) for length in of_texts)
    repeated = sent + requests * len(prompt.SYSTEM) - shared
    speed = min(concurrency / SECONDS, rate or float("inf"))
    return RequestPlan(
        requests=requests,
        texts=len(texts),
        prompt_tokens=round((asked + sent) / CHARACTERS) + FRAME_TOKENS * requests,
        repeated=round(repeated / CHARACTERS),
        reply_tokens=(REPLY_TOKENS + (REASONING_TOKENS if cot else 0)) * requests,
        seconds=requests / speed,
    )


def lines_of(plan: RequestPlan, rate: float | None, prices: tuple[float, float] | None, concurrency: int) -> list[str]:
    """The plan in words. prices: of a million tokens of prompts and of replies."""
    if not plan.requests:
        return ["Nothing is left to ask: all answers are in the cache."]
    speed = f"at {rate:g} a second" if rate and rate < concurrency / SECONDS else f"if one takes {SECONDS:g} s and"
    at_a_time = "" if speed.startswith("at ") else f" {concurrency} are under way (give --rate for your server's)"
    share = plan.repeated / max(plan.prompt_tokens, 1)
    lines = [
        f"Requests: {plan.requests:,} on {plan.texts:,} texts, more where a reply cannot be used",
        f"Tokens: about {_rounded(plan.prompt_tokens)} of prompts ({share:.0%} repeated: a prefix cache may serve "
        f"these) and {_rounded(plan.reply_tokens)} of replies",
        f"Time: about {cli.duration(plan.seconds)} {speed}{at_a_time}",
    ]
    if prices is not None:
        lines.append(f"Cost: about {plan.cost(*prices):,.2f} at {prices[0]:g} and {prices[1]:g} a million tokens")
    return lines


def _rounded(tokens: int) -> str:
    """Two digits of an estimate: 350,000; 1.2 million."""
    if tokens >= 1_000_000:
        return f"{tokens / 1e6:,.1f} million"
    digits = max(len(str(tokens)) - 2, 0)
    return f"{round(tokens, -digits):,}"
