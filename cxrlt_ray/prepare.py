"""`python -m cxrlt_ray.prepare DIR`: resize originals to shards, once."""

from __future__ import annotations

from typing import Annotated, Any

from cxrlt_ray import cli, output
from cxrlt_ray.cluster.processors import available_processors
from cxrlt_ray.data.estimate import SAMPLE, Estimate, estimate
from cxrlt_ray.data.prepare import prepare, quarantine_text
from cxrlt_ray.data.shards import LOSSLESS, MAX_BAD, QUALITY, check_max_bad, parse_quality, parse_sizes, quality_name
from cxrlt_ray.data.tasks import TASK_HELP
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store


def _estimate_table(costs: Estimate, cpus: float) -> Any:
    """A rich table of the cost of each size and quality."""
    from cxrlt_ray.output.tables import RecordTable

    table = RecordTable("estimate")
    for column in ("px", "quality", "an image", "all", "dB", f"on {cpus:g} CPU"):
        table.add_column(column, justify="right", no_wrap=True)
    for (size, quality), (total, seconds, decibel) in costs.kinds.items():
        alone = cli.duration((costs.read_seconds + seconds) / cpus)
        per_image = cli.size(total / costs.images)
        record = {
            "size": size,
            "quality": quality_name(quality),
            "bytes": total,
            "decibel": decibel,
            "seconds": seconds,
        }
        cells = (str(size), quality_name(quality), per_image, cli.size(total), f"{decibel:.1f}", alone)
        table.add_record(record, *cells)
    return table


def main(
    data: Annotated[str, cli.argument("the data's directory or URI")],
    sizes: Annotated[str, cli.option("edges of the shards' images in pixels, all from one decode")] = "512",
    quality: Annotated[str, cli.option("quality of the shards: 1 to 100 for JPEG, or lossless")] = str(QUALITY),
    estimate_only: Annotated[bool, cli.option("print the cost, prepare nothing", "--estimate")] = False,
    task: Annotated[str, cli.option(TASK_HELP)] = "auto",
    format: Annotated[str | None, cli.option("the data's format; detected by default")] = None,
    storage: Annotated[str, cli.option("where to keep the shards: a directory or URI")] = "runs",
    max_bad: Annotated[float, cli.option("the share of images that may be undecodable")] = MAX_BAD,
    checksum: Annotated[bool, cli.option("detect changed images by their contents, not by time", "--checksum")] = False,
    address: Annotated[str | None, cli.option("a Ray cluster to join; auto on its head node")] = None,
) -> None:
    """Resize originals to shards, once; a sweep does it by itself if needed.

    python -m cxrlt_ray.prepare /data/mimic --sizes 224,384,512
    python -m cxrlt_ray.prepare /data/mimic --sizes 224,512 --estimate
    """
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort

    edges, chosen = parse_sizes(sizes), parse_quality(quality)
    check_max_bad(max_bad)
    cohort = read_cohort(data, format=format, task=task)
    if estimate_only:
        costs = estimate(cohort.manifest, edges, list(dict.fromkeys((chosen, 90, QUALITY, LOSSLESS))))
        if costs is None:
            raise CxrltError(f"none of {SAMPLE} images of {data} can be decoded.")
        cpus = available_processors()
        print(f"{costs.images:,} images, about {cli.size(costs.original_bytes)}, read and decoded once:")
        cli.console().print(_estimate_table(costs, cpus))
        free = Store(storage).free()
        room = "" if free is None else f" {storage} has {cli.size(free)} free."
        output.result(f"dB: the cache's own loss, against the resized pixels.{room}")
        return
    store = Store(storage)
    store.check_writable()
    start_ray(address)
    lines, paths = [], []
    for shards in prepare(cohort.manifest, storage, edges, max_bad, chosen, checksum=checksum):
        size = cli.size(shards.summary["bytes"])
        lines.append(
            f"{shards.store.uri}: {shards.summary['images']:,} images, {size}; {quarantine_text(shards.summary)}"
        )
        paths.append(shards.store.uri)
    output.result("\n".join(lines), paths)


if __name__ == "__main__":
    cli.run("prepare")
