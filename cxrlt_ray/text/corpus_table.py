"""Reports as rows of a corpus: the text as it was written, and where in it everything stands.

A row holds the places of its sections, sentences, statements and meta fields as lists of numbers, so that a corpus of
227,000 reports is its text and a few hundred bytes a report, and no Python object.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from cxrlt_ray.labelling.labelled import RuleSet, unpacked
from cxrlt_ray.labelling.labeller import Labeller
from cxrlt_ray.labelling.reports import Piece, Report, Reports
from cxrlt_ray.labelling.sections import Section
from cxrlt_ray.text.meta_fields import MetaField, MetaSpan
from cxrlt_ray.text.scrub import Scrubber
from cxrlt_ray.text.statements import Sentence, StudyTexts, says_something, study_texts

if TYPE_CHECKING:
    import pyarrow as pa

FIRST, SECOND = 0, 1  # wordings: the report itself, and its copy in other words
ROWS = 1000  # of a piece


def corpus_schema() -> pa.Schema:
    """Of a corpus.

    wording: FIRST or SECOND. empty: it says nothing beside meta fields. *_begin, *_end: characters in `text`.
    statement_sentence: the number of a sentence of the row. statement_finding: the number of one of the findings.
    statement_value: 1 affirmed, 0 denied, -1 unsure. meta_field: the number of one of the meta fields.
    """
    import pyarrow as pa

    places = pa.list_(pa.int32())
    columns = {"study_id": pa.large_string(), "wording": pa.int8(), "foreign": pa.bool_(), "empty": pa.bool_()}
    columns |= {"text": pa.large_string()}
    columns |= {f"{kind}_{side}": places for kind in ("section", "sentence", "meta") for side in ("begin", "end")}
    columns |= {"meta_field": pa.list_(pa.int16()), "statement_sentence": places}
    columns |= {"statement_finding": pa.list_(pa.int16()), "statement_value": pa.list_(pa.int8())}
    return pa.schema(columns)


def text_table(
    reports: Sequence[Report], wording: int, labeller: Labeller, fields: Sequence[MetaField], hidden: Sequence[str] = ()
) -> pa.Table:
    """The rows of reports. hidden: findings whose statements are left out, implied ones too."""
    import pyarrow as pa

    number = {name: k for k, name in enumerate(labeller.rules.names)}
    rows = []
    for report in reports:
        texts = study_texts(report.text, labeller, fields)
        empty = not says_something(report.text, 0, len(report.text), texts.meta)
        about = {"study_id": report.study_id, "wording": wording, "foreign": texts.foreign, "empty": empty}
        rows.append({**about, "text": report.text, **_places(texts), **_statements(texts, number, hidden)})
    return pa.Table.from_pylist(rows, schema=corpus_schema())


def piece_table(
    piece: Piece, reports: Reports, wording: int, rule_set: RuleSet, fields: Sequence[MetaField]
) -> tuple[pa.Table]:
    """The rows of a piece of reports, which are read here."""
    return (text_table(reports.read(piece), wording, _labeller(rule_set), fields),)


def scrubbed_piece(
    piece: bytes,
    rule_set: RuleSet,
    fields: Sequence[MetaField],
    hidden: tuple[str, ...],
    phrases: tuple[str, ...] = (),
) -> tuple[pa.Table, pa.Table]:
    """Packed rows without what says something of `hidden` or has one of `phrases`, and how many sentences went.

    A report in another language, in which no phrase can be searched, becomes empty.
    """
    import pyarrow as pa

    rows = unpacked(piece)
    labeller, scrubber = _labeller(rule_set), _scrubber(rule_set, hidden, phrases)
    tables, removed = [rows.slice(0, 0)], 0
    for k, (study, text, foreign, wording) in enumerate(
        zip(*(rows[name].to_pylist() for name in ("study_id", "text", "foreign", "wording")), strict=True)
    ):
        scrubbed = scrubber(text)
        removed += scrubbed.sentences
        if scrubbed.text == text and not foreign and not _states(rows, k, labeller, hidden):
            tables.append(rows.slice(k, 1))
            continue
        left = Report(study, None, "" if foreign else scrubbed.text)
        tables.append(text_table([left], wording, labeller, fields, hidden))
    return pa.concat_tables(tables).combine_chunks(), pa.table({"removed": pa.array([removed], pa.int64())})


def _places(texts: StudyTexts) -> dict[str, list[int]]:
    kinds: dict[str, Sequence[Section | Sentence | MetaSpan]] = {
        "section": texts.sections,
        "sentence": texts.sentences,
        "meta": texts.meta,
    }
    begins = {f"{kind}_begin": [span.begin for span in spans] for kind, spans in kinds.items()}
    ends = {f"{kind}_end": [span.end for span in spans] for kind, spans in kinds.items()}
    return {**begins, **ends, "meta_field": [span.field for span in texts.meta]}


def _statements(texts: StudyTexts, number: dict[str, int], hidden: Sequence[str]) -> dict[str, list[int]]:
    kept = [statement for statement in texts.statements if statement.finding not in hidden]
    return {
        "statement_sentence": [statement.sentence for statement in kept],
        "statement_finding": [number[statement.finding] for statement in kept],
        "statement_value": [statement.value for statement in kept],
    }


def _states(rows: pa.Table, k: int, labeller: Labeller, hidden: Sequence[str]) -> bool:
    """Whether a row has a statement of `hidden`, as one that is implied."""
    numbers = {labeller.rules.names.index(name) for name in hidden if name in labeller.rules.names}
    return not numbers.isdisjoint(rows["statement_finding"][k].as_py())


@lru_cache(maxsize=2)
def _labeller(rule_set: RuleSet) -> Labeller:
    return Labeller(rule_set.load())


@lru_cache(maxsize=2)
def _scrubber(rule_set: RuleSet, hidden: tuple[str, ...], phrases: tuple[str, ...]) -> Scrubber:
    return Scrubber(_labeller(rule_set).rules, hidden, phrases)
