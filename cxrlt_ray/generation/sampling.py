"""Images from noise, by Ray Data: blocks of rows go to actors that hold the generator, one a GPU or a processor.

A row's noise comes of its own seed, and a block is always of the same BLOCK rows, computed together by one thread or
one GPU: so the bytes do not depend on the number of workers, or on what an earlier process had done. Images are
written as they come; a process that is begun again draws the blocks that are not all there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_ray import cli
from cxrlt_ray.cluster.start import DATA_CPUS, data_context
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.generation.cohort_folder import IMAGES, UNFINISHED, is_whole, names_of, path_of, write_tables
from cxrlt_ray.generation.conditions import Conditions
from cxrlt_ray.generation.records import GENERATOR, FindingTally, GeneratedRecord, GeneratorRecord, Sampled
from cxrlt_ray.generation.training_rows import TrainingRows
from cxrlt_ray.privacy import private_dir
from cxrlt_ray.runs.records import now
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    from cxrlt_ray.generation.diffusion import Diffusion

BLOCK = 8  # rows that are computed together; another number gives other bytes
Say = Callable[[str], None]


@dataclass(frozen=True)
class Generator:
    """A trained generator: its folder, record, and the rows that it learnt."""

    folder: Path
    record: GeneratorRecord
    rows: TrainingRows


def read_generator(folder: str) -> Generator:
    """The generator in a folder. Raises UsageError where there is none."""
    store = Store(folder).absolute()
    if store.local is None or not store.exists(GENERATOR):
        raise UsageError(f"{folder} holds no generator: train one by `python -m cxrlt_ray.generate train`.")
    record = GeneratorRecord.read(store, GENERATOR)
    return Generator(store.local, record, TrainingRows.read(store, record.learnt.findings))


def sample_into(generator: Generator, conditions: Conditions, how: Sampled, out: Store, say: Say) -> GeneratedRecord:
    """Draw the images of `conditions` into the folder `out`, as far as they are not there, and make a cohort of it.

    Ray has been started. Raises UsageError where `out` holds other images, CxrltError where a worker ends or the disk
    does not take them: what was drawn stays.
    """
    settings = {"generator": str(generator.folder), "created": generator.record.created, **how.model_dump(mode="json")}
    if is_whole(out):
        raise UsageError(f"--out {out.uri} holds generated images: give another folder.")
    if out.exists(UNFINISHED) and out.read_json(UNFINISHED) != settings:
        raise UsageError(f"--out {out.uri} was begun with other options: give those, remove it, or another folder.")
    if out.local is not None:
        private_dir(out.local)
    out.write_json(UNFINISHED, settings)
    names = names_of(len(conditions))
    there = set(out.list(IMAGES))
    blocks = [range(first, min(first + BLOCK, len(names))) for first in range(0, len(names), BLOCK)]
    missing = [block for block in blocks if any(f"{names[row]}.png" not in there for row in block)]
    left = sum(map(len, missing))
    if left < len(names):
        say(f"{len(names) - left:,} of {len(names):,} images were drawn before")
    if missing:
        _draw(generator, conditions, how, missing, out, say)
    record = GeneratedRecord(
        generator=str(generator.folder),
        learnt=generator.record.learnt,
        sampled=how,
        tallies=tallies(conditions, generator.rows),
        images=len(names),
        created=now(),
    )
    write_tables(out, record, conditions, generator.rows, names)
    out.delete(UNFINISHED)
    return record


def tallies(conditions: Conditions, rows: TrainingRows) -> dict[str, FindingTally]:
    """How many images were drawn for each set, and of how many real ones."""
    from cxrlt_ray.generation.conditions import members

    counts = {}
    for text in dict.fromkeys(conditions.of):
        positives = (rows.targets[:, members(text, rows.findings)] == 1).all(axis=1)
        drawn = int((conditions.of == text).sum())
        counts[str(text)] = FindingTally(positives=int(positives.sum()), drawn=drawn, kept=drawn)
    return counts


def _draw(
    generator: Generator, conditions: Conditions, how: Sampled, blocks: Sequence[range], out: Store, say: Say
) -> None:
    """Draw blocks of rows by actors, and write the images as they come."""
    import ray

    data_context()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = max(1, min(gpus or int(ray.cluster_resources().get("CPU", 1)), len(blocks)))
    items = [
        {"rows": list(block), "seeds": conditions.seed[block].tolist(), "vectors": conditions.vectors[block].tolist()}
        for block in blocks
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Sampler,
        fn_constructor_kwargs={"folder": str(generator.folder), "how": how.model_dump()},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        num_cpus=DATA_CPUS,
    )
    total = sum(map(len, blocks))
    names = names_of(len(conditions))
    try:
        drawn = dataset.iter_batches(batch_size=None)
        for batch in cli.with_progress(drawn, total, say, lambda batch: len(batch["row"])):
            for row, png in zip(batch["row"], batch["png"], strict=True):
                out.write(path_of(names[int(row)]), bytes(png))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, CxrltError):
            raise type(cause)(str(cause)) from None
        raise CxrltError(
            f"a process that draws images was ended ({type(error).__name__}), for lack of memory perhaps; what is "
            "drawn is kept, and the same command goes on."
        ) from None


class Sampler:
    """An actor with the generator, loaded once."""

    def __init__(self, folder: str, how: dict[str, object]) -> None:
        import torch

        from cxrlt_ray.generation.loading import load

        torch.set_num_threads(1)  # sums of several threads differ in their last bits
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.how = Sampled.model_validate(how)
        record = GeneratorRecord.read(Store(folder), GENERATOR)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load(Path(folder), record.config, record.learnt.findings).to(device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[object]]:
        """The rows of one block, and their images as PNG."""
        from cxrlt_ray.data.shards import LOSSLESS, encode

        seeds = np.array([int(seed) for seed in batch["seeds"][0]], np.int64)
        vectors = np.array([list(vector) for vector in batch["vectors"][0]], np.int8)
        images = draw(self.model, vectors, seeds, self.how.guidance, self.how.solver, self.how.solver_steps)
        rows: list[object] = [int(row) for row in batch["rows"][0]]
        return {"row": rows, "png": [encode(image, LOSSLESS) for image in images]}


def draw(
    model: Diffusion, vectors: np.ndarray, seeds: np.ndarray, guidance: float, solver_name: str, solver_steps: int
) -> np.ndarray:
    """Images uint8 [B, H, W] of conditions int8 [B, C]; an image's noise is a function of its seed alone."""
    import torch

    from cxrlt_ray.generation.diffusion import solver

    noise = [torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    latents = torch.stack(noise).to(model.device)
    condition = model.condition(vectors)
    steps = solver(model.config, solver_name)()
    steps.set_timesteps(solver_steps)
    with torch.inference_mode():
        for time in steps.timesteps:
            times = time.expand(len(latents)).to(model.device)
            output = model.guided(latents, times, condition, guidance)
            latents = steps.step(output, time, latents).prev_sample
        return model.pixels(latents).cpu().numpy()
