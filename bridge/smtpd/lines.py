"""How bytes from smtpd become lines, and data lines that follow each other one run.

A 1 MiB message is 14,000 lines: no statement runs for each of them here.  Knows where the
parts of a data line are, and nothing else of what lines mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

# smtpd's own longest line is a data line of 65,533 bytes and its prefix; what is longer
# without a LF is no line of smtpd.
MAX_LINE = 256 * 1024
DATA_LINE = b"|smtp-in|data-line|"


class Run(NamedTuple):
    """Data lines of one session.  head: what stands before the content of the first one, up
    to and with the `|`; content: that of all, each ended by LF."""

    head: bytes
    content: bytes


class Overlong(NamedTuple):
    """A line that is none of smtpd's; it was dropped."""

    size: int


class LineReader:
    """Cuts what comes from smtpd, however it comes."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []  # the beginning of a line
        self._size = 0  # of that line so far, counted on when it is dropped
        self._middle = slice(28, 81)  # `|smtp-in|data-line|ID|TOKEN|` in a data line; learnt

    def feed(self, data: bytes) -> Iterator[bytes | Run | Overlong]:
        """The lines, without LF, and runs that these bytes complete."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return
        if self._size:
            first = data.index(b"\n") + 1
            self._keep(data[: first - 1])
            begun, size = b"".join(self._partial), self._size
            data, end = data[first:], end - first
        else:
            begun, size = b"", 0
        # The state is right before anybody sees a line: what a reader of them does, or raises,
        # can't put the stream out of step.
        self._partial.clear()
        self._size = 0
        self._keep(data[end:])
        if size > MAX_LINE:
            yield Overlong(size)
        elif size:
            yield from self._cut([begun])
        lines = data[:end].split(b"\n")
        lines.pop()
        yield from self._cut(lines)

    def _keep(self, rest: bytes) -> None:
        self._size += len(rest)
        if self._size > MAX_LINE:
            self._partial.clear()
        elif rest:
            self._partial.append(rest)

    def _cut(self, lines: list[bytes]) -> Iterator[bytes | Run]:
        """Data lines of one session are alike between their timestamp and their content, which
        is what makes them one run."""
        at = self._middle
        content = itemgetter(slice(at.stop, None))
        for middle, group in groupby(lines, itemgetter(at)):
            alike = list(group)
            # Five separators and the last of them at the end.
            if middle.startswith(DATA_LINE) and middle.count(b"|") == 5 and middle.endswith(b"|"):
                yield Run(alike[0][: at.stop], b"\n".join((*map(content, alike), b"")))
            else:
                yield from alike

    def learn(self, line: bytes) -> None:
        """Take it from this data line, which has a token, where the middle is."""
        start = line.find(DATA_LINE)
        session = line.find(b"|", start + len(DATA_LINE))
        token = line.find(b"|", session + 1)
        if 0 < start < session < token:
            self._middle = slice(start, token + 1)
