"""Files that are no images are named; images that are likely no radiographs are counted; copies are found."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import write_images
from pictures import encoded

from cxrlt_ray import cli
from cxrlt_ray.data.decode import decode
from cxrlt_ray.data.duplicates import NEAR, near_pairs, perceptual_hash
from cxrlt_ray.data.inspection import inspect_images, pairs_across_splits
from cxrlt_ray.data.prepare import quarantine_text
from cxrlt_ray.data.suspects import suspect

NO_IMAGES = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git-annex": b"/annex/objects/SHA256E-s123--abc.png\n",
    "HTML": b"\n<!DOCTYPE html>\n<html><title>403 Forbidden</title></html>",
    "HTML page": b"\xef\xbb\xbf<HTML>",
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "JSON": b'{"message": "Not Found"}',
    "zero bytes": bytes(4096),
    "empty": b"",
    "ZIP": b"PK\x03\x04\x14\x00",
    "gzip": b"\x1f\x8b\x08\x00",
    "PDF": b"%PDF-1.7\n",
    "OpenCV": b"neither this nor that",
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_named(name):
    with pytest.raises(ValueError, match=name):
        decode(NO_IMAGES[name])


def picture(height=200, width=160, seed=0):
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((14, 12), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return (20 + 200 * coarse).clip(0, 255).astype(np.uint8)


def with_label(image):
    labelled = image.copy()
    labelled[3:8, 3:20] = 255
    return labelled


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (picture(), ""),
        (with_label(picture()), ""),
        (picture()[:, :100], ""),
        (picture()[:1, :1], "tiny"),
        (picture()[:, :10], "tiny"),
        (picture()[:30], "strip"),
        (np.zeros((200, 160), np.uint8), "black"),
        (with_label(np.zeros((200, 160), np.uint8)), "black"),
        (np.full((200, 160), 255, np.uint8), "blank"),
        (np.full((200, 160), 140, np.uint8) + (picture() > 128), "blank"),
        ((picture() > 128) * np.uint8(255), "flat"),
    ],
)
def test_suspects_are_told_from_radiographs(image, kind):
    assert suspect(image) == kind
    assert suspect(decode(encoded(image, ".png"), 32)[0]) == kind
    assert suspect(decode(encoded(image), 32)[0]) == kind  # at a quarter of its edge, where it is large enough


def test_real_radiographs_are_no_suspects(shared_data):
    for file in sorted((shared_data / "nih384").rglob("*.jpg"))[:200]:
        assert suspect(decode(file.read_bytes())[0]) == ""


def recompressed(image, quality):
    return decode(encoded(image, quality=quality))[0]


COPIES = {
    "recompressed": lambda image: recompressed(image, 40),
    "smaller": lambda image: cv2.resize(image, (90, 110), interpolation=cv2.INTER_AREA),
    "brighter": lambda image: (255 * (image / 255) ** 0.8).astype(np.uint8),
    "windowed": lambda image: ((image.astype(float) - 20) * 1.2).clip(0, 255).astype(np.uint8),
    "cropped": lambda image: image[3:-3, 3:-3],
}


def distance(first, second):
    return int(np.unpackbits(perceptual_hash(first) ^ perceptual_hash(second)).sum())


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_real_radiographs_are_near_and_other_patients_far(shared_data, name):
    files = sorted((shared_data / "nih384").rglob("*.jpg"))[:60]
    images = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    distances = [distance(image, COPIES[name](image)) for image in images]
    assert np.mean(np.array(distances) <= NEAR) >= 0.95
    patients = [file.name.split("_")[0] for file in files]
    for k in range(1, len(images)):
        assert patients[k] == patients[k - 1] or distance(images[k], images[k - 1]) > NEAR


def test_near_pairs_are_those_of_a_comparison_bit_by_bit():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (1100, 32), np.uint8)
    first[:, -1] &= 0xFE  # the bit beyond the 255th is not part of a hash
    second = first[rng.permutation(1100)[:700]].copy()
    for row in second:
        flips = rng.permutation(255)[: rng.integers(0, 60)]
        row ^= np.packbits(np.isin(np.arange(256), flips))
    differing = np.array([np.bitwise_count(row ^ second).sum(axis=1, dtype=int) for row in first])
    assert near_pairs(first, second).tolist() == np.argwhere(differing <= NEAR).tolist()
    assert near_pairs(first[:0], second).shape == (0, 2)


def cohort(tmp_path, count=24):
    """Images of which some are broken, blank, or copies across splits; their table is written as labels.csv."""
    manifest = write_images(tmp_path, count)
    for k in range(count):
        cv2.imwrite(str(tmp_path / f"{k:03d}.jpg"), picture(seed=k))
    table = manifest.table[["image_id", "path", "subject_id", "split", "Mass", "Nodule"]]
    table.to_csv(tmp_path / "labels.csv", index=False)
    return manifest


def put(tmp_path, k, content):
    (tmp_path / f"{k:03d}.jpg").write_bytes(content)


def test_an_inspection_names_what_is_broken_and_suspect(tmp_path):
    manifest = cohort(tmp_path)
    put(tmp_path, 3, NO_IMAGES["Git LFS"])
    put(tmp_path, 5, encoded(np.zeros((90, 90), np.uint8)))
    (tmp_path / "007.jpg").unlink()
    images = inspect_images(manifest, say=print)
    assert images["suspect"].to_dict() == {k: "black" if k == 5 else "" for k in range(24)}
    assert images["reason"][3].startswith("a Git LFS pointer")
    assert images["reason"][7] == "missing"
    assert (images["reason"].drop([3, 7]) == "").all()
    assert len(inspect_images(manifest, sample=5, say=print)) == 5


def test_images_are_inspected_where_the_system_keeps_no_list_of_processors(tmp_path, monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert (inspect_images(cohort(tmp_path), say=print)["reason"] == "").all()


def test_pairs_stand_in_two_splits_and_blank_images_in_none(tmp_path):
    manifest = cohort(tmp_path)  # splits: train, train, val, test, and again
    for k, seed in ((2, 0), (3, 0), (5, 4)):  # 0 is copied to val and test, 4 within train
        put(tmp_path, k, encoded(cv2.resize(picture(seed=seed), (120, 150)), quality=60))
    for k in (8, 10, 11):
        put(tmp_path, k, encoded(np.zeros((90, 90), np.uint8)))
    pairs = pairs_across_splits(manifest, inspect_images(manifest, say=print))
    found = {splits: sorted(map(tuple, rows.tolist())) for splits, rows in pairs.items()}
    assert found == {("train", "val"): [(0, 2)], ("train", "test"): [(0, 3)], ("val", "test"): [(2, 3)]}


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.run("cohort", list(arguments))
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out + captured.err


def test_cohort_lists_suspects_and_duplicates_by_row_and_names_no_path(tmp_path, capsys, monkeypatch):
    cohort(tmp_path)
    put(tmp_path, 2, (tmp_path / "000.jpg").read_bytes())
    put(tmp_path, 5, encoded(np.zeros((90, 90), np.uint8)))
    put(tmp_path, 6, NO_IMAGES["HTML"])
    code, text = said(capsys, str(tmp_path), "--images", "--duplicates")
    assert code == 0
    assert "24 images looked at: 1 cannot be decoded, 1 suspect" in text
    assert "an HTML page, as a failed download leaves: fetch the file again: labels.csv row 7" in text
    assert "1 suspect, black (nearly all pixels black): labels.csv row 6" in text
    assert "train and val: 1 pair, 1 image with 1" in text
    assert "labels.csv row 1 and labels.csv row 3" in text
    assert ".jpg" not in text
    monkeypatch.setenv("CXRLT_RAY_SHOW_IDS", "1")
    assert "005.jpg" in said(capsys, str(tmp_path), "--images")[1]


def test_cohort_refuses_data_of_which_too_much_cannot_be_decoded(tmp_path, capsys):
    cohort(tmp_path)
    for k in range(4):
        put(tmp_path, k, NO_IMAGES["Git LFS"])
    code, text = said(capsys, str(tmp_path), "--images")
    assert code == 1
    assert "4 of 24 images cannot be decoded, more than the allowed share 0.05" in text


@pytest.mark.parametrize(
    "options",
    [
        ("--sample", "5"),
        ("--sample", "5", "--duplicates"),
        ("--sample", "-1", "--images"),
        ("--min-count", "5", "--images"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(tmp_path, capsys, options):
    cohort(tmp_path)
    assert said(capsys, str(tmp_path), *options)[0] == 2


def test_a_summary_counts_suspects_and_an_old_one_has_none():
    summary = {"quarantined": 1, "converted": {"16 bit": 2}}
    assert quarantine_text(summary) == "1 in quarantine, 2 16 bit converted"
    text = quarantine_text({**summary, "suspect": {"black": 2, "strip": 1}})
    assert "3 suspect (2 black, 1 strip;" in text


def test_prepare_counts_suspects_and_keeps_them(ray, tmp_path):
    from cxrlt_ray.data.prepare import prepare

    manifest = cohort(tmp_path / "images")
    put(tmp_path / "images", 5, encoded(np.zeros((90, 90), np.uint8)))
    put(tmp_path / "images", 6, encoded(picture()[:30]))
    lines = []
    shards = prepare(manifest, str(tmp_path / "runs"), [32], say=lines.append)[0]
    assert shards.summary["suspect"] == {"black": 1, "strip": 1}
    assert shards.summary["quarantined"] == 0
    assert isinstance(shards.index(), pd.DataFrame)
    assert len(shards.index()) == 24
    assert "2 suspect (1 black, 1 strip;" in lines[-1]
