"""DICOM files to gray pixels as they are meant to be displayed, by pydicom.

Files as archives write them are read too: without the preamble, without a transfer syntax, with empty attributes or a
window that shows nothing. What holds no single image is named.
"""

from __future__ import annotations

import io
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrlt_ray.data import gray_levels, jpeg
from cxrlt_ray.data.limits import check_size

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = (".dcm", ".dicom")
MAGIC, PREAMBLE = b"DICM", bytes(128)
META_GROUP = b"\x02\x00"  # the first group of a file that lost its preamble
FIRST_GROUPS = (b"\x08\x00", b"\x00\x08")  # of a bare data set, little and big endian
J2K = b"\xff\x4f\xff\x51"
ITEM = b"\xfe\xff\x00\xe0"  # what compressed pixels begin with
DISPLAY = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")


def is_dicom(content: bytes) -> bool:
    """Whether a file is DICOM, with or without its preamble."""
    return content[128:132] == MAGIC or content.startswith((MAGIC, META_GROUP, *FIRST_GROUPS))


def read_dicom(content: bytes, max_bytes: int) -> tuple[np.ndarray, str]:
    """A file's image as uint8 gray [H, W], and what was converted ('', 'colour', '16 bit', 'inverted').

    Modality and VOI transforms are applied, MONOCHROME1 is inverted, padding is black. max_bytes: that a deflated file
    may unpack to. Raises ValueError saying why it cannot be read.
    """
    try:
        import pydicom
        from pydicom.pixels import get_decoder
    except ImportError:
        raise ValueError("DICOM needs pydicom: pip install 'cxrlt-ray[dicom]'") from None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the header, which names the patient
        try:
            content = _with_preamble(content)
            _check_inflated(content, max_bytes)
            file = pydicom.dcmread(io.BytesIO(content), force=True)
        except Exception as error:  # pydicom and its plugins raise anything for a broken file
            raise ValueError(_reason(error)) from None
        _check_kind(file)
        try:
            compressed = _compressed(file)
            _check_claims(file, compressed)
            structure = _structure(file, compressed)
            pixels, properties = get_decoder(file.file_meta.TransferSyntaxUID).as_array(file, index=0)
            if structure and jpeg.is_cut_short(compressed, structure, pixels, 1):
                raise ValueError(jpeg.TRUNCATED)
            return _gray(file, pixels, str(properties["photometric_interpretation"]))
        except Exception as error:
            raise ValueError(_reason(error)) from None


