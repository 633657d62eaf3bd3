"""Objective `grounding`: its loss from its terms, masks of boxes, images with boxes as they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_images

from cxrlt_ray.data.image_boxes import FILE, BoxesOfImages, ImageBoxes, boxes_for
from cxrlt_ray.data.image_transform import ImageTransform
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.models import ModelSpec, build
from cxrlt_ray.objectives.grounding import in_crop
from cxrlt_ray.objectives.registry import Evidence, ObjectiveSpec, find_objective
from cxrlt_ray.objectives.terms.grounding import area_loss, mask_loss, phrase_loss
from cxrlt_ray.runs.trial_config import TrialConfig
from cxrlt_ray.storage import Store

FINDINGS = ("Mass", "Nodule")
TARGETS = np.array([[1, 0], [1, 1], [-1, 1], [0, 1]], np.int8)
# image 0: a box of Mass. 1: two of Mass, one of Nodule. 2: one of Mass, which is not labelled. 3: of Mass, labelled 0
BOXES = BoxesOfImages(
    np.array([0, 1, 1, 1, 2, 3]),
    np.array([0, 0, 0, 1, 0, 0]),
    np.array([[0, 0, 0.5, 0.5], [0, 0, 0.25, 1], [0.75, 0, 1, 1], [0.5, 0.5, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1.0]]),
)


def objective(boxes=BOXES, crop=1.0, **settings):
    spec = ObjectiveSpec(objective="grounding", objective_settings=settings, text="minilm", crop=crop)
    return find_objective("grounding")(spec, TARGETS, None, Evidence(FINDINGS, boxes=boxes))


def outputs(side=4):
    torch.manual_seed(0)
    return torch.cat([torch.randn(4, 2, 1), torch.rand(4, 2, side * side)], dim=2)


def masks(side=4):
    expected, boxed = torch.zeros(4, 2, side, side), torch.zeros(4, 2, dtype=torch.bool)
    expected[0, 0, :2, :2] = 1  # rows, columns
    expected[1, 0, :, 0] = expected[1, 0, :, 3] = 1
    expected[1, 1, 2:, 2:] = 1
    boxed[0, 0] = boxed[1, 0] = boxed[1, 1] = True
    return expected, boxed


def test_masks_are_the_boxes_of_positive_findings():
    made = objective()
    expected, boxed = masks()
    rows = torch.from_numpy(made.table())
    given, which = made.masks(rows, 4)
    assert torch.equal(given, expected)
    assert torch.equal(which, boxed)
    given, which = made.masks(rows[[1, 0]], 4)  # in the batch's order
    assert torch.equal(given, expected[[1, 0]])
    assert torch.equal(which, boxed[[1, 0]])
    assert made.unchanged().tolist() == [True, True, False, False]


def test_the_loss_is_the_sum_of_its_weighed_terms():
    given, labels, (expected, boxed) = outputs(), torch.from_numpy(TARGETS), masks()
    maps = given[..., 1:].unflatten(2, (4, 4))
    phrases, area = float(phrase_loss(given[..., 0], labels)), float(area_loss(maps, labels))
    inside = float(mask_loss(maps, expected, boxed))
    for boxes, settings, value in (
        (BOXES, {}, phrases + area + inside),
        (None, {}, phrases + area),
        (BOXES, {"grounding_area": 0.5, "grounding_boxes": 3.0}, phrases + 0.5 * area + 3 * inside),
        (None, {"grounding_area": 0.0}, phrases),
    ):
        made = objective(boxes, **settings)
        loss = made.loss(given, [(1.0, torch.from_numpy(made.table()))])
        assert float(loss) == pytest.approx(value, rel=1e-5)
    assert objective(None).unchanged() is None


def test_boxes_follow_the_central_crop_and_leave_with_what_it_cuts():
    edges = np.array([[0.25, 0.25, 0.75, 0.75], [0, 0.5, 1, 1], [0, 0, 0.2, 0.2]])
    assert in_crop(edges, 1.0).tolist() == edges.tolist()
    assert in_crop(edges, 0.5).tolist() == [[0, 0, 1, 1], [0, 0.5, 1, 1], [0, 0, 0, 0]]
    image = np.zeros((64, 64), np.uint8)
    image[16:32, 24:48] = 255
    shown = ImageTransform(32, crop=0.5, flip=1.0, augment=1.0, seed=(0,)).batch(
        [image], 1, 0, unchanged=np.ones(1, bool)
    )
    left, top, right, bottom = np.round(in_crop(np.array([[24, 16, 48, 32]]) / 64, 0.5)[0] * 32).astype(int)
    seen = np.argwhere(shown[0] > 128)
    assert (seen.min(0) == (top, left)).all()
    assert (seen.max(0) == (bottom - 1, right - 1)).all()
    made = objective(BoxesOfImages(np.array([0]), np.array([0]), np.array([[0, 0, 0.2, 0.2]])), crop=0.5)
    assert not made.masks(torch.from_numpy(made.table()), 4)[1].any()


def test_images_that_are_to_stay_unchanged_do_and_the_others_do_not():
    images = [np.random.default_rng(k).integers(0, 255, (48, 48), dtype=np.uint8) for k in range(6)]
    plain = ImageTransform(32, crop=0.8).batch(images, 6, 0)
    unchanged = np.array([True, False, True, False, False, True])
    for flip, augment in ((1.0, 0.0), (0.5, 0.8)):
        given = ImageTransform(32, 0.8, flip, augment, seed=(1,)).batch(images, 6, 0, unchanged=unchanged)
        same = (given == plain).all(axis=(1, 2))
        assert same[unchanged].all()
        assert not same[~unchanged].all()


def test_phrases_and_maps_teach_the_film_head_and_the_classifier_predicts():
    model = build(ModelSpec("test_resnet", 64, pretrained=False, head="film", text="minilm"), FINDINGS)
    made = objective()
    network = made.network(model)
    assert made.classifier(network) is model
    images = torch.randint(0, 255, (4, 64, 64), dtype=torch.uint8)
    given = network(images)
    side = round((given.shape[2] - 1) ** 0.5)
    mask_loss(given[..., 1:].unflatten(2, (side, side)), *made.masks(torch.from_numpy(made.table()), side)).backward()
    for part in (model.head.weigh, model.head.gamma, model.backbone):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert not any(p.grad.any() for p in model.head.read.parameters())
    network.eval()
    with torch.no_grad():
        assert torch.allclose(network(images)[..., 0], model(images), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "query_decoder"}, "looks into head film, not query_decoder: take `head: film`"),
        ({"fusion": "attention"}, "leave fusion and mix at none"),
        ({"mix": "cutmix"}, "leave fusion and mix at none"),
        ({"loss": "asl", "loss_settings": {}}, "has a loss of its own"),
        ({"smooth_neg": 0.1}, "has a loss of its own"),
        ({"objective_settings": {"grounding_boxes": -1.0}}, "grounding_boxes is -1, but must be 0 or more"),
    ],
)
@pytest.mark.parametrize("name", ["grounding", "zero_shot_grounding"])
def test_what_does_not_fit_is_refused(name, options, words):
    plain = {"backbone": "test_resnet", "resolution": 32, "epochs": 1, "head": "film", "text": "minilm"}
    assert TrialConfig(**plain, objective=name).metric.name == ("val_map" if name == "grounding" else "val_log_lift")
    with pytest.raises(ValueError, match=words):
        TrialConfig(**{**plain, "objective": name, **options})


HEAD = "image_id,finding,x,y,width,height\n"


def test_boxes_of_a_cohorts_training_images_are_kept_in_shares_of_their_edges(tmp_path):
    manifest = write_images(tmp_path / "images", 8)  # 40 px; of four, two train, one validates, one is tested
    path = tmp_path / "boxes.csv"
    path.write_text(HEAD + "i000,Mass,4,8,16,20\ni002,Mass,0,0,10,10\nother,Mass,1,1,5,5\ni001,Bulla,0,0,8,8\n")
    boxes = boxes_for(str(path), manifest, ("Mass", "Nodule"))
    assert boxes.table.values.tolist() == [["i000", "Mass", 0.1, 0.2, 0.5, 0.7]]  # one is of validation, one not asked
    assert "Boxes: 1 of 4 boxes, in 1 training images" in boxes.notes[-1]
    assert boxes.provenance.startswith(f"{path} (sha256 ")
    boxes.write(Store(str(tmp_path / "run")))
    again = ImageBoxes.read(Store(str(tmp_path / "run")))
    pd.testing.assert_frame_equal(again.table, boxes.table)
    assert again.provenance == boxes.provenance
    at = again.at(np.array(["i005", "i000"]), ("Nodule", "Mass"))
    assert (at.image.tolist(), at.finding.tolist(), at.edges.tolist()) == ([1], [1], [[0.1, 0.2, 0.5, 0.7]])
    assert (at.of(0), at.of(1)) == (slice(0, 0), slice(0, 1))


def test_boxes_that_do_not_fit_the_cohort_are_refused(tmp_path):
    manifest = write_images(tmp_path / "images", 8)
    path = tmp_path / "boxes.csv"
    for rows, words in (
        ("i000,Mass,30,8,16,20\n", "1 of 1 boxes lie outside of their image"),
        ("elsewhere,Mass,1,1,5,5\n", "none of its 1 boxes is of a training image"),
        ("i000,Bulla,1,1,5,5\n", "none of its 1 boxes is of a training image and of a finding that is trained"),
    ):
        path.write_text(HEAD + rows)
        with pytest.raises(UsageError, match=words):
            boxes_for(str(path), manifest, ("Mass",))
    Store(str(tmp_path)).write(FILE, b"no table")
    with pytest.raises(CxrltError, match=r"boxes.parquet is no table of boxes"):
        ImageBoxes.read(Store(str(tmp_path)))
