import dataclasses
import io
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import s3 as server
from conftest import write_images

from cxrlt_ray import prepare as command
from cxrlt_ray.data import decode, originals, prepare
from cxrlt_ray.data.estimate import estimate
from cxrlt_ray.data.shards import INDEX, LOSSLESS, QUALITY, QUARANTINE, SUMMARY, pack, parse_sizes
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import NotThere, Store


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
    assert "hash" not in index  # that stays on disk: every training process reads the index
    assert pd.read_parquet(io.BytesIO(shards.store.read("index.parquet")))["hash"].map(len).eq(32).all()
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


def pixels(shards, image_id):
    row = shards.index().loc[image_id]
    content = (shards.store.local / row["file"]).read_bytes()
    return decode.decode(content[row["offset"] : row["offset"] + row["length"]])[0]


def test_a_replaced_image_gets_its_new_pixels_and_only_its_shard_is_made_anew(ray, manifest, tmp_path):
    before = prepared(manifest, tmp_path)
    cached_as = before.files()
    kept = {path.name for path in before.store.local.glob("*-0*.parquet")}
    image_id, path = manifest.table.loc[manifest.table["split"] == "train", ["image_id", "path"]].iloc[0]
    old = pixels(before, image_id)
    replaced = tmp_path / "images" / path
    written = replaced.stat().st_mtime_ns
    cv2.imwrite(str(replaced), 255 - cv2.imread(str(replaced), cv2.IMREAD_GRAYSCALE))
    os.utime(replaced, ns=(written + 10**9, written + 10**9))
    said = []
    after = prepare.prepare(manifest, str(tmp_path / "runs"), [32], say=said.append)[0]
    assert said[0].startswith("1 of 24 images have changed")
    assert after.store.uri == before.store.uri
    assert abs(pixels(after, image_id).astype(int) - old).mean() > 20
    new = set(after.index()["file"])
    assert len(new - kept) == 1
    assert {name.partition("-")[0] for name in new - kept} == {"train"}
    assert after.files() != cached_as  # decoded images of before are not read


def test_a_mended_image_leaves_the_quarantine(ray, manifest, tmp_path):
    broken = tmp_path / "images" / "000.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    assert prepared(manifest, tmp_path).summary["quarantined"] == 1
    broken.write_bytes(whole)
    assert prepared(manifest, tmp_path).summary["quarantined"] == 0


def test_tables_of_which_one_could_not_be_written_anew_are_mended(ray, manifest, tmp_path):
    """Of a full disk, or a process that was killed between the two: an image is in both, another in neither."""
    shards = prepared(manifest, tmp_path)
    before, summary = shards.index(), shards.store.read_json(SUMMARY)
    index, quarantine = (pd.read_parquet(Path(shards.store.uri, name)) for name in (INDEX, QUARANTINE))
    twice = index.iloc[:1].assign(path="", reason="none")[quarantine.columns]
    pd.concat([quarantine, twice]).to_parquet(Path(shards.store.uri, QUARANTINE))
    index.iloc[:-1].to_parquet(Path(shards.store.uri, INDEX))
    mended = prepared(manifest, tmp_path)
    pd.testing.assert_frame_equal(mended.index(), before)
    assert {**mended.store.read_json(SUMMARY), "seconds": 0} == {**summary, "seconds": 0}
    assert len(pd.read_parquet(Path(shards.store.uri, QUARANTINE))) == len(quarantine)


def test_a_checksum_tells_a_touched_image_from_a_changed_one(ray, manifest, tmp_path):
    summary = prepared(manifest, tmp_path).store.local / "summary.json"
    touched, changed = tmp_path / "images" / "000.jpg", tmp_path / "images" / "001.jpg"
    os.utime(touched, ns=(1, 1))
    status = changed.stat()
    said = []

    def again(**options):
        return prepare.prepare(manifest, str(tmp_path / "runs"), [32], say=said.append, **options)

    shards = {path.name: path.stat().st_mtime_ns for path in summary.parent.glob("*-0*.parquet")}
    again(checksum=True)
    assert {path.name: path.stat().st_mtime_ns for path in summary.parent.glob("*-0*.parquet")} == shards
    again()  # what was compared is known from now on
    assert not any("changed" in line for line in said)
    content = bytearray(changed.read_bytes())
    content[-30] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(status.st_mtime_ns, status.st_mtime_ns))  # same size, same time
    again()
    assert not any("changed" in line for line in said)
    again(checksum=True)
    assert any(line.startswith("1 of 24 images have changed") for line in said)


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


def test_several_sizes_are_each_the_original_resized(ray, tmp_path, manifest):
    made = prepare.prepare(manifest, str(tmp_path / "runs"), [16, 32], say=quiet, quality=LOSSLESS)
    assert [shards.size for shards in made] == [16, 32]
    for shards in made:
        index = shards.index()
        for image_id, path in zip(manifest.table["image_id"], manifest.table["path"], strict=True):
            where = index.loc[image_id]
            content = shards.store.read(where["file"])[where["offset"] : where["offset"] + where["length"]]
            original = decode.decode((tmp_path / "images" / path).read_bytes(), 32)[0]
            assert (decode.decode(content)[0] == decode.resize(original, shards.size)).all()


