"""Where a bridge's metrics can be read: the least of an HTTP server, which answers every request
with the same text.  Knows nothing of what is in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

from bridge.config import Endpoint
from bridge.listen import clear_stale

WAIT = 5.0  # seconds for one reader
MAX_HEAD = 16 * 1024  # bytes
MAX_READERS = 16
AGAIN = 2.0  # seconds; a bridge that drains, in whose place we are, still has the port
HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    "Content-Length: {}\r\nConnection: close\r\n\r\n"
)


class Exporter:
    """Listens while it is entered, as soon as it can."""

    def __init__(
        self, endpoints: Sequence[Endpoint], text: Callable[[], str], log: Callable[..., None]
    ) -> None:
        self._endpoints = endpoints
        self._text = text
        self._log = log
        self._listening: list[asyncio.Task[None]] = []
        self._readers = 0

    async def __aenter__(self) -> Self:
        self._listening = [asyncio.create_task(self._listen(each)) for each in self._endpoints]
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self._listening:
            each.cancel()

    async def _listen(self, endpoint: Endpoint) -> None:
        told = ""
        while True:
            try:
                server = await self._server(endpoint)
            except OSError as error:
                why = error.strerror or str(error)
                if why != told:
                    self._log("no-metrics", on=endpoint, error=why)
                    told = why
                await asyncio.sleep(AGAIN)
                continue
            async with server:
                await server.serve_forever()

    async def _server(self, endpoint: Endpoint) -> asyncio.Server:
        if not endpoint.path:
            return await asyncio.start_server(
                self._serve, endpoint.host, endpoint.port, limit=MAX_HEAD
            )
        clear_stale(endpoint.path)
        return await asyncio.start_unix_server(self._serve, endpoint.path, limit=MAX_HEAD)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._readers += 1
        try:
            if self._readers <= MAX_READERS:
                async with asyncio.timeout(WAIT):
                    await reader.readuntil(b"\r\n\r\n")
                    body = self._text().encode("utf-8", "replace")
                    writer.write(HEAD.format(len(body)).encode() + body)
                    await writer.drain()
        except (TimeoutError, ConnectionError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            self._readers -= 1
            writer.close()
