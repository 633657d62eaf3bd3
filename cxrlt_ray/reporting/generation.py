"""What was generated and what of it was kept: a table for the console, and a sheet of pictures for a person's eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.generation.records import FindingTally

if TYPE_CHECKING:
    from rich.table import Table

ACROSS, MARGIN, HEADING = 12, 2, 14  # pictures in a row; pixels
SHORTEST = 64  # the edge of a picture on the sheet, at least
WIDTH_OF_A_LETTER = 7  # pixels, about


def tally_table(tallies: Mapping[str, FindingTally]) -> Table:
    """A row a set: real positives, drawn, dropped by reason, kept, and the teacher's AUROC of drawn and real images."""
    from rich import box
    from rich.table import Table

    reasons = list(dict.fromkeys(reason for tally in tallies.values() for reason in tally.dropped))
    judged = any(tally.auroc is not None for tally in tallies.values())
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("set")
    for column in ("real", "drawn", *reasons, "kept", *(("AUROC, drawn", "AUROC, real") if judged else ())):
        table.add_column(column, justify="right")
    for text, tally in tallies.items():
        dropped = [str(tally.dropped.get(reason, 0)) for reason in reasons]
        scores = [_ranged(tally.auroc), _ranged(tally.auroc_real)] if judged else []
        table.add_row(text, str(tally.positives), str(tally.drawn), *dropped, str(tally.kept), *scores)
    return table


def _ranged(interval: tuple[float | None, float | None, float | None] | None) -> str:
    values = [float("nan") if value is None else value for value in interval or (None,) * 3]
    return cli.ranged(values[0], values[1], values[2])


def contact_sheet(pictures: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """A PNG with a heading and a row of up to ACROSS pictures, uint8 [H, W], for each set that has any."""
    import cv2

    sets = {text: list(images[:ACROSS]) for text, images in pictures.items() if len(images)}
    edge = max([SHORTEST, *(image.shape[0] for images in sets.values() for image in images)])
    longest = max((len(images) for images in sets.values()), default=1)
    headings = max((WIDTH_OF_A_LETTER * (len(text) + 1) for text in sets), default=0)
    width = max(longest * (edge + MARGIN), min(headings, ACROSS * (edge + MARGIN))) + MARGIN
    rows = []
    for text, images in sets.items():
        heading = np.zeros((HEADING, width), np.uint8)
        shown = text.encode("ascii", "replace").decode()[: width // WIDTH_OF_A_LETTER]
        cv2.putText(heading, shown, (MARGIN, HEADING - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.38, 255, 1, cv2.LINE_AA)
        strip = np.zeros((edge + MARGIN, width), np.uint8)
        for number, image in enumerate(images):
            left = MARGIN + number * (edge + MARGIN)
            strip[:edge, left : left + edge] = cv2.resize(image, (edge, edge), interpolation=cv2.INTER_NEAREST)
        rows += [heading, strip]
    done, png = cv2.imencode(".png", np.vstack(rows or [np.zeros((HEADING, width), np.uint8)]))
    assert done
    return png.tobytes()
