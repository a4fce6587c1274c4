"""smtpd's end: what it says on one descriptor, what it is told on the other, never waited for.

Bytes only; what they mean is smtpd/protocol.py's.  Memory may end at any step: nothing is
taken from smtpd that could be lost then, and nothing written twice.
"""

from __future__ import annotations

import errno
import mmap
import os
from selectors import EVENT_READ as READ
from selectors import EVENT_WRITE as WRITE

from bridge.smtpd.output import Output

CHUNK = 256 * 1024  # read at once; smtpd's socket holds 208 KiB
# Memory that must be free before bytes are taken from smtpd or written to it: what is read
# and then lost for want of memory would put the stream out of step.  Python takes 1 MiB at
# once for its small values, and a chunk is CHUNK.
READ_ROOM, WRITE_ROOM = 2 << 20, 1 << 20
PASSING = {errno.ENOMEM, errno.ENOBUFS}  # errors of the machine: smtpd is still there


class SmtpdEnd:
    """The two descriptors."""

    def __init__(self, stdin: int, stdout: int, output: Output) -> None:
        self.gone = False
        self._in, self._out = stdin, stdout
        for fd in {stdin, stdout}:
            os.set_blocking(fd, False)
        self._output = output
        self._chunk = b""  # out of it, the next one
        self._writing = memoryview(b"")  # the rest of the last one
        self._written = 0  # of that, by the last write

    @property
    def watched(self) -> dict[int, int]:
        """The descriptors, and what to wait for."""
        if not self.wants_write:
            return {self._in: READ}
        return {self._out: WRITE, self._in: READ | WRITE if self._in == self._out else READ}

    def read(self) -> bytes:
        """What smtpd says, b"" if that is nothing; MemoryError if there is no room for it."""
        _room(READ_ROOM)
        try:
            data = os.read(self._in, CHUNK)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno in PASSING:
                raise MemoryError from error
            data = b""
        self.gone = not data
        return data

    @property
    def wants_write(self) -> bool:
        """Is there something for smtpd?"""
        return bool(self._writing or self._chunk or self._output)

    def write(self) -> None:
        """Tell smtpd as much as it takes; MemoryError if there is no room for it."""
        while True:
            if self._written:
                self._writing, self._written = self._writing[self._written :], 0
            if not self._writing:
                if not self._chunk and not (self._output and self._next()):
                    return
                self._writing, self._chunk = memoryview(self._chunk), b""
            _room(WRITE_ROOM)
            try:
                self._written = os.write(self._out, self._writing)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in PASSING:
                    raise MemoryError from error
                self.gone = True
                return

    def _next(self) -> bool:
        self._chunk = self._output.next()
        return bool(self._chunk)


def _room(size: int) -> None:
    """MemoryError unless there is room for that many bytes: it is taken, and given back."""
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError from error
