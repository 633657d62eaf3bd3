"""All that can be asked of `report`, checked in one place: what the command's options fill."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from cxrlt_ray import cli
from cxrlt_ray.config import Config
from cxrlt_ray.errors import UsageError
from cxrlt_ray.runs.store import DEFAULT_STORAGE

LEAST_SECONDS, MOST_SECONDS = 5.0, 86400.0  # between two pages of --watch


class ReportRequest(Config):
    """What is asked of `report`. Raises UsageError for options that do not go together."""

    run: Annotated[str | None, cli.option("the run; default: the latest")] = None
    storage: Annotated[str, cli.option("where the runs are: a directory or URI")] = DEFAULT_STORAGE
    out: Annotated[str | None, cli.option("the page, a .html: path or URI; default: in the run")] = None
    images: Annotated[bool, cli.option("include patients' images in the page", "--images")] = False
    watch: Annotated[bool, cli.option("rewrite the page each minute until the run has ended", "--watch")] = False
    every: Annotated[str, cli.option("how often --watch writes it: 30s, 5m")] = "60s"
    compare: Annotated[list[str] | None, cli.option("two runs, to show side by side")] = None

    @model_validator(mode="after")
    def _check(self) -> ReportRequest:
        if self.out is not None and not self.out.endswith(".html"):
            raise UsageError(f"--out {self.out} must end in .html: the numbers are left beside it as .json.")
        if not LEAST_SECONDS <= self.seconds <= MOST_SECONDS:
            raise UsageError(f"--every {self.every} must be between 5s and 1d: a page takes seconds to write.")
        if "every" in self.model_fields_set and not self.watch:
            raise UsageError("--every is for --watch: it says how often the page is written anew.")
        if self.compare is None:
            return self
        if len(self.compare) != 2:
            raise UsageError(f"--compare takes two runs, not {len(self.compare)}.")
        if given := [name for name in ("run", "images", "watch") if name in self.model_fields_set]:
            raise UsageError(f"--{given[0]} does not go with --compare, which names its two runs.")
        return self

    @property
    def seconds(self) -> float:
        """Between two pages of `watch`. Raises UsageError where `every` is no time."""
        from cxrlt_ray.search.request import parse_seconds

        return parse_seconds(self.every, "--every")
