"""Faults of a storage as sentences: what failed, why, and how to mend it; never with a credential."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from cxrlt_ray.errors import CxrltError

CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS"
DENIED = (
    "access is denied; give credentials that may list, read, write and delete there by the environment "
    f"({CREDENTIALS}) or the machine's role"
)
NO_ANSWER = "no server answers; check the network and, where it is not AWS's, AWS_ENDPOINT_URL"
NO_BUCKET = "there is no such bucket; make it, or name another"
FAULTY = "the server goes on failing; try again later"
FULL = "the disk is full; make room, or give a larger one"


class NotThere(CxrltError):
    """A file to be read is not there."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what a storage refuses into CxrltError: `what`, the reason, and a remedy.

    Raises NotThere, which is one, for a file that does not exist; other exceptions pass as they are.
    """
    try:
        yield
    except CxrltError:
        raise
    except Exception as error:
        if (cause := _system_error(error)) is None:
            raise
        kind = NotThere if isinstance(cause, FileNotFoundError) else CxrltError
        raise kind(f"{what}: {_reason(cause)}.") from None  # pyarrow's own words may hold the id of a key


def _system_error(error: Exception) -> OSError | None:
    """The error as the system's; None where it is none. safetensors names the system's error in words only."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _reason(error: OSError) -> str:
    text = " ".join(str(error).split())
    if error.errno == errno.ENOSPC:
        return FULL
    if error.errno:
        return os.strerror(error.errno)
    if "NO_SUCH_BUCKET" in text or re.search(r"Bucket '.*' not found", text):
        return NO_BUCKET
    fault = re.search(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation: (.*)", text)
    if fault is None:
        return _without_secrets(text).rstrip(".")
    kind, status, operation, message = fault.groups()
    words = (kind, status, message.replace("No response body.", ""))
    details = _without_secrets(f"{operation}: {' '.join(word for word in words if word)}").rstrip(". ")
    if kind in ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "EXPIRED_TOKEN"):
        return f"{DENIED} ({details})"
    if kind == "NETWORK_CONNECTION":
        return f"{NO_ANSWER} ({details})"
    if kind in ("INTERNAL_FAILURE", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "THROTTLING") or (status or "")[:1] == "5":
        return f"{FAULTY} ({details})"
    return details


def _without_secrets(text: str) -> str:
    """`text` without the environment's credentials, and without what looks like the id of a key."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return re.sub(r"\b(?:AKIA|ASIA)[A-Z0-9]{8,}", "***", text)
