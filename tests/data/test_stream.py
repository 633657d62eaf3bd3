import shutil
import tempfile

import numpy as np
import pytest
import s3 as server
from conftest import write_images
from hypothesis import given
from hypothesis import strategies as st

from cxrlt_ray.cluster import node_cache
from cxrlt_ray.cluster.start import start_ray
from cxrlt_ray.data import batching, prepare, stream
from cxrlt_ray.data.batching import pieces, steps
from cxrlt_ray.data.image_transform import AugmentedView
from cxrlt_ray.data.shards import Shards
from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage import Store

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


def test_ray_data_and_threads_give_the_same_pixels(shards):
    options = {"seed": 3, "epoch": 1, "augment": 0.8, "flip": 0.5, "crop": 0.75}
    first, second = (read(shards, ingest=stream.Ingest(engine), **options) for engine in stream.ENGINES)
    assert order(first) == order(second)
    assert all((a.images == b.images).all() for a, b in zip(first, second, strict=True))


def test_an_epoch_entered_in_its_middle_goes_on_as_it_would_have(shards):
    whole = read(shards, seed=1, epoch=4, augment=0.5, flip=0.5)
    for engine in stream.ENGINES:
        rest = read(shards, seed=1, epoch=4, augment=0.5, flip=0.5, start=2, ingest=stream.Ingest(engine))
        assert order(rest) == order(whole[2:])
        assert all((a.images == b.images).all() for a, b in zip(rest, whole[2:], strict=True))


def test_rows_are_places_among_the_ids_asked_for_and_what_was_not_prepared_is_left_out(shards):
    wanted = np.array(["nowhere", *ids(shards)[::-1]], object)
    found = list(stream.batches(shards[1], wanted, SIZE, 7, seed=0))
    assert all((wanted[batch.rows] == batch.image_id).all() for batch in found)
    assert sorted(order(found)) == sorted(ids(shards))


