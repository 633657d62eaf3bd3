"""The texts of all studies of a cohort, kept as one Parquet file, and drawn from for batches.

A draw depends on seed, epoch and study alone: not on the batch, its order, the process or how many there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cxrlt_ray.data.asking import CORPUS
from cxrlt_ray.data.given_labels import rows_of_studies
from cxrlt_ray.data.manifest import MAIN, Manifest, studies
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.labelling.labelled import RuleSet, over_pieces, packed
from cxrlt_ray.labelling.rules import POSITIVE
from cxrlt_ray.storage import Store
from cxrlt_ray.text.corpus_table import FIRST, ROWS, SECOND, scrubbed_piece
from cxrlt_ray.text.descriptions import Own
from cxrlt_ray.text.meta_fields import MetaField, MetaSpan, masked
from cxrlt_ray.text.naming import described_phrases, own_phrases
from cxrlt_ray.text.scrub import check_words, ruled_names

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
KEY = b"cxrlt_ray"  # of the metadata
MOST_WITHOUT = 0.5  # share of training studies without report
DEFAULT_RULES = RuleSet(None, None, ("cardiopulmonary",), False, "keep")


@dataclass(frozen=True)
class About:
    """What a corpus is made with.

    findings: whose statements it holds. hidden: those of which it says nothing. phrases: of a user's list and
    descriptions, which do not stand in it either.
    """

    rule_set: RuleSet
    fields: tuple[MetaField, ...]
    findings: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    removed: int = 0
    phrases: tuple[str, ...] = ()

    def as_json(self) -> bytes:
        """For a file's metadata."""
        fields = [meta_field.model_dump() for meta_field in self.fields]
        return json.dumps({"version": VERSION, **asdict(replace(self, fields=())), "fields": fields}).encode()

    @classmethod
    def of_json(cls, content: bytes) -> About:
        """What `as_json` gave. Raises ValueError, KeyError or TypeError for anything else, another version too."""
        about = json.loads(content)
        if about.pop("version") != VERSION:
            raise ValueError("another version")
        rules = about["rule_set"]
        findings = None if rules["findings"] is None else tuple(rules["findings"])
        about["rule_set"] = RuleSet(**rules | {"findings": findings, "blockers": tuple(rules["blockers"])})
        about["fields"] = tuple(MetaField.model_validate(meta_field) for meta_field in about["fields"])
        return cls(**about | {name: tuple(about[name]) for name in ("findings", "hidden", "phrases")})


