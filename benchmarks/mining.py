"""Few-shot mining beside human codes: `python benchmarks/mining.py --write` fills RESULTS.md.

Labels that `cxrlt_ray.text.mining` makes of Open-i's reports (findings and impression, part dev), beside the positives
of its human codes, for those of task 3's findings that the codes tell. Wilson's 95 % intervals. A report whose label is
unsure is left out. The rules were written beside this part: reports of another hospital will do worse.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from labels import openi
from report import options, publish

from cxrlt_ray.data.tasks import load_task
from cxrlt_ray.labelling.reports import read_reports
from cxrlt_ray.text.mining import mine

Z = 1.959964


def wilson(hits: int, count: int) -> str:
    """A share with its interval (Wilson 1927)."""
    if not count:
        return "-"
    share, width = hits / count, Z**2 / count
    middle = (share + width / 2) / (1 + width)
    half = (share * (1 - share) * width + width**2 / 4) ** 0.5 / (1 + width)
    return f"{share:.3f} [{middle - half:.3f}, {middle + half:.3f}]"


def row(name: str, coded: int, mined: int, hits: int, unsure: int) -> str:
    return f"| {name} | {coded} | {mined} | {unsure} | {wilson(hits, mined)} | {wilson(hits, coded)} |"


def main() -> None:
    args = options(__doc__, {}).parse_args()
    reports, gold = openi()
    asked = load_task("task3").findings
    findings = [name for name in asked if name in gold]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reports.csv"
        reports[["findings", "impression"]].rename_axis("study_id").to_csv(path)
        table = mine(read_reports(str(path)), findings).table.reindex(gold.index)
    lines = ["| finding | coded | mined | unsure | precision | recall |", "|---|---|---|---|---|---|"]
    total = [0, 0, 0, 0]
    for name in findings:
        scored = gold[name].notna() & table[name].notna()
        coded, mined = scored & (gold[name] == 1), scored & table[name].eq(1).fillna(False)
        counts = [int(coded.sum()), int(mined.sum()), int((coded & mined).sum()), int(table[name].isna().sum())]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(row(name, *counts))
    lines.append(row("together", *total))
    missing = ", ".join(name for name in asked if name not in gold)
    lines += ["", f"{len(gold):,} reports of Open-i, part dev. Without code in Open-i: {missing or 'none'}."]
    publish("mining", "Mined labels beside human codes", "", lines, args.write)


if __name__ == "__main__":
    main()
