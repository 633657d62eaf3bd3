"""The errors: which findings are taken for which, the worst mistakes of each, and where a member looked in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrlt_ray.errors import CxrltError
from cxrlt_ray.evaluation.mistakes import FEWEST, Confusions, confusions, ranks, worst
from cxrlt_ray.page import charts
from cxrlt_ray.page.facts import Facts, ScoredImages, public
from cxrlt_ray.page.parts import Column, Figure, Images, Part, Table, Texts, Tile, Tiles
from cxrlt_ray.page.records import Interval, SectionFacts
from cxrlt_ray.page.sections.findings import scored_on
from cxrlt_ray.page.sections.registry import register_section
from cxrlt_ray.storage.finite import finite

FINDINGS = 40  # the most frequent, whose confusions are looked for
DRAWN = 24  # of these in the heatmap
PAIRS = 60  # in the table
ROWS, EACH = 300, 3  # mistakes in the table; of a finding and a kind
NAMES = 6  # other findings of an image that are named
FALSE, MISSED = "false alarm", "missed"
ALIKE, UNLIKE = 0.7, 0.4  # rank correlation with randomised weights from which, up to which a sentence is said
WITHOUT_IMAGES = "Pictures of these images, and heatmaps of where a member looked, are shown with --images alone."


class ConfusionRow(SectionFacts):
    """`count` of the `top` highest negatives of `finding` have `other`: a `share` of those labelled for it.

    base: its share among all negatives of the finding. ratio: share / base. more: above 1 after Holm's correction.
    """

    finding: str
    other: str
    count: int
    top: int
    share: float
    base: float
    ratio: Interval
    more: bool


class RatioRow(SectionFacts):
    """A row of the heatmap: the ratios of a finding by the findings of all rows; None where suppressed."""

    finding: str
    ratios: tuple[float | None, ...]


class MistakeRow(SectionFacts):
    """An image that is a false alarm (a high negative) or missed (a low positive) of a finding.

    place: by its score among the `labelled` images of the finding, 1 the highest. others: which findings it has.
    """

    finding: str
    kind: str
    place: int
    labelled: int
    score: float
    others: str


class Picture(SectionFacts):
    """A mistake's picture as a data URI: above as the model sees it, below under the heatmap."""

    caption: str
    image: str


class HeatmapCheck(SectionFacts):
    """Rank correlations of heatmaps with those of randomised weights: their mean, least and most over `pictures`."""

    mean: float
    low: float
    high: float
    pictures: int


class Errors(SectionFacts):
    """What goes wrong, on the labelled images that tell most."""

    about: str
    confused: str = ""
    pairs: tuple[ConfusionRow, ...] = ()
    ratios: tuple[RatioRow, ...] = ()
    mistakes: tuple[MistakeRow, ...] = ()
    pictured: str = ""
    pictures: tuple[Picture, ...] = ()
    check: HeatmapCheck | None = None
    meaning: str = ""


def gather(facts: Facts) -> Errors | str:
    """The errors of what `Facts.honest` gives."""
    if (images := facts.honest) is None:
        return "No labelled image has been scored yet: errors are known once a trial has finished on labelled images."
    frequent = np.argsort(-(images.targets == 1).sum(axis=0), kind="stable")
    pairs, ratios, sentence = _confused(facts, images, frequent[:FINDINGS])
    rows, places = _mistakes(facts, images, frequent)
    numbers = Errors(about=_about(facts, images), confused=sentence, pairs=pairs, ratios=ratios, mistakes=rows)
    return numbers.model_copy(update=_pictured(facts, images, rows, places))


def _about(facts: Facts, images: ScoredImages) -> str:
    about = f"{images.system} on {len(images.targets):,} {scored_on(facts, images)}."
    split = facts.run.task.scored_split
    lacks = f" There are no scored {split} images with labels: errors there are not known."
    return about + ("" if images.where == split else lacks)


