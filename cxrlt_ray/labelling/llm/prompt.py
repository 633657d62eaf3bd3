"""The question, as natural language inference: the report is the premise, one finding the hypothesis.

The report comes first, so that all questions of a report begin alike and a server's prefix cache reads it once. The
model quotes before it judges: the schema puts `evidence` before `label`. A quote that is not in the report makes the
reply unusable, whatever its label.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxrlt_ray.labelling.rules import NEGATIVE, POSITIVE, UNCERTAIN, FindingRule

VERSION = 1  # of the prompt: a change of its words is a change of it
LABELS = {"present": POSITIVE, "absent": NEGATIVE, "uncertain": UNCERTAIN, "not_mentioned": None}
NOT_MENTIONED = "not_mentioned"
SYSTEM = (
    "You label chest X-ray reports. You are given a report and one finding. Decide what the report says of this "
    "finding on this image. Read what the radiologist saw and concluded. The indication, the history, the technique "
    "and findings of an earlier image that are gone are no evidence. Reply in JSON."
)
QUESTION = """\
Finding: {finding}
Definition: {definition}
Labels:
- present: the report says that the image shows it. Stable, unchanged, improved or healed still means present.
- absent: the report denies it, in particular or by a statement that leaves no room for it.
- uncertain: the report leaves it open (possible, may represent, cannot be excluded). {policy}
- not_mentioned: the report says nothing of it.
{steps}"evidence": the words of the report that the label stands on, copied exactly, as few as possible; "" for \
not_mentioned. "label": one of the labels."""
POLICY = {
    "keep": "Such studies are kept apart.",
    "one": "Such studies count as present.",
    "zero": "Such studies count as absent.",
    "null": "Such studies are left out.",
}
STEPS = '"reasoning": step by step, in at most three sentences, what the report says of it. '
MOST_QUOTED = 600  # characters of a quote

TRUNCATED, NO_JSON, NO_LABEL, FOREIGN, NO_QUOTE, WITHHELD = (
    "truncated reply",
    "reply is not the JSON asked for",
    "reply has no label",
    "quote is not in the report",
    "label without a quote",
    "reply withheld by the server's filter",
)
CORRECTIONS = {
    TRUNCATED: "Reply briefly: quote at most ten words.",
    FOREIGN: "Copy the evidence from the report word for word, without changes or omissions.",
    NO_QUOTE: "Quote the words of the report that the label stands on.",
}


class Unusable(Exception):
    """A reply from which no label can be taken; its one argument is one of the reasons above."""


@dataclass(frozen=True)
class Reply:
    """A usable reply. label: of LABELS. begin, end: its quote in the report, -1 without one."""

    label: str
    begin: int = -1
    end: int = -1
    reasoning: str = ""


def question(rule: FindingRule, cot: bool = False) -> str:
    """What is asked after the report. cot: a step of reasoning before the evidence."""
    return QUESTION.format(
        finding=rule.finding,
        definition=rule.definition,
        policy=POLICY[rule.uncertain],
        steps=STEPS if cot else "",
    )


def messages(report: str, asked: str, reason: str = "") -> list[dict[str, str]]:
    """The chat of a request. asked: as of `question`. reason: why the last reply was unusable."""
    correction = f"\n{CORRECTIONS.get(reason, '')}".rstrip()
    user = f"<report>\n{report}\n</report>\n\n{asked}{correction}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def response_format(cot: bool = False) -> dict[str, Any]:
    """The JSON schema of a reply, whose fields come in this order."""
    properties: dict[str, Any] = {"reasoning": {"type": "string"}} if cot else {}
    properties |= {"evidence": {"type": "string"}, "label": {"type": "string", "enum": list(LABELS)}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "finding", "strict": True, "schema": schema}}


def read_reply(content: str | None, finish_reason: str | None, report: str) -> Reply:
    """A reply's label with its quote's place in the report. Raises Unusable."""
    if finish_reason == "length":
        raise Unusable(TRUNCATED)
    if finish_reason == "content_filter":
        raise Unusable(WITHHELD)
    try:
        fields = json.loads(content or "")
    except ValueError:
        raise Unusable(NO_JSON) from None
    if not isinstance(fields, dict):
        raise Unusable(NO_JSON)
    label, quote, reasoning = (fields.get(name, "") for name in ("label", "evidence", "reasoning"))
    if not isinstance(label, str) or label not in LABELS or not isinstance(quote, str):
        raise Unusable(NO_LABEL)
    begin, end = -1, -1
    if quote.strip():
        begin, end = place(quote, report)
    elif label != NOT_MENTIONED:
        raise Unusable(NO_QUOTE)
    return Reply(label, begin, end, reasoning if isinstance(reasoning, str) else "")


def place(quote: str, report: str) -> tuple[int, int]:
    r"""Where a quote stands in a report, up to white space, and within no word. Raises Unusable.

    >>> place("no  effusion", "There is no\neffusion.")
    (9, 20)
    """
    words = quote.split()
    if not words or len(quote) > MOST_QUOTED:
        raise Unusable(FOREIGN)
    before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
    match = re.search(before + r"\s+".join(map(re.escape, words)) + after, report)
    if match is None:
        raise Unusable(FOREIGN)
    return match.span()


def digest(rule: FindingRule, model: str, cot: bool, parameters: Mapping[str, Any]) -> bytes:
    """sha256 of all but the report that an answer depends on: finding, prompt, model and parameters."""
    prompt = [VERSION, messages("", question(rule, cot)), response_format(cot)]
    content = [rule.finding, prompt, model, dict(sorted(parameters.items()))]
    return hashlib.sha256(json.dumps(content).encode()).digest()


def key(of_text: bytes, of_question: bytes) -> bytes:
    """The name of an answer in the cache: sha256 of `text_digest` and `digest`."""
    return hashlib.sha256(of_text + of_question).digest()


def text_digest(text: str) -> bytes:
    """sha256 of a report's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
