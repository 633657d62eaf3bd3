"""A knowledge graph in UMLS's tables: concepts with names, definitions and relations (Rich Release Format).

The folder holds MRCONSO.RRF (names), MRDEF.RRF (definitions) and MRREL.RRF (relations): fields separated by |, no
header, columns as in the UMLS Reference Manual. UMLS's licence, and those of its sources, are the user's to keep; none
of it is shipped. What is read: atoms in English and their definitions, nothing suppressed. The tables are streamed;
memory holds the concepts of the given names and their neighbours, so that the full UMLS (10 GB) needs no more than
a part of it. Without names all is held.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cxrlt_ray.data.column_names import folded
from cxrlt_ray.errors import UsageError

NAMES, DEFINITIONS, RELATIONS = "MRCONSO.RRF", "MRDEF.RRF", "MRREL.RRF"
WIDTHS = {NAMES: 18, DEFINITIONS: 8, RELATIONS: 16}  # columns
CONCEPT = re.compile(r"C\d{7}$")  # a concept's id, its CUI
ENGLISH, KEPT = "ENG", "N"  # of LAT; of SUPPRESS: not obsolete, not suppressed
SEPARATOR = "[SEP]"
WRONG_BYTES = "\ufffd"  # what is not UTF-8 is read as
# REL, where RELA is empty, in words: what the row's second concept is to its first (Reference Manual, appendix on REL)
WORDS = {
    "PAR": "is parent of",
    "CHD": "is child of",
    "RB": "is broader than",
    "RN": "is narrower than",
    "RO": "is related to",
    "RQ": "may be related to",
    "RL": "is similar to",
    "RU": "is related to",
    "SY": "is synonym of",
    "SIB": "is sibling of",
    "AQ": "is allowed qualifier of",
    "QB": "can be qualified by",
}


@dataclass
class Concept:
    """A concept. names: in English, the preferred one first. definitions: each once, of all sources."""

    id: str
    names: tuple[str, ...]
    definitions: tuple[str, ...] = ()


class Triple(NamedTuple):
    """head - relation -> tail; head and tail are ids of concepts, the relation is words."""

    head: str
    relation: str
    tail: str


@dataclass(frozen=True)
class Graph:
    """Concepts by id, and the relations between them, each once.

    unmatched: given names that are no concept's. bad: rows of each table that are not of its form, or not UTF-8.
    """

    concepts: dict[str, Concept]
    triples: tuple[Triple, ...]
    unmatched: tuple[str, ...] = ()
    bad: dict[str, int] = field(default_factory=dict)


class Pair(NamedTuple):
    """Two texts on one concept; pairs with the same `concept` are positives of each other."""

    left: str
    right: str
    concept: str


def read_graph(folder: str | Path, names: Collection[str] | None = None) -> Graph:
    """The graph in a folder's three tables.

    names: keep the concepts that one of these names, by any of its English names (without case, blanks and signs), and
    those directly related to them; None keeps all. Rows that are not of the table's form are counted and left out.

    Raises UsageError for a missing table, and where no name is a concept's.
    """
    paths = {table: Path(folder) / table for table in WIDTHS}
    if missing := [table for table, path in paths.items() if not path.is_file()]:
        raise UsageError(
            f"{folder} has no {', no '.join(missing)}: give the folder META of a UMLS release, or one with these "
            f"tables: {', '.join(WIDTHS)}."
        )
    bad: Counter[str] = Counter()
    core, unmatched = _matching(paths[NAMES], names, bad)
    if core is not None and not core:
        raise UsageError(f"{paths[NAMES]}: none of the {len(unmatched):,} names is a concept's English name.")
    triples = _triples(paths[RELATIONS], core, bad)
    wanted = None if core is None else core.union(*((t.head, t.tail) for t in triples))
    concepts, atoms = _concepts(paths[NAMES], wanted, bad)
    _define(paths[DEFINITIONS], concepts, atoms, bad)
    kept = tuple(triple for triple in triples if triple.head in concepts and triple.tail in concepts)
    return Graph(concepts, kept, unmatched, dict(bad))


def pairs(graph: Graph, separator: str = SEPARATOR) -> Iterator[Pair]:
    """The texts of a graph to contrast: (name, definition), and (head [SEP] relation, tail) (KAD, Zhang et al. 2023).

    Each name of a concept comes with each of its definitions. A triple's concept is its tail, of which both of its
    texts speak; concepts are called by their preferred names. separator: as the text encoder writes it.
    """
    for concept in graph.concepts.values():
        for name in concept.names:
            for definition in concept.definitions:
                yield Pair(name, definition, concept.id)
    for head, relation, tail in graph.triples:
        text = f"{graph.concepts[head].names[0]} {separator} {relation}"
        yield Pair(text, graph.concepts[tail].names[0], tail)


def _matching(path: Path, names: Collection[str] | None, bad: Counter[str]) -> tuple[set[str] | None, tuple[str, ...]]:
    """The ids of the concepts that names match, and the names that match none; None for all concepts."""
    if names is None:
        return None, ()
    by_form = {folded(name): name for name in names}
    matched: set[str] = set()
    seen: set[str] = set()
    for concept, _, _, text in _atoms(path, Counter()):  # bad rows are counted by the reading that keeps names
        if (form := folded(text)) in by_form:
            matched.add(concept)
            seen.add(form)
    return matched, tuple(name for form, name in by_form.items() if form not in seen)


def _atoms(path: Path, bad: Counter[str]) -> Iterator[tuple[str, str, bool, str]]:
    """Of each English name that is not suppressed: concept, atom, whether it is the preferred one, text."""
    for row in _rows(path, bad):
        if row[1] == ENGLISH and row[16] == KEPT:
            yield row[0], row[7], (row[2], row[4], row[6]) == ("P", "PF", "Y"), row[14]


def _triples(path: Path, core: set[str] | None, bad: Counter[str]) -> list[Triple]:
    """The relations of which at least one end is in `core`, each once.

    A row says what its second concept is to its first: `CUI1 | REL isa | CUI2` reads "CUI2 isa CUI1".
    """
    triples: dict[Triple, None] = {}
    for row in _rows(path, bad):
        tail, head = row[0], row[4]
        relation = row[7].replace("_", " ") or WORDS.get(row[3], "")
        is_kept = head != tail and relation and row[14] == KEPT
        if is_kept and (core is None or head in core or tail in core):
            triples[Triple(head, relation, tail)] = None
    return list(triples)


def _concepts(path: Path, wanted: set[str] | None, bad: Counter[str]) -> tuple[dict[str, Concept], set[str]]:
    """Concepts by id with their names, the preferred one first, and the ids of their English atoms."""
    names: dict[str, list[str]] = {}
    atoms: set[str] = set()
    for concept, atom, is_preferred, text in _atoms(path, bad):
        if wanted is None or concept in wanted:
            atoms.add(atom)
            names.setdefault(concept, []).insert(0 if is_preferred else len(names[concept]), text)
    return {id: Concept(id, tuple(dict.fromkeys(texts))) for id, texts in names.items()}, atoms


def _define(path: Path, concepts: dict[str, Concept], atoms: set[str], bad: Counter[str]) -> None:
    """Give concepts their English definitions: those of their English atoms."""
    for row in _rows(path, bad):
        concept, atom, text, suppressed = row[0], row[1], row[5].strip(), row[6]
        if atom in atoms and concept in concepts and suppressed == KEPT and text:
            known = concepts[concept]
            known.definitions = tuple(dict.fromkeys((*known.definitions, text)))


def _rows(path: Path, bad: Counter[str]) -> Iterator[Sequence[str]]:
    """The rows of a table that are of its form."""
    width, ids = WIDTHS[path.name], (0, 4) if path.name == RELATIONS else (0,)
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            row = line.rstrip("\r\n").split("|")  # a row ends in |
            if len(row) == width + 1 and WRONG_BYTES not in line and all(CONCEPT.match(row[k]) for k in ids):
                yield row
            elif line.strip():
                bad[path.name] += 1
