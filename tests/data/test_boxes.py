"""Boxes of the three formats, written on the spot in their public form."""

import json

import numpy as np
import pandas as pd
import pytest

from cxrlt_ray.data.boxes import read_boxes
from cxrlt_ray.data.coco_masks import decoded_mask, parts_of
from cxrlt_ray.data.image_sizes import image_size, original_sizes
from cxrlt_ray.data.manifest import Manifest
from cxrlt_ray.errors import CxrltError, UsageError

SIZES = {"a": (100, 80), "b": (100, 80)}
HEAD = "image_id,finding,x,y,width,height"
VINDR_HEAD = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max"


def table(tmp_path, *lines, name="boxes.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def as_json(tmp_path, content):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(content))
    return str(path)


def rows(boxes):
    return [tuple(row) for row in boxes.table.itertuples(index=False)]


# the phantom's form


def test_boxes_of_a_table_come_as_they_stand(tmp_path):
    boxes = read_boxes(table(tmp_path, HEAD, "a,Mass,10,20,30,40", "b,Bulla,0,0,100,80"), SIZES)
    assert rows(boxes) == [("a", "Mass", 10.0, 20.0, 30.0, 40.0), ("b", "Bulla", 0.0, 0.0, 100.0, 80.0)]
    assert boxes.notes == ()


def test_a_parquet_file_is_read_like_a_csv(tmp_path):
    frame = pd.DataFrame([("a", "Mass", 10, 20, 30, 40)], columns=HEAD.split(","))
    frame.to_parquet(tmp_path / "boxes.parquet")
    assert rows(read_boxes(str(tmp_path / "boxes.parquet"), SIZES)) == [("a", "Mass", 10.0, 20.0, 30.0, 40.0)]


def test_shares_are_of_the_image_whatever_its_size(tmp_path):
    path = table(tmp_path, HEAD, "a,Mass,10,20,30,40")
    shares = read_boxes(path, SIZES).shares()
    assert shares.columns.tolist() == ["image_id", "finding", "left", "top", "right", "bottom"]
    assert shares.iloc[0, 2:].tolist() == pytest.approx([0.1, 0.25, 0.4, 0.75])
    twice = table(tmp_path, HEAD, "a,Mass,20,40,60,80", name="twice.csv")
    pd.testing.assert_frame_equal(read_boxes(twice, {"a": (200, 160)}).shares(), shares)


def test_shares_need_the_images_sizes(tmp_path):
    boxes = read_boxes(table(tmp_path, HEAD, "a,Mass,1,1,5,5", "c,Mass,1,1,5,5", "d,Mass,1,1,5,5"), SIZES)
    with pytest.raises(UsageError, match=r"boxes.csv: the size of 2 of its images is not known"):
        boxes.shares()


def test_the_phantoms_own_file_is_read(tmp_path):
    from cxrlt_ray.data.cohort import read_cohort
    from cxrlt_ray.phantom import write_phantom
    from cxrlt_ray.phantom.options import PhantomOptions

    options = PhantomOptions(boxes=True)
    write_phantom(tmp_path / "p", 200, 40, options=options, processes=1, say=lambda _: None)
    manifest = read_cohort(str(tmp_path / "p")).manifest
    boxes = read_boxes(str(tmp_path / "p" / "boxes.csv"))
    assert set(boxes.table["image_id"]) <= set(manifest.table["image_id"])
    sizes = original_sizes(manifest, boxes.table["image_id"])
    assert set(sizes.values()) == {(40, 40)}
    shares = read_boxes(str(tmp_path / "p" / "boxes.csv"), sizes).shares()
    assert shares.iloc[:, 2:].min().min() >= 0
    assert shares.iloc[:, 2:].max().max() <= 1


# refusals


@pytest.mark.parametrize(
    "line", ["a,Mass,-5,0,10,10", "a,Mass,0,-2,10,10", "a,Mass,95,0,10,10", "a,Mass,0,75,10,10", "a,Mass,500,500,9,9"]
)
def test_a_box_outside_of_its_image_is_refused_with_file_and_number(tmp_path, line):
    path = table(tmp_path, HEAD, "a,Mass,1,1,5,5", line, line)
    with pytest.raises(UsageError, match=r"boxes.csv: 2 of 3 boxes lie outside of their image") as error:
        read_boxes(path, SIZES)
    assert "500" not in str(error.value)


def test_a_box_to_the_very_edge_is_inside_and_its_shares_end_at_one(tmp_path):
    boxes = read_boxes(table(tmp_path, HEAD, "a,Mass,-0.6,0,101,80.4"), SIZES)
    assert boxes.shares().iloc[0, 2:].tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a,Mass,x,1,5,5", "1 of 2 boxes have a place that is no number"),
        ("a,Mass,,1,5,5", "1 of 2 boxes have a place that is no number"),
        ("a,Mass,1,1,inf,5", "1 of 2 boxes have a place that is no number"),
        ("a,Mass,1,1,0,5", "1 of 2 boxes have no area"),
        ("a,Mass,1,1,5,-3", "1 of 2 boxes have no area"),
    ],
)
def test_places_that_are_none_are_refused(tmp_path, line, told):
    with pytest.raises(UsageError, match=told):
        read_boxes(table(tmp_path, HEAD, "a,Mass,1,1,5,5", line), SIZES)


