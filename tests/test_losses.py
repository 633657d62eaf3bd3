"""Every registered loss masks, has true gradients and stays finite; each is what its paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss

from cxrlt_ray.losses import LOSSES, MAX_WEIGHT, bound, class_weights, settings

torch.set_num_threads(2)


def example(seed: int = 0, images: int = 7, findings: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits float64, targets with every kind of entry, class weights."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, findings, generator=rng, dtype=torch.float64) * 3
    targets = torch.randint(-1, 2, (images, findings), generator=rng)
    targets[0, :3] = torch.tensor([-1, 0, 1])
    weights = torch.rand(findings, generator=rng, dtype=torch.float64) * 5 + 0.5
    return logits, targets, weights


def terms(logits: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, target and column of every labelled entry."""
    known = (targets >= 0).numpy()
    columns = np.broadcast_to(np.arange(targets.shape[1]), known.shape)[known]
    return logits.sigmoid().numpy()[known], targets.numpy()[known], columns


@pytest.fixture(params=sorted(LOSSES))
def loss(request):
    return LOSSES[request.param]


def test_null_entries_have_no_effect_and_no_gradient(loss):
    logits, targets, weights = example()
    other = torch.where(targets < 0, torch.full_like(logits, 50.0), logits).requires_grad_()
    value = loss(other, targets, weights)
    assert value.item() == pytest.approx(loss(logits, targets, weights).item())
    value.backward()
    assert (other.grad[targets < 0] == 0).all()
    assert (other.grad[targets >= 0] != 0).any()


def test_extreme_logits_of_null_entries_leave_no_nan_behind(loss):
    logits, targets, weights = example()
    wild = torch.where(targets < 0, torch.full_like(logits, 1e30), logits).float().requires_grad_()
    loss(wild, targets, weights.float()).backward()
    assert torch.isfinite(wild.grad).all()


def test_gradient_is_the_true_one(loss):
    logits, targets, weights = example()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, weights), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_value_and_gradient_are_finite_at_extreme_logits(loss, dtype):
    extremes = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], dtype=dtype)
    for target in (0, 1):
        logits = extremes.clone().unsqueeze(1).requires_grad_()
        value = loss(logits, torch.full((7, 1), target), torch.tensor([3.0]))
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        value.backward()
        assert torch.isfinite(logits.grad).all()


def test_value_is_the_mean_over_labelled_entries(loss):
    logits, targets, weights = example()
    alone = [
        loss(logits[i : i + 1, c : c + 1], targets[i : i + 1, c : c + 1], weights[c : c + 1]).item()
        for i, c in (targets >= 0).nonzero().tolist()
    ]
    assert loss(logits, targets, weights).item() == pytest.approx(np.mean(alone))
    twice = loss(logits.repeat(2, 1), targets.repeat(2, 1), weights)
    assert twice.item() == pytest.approx(loss(logits, targets, weights).item())


def test_batch_without_any_label_gives_zero_with_zero_gradient(loss):
    logits, targets, weights = example()
    logits.requires_grad_()
    value = loss(logits, torch.full_like(targets, -1), weights)
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_targets_of_any_type_give_the_same(loss):
    logits, targets, weights = example()
    values = {loss(logits, targets.to(kind), weights).item() for kind in (torch.int8, torch.int64, torch.float64)}
    assert len(values) == 1


def test_right_answers_cost_less_than_wrong_ones(loss):
    targets = torch.tensor([[1, 0]])
    weights = torch.tensor([2.0, 2.0])
    assert loss(torch.tensor([[3.0, -3.0]]), targets, weights) < loss(torch.tensor([[-3.0, 3.0]]), targets, weights)


def test_bce_is_scikit_learns_log_loss():
    logits, targets, weights = example()
    p, y, _ = terms(logits, targets)
    assert LOSSES["bce"](logits, targets, weights).item() == pytest.approx(log_loss(y, p, labels=[0, 1]))


def test_weighted_bce_is_log_loss_with_weighted_positives():
    logits, targets, weights = example()
    p, y, c = terms(logits, targets)
    w = np.where(y == 1, weights.numpy()[c], 1)
    expected = -np.mean(w * (y * np.log(p) + (1 - y) * np.log(1 - p)))
    assert LOSSES["weighted_bce"](logits, targets, weights).item() == pytest.approx(expected)


def test_weighted_bce_is_torchs_pos_weight_where_all_is_labelled():
    logits, targets, weights = example()
    targets = targets.clamp(min=0)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, targets.double())
    assert LOSSES["weighted_bce"](logits, targets, weights).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal_is_torchvisions(gamma):
    logits, targets, _ = example()
    ones = torch.ones(4, dtype=torch.float64)
    known = targets >= 0
    expected = sigmoid_focal_loss(logits[known], targets[known].double(), alpha=-1, gamma=gamma, reduction="mean")
    assert LOSSES["focal"](logits, targets, ones, focal_gamma=gamma).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(4, 0, 0.05), (4, 1, 0.05), (2, 1, 0), (0, 0, 0)])
def test_asl_is_timms_but_for_the_mean_over_findings(gamma_neg, gamma_pos, clip):
    logits, targets, weights = example()
    targets = targets.clamp(min=0)
    theirs = AsymmetricLossMultiLabel(gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    expected = theirs(logits, targets.double()) / targets.shape[1]  # timm sums over findings
    ours = LOSSES["asl"](logits, targets, weights, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weighted_asl_is_the_papers_formula_with_weighted_positives():
    logits, targets, weights = example()
    p, y, c = terms(logits, targets)
    shifted = np.maximum(p - 0.1, 0)
    positive = weights.numpy()[c] * (1 - p) ** 1.5 * np.log(p)
    expected = -np.mean(np.where(y == 1, positive, shifted**3 * np.log(1 - shifted)))
    ours = LOSSES["weighted_asl"](logits, targets, weights, gamma_neg=3.0, gamma_pos=1.5, clip=0.1)
    assert ours.item() == pytest.approx(expected)


def test_asl_pays_nothing_for_negatives_below_its_margin():
    logits = torch.tensor([[-4.0]], requires_grad=True)  # p = .018 < .05
    value = LOSSES["asl"](logits, torch.tensor([[0]]), torch.ones(1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad.item() == pytest.approx(0, abs=1e-12)


def test_class_weights_are_the_ratio_to_the_exponent_bounded_and_1_without_positives():
    positives, labelled = np.array([10, 50, 100, 0, 1]), np.array([110, 100, 100, 100, 1_000_001])
    np.testing.assert_allclose(class_weights(positives, labelled, 1), [10, 1, 1e-6, 1, MAX_WEIGHT])
    np.testing.assert_allclose(class_weights(positives, labelled, 0.5)[:2], [10**0.5, 1])
    np.testing.assert_allclose(class_weights(positives, labelled, 0), 1)


def test_settings_are_a_losss_own_and_bound_uses_them():
    assert settings("bce") == {}
    assert settings("focal") == {"focal_gamma": 2.0}
    logits, targets, weights = example()
    chosen = bound("focal", {"focal_gamma": 0.0}, torch.ones(4))
    assert chosen(logits, targets).item() == pytest.approx(LOSSES["bce"](logits, targets, weights).item())
