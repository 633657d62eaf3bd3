"""How large an image may be: files are not trusted, and a decoder allocates what their headers state."""

from __future__ import annotations

MAX_PIXELS = 2**27  # 134 million: 8 times the largest detectors' and twice a film's at 50 micrometres
MAX_BYTES = 8 * MAX_PIXELS  # of a file, and of a deflated one's content: 16 bits of four channels


def check_size(height: int, width: int) -> None:
    """Raise ValueError for more than MAX_PIXELS."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,} in all")
