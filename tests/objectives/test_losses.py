"""Every registered loss masks, has true gradients and stays finite; each is what its paper says."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss
from timm.loss import AsymmetricLossMultiLabel
from torchvision.ops import sigmoid_focal_loss

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.losses import (
    LOSSES,
    RANGES,
    SCOPES,
    bound,
    setting_fault,
    settings,
    smoothed,
)
from cxrlt_ray.objectives.priors import MAX_WEIGHT, class_weights, logit_shift

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


def counts(findings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positives and labelled entries in training: tail, medium, head."""
    return torch.tensor([7.0, 60.0, 900.0, 25.0])[:findings], torch.tensor([2000.0, 1500.0, 2000.0, 40.0])[:findings]


def named(name, **chosen):
    """Loss `name` as training binds it, as a function of (logits, targets, weights)."""
    return lambda logits, targets, weights: bound(name, chosen, weights, *counts(logits.shape[1]))(logits, targets)


def of_scope(*scopes: str) -> list[str]:
    return sorted(name for name in LOSSES if SCOPES[name] in scopes)


@pytest.fixture(params=sorted(LOSSES))
def name(request):
    return request.param


@pytest.fixture
def loss(name):
    return named(name)


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


@pytest.mark.parametrize("name", of_scope("entry"))
def test_value_is_the_mean_over_labelled_entries(name):
    """Without counts an entry is alone with its class weight; with counts its finding's place among others matters."""
    loss, (logits, targets, weights) = named(name), example()
    counted = bool({"positives", "labelled"} & set(inspect.signature(LOSSES[name]).parameters))
    alone = []
    for i, c in (targets >= 0).nonzero().tolist():
        single = torch.full_like(targets[i : i + 1], -1)
        single[0, c] = targets[i, c]
        columns = slice(None) if counted else slice(c, c + 1)
        alone.append(loss(logits[i : i + 1, columns], single[:, columns], weights[columns]).item())
    assert loss(logits, targets, weights).item() == pytest.approx(np.mean(alone))


@pytest.mark.parametrize("name", of_scope("image"))
def test_value_is_the_mean_over_images_by_their_labelled_entries(name):
    loss, (logits, targets, weights) = named(name), example()
    alone = [loss(logits[i : i + 1], targets[i : i + 1], weights).item() for i in range(len(logits))]
    assert loss(logits, targets, weights).item() == pytest.approx(np.average(alone, weights=(targets >= 0).sum(1)))


@pytest.mark.parametrize("name", of_scope("entry", "image"))
def test_a_batch_twice_is_worth_the_batch(name):
    loss, (logits, targets, weights) = named(name), example()
    twice = loss(logits.repeat(2, 1), targets.repeat(2, 1), weights)
    assert twice.item() == pytest.approx(loss(logits, targets, weights).item())


@pytest.mark.parametrize("name", of_scope("entry"))
def test_mixed_targets_cost_the_mixture_of_what_both_cost(name):
    loss, (logits, targets, weights) = named(name), example()
    others = torch.where(targets < 0, targets, 1 - targets[:, [1, 2, 3, 0]].clamp(min=0))
    mixture = 0.3 * targets.double() + 0.7 * others
    expected = 0.3 * loss(logits, targets, weights) + 0.7 * loss(logits, others, weights)
    assert loss(logits, mixture, weights).item() == pytest.approx(expected.item())


def test_gradient_is_the_true_one_for_smoothed_targets_too(loss):
    logits, targets, weights = example()
    soft = smoothed(targets.double(), 0.1, 0.02)
    assert torch.autograd.gradcheck(lambda x: loss(x, soft, weights), logits.requires_grad_())


def test_the_order_of_images_does_not_matter(loss):
    logits, targets, weights = example()
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    expected = loss(logits, targets, weights).item()
    assert loss(logits[order], targets[order], weights).item() == pytest.approx(expected)


def test_bfloat16_logits_give_what_float64_makes_of_the_same_numbers(loss):
    logits, targets, weights = example()
    rough = logits.bfloat16().requires_grad_()
    exact = rough.detach().double().requires_grad_()
    value, expected = loss(rough, targets, weights.float()), loss(exact, targets, weights)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(rough.grad.double(), exact.grad, rtol=2**-8, atol=1e-7)


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


def sides(logits: torch.Tensor, targets: torch.Tensor, positive: np.ndarray, negative: np.ndarray) -> float:
    """The mean over labelled entries of what positives and negatives cost, both [B, C]."""
    y = targets.numpy()
    return np.where(y == 1, positive, negative)[y >= 0].mean()


