"""Images as bytes of a file, as readers and decoders meet them."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest


def encoded(image, suffix=".jpg", quality=95):
    return cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else [])[1].tobytes()


def dicom(image, photometric="MONOCHROME2", **tags):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom.dataset import FileMetaDataset

    file = pydicom.Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file.PhotometricInterpretation, file.SamplesPerPixel = photometric, 1
    file.Rows, file.Columns = image.shape
    file.BitsAllocated = file.BitsStored = image.dtype.itemsize * 8
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, 0
    file.PixelData = image.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def tiff(values, bits, photometric=1, sample_format=1):
    """An uncompressed TIFF of [H, W] `values` of `bits` each, packed; photometric 0: white is zero."""
    height, width = values.shape
    if bits % 8:
        digits = (values[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
        data = b"".join(np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in digits)
    else:
        data = np.ascontiguousarray(values).tobytes()
    shorts = {258: bits, 259: 1, 262: photometric, 277: 1, 339: sample_format}
    longs = {256: width, 257: height, 273: 0, 278: height, 279: len(data)}
    longs[273] = start = 8 + 2 + 12 * (len(shorts) + len(longs)) + 4
    entries = [
        struct.pack("<HHII", tag, 3 if tag in shorts else 4, 1, value)
        for tag, value in sorted((shorts | longs).items())
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    assert len(head) == start
    return head + data
