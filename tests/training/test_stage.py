"""Pieces of a stage: batches of whole studies, draws by study, what a loss is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxrlt_ray.data.batching import pieces, steps
from cxrlt_ray.objectives.losses import LOSSES
from cxrlt_ray.objectives.multilabel import MultiLabel
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.training.job import Images
from cxrlt_ray.training.streams import drawn


def config(**options):
    return TrialConfig(**{"backbone": "test_convnext", "resolution": 32, "epochs": 4, **options})


def objective(config, targets):
    return MultiLabel(config.objective_spec(), targets)


def part(sizes: list[int], seed: int = 0) -> Images:
    """Images of studies of these sizes, in a mixed order."""
    rng = np.random.default_rng(seed)
    study = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)) + 100
    targets = (rng.random((len(sizes), 3)) < [0.5, 0.1, 0.02]).astype(np.int8)[study - 100]
    ids = np.array([f"i{k}" for k in range(len(study))], object)
    return Images(ids, targets, study, rng.integers(0, 5, len(study)))


@pytest.mark.parametrize("sampler", ["natural", "sqrt", "class_aware"])
def test_studies_are_drawn_whole_and_a_study_drawn_twice_is_two(sampler):
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 12, 200).tolist()
    training = part(sizes)
    seen = set()
    for epoch in range(4):
        shown = drawn(config(fusion="attention", sampler=sampler), training, epoch, 0).images
        codes, counts = np.unique(shown.study, return_counts=True)
        assert len(codes) == 200
        of = dict(zip(training.image_id, training.study, strict=True))
        for code, count in zip(codes, counts, strict=True):
            ids = shown.image_id[shown.study == code]
            whose = {of[i] for i in ids}
            assert len(whose) == 1
            assert len(set(ids)) == count == sizes[whose.pop() - 100]
        seen |= set(shown.image_id)
    assert seen == set(training.image_id)


def test_images_are_drawn_one_by_one_where_views_are_not_fused():
    training = part([2] * 100)
    shown = drawn(config(sampler="class_aware", epochs=3), training, 1, 0).images
    assert len(shown) == 200
    rare = training.targets[:, 2] == 1
    assert (shown.targets[:, 2] == 1).sum() > 3 * rare.sum()


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_pieces_of_a_batch_of_studies_never_cut_one(size):
    study = np.repeat(np.arange(9), [1, 2, 5, 1, 1, 3, 11, 2, 2])
    found = pieces(len(study), size, study)
    assert [p.start for p in found][1:] == [p.stop for p in found][:-1]
    assert (found[0].start, found[-1].stop) == (0, len(study))
    for each in found:
        assert each.stop - each.start <= max(size, 11)
        assert each.stop - each.start <= size or len(set(study[each])) == 1
        if each.stop < len(study):
            assert study[each.stop - 1] != study[each.stop]


def test_pieces_of_images_are_as_large_as_they_may_be():
    assert [(p.start, p.stop) for p in pieces(10, 4)] == [(0, 4), (4, 8), (8, 10)]


def test_no_epoch_has_a_piece_of_one_image_which_would_break_batch_norm():
    for images in range(2, 60):
        for batch_size in range(2, 20):
            for size in {batch_size, max(2, batch_size // 2)}:
                trained = []
                for (share,) in steps(images, batch_size):
                    count = share.stop - share.start
                    trained += [each.stop - each.start for each in pieces(count, size)]
                assert sum(trained) == images
                assert 2 <= min(trained) <= max(trained) <= size + 1
    study = np.repeat(np.arange(4), [2, 2, 2, 1])
    assert [each.stop - each.start for each in pieces(7, 2, study)] == [2, 2, 3]


def test_the_loss_is_the_named_one_of_smoothed_targets_by_their_shares():
    training = part([1] * 50)
    logits, one, two = torch.randn(4, 3), torch.tensor([[1.0, 0, -1]] * 4), torch.tensor([[0.0, 1, 1]] * 4)
    plain = LOSSES["bce"]
    weights = torch.ones(3)
    mixed = objective(config(), training.targets).loss(logits, [(0.3, one), (0.7, two)])
    wanted = 0.3 * plain(logits, one, weights) + 0.7 * plain(logits, two, weights)
    assert float(mixed) == pytest.approx(float(wanted), rel=1e-6)
    smoothing = config(smooth_pos=0.2, smooth_neg=0.1)
    smooth = objective(smoothing, training.targets).loss(logits, [(1.0, one)])
    soft = torch.tensor([[0.8, 0.1, -1]] * 4)
    assert float(smooth) == pytest.approx(float(plain(logits, soft, weights)), rel=1e-6)


def test_logits_are_shifted_by_how_common_a_finding_is_where_asked():
    targets = part([1] * 300).targets
    assert (objective(config(), targets).shift() == 0).all()
    shift = objective(config(logit_adjust=1.0), targets).shift()
    share = targets.mean(0)
    np.testing.assert_allclose(shift.numpy(), np.log(share / (1 - share)), rtol=1e-5)