def test_class_balanced_is_the_papers_weights_on_the_sigmoid_cross_entropy():
    logits, targets, weights = example()
    n = counts(4)[0].double().numpy()
    balance = (1 - 0.99) / (1 - 0.99**n)
    balance *= 4 / balance.sum()
    p = logits.sigmoid().numpy()
    cross = sides(logits, targets, -balance * np.log(p), -balance * np.log(1 - p))
    assert named("class_balanced", cb_beta=0.99)(logits, targets, weights).item() == pytest.approx(cross, rel=1e-5)
    focal = sides(logits, targets, -balance * (1 - p) ** 1.5 * np.log(p), -balance * p**1.5 * np.log(1 - p))
    ours = named("class_balanced", cb_beta=0.99, focal_gamma=1.5)(logits, targets, weights)
    assert ours.item() == pytest.approx(focal, rel=1e-5)


def test_class_balanced_is_bce_at_beta_0_and_inverse_frequency_near_1():
    logits, targets, weights = example()
    bce = named("bce")(logits, targets, weights).item()
    assert named("class_balanced", cb_beta=0.0)(logits, targets, weights).item() == pytest.approx(bce)
    n = counts(4)[0].double().numpy()
    inverse = 4 / n / (1 / n).sum()
    p = logits.sigmoid().numpy()
    expected = sides(logits, targets, -inverse * np.log(p), -inverse * np.log(1 - p))
    ours = named("class_balanced", cb_beta=1 - 1e-9)(logits, targets, weights).item()
    assert ours == pytest.approx(expected, rel=1e-4)


def test_class_balanced_weighs_findings_without_positives_1_and_leaves_the_others_alone():
    logits, targets, weights = example()
    positives, labelled = counts(4)
    single = torch.full_like(targets, -1)
    single[:, 3] = 0
    none = positives * torch.tensor([1.0, 1, 1, 0])
    ours = bound("class_balanced", {}, weights, none, labelled)
    assert ours(logits, single).item() == pytest.approx(named("bce")(logits, single, weights).item())
    three = bound("class_balanced", {}, weights[:3], positives[:3], labelled[:3])
    rest = torch.cat([targets[:, :3], torch.full_like(targets[:, 3:], -1)], 1)
    assert ours(logits, rest).item() == pytest.approx(three(logits[:, :3], targets[:, :3]).item())
    nothing = bound("class_balanced", {}, weights, none * 0, labelled)
    assert nothing(logits, targets).item() == pytest.approx(named("bce")(logits, targets, weights).item())


