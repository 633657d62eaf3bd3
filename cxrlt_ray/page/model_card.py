"""MODEL_CARD.md of a run in Hugging Face's form: data, use, scores, limits, licences of weights, how it was made.

Drawn from the same numbers as the page (records.Report). Cells of tables are escaped: a finding's name is no Markdown.
"""

from __future__ import annotations

import re
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlt_ray import cli
from cxrlt_ray.page.facts import Facts, origin
from cxrlt_ray.page.records import Interval, Report, SectionFacts
from cxrlt_ray.page.sections import environment as cost
from cxrlt_ray.page.sections.data import Data
from cxrlt_ray.page.sections.findings import Findings
from cxrlt_ray.page.sections.summary import Summary
from cxrlt_ray.runs.store import Trial

if TYPE_CHECKING:
    import jinja2

CARD = "MODEL_CARD.md"
TEMPLATE = Path(__file__).parent / "templates" / "model_card.j2"
UNKNOWN = "not recorded: see where the weights come from"
UNSTATED = "UNKNOWN"  # what packaging tools wrote where no licence was given


class WeightsRow(SectionFacts):
    """Weights that members began with, their licence as their package says it, and the members."""

    source: str
    licence: str
    members: tuple[str, ...]


def model_card(facts: Facts, report: Report) -> str:
    """The card's text."""
    from huggingface_hub import ModelCard

    summary = _section(report, "summary", Summary)
    findings, data = _section(report, "findings", Findings), _section(report, "data", Data)
    environment = _section(report, "environment", cost.Environment)
    content = (
        _environment()
        .get_template(TEMPLATE.name)
        .render(
            card_data=_card_data(facts, summary).to_yaml(),
            title=report.title,
            software=report.software,
            created=report.created[:10],
            asked=summary.asked if summary else "",
            state=summary.state if summary else "",
            about=_about(facts),
            data=data.about
            if data
            else report.absent.get("data", "The data is not described: the manifest cannot be read."),
            splits=data.splits if data else (),
            drift=data.drift_note if data else "",
            sets=summary.sets if summary else (),
            systems=summary.systems if summary else (),
            findings=findings.rows if findings else (),
            findings_about=findings.about if findings else "",
            notices=[notice for notice in (summary.notices if summary else ()) if notice.level != "good"],
            weights=weights_of(_members(facts)),
            commands=environment.commands if environment else (),
        )
    )
    return str(ModelCard(content).content).rstrip() + "\n"


def _section(report: Report, name: str, kind: type[Any]) -> Any:
    return kind.model_validate(report.sections[name]) if name in report.sections else None


def _environment() -> jinja2.Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"md": markdown, "interval": interval}
    return environment


def markdown(text: str) -> str:
    r"""A text as part of a line or a cell of Markdown.

    >>> markdown("a|b <script> *c*")
    'a\\|b &lt;script&gt; \\*c\\*'
    """
    plain = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", plain)


def interval(score: Interval) -> str:
    """A score with its interval."""
    unknown = float("nan")
    return cli.ranged(*(unknown if value is None else value for value in (score.value, score.low, score.high)))


def _about(facts: Facts) -> str:
    if facts.ensemble is None:
        return "There is no ensemble yet: this card is of the run's trials."
    members = facts.ensemble.record.members
    return (
        f"An ensemble of {len(members)} trials, {facts.ensemble.record.name}, joined as {facts.ensemble.record.space}."
    )


def _members(facts: Facts) -> list[Trial]:
    if facts.ensemble is None:
        return [trial for trial in facts.trials if trial.state == "finished"]
    names = {member.trial for member in facts.ensemble.record.members}
    return [trial for trial in facts.trials if trial.name in names]


def weights_of(trials: list[Trial]) -> tuple[WeightsRow, ...]:
    """The weights that trials began with, with their licences."""
    members: dict[str, list[str]] = defaultdict(list)
    for trial in trials:
        members[trial.record.weights or "not recorded"].append(trial.name)
    return tuple(
        WeightsRow(source=origin(s), licence=licence_of(s), members=tuple(m)) for s, m in sorted(members.items())
    )


def licence_of(source: str) -> str:
    """The licence of weights by their source in a trial's record (models.weights.source), as their publisher states it.

    Of timm's weights that is in timm's own configuration, of a package in its metadata; else it is not known here.
    """
    name = source.split(" ")[0]
    if source == "none":
        return "no pretrained weights"
    if source.startswith("timm "):
        import timm

        config = timm.get_pretrained_cfg(source.removeprefix("timm "), allow_unregistered=True)
        return (config.license if config is not None else None) or UNKNOWN
    try:
        of_package = metadata(name.replace("_", "-"))
    except (PackageNotFoundError, ValueError):
        return UNKNOWN
    classifiers = [text for text in of_package.get_all("Classifier") or () if text.startswith("License ::")]
    stated = next((of_package[key] for key in ("License-Expression", "License") if key in of_package), "")
    if stated.upper() in ("", UNSTATED) and classifiers:
        stated = classifiers[0].rpartition(" :: ")[2]
    return f"{stated} (of the package)" if stated.upper() not in ("", UNSTATED) else UNKNOWN


def _card_data(facts: Facts, summary: Summary | None) -> Any:
    """The card's header: what the hub lists and searches by."""
    from huggingface_hub import EvalResult, ModelCardData

    name = facts.run.name
    results = []
    if summary and summary.systems:
        for of, score in zip(summary.sets, summary.systems[0].scores, strict=True):
            if of.name != "optimistic" and score.value is not None:
                results.append(
                    EvalResult(
                        task_type="image-classification",
                        task_name="multi-label chest X-ray classification",
                        dataset_type=facts.manifest.source if facts.manifest else "unknown",
                        dataset_name=f"{facts.run.task.name}, {of.title.lower()}",
                        dataset_split=of.name,
                        metric_type="mean_average_precision",
                        metric_name="macro mAP",
                        metric_value=round(score.value, 4),
                    )
                )
    return ModelCardData(
        license="other",
        license_name="see-weights-and-licences",
        library_name="cxrlt-ray",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", "multi-label", "long-tailed", "ensemble"],
        metrics=["mean_average_precision"],
        model_name=name if results else None,
        eval_results=results or None,
    )
