"""Sentences of real reports found by a finding's text: `python benchmarks/text_retrieval.py --write`.

Open-i, part dev. The rules' labeller says which sentences state one finding alone, affirmed or denied. For each
finding a sentence's score is the cosine of its embedding and that of the finding's description (of its name where it
has none); with denials, minus the cosine with the finding's denial, "no NAME". AUROC, means over findings:

    other    sentences that affirm the finding against those that affirm another one: is the finding found?
    denied   sentences that affirm the finding against those that deny it: is the denial seen?

The rules read words and so do encoders: a high `other` says that wordings are near each other, not that the encoder
knows the finding. `words` is TF-IDF, the least that an encoder must beat.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from report import options, publish

SHARED = Path(__file__).parents[2] / "shared"
FEWEST = 5  # sentences of a side, to give an AUROC
ARMS = ("other", "denied")
WORDS = "words"  # TF-IDF in place of an encoder


@dataclass(frozen=True)
class Statement:
    """A sentence that states one finding: value 1 (affirmed) or 0 (denied)."""

    text: str
    finding: str
    value: int


def report_texts(count: int) -> list[str]:
    """Findings and impression of `count` reports of part dev (0: of all)."""
    import pandas as pd

    gold = pd.read_csv(SHARED / "labeling" / "openi_gold.csv.gz", dtype=str, usecols=["report_id", "part"])
    dev = gold.loc[gold["part"] == "dev", "report_id"]
    reports = pd.read_csv(SHARED / "data/reports/openi_reports.csv.gz", dtype=str, keep_default_na=False)
    reports = reports.set_index("report_id").loc[dev[: count or None]]
    return [f"{row.findings}\n\n{row.impression}" for row in reports.itertuples()]


def statements(texts: Sequence[str]) -> list[Statement]:
    """The distinct sentences in which the rules see one finding, affirmed or denied."""
    from cxrlt_ray.labelling.labeller import Labeller
    from cxrlt_ray.labelling.rules import load_rules
    from cxrlt_ray.labelling.sentences import sentences

    labeller, stated = Labeller(load_rules()), {}
    for text in texts:
        for begin, end in sentences(text):
            sentence = " ".join(text[begin:end].split())
            said = {(span.finding, span.value) for span in labeller.mentions(sentence)}
            if len(said) == 1:
                ((finding, value),) = said
                if value in (0, 1) and not finding.startswith("("):
                    stated[sentence] = Statement(sentence, finding, value)
    return list(stated.values())


def finding_texts(findings: Sequence[str]) -> dict[str, str]:
    """The text that asks for each finding: its name and appearance."""
    from cxrlt_ray.text.descriptions import load_descriptions

    descriptions = load_descriptions(findings)
    return {name: f"{name.lower()}: {descriptions[name].appearance}" for name in findings}


def vectors(texts: Sequence[str], sentences: int, encoder: str) -> np.ndarray:
    """Unit vectors of the texts by an encoder, or by TF-IDF of the words of the first `sentences` of them."""
    if encoder == WORDS:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return np.asarray(TfidfVectorizer(sublinear_tf=True).fit(texts[:sentences]).transform(texts).todense())
    from cxrlt_ray.text.embeddings import embedded
    from cxrlt_ray.text.encoder_spec import TextSpec

    x = embedded(texts, TextSpec(encoder), None)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """How often a positive scores above a negative, ties as half; nan where a side has fewer than FEWEST."""
    from sklearn.metrics import roc_auc_score

    if min(len(positives), len(negatives)) < FEWEST:
        return math.nan
    truth = np.repeat([1, 0], [len(positives), len(negatives)])
    return float(roc_auc_score(truth, np.concatenate([positives, negatives])))


def scored(rows: Sequence[Statement], asked: dict[str, str], encoder: str) -> dict[tuple[str, bool], list[float]]:
    """AUROC of each finding by arm and by whether denials were asked as well."""
    denials = [f"no {finding.lower()}" for finding in asked]
    texts = [*(row.text for row in rows), *asked.values(), *denials]
    x = vectors(texts, len(rows), encoder)
    sentences, names, negatives = np.split(x, [len(rows), len(rows) + len(asked)])
    finding = np.array([row.finding for row in rows])
    affirmed = np.array([row.value == 1 for row in rows])
    results: dict[tuple[str, bool], list[float]] = {(arm, both): [] for arm in ARMS for both in (False, True)}
    for k, name in enumerate(asked):
        own = finding == name
        for both in (False, True):
            score = sentences @ (names[k] - negatives[k] * both)
            results["other", both].append(auroc(score[own & affirmed], score[~own & affirmed]))
            results["denied", both].append(auroc(score[own & affirmed], score[own & ~affirmed]))
    return results


def cell(values: Sequence[float]) -> str:
    """Mean (least-most; number of findings)."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    return f"{np.mean(known):.3f} ({min(known):.3f}-{max(known):.3f}; {len(known)})"


def parsed() -> argparse.Namespace:
    """The command's options."""
    parser = options(__doc__, {"reports": 0})
    parser.add_argument(
        "--encoder", nargs="+", default=[WORDS, "minilm"], metavar="E", help="words (TF-IDF), minilm, a folder, ..."
    )
    return parser.parse_args()


def main() -> None:
    args = parsed()
    rows = statements(report_texts(args.reports))
    asked = finding_texts(sorted({row.finding for row in rows}))
    lines = [
        f"{len(rows):,} distinct sentences that state one finding ({sum(row.value for row in rows):,} affirm it), "
        f"asked for by name and appearance. AUROC, mean over findings with {FEWEST} sentences of either side "
        "(least-most; findings).",
        "",
        "| encoder | affirmed over other findings | with denials | affirmed over denied | with denials |",
        "|---|---|---|---|---|",
    ]
    for encoder in args.encoder:
        results = scored(rows, asked, encoder)
        cells = [cell(results[arm, both]) for arm in ARMS for both in (False, True)]
        shown = Path(encoder).name if Path(encoder).is_dir() else encoder
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    publish("text_retrieval", "Sentences found by a finding's text", "", lines, args.write)


if __name__ == "__main__":
    main()
