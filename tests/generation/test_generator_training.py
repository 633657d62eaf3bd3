"""Training a generator: what it leaves, that it goes on bit for bit, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_data import CONFIG, FINDINGS, lesson_of
from safetensors.torch import load_file

from cxrlt_ray.errors import CxrltError, Diverged, UsageError
from cxrlt_ray.generation import training
from cxrlt_ray.generation.config import GeneratorConfig, load_config
from cxrlt_ray.generation.sampling import read_generator
from cxrlt_ray.generation.training import mean_losses, train_generator

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Cut(Exception):
    """The end of a process."""


def quiet(_):
    pass


@pytest.fixture(autouse=True)
def _one_thread():
    """As the generator of the fixture was trained."""
    torch.set_num_threads(1)


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_generator_keeps_its_weights_its_rows_and_what_it_has_learnt(trained, lesson):
    generator = read_generator(str(trained))
    record = generator.record
    assert (record.steps, record.stopped) == (6, None)
    assert record.losses[0] > 0
    assert record.learnt == lesson.learnt
    assert record.parameters > 1000
    assert (generator.rows.targets == lesson.rows.targets).all()
    assert (generator.rows.subject == lesson.rows.subject).all()
    assert not trained.with_name("g.partial").exists()
    assert (trained.stat().st_mode & 0o077) == 0  # patients' ids are in it


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_training_that_is_cut_comes_to_the_same_weights_bit_for_bit(trained, lesson, tmp_path, monkeypatch, cut):
    """Also within an epoch: ten images are three steps."""
    out, step, count = tmp_path / "g", training._step, itertools.count(1)

    def cut_after(*arguments):
        loss = step(*arguments)
        if next(count) > cut:
            raise Cut
        return loss

    monkeypatch.setattr(training, "_step", cut_after)
    with contextlib.suppress(Cut):
        train_generator(CONFIG, lesson, out, quiet, keep_seconds=0)
    monkeypatch.setattr(training, "_step", step)
    said = []
    train_generator(CONFIG, lesson, out, said.append, keep_seconds=0)
    assert same(out, trained)
    assert read_generator(str(out)).record.losses == read_generator(str(trained)).record.losses


def test_a_time_budget_leaves_a_generator_that_goes_on(trained, lesson, tmp_path):
    out, said = tmp_path / "g", []
    first = train_generator(CONFIG, lesson, out, said.append, budget=0.0)
    assert (first.steps, first.stopped) == (1, "the time budget")
    assert any("--time-budget" in line for line in said)
    second = train_generator(CONFIG, lesson, out, said.append)
    assert (second.steps, second.stopped) == (6, None)
    assert same(out, trained)
    with pytest.raises(UsageError, match="holds a generator"):
        train_generator(CONFIG, lesson, out, quiet)


def test_what_a_killed_process_was_writing_does_not_stand_in_the_way(trained, lesson, tmp_path):
    out = tmp_path / "g"
    train_generator(CONFIG, lesson, out, quiet, budget=0.0)
    (tmp_path / "g.partial" / "state.safetensors.new").write_bytes(b"cut short")
    train_generator(CONFIG, lesson, out, quiet)
    assert same(out, trained)
    assert not (tmp_path / "g.partial").exists()
    (tmp_path / "g.partial").mkdir()  # without a state there is nothing to go on with
    with pytest.raises(UsageError, match="holds a generator"):
        train_generator(CONFIG, lesson, out, quiet)


def test_another_seed_gives_other_weights(trained, lesson, tmp_path):
    train_generator(CONFIG, lesson, tmp_path / "g", quiet, seed=1)
    assert not same(tmp_path / "g", trained)


def test_a_batch_of_one_and_a_single_image_train(tmp_path):
    one = CONFIG.model_copy(update={"batch_size": 1, "steps": 2})
    assert train_generator(one, lesson_of(tmp_path / "ten"), tmp_path / "g", quiet).steps == 2
    assert train_generator(CONFIG, lesson_of(tmp_path / "one", 1), tmp_path / "h", quiet).steps == 6


def test_a_state_of_other_options_is_not_gone_on_with(lesson, tmp_path):
    train_generator(CONFIG, lesson, tmp_path / "g", quiet, budget=0.0)
    with pytest.raises(UsageError, match="begun with other options or data"):
        train_generator(CONFIG, lesson, tmp_path / "g", quiet, seed=5)
    (tmp_path / "g.partial" / "state.safetensors").write_bytes(b"cut short")
    with pytest.raises(CxrltError, match="cannot be read"):
        train_generator(CONFIG, lesson, tmp_path / "g", quiet)


def test_a_disk_that_fills_is_told_and_the_last_state_stays(lesson, tmp_path, monkeypatch):
    import safetensors.torch

    save, count = safetensors.torch.save_file, itertools.count(1)

    def full(tensors, path, metadata=None):
        if next(count) > 2:
            Path(path).write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CxrltError, match="the disk is full"):
        train_generator(CONFIG, lesson, tmp_path / "g", quiet, keep_seconds=0)
    monkeypatch.setattr(safetensors.torch, "save_file", save)
    assert [path.name for path in (tmp_path / "g.partial").iterdir()] == ["state.safetensors"]
    assert train_generator(CONFIG, lesson, tmp_path / "g", quiet).steps == 6


def test_a_loss_that_is_not_finite_ends_it(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_step", lambda *_: float("nan"))
    with pytest.raises(Diverged, match="lower lr"):
        train_generator(CONFIG, lesson, tmp_path / "g", quiet)


def test_losses_are_means_of_tenths():
    assert mean_losses((2.0, 6.0), 6, 40) == (0.5, 3.0)


@pytest.mark.parametrize("name", ["tiny", "smoke", "latent", "stable_diffusion"])
def test_a_shipped_configuration_is_valid(name):
    assert load_config(name).steps > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resolution: 33", r"resolution 33 cannot be cut into patches of 1 and halved 2 times: take a multiple of 4"),
        ("resolution: 36\npatch: 2", r"resolution 36 cannot be cut into patches of 2 .* a multiple of 8"),
        ("resolution: 32\npatch: 2\nautoencoder: vae", r"patch 2 is of a network that works on pixels"),
        ("resolution: 32\nchannels: [12]", r"channels 12 cannot be divided into 8 groups"),
        ("resolution: 32\nattention: [3]", r"attention 3: the levels are 0 to 2"),
        ("resolution: 32\ncheckpoint: sd", r"checkpoint and text are of `condition: text`"),
        ("resolution: 32\nlr: 0", r"key 'lr': given 0"),
        ("resolution: 32\nlearning_rate: 1", r"unknown key 'learning_rate'; allowed at the top: resolution"),
    ],
)
def test_a_wrong_configuration_is_refused_with_file_and_key(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(f"{text}\nsteps: 10\n")
    with pytest.raises(UsageError, match=rf"mine\.yaml: .*{said}"):
        load_config(str(tmp_path / "mine.yaml"))


def test_patches_are_pixels_at_another_place():
    from cxrlt_ray.generation.loading import build

    config = GeneratorConfig(resolution=16, patch=2, channels=(8, 16), groups=4, steps=1)
    model = build(config, FINDINGS)
    images = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    latents = model.latents(images, torch.Generator())
    assert latents.shape[1:] == model.latent_shape == (4, 8, 8)
    assert latents[1, :, 0, 2].tolist() == (images[1, :2, 4:6].flatten() / 127.5 - 1).tolist()
    assert torch.equal(model.pixels(latents), images)
    assert model.predict(latents, torch.tensor([1, 2, 3]), model.null).shape == latents.shape


def test_an_autoencoder_of_another_kind_or_shape_is_refused(tmp_path):
    from cxrlt_ray.generation.loading import build, load_autoencoder

    with pytest.raises(UsageError, match="holds no AutoencoderKL"):
        load_autoencoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(UsageError, match="holds a VQModel, not the AutoencoderKL"):
        load_autoencoder(str(tmp_path))
    autoencoder(tmp_path / "vae")
    odd = GeneratorConfig(resolution=18, channels=(8, 16), groups=4, steps=1, autoencoder=str(tmp_path / "vae"))
    with pytest.raises(UsageError, match="resolution 18 cannot be halved 2 times"):
        build(odd, FINDINGS)


def test_a_checkpoint_of_another_shape_is_refused(trained, tmp_path):
    from safetensors.torch import save_file

    from cxrlt_ray.generation.loading import load

    generator = read_generator(str(trained))
    with pytest.raises(CxrltError, match="another number of findings"):
        load(trained, generator.record.config, FINDINGS[:2])
    copy = tmp_path / "g" / "unet"
    copy.mkdir(parents=True)
    (copy / "config.json").write_text((trained / "unet" / "config.json").read_text())
    tensors = load_file(trained / WEIGHTS)
    save_file({name: tensor[:1].clone() for name, tensor in tensors.items()}, copy.parent / WEIGHTS)
    with pytest.raises(CxrltError, match="cannot be loaded as UNet2DConditionModel"):
        load(tmp_path / "g", generator.record.config, FINDINGS)


def test_latents_of_an_autoencoder_are_learnt_and_decoded_to_images(lesson, tmp_path):
    from cxrlt_ray.generation.loading import load
    from cxrlt_ray.generation.sampling import draw

    autoencoder(tmp_path / "vae")
    config = CONFIG.model_copy(update={"autoencoder": str(tmp_path / "vae"), "steps": 2})
    train_generator(config, lesson, tmp_path / "g", quiet)
    model = load(tmp_path / "g", config, FINDINGS)
    assert model.latent_shape == (4, 8, 8)
    images = draw(model, np.array([[1, 0, -1]], np.int8), np.array([3]), 2.0, "dpm", 3)
    assert images.shape == (1, 16, 16)
    assert images.dtype == np.uint8


def autoencoder(folder: Path) -> None:
    """An AutoencoderKL that halves images once, saved on the spot."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder)
