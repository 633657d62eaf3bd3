"""Contrastive terms against other implementations, the papers' formulas in plain loops, and the limits they meet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cxrlt_ray.objectives.terms.contrast import LogScale, info_nce, sigmoid_loss
from cxrlt_ray.objectives.terms.entities import entity_contrast
from cxrlt_ray.objectives.terms.gather import joint_mean
from cxrlt_ray.objectives.terms.local import local_alignment, local_scores
from cxrlt_ray.objectives.terms.views import EMPTY, KeyQueue, follow, moco, nt_xent


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).requires_grad_()


def unit(x):
    x = np.asarray(x.detach(), float)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(values, position):
    return values[position] - math.log(sum(math.exp(v) for v in values))


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


def assert_same(ours, theirs, *inputs):
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_infonce_is_open_clips_loss_in_value_and_gradient():
    open_clip = pytest.importorskip("open_clip.loss")
    images, texts, scale = features(6, 5), features(6, 5, seed=1), torch.tensor(9.0, requires_grad=True)
    theirs = open_clip.ClipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)
    assert_same(info_nce(images, texts, scale), theirs, images, texts, scale)


def test_the_sigmoid_form_is_open_clips_siglip_loss_in_value_and_gradient():
    open_clip = pytest.importorskip("open_clip.loss")
    images, texts = features(6, 5), features(6, 5, seed=1)
    scale, bias = torch.tensor(7.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    theirs = open_clip.SigLipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale, bias)
    assert_same(sigmoid_loss(images, texts, scale, bias), theirs, images, texts, scale, bias)


def test_pairs_of_one_text_are_not_negatives_of_each_other():
    images, texts, text = features(5, 4), features(5, 4, seed=1), [3, 8, 3, 5, 8]
    a, b = unit(images), unit(texts)
    logits, losses = 4.0 * a @ b.T, []
    for matrix in (logits, logits.T):
        for i in range(5):
            kept = [j for j in range(5) if j == i or text[j] != text[i]]
            losses.append(-log_softmax([matrix[i, j] for j in kept], kept.index(i)))
    assert float(info_nce(images, texts, 4.0, torch.tensor(text))) == pytest.approx(np.mean(losses), rel=1e-5)
    pairs = [(i, j) for i in range(5) for j in range(5) if i == j or text[i] != text[j]]
    summed = sum(math.log1p(math.exp(-(1 if i == j else -1) * (logits[i, j] - 2))) for i, j in pairs)
    assert float(sigmoid_loss(images, texts, 4.0, -2.0, torch.tensor(text))) == pytest.approx(summed / 5, rel=1e-5)


@pytest.mark.parametrize(
    "loss", [lambda *a: info_nce(*a[:2], 5.0, *a[2:]), lambda *a: sigmoid_loss(*a[:2], 5, -1, *a[2:])]
)
def test_a_pair_without_text_neither_counts_nor_repels(loss):
    images, texts, text = features(5, 4), features(5, 4, seed=1), torch.tensor([3, 0, 4, 0, 5])
    whole = loss(images, texts, text)
    kept = text > 0
    torch.testing.assert_close(whole, loss(images[kept], texts[kept], text[kept]))
    for gradient in gradients(whole, images, texts):
        assert (gradient[~kept] == 0).all()
        assert (gradient[kept] != 0).any()


def test_a_batch_without_any_text_has_a_loss_of_zero_and_no_gradient():
    images, texts = features(3, 4), features(3, 4, seed=1)
    loss = info_nce(images, texts, 5.0, torch.zeros(3, dtype=torch.int64))
    assert float(loss) == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, images, texts))


def test_the_scale_begins_at_clips_is_limited_to_a_hundred_and_can_come_back():
    scale = LogScale()
    assert float(scale()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.log.fill_(7.0)
    scale.limit()
    assert float(scale()) == pytest.approx(100)
    scale().backward()
    assert float(scale.log.grad) > 0  # at the limit it still learns


def nt_xent_by_loops(first, second, temperature, study):
    views = np.concatenate([unit(first), unit(second)])
    count, losses = len(study), []
    for i in range(2 * count):
        other = (i + count) % (2 * count)
        kept = [j for j in range(2 * count) if j == other or study[j % count] != study[i % count]]
        losses.append(-log_softmax([views[i] @ views[j] / temperature for j in kept], kept.index(other)))
    return np.mean(losses)


@pytest.mark.parametrize("study", [[0, 1, 2, 3, 4], [0, 1, 0, 3, 1]])
def test_nt_xent_is_simclrs_formula_and_spares_images_of_one_study(study):
    first, second = features(5, 4), features(5, 4, seed=1)
    expected = nt_xent_by_loops(first, second, 0.5, study)
    assert float(nt_xent(first, second, 0.5, torch.tensor(study))) == pytest.approx(expected, rel=1e-5)
    if len(set(study)) == 5:
        assert float(nt_xent(first, second, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_moco_is_its_formula_over_what_the_queue_holds_of_other_studies():
    queue, old = KeyQueue(6, 4), features(4, 4, seed=2)
    queue.push(old.detach(), torch.tensor([7, 8, 9, 1]))
    query, key = features(3, 4), features(3, 4, seed=1)
    study = [1, 2, 7]
    losses = []
    for i in range(3):
        q, keys = unit(query)[i], [unit(key)[i], *(unit(old)[j] for j in range(4) if [7, 8, 9, 1][j] != study[i])]
        losses.append(-log_softmax([q @ k / 0.2 for k in keys], 0))
    loss = moco(query, key, queue, 0.2, torch.tensor(study))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    queue.push(key, torch.tensor(study))  # what a step does before its backward pass
    loss.backward()
    assert query.grad.abs().sum() > 0
    assert key.grad is None


def test_a_queue_keeps_the_last_keys_through_its_state_dict():
    queue = KeyQueue(5, 3)
    assert float(moco(features(2, 3), features(2, 3), queue, 0.1, torch.tensor([0, 1]))) == 0  # nothing to repel
    for step in range(4):
        queue.push(torch.full((2, 3), step + 1.0), torch.tensor([2 * step, 2 * step + 1]))
    assert sorted(queue.study.tolist()) == [3, 4, 5, 6, 7]
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(5))
    again = KeyQueue(5, 3)
    again.load_state_dict(queue.state_dict())
    for one in (queue, again):
        one.push(torch.ones(2, 3), torch.tensor([8, 9]))
    assert again.study.tolist() == queue.study.tolist()
    assert sorted(again.study.tolist()) == [5, 6, 7, 8, 9]
    assert EMPTY not in again.study
    queue.push(torch.ones(8, 3), torch.arange(20, 28))  # more than it holds
    assert sorted(queue.study.tolist()) == [23, 24, 25, 26, 27]


def test_a_slow_encoder_moves_by_its_momentum():
    slow, fast = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = slow.weight.detach().clone()
    follow(slow, fast, 0.9)
    torch.testing.assert_close(slow.weight, 0.9 * before + 0.1 * fast.weight)


def scores_by_loops(patches, words, mask, form, temperature):
    p, w = unit(patches), unit(words)
    of_text, of_image = np.zeros((len(p), len(w))), np.zeros((len(p), len(w)))
    for i in range(len(p)):
        for j in range(len(w)):
            s = p[i] @ w[j][np.asarray(mask[j]) > 0].T
            if s.shape[1] == 0:
                continue
            if form == "code":
                of_text[i, j], of_image[i, j] = s.max(0).mean(), s.max(1).mean()
            else:
                e = np.exp(s / temperature)
                of_text[i, j] = (e / e.sum(0) * s).sum(0).mean()
                of_image[i, j] = (e / e.sum(1, keepdims=True) * s).sum(1).mean()
    return of_text, of_image


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])


@pytest.mark.parametrize("form", ["code", "slides"])
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_local_scores_are_the_formulas_without_padding_in_chunks_of_any_size(form, chunk, monkeypatch):
    monkeypatch.setattr("cxrlt_ray.objectives.terms.local.CHUNK", chunk)
    patches, words = features(3, 6, 4), features(4, 5, 4, seed=1)
    ours = local_scores(patches, words, MASK, form, 0.3)
    for one, other in zip(ours, scores_by_loops(patches, words, MASK, form, 0.3), strict=True):
        np.testing.assert_allclose(one.detach(), other, atol=1e-6)
    moved = words.detach().clone()
    moved[MASK == 0] += 100.0  # padding
    for one, other in zip(ours, local_scores(patches, moved, MASK, form, 0.3), strict=True):
        torch.testing.assert_close(one, other)
    for gradient in gradients(ours[0].sum() + ours[1].sum(), patches, words):
        assert torch.isfinite(gradient).all()


def test_the_slides_form_becomes_the_codes_as_its_temperature_falls():
    patches, words = features(3, 6, 4), features(4, 5, 4, seed=1)
    hard = local_scores(patches, words, MASK)
    for one, other in zip(hard, local_scores(patches, words, MASK, "slides", 1e-4), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="form is code or slides, not 'paper'"):
        local_scores(patches, words, MASK, "paper")


@pytest.mark.parametrize("form", ["code", "slides"])
def test_local_alignment_is_the_cross_entropy_of_its_scores_both_ways(form):
    patches, words, mask = features(3, 6, 4), features(3, 5, 4, seed=1), MASK[[0, 1, 3]]
    losses = []
    for scores, scale in zip(scores_by_loops(patches, words, mask, form, 0.3), (5.0, 9.0), strict=True):
        for matrix in (scale * scores, scale * scores.T):
            losses += [-log_softmax(list(matrix[i]), i) for i in range(3)]
    ours = local_alignment(patches, words, mask, (5.0, 9.0), form=form, temperature=0.3)
    assert float(ours) == pytest.approx(np.mean(losses), rel=1e-5)


def test_local_alignment_takes_one_sentence_one_pair_and_a_pair_without_words():
    patches, words = features(1, 6, 4), features(1, 1, 4, seed=1)
    alone = local_alignment(patches, words, torch.ones(1, 1), (5.0, 5.0))
    assert float(alone) == pytest.approx(0, abs=1e-6)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(alone, patches, words))
    patches, words = features(4, 6, 4), features(4, 5, 4, seed=1)
    whole, kept = local_alignment(patches, words, MASK, (5.0, 5.0)), [0, 1, 3]
    torch.testing.assert_close(whole, local_alignment(patches[kept], words[kept], MASK[kept], (5.0, 5.0)))


def test_entity_contrast_means_over_all_texts_of_a_concept():
    first, second, concept = features(5, 4), features(5, 4, seed=1), [1, 2, 1, 3, 1]
    logits, losses = 6.0 * unit(first) @ unit(second).T, []
    for matrix in (logits, logits.T):
        for i in range(5):
            positives = [j for j in range(5) if concept[j] == concept[i]]
            losses.append(-np.mean([log_softmax(list(matrix[i]), j) for j in positives]))
    ours = entity_contrast(first, second, torch.tensor(concept), 6.0)
    assert float(ours) == pytest.approx(np.mean(losses), rel=1e-5)
    apart = entity_contrast(first, second, torch.arange(5), 6.0)
    torch.testing.assert_close(apart, info_nce(first, second, 6.0))


def test_a_mean_leaves_out_what_weighs_nothing_even_where_it_is_not_finite():
    values = torch.tensor([1.0, torch.inf, 3.0], requires_grad=True)
    mean = joint_mean(values, torch.tensor([True, False, True]))
    assert float(mean) == 2.0
    assert gradients(mean, values)[0].tolist() == [0.5, 0.0, 0.5]
    assert float(joint_mean(values, torch.zeros(3))) == 0.0
