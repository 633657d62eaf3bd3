"""Text as Excel and Windows save it -> UTF-8, where its encoding is beyond doubt.

A byte-order mark says UTF-16 or UTF-8. Without one, text is UTF-8 if it is valid as such; else Western European
(cp1252, of which Latin-1 is a part), if its letters beyond ASCII stand alone among others, as accents do: in
Cyrillic or Chinese they form whole words, and Macintosh puts its accents where cp1252 has control characters and signs.
"""

from __future__ import annotations

import codecs
import re

MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
UTF8, WESTERN = "UTF-8", "cp1252"
LONGEST_WORD = 3  # bytes beyond ASCII in a row, as in an accented name; Chinese and Cyrillic words have more
PUNCTUATION = b"\x80\x85\x91\x92\x93\x94\x95\x96\x97\x99\xa0"  # the euro sign, quotes, dashes ... of cp1252
# signs that stand between letters are letters of another encoding; an apostrophe may, as in Crohn's
IN_A_WORD = re.compile(rb"[a-z][\x80\x85\x93-\x99][a-z]|[a-z]{2}\x92(?!s\b)[a-z]")
ZEROS = 0.05  # share of zero bytes above which it is no text of a byte a letter
BLOCK = 1 << 20
SAVE_AS = "save it as 'CSV UTF-8'"


def as_utf8(content: bytes) -> tuple[bytes, str]:
    """`content` as UTF-8 without a byte-order mark, and the name of the encoding that it had.

    Raises ValueError, with the likely cause, where it is no text or its encoding is in doubt.
    """
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return _decoded(content, encoding), encoding
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.count(0, 0, BLOCK) > ZEROS * len(content[:BLOCK]):
        return _decoded(content, _utf16_without_mark(content)), "UTF-16"
    if content.isascii() or _is_utf8(content):
        return content, UTF8
    _check_western(content)
    return _decoded(content, WESTERN), WESTERN


def as_text(content: bytes) -> str:
    """`content` as text, whatever it is encoded in. Raises ValueError as `as_utf8`."""
    return as_utf8(content)[0].decode()


def _decoded(content: bytes, encoding: str) -> bytes:
    try:
        return content.decode(encoding).encode()
    except UnicodeDecodeError:
        raise ValueError(f"it begins as {encoding} text and does not go on so: is it cut off?") from None


def _utf16_without_mark(content: bytes) -> str:
    """Which UTF-16 it is whose ASCII letters have a zero byte each. Raises ValueError for what is no text."""
    head = content[: BLOCK - BLOCK % 2]
    for encoding, zeros, letters in (("UTF-16-LE", head[1::2], head[::2]), ("UTF-16-BE", head[::2], head[1::2])):
        if zeros.count(0) > 0.8 * len(zeros) and not letters.count(0):
            return encoding
    raise ValueError(f"it is no text (it holds zero bytes): {SAVE_AS}")


def _is_utf8(content: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), BLOCK):
            decoder.decode(content[start : start + BLOCK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _check_western(content: bytes) -> None:
    """Raise ValueError unless text that is not UTF-8 is cp1252 beyond doubt."""
    words = re.findall(rb"[\x80-\xff]+", content)
    if sum(map(_is_utf8, words)) > len(words) / 2:
        raise ValueError(f"it is UTF-8 with some broken characters: {SAVE_AS} again, from its source")
    controls = bytes(range(0x80, 0xA0)).translate(None, PUNCTUATION)
    strange = any(word.translate(None, controls) != word for word in words) or IN_A_WORD.search(content)
    if max(map(len, words)) > LONGEST_WORD or strange:
        raise ValueError(f"it is not UTF-8, and which encoding it has is in doubt: {SAVE_AS}")
