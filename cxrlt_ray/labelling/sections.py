"""A report -> the sections that are read, in the order in which they count.

    ADDENDUM                        prevails over the body, wherever it stands
    FINDINGS, IMPRESSION, ...       the body
    WET READ, PRELIMINARY           count for what the body does not mention
    INDICATION, HISTORY, ...        are not read

Organ headings (LUNGS:, CHEST:) belong to the section that they stand in. A title that is none of these (PORTABLE CHEST
RADIOGRAPH:) opens a part of the body. A blank line ends what is not read, as MIMIC's reports often have the findings
behind COMPARISON without a heading; such paragraphs count where there is no heading for findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cxrlt_ray.labelling.labels import ALL, LAST, NOTHING, SECTIONS

ADDENDUM, BODY, PRELIMINARY, UNTITLED, SKIPPED, ORGAN, TITLE = range(7)
_KINDS = {
    ADDENDUM: "addend(?:um|a)",
    PRELIMINARY: "(?:wet|preliminary|prelim|initial) (?:read(?:ing)?|report|findings|interpretation)",
    BODY: "findings?|impressions?|conclusions?|opinion|interpretation|summary|diagnosis|results?|report|"
    "(?:findings?|conclusions?) ?(?:and|/|&) ?(?:impressions?|conclusions?|recommendations?)|"
    "impressions? ?(?:and|/|&) ?(?:findings?|recommendations?)|"
    "(?:final|radiographic) (?:impression|findings|diagnosis)",
    SKIPPED: "(?:clinical |brief |pertinent |patient )?(?:indications?|history|information|data|context|statement|"
    "question|details|background|presentation)|(?:indication|history) ?(?:and|/|&|for) ?[a-z ]{3,20}|"
    "reason (?:for|of) (?:the )?(?:exam(?:ination)?|study|request|this exam(?:ination)?)|reason|hx|"
    "comparisons?(?: studies| exams?)?|(?:comparison|technique)s? ?(?:and|/|&) ?(?:findings of prior|technique|"
    "comparison)|compared? (?:to|with)|techniques?|procedure|protocol|exam(?:ination)?(?: date| type)?|study|views?|"
    "type of exam(?:ination)?|date(?: of (?:exam(?:ination)?|study|service))?|notifications?|communications?|"
    "recommendations?|(?:electronically )?signed(?: by)?|dictated(?: by)?|attending|accession(?: number)?|"
    "referring physician|contrast|medications?|symptoms?|chief complaint|relevant history|priors?|limitations?",
    ORGAN: "(?:chest|lungs?|heart|cardiac|pleurae?|pleural spaces?|pleura and costophrenic angles|mediastinum|hila|"
    "bones?|osseous structures?|skeleton|skeletal|soft tissues?|abdomen|upper abdomen|diaphragm|airways?|trachea|"
    "aorta|vasculature|vessels|pulmonary vasculature|tubes|lines|catheters|devices|support devices|hardware|spine|"
    "ribs?|chest wall|other|others|miscellaneous|parenchyma|cardiomediastinal silhouette|heart size|lung volumes|"
    "pneumothorax|pleural effusions?)(?: ?(?:and|/|&|,) ?[a-z]+(?: [a-z]+)?)*",
}
_NAMES = re.compile("|".join(f"(?P<k{kind}>{names})" for kind, names in _KINDS.items()), re.IGNORECASE)
# at the begin of a line in any case, or in capitals behind a sentence; a title in capitals, at the begin of a line.
# Without a colon it has its line for itself: a blank line or a ruler below, or it is in capitals or marked (*, #)
_HEADING = re.compile(
    r"^[^\S\n]*(?P<mark>[*#]+[^\S\n]*)?(?P<line>[A-Za-z][A-Za-z ,/&()'#0-9_.-]{1,70}?)[^\S\n]*(?(mark)[*#]*[^\S\n]*)"
    r"(?::|(?P<alone>(?=\n[^\S\n]*\n)|(?=\n[^\S\n]*-+\n))|(?=\n))"
    r"|(?<=[.:;\n)] )[^\S\n]*"
    r"(?P<inline>[A-Z][A-Z /&]{3,40}|(?:Findings|Impression|Conclusion|Comparison|Indication|History)):",
    re.MULTILINE,
)
TITLE_WORDS = 12  # at most, of what stands before the first heading and is no text
_TIME = re.compile(r"\d{1,2}$")  # 'at 5:43 PM' is no heading
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


@dataclass(frozen=True)
class Section:
    """text[begin:end] of a report, without the heading `name`. rank: 0 prevails over 1, that over 2."""

    name: str
    rank: int
    begin: int
    end: int


@dataclass(frozen=True)
class Part:
    """A part of a report: text[heading:begin] is its heading (empty without one), text[begin:end] what it says."""

    name: str
    kind: int
    heading: int
    begin: int
    end: int


def parts(text: str) -> list[Part]:
    """All that a report holds, whether it is read for labels or not; one part of it all where there is no heading."""
    headings = list(_headings(text))
    return list(_parts(text, headings)) if headings else [Part("", UNTITLED, 0, 0, len(text))]


def sections(text: str) -> tuple[list[Section], str]:
    """What is to be read of a report, and by which rule: SECTIONS, LAST (ALL is its second choice) or NOTHING.

    Without a heading it is the last paragraph.
    """
    headings = list(_headings(text))
    if not headings:
        last = _last_paragraph(text)
        return ([last], LAST) if last else ([], NOTHING)
    divided = list(_parts(text, headings))
    titled = any(part.kind in (BODY, TITLE) and part.name.upper().startswith("FINDING") for part in divided)
    read = [
        Section(part.name, {ADDENDUM: 0, PRELIMINARY: 2}.get(part.kind, 1), part.begin, part.end)
        for part in divided
        if part.kind != SKIPPED and not (part.kind == UNTITLED and titled) and text[part.begin : part.end].strip()
    ]
    return read, SECTIONS if read else NOTHING


def whole(text: str) -> tuple[list[Section], str]:
    """All of a report without headings, where its last paragraph mentions nothing."""
    return [Section("", 1, 0, len(text))], ALL


def _headings(text: str) -> Iterator[tuple[str, int, int, int]]:
    """(name, kind, where the heading begins, where its text begins) of every heading."""
    for match in _HEADING.finditer(text):
        name = (match["line"] or match["inline"]).strip()
        colon = match[0].endswith(":")
        kind = _kind(name, colon)
        if kind is None and not (colon and match["line"] and name.isupper() and not _TIME.search(name)):
            continue
        if not colon and not _stands_alone(match, name, kind, text):
            continue
        yield name, TITLE if kind is None else kind, match.start(), match.end()


def _stands_alone(match: re.Match[str], name: str, kind: int | None, text: str) -> bool:
    """Whether a line without a colon is a heading. In a text in capitals a line that wraps may be STUDY or HISTORY."""
    if kind not in (ADDENDUM, BODY, PRELIMINARY, SKIPPED):
        return False
    if match["alone"] is not None or match["mark"]:
        return True
    return name.isupper() and not (kind == SKIPPED and text.isupper())


def _kind(name: str, colon: bool) -> int | None:
    """What a heading is. Without a colon FINDINGS must be all of it: "Findings consistent with edema" is a sentence."""
    cleaned = re.sub(r"\s+", " ", re.sub(r"[#()0-9_.]+", " ", name)).strip()
    match = _NAMES.fullmatch(cleaned)
    begins = "addendum|wet read|impression|findings" if colon else "addendum|wet read"
    if match is None and (first := re.match(begins, cleaned, re.IGNORECASE)):
        match = _NAMES.fullmatch(first[0])
    return int(match.lastgroup[1:]) if match and match.lastgroup else None


def _parts(text: str, headings: list[tuple[str, int, int, int]]) -> Iterator[Part]:
    """All that stands before, under and between headings."""
    headings = _without_organs(headings)
    ends = [begin for _, _, begin, _ in headings[1:]] + [len(text)]
    if head := text[: headings[0][2]].strip():
        yield Part("", UNTITLED if len(head.split()) > TITLE_WORDS else SKIPPED, 0, 0, headings[0][2])
    for (name, kind, heading, begin), end in zip(headings, ends, strict=True):
        blank = _BLANK_LINE.search(text, begin, end) if kind == SKIPPED else None
        if blank and not text[begin : blank.start()].strip():  # the heading stands alone in its line
            blank = _BLANK_LINE.search(text, blank.end(), end)
        yield Part(name, kind, heading, begin, blank.start() if blank else end)
        if blank:
            yield Part("", UNTITLED, blank.end(), blank.end(), end)


def _without_organs(headings: list[tuple[str, int, int, int]]) -> list[tuple[str, int, int, int]]:
    """Headings of organs are read with the section that they stand in; elsewhere they open one that holds them."""
    kept: list[tuple[str, int, int, int]] = []
    for name, kind, begin, behind in headings:
        if kind != ORGAN:
            kept.append((name, kind, begin, behind))
        elif not kept or kept[-1][1] == SKIPPED:
            kept.append((name, TITLE, begin, begin))
    return kept


def _last_paragraph(text: str) -> Section | None:
    begin, last = 0, None
    for blank in [*_BLANK_LINE.finditer(text), None]:
        end = blank.start() if blank else len(text)
        if any(letter.isalpha() for letter in text[begin:end]):
            last = Section("", 1, begin, end)
        begin = blank.end() if blank else end
    return last
