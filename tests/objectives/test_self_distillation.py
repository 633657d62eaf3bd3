"""DINOv2: its terms against a reference written out and against lightly's, its crops and masks, its schedules."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from cxrlt_ray import models
from cxrlt_ray.errors import UsageError
from cxrlt_ray.models import ModelSpec
from cxrlt_ray.objectives.crops import Look, random_crops
from cxrlt_ray.objectives.draws import Draws
from cxrlt_ray.objectives.registry import ObjectiveSpec, find_objective
from cxrlt_ray.objectives.terms import distillation as terms
from cxrlt_ray.objectives.terms.gather import Share
from cxrlt_ray.objectives.terms.masking import block_masks, kept_patches

RNG = np.random.default_rng(0)
CROPS, TAUGHT, IMAGES, PROTOTYPES = 4, 2, 5, 7
STUDENT = RNG.normal(0, 0.3, (CROPS, IMAGES, PROTOTYPES))
TEACHER = RNG.normal(0, 0.3, (TAUGHT, IMAGES, PROTOTYPES))
CENTRE_OF = RNG.normal(0, 0.1, PROTOTYPES)
SMALL = {
    "dinov2_prototypes": 24,
    "dinov2_hidden": 16,
    "dinov2_bottleneck": 8,
    "dinov2_local_crops": 2,
    "dinov2_local_px": 32,
    "dinov2_freeze": 0,
}


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


def pixels(count=6, edge=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, edge, edge), dtype=torch.uint8, generator=generator)


def made(seed=0, backbone="test_vit", **settings):
    """The objective and its network."""
    torch.manual_seed(0)
    spec = ObjectiveSpec("dinov2", {**SMALL, **settings}, seed=seed)
    objective = find_objective("dinov2")(spec, np.empty((0, 2), np.int8))
    network = objective.network(models.Classifier(ModelSpec(backbone, 64, pretrained=False), 2))
    objective.before_training(network, 100)
    return objective, network.train()


def draws(count, seed=0):
    return Draws([seed], Share(0, (count,)), torch.device("cpu"))


def test_dino_is_the_papers_sum_over_pairs_of_different_crops_and_lightlys():
    from lightly.loss import DINOLoss

    wanted, pairs = 0.0, 0
    for t in range(TAUGHT):
        for s in range(CROPS):
            if s != t:
                teacher = softmax((TEACHER[t] - CENTRE_OF) / 0.05)
                wanted += -(teacher * np.log(softmax(STUDENT[s] / 0.1))).sum(axis=-1).mean()
                pairs += 1
    distributions = terms.centred(tensor(TEACHER), tensor(CENTRE_OF), 0.05)
    loss = float(terms.cross_view(tensor(STUDENT), distributions, 0.1))
    assert loss == pytest.approx(wanted / pairs, rel=1e-6)
    theirs = DINOLoss(PROTOTYPES, teacher_temp=0.05)
    theirs.center.copy_(tensor(CENTRE_OF))
    assert loss == pytest.approx(float(theirs(list(tensor(TEACHER)), list(tensor(STUDENT)))), rel=1e-6)
    moved = terms.moved_centre(tensor(CENTRE_OF), tensor(TEACHER).flatten(0, 1))
    np.testing.assert_allclose(moved, 0.9 * CENTRE_OF + 0.1 * TEACHER.mean(axis=(0, 1)), atol=1e-6)
    torch.testing.assert_close(moved, theirs.center.flatten(), rtol=0, atol=1e-6)


def test_ibot_weighs_images_alike_however_many_patches_of_them_are_masked_and_is_lightlys():
    from lightly.loss import IBOTPatchLoss

    masked = RNG.random((IMAGES, 3, 3)) < 0.4
    masked[1] = False  # an image without a mask counts as 0
    image = np.nonzero(masked.reshape(IMAGES, -1))[0]
    student, teacher = (RNG.normal(0, 0.3, (len(image), PROTOTYPES)) for _ in range(2))
    distributions = softmax((teacher - CENTRE_OF) / 0.05)
    wanted = 0.0
    for k in range(IMAGES):
        rows = image == k
        if rows.any():
            wanted += -(distributions[rows] * np.log(softmax(student[rows] / 0.1))).sum(axis=-1).mean() / IMAGES
    of_teacher = terms.centred(tensor(teacher), tensor(CENTRE_OF), 0.05)
    loss = float(terms.masked_patches(tensor(student), of_teacher, torch.from_numpy(image), IMAGES, 0.1))
    assert loss == pytest.approx(wanted, rel=1e-6)
    theirs = IBOTPatchLoss(PROTOTYPES, teacher_temp=0.05)
    theirs.center.center.copy_(tensor(CENTRE_OF).unsqueeze(0))
    assert loss == pytest.approx(float(theirs(tensor(teacher), tensor(student), torch.from_numpy(masked))), rel=1e-6)


def test_koleo_is_minus_the_log_of_the_distance_to_the_nearest_neighbour_and_lightlys():
    from lightly.loss import KoLeoLoss

    features = RNG.normal(0, 1, (9, 5))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - unit[None], axis=-1) + 9 * np.eye(9)
    loss = float(terms.koleo(tensor(features)))
    assert loss == pytest.approx(-np.log(distances.min(axis=1)).mean(), rel=1e-6)
    assert loss == pytest.approx(float(KoLeoLoss()(tensor(features))), rel=1e-6)
    alone = tensor(features[:1]).requires_grad_()
    terms.koleo(alone).backward()
    assert alone.grad.abs().sum() == 0  # a batch of one has no neighbour


def test_sinkhorn_knopp_is_dinov2s_normalisation_in_turns_and_gives_prototypes_equal_shares():
    logits = RNG.normal(0, 0.2, (12, 4))
    q = np.exp(logits / 0.07).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True) * 4
        q /= q.sum(axis=0, keepdims=True) * 12
    np.testing.assert_allclose(terms.sinkhorn_knopp(tensor(logits), 0.07), (q * 12).T, atol=1e-6)
    many = terms.sinkhorn_knopp(tensor(logits), 0.07, rounds=50)
    np.testing.assert_allclose(many.sum(dim=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(many.sum(dim=0), 3.0, atol=1e-4)
    assert torch.isfinite(terms.sinkhorn_knopp(100 * tensor(logits), 0.04)).all()  # where exp would overflow


def test_entropies_tell_a_flat_teacher_and_one_with_a_single_prototype_from_one_that_tells_images_apart():
    flat = torch.full((8, 4), 0.25)
    single = torch.eye(4)[[2] * 8]
    apart = torch.eye(4)[[0, 1, 2, 3] * 2]
    for distributions, wanted in ((flat, (1.0, 1.0)), (single, (0.0, 0.0)), (apart, (0.0, 1.0))):
        assert [float(value) for value in terms.entropies(distributions)] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("side", [4, 7, 16])
def test_masks_meet_their_ratios_to_a_patch_in_half_of_the_images_and_are_blocks(side):
    masks = block_masks(side, draws(200), 0.5, (0.1, 0.5))
    assert masks.shape == (200, side * side)
    shares = np.sort(masks.float().mean(dim=1).numpy())[100:]
    assert (masks.any(dim=1).sum() == 100) or side < 7  # a tenth of 16 patches may be none
    wanted = 0.1 + 0.4 * (np.arange(100) + 0.5) / 100  # spread evenly
    np.testing.assert_allclose(shares, wanted, atol=1 / side**2 + 0.4 / 100)
    if side == 16:
        squares = masks.view(200, side, side)
        neighbours = (squares[:, 1:] & squares[:, :-1]).sum() / squares.sum()
        assert neighbours > 0.6  # of patches drawn one by one about .3


def test_mae_keeps_a_quarter_of_an_images_patches_each_its_own():
    kept, masked = kept_patches(16, draws(50), 0.75)
    assert kept.shape == (50, 4)
    assert (masked.sum(dim=1) == 12).all()
    assert not masked.gather(1, kept).any()
    assert len({tuple(sorted(row)) for row in kept.tolist()}) > 40
    for ratio in (0.01, 0.99):
        assert 1 <= kept_patches(16, draws(5), ratio)[0].shape[1] <= 15


def test_a_crop_of_the_whole_image_is_the_image_and_others_are_boxes_of_it():
    images = pixels(8).float() / 255
    whole = random_crops(images, Look(64, (1.0, 1.0), flip=0.0, jitter=0.0), draws(8))
    # the ratio of edges is drawn, and what is longer than the image is cut to it
    assert whole.shape == images.shape
    ramp = (torch.arange(64) / 64).expand(8, 64, 64)
    small = random_crops(ramp, Look(16, (0.05, 0.32), flip=0.0, jitter=0.0), draws(8))
    width = 64 * (small[:, :, -1] - small[:, :, 0]).mean(dim=1) * 16 / 15
    assert ((width > 64 * math.sqrt(0.05 * 3 / 4) - 1) & (width < 64 * math.sqrt(0.32 * 4 / 3) + 1)).all()
    assert (small.diff(dim=2) > 0).all()
    mirrored = random_crops(ramp, Look(16, (0.05, 0.32), flip=1.0, jitter=0.0), draws(8))
    torch.testing.assert_close(mirrored, small.flip(-1))
    solarised = random_crops(ramp, Look(16, (0.05, 0.32), flip=0.0, jitter=0.0, solarise=1.0), draws(8))
    torch.testing.assert_close(solarised, torch.where(small >= 0.5, 1 - small, small))
    rough = random_crops(images, Look(32, (0.3, 1.0), jitter=0.9, blur=1.0, solarise=0.5), draws(8))
    assert rough.min() >= 0
    assert rough.max() <= 1
    assert rough.diff(dim=2).abs().mean() < 0.5 * images.diff(dim=2).abs().mean()


def test_crops_and_masks_are_a_function_of_seed_and_batch_alone():
    _, network = made(dinov2_blur=1)
    again, other = copy.deepcopy(network), made(seed=1)[1]
    first, second = (network(pixels()).detach() for _ in range(2))
    torch.manual_seed(99)
    torch.testing.assert_close(again(pixels()), first)
    assert not torch.equal(first, second)  # the next batch
    assert not torch.allclose(other(pixels()), first)  # another seed, with the same weights
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(pixels()), network(pixels()))  # a state says which batch is next


@pytest.mark.parametrize("balance", [0, 1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_trained_has_a_gradient_and_neither_teacher_nor_classifier_head_does(balance, precision):
    objective, network = made(dinov2_balance=balance, dinov2_separate_head=balance == 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(pixels())
    assert outputs.dtype == torch.float32
    objective.loss(outputs, []).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith(("teacher", "student.head")), name
        if parameter.requires_grad:  # DistributedDataParallel waits for every one
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert (network.image_centre.abs().sum() > 0) == (balance == 1)
    assert (network.patch_centre.abs().sum() > 0) == (balance == 1)


def test_heads_of_teacher_and_student_begin_alike_and_the_teacher_follows_by_the_momentum():
    objective, network = made(dinov2_momentum=0.9)
    pairs = [(network.teacher.backbone, network.student.backbone), (network.teacher_heads, network.heads)]
    for slow, fast in pairs:
        for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
            assert torch.equal(one, other)
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        objective.loss(network(pixels()), []).backward()
        optimizer.step()
        objective.after_step(network)
        momentum = 1 - (1 - 0.9) * (math.cos(math.pi * step / 100) + 1) / 2
        old = dict(before.named_parameters())
        for name, now in network.named_parameters():
            if name.startswith("teacher") and "head." not in name:
                fast = name.replace("teacher_heads", "heads").replace("teacher.", "student.")
                wanted = momentum * old[name] + (1 - momentum) * network.get_parameter(fast)
                torch.testing.assert_close(now, wanted, rtol=1e-6, atol=1e-6, msg=name)
        before = copy.deepcopy(network)
    assert objective.classifier(network) is network.teacher


def test_prototypes_stay_for_as_many_steps_as_are_set_and_no_longer():
    objective, network = made(dinov2_freeze=0.02)  # of 100 steps
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01)
    moved = []
    for _ in range(4):
        before = [p.clone() for p in network.heads["image"].last_layer.parameters()]
        layer = network.heads["image"].layers[0].weight.clone()
        optimizer.zero_grad()
        objective.loss(network(pixels()), []).backward()
        objective.before_step(network)
        optimizer.step()
        objective.after_step(network)
        now = network.heads["image"].last_layer.parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, now, strict=True)))
        assert not torch.equal(network.heads["image"].layers[0].weight, layer)
    assert moved == [False, False, True, True]


def test_the_teachers_temperature_rises_by_a_line_and_its_momentum_to_one_by_a_cosine():
    objective, network = made(dinov2_temperature_warmup=0.5)
    network(pixels())
    seen = []
    for step in (0, 25, 50, 100):
        network.step.fill_(step)
        statistics = objective.statistics(network)
        seen.append((statistics["teacher_temperature"], statistics["teacher_momentum"]))
    for (temperature, momentum), wanted in zip(seen, (0.04, 0.055, 0.07, 0.07), strict=True):
        assert temperature == pytest.approx(wanted)
        assert 0.992 <= momentum <= 1
    assert [momentum for _, momentum in seen] == pytest.approx([0.992, 0.992 + 0.008 * 0.14645, 0.996, 1.0], abs=1e-5)


def test_without_patches_or_local_crops_the_other_terms_remain():
    objective, network = made(dinov2_patches=0, dinov2_local_crops=0)
    outputs = network(pixels())
    assert outputs[1] == 0
    assert outputs[0] > 0
    objective.loss(outputs, []).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def trained(steps, **settings):
    """Statistics of the last step of a run on eight images that differ."""
    objective, network = made(dinov2_momentum=0.5, **settings)
    images = pixels(8) // 4 + 24 * torch.arange(8, dtype=torch.uint8).view(-1, 1, 1)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.loss(network(images), []).backward()
        objective.before_step(network)
        optimizer.step()
        objective.after_step(network)
    return objective.statistics(network)


def test_a_run_without_centring_and_with_a_hot_teacher_collapses_and_the_statistics_show_it():
    hot = {"dinov2_balance": 0, "dinov2_first_temperature": 0.2, "dinov2_temperature": 0.2}
    sound, first, last = trained(12), trained(1, **hot), trained(12, **hot)
    assert first["teacher_information"] > 0.05
    assert last["teacher_information"] < 0.01  # all images are alike to it
    assert sound["teacher_information"] > 0.05


def test_statistics_are_none_before_the_first_batch():
    objective, network = made()
    assert objective.statistics(network) == {}


def test_the_score_is_the_same_each_time_and_leaves_training_as_it_is():
    objective, network = made()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()
    scores = [objective.score_network(network, iter([(pixels(9),), (pixels(7, seed=1),)])) for _ in range(2)]
    assert scores[0] == scores[1]
    assert 0 < scores[0] <= 1
    assert math.isnan(objective.score_network(network, iter([])))
    for name, now in network.state_dict().items():
        torch.testing.assert_close(now, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("backbone", "settings", "words"),
    [
        ("test_convnext", {}, "backbone 'test_convnext' is not: take barlow, moco or simclr"),
        ("test_vit", {"dinov2_local_px": 40}, "crops of 40 px are not filled by backbone 'test_vit'.*dinov2_local_px"),
        ("test_vit", {"dinov2_mask_least": 0.6}, "dinov2_mask_least is 0.6, above dinov2_mask_most, 0.5"),
        ("test_vit", {"dinov2_balance": 3}, "dinov2_balance is 3, but must be 0 .none., 1 .centre. or 2"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(backbone, settings, words):
    with pytest.raises(UsageError, match=words):
        made(backbone=backbone, **settings)


def test_lightly_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightly.models", None)
    with pytest.raises(UsageError, match=r"objective dinov2 needs lightly: pip install 'cxrlt-ray\[pretrain\]'"):
        made()
