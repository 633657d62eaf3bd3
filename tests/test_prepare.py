import dataclasses
import io
import os

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import write_images

from cxrlt_ray import decode, prepare
from cxrlt_ray.errors import CxrltError


def quiet(_: str) -> None:
    pass


@pytest.fixture
def manifest(tmp_path):
    return write_images(tmp_path / "images", 24)


def prepared(manifest, tmp_path, **options):
    return prepare.prepare(manifest, str(tmp_path / "runs"), [32], say=quiet, **options)[0]


def test_every_image_stands_once_in_shards_at_the_asked_size(ray, manifest, tmp_path):
    shards = prepared(manifest, tmp_path)
    index = shards.index()
    assert sorted(index.index) == sorted(manifest.table["image_id"])
    for file in index["file"].unique():
        for jpeg in pd.read_parquet(io.BytesIO(shards.store.read(file)))["image"]:
            assert decode.decode(jpeg)[0].shape == (32, 32)


def test_originals_are_not_touched_and_shards_are_reused(ray, manifest, tmp_path):
    folder = tmp_path / "images"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    first = prepared(manifest, tmp_path)
    written = os.stat(first.store.local / "summary.json").st_mtime_ns
    again = prepared(manifest, tmp_path)
    assert os.stat(again.store.local / "summary.json").st_mtime_ns == written
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before


def test_a_killed_preparation_redoes_only_missing_shards(ray, manifest, tmp_path):
    folder = prepared(manifest, tmp_path).store.local
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("train-*.parquet")}
    (folder / "summary.json").unlink()
    next(folder.glob("test-*.parquet")).unlink()
    prepared(manifest, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("train-*.parquet")} == kept
    assert list(folder.glob("test-*.parquet"))


def test_undecodable_images_go_to_quarantine_with_their_reasons(ray, manifest, tmp_path):
    folder = tmp_path / "images"
    (folder / "000.jpg").unlink()
    (folder / "001.jpg").write_bytes((folder / "001.jpg").read_bytes()[:300])
    (folder / "002.jpg").write_text("not an image")
    (folder / "003.jpg").write_bytes(b"")
    shards = prepared(manifest, tmp_path, max_bad=0.5)
    found = pd.read_parquet(io.BytesIO(shards.store.read("quarantine.parquet"))).set_index("path")["reason"]
    assert "not on disk" in found["000.jpg"]
    assert found["001.jpg"] == "truncated"
    assert "OpenCV" in found["002.jpg"]
    assert found["003.jpg"] == "empty file"
    assert len(shards.index()) == 20
    for _ in range(2):
        with pytest.raises(CxrltError, match=r"4 of 24 images.*--max-bad"):
            prepared(manifest, tmp_path, max_bad=0.1)


def test_images_mended_after_a_refusal_are_prepared(ray, manifest, tmp_path):
    folder = tmp_path / "images"
    whole = (folder / "000.jpg").read_bytes()
    for name in ("000.jpg", "001.jpg", "002.jpg"):
        (folder / name).write_bytes(whole[:300])
    with pytest.raises(CxrltError, match="Mend them"):
        prepared(manifest, tmp_path)
    for name in ("000.jpg", "001.jpg", "002.jpg"):
        (folder / name).write_bytes(whole)
    assert prepared(manifest, tmp_path).summary["quarantined"] == 0


def test_colour_16_bit_and_misnamed_images_are_converted_and_counted(ray, manifest, tmp_path):
    folder = tmp_path / "images"
    gray = cv2.imread(str(folder / "000.jpg"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "000.jpg"), cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))
    (folder / "001.jpg").write_bytes(cv2.imencode(".png", gray)[1].tobytes())
    (folder / "002.jpg").write_bytes(cv2.imencode(".png", gray.astype(np.uint16) * 16)[1].tobytes())
    summary = prepared(manifest, tmp_path).summary
    assert summary["quarantined"] == 0
    assert summary["converted"] == {"colour": 1, "16 bit": 1}


def test_16_bit_images_keep_their_contrast():
    ramp = np.tile(np.arange(64, dtype=np.uint16) * 64, (64, 1))  # 12 bits in 16
    image, converted = decode.decode(cv2.imencode(".png", ramp)[1].tobytes())
    assert converted == "16 bit"
    assert (image.min(), image.max()) == (0, 255)
    assert (np.diff(image[0].astype(int)) >= 0).all()


def test_new_labels_reuse_the_shards_and_new_splits_do_not(ray, manifest, tmp_path):
    first = prepared(manifest, tmp_path).store.uri
    relabelled = manifest.table.assign(Mass=1 - manifest.table["Mass"])
    assert prepared(dataclasses.replace(manifest, table=relabelled), tmp_path).store.uri == first
    resplit = manifest.table.assign(split="train")
    assert prepared(dataclasses.replace(manifest, table=resplit), tmp_path).store.uri != first
