"""Images as bytes of a file, as readers and decoders meet them."""

from __future__ import annotations

import io

import cv2
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
