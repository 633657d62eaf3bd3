"""The published systems in full size, trained for real: every model of every team's space, all its stages, on one GPU.

Random weights, few drawn images, two epochs a stage: whether it runs, whether the loss is finite in bf16, how much of
the GPU's memory it takes, in what pieces its batch goes to the GPU, and images/s of the second epoch (of few steps:
with the start of its stream). One command, on a machine with one GPU: python benchmarks/systems.py --write
--only team_d,team_f/maxvit: those alone. Every system's first model comes first; --seconds: no trial begins after so
many.
Without a GPU it says so and ends; --dry runs the same code on the CPU with the spaces in small.
"""

from __future__ import annotations

import shutil
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from report import options, publish

if TYPE_CHECKING:
    from cxrlt_ray.runs.trial_config import TrialConfig
    from cxrlt_ray.training.job import Job

BUILD = Path(__file__).parent.parent / "build" / "systems"
EPOCHS = 2


def kinds(name: str, small: bool) -> list[TrialConfig]:
    """A trial of every kind of the space, with random weights, MiniLM's embeddings and fewer epochs.

    Without stages that read reports: none are drawn here.
    """
    from cxrlt_ray.objectives.registry import find_objective
    from cxrlt_ray.search.space_file import load_space

    configs = {}
    for config in load_space(name, smoke=small).kinds():
        changes = {"pretrained": False, "cohorts": "main", "tta": "none", "refit": False}
        changes |= {"text": "minilm"} if config.text else {}
        stages = tuple(
            {**stage, "epochs": EPOCHS, "cohorts": "main"}
            for stage, whole in zip(config.stages, config.staged(), strict=False)  # of a trial without stages: none
            if not find_objective(whole.objective).needs.texts
        )
        config = config.model_copy(update={**changes, "epochs": EPOCHS, "stages": stages})
        configs[config.backbone, config.resolution, str(config.stages)] = config
    return list(configs.values())


def main() -> None:
    import torch

    from cxrlt_ray import config as config_
    from cxrlt_ray.cluster.start import start_ray
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.data.prepare import prepare
    from cxrlt_ray.data.stream import Ingest
    from cxrlt_ray.data.tasks import load_task
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.storage import Store
    from cxrlt_ray.training.job import Job

    parser = options(__doc__, {"images": 600})
    parser.add_argument("--only", default="", help="systems, or SYSTEM/BACKBONE's beginning, with commas")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--dry", action="store_true", help="on the CPU, the spaces in small")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.dry:
        print("No GPU here: nothing was measured. On a machine with one: python benchmarks/systems.py --write")
        sys.exit(0)
    began, left_out = time.monotonic(), 0
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    prefixes = tuple(args.only.split(",")) if args.only else ("team_",)
    spaces = config_.names("search_spaces")
    names = [name for name in spaces if name.startswith("team_") and not name.endswith("task3")]
    columns = zip_longest(*([(name, config) for config in kinds(name, args.dry)] for name in names))
    trials = [trial for column in columns for trial in column if trial]
    trials = [(name, config) for name, config in trials if f"{name}/{config.backbone}".startswith(prefixes)]
    sizes = sorted({config.resolution for _, config in trials})
    data = BUILD / f"phantom-{args.images}-{sizes[-1]}"
    write_phantom(data, images=args.images, size=sizes[-1])
    manifest = read_cohort(str(data), task="task1").manifest
    start_ray()
    shards = prepare(manifest, str(BUILD), sizes, say=lambda text: print(text, file=sys.stderr))
    run = Store(str(BUILD / "run"))
    shutil.rmtree(BUILD / "run", ignore_errors=True)
    with run.place("manifest.parquet") as path:
        manifest.write(path)
    findings = load_task("task1", manifest.findings).findings
    job = Job(run, tuple(shards), findings, manifest.fingerprint, ingest=Ingest())
    lines = [
        f"| system, on {gpu} | backbone | px | stage | batch | in pieces of | loss | images/s | peak memory, GB | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    failed = 0
    for number, (name, config) in enumerate(trials):
        if time.monotonic() - began > args.seconds:
            left_out = len(trials) - number
            break
        has_failed, stages = trained(job, f"{name}-{config.backbone}-{config.resolution}-{number}", config)
        failed += has_failed
        lines += [f"| {name} | {config.backbone} | {config.resolution} | {cells} |" for cells in stages]
        print("\n".join(lines[-len(stages) :]), flush=True)
    lines += ["", f"{failed} of {len(trials) - left_out} trials failed; {left_out} were left out for time."]
    publish("systems", "The published systems in full size", ":", lines, args.write and not args.dry)


def trained(job: Job, name: str, config: TrialConfig) -> tuple[bool, list[str]]:
    """Whether the trial failed, and the cells of its stages."""
    import torch

    from cxrlt_ray.runs.store import read_trial
    from cxrlt_ray.training import trial
    from cxrlt_ray.training.step import known_pieces

    has_gpu = torch.cuda.is_available()
    peaks: dict[int, float] = {}
    stages = config.staged()
    epochs: list[int] = []

    def report(_: dict[str, float]) -> None:
        """After each epoch: the peak memory of the stage so far."""
        stage = len(epochs) // EPOCHS
        epochs.append(stage)
        if has_gpu:
            peaks[stage] = torch.cuda.max_memory_allocated() / 1e9
            if len(epochs) % EPOCHS == 0:
                torch.cuda.reset_peak_memory_stats()

    if has_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    try:
        trial.train(job, name, config, {}, report)
    except Exception as error:
        return True, [f"{type(error).__name__}: {str(error)[:150]} | | | | | | {time.monotonic() - began:.0f}"]
    seconds = time.monotonic() - began
    record = read_trial(job.run / "trials" / name).record
    cells = []
    for number, stage in enumerate(stages):
        last = record.epochs_of(stage=number)[-1]
        kind = stage.fusion if stage.fusion != "none" else stage.head
        kind += ", frozen" if stage.frozen_backbone else ""
        unit = "studies" if stage.fusion != "none" else "images"
        fits = "-"
        if has_gpu:
            store, key = known_pieces(job, stage, torch.device("cuda"))
            fits = store.read_json(f"{key}.json")["fits"]
        loss = "not finite" if last.loss is None else f"{last.loss:.3f}"
        description = f"{number} {kind} | {stage.batch_size} {unit} | {fits} | {loss}"
        peak = peaks.get(number, float("nan"))
        cells.append(f"{description} | {last.images_per_second:,.0f} | {peak:.1f} | {seconds:.0f}")
    (job.run / "trials" / name).remove()
    return False, cells


if __name__ == "__main__":
    main()
