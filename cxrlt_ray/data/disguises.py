"""What a file is that lies where an image or weights should be: people can mend what they can name."""

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
    """What a file is that cannot be read as what it should be, with what to do; '' where that is not known."""
    if not content.strip(b"\0"):
        return "nothing but zero bytes, as an interrupted copy leaves"
    for signature, name in SIGNATURES.items():
        if content.startswith(signature):
            return f"{name}: unpack or convert it"
    head = content[:HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: git lfs pull fetches the file itself"
    if b"annex/objects/" in head and b"\n" not in head.strip():
        return "a git-annex pointer: git annex get fetches the file itself"
    if head.startswith(b"<"):
        kind = "an HTML page" if b"<html" in head or b"<!doctype html" in head else "an XML text"
        return f"{kind}, as a failed download leaves: fetch the file again"
    if head.startswith((b"{", b"[")) and not head.strip(TEXT):
        return "a JSON text, as a failed download leaves: fetch the file again"
    return ""
