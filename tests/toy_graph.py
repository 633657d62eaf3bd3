"""A toy knowledge graph in UMLS's tables. None of it is UMLS's."""

from __future__ import annotations

from pathlib import Path

EFFUSION, FLUID, PLEURA, HEART, ALONE = "C0000001", "C0000002", "C0000003", "C0000004", "C0000005"


def atom(
    concept: str, atom: str, text: str, preferred: bool = False, language: str = "ENG", suppress: str = "N"
) -> str:
    """A row of MRCONSO.RRF."""
    term, string, is_preferred = ("P", "PF", "Y") if preferred else ("S", "VO", "N")
    fields = [concept, language, term, "L1", string, "S1", is_preferred, atom, "", "", "", "TOY", "PT", "1", text, "0"]
    return "|".join([*fields, suppress, "", ""])


def definition(concept: str, atom: str, text: str, suppress: str = "N") -> str:
    """A row of MRDEF.RRF."""
    return "|".join([concept, atom, "AT1", "", "TOY", text, suppress, "", ""])


def relation(first: str, second: str, rel: str, rela: str = "", suppress: str = "N") -> str:
    """A row of MRREL.RRF: what the second concept is to the first."""
    fields = [first, "A1", "AUI", rel, second, "A2", "AUI", rela, "R1", "", "TOY", "TOY", "", "", suppress, "", ""]
    return "|".join(fields)


ATOMS = [
    atom(EFFUSION, "A11", "Fluid in pleural cavity"),
    atom(EFFUSION, "A10", "Pleural effusion", preferred=True),
    atom(EFFUSION, "A12", "Derrame pleural", preferred=True, language="SPA"),
    atom(EFFUSION, "A13", "Wet chest", suppress="O"),
    atom(FLUID, "A20", "Body fluid", preferred=True),
    atom(PLEURA, "A30", "Pleura", preferred=True),
    atom(HEART, "A40", "Heart", preferred=True),
    atom(ALONE, "A50", "Bone", preferred=True),
]
DEFINITIONS = [
    definition(EFFUSION, "A10", "Fluid between the two layers of the pleura."),
    definition(EFFUSION, "A12", "Acumulación de líquido en la pleura."),
    definition(EFFUSION, "A11", "An old wording.", suppress="O"),
    definition(PLEURA, "A30", "The lining of lungs and chest wall."),
    definition(HEART, "A40", "The organ that pumps blood."),
]
RELATIONS = [
    relation(FLUID, EFFUSION, "CHD", "isa"),
    relation(EFFUSION, FLUID, "PAR", "inverse_isa"),
    relation(PLEURA, EFFUSION, "RO", "has_finding_site"),
    relation(PLEURA, EFFUSION, "RO", "has_finding_site"),
    relation(PLEURA, HEART, "RO"),
    relation(EFFUSION, EFFUSION, "SY"),
    relation(EFFUSION, ALONE, "RO", suppress="O"),
    relation(EFFUSION, "C0000009", "RO"),
]


def write(folder: Path, **more: list[str]) -> Path:
    """The graph's tables in `folder`; more: further rows by table (names, definitions, relations)."""
    tables = {"MRCONSO": ATOMS, "MRDEF": DEFINITIONS, "MRREL": RELATIONS}
    extra = {"MRCONSO": "names", "MRDEF": "definitions", "MRREL": "relations"}
    for name, rows in tables.items():
        lines = [*rows, *more.get(extra[name], [])]
        (folder / f"{name}.RRF").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder
