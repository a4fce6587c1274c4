"""How a log line reads, and how it reaches stderr without ever holding anyone up.

smtpd logs each line that a filter writes to stderr, and wedges on 64 KiB without a LF: so
a record is one short line, key=value, session first; never a message's content, never a
credential.  Lines beyond the rate are counted and the count is told.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections import deque
from collections.abc import Iterable

MAX_LINE = 1000  # bytes; syslog(3) implementations cut at 1,024 (RFC 3164, 4.1)
MAX_VALUE = 400
RATE, BURST = 50.0, 500.0  # lines a second, and at once
MAX_BUFFER = 256 * 1024  # of lines that stderr does not take

_BARE = re.compile(r"[\x21\x23-\x3c\x3e-\x5b\x5d-\x7e]+")  # printable but space " = \


def record(event: str, **values: object) -> str:
    """One line: the event and its key=value pairs; None and "" are left out."""
    words = [event]
    for key, value in values.items():
        if value is None or value == "":
            continue
        words.append(f"{key.replace('_', '-')}={quote(str(value))}")
    return " ".join(words)[:MAX_LINE]


def quote(value: str) -> str:
    """A value that can't be mistaken for the end of itself, in printable ASCII."""
    if len(value) > MAX_VALUE:
        value = value[: MAX_VALUE - 3] + "..."
    if _BARE.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[^\x20-\x7e]", lambda m: f"\\x{ord(m[0]):02x}", escaped) + '"'


class Told(Exception):
    """An error whose text holds nothing that a client or a service wrote."""


def folded(error: BaseException) -> str:
    """Where an exception came from and what it was, in one line; without its text, which
    may hold what a client or a service wrote."""
    if isinstance(error, Told):
        return str(error)
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        file = os.path.basename(trace.tb_frame.f_code.co_filename)
        places.append(f"{file}:{trace.tb_lineno}")
        trace = trace.tb_next
    where = " < ".join(reversed(places[-3:]))
    return f"{type(error).__name__} at {where}"


class Stderr:
    """stderr, rate-limited and never waited for."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):  # under smtpd: can be tried without waiting
            self._socket = socket.socket(fileno=os.dup(fd))
        self._buffer: deque[bytes] = deque()
        self._size = 0
        self._tokens = BURST
        self._then: float | None = None
        self.suppressed = 0

    def write(self, line: str, now: float) -> None:
        """Write one line, now or at a later `flush`; dropped and counted beyond the rate."""
        if self._then is not None:
            self._tokens = min(BURST, self._tokens + (now - self._then) * RATE)
        self._then = now
        if self._tokens < 1 or self._size > MAX_BUFFER:
            self.suppressed += 1
            return
        self._tokens -= 1
        lines = [line]
        if self.suppressed and self._tokens > 1:
            lines.append(record("log-suppressed", lines=self.suppressed))
            self.suppressed = 0
        for text in lines:
            raw = text.encode("ascii", "backslashreplace")[:MAX_LINE].replace(b"\n", b" ")
            self._buffer.append(raw + b"\n")
            self._size += len(raw) + 1
        self.flush()

    def flush(self) -> None:
        """Write what stderr takes."""
        while self._buffer:
            line = self._buffer[0]
            try:
                if self._socket is not None:
                    sent = self._socket.send(line, socket.MSG_DONTWAIT)
                else:
                    sent = os.write(self._fd, line)
            except BlockingIOError:
                return
            except OSError:  # nobody reads it: a filter must live on without its log
                self._buffer.clear()
                self._size = 0
                return
            self._size -= sent
            if sent == len(line):
                self._buffer.popleft()
            else:
                self._buffer[0] = line[sent:]


def cut_lines(pending: bytearray, data: bytes) -> Iterable[str]:
    """Cut what a child process wrote to its stderr into short lines; the rest stays in
    `pending`."""
    pending += data
    while (end := pending.find(b"\n")) >= 0 or len(pending) > MAX_LINE:
        end = min(end if end >= 0 else MAX_LINE, MAX_LINE)
        line = bytes(pending[:end])
        del pending[: end + (pending[end : end + 1] == b"\n")]
        if line.strip():
            yield line.decode("utf-8", "backslashreplace")
