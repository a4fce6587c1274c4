"""How bytes from smtpd become lines, and data lines that follow each other one run.

A 1 MiB message is 14,000 lines: no statement runs for each of them here.  Knows where the
parts of a data line are, and nothing else of what lines mean.  Loses none, whatever fails:
memory may end at any step, and `pieces` begins anew with what was not handled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

# smtpd's own longest line is a data line of 65,533 bytes and its prefix; what is longer
# without a LF is no line of smtpd.
MAX_LINE = 256 * 1024
DATA_LINE = b"|smtp-in|data-line|"
SMALL_STEP = 8192  # bytes that are cut at once where memory has ended


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
        # A piece is handled when whoever takes them asks for the next one, or when he says so
        # before, by `at = following`: an assignment can't fail, a call can.
        self.at = 0  # how many of the lines are handled
        self.following = 0  # how many will be with the piece that was handed out last
        self._lines: Sequence[bytes] = ()  # what is cut
        self._data = b""  # what is not, from _from on
        self._from = 0
        self._step = 0  # how much of it is cut at once; 0: all
        self._begun: list[bytes] = []  # the beginning of a line
        self._size = 0  # of that line so far, counted on when it is dropped
        self._overlong = 0  # the size of a line that was
        self._middle = slice(28, 81)  # `|smtp-in|data-line|ID|TOKEN|` in a data line; learnt
        self._middle_now = self._middle  # for what is cut: twice the same lines make the same run

    def take(self, data: bytes) -> None:
        """Take bytes; what they complete, `pieces` tells."""
        if self._data:
            data = self._data[self._from :] + data
            self._from = 0
        self._data = data

    @property
    def behind(self) -> bool:
        """Is there something that was not handled?"""
        return bool(self._data) or self.at < len(self._lines)

    def be_frugal(self) -> None:
        """Memory has ended: do with less, until all that has come is handled."""
        self._step = SMALL_STEP

    def pieces(self) -> Iterator[bytes | Run | Overlong]:
        """The lines, without LF, and runs that are complete and not handled yet."""
        yield from self._cut()
        while self._data:
            self._split()
            if self._overlong:
                size, self._overlong = self._overlong, 0
                yield Overlong(size)
            yield from self._cut()
        self._step = 0

    def _split(self) -> None:
        """Make lines of the data: all of it is prepared before anything is changed."""
        data, upto = self._data, 0
        if self._from or (self._step and len(data) > self._step):
            upto = data.find(b"\n", self._from + self._step) + 1 if self._step else 0
            data = data[self._from : upto or None]
        lines = data.split(b"\n")
        rest = lines.pop()
        overlong, size = 0, len(rest)
        ended = bool(lines)
        if not ended:
            size += self._size
        elif self._size + len(lines[0]) > MAX_LINE:
            overlong = self._size + len(lines[0])
            del lines[0]
        elif self._size:
            lines[0] = b"".join((*self._begun, lines[0]))
        begun = [rest] if 0 < size <= MAX_LINE else []
        if not ended and size <= MAX_LINE:
            begun = self._begun
            begun.append(rest)
        # From here on nothing can fail.
        self._begun, self._size, self._overlong = begun, size, overlong
        self._lines, self._middle_now = lines, self._middle
        self.at = self.following = 0
        self._from = upto
        if not upto:
            self._data = b""

    def _cut(self) -> Iterator[bytes | Run]:
        """Data lines of one session are alike between their timestamp and their content, which
        is what makes them one run."""
        if self.at >= len(self._lines):
            return
        lines = self._lines[self.at :] if self.at else self._lines
        following = self.at
        at = self._middle_now
        content = itemgetter(slice(at.stop, None))
        for middle, group in groupby(lines, itemgetter(at)):
            alike = list(group)
            # Five separators and the last of them at the end.
            if middle.startswith(DATA_LINE) and middle.count(b"|") == 5 and middle.endswith(b"|"):
                run = Run(alike[0][: at.stop], b"\n".join((*map(content, alike), b"")))
                following += len(alike)
                self.following = following
                yield run
                self.at = following
            else:
                for line in alike:
                    following += 1
                    self.following = following
                    yield line
                    self.at = following
        self._lines = ()
        self.at = self.following = 0

    def learn(self, line: bytes) -> None:
        """Take it from this data line, which has a token, where the middle is."""
        start = line.find(DATA_LINE)
        session = line.find(b"|", start + len(DATA_LINE))
        token = line.find(b"|", session + 1)
        if 0 < start < session < token:
            self._middle = slice(start, token + 1)
