"""Anatomy keeps its gray levels, whatever else is in the file: borders, labels, hot pixels, windows, photometry."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pictures import encoded, tiff

from cxrlt_ray.data.decode import decode
from cxrlt_ray.data.gray_levels import spread, value_range

RAMP = np.add.outer(np.arange(200), np.arange(160) * 0.5)  # 0..279, as a stand-in for anatomy
GRAY = (RAMP / RAMP.max() * 255).astype(np.uint8)
DEEP = (RAMP / RAMP.max() * 4095).round().astype(np.uint16)  # 12 bits


def changed(**regions):
    """DEEP with rectangles at other values: name=(rows, columns, value)."""
    image = DEEP.copy()
    for rows, columns, value in regions.values():
        image[rows, columns] = value
    return image


OUTLIERS = {
    "a hot pixel": changed(a=(0, 0, 65535)),
    "a burned-in label": changed(a=(slice(5, 9), slice(5, 20), 65535)),
    "a label of many grays": changed(a=(slice(5, 9), slice(5, 20), np.linspace(20_000, 65535, 15).astype(np.uint16))),
    "a border": changed(a=(slice(0, 60), slice(None), 65535)),
    "a border and a label": changed(a=(slice(0, 60), slice(None), 65535), b=(slice(80, 84), slice(5, 20), 40_000)),
}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("name", OUTLIERS)
def test_outliers_do_not_take_the_anatomys_gray_levels(name, suffix):
    image, converted = decode(encoded(OUTLIERS[name], suffix))
    anatomy = OUTLIERS[name] == DEEP
    own = DEEP[anatomy].astype(float)
    wanted = (own - own.min()) / (own.max() - own.min()) * 255
    assert converted == "16 bit"
    assert np.abs(image[anatomy] - wanted).max() <= 1
    assert (image[~anatomy] == 255).all()


def test_a_metal_marker_within_a_detectors_range_is_not_clipped():
    marked = changed(a=(slice(5, 25), slice(5, 25), 7000), b=(slice(8, 12), slice(8, 12), 6000))
    assert value_range(marked) == (0, 7000)
    assert (np.unique(decode(encoded(marked, ".png"))[0][5:25, 5:25]) == [219, 255]).all()


@pytest.mark.parametrize("factor", [1, 16, 257])
def test_an_image_without_outliers_uses_the_range_from_minimum_to_maximum(factor):
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 255, (30, 25), np.uint8), (250, 300), interpolation=cv2.INTER_CUBIC)
    deep = smooth.astype(np.uint16) * factor
    low, high = deep.min(), deep.max()
    wanted = ((deep.astype(np.float32) - low) * (255 / (float(high) - low))).round().astype(np.uint8)
    assert (decode(encoded(deep, ".png"))[0] == wanted).all()
    assert (decode(encoded(smooth, ".png"))[0] == smooth).all()


def test_real_radiographs_have_no_outliers(shared_data):
    files = sorted((shared_data / "nih384").rglob("*.jpg"))[:200]
    for file in files:
        deep = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 16
        assert value_range(deep) == (deep.min(), deep.max())


@pytest.mark.parametrize("values", [[[0, 65535]], [[7, 7]], [[0, 1, 65535]]])
def test_a_mask_and_a_constant_keep_minimum_and_maximum(values):
    values = np.array(values, np.uint16)
    assert value_range(values) == (values.min(), values.max())


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32])
def test_tiffs_of_either_photometry_are_one_image(bits):
    most = 2**bits - 1
    values = np.round(RAMP / RAMP.max() * most).astype(np.int64)
    stored = {bits: values, 8: values.astype(np.uint8), 16: values.astype(np.uint16), 32: values.astype(np.uint32)}[
        bits
    ]
    inverse = (most - values).astype(stored.dtype)
    black, white = decode(tiff(stored, bits, 1))[0], decode(tiff(inverse, bits, 0))[0]
    assert np.abs(black - values / most * 255).max() <= 1
    assert np.abs(black.astype(int) - white).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("full", [1, 255, 65535])
def test_floats_are_read_where_their_range_tells_how(full, dtype):
    values = (GRAY / 255 * full).astype(dtype)
    assert np.abs(decode(tiff(values, 8 * values.itemsize, sample_format=3))[0].astype(int) - GRAY).max() <= 1
    inverse = decode(tiff(full - values, 8 * values.itemsize, 0, 3))
    assert inverse[1] == "inverted"
    assert np.abs(inverse[0].astype(int) - GRAY).max() <= 1


def test_floats_keep_their_stated_range_where_it_shows_something_and_round_off_is_no_range_of_its_own():
    dim = (GRAY / 255 * 0.5).astype(np.float32)
    assert 126 <= decode(tiff(dim, 32, sample_format=3))[0].max() <= 128
    deep = (DEEP / 65535).astype(np.float32)  # 12 bits in what were 16: 16 levels of 0..1
    assert np.abs(decode(tiff(deep, 32, sample_format=3))[0].astype(int) - GRAY).max() <= 1
    beyond = (GRAY / 255 * 1.00001).astype(np.float32)
    assert np.abs(decode(tiff(beyond, 32, sample_format=3))[0].astype(int) - GRAY).max() <= 1


@pytest.mark.parametrize(("low", "high", "sentence"), [(-1, 1, "from -1 to 1"), (0, 1e6, r"from 0 to 1e\+06")])
def test_floats_of_another_range_are_refused_with_it(low, high, sentence):
    values = (GRAY / 255 * (high - low) + low).astype(np.float32)
    with pytest.raises(ValueError, match=f"float32 {sentence}: known ranges are"):
        decode(tiff(values, 32, sample_format=3))


def test_floats_that_are_no_numbers_are_refused():
    values = np.where(GRAY > 200, np.nan, GRAY / 255).astype(np.float32)
    with pytest.raises(ValueError, match="nan"):
        decode(tiff(values, 32, sample_format=3))


def test_the_spread_is_that_of_the_middle_pixels():
    image = np.repeat(np.arange(100, dtype=np.uint8), 10).reshape(10, 100)
    assert spread(image, 0.89) == (5, 94)
    assert spread(np.full((5, 5), 9, np.uint8), 0.99) == (9, 9)
