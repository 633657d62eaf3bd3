"""Agreement of labellers with a gold standard, in the form of the paper's table 8, and where they disagree."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.evaluation.confusion import Rates, Resampled, counts, differences
from cxrlt_ray.evaluation.estimate import Estimate
from cxrlt_ray.evaluation.published import published_label_precision
from cxrlt_ray.labelling.labels import EVIDENCE, STUDY
from cxrlt_ray.labelling.matching import Matched, Treatment, ids_as
from cxrlt_ray.storage import Store


@dataclass(frozen=True)
class Agreement:
    """What labellers are worth beside a gold standard of N studies.

    positives: the gold's, int [C]. in_mean: which findings stand in the plain mean, bool [C]. rates: by labeller.
    differences: labeller -> (macro or pooled, rate) -> the first labeller's less its own. weighted: counts are
    estimates for all studies of which the gold is a sample.
    """

    findings: tuple[str, ...]
    studies: int
    subjects: int
    positives: np.ndarray
    in_mean: np.ndarray
    rates: dict[str, Rates]
    differences: dict[str, dict[tuple[str, str], Estimate]]
    weighted: bool

    def frame(self) -> pd.DataFrame:
        """A row a finding, then Mean and Pooled; of each labeller its rates with their intervals."""
        table = pd.DataFrame({"finding": [*self.findings, "Mean", "Pooled"]})
        table["positives"] = [*self.positives, self.positives[self.in_mean].sum(), self.positives.sum()]
        for name, rates in self.rates.items():
            for rate, values in rates.intervals.items():
                rows = [*values, rates.macro[rate], rates.pooled[rate]]
                table[f"{name} {rate}"] = [row.value for row in rows]
                table[f"{name} {rate} low"] = [row.low for row in rows]
                table[f"{name} {rate} high"] = [row.high for row in rows]
        for name, published in published_label_precision().items():
            if any(finding in published for finding in self.findings):
                mean = float(np.mean(list(published.values())))
                table[f"{name} precision"] = [*(published.get(f, np.nan) for f in self.findings), mean, np.nan]
        return table


def compare(
    matched: Matched, treatment: Treatment, rounds: int = 1000, seed: int = 0, least_positives: int = 1
) -> Agreement:
    """Rates of each labeller with 95 % intervals, and paired differences of the first less the others.

    least_positives: what a finding needs in the gold to stand in the plain mean. Raises UsageError where none has it.
    """
    gold = treatment.of_gold(matched.gold)
    positives = (gold == 1).sum(axis=0)
    in_mean = positives >= least_positives
    if not in_mean.any():
        raise UsageError(f"no finding has {least_positives} positives in the gold of {len(gold)} studies.")
    drawn = {
        name: Resampled.of(
            counts(gold, treatment.of_labeller(table), matched.weights), matched.subjects, in_mean, rounds, seed
        )
        for name, table in matched.tables.items()
    }
    first, *others = drawn
    return Agreement(
        matched.findings,
        len(gold),
        len(np.unique(matched.subjects)),
        positives,
        in_mean,
        {name: system.rates() for name, system in drawn.items()},
        {name: differences(drawn[first], drawn[name]) for name in others},
        matched.weights is not None,
    )


def disagreements(matched: Matched, treatment: Treatment, evidence: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a study and finding where a labeller and the gold differ: the labels as read, and the evidence.

    evidence: labeller -> rows of its evidence.parquet.
    """
    gold = treatment.of_gold(matched.gold)
    systems = {name: treatment.of_labeller(table) for name, table in matched.tables.items()}
    differ = np.logical_or.reduce([(gold >= 0) & (labels >= 0) & (gold != labels) for labels in systems.values()])
    rows, columns = np.nonzero(differ)
    studies, findings = matched.gold.index[rows], np.array(matched.findings)[columns]
    result = pd.DataFrame({STUDY: studies, "finding": findings})
    for name, table in {"gold": matched.gold, **matched.tables}.items():
        result[name] = pd.array(table.to_numpy(object, na_value=None)[rows, columns], "Int8")
    for name, mentions in evidence.items():
        keys = pd.MultiIndex.from_arrays([studies, findings])
        result[f"{name} evidence"] = _quotes(_mentions_of(studies, mentions)).reindex(keys).fillna("").to_numpy()
    return result


def read_evidence(labels_path: str) -> pd.DataFrame | None:
    """The evidence beside a table of labels; None where there is none. Raises CxrltError for another file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, _ = Store.holding(labels_path)
    if not store.exists(EVIDENCE):
        return None
    try:
        table = pq.read_table(io.BytesIO(store.read(EVIDENCE))).to_pandas()
        return table[[STUDY, "finding", "section", "sentence", "begin", "end", "phrase", "trigger"]]
    except (KeyError, ValueError, OSError, pa.ArrowException):
        raise CxrltError(f"{store.uri}/{EVIDENCE} is no evidence of `label`: move it, or label again.") from None


def _mentions_of(studies: pd.Index, mentions: pd.DataFrame) -> pd.DataFrame:
    """The mentions of some studies, by their ids as the gold writes them: those of all reports are millions."""
    own = mentions[STUDY].astype("str")
    if not own.isin(studies).any():
        own = own.map(ids_as(own.unique(), studies))
    return mentions.assign(**{STUDY: own})[own.isin(studies)]


def _quotes(mentions: pd.DataFrame) -> pd.Series:
    """Mentions as texts, by study and finding: 'phrase (trigger) [section, sentence 3, 120-131]; ...'."""
    if mentions.empty:
        return pd.Series([], index=pd.MultiIndex.from_arrays([[], []]), dtype="str")
    texts = [
        f"{m.phrase}{f' ({m.trigger})' if m.trigger else ''} [{m.section}, sentence {m.sentence}, {m.begin}-{m.end}]"
        for m in mentions.itertuples()
    ]
    keyed = mentions.assign(text=texts)
    return keyed.groupby([STUDY, "finding"], sort=False)["text"].agg("; ".join)
