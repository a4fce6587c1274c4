"""The one door out: bytes for smtpd, whole lines, in order.

A message is a stream of pieces that are made when they are asked for, and may fail then.
Memory may end at any step: nothing is lost here, or said twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

CHUNK = 256 * 1024  # about what the socket to smtpd takes at once (208 KiB)

Piece = bytes | memoryview


class Output:
    """What is to be said, until it is."""

    def __init__(self) -> None:
        self._streams: deque[Iterator[Piece]] = deque()
        self._taken: list[Piece] = []  # out of them, for the next bytes
        self._piece: Piece | None = None  # the same, the last one

    def __bool__(self) -> bool:
        return bool(self._streams or self._taken) or self._piece is not None

    def say(self, lines: bytes) -> None:
        """Whole lines."""
        self._streams.append(iter((lines,)))

    def stream(self, pieces: Iterator[Piece]) -> None:
        """Whole lines in pieces; nothing else is said in between."""
        self._streams.append(pieces)

    def next(self) -> bytes:
        """The next bytes, of any size, b"" if there are none.  What was taken is kept until it
        is told."""
        size = sum(map(len, self._taken))
        while size < CHUNK:
            if self._piece is None:
                if not self._streams:
                    break
                self._piece = next(self._streams[0], None)
            if self._piece is None:
                self._streams.popleft()
                continue
            size += len(self._piece)
            self._taken.append(self._piece)
            self._piece = None
        said = b"".join(self._taken)
        self._taken.clear()
        return said
