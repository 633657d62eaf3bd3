"""A generator that was trained for a few steps on small drawn images, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from generation_data import CONFIG, lesson_of

from cxrlt_ray.generation.training import Lesson, train_generator


@pytest.fixture(scope="session")
def lesson(tmp_path_factory) -> Lesson:
    pytest.importorskip("diffusers")
    return lesson_of(tmp_path_factory.mktemp("lesson"))


@pytest.fixture(scope="session")
def trained(lesson, tmp_path_factory) -> Path:
    """A generator's folder, trained in one go."""
    out = tmp_path_factory.mktemp("generator") / "g"
    train_generator(CONFIG, lesson, out, lambda _: None)
    return out
