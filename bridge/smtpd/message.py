"""The message's bytes as smtpd sends them: lines ended by LF, dot-stuffed, without the
final dot; and the splices that change them on their way back.

Kept as runs of whole lines, never a line at a time.  Never parses a header.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

PIECE = 256 * 1024  # what is handed on at once
# Runs below this are joined: a client that sends a byte at a time makes one of each, and an
# empty line of its own would take 60 bytes.
SMALL = 4096


class Splice(NamedTuple):
    """Replace bytes [start, end) of the message by `new`.  start and end are offsets on line
    starts (or the message's end); `new` is empty or whole lines, dot-stuffed, ended by LF."""

    start: int
    end: int
    new: bytes


class SpliceError(ValueError):
    """Splices that would make something else of the message than a message."""


class Store(Protocol):
    """Where the beginning of a message lies that is not in memory."""

    def read(self, offset: int, length: int) -> bytes:
        """length bytes from offset; OSError if they can't be had."""

    def close(self) -> None:
        """Give the space back."""


class Message:
    """One message on its way through."""

    __slots__ = ("_runs", "_starts", "size", "store", "stored")

    def __init__(self) -> None:
        self._runs: list[bytes] = []  # what is in memory, whole lines each
        self._starts: list[int] = []  # the offset of each run
        self.size = 0  # in bytes, with what is stored
        self.store: Store | None = None  # where the first `stored` bytes are
        self.stored = 0

    @property
    def in_memory(self) -> int:
        """Bytes held in memory."""
        return self.size - self.stored

    def append(self, run: bytes) -> None:
        """Add a run of whole lines."""
        if self._runs and len(self._runs[-1]) + len(run) <= SMALL:
            self._runs[-1] += run
        else:
            self._runs.append(run)
            self._starts.append(self.size)
        self.size += len(run)

    def move(self, append: Callable[[Sequence[bytes]], None]) -> None:
        """Let go of what is in memory once `append` has put it behind what is stored; whatever
        that raises, the message is as it was."""
        runs: list[bytes] = []
        starts: list[int] = []
        append(self._runs)
        self._runs, self._starts, self.stored = runs, starts, self.size

    def drop(self) -> None:
        """Let go of everything; pieces that are being handed on stay whole."""
        self._runs, self._starts = [], []
        self.size = self.stored = 0
        if self.store is not None:
            self.store.close()
            self.store = None

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes | memoryview]:
        """The bytes [start, end) in order, in pieces of any size.  OSError from the store."""
        end = self.size if end is None else end
        while start < min(end, self.stored):
            assert self.store is not None
            yield (piece := self.store.read(start, min(PIECE, min(end, self.stored) - start)))
            start += len(piece)
        runs, starts = self._runs, self._starts
        for index in range(max(bisect_right(starts, start) - 1, 0), len(runs)):
            run, offset = runs[index], starts[index]
            if offset >= end:
                return
            low, high = max(start - offset, 0), min(end - offset, len(run))
            yield run if high - low == len(run) else memoryview(run)[low:high]

    def check(self, splices: Sequence[Splice], longest: int) -> None:
        """SpliceError if one is out of bounds, out of order, not on line starts, or has lines
        that can't be sent; OSError from the store."""
        last = 0
        for start, end, new in splices:
            if not last <= start <= end <= self.size:
                raise SpliceError("splices out of bounds or order")
            if not (self._line_start(start) and self._line_start(end)):
                raise SpliceError("a splice that is not on line starts")
            check_lines(new, longest)
            last = end

    def _line_start(self, offset: int) -> bool:
        if offset == 0:
            return True
        return b"".join(self.pieces(offset - 1, offset)) == b"\n"

    def spliced(self, splices: Sequence[Splice]) -> Iterator[bytes]:
        """The message with its splices, in pieces of any size; splices must be checked."""
        at = 0
        for start, end, new in (*splices, Splice(self.size, self.size, b"")):
            yield from map(bytes, self.pieces(at, start))
            if new:
                yield new
            at = end


def join(message: bytes, splices: Sequence[Splice]) -> bytes:
    """A message that is whole in memory, with its splices."""
    parts: list[bytes] = []
    at = 0
    for start, end, new in splices:
        parts += (message[at:start], new)
        at = end
    return b"".join((*parts, message[at:])) if parts else message


def check_lines(lines: bytes, longest: int) -> None:
    """SpliceError unless these are whole lines, stuffed, free of CR and NUL, none too long."""
    if not lines:
        return
    if not lines.endswith(b"\n"):
        raise SpliceError("new lines without their end")
    if b"\r" in lines or b"\0" in lines:
        raise SpliceError("CR or NUL in new lines")
    stuffed = b"\n" + lines
    if b"\n.\n" in stuffed or stuffed.count(b"\n.") != stuffed.count(b"\n.."):
        raise SpliceError("new lines that are not dot-stuffed")
    if first_too_long(lines, longest) is not None:
        raise SpliceError(f"a new line of over {longest} bytes")


def first_too_long(lines: bytes, longest: int, at: int = 0) -> int | None:
    """Where the first line from `at` on starts that has over `longest` bytes of content, or
    None.  Jumps from line end to line end as far as a line may reach, so that it costs nothing
    per line."""
    size = len(lines)
    while size - at > longest:
        end = lines.rfind(b"\n", at, at + longest + 1)
        if end < 0:
            return at
        at = end + 1
    return None


def break_long(lines: bytes, longest: int) -> tuple[bytes, int]:
    """Break lines of over `longest` bytes by LF and a space: the lines, and how many lines
    were broken."""
    pieces: list[bytes] = []
    broken = done = 0
    step = longest - 1
    while (at := first_too_long(lines, longest, done)) is not None:
        end = lines.find(b"\n", at)
        end = end if end >= 0 else len(lines)
        pieces.append(lines[done : at + longest])
        for start in range(at + longest, end, step):
            pieces += (b"\n ", lines[start : min(start + step, end)])
        done = end
        broken += 1
    return b"".join((*pieces, lines[done:])), broken
