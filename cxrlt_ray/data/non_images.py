"""What a file is that is no image, though it lies where one should: people can mend what they can name."""

from __future__ import annotations

SIGNATURES = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip-compressed file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
}
HEAD = 1024  # bytes that are looked at
TEXT = bytes({*range(0x20, 0x7F), *b"\t\n\r"})


def named(content: bytes) -> str:
    """What a file is that no decoder takes, with what to do where it is known; '' where it is not."""
    if not content.strip(b"\0"):
        return "nothing but zero bytes, as an interrupted copy leaves"
    for signature, name in SIGNATURES.items():
        if content.startswith(signature):
            return f"{name}, not an image: unpack or convert it"
    head = content[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image: git lfs pull fetches it"
    if b"annex/objects/" in head and b"\n" not in head.strip():
        return "a git-annex pointer, not the image: git annex get fetches it"
    if head.startswith(b"<"):
        kind = "an HTML page" if b"<html" in head or b"<!doctype html" in head else "an XML text"
        return f"{kind}, not an image, as a failed download leaves: fetch it again"
    if head.startswith((b"{", b"[")) and not head.strip(TEXT):
        return "a JSON text, not an image, as a failed download leaves: fetch it again"
    return ""