def test_a_table_without_the_columns_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match="needs the columns image_id, finding, x, y, width, height"):
        read_boxes(table(tmp_path, "image_id,finding,left,top", "a,Mass,1,1"))
    with pytest.raises(CxrltError):
        read_boxes(str(tmp_path / "none.csv"))


def test_findings_that_are_none_of_ours_are_left_out_with_a_note_or_all_refused(tmp_path):
    boxes = read_boxes(table(tmp_path, HEAD, "a,mass,1,1,5,5", "a,Dragon,1,1,5,5"), SIZES)
    assert boxes.table["finding"].tolist() == ["Mass"]
    assert "1 boxes of 'Dragon'" in boxes.notes[0]
    with pytest.raises(UsageError, match=r"none of its findings is known .'Dragon'"):
        read_boxes(table(tmp_path, HEAD, "a,Dragon,1,1,5,5"), SIZES)


# VinDr-CXR


def test_vindr_boxes_take_the_cohorts_mapping(tmp_path):
    path = table(
        tmp_path,
        VINDR_HEAD,
        "a,R9,Cardiomegaly,10,20,40,60",
        "a,R8,Cardiomegaly,12,22,44,66",
        "a,R9,Rib fracture,1,2,3,4",
        "a,R9,Nodule/Mass,5,5,10,12",
        "b,R10,No finding,,,,",
        "a,R9,Aortic enlargement,5,5,10,12",
    )
    boxes = read_boxes(path, SIZES)
    assert sorted(rows(boxes)) == [
        ("a", "Cardiomegaly", 10.0, 20.0, 30.0, 40.0),
        ("a", "Cardiomegaly", 12.0, 22.0, 32.0, 44.0),
        ("a", "Fracture", 1.0, 2.0, 2.0, 2.0),
        ("a", "Lung Lesion", 5.0, 5.0, 5.0, 7.0),
        ("a", "Rib Fracture", 1.0, 2.0, 2.0, 2.0),
    ]
    assert "'Aortic enlargement'" in boxes.notes[0]


def test_vindr_boxes_in_kaggles_form_and_with_its_corners_swapped(tmp_path):
    head = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
    path = table(tmp_path, head, "a,Cardiomegaly,3,R9,10,20,40,60", "b,No finding,14,R1,,,,")
    assert rows(read_boxes(path, SIZES)) == [("a", "Cardiomegaly", 10.0, 20.0, 30.0, 40.0)]
    path = table(tmp_path, head, "a,Cardiomegaly,3,R9,40,20,10,60")
    with pytest.raises(UsageError, match="1 of 1 boxes have no area"):
        read_boxes(path, SIZES)


def test_another_mapping_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cohorts").mkdir()
    (tmp_path / "cohorts" / "mine.yaml").write_text("reader: table\nfindings:\n  big heart: Cardiomegaly\n")
    path = table(tmp_path, HEAD, "a,Big heart,1,1,5,5")
    assert rows(read_boxes(path, SIZES, mapping="mine")) == [("a", "Cardiomegaly", 1.0, 1.0, 5.0, 5.0)]


# CheXlocalize


def test_polygons_have_a_box_each_and_tell_the_size(tmp_path):
    record = {
        "img_size": [80, 100],
        "Airspace Opacity": [[[10, 20], [40, 25], [30, 60.5]], [[1, 2], [3, 2], [3, 7]]],
        "Pneumothorax": [],
    }
    boxes = read_boxes(as_json(tmp_path, {"patient1_study1_view1_frontal": record}))
    assert boxes.sizes == {"patient1_study1_view1_frontal": (100, 80)}
    assert rows(boxes) == [
        ("patient1_study1_view1_frontal", "Lung Opacity", 10.0, 20.0, 30.0, 40.5),
        ("patient1_study1_view1_frontal", "Lung Opacity", 1.0, 2.0, 2.0, 5.0),
    ]
    assert boxes.shares()["right"].tolist() == pytest.approx([0.4, 0.03])


