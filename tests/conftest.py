"""What tests share: small cohorts written on the spot, and one Ray for the whole session."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

from cxrlt_ray.data.manifest import META, Manifest

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # begun in the background: what the tests start would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")  # a busy machine draws and runs an example ten times slower

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ray():
    """The Ray of the whole test session, with the machine's CPUs."""
    from cxrlt_ray.cluster.start import start_ray

    started = start_ray()
    yield started
    started.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real chest X-rays, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here: the tests on real chest X-rays need it")
    return SHARED


@pytest.fixture(scope="session")
def lesson(tmp_path_factory):
    """What a generator learns in tests: ten small pictures."""
    pytest.importorskip("diffusers")
    from generation_data import lesson_of

    return lesson_of(tmp_path_factory.mktemp("lesson"))


@pytest.fixture(scope="session")
def trained(lesson, tmp_path_factory) -> Path:
    """The folder of a generator that was trained on them, for a few steps in one go."""
    import torch
    from generation_data import CONFIG

    from cxrlt_ray.generation.training import train_generator

    torch.set_num_threads(1)  # weights are the same bit for bit on the same number of threads

    out = tmp_path_factory.mktemp("generator") / "g"
    train_generator(CONFIG, lesson, out, lambda _: None)
    return out


def write_images(folder: Path, count: int, size: int = 40, seed: int = 0) -> Manifest:
    """`count` smooth gray JPEGs of a subject each, two findings, three splits, and their manifest."""
    import cv2

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(count):
        targets = rng.random(2) < 0.4
        image = cv2.resize(rng.integers(40, 120, (4, 4), dtype=np.uint8), (size, size))
        image[: size // 2, : size // 2] += np.uint8(100 * targets[0])
        image[size // 2 :, size // 2 :] += np.uint8(100 * targets[1])
        cv2.imwrite(str(folder / f"{k:03d}.jpg"), image)
        split = ("train", "train", "val", "test")[k % 4]
        row = dict.fromkeys(META)
        row |= {"image_id": f"i{k:03d}", "study_id": f"s{k}", "subject_id": str(k), "view": "PA"}
        rows.append(row | {"path": f"{k:03d}.jpg", "split": split, "Mass": targets[0], "Nodule": targets[1]})
    table = pd.DataFrame(rows).astype({"Mass": "Int8", "Nodule": "Int8"})
    return Manifest(table, ("Mass", "Nodule"), "table", str(folder))
