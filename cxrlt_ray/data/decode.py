"""Bytes of an image file to gray pixels: JPEG, PNG, TIFF and the other formats of OpenCV, and DICOM.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its edge where that suffices for the size asked for: libjpeg then
transforms fewer coefficients, 3.1 to 3.5 times as fast as torchvision's way, at 51 to 53 dB of the whole
image averaged down (benchmarks/prepare.py). What remains is area interpolation.

Files are not trusted: an image's size is read from its header first, and one of more than MAX_PIXELS is refused before
a decoder allocates memory for it.
"""

from __future__ import annotations

import io
import warnings
import zlib
from typing import Any

import numpy as np

DICOM_SUFFIXES = (".dcm", ".dicom")
GRAINY = 0.25  # bytes a pixel (MIMIC-CXR-JPG: 0.18); where grain is to be averaged, a reduced decode needs a spare 2
REDUCTIONS = (8, 4, 2)
MAX_PIXELS = 2**27  # 134 million: 8 times the largest detectors' and twice a film's at 50 micrometres
MAX_BYTES = 8 * MAX_PIXELS  # of a file, and of a deflated one's content: 16 bits of four channels
NO_IMAGE = "not an image that OpenCV decodes"


def decode(content: bytes, edge: int = 0, inverted: bool = False) -> tuple[np.ndarray, str]:
    """An encoded image as uint8 gray [H, W], and what had to be converted ('', 'colour', '16 bit', 'inverted').

    edge: the longest edge in pixels it will be resized to; 0 keeps every pixel. inverted: bright is low, as in
    an image that was exported from MONOCHROME1 (DICOM files say so themselves).
    Raises ValueError saying why it cannot be decoded. OpenCV decodes a truncated file without an error,
    hence the search for its end marker.
    """
    if not content:
        raise ValueError("empty file")
    if content[128:132] == b"DICM":
        image, converted = _dicom(content)
    elif content.startswith(b"\xff\xd8"):
        if b"\xff\xd9" not in content[-1024:]:
            raise ValueError("truncated")
        _check_size(*_stated_size(content))
        image, converted = _jpeg(content, edge)
    else:
        if content.startswith(b"\x89PNG") and b"IEND" not in content[-1024:]:
            raise ValueError("truncated")
        _check_size(*_stated_size(content))
        image, converted = _opencv(content)
    if inverted:
        return ~image, "inverted"
    return image, converted


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W] to [size, size]: area interpolation down, linear up."""
    import cv2

    if image.shape == (size, size):
        return image
    down = min(image.shape) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if down else cv2.INTER_LINEAR)


def reduction(height: int, width: int, length: int, edge: int) -> int:
    """By how much (1, 2, 4, 8) a JPEG of `length` bytes may be reduced in decoding, to be resized to `edge` pixels."""
    if not edge:
        return 1
    spare = 2 if length > GRAINY * height * width else 1
    return next((by for by in REDUCTIONS if min(height, width) // by >= edge * spare), 1)


def _jpeg(content: bytes, edge: int) -> tuple[np.ndarray, str]:
    import cv2

    height, width, channels = _frame(content)
    by = reduction(height, width, len(content), edge) if channels in (1, 3) else 1
    if by == 1:
        return _opencv(content)
    flag = getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{by}")
    # as it is stored, like Pillow and torchvision: radiographs have no orientation in EXIF
    return _decoded(content, flag | cv2.IMREAD_IGNORE_ORIENTATION), "colour" if channels == 3 else ""


def _decoded(content: bytes, flags: int) -> np.ndarray:
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(NO_IMAGE)
    return image


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,} in all")


def _stated_size(content: bytes) -> tuple[int, int]:
    """Height and width that the header of an image file states. Raises ValueError where there is none."""
    if content.startswith(b"\x89PNG"):
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    if content.startswith(b"\xff\xd8") and all(size := _frame(content)[:2]):
        return size
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its bound is a third lower
            width, height = Image.open(io.BytesIO(content)).size
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels in all") from None
    except Exception:  # Pillow's readers raise anything for a broken file
        raise ValueError(NO_IMAGE) from None
    return height, width


def _frame(content: bytes) -> tuple[int, int, int]:
    """Height, width and channels that a JPEG's frame header states; zeros where none is found."""
    position = 2
    while position + 9 < len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # padding, or a marker without a length
            position += 1 if marker == 0xFF else 2
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # the last: JPEG-LS
            height, width = (int.from_bytes(content[position + k : position + k + 2], "big") for k in (5, 7))
            return height, width, content[position + 9]
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return 0, 0, 0


def _opencv(content: bytes) -> tuple[np.ndarray, str]:
    import cv2

    image = _decoded(content, cv2.IMREAD_UNCHANGED)
    converted = ""
    if image.ndim == 3:
        if image.shape[2] > 1:
            image = cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
            converted = "colour"
        else:
            image = image[..., 0]
    if image.dtype == np.uint8:
        return image, converted
    if image.dtype != np.uint16:
        raise ValueError(f"pixels of type {image.dtype}")
    return _to_8_bit(image), "16 bit"


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    """The used range to 0..255, since 10- and 12-bit radiographs come in 16-bit files."""
    low, high = float(image.min()), float(image.max())
    scaled = (image.astype(np.float32) - low) * (255 / max(high - low, 1e-9))
    return scaled.round().astype(np.uint8)


def _dicom(content: bytes) -> tuple[np.ndarray, str]:
    """A DICOM file's first frame as it is meant to be displayed: modality and VOI transforms, MONOCHROME1 inverted."""
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise ValueError("DICOM needs pydicom: pip install 'cxrlt-ray[dicom]'") from None
    import cv2

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header, which names the patient
            _check_inflated(content)
            file = pydicom.dcmread(io.BytesIO(content))
            _check_claims(file)
            pixels = file.pixel_array
            displayed = pixels if pixels.ndim == 3 else apply_voi_lut(apply_modality_lut(pixels, file), file)
    except Exception as error:  # pydicom and its plugins raise anything for a broken file
        raise ValueError(f"not a DICOM file that pydicom decodes ({' '.join(str(error).split())[:120]})") from None
    photometric = str(file.get("PhotometricInterpretation", ""))
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8 or "RGB" not in photometric:
            raise ValueError(f"colour DICOM of {pixels.dtype} in {photometric}")
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), "colour"
    image = _to_8_bit(displayed)
    if photometric == "MONOCHROME1":
        return ~image, "inverted"
    return image, "" if pixels.dtype == np.uint8 else "16 bit"


def _check_inflated(content: bytes) -> None:
    """Raise ValueError for a deflated file of more than MAX_BYTES, which pydicom would unpack whole."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    stream = io.BytesIO(content)
    stream.seek(132)
    header = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if header.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacker.decompress(content[stream.tell() :], MAX_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {MAX_BYTES:,} bytes unpacked")


def _check_claims(file: Any) -> None:
    """Raise ValueError for more frames than one, and for too many pixels by the header or by the compressed image."""
    from pydicom.encaps import generate_frames

    if int(file.get("NumberOfFrames", 1) or 1) > 1:
        raise ValueError("several frames")
    _check_size(int(file.Rows), int(file.Columns))
    if file.file_meta.TransferSyntaxUID.is_encapsulated:
        image = next(generate_frames(file.PixelData, number_of_frames=1))
        if image.startswith(b"\xff\xd8"):
            _check_size(*_frame(image)[:2])
        elif image.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000: the size follows the capabilities
            _check_size(int.from_bytes(image[12:16], "big"), int.from_bytes(image[8:12], "big"))