def test_a_crop_is_a_piece_of_the_larger_image_central_without_a_seed(shards):
    (large,) = stream.batches(shards[1], ids(shards), SIZE, 100)
    (centre,) = stream.batches(shards[1], ids(shards), SIZE // 2, 100, crop=0.5)
    assert (centre.images == large.images[:, 8:24, 8:24]).all()
    (random,) = stream.batches(shards[1], ids(shards), SIZE // 2, 100, crop=0.5, seed=0)
    whole = {i: image for i, image in zip(large.image_id, large.images, strict=True)}
    corners = set()
    for image_id, image in zip(random.image_id, random.images, strict=True):
        pieces = np.lib.stride_tricks.sliding_window_view(whole[image_id], image.shape)
        corners.add(tuple(np.argwhere((pieces == image).all(axis=(2, 3)))[0]))
    assert len(corners) > 5


def test_a_flip_mirrors_as_many_images_as_its_probability_says(shards):
    plain = {i: p for batch in read(shards) for i, p in zip(batch.image_id, batch.images, strict=True)}
    for flip, least, most in [(0.0, 0, 0), (0.5, 5, 25), (1.0, 30, 30)]:
        flipped = 0
        for batch in read(shards, seed=0, flip=flip):
            for i, image in zip(batch.image_id, batch.images, strict=True):
                mirrored = (image == plain[i][:, ::-1]).all()
                assert mirrored or (image == plain[i]).all()
                flipped += mirrored
        assert least <= flipped <= most


def test_kept_decoded_images_are_the_same_and_spare_the_shards(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "MEMORY", tmp_path)
    copy = tmp_path / "shards"
    shutil.copytree(shards[1].store.local, copy)
    mine = Shards(Store(str(copy)), SIZE)
    ingest = stream.Ingest(memory=10**7)
    options = {"seed": 0, "augment": 0.5, "ingest": ingest}
    first = list(stream.batches(mine, ids(shards), SIZE, 7, **options))
    for path in copy.glob("train-*.parquet"):
        path.unlink()
    second = list(stream.batches(mine, ids(shards), SIZE, 7, **options))
    plain = read(shards, seed=0, augment=0.5)
    for a, b, c in zip(first, second, plain, strict=True):
        assert (a.images == b.images).all()
        assert (a.images == c.images).all()


def test_where_memory_is_short_images_that_train_are_kept_before_those_that_are_scored(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "MEMORY", tmp_path)
    training = ids(shards)
    ingest = stream.Ingest(memory=len(training) * (SIZE**2 + 1))  # room for as many as train
    cache = stream._cache(shards[1], ingest.memory)
    assert cache is not None
    assert cache.capacity == len(training)
    for split in ("test", "train"):
        list(stream.batches(shards[1], ids(shards, split), SIZE, 7, ingest=ingest))
    slots = stream._located(shards[1], training)[1].slot
    assert all(cache.get(slot) is not None for slot in slots)


@pytest.fixture
def remote_shards(shards, tmp_path, monkeypatch):
    """The same shards in an S3 bucket; copies of them go below tmp_path/tmp."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with server.served("bucket"):
        store = Store("s3://bucket/shards")
        for path in shards[1].store.local.iterdir():
            store.write(path.name, path.read_bytes())
        yield Shards(store, SIZE)


def test_a_copy_of_a_shard_that_is_evicted_before_it_is_opened_is_fetched_again(shards, remote_shards, monkeypatch):
    """Other sweeps of the machine make room on its disk at any moment."""
    fetch, evicted = node_cache.fetch, set()

    def evict_once(files, file):
        path = fetch(files, file)
        if file not in evicted:
            evicted.add(file)
            path.unlink()
        return path

    monkeypatch.setattr(node_cache, "fetch", evict_once)
    found = list(stream.batches(remote_shards, ids(shards), SIZE, 7))
    assert len(evicted) == remote_shards.index().loc[ids(shards)]["file"].nunique() > 1
    assert all((a.images == b.images).all() for a, b in zip(found, read(shards), strict=True))


def test_a_disk_that_never_holds_a_copy_is_told_and_not_waited_for(shards, remote_shards, monkeypatch):
    fetch = node_cache.fetch

    def evict(files, file):
        path = fetch(files, file)
        path.unlink()
        return path

    monkeypatch.setattr(node_cache, "fetch", evict)
    with pytest.raises(
        CxrltError, match=rf"s3://bucket/shards/train-00000-\w+.parquet .*{tempfile.gettempdir()}.*room"
    ):
        list(stream.batches(remote_shards, ids(shards), SIZE, 7))


def test_a_local_shard_that_is_gone_is_named_with_the_way_to_mend_it(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards[1].store.local, copy)
    gone = next(copy.glob("train-00001-*.parquet"))
    gone.unlink()
    with pytest.raises(CxrltError, match=rf"{gone.name} .*No such file or directory; --resume prepares"):
        list(stream.batches(Shards(Store(str(copy)), SIZE), ids(shards), SIZE, 7))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 4))
def test_steps_cover_an_epoch_once_and_leave_no_rank_idle(images, batch_size, world):
    plan = steps(images, batch_size, world)
    rows = np.concatenate([np.arange(images)[part] for share in plan for part in share])
    assert sorted(rows) == list(range(images))
    assert all(len(share) == world for share in plan)
    if images >= 2 * world:
        sizes = [len(range(images)[part]) for share in plan for part in share]
        assert min(sizes) >= min(2, batch_size // world)
        assert max(sizes) <= batch_size / world + 3


@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_an_order_holds_every_image_once_and_a_window_opens_few_shards_at_a_time(files, each, window, seed):
    file = np.repeat(np.arange(files), each)
    found = batching.order(file, [seed, 0], window)
    assert sorted(found) == list(range(files * each))
    assert batching.order(file, None, window).tolist() == list(range(files * each))
    if window:
        first, last = {}, {}
        for at, row in enumerate(found):
            first.setdefault(file[row], at)
            last[file[row]] = at
        opened = [sum(first[f] <= at <= last[f] for f in first) for at in range(len(found))]
        assert max(opened) <= window + 1


def test_shards_that_a_window_holds_are_shuffled_as_without_one():
    """A trial on an object store is then the one on a disk."""
    file = np.repeat(np.arange(8), 5)
    assert batching.order(file, [3, 0], 8).tolist() == batching.order(file, [3, 0]).tolist()
    assert batching.order(file, [3, 0], 7).tolist() != batching.order(file, [3, 0]).tolist()


def test_a_shuffle_without_window_is_uniform():
    """Each image is as likely at any place, and neighbours in storage end up a third of the epoch apart."""
    images, draws = 60, 400
    file = np.repeat(np.arange(6), 10)
    places = np.array([np.argsort(batching.order(file, [0, epoch])) for epoch in range(draws)])
    counts = np.array([np.bincount(places[:, k] // 10, minlength=6) for k in range(images)])
    assert ((counts - draws / 6) ** 2 / (draws / 6)).sum(axis=1).max() < 30  # chi square, 5 degrees of freedom
    assert np.abs(np.diff(places, axis=1)).mean() == pytest.approx((images + 1) / 3, rel=0.05)


def test_a_ray_client_address_is_refused_with_the_way_to_do_it():
    with pytest.raises(UsageError, match="--address auto"):
        start_ray("ray://head:10001")


def test_batches_of_studies_hold_whole_studies_each_in_one_piece(shards):
    mine = ids(shards)
    study = np.random.default_rng(0).integers(0, 12, len(mine))
    for seed in (None, 4):
        found = list(stream.batches(shards[1], mine, SIZE, 3, seed=seed, study=study))
        for batch in found:
            codes = study[batch.rows]
            runs = 1 + (np.diff(codes) != 0).sum()
            assert runs == len(set(codes)) <= 5
            assert all((study == code).sum() == (codes == code).sum() for code in codes)
        assert sorted(order(found)) == sorted(mine)
    orders = [order(stream.batches(shards[1], mine, SIZE, 3, seed=s, study=study)) for s in (4, 5)]
    assert orders[0] != orders[1]


def test_both_engines_make_the_same_batches_of_studies(shards, ray):
    mine = ids(shards)
    study = np.repeat(np.arange(10), 3)
    made = [
        list(stream.batches(shards[1], mine, SIZE, 4, seed=2, study=study, ingest=stream.Ingest(engine)))
        for engine in stream.ENGINES
    ]
    for one, other in zip(*made, strict=True):
        assert (one.rows == other.rows).all()
        assert (one.images == other.images).all()


def test_an_id_may_come_several_times(shards):
    mine = np.repeat(ids(shards)[:10], 3)
    found = list(stream.batches(shards[1], mine, SIZE, 7, seed=0))
    rows = np.concatenate([batch.rows for batch in found])
    assert sorted(rows) == list(range(30))
    assert all((mine[batch.rows] == batch.image_id).all() for batch in found)


def test_only_strong_images_are_augmented_with_the_strength_for_them(shards):
    mine = ids(shards)
    strong = np.arange(len(mine)) % 3 == 0
    plain = {i: p for b in read(shards, seed=0) for i, p in zip(b.image_id, b.images, strict=True)}
    changed = {
        i: p
        for b in stream.batches(shards[1], mine, SIZE, 7, seed=0, strong=strong, strength=1.0)
        for i, p in zip(b.image_id, b.images, strict=True)
    }
    differ = np.array([(plain[i] != changed[i]).any() for i in mine])
    assert not differ[~strong].any()
    assert differ[strong].mean() > 0.5


def test_looks_are_crops_of_the_resized_image_at_their_places(shards):
    mine = ids(shards)[:5]
    looks = [AugmentedView(SIZE), AugmentedView(SIZE, 0.8), AugmentedView(SIZE, 0.8, (0.0, 1.0))]
    plain, centre, corner = (
        np.concatenate(each) for each in zip(*stream.stream_views(shards[1], mine, looks, pieces(5, 2)), strict=True)
    )
    assert plain.shape == centre.shape == corner.shape == (5, SIZE, SIZE)
    whole = {i: p for b in read(shards) for i, p in zip(b.image_id, b.images, strict=True)}
    assert all((plain[k] == whole[i]).all() for k, i in enumerate(mine))
    edge = round(SIZE / 0.8)
    from cxrlt_ray.data.decode import resize

    spare = edge - SIZE
    for k in range(5):
        large = resize(plain[k], edge)
        assert (centre[k] == large[spare // 2 : spare // 2 + SIZE, spare // 2 : spare // 2 + SIZE]).all()
        assert (corner[k] == large[:SIZE, spare:]).all()
