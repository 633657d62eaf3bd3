"""Where something that a run was given came from: the file and its digest, as the run records it."""

from __future__ import annotations

import hashlib

from cxrlt_ray.errors import CxrltError, UsageError
from cxrlt_ray.storage.store import Store


def provenance_of(uri: str, option: str) -> str:
    """The file and its digest. Raises UsageError, naming the option that gave it, where it cannot be read.

    option: as it is typed, with its dashes.
    """
    store, name = Store.holding(uri)
    try:
        content = store.read(name)
    except CxrltError as error:
        raise UsageError(f"{option} {uri} cannot be read: {error}") from None
    return f"{uri} (sha256 {hashlib.sha256(content).hexdigest()[:12]})"