def compressed(mask):
    """COCO's string of a mask, by the format's description."""
    flat = mask.T.ravel().astype(int)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    runs = np.diff(np.concatenate([[0], starts, [len(flat)]])).tolist()
    text = ""
    for k, run in enumerate(runs):
        number = run - runs[k - 2] if k > 2 else run
        while True:
            group, number = number & 31, number >> 5
            last = number == (-1 if group & 16 else 0)
            text += chr(48 + group + (0 if last else 32))
            if last:
                break
    return text


# strings of COCO's own encoder
@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("061M", [0, 6, 1, 3]),
        ("061", [0, 6, 1]),
        ("061K", [0, 6, 1, 1]),
        ("0610", [0, 6, 1, 6]),
        ("011101010", [0, 1, 1, 2, 1, 3, 1, 4, 1]),
        ("0PP1", [0, 1024]),
    ],
)
def test_run_lengths_as_coco_writes_them(text, runs):
    expected = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert (decoded_mask(text, sum(runs), 1).ravel() == expected).all()


def test_a_mask_comes_back_from_its_string_down_the_columns():
    rng = np.random.default_rng(0)
    for shape in ((7, 5), (40, 90), (300, 200)):
        mask = rng.random(shape) < 0.2
        mask[2:5, 1:4] = True
        assert (decoded_mask(compressed(mask), *shape) == mask).all()


def test_masks_have_a_box_for_each_part(tmp_path):
    mask = np.zeros((80, 100), bool)
    mask[20:60, 10:40] = True
    mask[70:75, 90:98] = True
    record = {
        "Cardiomegaly": {"size": [80, 100], "counts": compressed(mask)},
        "Edema": {"size": [80, 100], "counts": compressed(np.zeros_like(mask))},
    }
    boxes = read_boxes(as_json(tmp_path, {"a": record}))
    assert boxes.sizes == {"a": (100, 80)}
    assert sorted(rows(boxes)) == [
        ("a", "Cardiomegaly", 10.0, 20.0, 30.0, 40.0),
        ("a", "Cardiomegaly", 90.0, 70.0, 8.0, 5.0),
    ]


def test_parts_that_touch_at_a_corner_are_one():
    assert parts_of(np.eye(4, dtype=bool)) == [(0.0, 0.0, 4.0, 4.0)]
    assert parts_of(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize(
    "record",
    [
        {"Edema": {"size": [80, 100], "counts": "06"}},
        {"Edema": {"size": [80, 100], "counts": "\x01"}},
        {"Edema": {"size": [80, 100], "counts": "0P"}},
        {"Edema": {"counts": "06"}},
        {"Edema": [[1, 2]]},
        {"img_size": [80], "Edema": []},
        {"img_size": [80, 100], "Edema": [[[1, 2], [3]]]},
    ],
)
def test_a_json_of_another_form_is_refused(tmp_path, record):
    with pytest.raises(UsageError, match=r"gt.json is no file of CheXlocalize"):
        read_boxes(as_json(tmp_path, {"a": record}))


def test_a_polygon_outside_of_its_image_is_refused(tmp_path):
    record = {"img_size": [80, 100], "Edema": [[[10, 20], [140, 25], [30, 60]]]}
    with pytest.raises(UsageError, match=r"gt.json: 1 of 1 boxes lie outside"):
        read_boxes(as_json(tmp_path, {"a": record}))


# sizes


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_an_images_size_is_its_width_and_height(suffix):
    import cv2

    content = cv2.imencode(f".{suffix}", np.zeros((30, 50), np.uint8))[1].tobytes()
    assert image_size(content) == (50, 30)


def test_a_dicom_files_size_is_its_columns_and_rows():
    pytest.importorskip("pydicom")
    import io

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    file = Dataset()
    file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    file.Rows, file.Columns = 30, 50
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = io.BytesIO()
    file.save_as(content, enforce_file_format=True)
    assert image_size(content.getvalue()) == (50, 30)


def test_images_that_cannot_be_read_have_no_size(tmp_path):
    import cv2

    (tmp_path / "good.png").write_bytes(cv2.imencode(".png", np.zeros((30, 50), np.uint8))[1].tobytes())
    (tmp_path / "torn.png").write_bytes(b"nothing")
    frame = pd.DataFrame({"image_id": ["a", "b", "c"], "path": ["good.png", "torn.png", "none.png"]})
    manifest = Manifest(frame, (), "table", str(tmp_path))
    assert original_sizes(manifest, ["a", "b", "c", "d"]) == {"a": (50, 30)}
