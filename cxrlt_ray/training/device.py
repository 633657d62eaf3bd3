"""The device a trial trains on: precision, batches brought to it ahead of time, what fits its memory, compilation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from cxrlt_ray.data.stream import Batch
from cxrlt_ray.errors import CxrltError
from cxrlt_ray.storage import Store

if TYPE_CHECKING:
    import torch

# torch.compile of an image model on a GPU: what it costs and gains at least, by others' reports; not measured here
COMPILE_SECONDS = 90.0
COMPILE_GAIN = 1.1
WARM_STEPS, TIMED_STEPS = 5, 20  # before the decision to compile


def precision(requested: str, device: torch.device) -> str:
    """The precision of forward passes, bf16 or fp32. requested: auto (bf16 where the device has it), bf16 or fp32.

    Raises CxrltError for bf16 on a GPU that has none.
    """
    import torch

    capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "bf16" and device.type == "cuda" and not capable:
        raise CxrltError("precision bf16 was asked for, but this GPU has none: use precision: auto.")
    return "bf16" if requested == "bf16" or (requested == "auto" and capable) else "fp32"


def autocast(requested: str, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context for the forward pass at the precision `requested`; raises as `precision` does."""
    import torch

    enabled = precision(requested, device) == "bf16"
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def ahead(stream: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Each batch with its images [B, H, W] on the device; on a GPU the next one is on its way during a step."""
    import torch

    if device.type != "cuda":
        for batch in stream:
            yield batch, torch.from_numpy(batch.images)
        return
    waiting: tuple[Batch, torch.Tensor] | None = None
    side = torch.cuda.Stream()
    for batch in stream:
        with torch.cuda.stream(side):
            images = torch.from_numpy(batch.images).pin_memory().to(device, non_blocking=True)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream().wait_stream(side)
        images.record_stream(torch.cuda.current_stream())
        waiting = batch, images
    if waiting is not None:
        yield waiting


def name(device: torch.device) -> str:
    """The device's name, as a file's name may be: NVIDIA-H100-80GB-HBM3, cpu."""
    import torch

    return re.sub(r"\W+", "-", torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def label(device: torch.device, threads: int) -> str:
    """What a rate belongs to: the GPU's name, or cpu-N for N threads."""
    return name(device) if device.type == "cuda" else f"cpu-{threads}"


def fitting(batch_size: int, step: Callable[[int], None], known: Store | None = None, key: str = "") -> int:
    """The largest of batch_size, its half, its quarter ... of which `step` does not run out of memory.

    A batch is then trained in pieces of that size, whose gradients add up: the search's batch size stays what it
    is, whatever the GPU. known, key: where the bounds are kept for other trials, as KEY.json {fits, fails}.
    Raises what `step` raised where one image is too much.
    """
    import torch

    bounds: dict[str, int | None] = {"fits": 0, "fails": None}
    if known is not None and known.exists(f"{key}.json"):
        bounds = known.read_json(f"{key}.json")
    size = batch_size
    while bounds["fails"] is not None and size >= bounds["fails"] and size > 1:
        size = math.ceil(size / 2)
    while size > (bounds["fits"] or 0):
        try:
            step(size)
            bounds["fits"] = size
        except torch.OutOfMemoryError:
            bounds["fails"] = size
            if size == 1:
                raise
            size = math.ceil(size / 2)
    if known is not None:
        known.write_json(f"{key}.json", bounds)
    return size


def worth_compiling(step_seconds: float, steps_left: int) -> bool:
    """Whether compilation saves more of what is left of a trial than it costs."""
    return step_seconds * steps_left * (1 - 1 / COMPILE_GAIN) > COMPILE_SECONDS
