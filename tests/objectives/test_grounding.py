"""Presence and place, phrases, maps and boxes, against their formulas in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cxrlt_ray.errors import UsageError
from cxrlt_ray.objectives.terms.grounding import area_loss, boxes_to_mask, mask_loss, phrase_loss
from cxrlt_ray.objectives.terms.location import drawn_places, location_contrast, presence

RNG = np.random.default_rng(0)
LABELS = torch.tensor([[1, 0, -1], [0, -1, 1], [-1, 0, 0]])


def test_presence_is_the_cross_entropy_of_labelled_cells():
    logits = torch.from_numpy(RNG.normal(0, 2, (3, 3, 2))).float().requires_grad_()
    losses = []
    for b in range(3):
        for c in range(3):
            if (label := int(LABELS[b, c])) >= 0:
                pair = logits[b, c].tolist()
                losses.append(math.log(math.exp(pair[0]) + math.exp(pair[1])) - pair[label])
    loss = presence(logits, LABELS)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    loss.backward()
    assert ((logits.grad.abs().sum(2) > 0) == (LABELS >= 0)).all()
    assert float(presence(logits, torch.full((3, 3), -1))) == 0


def places(cells=40, count=51):
    table = torch.from_numpy(RNG.choice([-1, 0, 1], (cells, 2, count), p=[0.3, 0.6, 0.1]))
    table[0] = 0  # no place is known
    table[1, 0], table[1, 0, :4] = 1, 0  # few others
    return table


def test_a_present_findings_place_stands_against_seven_where_it_is_not():
    table = places()
    cells, candidates, there = drawn_places(table, generator=torch.Generator().manual_seed(0))
    assert {tuple(cell) for cell in cells.tolist()} == {tuple(c) for c in (table == 1).any(2).nonzero().tolist()}
    assert candidates.shape == (len(cells), 8)
    for (b, c), row, real in zip(cells.tolist(), candidates.tolist(), there.tolist(), strict=True):
        known = table[b, c]
        assert known[row[0]] == 1
        others = [place for place, exists in zip(row[1:], real[1:], strict=True) if exists]
        assert all(known[place] == 0 for place in others)
        assert len(set(others)) == len(others) == min(7, int((known == 0).sum()))
    # every place of a cell is drawn, and what is drawn depends on the generator alone
    drawn = [drawn_places(table, generator=torch.Generator().manual_seed(k))[1] for k in (0, *range(80))]
    assert torch.equal(drawn[0], drawn[1])
    b, c = cells[-1].tolist()
    assert {int(one[-1, 0]) for one in drawn} == set((table[b, c] == 1).nonzero().flatten().tolist())


def test_the_contrast_of_places_is_the_cross_entropy_of_dot_products():
    table, vectors = places(6, 9), torch.from_numpy(RNG.normal(0, 1, (6, 2, 4))).float().requires_grad_()
    embeddings = torch.from_numpy(RNG.normal(0, 1, (9, 4))).float()
    cells, candidates, there = drawn_places(table, 3, torch.Generator().manual_seed(5))
    losses = []
    for (b, c), row, real in zip(cells.tolist(), candidates.tolist(), there.tolist(), strict=True):
        dots = [float(vectors[b, c] @ embeddings[place]) for place, exists in zip(row, real, strict=True) if exists]
        losses.append(math.log(sum(map(math.exp, dots))) - dots[0])
    loss = location_contrast(vectors, embeddings, table, 3, torch.Generator().manual_seed(5))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    nowhere = location_contrast(vectors, embeddings, torch.zeros_like(table))
    nowhere.backward()
    assert float(nowhere) == 0


def test_the_phrase_loss_is_twice_the_mean_of_focal_plain_and_balanced_bce():
    logits = torch.from_numpy(RNG.normal(0, 2, (3, 3))).float().requires_grad_()
    focal, plain, true, false = [], [], [], []
    for z, y in zip(logits.flatten().tolist(), LABELS.flatten().tolist(), strict=True):
        if y < 0:
            continue
        p = 1 / (1 + math.exp(-z))
        correct = p if y else 1 - p
        focal.append(-(0.25 if y else 0.75) * (1 - correct) ** 2 * math.log(correct))
        plain.append(-math.log(correct))
        (true if y else false).append(-math.log(correct))
    expected = 2 * np.mean([np.mean(focal), np.mean(plain), (np.mean(true) + np.mean(false)) / 2])
    loss = phrase_loss(logits, LABELS)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert ((logits.grad != 0) == (LABELS >= 0)).all()


def test_the_focal_part_is_torchvisions():
    from torchvision.ops import sigmoid_focal_loss

    logits, labels = torch.randn(4, 5), torch.randint(0, 2, (4, 5))
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    balanced = (bce[labels == 1].mean() + bce[labels == 0].mean()) / 2
    focal = sigmoid_focal_loss(logits, labels.float(), 0.25, 2, "mean")
    torch.testing.assert_close(phrase_loss(logits, labels), 2 * (focal + bce.mean() + balanced) / 3)


def test_a_phrase_loss_of_one_kind_of_labels_or_none_is_finite():
    logits = torch.tensor([[50.0, -50.0]], requires_grad=True)
    for labels in ([[1, 1]], [[0, 0]], [[-1, -1]], [[1, -1]]):
        loss = phrase_loss(logits, torch.tensor(labels))
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_true_phrases_look_at_two_fifths_at_least_and_false_ones_nowhere():
    attention = torch.full((1, 3, 2, 2), 0.1)
    attention[0, 1], attention[0, 2] = 0.7, 0.2
    loss = lambda *labels: float(area_loss(attention, torch.tensor([labels])))  # noqa: E731
    assert loss(1, -1, -1) == pytest.approx(0.3)
    assert loss(-1, 1, -1) == 0  # large enough
    assert loss(-1, 0, -1) == pytest.approx(0.7)
    assert loss(1, 1, 0) == pytest.approx(0.15 + 0.2)


def test_the_boxes_term_weighs_the_inside_by_half_more_and_phrases_with_boxes_alone():
    attention = torch.tensor([[[[0.9, 0.2], [0.0, 0.5]], [[0.3, 0.3], [0.3, 0.3]]]], requires_grad=True)
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0, 0] = 1.0
    loss = mask_loss(attention, masks, torch.tensor([[True, False]]))
    assert float(loss) == pytest.approx(2 * (1.5 * (0.1 + 0.8) / 2 + (0.0 + 0.5) / 2))
    loss.backward()
    assert (attention.grad[0, 1] == 0).all()


def test_a_mask_is_the_share_of_each_cell_that_boxes_cover():
    assert boxes_to_mask([(0.0, 0.0, 0.5, 1.0)], (2, 4)).tolist() == [[1, 1, 0, 0]] * 2
    box = (0.13, 0.21, 0.62, 0.9)
    mask = boxes_to_mask([box], (3, 5))
    assert float(mask.mean()) == pytest.approx((0.62 - 0.13) * (0.9 - 0.21), rel=1e-5)
    both = boxes_to_mask([box, (0.0, 0.0, 1.0, 0.1)], (3, 5))
    assert (both >= mask).all()
    assert both.max() <= 1
    assert boxes_to_mask([], (2, 2)).sum() == 0
    tiny = boxes_to_mask([(0.51, 0.51, 0.52, 0.52)], (2, 2))
    assert (tiny > 0).tolist() == [[False, False], [False, True]]  # no box is lost


@pytest.mark.parametrize(
    "box", [(0.2, 0.1, 1.2, 0.5), (-0.1, 0, 1, 1), (0.5, 0.1, 0.5, 0.4), (0, 0.6, 1, 0.2), (0, 0, math.nan, 1)]
)
def test_a_box_outside_of_the_image_or_without_area_is_refused(box):
    with pytest.raises(UsageError, match=r"box 2 is \(.*must be shares of the image's edges from 0 to 1"):
        boxes_to_mask([(0, 0, 1, 1), box], (4, 4))
