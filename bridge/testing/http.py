"""An HTTP service that misbehaves on demand: stands in for rspamd or a signer.

Each request gets the behaviour that is next in `behave`'s list, the last one again and
again.  `python -m bridge.testing.http --listen 127.0.0.1:11333 hang` runs one by itself;
`POST /-/behave` with names in the body switches it.  Never looks into a message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

MAX_HEAD = 1024 * 1024
KEEP = 1000  # of the heads seen
MEGABYTE = bytes(2**20)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came: its head as sent, and its body's bytes."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: str) -> list[bytes]:
        """Of all fields of that name, in any case, in order."""
        wanted = name.lower().encode()
        return [value for field, value in self.headers if field.lower() == wanted]


@dataclass(frozen=True, slots=True)
class Reply:
    """A canned reply.  length: announced, if not the body's own."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    length: int | None = None

    def head(self) -> bytes:
        """Status line and header fields, with the blank line."""
        length = len(self.body) if self.length is None else self.length
        lines = [f"HTTP/1.1 {self.status} Stand-in", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode("latin-1")


Writer = asyncio.StreamWriter
Behaviour = Reply | Callable[[Writer], Awaitable[None]]


async def slam(writer: Writer) -> None:
    """The end of the connection after the request's head, the body unread: what rspamd does
    with a message over its max_message."""


async def deaf(writer: Writer) -> None:
    """The body is never read, and nothing said."""
    await asyncio.get_running_loop().create_future()


async def hang(writer: Writer) -> None:
    """Nothing, for ever."""
    await asyncio.get_running_loop().create_future()


async def close(writer: Writer) -> None:
    """The end of the connection, after the request was read."""


async def reset(writer: Writer) -> None:
    """A TCP reset."""
    writer.transport.abort()


async def slow_head(writer: Writer) -> None:
    """A good reply, a byte a tenth of a second: each read by itself is quick."""
    for byte in Reply().head() + b"{}":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)


async def slow_body(writer: Writer) -> None:
    """A head at once, then a body that never ends, a byte a tenth of a second."""
    writer.write(Reply(length=10_000).head())
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def cut_body(writer: Writer) -> None:
    """Half of what the head announces."""
    writer.write(Reply(body=b'{"action":', length=1000).head() + b'{"action":')
    await writer.drain()


async def huge(writer: Writer) -> None:
    """200 MB, announced."""
    writer.write(Reply(length=200 * len(MEGABYTE)).head())
    for _ in range(200):
        writer.write(MEGABYTE)
        await writer.drain()


async def endless(writer: Writer) -> None:
    """A body without an end and without an announced length."""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(MEGABYTE)
        await writer.drain()


async def endless_head(writer: Writer) -> None:
    """Header fields without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: " + b"x" * 8000 + b"\r\n")
        await writer.drain()


async def not_http(writer: Writer) -> None:
    """What some other service says."""
    writer.write(b"-ERR unknown command\r\n\r\n")
    await writer.drain()


BEFORE_BODY: tuple[Behaviour, ...] = (slam, deaf)
HTML = (("Content-Type", "text/html"),)
BEHAVIOURS: dict[str, Behaviour] = {
    "ok": Reply(body=b'{"action":"no action","score":0.0,"required_score":15.0,"symbols":{}}'),
    "empty": Reply(body=b""),
    "garbage": Reply(body=b"\x00\xff<not json"),
    "500-json": Reply(500, b'{"error":"worker failed","error_domain":"task-error"}'),
    "500-html": Reply(500, b"<html><body>Internal Server Error</body></html>", HTML),
    "502": Reply(502, b"<html>Bad Gateway</html>", HTML),
    "503": Reply(503, b"Service Unavailable", HTML),
    "504": Reply(504, b"Gateway Timeout", HTML),
    "401": Reply(401, b'{"error":"Unauthorized"}'),
    "redirect": Reply(302, b"", (("Location", "http://127.0.0.1:1/"),)),
    "slam": slam,
    "deaf": deaf,
    "hang": hang,
    "close": close,
    "reset": reset,
    "slow-head": slow_head,
    "slow-body": slow_body,
    "cut-body": cut_body,
    "huge": huge,
    "endless": endless,
    "endless-head": endless_head,
    "not-http": not_http,
}


class StandIn:
    """The service, as an async context manager.

    listen: `127.0.0.1:0`, `[::1]:0` or `unix:/path`; url: where it is then; seen: the
    requests, the last `KEEP`; count: all of them; connections: open now.
    """

    def __init__(
        self,
        *behaviours: str | Behaviour,
        listen: str = "127.0.0.1:0",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url = ""
        self.seen: deque[Seen] = deque(maxlen=KEEP)
        self.count = 0
        self._listen = listen
        self._tls = tls
        self._next: deque[Behaviour] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.behave(*behaviours or ("ok",))

    def behave(self, *behaviours: str | Behaviour) -> None:
        """One for each request to come, the last for all more; names are of `BEHAVIOURS`."""
        known = [BEHAVIOURS[b] if isinstance(b, str) else b for b in behaviours]
        if not known:
            raise ValueError("no behaviour given")
        self._next = deque(known)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        if self._listen.startswith("unix:"):
            path = self._listen[5:]
            self._server = await asyncio.start_unix_server(
                self._serve, path, ssl=self._tls, limit=MAX_HEAD
            )
            self.url = self._listen
            return self
        host, _, port = self._listen.rpartition(":")
        self._server = await asyncio.start_server(
            self._serve, host.strip("[]"), int(port), ssl=self._tls, limit=MAX_HEAD
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listen.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._listen[5:])

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            # A client that goes away, also in the middle of its request, is nothing special.
            with contextlib.suppress(OSError, EOFError):
                await self._answer(reader, writer)
        except asyncio.CancelledError:
            pass  # asyncio would log it
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        method, path, headers = _parse(await reader.readuntil(b"\r\n\r\n"))
        length = sum(int(value) for name, value in headers if name.lower() == b"content-length")
        if path == "/-/behave":
            self.behave(*(await reader.readexactly(length)).decode().split())
            behaviour: Behaviour = Reply()
        else:
            behaviour = self._next.popleft() if len(self._next) > 1 else self._next[0]
            body = b"" if behaviour in BEFORE_BODY else await reader.readexactly(length)
            self.count += 1
            self.seen.append(Seen(method, path, headers, body))
        if isinstance(behaviour, Reply):
            writer.write(behaviour.head() + behaviour.body)
            await writer.drain()
        else:
            await behaviour(writer)


def _parse(head: bytes) -> tuple[str, str, list[tuple[bytes, bytes]]]:
    first, *lines = head[:-4].split(b"\r\n")
    method, path, _ = first.decode("latin-1").split(" ")
    fields = [line.partition(b":") for line in lines]
    return method, path, [(name, value.strip()) for name, _, value in fields]


async def _run(listen: str, behaviours: list[str]) -> None:
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    async with StandIn(*behaviours, listen=listen) as stand_in:
        print(stand_in.url, flush=True)
        await done.wait()


def main() -> None:
    """Runs one until SIGTERM; prints its URL first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("behaviours", nargs="*", help=f"of {', '.join(BEHAVIOURS)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.behaviours) - set(BEHAVIOURS):
        parser.error(f"no such behaviour: {', '.join(unknown)}")
    asyncio.run(_run(arguments.listen, arguments.behaviours))


if __name__ == "__main__":
    main()
