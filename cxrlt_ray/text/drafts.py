"""Drafts of descriptions by a language model, which a person reads before they are used.

Any server with OpenAI's API. Only names of findings are sent. Each reply is kept in a folder under a hash of prompt,
model and parameters, so that the same command sends nothing again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrlt_ray.config import validate
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.llm.asker import all_of
from cxrlt_ray.labelling.llm.endpoint import Client, Completion, Declined, Endpoint, Fault
from cxrlt_ray.labelling.llm.pace import backoff
from cxrlt_ray.storage import Store
from cxrlt_ray.text.descriptions import LONGEST_NAME, Description, place_names

VERSION = 1  # of the prompt: a change of its words is a change of it
CONNECTIONS = 8
REPLIES = 3  # of a finding, usable or not
TOKENS = 800  # of a reply at most
SYSTEM = (
    "You help radiologists to describe findings of chest radiographs for a model that matches images and text. Write "
    "plain sentences in the terms of radiology reports. Say only what can be seen on a radiograph. Reply in JSON."
)
QUESTION = """\
Finding: {finding}
Give
- names: one to three names that radiologists use, the usual one first, without "no" or a place.
- synonyms: up to six other wordings of the same finding, none of them a cause or a consequence.
- appearance: one to three short sentences: what is seen on a frontal or lateral chest radiograph.
- place: where it is seen, out of the places of the schema; none where it has no place.
- keywords: three to six visual signs of two or three words.
No brackets, no markup."""


class Unusable(Exception):
    """A reply that is no description; its one argument says why."""


@dataclass(frozen=True)
class Drafts:
    """What came of the findings asked for. failed: finding -> why it has no draft."""

    descriptions: tuple[Description, ...]
    failed: dict[str, str]
    requests: int


def draft(findings: Sequence[str], endpoint: Endpoint, cache: Path) -> Drafts:
    """A draft of each finding's description, with `reviewed` false, from `cache` where the same was asked before.

    Raises UsageError where the server refuses, CxrltError where it does not answer.
    """
    return asyncio.run(_Drafting(endpoint, Store(str(cache))).drafts(findings))


def messages(finding: str, reason: str = "") -> list[dict[str, str]]:
    """The chat of a request. reason: what was wrong with the last reply."""
    correction = f"\nYour last reply could not be used: {reason}" if reason else ""
    user = QUESTION.format(finding=finding) + correction
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def response_format() -> dict[str, Any]:
    """The JSON schema of a reply."""
    words = {"type": "array", "items": {"type": "string", "maxLength": LONGEST_NAME}}
    places = {"type": "array", "items": {"type": "string", "enum": list(place_names())}}
    fields = {"names": words, "synonyms": words, "appearance": {"type": "string"}, "place": places, "keywords": words}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "description", "strict": True, "schema": schema}}


def read_reply(content: str | None, finish_reason: str | None, finding: str) -> Description:
    """The draft in a reply. Raises Unusable."""
    if finish_reason not in ("stop", None):
        raise Unusable("it was cut off or withheld; reply briefly.")
    try:
        fields = json.loads(content or "")
    except ValueError:
        raise Unusable("it is not the JSON asked for.") from None
    if not isinstance(fields, dict) or set(fields) & {"finding", "aliases", "parents", "denied", "reviewed"}:
        raise Unusable("it is not the JSON asked for.")
    try:
        return validate(Description, {**fields, "finding": finding, "reviewed": False}, "the reply")
    except UsageError as error:
        raise Unusable(str(error)[:500]) from None


class _Drafting:
    """Asks an endpoint; answers from the cache come first."""

    def __init__(self, endpoint: Endpoint, cache: Store) -> None:
        self.endpoint, self.cache, self.requests = endpoint, cache, 0
        self.client = Client(endpoint, CONNECTIONS)
        self.failed: dict[str, str] = {}

    async def drafts(self, findings: Sequence[str]) -> Drafts:
        async with self.client:
            drafted = await all_of(self._draft(finding) for finding in findings)
        descriptions = tuple(description for description in drafted if description is not None)
        return Drafts(descriptions, self.failed, self.requests)

    async def _draft(self, finding: str) -> Description | None:
        name = f"{self._key(finding)}.json"
        if self.cache.exists(name):
            return validate(Description, self.cache.read_json(name), f"{self.cache.uri}/{name}")
        reason = ""
        try:
            for _ in range(REPLIES):
                completion = await self._completion(messages(finding, reason))
                try:
                    description = read_reply(completion.content, completion.finish_reason, finding)
                except Unusable as unusable:
                    reason = str(unusable)
                    continue
                self.cache.write_json(name, description.model_dump(mode="json"))
                return description
        except Declined as declined:
            reason = str(declined)
        self.failed[finding] = reason
        return None

    async def _completion(self, chat: list[dict[str, str]]) -> Completion:
        """What the server wrote. Raises Declined, Refusal, and CxrltError where it gives no answer."""
        fault: Fault | None = None
        for attempt in range(self.endpoint.attempts):
            if fault is not None:
                await asyncio.sleep(fault.wait or backoff(attempt - 1))
            self.requests += 1
            try:
                return await self.client.complete(chat, response_format())
            except Fault as last:
                fault = last
        assert fault is not None
        raise CxrltError(
            f"{self.endpoint.host} gives no answer ({fault.reason}, {self.endpoint.attempts} times): try later; what "
            "was answered is kept."
        )

    def _key(self, finding: str) -> str:
        """sha256 of all that a draft depends on."""
        endpoint = self.endpoint
        content = [VERSION, messages(finding), response_format(), endpoint.model, sorted(endpoint.parameters.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
