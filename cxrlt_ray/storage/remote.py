"""Connections to object stores: which URIs are taken, and how a file system of pyarrow is opened and kept."""

from __future__ import annotations

import os
import re
from functools import lru_cache

from pyarrow import fs

from cxrlt_ray.errors import UsageError
from cxrlt_ray.storage.messages import CREDENTIALS

ATTEMPTS = 8  # of a request to S3: with their pauses some 40 s
CONNECT, SILENCE = 10.0, 30.0  # seconds until a server that cannot be reached, or says nothing, is given up

Opened = tuple[fs.FileSystem, str]  # a file system, and a path in it


def check_uri(uri: str) -> None:
    """Refuse what would carry a secret into messages and run.json, by UsageError that echoes nothing of it."""
    scheme, separator, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    if not separator or scheme == "file":
        return
    if not bucket:
        raise UsageError(f"{scheme}:// names no bucket: give {scheme}://BUCKET/DIRECTORY.")
    strict = scheme in ("s3", "gs")  # their bucket names have neither : nor @, and a secret may hold a /
    if (":" in bucket and "@" in rest) or (strict and re.search("[:@]", bucket.removeprefix("anonymous@"))):
        raise UsageError(
            f"the URI {scheme}://... has a name or a password before its bucket, which would be told and kept: give "
            f"{scheme}://BUCKET/DIRECTORY, and credentials by the environment ({CREDENTIALS})."
        )
    if "?" in rest:
        raise UsageError(
            f"the URI {scheme}://... has options after a question mark: give {scheme}://BUCKET/DIRECTORY, a server "
            f"other than AWS's by AWS_ENDPOINT_URL, and credentials by the environment ({CREDENTIALS})."
        )


def open_bucket(scheme: str, bucket: str) -> Opened:
    """The process's file system of a bucket, with its connections, and the bucket's path in it.

    It is kept while the environment's credentials stay the same. Connections are not taken over by a fork.
    """
    variables = ("AWS_", "GOOGLE_", "CLOUD_STORAGE_")
    environment = tuple(item for item in os.environ.items() if item[0].startswith(variables))
    return connect(scheme, bucket, os.getpid(), environment)


@lru_cache(maxsize=16)
def connect(scheme: str, bucket: str, process: int, environment: tuple[tuple[str, str], ...]) -> Opened:
    """As `open_bucket`, by process and environment. Raises UsageError for an unknown scheme."""
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        filesystem = fs.S3FileSystem(
            endpoint_override=endpoint,
            region=None if endpoint else _region(bucket),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=CONNECT,
            request_timeout=SILENCE,
            allow_delayed_open=True,  # a small file in one request, not three
        )
        return filesystem, bucket
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}" + ("?retry_limit_seconds=60" if scheme == "gs" else ""))
    except ValueError:
        raise UsageError(f"{scheme}:// is no storage that can be opened: give a directory, s3:// or gs://.") from None


def _region(bucket: str) -> str:
    """The bucket's own region; the environment's where that cannot be asked for."""
    try:
        return fs.resolve_s3_region(bucket)
    except FileNotFoundError:
        raise
    except OSError:
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            return region
        raise


def check_bucket(filesystem: fs.FileSystem, path: str) -> None:
    """Raise OSError where the bucket of `path` does not exist."""
    bucket = path.partition("/")[0]
    if filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
        raise OSError(f"NO_SUCH_BUCKET {bucket}")