@pytest.mark.parametrize(("tau", "gamma_neg", "gamma_pos", "clip"), [(1.0, 4, 0, 0.05), (0.5, 2, 1, 0.0), (2, 0, 0, 0)])
def test_logit_adjusted_asl_is_asl_of_logits_with_the_findings_log_odds_added(tau, gamma_neg, gamma_pos, clip):
    """Menon et al. 2021, eq. 10, for two classes a finding: z + tau log(p / (1 - p)), p its share of positives."""
    logits, targets, weights = example()
    positives, labelled = (counted.double().numpy() for counted in counts(4))
    share, total, number = positives / labelled, 0.0, 0
    for image, row in zip(logits.numpy(), targets.numpy(), strict=True):
        for c, target in enumerate(row):
            if target < 0:
                continue
            z = image[c] + tau * np.log(share[c] / (1 - share[c]))
            p = 1 / (1 + np.exp(-z))
            shifted = max(p - clip, 0)
            cost = (1 - p) ** gamma_pos * -np.log(p) if target else shifted**gamma_neg * -np.log(1 - shifted)
            total, number = total + cost, number + 1
    ours = named("logit_adjusted_asl", la_tau=tau, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert ours(logits, targets, weights).item() == pytest.approx(total / number, rel=1e-5)
    plain = named("asl", gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    none = named("logit_adjusted_asl", la_tau=0.0, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert none(logits, targets, weights).item() == pytest.approx(plain(logits, targets, weights).item())


def distribution_balanced_by_loops(z, y, n, labelled, alpha, beta, mu, scale, kappa, gamma):
    """Wu et al. 2020, entry by entry."""
    terms = []
    for k in range(z.shape[0]):
        drawn = sum(1 / n[j] for j in range(z.shape[1]) if y[k, j] == 1)
        for i in range(z.shape[1]):
            if y[k, i] < 0:
                continue
            r = 1 / n[i] / drawn if drawn else np.inf
            weight = alpha + 1 / (1 + np.exp(-beta * (r - mu)))
            bias = -np.log(1 / (n[i] / labelled[i]) - 1)
            x = z[k, i] - -kappa * bias
            if y[k, i] == 1:
                q = 1 / (1 + np.exp(-x))
                terms.append(-weight * (1 - q) ** gamma * np.log(q))
            else:
                q = 1 / (1 + np.exp(-scale * x))
                terms.append(-weight / scale * q**gamma * np.log(1 - q))
    return np.mean(terms)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("chosen", [(0.1, 10.0, 0.2, 2.0, 0.05), (0.3, 4.0, 0.3, 5.0, 0.5)])
def test_distribution_balanced_is_the_papers_formula(chosen, gamma):
    logits, targets, weights = example()
    targets[1] = torch.tensor([0, 0, -1, 0])  # an image without findings
    targets[2] = torch.tensor([1, 0, 1, 1])
    expected = distribution_balanced_by_loops(
        logits.numpy(), targets.numpy(), *(each.double().numpy() for each in counts(4)), *chosen, gamma
    )
    names = ("db_alpha", "db_beta", "db_mu", "db_lambda", "db_kappa")
    ours = named("distribution_balanced", **dict(zip(names, chosen, strict=True)), focal_gamma=gamma)
    assert ours(logits, targets, weights).item() == pytest.approx(expected, rel=1e-5)


def test_distribution_balanced_without_its_parts_is_bce():
    logits, targets, weights = example()
    targets[1] = torch.tensor([0, 0, -1, 0])  # an image without findings
    plain = named("distribution_balanced", db_alpha=0.5, db_beta=0.0, db_lambda=1.0, db_kappa=0.0)
    assert plain(logits, targets, weights).item() == pytest.approx(named("bce")(logits, targets, weights).item())


def test_distribution_balanced_reads_smoothed_targets_as_the_findings_that_they_were():
    logits, targets, weights = example()
    plain, zeros = named("distribution_balanced"), torch.zeros(4)
    value = plain(logits, smoothed(targets, 0.2, 0.05), weights).item()
    counted = targets.clamp(min=0).double().numpy() / counts(4)[0].numpy()
    drawn = counted.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        balance = 0.1 + 1 / (1 + np.exp(-10 * (1 / counts(4)[0].numpy() / drawn - 0.2)))
    odds = logit_shift(*counts(4), 1)
    x = logits.numpy() + 0.05 * odds
    positive, negative = np.logaddexp(0, -x), np.logaddexp(0, 2 * x) / 2
    expected = sides(
        logits, targets, balance * (0.8 * positive + 0.2 * negative), balance * (0.05 * positive + 0.95 * negative)
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert bound("distribution_balanced", {}, weights, zeros, zeros)(logits, targets).isfinite()


@pytest.mark.parametrize(("margin", "scale"), [(0.5, 1.0), (2.0, 1.0), (0.5, 30.0)])
def test_ldam_is_the_authors_softmax_over_the_two_sides_of_each_finding(margin, scale):
    logits, targets, weights = example()
    logits = logits / scale
    positives, labelled = (each.double() for each in counts(4))
    margins = 1 / torch.stack([labelled - positives, positives]) ** 0.25  # [2, C]
    margins *= margin / margins.max()
    expected = []
    for i, c in (targets >= 0).nonzero().tolist():
        side = int(targets[i, c])
        pair = torch.stack([torch.zeros(()), logits[i, c]])
        pair[side] -= margins[side, c]
        cross = torch.nn.functional.cross_entropy(scale * pair, torch.tensor(side)).item()
        expected.append(cross * (weights[c].item() if side else 1))
    ours = named("ldam", ldam_margin=margin, ldam_scale=scale)(logits, targets, weights).item()
    assert ours == pytest.approx(np.mean(expected), rel=1e-5)


def test_ldam_without_margins_is_weighted_bce():
    logits, targets, weights = example()
    expected = named("weighted_bce")(logits, targets, weights).item()
    assert named("ldam", ldam_margin=0.0)(logits, targets, weights).item() == pytest.approx(expected)


def test_ldam_gives_a_side_never_seen_the_largest_margin_and_the_others_their_own():
    weights, labelled = torch.ones(2), torch.tensor([1000.0, 1000.0])
    empty = bound("ldam", {"ldam_margin": 2.0}, weights, torch.tensor([16.0, 0.0]), labelled)
    at_zero = torch.zeros(1, 2)
    assert empty(at_zero, torch.tensor([[1, -1]])).item() == pytest.approx(np.logaddexp(0, 2))
    assert empty(at_zero, torch.tensor([[-1, 1]])).item() == pytest.approx(np.logaddexp(0, 2))
    assert empty(at_zero, torch.tensor([[-1, 0]])).item() == pytest.approx(np.logaddexp(0, 2 * (16 / 1000) ** 0.25))
    nothing = bound("ldam", {}, weights, torch.zeros(2), torch.zeros(2))
    assert nothing(at_zero, torch.tensor([[1, 0]])).item() == pytest.approx(np.logaddexp(0, 0.5))


def two_way_by_loops(z, y, temperature):
    """Kobayashi 2023: images with a positive, findings with a positive; labelled entries only, by their shares."""

    def cost(logits, labels):
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        n, p = ((1 - labels) * np.exp(logits)).sum(), (labels * np.exp(-logits / temperature)).sum()
        return np.log(1 + n * p**temperature)

    rows = [cost(z[k], y[k]) for k in range(len(z)) if (y[k] > 0.5).any()]
    columns = [cost(z[:, c], y[:, c]) for c in range(z.shape[1]) if (y[:, c] > 0.5).any()]
    return np.mean(rows) + np.mean(columns)


@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_two_way_is_the_papers_formula_over_images_and_findings(temperature, smooth):
    logits, targets, weights = example()
    targets[1] = torch.tensor([0, 0, -1, 0])  # an image without findings
    targets[2] = torch.tensor([1, 1, 1, -1])  # an image with nothing else
    targets[:, 3] = targets[:, 3].clamp(max=0)  # a finding that no image has
    targets = smoothed(targets.double(), smooth, smooth / 2)
    expected = two_way_by_loops(logits.numpy(), targets.numpy(), temperature)
    ours = named("two_way", two_way_temperature=temperature)(logits, targets, weights).item()
    assert ours == pytest.approx(expected)


def test_two_way_for_one_label_an_image_is_softmax_cross_entropy_among_findings():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    value = LOSSES["two_way"](logits, torch.tensor([[0, 1, 0]]), torch.ones(3)).item()
    softmax = torch.nn.functional.cross_entropy(logits, torch.tensor([1])).item()
    assert value == pytest.approx(softmax)  # alone in its column: no pairs there, no cost


def test_two_way_compares_logits_with_each_other_only():
    logits, targets, weights = example()
    loss = named("two_way")
    assert loss(logits + 3, targets, weights).item() == pytest.approx(loss(logits, targets, weights).item())


def test_two_way_keeps_smoothed_logits_from_running_away():
    far, farther = (torch.tensor([[x, -x]], dtype=torch.float64) for x in (20.0, 40.0))
    hard, loss = torch.tensor([[1, 0]]), named("two_way")
    soft = smoothed(hard, 0.05, 0.05)
    assert loss(far, hard, torch.ones(2)) > loss(farther, hard, torch.ones(2))
    assert loss(far, soft, torch.ones(2)) < loss(farther, soft, torch.ones(2))


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_gce_is_the_papers_formula_with_weighted_positives(q):
    logits, targets, weights = example()
    p = logits.sigmoid().numpy()
    expected = sides(logits, targets, weights.numpy() * (1 - p**q) / q, (1 - (1 - p) ** q) / q)
    assert named("gce", q=q)(logits, targets, weights).item() == pytest.approx(expected)


def test_gce_is_bce_near_q_0_and_the_absolute_error_at_1():
    logits, targets, weights = example()
    p, y, _ = terms(logits, targets)
    ones = torch.ones_like(weights)
    assert named("gce", q=1.0)(logits, targets, ones).item() == pytest.approx(np.abs(p - y).mean())
    bce = named("bce")(logits, targets, ones).item()
    assert named("gce", q=1e-6)(logits, targets, ones).item() == pytest.approx(bce, rel=1e-4)
    assert named("gce", q=1e-6)(logits.float(), targets, ones.float()).item() == pytest.approx(bce, rel=1e-4)


def test_gce_moves_less_for_a_label_that_the_model_is_sure_is_wrong():
    def pull(name):
        logits = torch.tensor([[-6.0]], requires_grad=True)
        named(name)(logits, torch.tensor([[1]]), torch.ones(1)).backward()
        return abs(logits.grad.item())

    assert pull("gce") < 0.02 < 0.99 < pull("bce")


def test_smoothed_has_a_share_for_ones_and_one_for_zeros_and_keeps_what_is_not_labelled():
    for kind in (torch.int8, torch.int64, torch.float32):
        targets = torch.tensor([[1, 0, -1]], dtype=kind)
        torch.testing.assert_close(smoothed(targets, 0.1, 0.02), torch.tensor([[0.9, 0.02, -1.0]]))
    assert smoothed(torch.tensor([[0.5]]), 0.1, 0.02).item() == pytest.approx(0.46)
    assert torch.equal(smoothed(targets, 0.0, 0.0), targets)


def test_smoothed_bce_is_least_where_the_probability_is_the_smoothed_target():
    for target, best in ((1, 0.9), (0, 0.02)):
        logits = torch.tensor([[np.log(best / (1 - best))]], requires_grad=True)
        LOSSES["bce"](logits, smoothed(torch.tensor([[target]]), 0.1, 0.02), torch.ones(1)).backward()
        assert logits.grad.item() == pytest.approx(0, abs=1e-7)


def test_logit_shift_is_the_log_odds_of_the_positives_times_tau():
    positives, labelled = np.array([1, 50, 90]), np.array([100, 100, 100])
    np.testing.assert_allclose(logit_shift(positives, labelled, 1), np.log([1 / 99, 1, 9]))
    np.testing.assert_allclose(logit_shift(positives, labelled, 0.5), np.log([1 / 99, 1, 9]) / 2)


def test_logit_shift_is_0_where_the_odds_are_unknown():
    assert logit_shift(np.array([0, 0, 8]), np.array([100, 0, 8]), 1.5).tolist() == [0, 0, 0]


def test_logit_shift_undoes_the_prior_of_a_calibrated_model_and_changes_no_average_precision():
    """Scores of positives N(1, 1), of negatives N(-1, 1): their log-likelihood ratio is 2 x."""
    rng = np.random.default_rng(0)
    y = rng.random(20_000) < 0.02
    x = rng.normal(np.where(y, 1, -1), 1)
    calibrated = 2 * x + np.log(0.02 / 0.98)
    shifted = calibrated - logit_shift(np.array([2]), np.array([100]), 1)
    np.testing.assert_allclose(shifted, 2 * x, atol=1e-9)
    assert average_precision_score(y, shifted) == average_precision_score(y, calibrated)
    assert f1_score(y, shifted > 0) != f1_score(y, calibrated > 0)


def test_every_setting_has_a_range_and_a_default_inside_it(name):
    for setting, default in settings(name).items():
        assert setting in RANGES
        assert setting_fault(setting, default) == ""
        assert isinstance(default, float)


def test_counts_are_no_settings():
    assert settings("ldam") == {"ldam_margin": 0.5, "ldam_scale": 1.0}


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("gce", "q", 0.0),
        ("gce", "q", 1.1),
        ("class_balanced", "cb_beta", 1.0),
        ("class_balanced", "cb_beta", -0.1),
        ("distribution_balanced", "db_lambda", 0.0),
        ("two_way", "two_way_temperature", 0.0),
        ("ldam", "ldam_scale", float("nan")),
        ("focal", "focal_gamma", -1.0),
        ("asl", "clip", 1.0),
        ("bce", "q", 0.5),
    ],
)
def test_a_setting_out_of_range_or_unknown_is_refused_by_name(name, setting, value):
    with pytest.raises(UsageError, match=setting):
        bound(name, {setting: value}, torch.ones(4), *counts(4))


def test_a_loss_that_needs_counts_says_so_and_one_that_is_unknown_too():
    with pytest.raises(UsageError, match="positives and labelled"):
        bound("ldam", {}, torch.ones(4))
    with pytest.raises(UsageError, match="weighted_asl"):
        bound("asymmetric", {}, torch.ones(4))


def test_chexfusion_asl_weighs_both_sides_by_the_exponential_of_a_findings_share():
    logits, targets, weights = example()
    positives, labelled = torch.tensor([1.0, 10, 50, 90]).double(), torch.full((4,), 100.0).double()
    p, y, c = terms(logits, targets)
    share = (positives / labelled).numpy()[c]
    shifted = np.maximum(p - 0.05, 0)
    positive, negative = -(1 - p) * np.log(p), -(shifted**4) * np.log(1 - shifted)
    expected = np.mean(np.where(y == 1, np.exp(1 - share) * positive, np.exp(share) * negative))
    ours = LOSSES["chexfusion_asl"](logits, targets, weights, positives=positives, labelled=labelled)
    assert ours.item() == pytest.approx(expected)
