"""What `sweep --plan` and `sweep --dry-run` print."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrlt_ray import cli
from cxrlt_ray.data.readers.columns import counted
from cxrlt_ray.data.shards import QUALITY, quality_name
from cxrlt_ray.search.dry_run import StageModel
from cxrlt_ray.search.plan import Forecast, SweepPlan
from cxrlt_ray.search.pricing import PROCESS, decoding_cores, storage_of
from cxrlt_ray.search.workload import epoch_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from cxrlt_ray.output.tables import RecordTable

WIDTH = 160  # of the tables, in columns


def print_plan(
    plan: SweepPlan, price: float, decoded_bytes: int, sizes: Sequence[int] = (), quality: int = QUALITY
) -> None:
    """Print rates on each device, disk, memory, what the ingest needs, and time and cost by number of devices.

    price: of a device-hour. decoded_bytes: of memory for decoded images, a machine. sizes, quality: of the shards; the
    models' sizes without.
    """
    console, last = cli.console(WIDTH), plan.devices[-1]
    console.print(_rates_table(plan))
    console.print(f"CPU: cores that decode for one {last.name}, from shards of the trial's size")
    rates = [rate for device in plan.devices for rate in device.rates]
    storage = storage_of(rates, plan.workload, plan.trials, plan.kept, sizes, quality)
    kept = "checkpoints and predictions"
    if plan.kept is not None and plan.kept < plan.trials:
        kept = f"predictions and the checkpoints of the {counted(plan.kept, 'best trial')}"
    console.print(
        f"Prepare, once: {storage.images:,} originals (about {cli.size(storage.original_bytes)} where they are like "
        f"MIMIC-CXR-JPG) to {', '.join(map(str, storage.sizes))} px: "
        f"{cli.duration(storage.prepare_seconds / plan.cpus)} on {plan.cpus:g} CPU\n"
        f"Disk: {cli.size(storage.shard_bytes)} of shards ({quality_name(quality)}), "
        f"{cli.size(storage.trial_bytes)} of {kept}\n"
        f"Memory a machine: {cli.size(PROCESS)} a trial, up to {cli.size(decoded_bytes)} of decoded images; a GPU's "
        "own: a batch is split to fit"
    )
    for line in _features_lines(plan):
        console.print(line)
    console.print(_cost_table(plan.forecasts, price))
    console.print(f"Cost at {price:.2f} a device-hour (--price); the head, the CPUs and the storage are not in it.")
    print("Plan only: nothing was started." + ("" if plan.measured else " Measure the rates with --probe."))


def _features_lines(plan: SweepPlan) -> list[str]:
    """Of each kind of frozen stage the features that it stores, and whether they fit."""
    if not plan.features:
        return []
    lines = [f"Features of frozen backbones, computed once and kept in up to {cli.size(plan.features_bound)} of disk:"]
    for need in plan.features:
        copies = f", {need.copies} copies" if need.copies else ""
        whose = "for all trials" if need.shared else "a trial"
        fits = "" if need.size <= plan.features_bound else ": does not fit (--features-gb), computed in every epoch"
        lines.append(
            f"  {need.backbone} at {need.resolution} px, {need.tokens:,} x {need.width:,} an image{copies}: "
            f"{cli.size(need.size)} {whose}{fits}"
        )
    return lines


def _rates_table(plan: SweepPlan) -> Table:
    table = _table("rates")
    columns = [(f"{device.name}: images/s", "rate is", "an epoch") for device in plan.devices]
    for column in ("backbone", "px", *itertools.chain(*columns), "CPU"):
        table.add_column(column, no_wrap=True)
    models = zip(*(device.rates for device in plan.devices), strict=True)
    for rates in sorted(models, key=lambda rates: (rates[0].backbone, rates[0].resolution)):
        cells = [rates[0].backbone, str(rates[0].resolution)]
        for rate in rates:
            cells += [_digits(rate.rate), rate.source, cli.duration(epoch_seconds(rate, plan.workload))]
        devices = zip((device.name for device in plan.devices), rates, strict=True)
        record = {"backbone": rates[0].backbone, "resolution": rates[0].resolution, "cpus": decoding_cores(rates[-1])}
        record["images_per_second"] = {name: rate.rate for name, rate in devices}
        table.add_record(record, *cells, f"{decoding_cores(rates[-1]):.2f}")
    return table


def _cost_table(forecasts: Sequence[Forecast], price: float) -> Table:
    table = _table("forecasts")
    for column in ("devices", "wall time", "device-hours", "cost", "epochs", "without pruning", "pruning saves"):
        table.add_column(column, no_wrap=True)
    for forecast in forecasts:
        pruned, unpruned = forecast.pruned, forecast.unpruned
        priced = not forecast.name.startswith("cpu")
        record = {"devices": forecast.name, "seconds": pruned.wall, "device_seconds": pruned.busy}
        record |= {"cost": pruned.busy / 3600 * price if priced else None, "epochs": int(pruned.epochs.sum())}
        record |= {"seconds_unpruned": unpruned.wall, "device_seconds_unpruned": unpruned.busy}
        table.add_record(
            record,
            forecast.name,
            cli.duration(pruned.wall),
            f"{pruned.busy / 3600:,.1f}",
            f"{pruned.busy / 3600 * price:,.2f}" if priced else "-",
            f"{pruned.epochs.sum():,}",
            cli.duration(unpruned.wall),
            f"{1 - pruned.busy / unpruned.busy:.0%}",
        )
    return table


def print_models(models: Sequence[StageModel], findings: int) -> None:
    """Print the models that a dry run built: a row each, and where a first stage's weights come from."""
    cli.console(WIDTH).print(_models_table(models))
    sources = (f"Weights of {model.config.backbone}: {model.weights}" for model in models if model.stage == 0)
    print("\n".join(dict.fromkeys(sources)))
    print(f"{len(models)} kinds of models were built for {findings} findings, and took a training step, on paper.")


def _models_table(models: Sequence[StageModel]) -> Table:
    table = _table("models", (0, 1, 0, 0))
    staged = any(model.stage for model in models)
    systems = any(model.system for model in models)
    heads = (*(["system"] if systems else []), *(["stage"] if staged else []), "backbone", "px", "head", "fusion")
    for column in (*heads, "loss", "cohorts", "epochs", "parameters", "trained", "GFLOPs"):
        table.add_column(column, no_wrap=True)
    for model in models:
        config = model.config
        row = [*([model.system] if systems else []), *([str(model.stage + 1)] if staged else [])]
        row += [config.backbone, str(config.resolution), config.head, config.fusion, config.loss, config.cohorts]
        row += [str(config.epochs), f"{model.parameters / 1e6:,.1f} M", f"{model.trained / 1e6:,.1f} M"]
        record = {"system": model.system, "stage": model.stage, "backbone": config.backbone, "head": config.head}
        record |= {"resolution": config.resolution, "fusion": config.fusion, "loss": config.loss}
        record |= {"cohorts": config.cohorts, "epochs": config.epochs, "parameters": model.parameters}
        record |= {"trained": model.trained, "flops": model.flops}
        table.add_record(record, *row, f"{model.flops / 1e9:,.1f}")
    return table


def _table(kind: str, padding: tuple[int, int, int, int] = (0, 1, 0, 1)) -> RecordTable:
    from cxrlt_ray.output.tables import RecordTable

    return RecordTable(kind, padding=padding)


def _digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
