"""Many questions at a time: one coroutine, run in this process or in an actor of Ray Data.

The first question of a text goes alone; when it is answered, the server's prefix cache holds the text for the others.
A question is asked until there is a usable reply: up to `attempts` times after faults, and REPLIES times after replies
that cannot be used, with a word on what was wrong. What is answered, or has failed by its replies, is in the cache
before the coroutine goes on; what had no reply is not, and is asked again by the next run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from cxrlt_ray.labelling.llm import prompt
from cxrlt_ray.labelling.llm.cache import FAILED, Answer, Journal
from cxrlt_ray.labelling.llm.endpoint import Client, Completion, Declined, Endpoint, Fault, Refusal
from cxrlt_ray.labelling.llm.pace import Pace, backoff
from cxrlt_ray.labelling.llm.tally import Counts

REPLIES = 3  # of a question, usable or not
THROTTLED = 600.0  # seconds that a question is sent again while the server says "too many requests"

Result = TypeVar("Result")


@dataclass(frozen=True)
class TextQuestions:
    """A text and the numbers of the findings that are asked of it."""

    text: str
    findings: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """A finding as it is asked. digest: as of `prompt.digest`."""

    question: str
    digest: bytes


@dataclass(frozen=True)
class Asking:
    """How questions are asked. asked: by the findings' numbers. rate: requests a second at most, None for no limit."""

    endpoint: Endpoint
    asked: tuple[Asked, ...]
    cot: bool = False
    concurrency: int = 64
    rate: float | None = None


class Asker:
    """Asks an endpoint, at most `concurrency` requests at a time; an async context manager.

    Nothing that it raises or returns holds a text. notice: is given a line on the first fault.
    """

    def __init__(self, asking: Asking, journal: Journal, notice: Callable[[str], None] = lambda _: None) -> None:
        self.asking, self.journal = asking, journal
        self._notice: Callable[[str], None] | None = notice
        self._format = prompt.response_format(asking.cot)
        self._free = asyncio.Semaphore(asking.concurrency)
        self._pace = Pace(asking.rate)
        self._client = Client(asking.endpoint, asking.concurrency)
        self._refusal: Refusal | None = None

    async def __aenter__(self) -> Asker:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.__aexit__(*exception)
        self.journal.close()

    async def ask_text(self, questions: TextQuestions) -> Counts:
        """Ask all questions of a text. Raises Refusal, and CxrltError where the cache cannot be written."""
        text, digest = questions.text, prompt.text_digest(questions.text)
        first, *others = [self.asking.asked[k] for k in questions.findings]
        counts = await self._ask(text, digest, first)
        for other in await all_of(self._ask(text, digest, asked) for asked in others):
            counts.add(other)
        return counts

    async def _ask(self, text: str, digest: bytes, asked: Asked) -> Counts:
        async with self._free:
            if self._refusal is not None:
                raise self._refusal
            counts = Counts()
            try:
                reply, reason, seconds = await self._usable(text, asked.question, counts)
            except Fault as fault:
                counts.silent[fault.reason] += 1
                return counts
            except Declined as declined:
                counts.failed[str(declined)] += 1
                return counts
            except Refusal as refusal:
                self._refusal = refusal
                raise
        label = reply.label if reply else FAILED
        place, reasoning = ((reply.begin, reply.end), reply.reasoning) if reply else ((-1, -1), "")
        tokens = counts.prompt_tokens, counts.completion_tokens
        self.journal.add(Answer(prompt.key(digest, asked.digest), label, *place, reason, reasoning, *tokens, seconds))
        if reply:
            counts.answered += 1
        else:
            counts.failed[reason] += 1
        return counts

    async def _usable(self, text: str, question: str, counts: Counts) -> tuple[prompt.Reply | None, str, float]:
        """A usable reply, or None and why there is none; the seconds that the last request took.

        Raises Fault, Declined and Refusal.
        """
        reason, seconds = "", 0.0
        for _ in range(REPLIES):
            completion, seconds = await self._completion(prompt.messages(text, question, reason), counts)
            counts.prompt_tokens += completion.prompt_tokens
            counts.completion_tokens += completion.completion_tokens
            try:
                return prompt.read_reply(completion.content, completion.finish_reason, text), "", seconds
            except prompt.Unusable as unusable:
                reason = str(unusable)
        return None, reason, seconds

    async def _completion(self, messages: list[dict[str, str]], counts: Counts) -> tuple[Completion, float]:
        """What the server wrote, and the seconds that it took. Raises the last Fault; Declined; Refusal."""
        faults, waits, until = 0, 0, time.monotonic() + THROTTLED
        while True:
            await self._pace.turn()
            started = time.monotonic()
            counts.requests += 1
            try:
                return await self._client.complete(messages, self._format), time.monotonic() - started
            except Fault as fault:
                faults += not fault.throttled
                if faults == self.asking.endpoint.attempts or time.monotonic() > until:
                    raise
                self._announce(fault)
                if fault.wait:
                    self._pace.rest(fault.wait)
                else:
                    await asyncio.sleep(backoff(waits))
                waits += 1

    def _announce(self, fault: Fault) -> None:
        if self._notice is not None:
            notice, self._notice = self._notice, None
            notice(f"  trying again: {fault.reason}" + (f", wait {fault.wait:.0f} s" if fault.wait else ""))


async def ask_all(asker: Asker, texts: Iterable[TextQuestions], report: Callable[[Counts], None]) -> None:
    """Ask all questions of `texts`. report: is given what came of each text. Raises what `ask_text` and it raise."""
    remaining = iter(texts)  # of which each worker takes the next

    async def work() -> None:
        for questions in remaining:
            report(await asker.ask_text(questions))

    async with asker:
        await all_of(work() for _ in range(asker.asking.concurrency))


async def all_of(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What coroutines that run at a time return; the first that raises ends the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
