"""One request to a server with OpenAI's API (`POST URL/chat/completions`), and what came of it.

What a server says in a fault's body is not repeated: it may quote the request, which holds the report. Redirections
are not followed: they would take report and key elsewhere.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr

from cxrlt_ray.errors import UsageError
from cxrlt_ray.labelling.llm.pace import retry_after

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}  # statuses that may pass
OF_ONE_REPORT = {400, 413, 422}  # that may be due to the report: it is too long, or the server does not like it
QUOTA = "insufficient_quota"  # OpenAI's 429 that no waiting mends
PLAIN_WORD = r"(?=.{3,40}$)[a-z]+(_[a-z]+)+"  # of a fault, such as model_not_found
LARGEST = 1 << 22  # bytes of a reply that are read


class Refusal(UsageError):
    """The server refuses every request: the run ends."""


class Fault(Exception):
    """A request without an answer; it may be sent again. wait: seconds that the server asks for.

    throttled: it had too many requests.
    """

    def __init__(self, reason: str, wait: float = 0.0, throttled: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.throttled = reason, wait, throttled


class Declined(Exception):
    """The server declines this request and may take others; its one argument is the reason."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote: content, why it ended, and the tokens of prompt and completion (0 where not counted)."""

    content: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


class Endpoint(BaseModel):
    """A server and how it is asked. url: with /v1. parameters: fields of each request. timeout: seconds of a request.

    key_variable: the environment variable that the key is from, for messages.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    model: str
    key: SecretStr | None = None
    key_variable: str | None = None
    parameters: dict[str, Any] = {}
    timeout: float = 120.0
    attempts: int = 6

    @property
    def host(self) -> str:
        """The server's name and port."""
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine by its name."""
        name = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost" or name.endswith(".localhost")

    @property
    def is_encrypted(self) -> bool:
        """Whether requests are encrypted."""
        return self.url.startswith("https://")

    def body(self, messages: list[dict[str, str]], response_format: dict[str, Any]) -> dict[str, Any]:
        """A request's fields; of `parameters` those that are null are left out."""
        fields = {"model": self.model, "messages": messages, "response_format": response_format, **self.parameters}
        return {name: value for name, value in fields.items() if value is not None}


def check_url(url: str) -> str:
    """A server's address without a trailing /. Raises UsageError for what is none, or holds a password."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, good = None, False
    if parts is not None and (parts.username or parts.password or parts.query or parts.fragment):
        raise UsageError("--url holds a user, a password or a query: give the key by --key-variable NAME alone.")
    if not good:
        raise UsageError("--url is no address of a server: give one such as http://localhost:8000/v1.")
    return url.rstrip("/").removesuffix("/chat/completions")


class Client:
    """Requests to an endpoint over kept connections, as an async context manager."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        self.endpoint, self.connections = endpoint, connections
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Client:
        import aiohttp

        key = self.endpoint.key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.connections),
            timeout=aiohttp.ClientTimeout(total=self.endpoint.timeout),
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            trust_env=not self.endpoint.is_local,  # a proxy
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, messages: list[dict[str, str]], response_format: dict[str, Any]) -> Completion:
        """Send one request. Raises Fault, Declined or Refusal."""
        import aiohttp

        assert self._session is not None
        url, body = f"{self.endpoint.url}/chat/completions", self.endpoint.body(messages, response_format)
        try:
            async with self._session.post(url, json=body, allow_redirects=False) as response:
                content = await _read(response)
                if response.status == 200:
                    return _completion(content)
                raise self._problem(response, content)
        except TimeoutError:
            raise Fault(f"no answer in {self.endpoint.timeout:g} s") from None
        except aiohttp.ClientSSLError:
            host = self.endpoint.host
            raise Refusal(
                f"{host} has no certificate that is trusted here: check --url, or set SSL_CERT_FILE."
            ) from None
        except aiohttp.ClientConnectorError:
            raise Fault("no connection") from None
        except (aiohttp.ClientError, OSError):
            raise Fault("connection cut") from None

    def _problem(self, response: ClientResponse, content: bytes) -> Exception:
        """What a status other than 200 means."""
        status, code, host = response.status, _code(content), self.endpoint.host
        shown = f"{status}, {code}" if code else f"{status}"
        if status == 429 and code == QUOTA:
            return Refusal(
                f"{host} refuses further requests ({shown}): the account's quota is used up; raise it there."
            )
        if status in AGAIN:
            return Fault(f"status {status}", retry_after(response.headers), throttled=status == 429)
        if status in OF_ONE_REPORT:
            return Declined(f"request declined ({shown}: text too long, or a field unknown to the server)")
        if status in (401, 403):
            variable = self.endpoint.key_variable
            remedy = (
                f"check the key in {variable}" if variable else "give the variable that holds a key: --key-variable"
            )
            return Refusal(f"{host} refuses access ({shown}): {remedy}.")
        if status == 404:
            return Refusal(f"{host} has no such address or model ({shown}): check --url (with /v1) and --model.")
        return Refusal(f"{host} answers with status {shown}, which no request of ours should get: check --url.")


async def _read(response: ClientResponse) -> bytes:
    """A reply's bytes. Raises Fault for one that is longer than any answer."""
    content = b""
    async for part in response.content.iter_any():
        content += part
        if len(content) > LARGEST:
            raise Fault(f"answer of more than {LARGEST >> 20} MB")
    return content


def _completion(content: bytes) -> Completion:
    """A server's answer. Raises Fault for one that is not of OpenAI's form."""
    try:
        fields = json.loads(content)
        choice = fields["choices"][0]
        text, reason = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Fault("answer is not of OpenAI's form") from None
    usage = fields.get("usage")
    counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    return Completion(text if isinstance(text, str) else None, reason if isinstance(reason, str) else None, *counts)


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) else 0


def _code(content: bytes) -> str:
    """The code or type of a fault's body, where it is a plain word and so no report's text."""
    try:
        error = json.loads(content)["error"]
        words = [error.get("code"), error.get("type")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return next((word for word in words if isinstance(word, str) and re.fullmatch(PLAIN_WORD, word)), "")