def _confused(
    facts: Facts, images: ScoredImages, chosen: np.ndarray
) -> tuple[tuple[ConfusionRow, ...], tuple[RatioRow, ...], str]:
    """Pairs, the most over-represented first, the heatmap's rows, and a sentence."""
    own = confusions(images.targets[:, chosen], images.probabilities[:, chosen], images.subjects)
    names = [facts.findings[c] for c in chosen]
    shown = np.argwhere(own.counts >= 0)
    if not len(shown):
        return (), (), f"Too few images for confusions: no pair of findings has {FEWEST} subjects behind it."
    rows = sorted(
        (_pair(own, names, int(c), int(d)) for c, d in shown), key=lambda row: (not row.more, -(row.ratio.value or 0))
    )
    more = sum(row.more for row in rows)
    sentence = (
        f"{more} of {len(rows)} pairs of findings are over-represented by more than chance (after correction for their "
        f"number). Cells behind which fewer than {FEWEST} subjects stand are not shown."
    )
    if len(facts.findings) > len(chosen):
        sentence += f" Of the {len(chosen)} most frequent findings of {len(facts.findings)}."
    values = own.ratio[:DRAWN, :DRAWN]
    ratios = (RatioRow(finding=names[c], ratios=tuple(finite(values[c].tolist()))) for c in range(len(values)))
    return tuple(rows[:PAIRS]), tuple(ratios), sentence


def _pair(own: Confusions, names: Sequence[str], c: int, d: int) -> ConfusionRow:
    ratio = {"value": float(own.ratio[c, d]), "low": float(own.low[c, d]), "high": float(own.high[c, d])}
    return ConfusionRow(
        finding=names[c],
        other=names[d],
        count=int(own.counts[c, d]),
        top=int(own.top[c]),
        share=float(own.shares[c, d]),
        base=float(own.base[c, d]),
        ratio=Interval.model_validate(finite(ratio)),
        more=bool(own.corrected[c, d] < 0.05 and own.ratio[c, d] > 1),
    )


