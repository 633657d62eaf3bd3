"""`python -m cxrlt_ray.label REPORTS --out labels.csv`: the labels of studies, from their radiology reports."""

from __future__ import annotations

from cxrlt_ray import cli
from cxrlt_ray.labelling.request import LabelRequest

__all__ = ["LabelRequest", "main", "run"]


def run(request: LabelRequest) -> None:
    """Label the reports, and leave labels.csv and evidence.parquet."""
    raise NotImplementedError


main = cli.command(LabelRequest, run, "Label radiology reports.")


if __name__ == "__main__":
    cli.run("label")
