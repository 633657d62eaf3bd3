"""The rule labeller timed and scored: `python benchmarks/labels.py --write` fills RESULTS.md.

Speed: seeded texts of 114 words or a sentence more, as MIMIC's reports have, made of sentences of Open-i's part dev;
one process, CPU seconds, with and without the cache of sentences. F1: Open-i, part dev, positives of the labels that
its human codes tell, uncertain counted as 0. Beside it negspaCy with the same phrases (blank English, sentencizer,
EntityRuler, Negex; an environment of its own in build/labels-venv), one process, on the same texts. The phantom's
reports are templates: their F1 is a test, no evidence.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from report import machine, options, publish

from cxrlt_ray.labelling.closure import NORMAL, closed, is_normal
from cxrlt_ray.labelling.labeller import Labeller
from cxrlt_ray.labelling.rules import Rules, load_rules
from cxrlt_ray.labelling.sentences import sentences

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"
WORDS = 114
MIMIC = 227_827
STATEMENT = " (denied)"
EXCLUDED = " (excluded)"


def openi() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reports and human codes of part dev, by report_id."""
    gold = pd.read_csv(SHARED / "labeling" / "openi_gold.csv.gz", dtype={"report_id": str}).set_index("report_id")
    gold = gold[gold.pop("part") == "dev"]
    reports = pd.read_csv(SHARED / "data/reports/openi_reports.csv.gz", dtype=str, keep_default_na=False)
    return reports.set_index("report_id").loc[gold.index], gold


def long_texts(reports: pd.DataFrame, count: int, seed: int) -> tuple[list[str], float]:
    """`count` texts of WORDS words and the rest of a sentence, and the share of their sentences that are distinct."""
    cells = [*reports["findings"], *reports["impression"]]
    pool = [cell[begin:end] for cell in cells for begin, end in sentences(cell)]
    rng, used, texts = random.Random(seed), [], []
    for _ in range(count):
        chosen: list[str] = []
        while sum(len(sentence.split()) for sentence in chosen) < WORDS:
            chosen.append(rng.choice(pool))
        used += chosen
        cut = 2 * len(chosen) // 3
        texts.append(f"FINDINGS: {' '.join(chosen[:cut])}\n\nIMPRESSION: {' '.join(chosen[cut:])}")
    return texts, len(set(used)) / len(used)


def rate(labeller: Labeller, texts: Sequence[str]) -> float:
    """Reports a CPU second."""
    started = time.process_time()
    for text in texts:
        labeller.read(text)
    return len(texts) / (time.process_time() - started)


def f1(labels: Sequence[dict[str, int]], gold: pd.DataFrame) -> tuple[float, float, float]:
    """Micro precision, recall and F1 of positives, where the codes tell."""
    said = pd.DataFrame(labels, index=gold.index).reindex(columns=gold.columns) == 1
    known, true = gold.notna(), gold == 1
    tp, fp, fn = ((known & a & b).to_numpy().sum() for a, b in ((said, true), (said, ~true), (~said, true)))
    return tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn)


def spacy_patterns(rules: Rules) -> Iterator[dict[str, Any]]:
    """The phrases of all rules as patterns of EntityRuler."""
    for rule in rules.every:
        kinds = {
            rule.finding: rule.phrases,
            rule.finding + STATEMENT: rule.normal,
            rule.finding + EXCLUDED: rule.excluded,
        }
        kinds |= {f"({group})": phrases for group, phrases in rule.others.items()}
        for name, phrases in kinds.items():
            for phrase in phrases:
                for tokens in _token_sequences(phrase):
                    yield {"label": name, "pattern": tokens}


def _token_sequences(phrase: str) -> Iterator[list[dict[str, Any]]]:
    """A group of single words is one token's choice; one with several words a row is spelled out."""
    parts = re.findall(r"\([^()]*\)|\[[^\[\]]*\]|\.\.\.\d*|[^\s()\[\]]+", phrase)
    yield from (list(itertools.chain(*choice)) for choice in itertools.product(*map(_choices, parts)))


