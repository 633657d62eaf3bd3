"""`python -m cxrlt_ray.report [--run NAME]`: a run as one page, at any time; or two runs side by side.

report.html, report.json with its numbers and MODEL_CARD.md are written to the run, or to --out. The page needs no
network, works without scripts, and holds no id, path or report text (docs/report.md).
"""

from __future__ import annotations

from cxrlt_ray import cli, output
from cxrlt_ray.page.request import ReportRequest
from cxrlt_ray.page.watched import watch
from cxrlt_ray.page.written import write_comparison, write_report
from cxrlt_ray.runs.store import load_run

__all__ = ["ReportRequest", "main", "run"]


def run(request: ReportRequest) -> str:
    """Write the requested page; returns its path or URI.

        from cxrlt_ray import report
        report.run(report.ReportRequest(run="task1-20261125-101500", out="report.html"))

    Raises UsageError if there is no such run, CxrltError if nothing can be written.
    """
    if request.compare:
        one, other = (load_run(request.storage, name) for name in request.compare)
        written = write_comparison(one, other, request.out or "comparison.html")
    else:
        swept = load_run(request.storage, request.run)
        if request.watch:
            written = watch(swept, request.seconds, request.out, request.images)
        else:
            written = write_report(swept, request.out, images=request.images)
    for name, fault in written.report.faults.items():
        print(f"Note: section {name} is missing: {fault}")
    output.result(written.uri, [written.uri])
    return written.uri


main = cli.command(
    ReportRequest,
    run,
    """Write a run's report as one HTML page, with its numbers and a model card beside it.

    python -m cxrlt_ray.report
    python -m cxrlt_ray.report --run task1-20261125-101500 --out report.html
    python -m cxrlt_ray.report --watch --storage s3://BUCKET/runs --out report.html
    python -m cxrlt_ray.report --compare RUN_A RUN_B --out comparison.html
    """,
    many=("--compare",),
)


if __name__ == "__main__":
    cli.run("report")
