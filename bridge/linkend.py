"""The shim's end of one link: a non-blocking socket, frames in and out, signs of life.

Knows what is on its way, not what it means: that is shim.py.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator

from bridge import link
from bridge.child import Child
from bridge.dispatch import Lane

READ = 256 * 1024
MAX_QUEUE = 10_000  # frames; only reports can be that many, requests keep to the grant
WRITE_AT_ONCE = 1 << 20  # then others get their turn


class LinkEnd:
    """One bridge, as a stream."""

    def __init__(self, sock: socket.socket, name: str, now: float, child: Child | None = None):
        self.socket = sock
        self.name = name  # where it leads, for the log
        self.child = child
        self.lane = Lane()
        self.up = False  # it has said hello
        self.since = now  # when it was begun
        self.heard = now  # the last sign of life
        self.pinged: float | None = None  # when a ping went out that has no answer
        self._reader = link.FrameReader(max_body=link.MAX_BODY)
        self._out: deque[Iterator[bytes | memoryview]] = deque()
        self._piece: memoryview | None = None

    def send(self, header: link.Header, body: Iterator[bytes | memoryview], size: int) -> None:
        """Queue a frame whose body of `size` bytes comes from an iterator, padded if short."""
        self._out.append(_frame(link.encode(header, size), body, size))

    def say(self, kind: str, **values: object) -> None:
        """Queue a frame without a body."""
        self._out.append(iter((link.encode({"kind": kind, **values}),)))

    @property
    def wants_write(self) -> bool:
        """Is there something to write?"""
        return bool(self._out) or self._piece is not None

    @property
    def crowded(self) -> bool:
        """Is so much queued that a report had better be left out?"""
        return len(self._out) > MAX_QUEUE

    def write(self, now: float) -> None:
        """Write what the socket takes.  OSError when the link is gone."""
        written = 0
        while written < WRITE_AT_ONCE:
            if self._piece is None:
                if not self._out:
                    return
                piece = next(self._out[0], None)
                if piece is None:
                    self._out.popleft()
                    continue
                self._piece = memoryview(piece)
            try:
                sent = self.socket.send(self._piece)
            except BlockingIOError:
                return
            self.heard = now
            written += sent
            self._piece = self._piece[sent:] if sent < len(self._piece) else None

    def read(self, now: float) -> Iterator[link.Frame]:
        """Read once: the frames that are complete.  EOFError at its end, OSError or LinkError
        when the link is gone or nonsense."""
        try:
            data = self.socket.recv(READ)
        except BlockingIOError:
            return
        if not data:
            raise EOFError
        self.heard, self.pinged = now, None
        yield from self._reader.feed(data)

    def close(self) -> None:
        """Close the stream."""
        self._out.clear()
        self.socket.close()


def _frame(
    head: bytes, body: Iterator[bytes | memoryview], size: int
) -> Iterator[bytes | memoryview]:
    """A frame is always as long as it said, or all that follows would be misread: what is
    missing (the client is gone and its message was dropped) is filled up."""
    yield head
    left = size
    try:
        for piece in body:
            yield piece[:left]
            left -= min(len(piece), left)
    except OSError:  # from a store; the request is failed by whoever asks for its message
        pass
    while left:
        filler = bytes(min(left, READ))
        yield filler
        left -= len(filler)