def _choices(part: str) -> list[list[dict[str, Any]]]:
    if part.startswith("..."):
        return [[{"IS_PUNCT": False, "OP": f"{{0,{part[3:] or 4}}}"}]]
    if part[0] not in "([":
        return [[_word([word]) for word in re.split(r"[-/]", part)]]
    rows = [re.split(r"[-/\s]+", row) for row in part[1:-1].split("|")]
    single = [row[0] for row in rows if len(row) == 1]
    optional = part[0] == "["
    choices = [[_word(single) | ({"OP": "?"} if optional and len(single) == len(rows) else {})]] if single else []
    choices += [[_word([word]) for word in row] for row in rows if len(row) > 1]
    return choices + ([[]] if optional and len(single) < len(rows) else [])


def _word(words: Sequence[str]) -> dict[str, Any]:
    alternatives = "|".join(re.escape(w.rstrip("*")) + (r"\w*" if w.endswith("*") else "") for w in words)
    return {"LOWER": {"REGEX": f"^(?:{alternatives.lower()})$"}}


def peer_labels(entities: list[list[Any]], rules: Rules) -> dict[str, int]:
    """Positives of a text by its entities, closed as ours are."""
    said: dict[str, int] = {}
    for name, negated in entities:
        if not name.endswith((STATEMENT, EXCLUDED)):
            said[name] = max(said.get(name, 0), int(not negated))
    groups = [name[1:-1] for name, value in said.items() if name.startswith("(") and value]
    labels = {name: value for name, (value, _) in closed(
        {name: value for name, value in said.items() if not name.startswith("(") and name != NORMAL}, rules
    ).items()}  # fmt: skip
    return labels | {NORMAL: int(is_normal(labels, groups, rules))}


def run_peer(texts: list[str], timed: list[str], rules: Rules) -> dict[str, Any]:
    """label_peer.py in its environment, which is made where it does not exist."""
    folder = HERE.parent / "build" / "labels-venv"
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-r", HERE / "requirements-labels.txt"], check=True)
    with tempfile.TemporaryDirectory() as work:
        given, result = Path(work) / "in.json", Path(work) / "out.json"
        patterns = list(spacy_patterns(rules))
        given.write_text(json.dumps({"patterns": patterns, "texts": texts, "timed": timed}))
        subprocess.run([folder / "bin" / "python", HERE / "label_peer.py", given, result], check=True)
        return json.loads(result.read_text())


def main() -> None:
    args = options(__doc__, {"reports": 3000, "peer-reports": 200, "seed": 0}).parse_args()
    reports, gold = openi()
    texts, distinct = long_texts(reports, args.reports, args.seed)
    rules = load_rules()
    plain, cached = Labeller(rules, cached=0), Labeller(rules)
    for labeller in (plain, cached):
        labeller.read(texts[0])
    ours, with_cache = rate(plain, texts), rate(cached, texts)
    short = [
        "\n\n".join(f"{name.upper()}:\n{row[name]}" for name in ("findings", "impression") if row[name].strip())
        for _, row in reports.iterrows()
    ]
    own = f1([plain.read(text).labels for text in short], gold)
    peer = run_peer(short, texts[: args.peer_reports], rules)
    others = f1([peer_labels(entities, rules) for entities in peer["entities"]], gold)
    peer_rate = args.peer_reports / peer["seconds"]
    score = "P {:.3f} R {:.3f} F1 {:.3f}".format
    lines = [
        f"{args.reports:,} texts of {sum(len(t.split()) for t in texts) / len(texts):.0f} words (MIMIC: {WORDS}), "
        f"{100 * distinct:.0f} % of their sentences distinct; CPU seconds of one process on {machine()}.",
        "",
        "| labeller | reports a CPU second | Open-i, part dev, micro |",
        "|---|---|---|",
        f"| rules, sentence cache off | {ours:,.0f} | {score(*own)} |",
        f"| rules, sentence cache on | {with_cache:,.0f} | the same |",
        f"| {peer['version']}, the same phrases | {peer_rate:,.0f} | {score(*others)} |",
        "",
        f"MIMIC's {MIMIC:,} reports: {MIMIC / ours / 60 / 2:.1f} min of 2 cores without the cache.",
    ]
    ratio = ours / peer_rate
    row = ("labels of reports", peer["version"], f"{ratio:.0f} times as fast", "faster, F1 above")
    publish("labels", "Labels from reports", "", lines, args.write, [row])


if __name__ == "__main__":
    main()
