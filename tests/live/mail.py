"""What was delivered? The files of a maildir, byte for byte, and how to look into them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


def stored(sent: bytes) -> bytes:
    """How smtpd keeps a message of a client: CRLF is LF, any other CR stays (smtp_session.c)."""
    return sent.replace(b"\r\n", b"\n")


@dataclass(frozen=True, slots=True)
class Delivered:
    """One delivered file. smtpd puts Return-Path and Delivered-To above what it had stored."""

    raw: bytes
    junk: bool  # in the Junk folder, because of `X-Spam: Yes`

    @property
    def message(self) -> bytes:
        """The file without smtpd's Return-Path and Delivered-To: what left the filters."""
        return re.sub(rb"\A(?:(?:Return-Path|Delivered-To): [^\n]*\n)*", b"", self.raw)

    @property
    def recipient(self) -> str:
        found = re.match(rb"(?:Return-Path: [^\n]*\n)?Delivered-To: ([^\n]*)\n", self.raw)
        return found[1].decode("utf-8", "surrogateescape") if found else ""

    @property
    def below_received(self) -> bytes:
        """The message below smtpd's own Received (the first one)."""
        return re.sub(rb"(?m)\A(?:.*\n)*?Received: .*\n(?:[ \t].*\n)*", b"", self.message, count=1)

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Name and raw value (folds kept, leading blank and last LF cut) from top to bottom."""
        head = self.message.partition(b"\n\n")[0] + b"\n"
        found = re.findall(rb"(?m)^([^\s:]+):[ \t]?(.*(?:\n[ \t].*)*)\n", head)
        return [(name.decode("latin-1"), value) for name, value in found]

    def header(self, name: str) -> list[bytes]:
        """All values of one header, whatever the case of its name."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def body(self) -> bytes:
        return self.message.partition(b"\n\n")[2]


def maildir(directory: Path) -> list[Delivered]:
    """What is in a maildir and its Junk folder, oldest first."""
    found = [
        (path.stat().st_mtime_ns, path.name, Delivered(path.read_bytes(), junk))
        for folder, junk in ((directory, False), (directory / ".Junk", True))
        for path in (folder / "new").glob("*")
    ]
    return [mail for _, _, mail in sorted(found, key=lambda entry: entry[:2])]
