"""A server with OpenAI's API for tests: it answers as a function says, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Answer = Callable[[dict[str, Any], int], Awaitable[web.StreamResponse]]


class ChatServer:
    """Runs in a thread while its context lasts.

    answer: of a request's body and its number. bodies, headers: of all requests. most: requests at a time at most.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer, self.bodies, self.headers, self.most = answer, [], [], 0
        self._now, self._loop, self._started = 0, asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = ""

    def __enter__(self) -> ChatServer:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            return await self.answer(self.bodies[-1], len(self.bodies) - 1)
        finally:
            self._now -= 1


@contextmanager
def other_process(delay: float) -> Iterator[str]:
    """The URL of a server in a process of its own, which answers as `reads` after `delay` seconds."""
    with subprocess.Popen([sys.executable, __file__, str(delay)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def report_of(body: dict[str, Any]) -> str:
    """The report in a request."""
    return re.search(r"<report>\n(.*)\n</report>", body["messages"][-1]["content"], re.S)[1]


def finding_of(body: dict[str, Any]) -> str:
    """The finding that a request asks for."""
    return re.search(r"</report>\n\nFinding: (.*)", body["messages"][-1]["content"])[1]


def reply(fields: dict[str, Any] | str, finish_reason: str = "stop") -> web.Response:
    """A completion with `fields` as its JSON, or a text as it is."""
    content = fields if isinstance(fields, str) else json.dumps(fields)
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content}}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


async def reads(body: dict[str, Any], number: int = 0) -> web.StreamResponse:
    """The answer of a model that looks for the finding's name, and for 'no' before it."""
    match = re.search(rf"(no |possible )?\b{finding_of(body)}\b", report_of(body), re.I)
    if match is None:
        return reply({"evidence": "", "label": "not_mentioned"})
    label = {None: "present", "no ": "absent", "possible ": "uncertain"}[match[1] and match[1].lower()]
    return reply({"evidence": match[0], "label": label})


if __name__ == "__main__":

    async def later(body: dict[str, Any], number: int) -> web.StreamResponse:
        await asyncio.sleep(float(sys.argv[1]))
        return await reads(body)

    with ChatServer(later) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(60)
