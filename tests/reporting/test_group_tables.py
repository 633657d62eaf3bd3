"""Tables by group and by site: they fit a terminal, names are printed as they are, small groups have none."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_ray.evaluation.groups import compare_groups
from cxrlt_ray.evaluation.sites import ScoredImages, compare_site
from cxrlt_ray.reporting import groups, sites

NAMES = ("[red]Mass[/red]", "<script>alert(1)</script>", "Hernia " + "x" * 300)


def drawn(seed: int, images: int = 600, faint: float = 0.0) -> ScoredImages:
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 3)) < [0.3, 0.2, 0.005]).astype(np.int8)
    weaker = faint * (np.arange(images) % 2 == 0)[:, None]
    scores = 1 / (1 + np.exp(-((2 - weaker) * targets - 1.5 + rng.normal(size=targets.shape))))
    return ScoredImages(targets, scores, np.arange(images), np.full(images, "PA", object))


def text(parts: list) -> str:
    from rich.console import Console

    console = Console(width=120, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
    return capture.get()


@pytest.fixture(scope="module")
def by_group():
    images = drawn(0, faint=2.0)
    columns = {
        "sex": np.where(np.arange(600) % 2 == 0, "[bold]F", "M").astype(object),
        "site": np.where(np.arange(600) < 5, "the only patient of Nome", "A").astype(object),
    }
    columns["all null"] = np.full(600, "unknown", object)
    return compare_groups(images.targets, images.scores, NAMES, columns, images.subjects, rounds=64)


def test_a_table_by_group_shows_names_as_they_are_and_small_groups_not_at_all(by_group):
    shown = text(groups.render(by_group))
    assert "[bold]F" in shown
    assert "[red]Mass[/red]" in shown
    assert "Nome" not in shown
    assert "By site: 1 group of fewer than 20 subjects not shown" in shown
    assert "By all null: no group is known" in shown
    assert "worse for [bold]F" in shown
    assert "Nome" not in by_group.frame().to_csv()


def test_numbers_of_the_table_are_the_reports(by_group):
    shown = text(groups.render(by_group))
    for group in (group for group in by_group.groups if group.by == "sex"):
        row = next(line for line in shown.splitlines() if line.strip().startswith(group.group))
        assert f"{group.mean.scores['auroc'].value:.3f}" in row
        assert f"{group.mean.scores['bias'].value:+.3f}" in row
        assert f" {group.subjects} " in row


def test_the_json_of_groups_and_sites_has_no_number_that_json_lacks(by_group):
    import json

    report = compare_site("nih", NAMES, drawn(0), drawn(1), rounds=32)
    json.dumps([groups.as_json(by_group), sites.as_json(report)], allow_nan=False)


def test_a_site_is_shown_with_drops_and_what_explains_them():
    report = compare_site("nih", NAMES, drawn(0), drawn(1, faint=2.5), rounds=64)
    shown = text(sites.render(report))
    assert "nih: 600 images of 600 subjects; home: 600 of 600" in shown
    drop = report.drops[0]
    row = next(line for line in shown.splitlines() if "mean of findings" in line)
    for value in (drop.home["ap"].value, drop.site["auroc"].value):
        assert f"{value:.3f}" in row
    assert "With fewer than 5 positive or negative subjects: Hernia" in shown
