"""The knowledge graph: what of UMLS's tables is read, in which direction, and within which memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from toy_graph import ALONE, EFFUSION, FLUID, HEART, PLEURA, atom, definition, relation, write

from cxrlt_ray.errors import UsageError
from cxrlt_ray.text.graph import Pair, Triple, pairs, read_graph


def test_names_and_definitions_are_english_and_not_suppressed_and_the_preferred_name_comes_first(tmp_path):
    graph = read_graph(write(tmp_path))
    assert set(graph.concepts) == {EFFUSION, FLUID, PLEURA, HEART, ALONE}
    effusion = graph.concepts[EFFUSION]
    assert effusion.names == ("Pleural effusion", "Fluid in pleural cavity")
    assert effusion.definitions == ("Fluid between the two layers of the pleura.",)
    assert graph.concepts[FLUID].definitions == ()


def test_a_relation_reads_from_the_second_concept_to_the_first(tmp_path):
    """UMLS Reference Manual: REL and RELA say what the second concept of a row is to its first."""
    graph = read_graph(write(tmp_path))
    assert set(graph.triples) == {
        Triple(EFFUSION, "isa", FLUID),
        Triple(FLUID, "inverse isa", EFFUSION),
        Triple(EFFUSION, "has finding site", PLEURA),
        Triple(HEART, "is related to", PLEURA),
    }
    assert len(graph.triples) == 4  # once each, none of a concept with itself, suppressed, or of a concept without name


def test_names_keep_their_concepts_and_the_neighbours(tmp_path):
    graph = read_graph(write(tmp_path), names=["fluid in the chest", "FLUID-IN pleural cavity"])
    assert set(graph.concepts) == {EFFUSION, FLUID, PLEURA}
    assert Triple(HEART, "is related to", PLEURA) not in graph.triples
    assert len(graph.triples) == 3
    assert graph.unmatched == ("fluid in the chest",)
    with pytest.raises(UsageError, match="none of the 2 names"):
        read_graph(tmp_path, names=["wet chest", "derrame pleural"])  # suppressed; not English


def test_pairs_speak_of_one_concept_each(tmp_path):
    made = list(pairs(read_graph(write(tmp_path))))
    fluid = "Fluid between the two layers of the pleura."
    assert Pair("Pleural effusion", fluid, EFFUSION) in made
    assert Pair("Fluid in pleural cavity", fluid, EFFUSION) in made
    assert Pair("Pleural effusion [SEP] has finding site", "Pleura", PLEURA) in made
    assert Pair("Pleura", "The lining of lungs and chest wall.", PLEURA) in made
    assert len(made) == 2 + 1 + 1 + 4
    assert all("</s>" in pair.left for pair in pairs(read_graph(tmp_path), separator="</s>") if " isa" in pair.left)


def test_bad_rows_are_counted_by_table_and_left_out(tmp_path):
    write(
        tmp_path,
        names=["", "C0000006|ENG|P", atom("X1", "A60", "No concept"), atom("C0000007", "A70", "Wrong \ufffd bytes")],
        definitions=[definition(EFFUSION, "A10", "With a | in it.")],
        relations=[relation(EFFUSION, "nothing", "RO"), "a"],
    )
    with open(tmp_path / "MRDEF.RRF", "ab") as file:
        file.write(b"C0000001|A10|AT1||TOY|Caf\xe9.|N||\n")
    graph = read_graph(tmp_path)
    assert graph.bad == {"MRCONSO.RRF": 3, "MRDEF.RRF": 2, "MRREL.RRF": 2}
    assert graph.concepts == read_graph(write(tmp_path)).concepts
    assert read_graph(tmp_path).bad == {}


@pytest.mark.parametrize("missing", ["MRCONSO.RRF", "MRDEF.RRF", "MRREL.RRF"])
def test_a_missing_table_is_named(tmp_path, missing):
    (write(tmp_path) / missing).unlink()
    with pytest.raises(UsageError, match=f"has no {missing}: give the folder META"):
        read_graph(tmp_path)


def test_memory_holds_what_was_asked_for_and_not_the_tables(tmp_path):
    others = [f"C{number:07d}" for number in range(100, 3_100)]
    write(
        tmp_path,
        names=[atom(other, f"A{other}", f"Thing {other} " + "x" * 200, True) for other in others],
        definitions=[definition(other, f"A{other}", "y" * 200) for other in others],
        relations=[relation(a, b, "RO") for a, b in pairwise(others)],
    )
    tracemalloc.start()
    graph = read_graph(tmp_path, names=["Pleural effusion"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(graph.concepts) == {EFFUSION, FLUID, PLEURA}
    assert peak < 300_000 < (tmp_path / "MRCONSO.RRF").stat().st_size
