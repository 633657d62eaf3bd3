"""How a view is written, by whom ever -> PA, AP, LATERAL, OTHER or UNKNOWN.

One table for all readers: DICOM's ViewPosition and code meanings, CheXpert's, PadChest's projections, and what people
write. Words of how the patient was placed (supine, erect, portable ...) do not change a view. Alone they say AP: a
bedside or supine X-ray of the chest is one. What is only `frontal` counts as PA, the usual one, so that --views
frontal keeps it: whether it is AP is not known. A text that stands here as OTHER is known and none of the three.
"""

from __future__ import annotations

import re

import pandas as pd

from cxrlt_ray.data.table_file import MISSING
from cxrlt_ray.privacy import private_detail

_WRITTEN = {
    "PA": "PA, P A, POSTERO ANTERIOR, POSTEROANTERIOR, POSTERIOR ANTERIOR, POSTERIOR TO ANTERIOR, FRONTAL PA, "
    "PA FRONTAL",
    "AP": "AP, A P, ANTERO POSTERIOR, ANTEROPOSTERIOR, ANTERIOR POSTERIOR, ANTERIOR TO POSTERIOR, FRONTAL AP, "
    "AP FRONTAL",
    "LATERAL": "LATERAL, LAT, L, LL, RL, R LAT, L LAT, LAT L, LAT R, LT LAT, RT LAT, LLAT, RLAT, LEFT LATERAL, "
    "LEFT LAT, RIGHT LATERAL, RIGHT LAT, LATERAL LEFT, LATERAL RIGHT, XTABLE LATERAL, X TABLE LATERAL, "
    "CROSS TABLE LATERAL, PROFILE",
    "OTHER": "OTHER, LAO, RAO, LPO, RPO, OBLIQUE, LEFT OBLIQUE, RIGHT OBLIQUE, LEFT ANTERIOR OBLIQUE, "
    "RIGHT ANTERIOR OBLIQUE, LEFT POSTERIOR OBLIQUE, RIGHT POSTERIOR OBLIQUE, SWIMMERS, AXIAL, AP AXIAL, PA AXIAL, "
    "LORDOTIC, AP LORDOTIC, APICAL LORDOTIC, DECUBITUS, LLD, RLD, AP LLD, AP RLD, PA LLD, PA RLD, "
    "LATERAL DECUBITUS, LEFT LATERAL DECUBITUS, RIGHT LATERAL DECUBITUS, COSTAL, EXCLUDE, TANGENTIAL",
    "UNKNOWN": "UNKNOWN, UNK, UNSPECIFIED, NOT SPECIFIED, NOT AVAILABLE, UNDEFINED, ?, -",
}
FRONTAL_ONLY = "FRONTAL"
VIEW_NAMES = {name: view for view, names in _WRITTEN.items() for name in names.split(", ")} | {FRONTAL_ONLY: "PA"}
PLACING = re.compile(
    r"\b(SUPINE|PRONE|ERECT|UPRIGHT|STANDING|SITTING|SEATED|SEMI|SEMIERECT|SEMIUPRIGHT|RECUMBENT|SEMIRECUMBENT|"
    r"HORIZONTAL|VERTICAL|PORTABLE|PORT|MOBILE|BEDSIDE|STRETCHER|CHEST|CXR|THORAX|VIEW|PROJECTION|INSPIRATION|"
    r"EXPIRATION)\b"
)
MOST = 10  # different texts beyond which a column holds no codes, and none is shown


def view_of(text: str) -> str | None:
    """The view that a text says; None for one that is not known.

    >>> [view_of(text) for text in ("ap semi-erect", "POSTERO_ANTERIOR", "Portable", "Lat", "frontal", "", "spine")]
    ['AP', 'PA', 'AP', 'LATERAL', 'PA', 'UNKNOWN', None]
    """
    if text.strip() in MISSING:
        return "UNKNOWN"
    name = _in_words(text)
    if name in VIEW_NAMES:
        return VIEW_NAMES[name]
    words = _in_words(PLACING.sub(" ", name))
    if words == name:
        return None
    return VIEW_NAMES.get(words) if words else _of_placing(name)


def _in_words(text: str) -> str:
    """In capitals, words parted by one blank."""
    return " ".join(re.sub(r"[_\-./,()]+", " ", text.upper()).split()) or text.strip()


def _of_placing(name: str) -> str:
    """The view of a text that says only how the patient was placed: AP at the bedside or lying, else unknown."""
    return "AP" if re.search(r"SUPINE|RECUMBENT|PORT|MOBILE|BEDSIDE|STRETCHER|SEMI", name) else "UNKNOWN"


def views(*cells: pd.Series) -> pd.Series:
    """PA, AP, LATERAL, OTHER or UNKNOWN, from the first of several columns of text that is not empty or unknown."""
    view = pd.Series("UNKNOWN", index=cells[0].index, dtype="str")
    for column in reversed(cells):
        meaning = {cell: view_of(cell) or "OTHER" for cell in column.unique()}
        meanings = column.map(meaning)
        view = meanings.where(meanings != "UNKNOWN", view)
    return view.astype("str")


def remarks_on_views(file: str, *cells: pd.Series) -> list[str]:
    """Notes on texts that are no known view, with their counts, and on those that say only `frontal`.

    A text is shown where it may be a code: letters, in a column of few such texts. Else it may be a patient's.
    """
    first = cells[0]
    for column in cells[1:]:
        first = first.where(~first.map({text: view_of(text) == "UNKNOWN" for text in first.unique()}), column)
    counts = first.value_counts()
    notes = []
    unknown = {str(text): int(count) for text, count in counts.items() if view_of(str(text)) is None}
    if unknown:
        shown = [f"'{text}' {count:,}" for text, count in unknown.items() if _is_code(text, len(unknown))]
        hidden = sum(count for text, count in unknown.items() if not _is_code(text, len(unknown)))
        shown += [f"other text {hidden:,}{private_detail(list(unknown)[:MOST])}"] if hidden else []
        notes.append(f"{file}: views that are not known count as OTHER: {', '.join(shown)}.")
    if frontal := sum(int(count) for text, count in counts.items() if FRONTAL_ONLY in _without_placing(str(text))):
        notes.append(f"{file}: {frontal:,} views say 'frontal' only and count as PA; some may be AP.")
    return notes


def _is_code(text: str, different: int) -> bool:
    return different <= MOST and re.fullmatch(r"[A-Za-z][A-Za-z _/\-]{0,29}", text) is not None


def _without_placing(text: str) -> tuple[str, ...]:
    return (_in_words(PLACING.sub(" ", _in_words(text))),)