@dataclass(frozen=True)
class Said:
    """A sentence, its meta fields masked, and what it says of a finding: 1 affirmed, 0 denied, -1 unsure."""

    text: str
    finding: str
    value: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts of S studies. table: as corpus_schema says; a study has one row of wording FIRST, at most one of SECOND."""

    table: pa.Table = field(repr=False)
    about: About

    @cached_property
    def studies(self) -> pd.Index:
        """The studies' ids [S], as the reports' source writes them. A study is known by its place here."""
        import pyarrow as pa

        return pd.Index(self._ids.take(pa.array(self._first)).to_pandas().astype("str"), name="study_id")

    @property
    def foreign(self) -> np.ndarray:
        """Which studies' reports are not in English: they state nothing that is read. Bool [S]."""
        return self._flags("foreign")[self._first]

    @property
    def has_second(self) -> np.ndarray:
        """Which studies have a second wording, bool [S]."""
        return self._row_of[SECOND] >= 0

    @property
    def notes(self) -> list[str]:
        """How many reports there are, and what is special about them, for a person."""
        first = self._first
        count, copies = len(first), int(self.has_second.sum())
        lines = [f"Reports: {count:,} studies{f', {copies:,} with a second wording' if copies else ''}."]
        for name, what in (("empty", "have no text"), ("foreign", "are not in English: they state nothing")):
            if number := int(self._flags(name)[first].sum()):
                lines.append(f"Reports: {number:,} of {count:,} {what}.")
        if self.about.hidden:
            lines.append(f"Reports: {self.about.removed:,} sentences on {', '.join(self.about.hidden)} are removed.")
        return lines

    def rows_of(self, manifest: Manifest) -> np.ndarray:
        """The study of each of a manifest's images, int64 [N]; -1 where it has no report, or one without text."""
        rows = rows_of_studies(self.studies, pd.Series(studies(manifest.table)[0]))
        empty = self._flags("empty")[self._first]
        return np.where((rows >= 0) & ~np.append(empty, True)[rows], rows, -1).astype(np.int64)

    def draw(
        self, rows: np.ndarray, kind: str, seed: int, epoch: int, *, mask: float = 1.0, second: float = 0.0
    ) -> list[str]:
        """A text of each study [B], in one line; "" for -1.

        kind: one of KINDS; a study that has none of it gives the next larger text. mask: probability with which each
        kind of meta field is masked in a draw. second: that of a study's second wording, where it has one.
        """
        if kind not in KINDS:
            raise UsageError(f"there is no kind of text '{kind}': there are {', '.join(KINDS)}.")
        return [self._drawn(int(row), KINDS[kind], seed, epoch, mask, second) if row >= 0 else "" for row in rows]

    def drawable(self, manifest: Manifest, kind: str, second: bool = False) -> list[str]:
        """All texts that `draw` gives of images of a manifest that are not of its test split.

        second: of second wordings too. All meta fields are masked, as they are by default.
        """
        texts = {"": None}
        rows = self.rows_of(manifest.where((manifest.table["split"] != "test").to_numpy()))
        studies = np.unique(rows[rows >= 0])
        of_table = [self._row_of[wording][studies] for wording in ((FIRST, SECOND) if second else (FIRST,))]
        for at in (int(at) for at in np.concatenate(of_table) if at >= 0):
            for begin, end in self._places(at, KINDS[kind]):
                texts[self._masked(at, begin, end)] = None
        return list(texts)

    def statements(self, row: int, wording: int = FIRST) -> list[Said]:
        """All that a study's report states; nothing where it has no such wording."""
        said = self.sentences(row, wording)
        return [Said(text, finding, value) for text, values in said for finding, value in values.items()]

    def sentences(self, row: int, wording: int = FIRST) -> list[tuple[str, dict[str, int]]]:
        """A report's sentences, their meta fields masked, and what each says of findings, as in Said."""
        at = int(self._row_of[wording][row])
        if at < 0:
            return []
        columns = (self._list(f"statement_{name}", at).tolist() for name in ("sentence", "finding", "value"))
        values: dict[int, dict[str, int]] = {}
        for sentence, finding, value in zip(*columns, strict=True):
            values.setdefault(sentence, {})[self.about.findings[finding]] = value
        text_at = self._masker(at)
        return [(text_at(*place), values.get(k, {})) for k, place in enumerate(KINDS["sentence"](self, at))]

    def scrubbed(
        self,
        findings: Sequence[str],
        address: str | None = None,
        phrases: Mapping[str, Sequence[str]] | None = None,
        descriptions: Own = None,
    ) -> Corpus:
        """The corpus without a sentence in which a phrase of `findings` matches (scrub.py).

        phrases: of findings, in plain words or the rules' grammar; those of `findings` are searched too. descriptions:
        the user's own, whose words are searched beside the package's. Reports in other languages become empty, as
        nothing can be searched in them. Raises UsageError for a finding of which no word is known.
        """
        import pyarrow as pa

        rules = self.about.rule_set.load()
        names = ruled_names(findings, rules, descriptions)
        check_words(names, rules, descriptions, phrases)
        described = described_phrases(names, rules, descriptions) if descriptions else ()
        words = (*own_phrases(names, phrases, descriptions), *described)
        hidden = tuple(dict.fromkeys([*self.about.hidden, *names]))
        own = tuple(dict.fromkeys([*self.about.phrases, *words]))
        pieces = (packed(self.table.slice(k, ROWS)) for k in range(0, self.table.num_rows, ROWS))
        about = self.about
        work = partial(scrubbed_piece, rule_set=about.rule_set, fields=about.fields, hidden=hidden, phrases=own)
        tables, removed = [self.table.slice(0, 0)], about.removed
        for table, count in over_pieces(pieces, work, self.table.num_rows, address):
            tables.append(table)
            removed += count["removed"][0].as_py()
        return Corpus(_whole(pa.concat_tables(tables)), replace(about, hidden=hidden, removed=removed, phrases=own))

    def write(self, store: Store, name: str = CORPUS) -> None:
        """Write it as a Parquet file, whole or not at all."""
        import pyarrow.parquet as pq

        table = self.table.replace_schema_metadata({KEY: self.about.as_json()})
        with store.place(name) as path:
            pq.write_table(table, path, row_group_size=10 * ROWS, compression="zstd", write_page_checksum=True)

    @classmethod
    def read(cls, store: Store, name: str = CORPUS, manifest: Manifest | None = None) -> Corpus:
        """What was written, in parts; with a manifest its studies alone are kept.

        Raises CxrltError for a file that is no corpus, or of another version.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = None if manifest is None else plain_ids(manifest)
        try:
            with store.fetched(name) as path, pq.ParquetFile(path, page_checksum_verification=True) as file:
                about = About.of_json((file.schema_arrow.metadata or {})[KEY])
                schema = file.schema_arrow.remove_metadata()
                parts = [pa.table([[]] * len(schema), schema=schema)]
                for batch in file.iter_batches(10 * ROWS):
                    table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                    parts.append(table if wanted is None else table.filter(_among(table["study_id"], wanted)))
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise CxrltError(
                f"{store.uri}/{name} is no corpus of this version ({type(error).__name__}): build it anew."
            ) from None
        return cls(_whole(pa.concat_tables(parts)), about)

    def __reduce__(self) -> tuple[type[Corpus], tuple[pa.Table, About]]:
        """To another process without what is derived."""
        return Corpus, (self.table, self.about)

    @cached_property
    def _ids(self) -> pa.Array:
        return self.table["study_id"].chunk(0)

    @cached_property
    def _first(self) -> np.ndarray:
        """The table's rows that are the studies' own reports, int64 [S]."""
        return np.flatnonzero(self.table["wording"].to_numpy() == FIRST)

    @cached_property
    def _row_of(self) -> tuple[np.ndarray, np.ndarray]:
        """The table's row of each study and wording, int64 [S]; -1 without one."""
        import pyarrow as pa

        others = np.flatnonzero((self.table["wording"].to_numpy() == SECOND) & ~self._flags("empty"))
        ids = pd.Index(self._ids.take(pa.array(others)).to_pandas().astype("str"))
        place = rows_of_studies(ids, pd.Series(self.studies))
        return self._first, np.where(place >= 0, np.append(others, -1)[place], -1)

    @cached_property
    def _texts(self) -> pa.Array:
        return self.table["text"].chunk(0)

    @cached_property
    def _lists(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each column of lists where a row's begins and ends [R + 1], and all values."""
        columns = {name: self.table[name].chunk(0) for name in self.table.column_names if "_" in name}
        return {
            name: (column.offsets.to_numpy(), column.values.to_numpy())
            for name, column in columns.items()
            if name != "study_id"
        }

    def _flags(self, name: str) -> np.ndarray:
        return self.table[name].to_numpy()

    def _list(self, name: str, at: int) -> np.ndarray:
        offsets, values = self._lists[name]
        return values[offsets[at] : offsets[at + 1]]

    def _masked(self, at: int, begin: int, end: int, shown: Sequence[bool] | None = None) -> str:
        """text[begin:end] of a row of the table. shown: the meta fields [F] that are not masked."""
        return self._masker(at, shown)(begin, end)

    def _masker(self, at: int, shown: Sequence[bool] | None = None) -> Callable[[int, int], str]:
        """`_masked` of one row, which is read once."""
        columns = (self._list(f"meta_{name}", at).tolist() for name in ("begin", "end", "field"))
        spans = [MetaSpan(*place) for place in zip(*columns, strict=True)]
        text, fields = self._texts[at].as_py(), self.about.fields
        return lambda begin, end: masked(
            text, begin, end, spans, lambda k: None if shown and shown[k] else fields[k].mask
        )

    def _drawn(self, study: int, places_of: Places, seed: int, epoch: int, mask: float, second: float) -> str:
        key = hashlib.blake2b(self.studies[study].encode(), digest_size=8).digest()
        rng = np.random.default_rng([seed, epoch, int.from_bytes(key)])
        wording, choice, *chances = rng.random(2 + len(self.about.fields)).tolist()
        copy = int(self._row_of[SECOND][study])
        at = copy if copy >= 0 and wording < second else int(self._row_of[FIRST][study])
        places = self._places(at, places_of)
        begin, end = places[int(choice * len(places))]
        return self._masked(at, begin, end, [chance >= mask for chance in chances])

    def _places(self, at: int, places_of: Places) -> list[tuple[int, int]]:
        """Where texts of a kind stand in a row's text: all of it where it has none of the kind."""
        return places_of(self, at) or [(0, len(self._texts[at].as_py()))]


Places = Callable[[Corpus, int], list[tuple[int, int]]]


def _whole_report(corpus: Corpus, at: int) -> list[tuple[int, int]]:
    return []


def _of_list(corpus: Corpus, at: int, kind: str) -> list[tuple[int, int]]:
    ends = corpus._list(f"{kind}_end", at).tolist()
    return list(zip(corpus._list(f"{kind}_begin", at).tolist(), ends, strict=True))


def _statement(corpus: Corpus, at: int) -> list[tuple[int, int]]:
    """The sentences of affirmed statements, one for each; all sentences where nothing is affirmed."""
    sentences = _of_list(corpus, at, "sentence")
    affirmed = corpus._list("statement_sentence", at)[corpus._list("statement_value", at) == POSITIVE]
    return [sentences[k] for k in affirmed.tolist()] or sentences


# what can be drawn, and where it stands in a row's text
KINDS: dict[str, Places] = {
    "report": _whole_report,
    "section": partial(_of_list, kind="section"),
    "sentence": partial(_of_list, kind="sentence"),
    "statement": _statement,
}


def check_coverage(corpus: Corpus, manifest: Manifest, most_without: float = MOST_WITHOUT) -> list[str]:
    """Sentences on how many training studies have a report. Raises UsageError where too many of the main cohort do not.

    Other cohorts are there for their labels, and most have no reports.
    """
    training = manifest.of_split("train")
    others = (training.cohorts != MAIN).to_numpy()
    lines = _lacking(corpus, training.where(~others), most_without)
    for name in training.cohorts[others].unique():
        own = _lacking(corpus, training.where((training.cohorts == name).to_numpy()), 1.0)
        lines += [line.replace("Reports: ", f"Reports, cohort {name}: ") for line in own]
    return lines


def _lacking(corpus: Corpus, training: Manifest, most_without: float) -> list[str]:
    lacking = pd.Series(corpus.rows_of(training) < 0).groupby(studies(training.table)[0].astype(str)).all()
    count, missing = len(lacking), int(lacking.sum())
    share = missing / max(count, 1)
    said = f"{missing:,} of {count:,} training studies ({100 * share:.1f} %) have no report"
    if share > most_without:
        raise UsageError(
            f"{said}; at most {100 * most_without:.0f} % may. Are the reports those of this cohort? Their ids must be "
            "its study ids. If so many do lack one, leave their images out of the cohort's tables, or build the corpus "
            "with a larger `most_without`."
        )
    return [f"Reports: {said}."] if missing else []


def plain_ids(manifest: Manifest) -> frozenset[str]:
    """The ids of a manifest's studies without MIMIC's s, to take what may be theirs."""
    return frozenset(str(study).removeprefix("s") for study in studies(manifest.table)[0])


def _among(ids: pa.ChunkedArray, wanted: frozenset[str]) -> Any:
    import pyarrow as pa

    return pa.array([study.removeprefix("s") in wanted for study in ids.to_pylist()], pa.bool_())


def _whole(table: pa.Table) -> pa.Table:
    """A table in one chunk, also one without rows."""
    import pyarrow as pa

    table = table.combine_chunks()
    columns = [c.chunk(0) if c.num_chunks else pa.array([], c.type) for c in table.columns]
    return pa.table(columns, schema=table.schema)