def stated_dicom_size(content: bytes, max_bytes: int) -> tuple[int, int]:
    """Height and width that a file's header states. max_bytes and errors: as of `read_dicom`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `read_dicom`
        try:
            import pydicom

            content = _with_preamble(content)
            _check_inflated(content, max_bytes)
            file = pydicom.dcmread(io.BytesIO(content), force=True, stop_before_pixels=True)
            return int(file.Rows), int(file.Columns)
        except Exception as error:  # pydicom raises anything for a broken file
            raise ValueError(_reason(error)) from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return text if text == jpeg.TRUNCATED else f"not a DICOM file that pydicom decodes ({text})"


def _with_preamble(content: bytes) -> bytes:
    if content.startswith(MAGIC):
        return PREAMBLE + content
    return PREAMBLE + MAGIC + content if content.startswith(META_GROUP) else content


def _check_kind(file: Dataset) -> None:
    """Raise ValueError for what holds no single image; fill in a transfer syntax that is not stated."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    pixels = next((name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in file), None)
    if pixels is None:
        kind = getattr(file.get("SOPClassUID"), "name", "")
        raise ValueError(f"a DICOM file without pixels{f' ({kind})' if kind else ''}")
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"a DICOM file of {frames} frames: a radiograph has one")
    if "TransferSyntaxUID" in file.file_meta:
        return
    if file[pixels].value[:4] == ITEM:
        raise ValueError("a DICOM file of compressed pixels without a transfer syntax")
    implicit, little = file.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _check_inflated(content: bytes, most: int) -> None:
    """Raise ValueError for a deflated file of more than `most` bytes, which pydicom would unpack whole."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    start = len(PREAMBLE + MAGIC)
    if content[len(PREAMBLE) : start] != MAGIC:
        return
    stream = io.BytesIO(content)
    stream.seek(start)
    header = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if header.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacker.decompress(content[stream.tell() :], most)
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {most:,} bytes unpacked")


def _compressed(file: Dataset) -> bytes:
    """The image as its compressed file, where it is one; else b""."""
    from pydicom.encaps import generate_frames

    compressed = file.file_meta.TransferSyntaxUID.is_encapsulated
    return next(generate_frames(file.PixelData, number_of_frames=1)) if compressed else b""


def _check_claims(file: Dataset, compressed: bytes) -> None:
    """Raise ValueError for too many pixels by the header or by the compressed image."""
    check_size(int(file.Rows), int(file.Columns))
    if compressed.startswith(jpeg.START):
        check_size(*jpeg.frame_size(compressed)[:2])
    elif compressed.startswith(J2K):  # the size follows the capabilities
        check_size(int.from_bytes(compressed[12:16], "big"), int.from_bytes(compressed[8:12], "big"))


def _structure(file: Dataset, compressed: bytes) -> jpeg.Structure | None:
    """That of a JPEG; None for the other compressions, whose decoders refuse a part of a file themselves."""
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

    is_jpeg = file.file_meta.TransferSyntaxUID in (JPEGBaseline8Bit, JPEGExtended12Bit)
    return jpeg.read_structure(compressed) if is_jpeg else None


def _gray(file: Dataset, pixels: np.ndarray, photometric: str) -> tuple[np.ndarray, str]:
    from pydicom.pixels import apply_color_lut

    if photometric == "PALETTE COLOR":
        pixels, photometric = apply_color_lut(pixels, file), "RGB"
    if pixels.ndim == 3:
        if photometric != "RGB":
            raise ValueError(f"colour DICOM in {photometric}")
        return gray_levels.gray(pixels[..., ::-1])[0], "colour"
    inverted = photometric == "MONOCHROME1"
    padding = _padding(file, pixels)
    image = _displayed(file, pixels, slice(None) if padding is None else ~padding)
    if inverted:
        image = ~image
    if padding is not None:
        image[padding] = 0  # background, as viewers show it
    return image, "inverted" if inverted else "" if pixels.dtype == np.uint8 else "16 bit"


def _displayed(file: Dataset, pixels: np.ndarray, shown: np.ndarray | slice) -> np.ndarray:
    """Monochrome pixels as uint8 by the file's window or VOI LUT, or by their range where it has none of use.

    shown: which pixels count, bool [H, W] or all.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    _leave_out_void(file)
    values = apply_modality_lut(pixels, file)
    used = gray_levels.to_8_bit(values, *gray_levels.value_range(values[shown]))
    windowed = apply_voi_lut(values, file)
    if windowed is values:
        return used
    if "VOILUTSequence" not in file and file.get("RescaleSlope", 1) < 0:
        windowed = -windowed  # pydicom's windows turn the values round with the slope
    stated = gray_levels.to_8_bit(windowed, windowed[shown].min(), windowed[shown].max())
    return used if gray_levels.clearer(stated[shown], used[shown]) else stated


def _leave_out_void(file: Dataset) -> None:
    """Remove attributes that say nothing (empty, a slope of 0, a window without width); of several windows, the first.

    Standard: PS3.3 C.11.2.1.2, where a linear window's width is at least 1 and another's above 0.
    """
    numbers = {name: _first_number(file.get(name)) for name in DISPLAY}
    least = 1 if file.get("VOILUTFunction", "LINEAR") == "LINEAR" else np.nextafter(0, 1)
    slope, intercept, center, width = numbers.values()
    void = [] if slope and intercept is not None else ["RescaleSlope", "RescaleIntercept"]
    if center is None or width is None or width < least:
        void += ["WindowCenter", "WindowWidth"]
    for name in DISPLAY:
        if name in file:
            if name in void:
                del file[name]
            else:
                setattr(file, name, numbers[name])


def _first_number(value: Any) -> float | None:
    """The first of one or several numbers; None where it is none."""
    try:
        number = float(np.atleast_1d(value)[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _padding(file: Dataset, pixels: np.ndarray) -> np.ndarray | None:
    """Where stored pixels are padding, bool [H, W]; None where the file has none, or would have nothing else."""
    value = _stored(file.get("PixelPaddingValue"), pixels.dtype)
    if value is None or pixels.dtype.kind not in "iu":
        return None
    limit = _stored(file.get("PixelPaddingRangeLimit"), pixels.dtype)
    low, high = sorted((value, value if limit is None else limit))
    padding = (pixels >= low) & (pixels <= high)
    shown = pixels[~padding]
    return None if not padding.any() or not shown.size or shown.min() == shown.max() else padding


def _stored(value: Any, dtype: np.dtype[Any]) -> int | None:
    """An attribute's value among stored pixels: files write signed ones as unsigned, and the reverse."""
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little")
    number = _first_number(value)
    return None if number is None else int(np.int64(number).astype(dtype))
