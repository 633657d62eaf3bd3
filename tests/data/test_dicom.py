"""DICOM as archives write it: padding, windows that show nothing, colour spaces, headers with parts missing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import dicom
from test_gray_levels import DEEP, GRAY

from cxrlt_ray.data.decode import decode

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")


def near(content, wanted=GRAY, most=1):
    return np.abs(decode(content)[0].astype(int) - wanted).max() <= most


def saved(file, **options):
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, **options)
    return buffer.getvalue()


PADDING = {
    "above": (np.uint16, 65535, {"PixelPaddingValue": 65535}),
    "below": (np.int16, -2000, {"PixelPaddingValue": -2000, "PixelRepresentation": 1}),
    "signed, written as unsigned": (np.int16, -2000, {"PixelPaddingValue": 63536, "PixelRepresentation": 1}),
    "a range": (np.uint16, 62_000, {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 60_000}),
}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("name", PADDING)
def test_padding_is_black_and_out_of_the_range(name, implicit):
    dtype, value, tags = PADDING[name]
    stored = DEEP.astype(dtype)
    stored[:60] = value
    file = pydicom.dcmread(io.BytesIO(dicom(stored, **{k: v for k, v in tags.items() if k == "PixelRepresentation"})))
    for tag, padding in tags.items():
        if tag != "PixelRepresentation":
            vr = "SS" if padding < 0 else "US"
            file.add_new(tag, vr, padding)
    if implicit:
        file.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    image = decode(saved(file, enforce_file_format=True))[0]
    own = DEEP[60:].astype(float)
    assert (image[:60] == 0).all()
    assert np.abs(image[60:] - (own - own.min()) / np.ptp(own) * 255).max() <= 1


def test_padding_of_monochrome1_is_black_too():
    stored = 4095 - DEEP
    stored[:60] = 0
    image = decode(dicom(stored, "MONOCHROME1", PixelPaddingValue=0))[0]
    assert (image[:60] == 0).all()
    assert np.corrcoef(image[60:].ravel(), DEEP[60:].ravel())[0, 1] > 0.999


def test_padding_that_is_all_of_the_image_is_none():
    assert near(dicom(DEEP, PixelPaddingValue=0, PixelPaddingRangeLimit=65535))


VOID = {
    "beside the data": {"WindowCenter": 40_000, "WindowWidth": 100},
    "far too wide": {"WindowCenter": 32_768, "WindowWidth": 65_536},
    "of width 0": {"WindowCenter": 2000, "WindowWidth": 0},
    "of width 1": {"WindowCenter": 2000, "WindowWidth": 1},
    "of a negative width": {"WindowCenter": 2000, "WindowWidth": -400},
    "of width 0, sigmoid": {"WindowCenter": 2000, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
    "of width 0, exact": {"WindowCenter": 2000, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
    "empty": {"WindowCenter": "", "WindowWidth": ""},
    "without a width": {"WindowCenter": 2000},
}


@pytest.mark.parametrize("name", VOID)
def test_a_window_that_shows_nothing_is_left_out(name):
    assert near(dicom(DEEP, **VOID[name]))


@pytest.mark.parametrize("width", [[1001, 0], 1001])
def test_of_several_windows_the_first_counts(width):
    image = decode(dicom(DEEP, WindowCenter=[2000, 100], WindowWidth=width))[0]
    assert np.abs(image - np.interp(DEEP, (1500, 2500), (0, 255))).max() <= 1


@pytest.mark.parametrize(
    "tags", [{"RescaleSlope": "", "RescaleIntercept": ""}, {"RescaleSlope": 0, "RescaleIntercept": 5}]
)
def test_a_rescaling_that_says_nothing_is_left_out(tags):
    assert near(dicom(DEEP, **tags))


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_a_negative_slope_turns_the_values_round_with_a_window_as_without(window):
    assert near(dicom(4095 - DEEP, RescaleSlope=-1, RescaleIntercept=4095, **window))


def test_a_burned_in_label_does_not_take_the_gray_levels():
    labelled = DEEP.copy()
    labelled[5:9, 5:20] = 65535
    image = decode(dicom(labelled))[0]
    assert np.abs(image.astype(int) - GRAY)[labelled == DEEP].max() <= 1


def colour(photometric, data):
    return dicom(GRAY, photometric, SamplesPerPixel=3, PlanarConfiguration=0, PixelData=data)


def test_colour_spaces_give_their_luminance():
    from pydicom.pixels import convert_color_space

    rgb = np.repeat(GRAY[..., None], 3, axis=2)
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    halved = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1)
    for photometric, data in (("RGB", rgb), ("YBR_FULL", ybr), ("YBR_FULL_422", halved)):
        content = colour(photometric, data.tobytes())
        assert decode(content)[1] == "colour"
        assert near(content)
    with pytest.raises(ValueError, match="YBR_PARTIAL_420"):
        decode(colour("YBR_PARTIAL_420", ybr.tobytes()))


def test_a_palette_is_applied():
    inverse = (255 - np.arange(256)).astype(np.uint16) * 257
    tags = {}
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = inverse.tobytes()
    assert near(dicom(255 - GRAY, "PALETTE COLOR", **tags))


def test_files_without_preamble_or_transfer_syntax_are_read():
    content = dicom(DEEP)
    assert near(content[128:])
    assert near(content[132:])
    file = pydicom.dcmread(io.BytesIO(content))
    del file.file_meta.TransferSyntaxUID
    assert near(saved(file, implicit_vr=False, little_endian=True))
    del file.file_meta
    for implicit in (False, True):
        assert near(saved(file, implicit_vr=implicit, little_endian=True))


def test_what_holds_no_single_image_is_named():
    with pytest.raises(ValueError, match="a DICOM file of 3 frames"):
        decode(dicom(DEEP, NumberOfFrames=3, PixelData=DEEP.tobytes() * 3))
    assert near(dicom(DEEP, NumberOfFrames=1))
    file = pydicom.dcmread(io.BytesIO(dicom(DEEP, SOPClassUID=pydicom.uid.EncapsulatedPDFStorage)))
    del file.PixelData
    with pytest.raises(ValueError, match=r"a DICOM file without pixels \(Encapsulated PDF Storage\)"):
        decode(saved(file, enforce_file_format=True))


def test_compressed_pixels_without_a_transfer_syntax_are_named():
    from pydicom.encaps import encapsulate

    file = pydicom.dcmread(io.BytesIO(dicom(GRAY)))
    del file.file_meta.TransferSyntaxUID
    file.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    with pytest.raises(ValueError, match="compressed pixels without a transfer syntax"):
        decode(saved(file, implicit_vr=False, little_endian=True))
