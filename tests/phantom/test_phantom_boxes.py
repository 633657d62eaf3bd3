"""Boxes of signs, beside where pixels change when a sign is drawn or left out."""

import shutil

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray import phantom
from cxrlt_ray.data.tasks import ALL_FINDINGS
from cxrlt_ray.errors import UsageError
from cxrlt_ray.phantom.options import PhantomOptions
from cxrlt_ray.phantom.pictures import Picture, draw_picture, draw_with_boxes
from cxrlt_ray.phantom.signs import CHANGES, PAINTS

SIZE, SEED = 128, 5
DRAWN = [name for name in ALL_FINDINGS if name != "Normal"]
# what they change is not all in one place: the chest is longer, vessels are thinned out everywhere
SPREAD = ("Kyphosis", "Osteopenia", "Pulmonary Hypertension", "Enlarged Cardiomediastinum")
UNSEEN_FROM_THE_SIDE = ("Enlarged Cardiomediastinum", "Scoliosis")


def case(findings, lateral=False, study=9):
    return Picture(7, study, "0000004d-x", lateral, False, findings)


def boxes_and_change(finding, lateral, strength=0.7):
    """The boxes of a sign, their inside with a margin of 2 pixels as bool, and how far each pixel changes by it."""
    image, boxes = draw_with_boxes(case({finding: (strength, 1)}, lateral), SIZE, SEED)
    change = np.abs(image.astype(int) - draw_picture(case({}, lateral), SIZE, SEED).astype(int))
    inside = np.zeros((SIZE, SIZE), bool)
    for box in boxes:
        inside[max(0, box.y - 2) : box.y + box.height + 2, max(0, box.x - 2) : box.x + box.width + 2] = True
    return boxes, inside, change


@pytest.mark.parametrize("lateral", [False, True], ids=["frontal", "lateral"])
@pytest.mark.parametrize("finding", DRAWN)
def test_pixels_change_inside_the_boxes(finding, lateral):
    boxes, inside, change = boxes_and_change(finding, lateral)
    if lateral and finding in UNSEEN_FROM_THE_SIDE:
        assert boxes == []
        assert (change > 8).mean() < 0.01
        return
    assert {box.finding for box in boxes} == {finding}
    seen = np.where(change > 8, change, 0)
    share = seen[inside].sum() / seen.sum()
    if finding in SPREAD:
        assert change[inside].mean() > 2 * change[~inside].mean()
    elif finding in CHANGES:
        assert share > 0.7
        assert change[inside].mean() > 10 * change[~inside].mean()
    else:
        assert share > 0.95


@pytest.mark.parametrize("lateral", [False, True], ids=["frontal", "lateral"])
@pytest.mark.parametrize("finding", [name for name in DRAWN if name in PAINTS and name not in CHANGES])
def test_no_box_of_a_painted_sign_is_wider_than_what_changes(finding, lateral):
    boxes, _, change = boxes_and_change(finding, lateral, strength=1.0)
    for box in boxes:
        part = change[box.y : box.y + box.height, box.x : box.x + box.width] > 3
        columns, rows = np.flatnonzero(part.any(axis=0)), np.flatnonzero(part.any(axis=1))
        assert np.ptp(columns) + 1 >= 0.7 * box.width - 1
        assert np.ptp(rows) + 1 >= 0.7 * box.height - 1


@pytest.mark.parametrize("lateral", [False, True], ids=["frontal", "lateral"])
def test_boxes_lie_in_the_picture_with_an_area(lateral):
    everything = case(dict.fromkeys(DRAWN, (1.0, 0)), lateral)
    boxes = draw_with_boxes(everything, SIZE, SEED)[1]
    assert len({box.finding for box in boxes}) > 35
    for box in boxes:
        assert 0 <= box.x < box.x + box.width <= SIZE
        assert 0 <= box.y < box.y + box.height <= SIZE


def test_the_picture_with_boxes_is_the_picture():
    several = case({"Mass": (0.8, 0), "Scoliosis": (0.9, 1), "Edema": (0.5, 0)})
    assert (draw_with_boxes(several, SIZE, SEED)[0] == draw_picture(several, SIZE, SEED)).all()


def test_a_signs_boxes_do_not_depend_on_the_other_signs():
    alone = draw_with_boxes(case({"Nodule": (0.8, 0)}), SIZE, SEED)[1]
    beside = draw_with_boxes(case({"Nodule": (0.8, 0), "Mass": (0.8, 1), "Granuloma": (0.9, 0)}), SIZE, SEED)[1]
    assert [box for box in beside if box.finding == "Nodule"] == alone


def test_parts_far_apart_have_boxes_of_their_own_and_a_general_finding_beside_a_precise_one_has_none():
    hila = draw_with_boxes(case({"Hilum": (1.0, 0)}), SIZE, SEED)[1]
    assert len(hila) == 2
    both = draw_with_boxes(case({"Fracture": (1.0, 0), "Rib Fracture": (1.0, 0)}), SIZE, SEED)[1]
    assert {box.finding for box in both} == {"Rib Fracture"}


def test_boxes_grow_with_the_picture():
    small = draw_with_boxes(case({"Mass": (1.0, 0)}), 128, SEED)[1][0]
    large = draw_with_boxes(case({"Mass": (1.0, 0)}), 512, SEED)[1][0]
    assert np.array(large[1:]) / 4 == pytest.approx(np.array(small[1:]), abs=2)


# the file


def written(folder, **changed):
    arguments = {"images": 200, "size": 48, "seed": SEED, "say": lambda _: None, "processes": 1} | changed
    phantom.write_phantom(folder, **({"options": PhantomOptions(boxes=True)} | arguments))
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return written(tmp_path_factory.mktemp("boxes") / "tree")


def test_the_file_has_the_boxes_of_every_image_by_its_id(tree):
    boxes = pd.read_csv(tree / "boxes.csv")
    assert boxes.columns.tolist() == ["image_id", "finding", "x", "y", "width", "height"]
    labels = pd.read_csv(tree / "cxr-lt-2024" / "labels.csv").set_index("dicom_id")
    assert set(boxes["image_id"]) <= set(labels.index)
    tested = labels[labels["split"] != "train"]  # labels of train err
    own = boxes[boxes["image_id"].isin(tested.index)]
    assert all(
        tested.loc[image_id, finding] == 1 for image_id, finding in zip(own["image_id"], own["finding"], strict=True)
    )
    assert ((boxes["x"] + boxes["width"]) <= 48).all()
    masses = tested.index[tested["Mass"] == 1]
    assert set(masses) <= set(own.loc[own["finding"] == "Mass", "image_id"])


def test_the_file_is_the_same_for_several_processes_and_after_a_stop(tree, tmp_path):
    stopped = shutil.copytree(tree, tmp_path / "stopped")
    (stopped / "phantom.json").rename(stopped / "phantom.unfinished.json")
    (stopped / "boxes.csv").unlink()
    written(stopped, processes=2)
    assert (stopped / "boxes.csv").read_bytes() == (tree / "boxes.csv").read_bytes()


def test_pictures_are_those_of_a_cohort_without_boxes(tree, tmp_path):
    plain = written(tmp_path / "plain", options=PhantomOptions())
    assert not (plain / "boxes.csv").exists()
    paths = sorted(path.relative_to(tree) for path in tree.glob("files/**/*.*"))
    assert paths
    assert all((plain / path).read_bytes() == (tree / path).read_bytes() for path in paths)


def test_boxes_without_pictures_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--no-pictures"):
        written(tmp_path / "x", pictures=False)
