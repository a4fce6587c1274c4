"""Stand-ins that serve from a thread, for what runs an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from bridge.testing.http import Behaviour, Reply, StandIn

PONG = Reply(body=b"pong\r\n", headers=(("Server", "rspamd/3.4"),))
MILTER_PONG = Reply(body=b"pong\r\n", headers=(("Server", "rspamd/2.7 (milter mode)"),))
PAGE = Reply(
    body=b"<!DOCTYPE html><title>Welcome</title>",
    headers=(("Content-Type", "text/html"), ("Server", "nginx")),
)
NOT_FOUND = Reply(404, b"<html>Not Found</html>", (("Content-Type", "text/html"),))
SECONDS = 10.0  # far above what it takes


@contextmanager
def standing_in(*behaviours: str | Behaviour, listen: str = "127.0.0.1:0") -> Iterator[StandIn]:
    """An HTTP service; see bridge.testing.http."""
    ready: Future[tuple[StandIn, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        end = asyncio.Event()
        async with StandIn(*behaviours, listen=listen) as service:
            ready.set_result((service, asyncio.get_running_loop(), end))
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    service, loop, end = ready.result(SECONDS)
    try:
        yield service
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(SECONDS)


@contextmanager
def saying(words: bytes, *, path: str = "", close: bool = False) -> Iterator[str]:
    """A listener that says the same to everyone who connects; where it is, as in
    shim.connect."""
    family = socket.AF_UNIX if path else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(path or ("127.0.0.1", 0))
        listener.listen()
        kept: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):  # closed, at the end
                while True:
                    other, _ = listener.accept()
                    other.sendall(words)
                    if close:
                        other.close()
                    else:
                        kept.append(other)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"unix:{path}" if path else f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)
        for each in kept:
            each.close()
