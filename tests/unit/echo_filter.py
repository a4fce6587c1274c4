"""A correct filter that echoes every line and proceeds, as an object and as a program.

`override` lets a test put something wrong in place of one answer; as a program, the first
argument names a misdeed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence

PHASES = (
    "connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data",
    "data-line", "rset", "quit", "noop", "help", "wiz", "commit",
)  # fmt: skip

Override = Callable[[list[bytes]], bytes | None]


class EchoFilter:
    """override: gets the fields of a request; what it returns is written instead of the right
    answer, None leaves that as it is.  said: the lines of smtpd so far."""

    def __init__(
        self,
        override: Override = lambda parts: None,
        phases: Sequence[str] = PHASES,
        registration: bytes | None = None,
    ) -> None:
        self.said: list[bytes] = []
        self.version = b"0.7"
        self._override = override
        lines = [b"register|report|smtp-in|*"]
        lines += [b"register|filter|smtp-in|" + phase.encode() for phase in phases]
        lines.append(b"register|ready")
        self._registration = b"".join(line + b"\n" for line in lines)
        if registration is not None:
            self._registration = registration
        self._buffer = b""

    def receive(self, data: bytes) -> bytes:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.said += lines
        out = [self._registration]  # it need not wait for config|ready
        self._registration = b""
        for line in lines:
            parts = line.split(b"|", 7)
            if parts[0] == b"filter":
                wrong = self._override(parts)
                out.append(answer(parts) if wrong is None else wrong)
        return b"".join(out)


def answer(parts: list[bytes], decision: bytes = b"proceed") -> bytes:
    """The right answer to a request, or one with another decision."""
    version, phase, session = parts[1], parts[4], parts[5]
    if version == b"1":  # December 2018: no tokens
        kind = b"filter-dataline" if phase == b"data-line" else b"filter-result"
        content = b"|".join(parts[6:]) if phase == b"data-line" else decision
        return b"%s|%s|%s\n" % (kind, session, content)
    token = parts[6]
    ids = (token, session) if version == b"0.4" else (session, token)
    if phase == b"data-line":
        return b"filter-dataline|%s|%s|%s\n" % (*ids, parts[7])
    return b"filter-result|%s|%s|%s\n" % (*ids, decision)


def misdeed(name: str, parts: list[bytes]) -> bytes | None:
    """What the program does at EHLO, by the names of the crash matrix."""
    if parts[4] != b"ehlo":
        return None
    end = socket.socket(fileno=os.dup(1))
    match name:
        case "exit1-in-session":
            os._exit(1)
        case "sigkill-in-session":
            os.kill(os.getpid(), signal.SIGKILL)
        case "io-shutdown-wr":
            end.shutdown(socket.SHUT_WR)
        case "io-shutdown-rd":
            end.shutdown(socket.SHUT_RD)
        case "io-close-stdout":
            os.close(1)
            while os.read(0, 65536):
                pass
            os._exit(0)
        case "io-close-stderr":
            os.close(2)
        case "io-stderr-flood":
            os.write(2, b"".join(b"line %d\n" % n for n in range(5000)))
        case "io-stderr-nonewline":
            os.write(2, b"without LF")
        case "io-stderr-nonewline-100k":
            os.write(2, b"x" * 100_000)
        case "silent":
            return b""
    return None


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "exit0-at-start":
        sys.exit(0)
    filter = EchoFilter(lambda parts: misdeed(name, parts))
    out = filter.receive(b"")
    while True:
        step = 1 if name == "io-bytewise" else max(1, len(out))
        for start in range(0, len(out), step):
            os.write(1, out[start : start + step])
        if name == "exit0-after-ready":
            sys.exit(0)
        data = os.read(0, 65536)
        if not data:
            break
        out = filter.receive(data)
    if name in ("ignores-eof", "io-shutdown-rd"):  # not every end is one of smtpd
        time.sleep(60)


if __name__ == "__main__":
    main()
