"""An S3 server of this process (moto), whose requests a test counts, refuses or holds up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

KEY, SECRET, TOKEN = "AKIATESTING0KEY0", "a+secret/that=nobody&may#see", "a-session-token-that-nobody-may-see"
Fault = Callable[[str, str], int | float | None]


@dataclass
class S3:
    """The server at `url`. requests: (method, path with query) of each that came. sent: bytes of what was asked for."""

    url: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    fault: Fault = lambda method, path: None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know to speak to it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Within it `fault(method, path)` says what becomes of a request: an HTTP status, seconds to wait, or None."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda method, path: None


@contextmanager
def served(*buckets: str) -> Iterator[S3]:
    """A server with these buckets, empty, to which os.environ leads while it is there."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    s3 = S3("http://{}:{}".format(*server.get_host_and_port()))
    server._server.RequestHandlerClass.log_request = lambda *_: None
    server._server.app = _watched(server._server.app, s3)
    before = dict(os.environ)
    os.environ.update(s3.environment)
    try:
        made = fs.S3FileSystem(endpoint_override=s3.url, allow_bucket_creation=True)
        for bucket in buckets:
            made.create_dir(bucket)
        s3.requests.clear()
        yield s3
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


def _watched(application: Any, s3: S3) -> Any:
    def call(environ: dict[str, Any], start_response: Any) -> Any:
        query = environ.get("QUERY_STRING", "")
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"] + (f"?{query}" if query else "")
        s3.requests.append((method, path))
        fault = s3.fault(method, path)
        if isinstance(fault, float):
            time.sleep(fault)
        elif fault is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = {403: "AccessDenied", 503: "SlowDown", 500: "InternalError"}.get(fault, "Fault")
            start_response(f"{fault} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>told so for {KEY}</Message></Error>".encode()]

        def answer(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            s3.sent += int(dict(headers).get("Content-Length", 0)) if method == "GET" else 0
            return start_response(status, headers, *more)

        return application(environ, answer)

    return call
