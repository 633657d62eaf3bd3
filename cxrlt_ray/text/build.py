"""Reports -> a corpus: in this process, or by Ray Data where they are many; written as they come.

A second wording of the reports (translated to another language and back) comes from a table of the user's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.labelled import RuleSet, over_pieces
from cxrlt_ray.labelling.reports import Piece, Reports, read_reports
from cxrlt_ray.storage import Store
from cxrlt_ray.text.corpus import CORPUS, DEFAULT_RULES, KEY, MOST_WITHOUT, About, Corpus, check_coverage, plain_ids
from cxrlt_ray.text.corpus_table import FIRST, SECOND, corpus_schema, piece_table
from cxrlt_ray.text.meta_fields import MetaField, load_meta_fields

if TYPE_CHECKING:
    import pyarrow as pa


def build_corpus(
    reports: str,
    manifest: Manifest,
    store: Store,
    *,
    second: str | None = None,
    rule_set: RuleSet = DEFAULT_RULES,
    meta_fields: str | None = None,
    most_without: float = MOST_WITHOUT,
    address: str | None = None,
) -> tuple[Corpus, list[str]]:
    """The corpus of a manifest's studies, written to `store`, and notes for a person.

    reports: a tree or table as `read_reports` takes it. second: a table of the reports in other words (`study_id`,
    `text`). meta_fields: a file instead of the package's. most_without: share of training studies without report, from
    which on it is refused. Raises UsageError for that, for input without reports and for wrong files.
    """
    first = read_reports(reports)
    others = None if second is None else read_reports(second)
    write_corpus(first, store, manifest, rule_set, load_meta_fields(meta_fields), others, address)
    corpus = Corpus.read(store)
    notes = [*first.notes, *(others.notes if others else []), *corpus.notes]
    if others is not None and not corpus.has_second.any():
        raise UsageError(f"{second} has no study of the reports: its ids must be written as theirs.")
    return corpus, [*notes, *check_coverage(corpus, manifest, most_without)]


def write_corpus(
    reports: Reports, store: Store, manifest: Manifest | None = None, rule_set: RuleSet = DEFAULT_RULES,
    fields: Sequence[MetaField] | None = None, second: Reports | None = None, address: str | None = None,
    name: str = CORPUS,
) -> None:  # fmt: skip
    """Write the corpus of reports, piece by piece; with a manifest, that of its studies."""
    import pyarrow.parquet as pq

    fields = load_meta_fields() if fields is None else tuple(fields)
    about = About(rule_set, fields, rule_set.load().names)
    schema = corpus_schema().with_metadata({KEY: about.as_json()})
    with (
        store.place(name) as path,
        pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as file,
    ):
        for wording, source in ((FIRST, reports), (SECOND, second)):
            if source is not None:
                for table in _tables(source, wording, about, manifest, address):
                    file.write_table(table.replace_schema_metadata(schema.metadata))


def _tables(
    reports: Reports, wording: int, about: About, manifest: Manifest | None, address: str | None
) -> Iterator[pa.Table]:
    wanted = None if manifest is None else plain_ids(manifest)
    work = partial(piece_table, reports=reports.opener(), wording=wording, rule_set=about.rule_set, fields=about.fields)
    count = reports.count if wanted is None else min(reports.count, len(wanted))
    for (table,) in over_pieces(_wanted(reports.pieces, wanted), work, count, address):
        yield table


def _wanted(pieces: Iterator[Piece], wanted: frozenset[str] | None) -> Iterator[Piece]:
    for piece in pieces:
        kept = [part for part in piece if wanted is None or part.study_id.removeprefix("s") in wanted]
        if kept:
            yield kept
