"""One small sweep on a small phantom, which the tests of this folder then look at."""

from __future__ import annotations

import pytest

SPACE = """
trials: 3
epochs: 2
parameters:
  backbone: {choices: [test_convnext, test_resnet]}
  pretrained: false
  resolution: {choices: [32, 48]}
  lr: {low: 1e-3, high: 1e-2, log: true}
  loss: {choices: [bce, weighted_asl]}
  ema_decay: 0.9
start:
  - {backbone: test_convnext, resolution: 48, lr: 4e-3, loss: bce}
  - {backbone: test_resnet, resolution: 32}
"""


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    from cxrlt_ray.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom") / "tree"
    write_phantom(str(folder), images=400, size=64, seed=0, say=lambda _: None)
    return str(folder)


@pytest.fixture(scope="session")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(SPACE)
    return str(path)


@pytest.fixture(scope="session")
def storage(ray, phantom, space, tmp_path_factory):
    """A storage with the finished run `line`: three trials on task 1, a part of the validation held out."""
    from cxrlt_ray import sweep

    folder = str(tmp_path_factory.mktemp("storage"))
    sweep.main("task1", data=phantom, space=space, name="line", storage=folder, holdout=0.3)
    return folder
