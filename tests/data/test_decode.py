"""Bytes to gray pixels: reduced JPEG decoding against the whole image, and every kind of file."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from pictures import dicom, encoded

from cxrlt_ray.data import decode
from cxrlt_ray.data.estimate import psnr


def radiograph(height=1200, width=1000, grain=0.0, seed=0):
    """A smooth picture with fine structure, as uint8."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((12, 10), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 3)
    image = 40 + 150 * coarse + 40 * fine + grain * rng.normal(0, 1, (height, width))
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("edge", "decibel"), [(100, 48), (224, 50), (384, 50), (512, 50)])
def test_a_reduced_jpeg_is_near_the_whole_one_averaged_down(edge, decibel):
    content = encoded(radiograph())
    small = decode.resize(decode.decode(content, edge)[0], edge)
    whole = decode.resize(decode.decode(content)[0], edge)
    assert psnr(np.square(small.astype(float) - whole).mean()) >= decibel


def test_a_jpeg_is_decoded_smaller_but_never_below_what_is_wanted():
    content = encoded(radiograph(1200, 1000))
    for edge, shape in [(0, (1200, 1000)), (600, (1200, 1000)), (500, (600, 500)), (250, (300, 250)), (60, (150, 125))]:
        assert decode.decode(content, edge)[0].shape == shape


def test_grainy_images_keep_a_spare_factor_so_that_grain_is_averaged_as_in_the_whole_image():
    content = encoded(radiograph(grain=12))
    assert len(content) > decode.GRAINY * 1200 * 1000
    assert decode.decode(content, 250)[0].shape == (600, 500)
    small, whole = (decode.resize(decode.decode(content, edge)[0], 250).astype(float) for edge in (250, 0))
    assert psnr(np.square(small - whole).mean()) >= 45


@pytest.mark.parametrize("progressive", [0, 1])
def test_colour_jpegs_are_reduced_to_their_luminance(progressive):
    gray = radiograph()
    content = cv2.imencode(".jpg", cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[
        1
    ].tobytes()
    image, converted = decode.decode(content, 250)
    assert (converted, image.shape) == ("colour", (300, 250))
    assert np.abs(image.astype(float) - cv2.resize(gray, (250, 300), interpolation=cv2.INTER_AREA)).mean() < 2


def test_an_exif_orientation_changes_nothing_whether_reduced_or_not():
    from PIL import Image

    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(radiograph()).save(buffer, "JPEG", quality=95, exif=exif)
    assert decode.decode(buffer.getvalue())[0].shape == (1200, 1000)
    assert decode.decode(buffer.getvalue(), 250)[0].shape == (300, 250)


def test_palette_rgba_and_gray_png_give_the_same_pixels():
    from PIL import Image

    gray = Image.fromarray(radiograph(60, 50))
    wanted = np.asarray(gray)
    for mode in ("L", "RGB", "RGBA", "P"):
        buffer = io.BytesIO()
        gray.convert(mode).save(buffer, "PNG")
        found, converted = decode.decode(buffer.getvalue(), 20)
        assert np.abs(found.astype(int) - wanted).max() <= 1, mode
        assert converted == ("" if mode == "L" else "colour")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_images_keep_their_order_and_use_the_whole_range(suffix):
    deep = radiograph(60, 50).astype(np.uint16) * 16 + 300
    image, converted = decode.decode(encoded(deep, suffix))
    assert converted == "16 bit"
    assert (image.min(), image.max()) == (0, 255)
    assert np.abs(image.astype(int) - np.interp(deep, (deep.min(), deep.max()), (0, 255))).max() <= 1


def test_an_inverted_export_is_turned_back():
    image = radiograph(60, 50)
    found, converted = decode.decode(encoded(~image, ".png"), inverted=True)
    assert converted == "inverted"
    assert (found == image).all()


def test_dicom_monochrome1_and_2_of_one_radiograph_are_one_image():
    deep = radiograph(60, 50).astype(np.uint16) * 16
    bright, dark = decode.decode(dicom(deep)), decode.decode(dicom(deep.max() - deep, "MONOCHROME1"))
    assert (bright[1], dark[1]) == ("16 bit", "inverted")
    assert np.abs(bright[0].astype(int) - dark[0]).max() <= 1
    assert np.corrcoef(bright[0].ravel(), deep.ravel())[0, 1] > 0.999


def test_a_dicom_whose_lookup_table_is_broken_is_told_as_undecodable(monkeypatch):
    content = dicom(radiograph(60, 50).astype(np.uint16))

    def broken(*_):
        raise NotImplementedError("8 bits allocated are not supported")

    monkeypatch.setattr("pydicom.pixels.apply_voi_lut", broken)
    with pytest.raises(ValueError, match=r"pydicom decodes \(8 bits"):
        decode.decode(content)


def test_a_dicom_window_is_applied():
    ramp = np.tile(np.arange(1000, dtype=np.uint16), (4, 1))
    image = decode.decode(dicom(ramp, WindowCenter=500, WindowWidth=200))[0][0]
    assert (image[:390] == 0).all()
    assert (image[610:] == 255).all()
    assert 100 < image[500] < 155


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (encoded(radiograph(60, 50))[:400], "truncated"),
        (encoded(radiograph(60, 50), ".png")[:400], "truncated"),
        (b"\xff\xd8 not a jpeg \xff\xd9", "not an image"),
        (b"\0" * 128 + b"DICM broken", "DICOM"),
    ],
)
def test_what_cannot_be_decoded_is_told_why(content, told):
    with pytest.raises(ValueError, match=told):
        decode.decode(content, 32)
