"""The endpoint: HTTP requests to signatures, as an ASGI application (asgi.readthedocs.io, 3.0).

POST /sign and GET /healthz as README.md has them.  Never logs what is in a message or a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dkim_signer import sign
from dkim_signer.keys import Keys, is_domain

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DRAIN_SECONDS = 5.0

log = logging.getLogger("dkim_signer")


class Problem(Exception):
    """A request that gets an error reply: its status, a word for programs, a text for people."""

    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(text)
        self.status, self.kind = status, kind


@dataclass(frozen=True, slots=True)
class Options:
    """token: what clients must send, b"" for none; max_size: bytes of a message; max_requests:
    signed or received at once, more get 503; body_timeout: seconds until a message must be
    here; refresh: seconds between looks at the key directory."""

    token: bytes = field(default=b"", repr=False)
    # smtpd's own limit is 35 MB; what the filters add has to fit too.
    max_size: int = 50 << 20
    max_requests: int = 16
    body_timeout: float = 30.0
    refresh: float = 2.0
    rules: sign.Rules = field(default_factory=sign.Rules)


class App:
    """The ASGI application.  threads: how many signatures are made at once."""

    def __init__(self, keys: Keys, options: Options, threads: int = 2) -> None:
        self._keys, self._options = keys, options
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="sign")
        self._busy = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watcher = asyncio.create_task(self._watch())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watcher.cancel()
        self._threads.shutdown(wait=False)
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        """Take changed keys over."""
        while True:
            await asyncio.sleep(self._options.refresh)
            try:
                changed = await asyncio.to_thread(self._keys.refresh)
            except Exception as error:  # noqa: BLE001 the next look may be luckier
                log.error("keys: %s", type(error).__name__)
                continue
            if changed and self._keys.trouble:
                log.error("keys: %s; the old ones stay in use", self._keys.trouble)
            elif changed:
                log.info("keys: %d in use", self._keys.count)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        request = _Request(scope, receive)
        started = time.monotonic()
        try:
            status, content = await self._route(request)
        except Problem as problem:
            await request.drain(self._options.max_size)
            status, content = problem.status, {"error": problem.kind, "message": str(problem)}
        except Exception as error:  # noqa: BLE001 a bug costs one reply, not the service
            log.error("internal error: %s", type(error).__name__)
            status, content = 500, {"error": "internal", "message": "internal error"}
        if request.path != "/healthz" or status >= 500:
            took = (time.monotonic() - started) * 1000
            log.info("%s status=%d ms=%.0f%s", request, status, took, _outcome(content))
        await _reply(send, status, content)

    async def _route(self, request: _Request) -> tuple[int, Any]:
        method = {"/sign": "POST", "/healthz": "GET"}.get(request.path)
        if method is None:
            raise Problem(404, "not-found", "expected /sign or /healthz")
        if request.method != method:
            raise Problem(405, "method", f"expected {method}")
        return self._health() if method == "GET" else await self._sign(request)

    def _health(self) -> tuple[int, Any]:
        keys = self._keys
        if not keys.count:
            return 503, {"status": "no keys"}
        return 200, {"status": "stale" if keys.trouble else "ok", "keys": keys.count}

    async def _sign(self, request: _Request) -> tuple[int, Any]:
        options = self._options
        if options.token and not _same(request.header("authorization"), options.token):
            raise Problem(401, "unauthorized", "expected the right bearer token")
        if request.header("content-type").partition(";")[0].strip().lower() != "message/rfc822":
            raise Problem(415, "content-type", "expected message/rfc822")
        domain = request.header("dkim-domain").lower()
        if not is_domain(domain):
            raise Problem(400, "domain", "expected a domain name in DKIM-Domain")
        length = request.header("content-length")
        if length.isdecimal() and int(length) > options.max_size:
            raise Problem(413, "too-large", f"expected at most {options.max_size} bytes")
        if self._busy >= options.max_requests:
            raise Problem(503, "busy", "too many requests at once")
        self._busy += 1
        try:
            async with asyncio.timeout(options.body_timeout):
                message = await request.body(options.max_size)
            return await self._signed(message, domain)
        except TimeoutError:
            raise Problem(408, "timeout", "the message took too long to come") from None
        finally:
            self._busy -= 1

    async def _signed(self, message: bytes, domain: str) -> tuple[int, Any]:
        keys = self._keys.of(domain)
        if not keys:
            return 204, None
        loop = asyncio.get_running_loop()
        rules, now = self._options.rules, int(time.time())
        try:
            fields = await loop.run_in_executor(
                self._threads, sign.sign, message, domain, keys, rules, now
            )
        except sign.Unsignable as error:
            raise Problem(422, error.kind, str(error)) from error
        return 200, {"fields": [{"name": name, "value": value} for name, value in fields]}


class _Request:
    """What we want to know of a request.  Its str is its part of the log line."""

    def __init__(self, scope: Message, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.size = 0  # bytes of the body that came
        self._receive = receive
        self._ended = False  # all of it came, or nothing more will
        self._headers: Sequence[tuple[bytes, bytes]] = scope["headers"]

    def header(self, name: str) -> str:
        """A field's value; "" if it is not there, or there twice."""
        values = [value for key, value in self._headers if key == name.encode()]
        return values[0].decode("latin-1").strip() if len(values) == 1 else ""

    async def body(self, limit: int) -> bytes:
        """The whole body; Problem if it is longer or the client went away."""
        body = bytearray()
        async for chunk in self._chunks():
            body += chunk
            if len(body) > limit:
                raise Problem(413, "too-large", f"expected at most {limit} bytes")
        return bytes(body)

    async def drain(self, limit: int) -> None:
        """Let the client finish: one that is cut off while it sends never reads why."""
        with contextlib.suppress(Problem, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self._chunks():
                    if self.size > 2 * limit:
                        return

    async def _chunks(self) -> AsyncIterator[bytes]:
        while not self._ended:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self._ended = True
                raise Problem(400, "disconnected", "the client went away")
            self._ended = not event.get("more_body")
            chunk = event.get("body", b"")
            self.size += len(chunk)
            yield chunk

    def __str__(self) -> str:
        words = {name: self.header(f"dkim-{name}") for name in ("domain", "user", "queue-id")}
        shown = (f"{name}={_shown(value)}" for name, value in words.items() if value)
        return " ".join([_shown(self.method), _shown(self.path), *shown, f"size={self.size}"])


def _shown(text: str) -> str:
    """A client's word in the log."""
    return re.sub(r"[^!-~]", "?", text[:100])


def _outcome(content: Any) -> str:
    match content:
        case {"fields": list(fields)}:
            return f" fields={len(fields)}"
        case {"error": kind}:
            return f" error={kind}"
    return ""


def _same(authorization: str, token: bytes) -> bool:
    """Is it the token?  In a time that does not depend on what is given."""
    scheme, _, given = authorization.partition(" ")
    digests = [hashlib.sha256(x).digest() for x in (given.strip().encode("utf-8"), token)]
    return hmac.compare_digest(*digests) and scheme.lower() == "bearer"


async def _reply(send: Send, status: int, content: Any) -> None:
    body = b"" if content is None else json.dumps(content).encode()
    headers = [(b"content-length", b"%d" % len(body))] if status != 204 else []
    if body:
        headers.append((b"content-type", b"application/json"))
    if status in (400, 401, 405, 408, 413, 415, 503):  # the rest of the message is not wanted
        headers.append((b"connection", b"close"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
