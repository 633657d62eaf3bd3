"""What a trial's device decides: pieces of a batch that fit, and whether compiling pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store
from cxrlt_ray.training import device, step
from cxrlt_ray.training.job import Job
from cxrlt_ray.training.workers import Worker, alone


def memory_of(most, tried):
    """A step that runs out of memory above `most` images."""

    def step(size):
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("out of memory")

    return step


@pytest.mark.parametrize(("most", "fits"), [(1000, 64), (64, 64), (63, 32), (20, 16), (1, 1)])
def test_a_batch_is_halved_until_it_fits(most, fits):
    tried = []
    assert device.fitting(64, memory_of(most, tried)) == fits
    assert tried[-1] == fits


def test_one_image_that_does_not_fit_is_told_as_torch_tells_it():
    with pytest.raises(torch.OutOfMemoryError):
        device.fitting(8, memory_of(0, []))


def test_what_fitted_is_not_tried_again_by_other_trials(tmp_path):
    known, tried = Store(str(tmp_path)), []
    device.fitting(64, memory_of(40, tried), known, "resnet-96px")
    assert tried == [64, 32]
    for batch_size, fits in [(64, 32), (32, 32), (16, 16)]:
        assert device.fitting(batch_size, memory_of(40, tried), known, "resnet-96px") == fits
    assert tried == [64, 32]
    assert device.fitting(48, memory_of(40, tried), known, "resnet-96px") == 24
    assert device.fitting(64, memory_of(40, tried), known, "other") == 32


def test_a_worker_that_tries_what_fits_waits_for_no_other(monkeypatch):
    """The first one reads what earlier trials found, and tries nothing: others would wait for its batch norms."""
    from timm.layers import BatchNormAct2d, convert_sync_batchnorm

    norms = torch.nn.Sequential(torch.nn.BatchNorm2d(3), BatchNormAct2d(3))
    network, images = convert_sync_batchnorm(norms), torch.rand(4, 3, 2, 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="SyncBatchNorm expected"):  # it would speak to the others, by a GPU
        network(images)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with alone(network):
        network(images).sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())
    assert all(module.training for module in network.modules())


def test_what_fitted_a_trial_of_less_memory_is_not_taken_for_one_of_more(tmp_path):
    def key(findings, **fields):
        job = Job(Store(str(tmp_path / "run")), (), tuple(f"finding {k}" for k in range(findings)), "f")
        config = TrialConfig(backbone="test_vit", resolution=32, epochs=1, **fields)
        return step.known_pieces(job, config, torch.device("cpu"))[1]

    decoder = {"head": "query_decoder", "text": "minilm"}
    keys = [
        key(5),
        key(45),
        key(5, image_lora=8),
        key(5, ema_decay=0.99),
        key(5, frozen_backbone=True),
        key(5, **decoder),
        key(5, query_layers=2, **decoder),
    ]
    assert len(set(keys)) == len(keys)
    assert key(5) == key(5, lr=1e-4)


@pytest.mark.parametrize("piece", [1, 3, 8])
def test_pieces_of_a_batch_give_the_whole_batchs_gradient_and_loss(piece):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images, targets = torch.rand(8, 4, 4), torch.randint(0, 2, (8, 3)).float()
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    whole = loss_of(model(images), targets)
    whole.backward()
    wanted = model[1].weight.grad.clone()
    model.zero_grad()
    cpu = torch.device("cpu")
    forward = step.Forward(model, "auto", cpu, piece, 10)
    config = TrialConfig(backbone="test_resnet", resolution=32, epochs=1, class_weight_exponent=0.0)
    objective = MultiLabel(config.objective_spec(), targets.numpy().astype(np.int8))
    worker = Worker(0, 1, cpu)
    loss = step.backward(
        forward, (images,), [(1.0, targets)], objective, config, piece, device.autocast("fp32", cpu), worker
    )
    assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
    assert torch.allclose(model[1].weight.grad, wanted, atol=1e-6)


def test_compiling_pays_for_long_trials_only():
    assert not device.worth_compiling(0.1, 1000)
    assert device.worth_compiling(0.1, 100_000)


def test_asked_for_compilation_serves_whole_pieces_and_leaves_the_rest_as_they_are(monkeypatch):
    """The remainder of an epoch would compile anew for its size."""
    sizes = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: lambda x: (sizes.append(len(x)), model(x))[1])
    model = torch.nn.Linear(4, 2)
    forward = step.Forward(model, "on", torch.device("cpu"), 8, 10)
    for count in (8, 5):
        assert torch.equal(forward(torch.ones(count, 4)), model(torch.ones(count, 4)))
    assert sizes == [8]


@pytest.mark.parametrize(("mode", "goes_on"), [("auto", True), ("on", False)])
def test_a_machine_that_cannot_compile_trains_without_unless_it_was_asked_to(monkeypatch, capsys, mode, goes_on):
    def compiled(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiled)
    model, images = torch.nn.Linear(2, 1), torch.ones(8, 2)
    forward = step.Forward(model, mode, torch.device("cpu"), 8, 10)
    forward._compile()  # as `tick` does where it pays
    if not goes_on:
        with pytest.raises(RuntimeError, match="C compiler"):
            forward(images)
        return
    for _ in range(2):
        torch.testing.assert_close(forward(images), model(images))
    told = capsys.readouterr().out
    assert told.count("not compiled") == 1
    assert "Failed to find C compiler. Please" in told


def test_a_compiled_network_that_fails_later_is_not_hidden(monkeypatch):
    def compiled(images):
        if images.sum() > 8:
            raise RuntimeError("of the device")
        return images

    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiled)
    forward = step.Forward(torch.nn.Identity(), "auto", torch.device("cpu"), 8, 10)
    forward._compile()
    forward(torch.ones(8))
    with pytest.raises(RuntimeError, match="of the device"):
        forward(2 * torch.ones(8))