def test_shards_open_with_pandas_alone(ray, manifest, tmp_path):
    shards = prepared(manifest, tmp_path)
    frame = pd.concat(pd.read_parquet(path) for path in shards.store.local.glob("*-0*.parquet"))
    assert sorted(frame["image_id"]) == sorted(manifest.table["image_id"])
    assert (frame["image"].map(len) == frame["length"]).all()


def test_an_added_size_leaves_the_others_as_they_are(ray, manifest, tmp_path):
    first = prepared(manifest, tmp_path).store.local
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    prepare.prepare(manifest, str(tmp_path / "runs"), [16, 32], say=quiet)
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_qualities_stand_beside_each_other_and_cost_what_they_should(ray, manifest, tmp_path):
    made = {
        q: prepare.prepare(manifest, str(tmp_path / "runs"), [32], say=quiet, quality=q)[0]
        for q in (50, QUALITY, LOSSLESS)
    }
    assert len({shards.store.uri for shards in made.values()}) == 3
    sizes = [shards.summary["bytes"] for shards in made.values()]
    assert sizes == sorted(sizes)


def test_images_exported_from_monochrome1_are_inverted(ray, manifest, tmp_path):
    plain = prepared(manifest, tmp_path)
    table = manifest.table.assign(photometric=pd.array(["MONOCHROME1"] + [None] * 23, "str"))
    turned = prepared(dataclasses.replace(manifest, table=table), tmp_path)
    assert turned.summary["converted"] == {"inverted": 1}

    def pixels(shards, image_id):
        where = shards.index().loc[image_id]
        return decode.decode(shards.store.read(where["file"])[where["offset"] :][: where["length"]])[0].astype(int)

    assert np.abs(pixels(plain, "i000") + pixels(turned, "i000") - 255).max() < 12
    assert (pixels(plain, "i001") == pixels(turned, "i001")).all()


def test_an_estimate_is_near_what_is_then_written(ray, manifest, tmp_path):
    found = estimate(manifest, [16, 32], [QUALITY])
    shards = prepare.prepare(manifest, str(tmp_path / "runs"), [16, 32], say=quiet)
    for each in shards:
        estimated, seconds, decibel = found.kinds[each.size, QUALITY]
        assert estimated == pytest.approx(each.summary["bytes"], rel=0.05)
        assert seconds > 0
        assert decibel > 30
    assert found.original_bytes == sum(path.stat().st_size for path in (tmp_path / "images").iterdir())


def test_a_disk_that_will_not_hold_the_shards_is_refused_before_they_are_made(ray, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "free", lambda _: 100)
    with pytest.raises(CxrltError, match=r"need about .* and .* has 0.1 KB free"):
        prepared(manifest, tmp_path)


def test_an_object_store_takes_shards_and_gives_them_back(ray, manifest, tmp_path):
    from cxrlt_ray.data import stream

    (tmp_path / "bucket").mkdir()
    shards = prepare.prepare(manifest, f"file://{tmp_path}/bucket", [32], say=quiet)[0]
    ids = manifest.of_split("train").table["image_id"].to_numpy()
    found = np.concatenate([batch.image_id for batch in stream.batches(shards, ids, 32, 5, seed=0)])
    assert sorted(found) == sorted(ids)


def test_of_a_shard_in_an_object_store_its_tables_are_read_and_not_its_pixels():
    """At the challenge's size these are 40 GB, which preparing would fetch to write its index."""
    images = [np.random.default_rng(k).bytes(100_000) for k in range(20)]
    rows = pd.DataFrame({"image": images, "image_id": [f"i{k}" for k in range(20)], "reason": ""})
    with server.served("bucket") as s3:
        store = Store("s3://bucket/shards")
        store.write("train-00000.parquet", pack(rows))
        s3.sent = 0
        found = prepare._read_columns(store, "train-00000.parquet", ["image_id", "reason", "hash"])
        assert found["image_id"].tolist() == rows["image_id"].tolist()
        assert (found["reason"] == "").all()
        assert found["hash"].isna().all()
        assert 0 < s3.sent < 200_000
        with pytest.raises(NotThere, match=r"train-00001\.parquet cannot be read"):
            prepare._read_columns(store, "train-00001.parquet", ["image_id"])


def test_dicom_without_its_package_is_refused_before_anything_starts(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(originals, "find_spec", lambda _: None)
    table = manifest.table.assign(path="a.dcm")
    with pytest.raises(UsageError, match=r"cxrlt-ray\[dicom\]"):
        prepared(dataclasses.replace(manifest, table=table), tmp_path)


@pytest.mark.parametrize("text", ["", "a", "8", "224,", "224;384", "9999"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="--sizes"):
        parse_sizes(text)


def test_estimate_prints_a_row_for_each_size_and_quality_and_makes_nothing(tmp_path, capsys):
    manifest = write_images(tmp_path / "images", 8)
    manifest.table[["image_id", "path", "subject_id", "Mass"]].to_csv(tmp_path / "images" / "labels.csv", index=False)
    command.main(str(tmp_path / "images"), sizes="16,32", storage=str(tmp_path / "runs"), estimate_only=True)
    told = capsys.readouterr().out
    assert told.count("lossless") == told.count("q90") == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("share", [5, -0.1, float("nan")])
def test_what_is_no_share_of_bad_images_is_refused(manifest, tmp_path, share):
    with pytest.raises(UsageError, match="--max-bad is a share from 0 to 1"):
        prepared(manifest, tmp_path, max_bad=share)
