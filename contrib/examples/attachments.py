#!/usr/bin/env python3
"""Mail with an executable attachment is refused, also when a zip archive holds it.

smtpd.conf:
    filter "attachments" proc-exec "/usr/local/bin/attachments.py"
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import io
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import PurePosixPath

from bridge import Filter, Message, Reject, Session

EXECUTABLE = frozenset(
    {".bat", ".cmd", ".com", ".cpl", ".exe", ".hta", ".jar", ".js", ".jse", ".lnk", ".msi"}
    | {".pif", ".ps1", ".scr", ".vbe", ".vbs", ".wsf", ".wsh"}
)

app = Filter()


def names(message: EmailMessage) -> Iterator[str]:
    """The file names of all parts, and those in zip archives."""
    for part in message.walk():
        name = part.get_filename() or ""
        yield name
        if name.lower().endswith(".zip"):
            content = part.get_payload(decode=True)
            with contextlib.suppress(zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
                if isinstance(content, bytes):
                    yield from zipfile.ZipFile(io.BytesIO(content)).namelist()


@app.on(Message)
def check(event: Message, session: Session) -> Reject | None:
    """A plain function, so it runs in a thread: parsing a large message takes a while."""
    message = email.message_from_bytes(event.content, policy=email.policy.default)
    for name in names(message):
        suffix = PurePosixPath(name.strip().rstrip(".")).suffix.lower()
        if suffix in EXECUTABLE:
            return Reject("5.7.1", f"Attachments of type {suffix} are not accepted here", 554)
    return None


if __name__ == "__main__":
    app.run()