def _mistakes(
    facts: Facts, images: ScoredImages, frequent: np.ndarray
) -> tuple[tuple[MistakeRow, ...], tuple[int, ...]]:
    """The worst mistakes of the most frequent findings, and the place of each among the images."""
    each = max(min(EACH, ROWS // (2 * len(frequent))), 1)
    rows: list[MistakeRow] = []
    places: list[int] = []
    for c in frequent[: ROWS // (2 * each)]:
        targets, scores = images.targets[:, c], images.probabilities[:, c]
        place = ranks(targets, scores)
        for kind, numbers in zip((FALSE, MISSED), worst(targets, scores, each), strict=True):
            for n in numbers:
                row = MistakeRow(
                    finding=facts.findings[c],
                    kind=kind,
                    place=int(place[n]),
                    labelled=int((targets >= 0).sum()),
                    score=float(scores[n]),
                    others=_others(facts, images.targets[n], int(c)),
                )
                rows.append(row)
                places.append(int(n))
    return tuple(rows), tuple(places)


def _others(facts: Facts, labels: np.ndarray, finding: int) -> str:
    """The other findings that an image has."""
    names = [facts.findings[d] for d in np.flatnonzero(labels == 1) if d != finding]
    if not names:
        return "none"
    return ", ".join(names[:NAMES]) + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")


def _pictured(
    facts: Facts, images: ScoredImages, rows: Sequence[MistakeRow], places: Sequence[int]
) -> dict[str, object]:
    """The fields of `Errors` about pictures; a sentence where they are not asked for, or cannot be made."""
    if not facts.images_shown:
        return {"pictured": WITHOUT_IMAGES}
    from cxrlt_ray.page.mistake_pictures import Mistake, draw

    first = {(row.finding, row.kind): k for k, row in reversed(list(enumerate(rows)))}  # the worst of each
    numbers = sorted(first.values())
    ids = images.table["image_id"].to_numpy()
    try:
        drawn = draw(facts, [Mistake(str(ids[places[k]]), rows[k].finding) for k in numbers])
    except CxrltError as error:
        return {"pictured": f"There are no pictures: {public(error)}"}
    except Exception as error:  # the numbers stand without pictures
        return {"pictured": f"The pictures failed ({type(error).__name__}): please report it."}
    pictures = tuple(Picture(caption=_caption(rows[numbers[k]]), image=uri) for k, uri in drawn.images.items())
    words = f"Above as {drawn.trial} sees it, below where it looked for the finding: {drawn.method}."
    if drawn.left_out:
        words += f" {drawn.left_out} more pictures are left out, to keep the page small."
    return {"pictured": words, "pictures": pictures, **_check(drawn.likenesses)}


def _caption(row: MistakeRow) -> str:
    return f"{row.finding}: {row.kind}, score {row.score:.3f}; others: {row.others}"


def _check(likenesses: Sequence[float]) -> dict[str, object]:
    """The check by randomised weights (Adebayo et al. 2018), and what its number means."""
    if not likenesses:
        return {"meaning": "The heatmaps could not be compared with those of randomised weights: these are constant."}
    mean = float(np.mean(likenesses))
    means = (
        "high: the heatmaps show the image more than what the model learned. Conclude nothing from them"
        if mean >= ALIKE
        else "low: the heatmaps depend on the weights, not on the image alone. That does not show that they are right"
        if mean <= UNLIKE
        else "in between: part of what the heatmaps show is the image itself"
    )
    check = HeatmapCheck(mean=mean, low=min(likenesses), high=max(likenesses), pictures=len(likenesses))
    words = "Heatmaps of the same model with its weights in random order (Adebayo et al. 2018) resemble these by a rank"
    return {"check": check, "meaning": f"{words} correlation that is {means}."}


@register_section("errors", "Errors", order=70, facts=Errors, gather=gather)
def errors(facts: Errors) -> list[Part]:
    """Confusions drawn and listed, the worst mistakes, their pictures."""
    parts: list[Part] = [Texts(["about", "confused"])]
    if facts.ratios:
        parts.append(_confusion_figure(facts))
    if facts.pairs:
        parts.append(_pairs())
    if facts.mistakes:
        parts.append(_mistake_table())
    parts.append(Texts(["pictured"]))
    if facts.pictures:
        parts.append(Images("Where a member looked in the worst mistakes", "pictures", "image", "caption"))
    if facts.check:
        tiles = [
            Tile("rank correlation with randomised weights", "check/mean", "gain", "0: unrelated, 1: the same", True),
            Tile("the least like", "check/low", "gain"),
            Tile("the most like", "check/high", "gain"),
            Tile("pictures compared", "check/pictures", "count"),
        ]
        parts.append(Tiles(tiles))
    parts.append(Texts(["meaning"]))
    return parts


def _confusion_figure(facts: Errors) -> Figure:
    names = [row.finding for row in facts.ratios]
    values = [row.ratios for row in facts.ratios]
    most = max((v for row in values for v in row if v is not None), default=1.0)
    words = f"{len(names)} findings by {len(names)}; ratios up to {most:.1f}; empty where too few subjects stand behind"
    titles = ("Other findings among the highest false positives", words)
    drawing = charts.heatmap(*titles, values, names, names, 1.0, max(most, 1.01))
    columns = [Column("false positives of", "finding")]
    columns += [Column(name, f"ratios/{k}", "number") for k, name in enumerate(names)]
    note = (
        "A row: the highest-scored images without the finding, as many as have it (20 at least, a fifth of those "
        "without it at most). A column: how many times more frequent another finding is among them than among all "
        "images without the first. Dark: the model takes the one for the other, or for what comes with it. Light: 1 or "
        "less."
    )
    return Figure("What is taken for what", [drawing], note, Table("Ratios", "ratios", columns, folded=True))


def _pairs() -> Table:
    columns = [
        Column("false positives of", "finding"),
        Column("have", "other"),
        Column("ratio", "ratio/value", "number"),
        Column(
            "low", "ratio/low", "number", "of the ratio's 95 % interval, by subject; the threshold is taken as given"
        ),
        Column("high", "ratio/high", "number"),
        Column("more than chance", "more", help="after Holm's correction for all pairs"),
        Column("images", "count", "count", "of the highest false positives that have the other finding"),
        Column("of", "top", "count", "highest false positives"),
        Column("share", "share", "percent", "of those that are labelled for the other finding"),
        Column("of all", "base", "percent", "among all images without the first finding"),
    ]
    return Table("The most over-represented pairs", "pairs", columns, filtered=True)


def _mistake_table() -> Table:
    columns = [
        Column("finding", "finding"),
        Column("mistake", "kind", help="false alarm: labelled 0, scored high; missed: labelled 1, scored low"),
        Column("place", "place", "count", "by score among the images labelled for the finding, 1 the highest"),
        Column("of", "labelled", "count"),
        Column("score", "score", "score"),
        Column("other findings", "others"),
    ]
    note = "Images are not named: their ids are in the run, for those who may see them. Labels may be wrong, too."
    table = ("The worst mistakes of each finding", "mistakes", columns)
    return Table(*table, filtered=True, facet="mistake", note=note, folded=True)
