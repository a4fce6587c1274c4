"""The shim's end of one link: a non-blocking socket, frames in and out, signs of life.

Knows what is on its way, not what it means: that is shim.py.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bridge import link
from bridge.child import Child
from bridge.dial import Secure
from bridge.dispatch import Lane, Pending

if TYPE_CHECKING:
    import ssl

READ = 256 * 1024
MAX_QUEUE = 10_000  # frames; only reports can be that many, requests keep to the grant
WANT_READ, WANT_WRITE = "SSLWantReadError", "SSLWantWriteError"
WRITE_AT_ONCE = 1 << 20  # then others get their turn
FILLER = memoryview(bytes(READ))
DOUBT = 1.0  # seconds for an answer to a ping; without one others are asked first


class LinkEnd:
    """One bridge, as a stream."""

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        now: float,
        *,
        child: Child | None = None,
        secure: Secure | None = None,
    ) -> None:
        self.socket = sock
        self.name = name  # where it leads, for the log
        self.child = child
        self.lane = Lane()
        self.up = False  # it has said hello
        self.since = now  # when it was begun
        self.heard = now  # the last sign of life
        self.pinged: float | None = None  # when a ping was queued that has no answer
        self._ping_waits = False  # for what was queued before it
        self._reader = link.FrameReader(max_body=link.MAX_BODY)
        self._out: deque[Iterator[bytes | memoryview]] = deque()
        self._piece: memoryview | None = None
        self._secure = secure  # makes TLS of the stream, once it is connected
        self._tls: ssl.SSLSocket | None = None
        self._ready = secure is None  # nothing goes out before the handshake is over
        self._stalled = False  # TLS must read before it can write
        self.say("hello", version=link.VERSION, name=f"{os.uname().nodename}/{os.getpid()}")

    def send(self, header: link.Header, body: Iterator[bytes | memoryview], item: Pending) -> None:
        """Queue a request whose body comes from an iterator."""
        self._out.append(_frame(link.encode(header, item.size), body, item))

    def report(self, header: link.Header) -> None:
        """Queue a report."""
        self._out.append(iter((link.encode(header),)))

    def say(self, kind: str, **values: object) -> None:
        """Queue a frame without a body."""
        self._out.append(iter((link.encode({"kind": kind, **values}),)))

    def ping(self, now: float) -> None:
        """Ask for a sign of life."""
        self.pinged, self._ping_waits = now, True
        self._out.append(self._ping())

    def _ping(self) -> Iterator[bytes]:
        yield link.encode({"kind": "ping"})
        self._ping_waits = False

    def doubtful(self, now: float) -> bool:
        """Is a ping without an answer?"""
        return self.pinged is not None and now - self.pinged > DOUBT

    @property
    def secured(self) -> bool:
        """Has it TLS?"""
        return self._tls is not None

    @property
    def wants_write(self) -> bool:
        """Is there something to write?"""
        return not self._stalled and (bool(self._out) or self._piece is not None)

    @property
    def crowded(self) -> bool:
        """Is so much queued that a report had better be left out?"""
        return len(self._out) > MAX_QUEUE

    def write(self, now: float) -> None:
        """Write what the socket takes.  OSError when the link is gone; after anything else it is
        out of step."""
        written = 0
        while written < WRITE_AT_ONCE and self._established():
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
            except OSError as error:
                if self._must_wait(error, writing=True):
                    return
                raise
            if self._ping_waits:  # a long message is on its way, and the ping behind it
                self.heard = now
            written += sent
            self._piece = self._piece[sent:] if sent < len(self._piece) else None

    def read(self, now: float) -> Iterator[link.Frame]:
        """Read once: the frames that are complete.  EOFError at its end, OSError or LinkError
        when the link is gone or nonsense; after anything else it is out of step."""
        self._stalled = False
        if not self._established():
            return
        while True:
            try:
                data = self.socket.recv(READ)
            except OSError as error:
                if self._must_wait(error):
                    return
                raise
            if not data:
                raise EOFError
            self.heard, self.pinged = now, None
            yield from self._reader.feed(data)
            if self._tls is None or not self._tls.pending():  # what no poll would tell of
                return

    def _established(self) -> bool:
        """Connected, and the handshake over where there is TLS.  OSError if it failed."""
        if self._ready:
            return True
        if self._tls is None:
            if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            try:
                self.socket.getpeername()
            except OSError:  # still on its way
                return False
            assert self._secure is not None
            self.socket = self._tls = self._secure(self.socket)
        try:
            self._tls.do_handshake()
        except OSError as error:
            if self._must_wait(error, writing=True):
                return False
            raise
        self._ready = True
        return True

    def _must_wait(self, error: OSError, *, writing: bool = False) -> bool:
        """Is it no error, but a call that would have waited?"""
        word = type(error).__name__  # by name: ssl is not imported where no link has TLS
        if writing and word == WANT_READ:
            self._stalled = True
        return isinstance(error, BlockingIOError) or word in (WANT_READ, WANT_WRITE)

    def close(self) -> None:
        """Close the stream."""
        self._out.clear()
        self.socket.close()


def _frame(
    head: bytes, body: Iterator[bytes | memoryview], item: Pending
) -> Iterator[bytes | memoryview]:
    """A frame is always as long as it said, or all that follows would be misread: what is
    missing (the client is gone and its message was dropped, or it could not be read) is filled
    up, and the request says that it was."""
    left = item.size
    try:
        yield head
        for piece in body:
            yield piece[:left]
            left -= min(len(piece), left)
    except Exception:  # noqa: BLE001 whatever it was, the answer would be to something else
        item.torn = True
    if left:
        item.torn = True
    while left:
        filler = FILLER[:left]
        yield filler
        left -= len(filler)
