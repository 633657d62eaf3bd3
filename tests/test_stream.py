import numpy as np
import pytest
from conftest import write_images

from cxrlt_ray import prepare, stream
from cxrlt_ray.errors import UsageError

SIZE = 32


@pytest.fixture(scope="module")
def shards(ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    manifest = write_images(folder / "images", 60)
    rows, prepare.SHARD_ROWS = prepare.SHARD_ROWS, 8  # many shards of few images
    try:
        return manifest, prepare.prepare(manifest, str(folder), [SIZE], say=lambda _: None)[0]
    finally:
        prepare.SHARD_ROWS = rows


def ids(shards, split="train"):
    return shards[0].of_split(split).table["image_id"].to_numpy()


def read(shards, **options):
    return list(stream.batches(shards[1], ids(shards), SIZE, 7, **options))


def order(batches):
    return np.concatenate([batch.image_id for batch in batches]).tolist()


def test_each_image_comes_exactly_once_an_epoch(shards):
    for seed in (None, 0):
        assert sorted(order(read(shards, seed=seed))) == sorted(ids(shards))


def test_batches_are_uint8_of_the_asked_size_and_the_last_may_be_smaller(shards):
    found = read(shards)
    assert [len(batch.images) for batch in found] == [7, 7, 7, 7, 2]
    assert {(batch.images.shape[1:], batch.images.dtype) for batch in found} == {((SIZE, SIZE), np.dtype(np.uint8))}


def test_order_and_pixels_follow_from_seed_and_epoch_alone(shards):
    first, second = (read(shards, seed=3, epoch=2, augment=0.8) for _ in range(2))
    assert order(first) == order(second)
    assert all((a.images == b.images).all() for a, b in zip(first, second, strict=True))
    assert order(read(shards, seed=3, epoch=1)) != order(first)
    assert order(read(shards, seed=4, epoch=2)) != order(first)


def test_shuffling_mixes_images_of_different_shards(shards):
    file = shards[1].index()["file"]
    batches = read(shards, seed=0)
    assert max(file[batch.image_id].nunique() for batch in batches) >= 3


def test_an_image_keeps_its_pixels_whatever_its_place(shards):
    plain = {i: p for batch in read(shards) for i, p in zip(batch.image_id, batch.images, strict=True)}
    mixed = {i: p for batch in read(shards, seed=5) for i, p in zip(batch.image_id, batch.images, strict=True)}
    assert all((plain[i] == mixed[i]).all() for i in plain)


def test_augmentation_changes_pixels_and_strength_zero_none(shards):
    plain = {i: p for batch in read(shards, seed=0) for i, p in zip(batch.image_id, batch.images, strict=True)}
    changed = {
        i: p for batch in read(shards, seed=0, augment=1.0) for i, p in zip(batch.image_id, batch.images, strict=True)
    }
    assert sum((plain[i] != changed[i]).any() for i in plain) > len(plain) / 2


def test_workers_share_an_epoch_without_overlap_and_in_equal_steps(shards):
    shares = [read(shards, seed=1, rank=rank, world=2) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    seen = order(shares[0]) + order(shares[1])
    assert len(seen) == len(set(seen)) == 30


def test_a_ray_client_address_is_refused_with_the_way_to_do_it():
    with pytest.raises(UsageError, match="--address auto"):
        stream.start_ray("ray://head:10001")
