"""Where an image file ends: by its own structure, whatever follows, and not before all of its pixels."""

from __future__ import annotations

import base64
import io
import struct

import cv2
import numpy as np
import pytest
from pictures import dicom, encoded

from cxrlt_ray.data.decode import decode

END = b"\xff\xd9"
# 64 x 96 pixels by libjpeg-turbo's jpegtran -arithmetic, which no library of ours writes
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkIX6ModmpQ&KWMT47pHU`kO^Py"
    "fjP3kU#U06+l&5di<p00saM5C#9*00;pA002J#(qwxdGGku5MGOVqrZT;ukR0>)wqP1bR^J}7E7XLxlF$D2FZmS~qdLMVR~iUDe91@+4FmZhqKT!"
    "#;BtJCv)fT{@Gw`T@M~SkEDkr*On=q+iEkrY{{UhV+HLCnV6}U&gce?GQIUl9zpyvvCPPbuS^6r@x^y}e=3}X!lMv@EBkWL`M_z7Ph?`tG5zUq~R"
    ">`qo9=92=-Y!HWW|S;!E!T>Mt!OneEJc|Mq?(4Q@P1*;CdlG|%qV#7ss^5Ss;s(Ww!{pr*&67B^oSp^#0X9hrt&B3%wPIG)ePeJw%!<1P-i@e=yy"
    "(*uneEuTW;)S0C|RX(1)Y)qdorNt7paN%FVm^{{VEc%7}3|a7PO9M|ntGFjL$~2P(u#<X91*9A^?6t(?v1cCBGyl1=P{lT)V{Da;5?BLCR"
)


def picture(height=300, width=250):
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.random((12, 10), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return (40 + 150 * coarse + 4 * rng.normal(0, 1, (height, width))).clip(0, 255).astype(np.uint8)


def jpeg(colour=False, **options):
    """A JPEG by Pillow, of other options than OpenCV's."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture()).convert("RGB" if colour else "L").save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def with_thumbnail():
    """A JPEG whose EXIF segment holds a whole JPEG, end marker and all."""
    content, thumbnail = jpeg(), encoded(picture(60, 50))
    payload = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + content[2:]


JPEGS = {
    "baseline": jpeg,
    "colour": lambda: jpeg(colour=True),
    "progressive": lambda: jpeg(progressive=True),
    "progressive, colour": lambda: jpeg(colour=True, progressive=True),
    "restart markers": lambda: jpeg(restart_marker_rows=2),
    "thumbnail": with_thumbnail,
    "arithmetic": lambda: ARITHMETIC,
}
TAILS = {"zeros": bytes(5000), "text": b"<metadata/>" * 500, "another picture": encoded(picture(100, 100))}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", JPEGS)
def test_what_follows_the_end_of_a_jpeg_changes_nothing(kind, tail):
    content = JPEGS[kind]()
    for edge in (0, 60):
        assert (decode(content + TAILS[tail], edge)[0] == decode(content, edge)[0]).all()


@pytest.mark.parametrize("edge", [0, 30, 60, 120])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_part_of_a_jpeg_is_truncated_with_an_end_marker_and_without(kind, edge):
    content = JPEGS[kind]()
    header = content.index(b"\xff\xda")
    for share in (0.1, 0.3, 0.5, 0.5 if kind == "arithmetic" else 0.7):  # its last 32 rows cannot be told
        part = content[: header + int((len(content) - header) * share)]
        for cut in (part, part + END, part + bytes(3000), part + END + bytes(3000)):
            with pytest.raises(ValueError, match=r"^truncated$"):
                decode(cut, edge)


def test_a_part_before_a_whole_picture_is_truncated():
    content = jpeg()
    with pytest.raises(ValueError, match="truncated"):
        decode(content[: len(content) // 2] + content)


@pytest.mark.parametrize("level", [0, 127, 128, 129, 255])
def test_a_whole_jpeg_of_one_gray_is_taken_though_missing_pixels_look_like_one(level):
    image = np.full((64, 64), level, np.uint8)
    assert (decode(encoded(image))[0] == image).all()


def test_what_follows_the_end_of_a_png_changes_nothing_and_a_part_is_truncated():
    content = encoded(picture(), ".png")
    for tail in TAILS.values():
        assert (decode(content + tail)[0] == picture()).all()
    for part in (
        content[:-4],
        content[:-12],
        content[: len(content) // 2],
        content[: len(content) // 2] + content[-12:],
    ):
        with pytest.raises(ValueError, match="truncated"):
            decode(part)


def test_a_png_that_lacks_image_data_is_refused_though_it_has_an_end():
    content, position, chunks = encoded(picture(), ".png"), 8, []
    while position < len(content):
        length = 12 + int.from_bytes(content[position : position + 4], "big")
        chunks.append(content[position : position + length])
        position += length
    data = [k for k, chunk in enumerate(chunks) if chunk[4:8] == b"IDAT"]
    kept = [chunk for k, chunk in enumerate(chunks) if k not in data[len(data) // 2 :]]
    with pytest.raises(ValueError, match="not an image"):
        decode(content[:8] + b"".join(kept))


@pytest.mark.parametrize("end", [b"", END])
def test_a_dicom_with_a_part_of_a_jpeg_is_truncated(end):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom.encaps import encapsulate

    def wrapped(content):
        file = pydicom.dcmread(io.BytesIO(dicom(picture())))
        file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        file.PixelData = encapsulate([content])
        file["PixelData"].VR = "OB"
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, file, enforce_file_format=True)
        return buffer.getvalue()

    content = jpeg()
    assert decode(wrapped(content))[0].shape == picture().shape
    with pytest.raises(ValueError, match=r"^truncated$"):
        decode(wrapped(content[: len(content) * 2 // 3] + end))
