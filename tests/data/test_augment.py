"""What is done to one image, against albumentations; mixing two: the papers' formulas, and labels not there."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from cxrlt_ray.data.augment import LIMITS, MOVED, TONED, draw, mixed, view
from cxrlt_ray.data.image_transform import ImageTransform
from cxrlt_ray.objectives.losses import LOSSES

IMAGES = torch.randint(0, 256, (6, 20, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TARGETS = torch.tensor([[1, 0], [0, 1], [-1, 1], [0, 0], [1, 1], [0, -1]]).float()


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "balanced_mixup"])
def test_shares_sum_to_one_and_pixels_stay_in_range(kind):
    for seed in range(20):
        images, targets = mixed(kind, IMAGES, TARGETS, 0.4, random(seed), (IMAGES.flip(0), TARGETS.flip(0)))
        assert images.shape == IMAGES.shape
        assert 0 <= images.min() <= images.max() <= 1
        assert sum(share for share, _ in targets) == pytest.approx(1)
        assert targets[0][1] is TARGETS or torch.equal(targets[0][1], TARGETS)


def test_mixup_is_the_weighted_sum_of_two_images_and_their_targets_go_with_them():
    images, ((share, first), (rest, second)) = mixed("mixup", IMAGES, TARGETS, 1.0, random(3))
    other = [int(k) for row in second for k in (row == TARGETS).all(1).nonzero()[:1]]
    assert len(set(other)) > 1
    wanted = share * IMAGES / 255 + rest * IMAGES[other] / 255
    assert torch.allclose(images, wanted, atol=1e-6)
    assert torch.equal(first, TARGETS)


def test_cutmix_pastes_one_rectangle_whose_area_is_the_others_share():
    for seed in range(10):
        images, ((share, _), (rest, _)) = mixed("cutmix", IMAGES, TARGETS, 1.0, random(seed))
        kept = torch.isclose(images, IMAGES / 255).all(0)
        pasted = ~kept
        rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
        if not len(rows):
            continue
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert float(box) / (20 * 30) == pytest.approx(rest, abs=0.02)
        assert share == pytest.approx(1 - rest)


def test_balanced_mixup_leans_to_the_natural_images():
    shares = [mixed("balanced_mixup", IMAGES, TARGETS, 0.2, random(s), (IMAGES, TARGETS))[1][0][0] for s in range(400)]
    # 1 - Beta(a, 1) has mean 1 / (1 + a)
    assert np.mean(shares) == pytest.approx(1 / 1.2, abs=0.03)


def test_balanced_mixup_takes_as_many_as_both_streams_have():
    images, targets = mixed("balanced_mixup", IMAGES, TARGETS, 0.2, random(), (IMAGES[:4], TARGETS[:4]))
    assert len(images) == len(targets[0][1]) == len(targets[1][1]) == 4


def test_what_one_image_has_no_label_for_is_learned_from_the_other_alone():
    _, targets = mixed("mixup", IMAGES, TARGETS, 1.0, random(1))
    logits = torch.zeros(6, 2, requires_grad=True)
    weights = torch.ones(2)
    sum(share * LOSSES["bce"](logits, each, weights) for share, each in targets).backward()
    both = (targets[0][1] < 0) & (targets[1][1] < 0)
    assert (logits.grad[both] == 0).all()
    assert (logits.grad[~both] != 0).any()


def test_nothing_black_comes_in_from_beyond_the_border():
    white = [np.full((48, 48), 255, np.uint8)] * 64
    for crop in (1.0, 0.8):
        seen = ImageTransform(48, crop=crop, augment=1.0, seed=(0,)).batch(white, 64, 0)
        assert seen.min() > 255 * 0.6  # brightness and contrast alone


SMOOTH = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8), (0, 0), 6)
SMOOTH = cv2.normalize(SMOOTH, None, 40, 210, cv2.NORM_MINMAX)
CHANGE = np.array([12, 6 / 96, -3 / 96, 0.1, 0.15, -0.1])


def test_what_is_drawn_keeps_to_the_limits_of_each_images_strength():
    strength = np.repeat([0.0, 0.5, 1.0], 2000)
    changes = draw(random(), strength)
    assert (np.abs(changes) <= LIMITS * strength[:, None]).all()
    assert (np.abs(changes[4000:]).max(0) > 0.95 * LIMITS).all()
    assert np.abs(changes[4000:].mean(0) / LIMITS).max() < 0.04
    assert (changes[2000:, :4] != 0).all(1).mean() == pytest.approx(MOVED, abs=0.03)
    assert (changes[2000:, 4:] != 0).all(1).mean() == pytest.approx(TONED, abs=0.03)


def test_a_crop_of_a_changed_image_is_the_changed_image_cropped_and_a_mirrored_one_its_mirror_image():
    whole = view(SMOOTH, 96, np.array([0, 0]), False, CHANGE).astype(int)
    part = view(SMOOTH, 64, np.array([10, 25]), False, CHANGE).astype(int)
    mirrored = view(SMOOTH, 64, np.array([10, 25]), True, CHANGE).astype(int)
    assert np.abs(part - whole[10:74, 25:89]).max() <= 1
    assert np.abs(mirrored - part[:, ::-1]).max() <= 1
    assert np.abs(part - SMOOTH[10:74, 25:89]).max() > 20


@pytest.mark.parametrize("column", range(len(LIMITS)))
def test_each_change_is_what_albumentations_does(column):
    albumentations = pytest.importorskip("albumentations")
    change = np.where(np.arange(len(LIMITS)) == column, CHANGE, 0)
    degrees, right, down, zoom, contrast, brightness = change.tolist()
    shift = {"x": (right, right), "y": (down, down)}
    moves = {"rotate": (degrees, degrees), "translate_percent": shift, "scale": (1 + zoom, 1 + zoom)}
    same = albumentations.Compose(
        [
            albumentations.Affine(**moves, border_mode=cv2.BORDER_REPLICATE, p=1.0),
            albumentations.RandomBrightnessContrast((brightness, brightness), (contrast, contrast), p=1.0),
        ]
    )
    ours = view(SMOOTH, 96, np.array([0, 0]), False, change).astype(int)
    difference = np.abs(ours - same(image=SMOOTH)["image"].astype(int))
    assert difference[8:-8, 8:-8].max() <= 3
