"""How do the live tests of the whole filter begin? A server with our filter, and a message.

Knows the smtpd.conf line and what a message for a test looks like; what is said of it is the
configuration's, which each test has in its own text.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

from tests.live.world import Client, OpenSMTPD

COMMAND = "{bridge} -f {dir}/bridge.toml"


def bridged(
    version: str, toml: str, *, arguments: str = "", values: Mapping[str, str] | None = None,
    **options: Any,
) -> OpenSMTPD:  # fmt: skip
    """A server, not yet started, whose one filter is ours. values: for {words} of the toml that
    the server does not know, like the URL of a service."""
    for name, value in (values or {}).items():
        toml = toml.replace(f"{{{name}}}", value)
    return OpenSMTPD(
        version,
        filters={"bridge": f"{COMMAND} {arguments}".rstrip()},
        files={"bridge.toml": toml},
        **options,
    )


# smtpd's listen queue has few places (smtpd.h, SMTPD_BACKLOG), and a client that the kernel
# answers while it is full may wait for its greeting for ever.
_CONNECTING = threading.Lock()


def connected(mta: OpenSMTPD, listener: str = "", **options: Any) -> Client:
    """A client that was greeted; many threads may ask at once."""
    with _CONNECTING:
        return mta.client(listener, **options)


def message(ident: str = "1", *, head: bytes = b"", body: bytes = b"hello\r\n") -> bytes:
    """A whole message, which smtpd need not complete. ident: of its Message-ID and Subject."""
    name = ident.encode()
    return (
        head + b"Date: Sun, 22 Nov 2026 12:00:00 +0000\r\n"
        b"From: sender@client.example\r\nTo: rcpt@example.org\r\n"
        b"Message-ID: <" + name + b"@client.example>\r\nSubject: " + name + b"\r\n\r\n" + body
    )


def lines(log: str, event: str) -> list[dict[str, str]]:
    """The filter's log lines of one event, each as its values; `refused` is an event."""
    found = re.findall(rf"(?m)^bridge: {re.escape(event)} (.*)$", log)
    return [
        {key: bare or quoted.replace('\\"', '"') for key, quoted, bare in _VALUE.findall(line)}
        for line in found
    ]


_VALUE = re.compile(r'([a-z-]+)=(?:"((?:[^"\\]|\\.)*)"|(\S+))')
