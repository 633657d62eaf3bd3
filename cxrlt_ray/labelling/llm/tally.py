"""What has come of the questions so far, and when too many of them have failed to go on."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cxrlt_ray import cli
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.output.forms import LINE_SECONDS

KEPT = "What is answered is kept: the same command goes on from there"


@dataclass
class Counts:
    """What came of questions. failed: those without a usable reply, silent: those without any, by reason.

    refusal: why the server takes no further request; empty where it does.
    """

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    silent: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refusal: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Counts:
        """From the fields that `content` gives, as of a JSON object."""
        return cls(**{**content, "failed": Counter(content["failed"]), "silent": Counter(content["silent"])})

    def content(self) -> dict[str, Any]:
        """The fields, for a JSON object."""
        return asdict(self)

    def add(self, other: Counts) -> None:
        """Count `other`, too."""
        self.answered += other.answered
        self.failed.update(other.failed)
        self.silent.update(other.silent)
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.refusal = self.refusal or other.refusal


@dataclass(frozen=True)
class Ceiling:
    """The questions that may stay without a usable answer: a share of all, rounded up, and at most a number."""

    share: float
    most: int

    def of(self, total: int) -> int:
        """Their number among `total` questions.

        >>> Ceiling(0.02, 1000).of(50), Ceiling(0.02, 1000).of(51), Ceiling(0.02, 1000).of(1_000_000)
        (1, 2, 1000)
        """
        return min(math.ceil(self.share * total), self.most)


def reasons(failures: Mapping[str, int]) -> str:
    """Reasons with their counts, the most frequent first."""
    by_count = sorted(failures.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {reason}" for reason, count in by_count)


class Tally:
    """Counts of a run: prints progress, and raises where the run must end.

    total: questions to ask now. questions: of the command, those in the cache included. before: of these those that
    failed, by reason. silence: questions in a row without any reply after which the server counts as down.
    """

    def __init__(
        self,
        total: int,
        questions: int,
        before: Mapping[str, int],
        ceiling: Ceiling,
        silence: int,
        host: str,
        say: Callable[[str], None],
    ) -> None:
        self.total, self.questions, self.before, self.ceiling = total, questions, Counter(before), ceiling
        self.silence, self.host, self.say = silence, host, say
        self.counts = Counts()
        self._in_a_row = 0
        self._started = self._reported = time.monotonic()
        self.check()

    @property
    def done(self) -> int:
        """Questions that are through, whatever came of them."""
        return self.counts.answered + self.counts.failed.total() + self.counts.silent.total()

    def add(self, counts: Counts) -> None:
        """Count what came of questions. Raises CxrltError where the run must end."""
        self.counts.add(counts)
        replied = counts.answered + counts.failed.total()
        self._in_a_row = 0 if replied else self._in_a_row + counts.silent.total()
        self.check()
        now = time.monotonic()
        if now - self._reported > LINE_SECONDS:
            self._reported = now
            self.say(self._progress(now - self._started))

    def add_first(self, counts: Counts) -> None:
        """Count what came of the first question, which tells whether the server answers at all."""
        self.add(counts)
        if counts.silent:
            self._raise_if_down()

    def check(self) -> None:
        """Raise UsageError where the server refuses, CxrltError where it is down or too much has failed."""
        if self.counts.refusal:
            raise UsageError(self.counts.refusal)
        if self._in_a_row >= self.silence:
            self._raise_if_down()
        failures = self.before + self.counts.failed + self.counts.silent
        allowed = self.ceiling.of(self.questions)
        if failures.total() > allowed:
            raise CxrltError(
                f"{failures.total():,} of {self.questions:,} questions have no usable answer, and {allowed:,} may "
                f"(--max-failed {self.ceiling.share:g}, at most {self.ceiling.most:,}): {reasons(failures)}. {KEPT}; "
                "allow more with --max-failed, or ask these once more with --retry-failed."
            )

    def _raise_if_down(self) -> None:
        raise CxrltError(f"{self.host} does not answer ({reasons(self.counts.silent)}). {KEPT} when it does.")

    def _progress(self, seconds: float) -> str:
        rate = self.done / seconds
        left = cli.duration((self.total - self.done) / rate) if rate else "?"
        failed = self.counts.failed.total() + self.counts.silent.total()
        tail = f", {failed:,} without an answer" if failed else ""
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        return f"  {self.done:,} of {self.total:,} questions, {speed} a second, {left} left{tail}"
