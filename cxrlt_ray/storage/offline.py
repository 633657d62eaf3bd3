"""The Hugging Face client where its hub cannot be reached: look into the cache only, do not wait for a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def offline_where_the_hub_has_no_address() -> Iterator[None]:
    """Let the hub's client use its cache only, where it would retry for a minute before it gives up."""
    from urllib.parse import urlparse
    from urllib.request import getproxies

    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not getproxies():  # a proxy resolves addresses that this machine cannot
        try:
            socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
