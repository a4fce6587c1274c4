"""What is known of a session and its open transaction, folded from events.

`Session.see` takes every event in the order of arrival; the rest is fields and questions
about them.  Never decides and never forgets a session: protocol.py does that.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from typing import Any

from bridge.smtpd import events

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# smtpd's own limit is configurable and 1,000 by default; this only bounds memory.
MAX_RECIPIENTS = 20_000


@dataclass(slots=True)
class Transaction:
    """One MAIL to commit or rollback.

    >>> Transaction("3f2a1b0c", sender="a@example.org").recipients
    []
    """

    msgid: str
    sender: str | None = None  # None until tx-mail; "" is the null sender
    recipients: list[str] = field(default_factory=list)  # accepted ones, as the client wrote them


@dataclass(slots=True)
class Session:
    """One SMTP connection.

    >>> Session("1", src="192.0.2.1:4711").address
    IPv4Address('192.0.2.1')
    """

    id: str
    version: events.Version = events.NEWEST
    direction: str = "smtp-in"
    src: str = ""  # the peer, as smtpd spells it: 192.0.2.1:4711, [2001:db8::1]:4711, unix:/path
    dest: str = ""  # the listener
    rdns: str = ""  # smtpd's name for the peer, "" if it has none
    fcrdns: str = ""  # smtpd's own check: pass, fail, error, or "" when not told
    hostname: str = ""  # the name smtpd greets with
    method: str = ""  # HELO or EHLO
    helo: str = ""  # the name the client gave
    tls: str = ""  # version:cipher:bits, "" without TLS
    user: str = ""  # who authenticated, vis(3)-encoded, "" if nobody
    transaction: Transaction | None = None
    keep: dict[str, Any] = field(default_factory=dict)  # what the bridge wants to know later
    admd: str = ""  # what smtpd calls itself in Authentication-Results (config|admd, since 6.8)
    smtpd: str = ""  # its version (config|smtpd-version): 7.6.0-portable
    profile: str = ""  # forced by --profile, "" if none is
    deadline: float = math.inf  # of the open request, by the clock of whoever is asked

    def see(self, event: events.Event) -> None:
        """Take what an event says into account."""
        self.version, self.direction = event.version, event.direction
        match event:
            case events.LinkConnect():
                self.src, self.dest, self.fcrdns = event.src, event.dest, event.fcrdns
                self.rdns = "" if event.rdns == "<unknown>" else event.rdns
            case events.Connect() if not self.src:
                self.src = "unix:" if event.addr == "local" else event.addr
                self.rdns = "" if event.rdns == "<unknown>" else event.rdns
            case events.LinkGreeting():
                self.hostname = event.hostname
            case events.LinkIdentify():
                self.method, self.helo = event.method, event.name
            case events.LinkTls():
                self.tls = event.tls
            case events.LinkAuth() if event.result == "pass":
                self.user = event.user
            case events.TxBegin():
                self.transaction = Transaction(event.msgid)
            case events.TxMail() if event.result == "ok":
                if self.transaction is None:
                    self.transaction = Transaction(event.msgid)
                self.transaction.sender = event.address
            case events.TxRcpt() if event.result == "ok" and self.transaction is not None:
                if len(self.transaction.recipients) < MAX_RECIPIENTS:
                    self.transaction.recipients.append(event.address)
            case events.TxReset() | events.TxRollback() | events.TxCommit():
                self.transaction = None
            case _:
                pass

    @property
    def local(self) -> bool:
        """Did it come over smtpd's own socket (sendmail, bounces)?  Such sessions count as
        authenticated."""
        return self.src.startswith("unix:")

    @property
    def authenticated(self) -> bool:
        """Did the client authenticate, or is it local?"""
        return bool(self.user) or self.local

    @property
    def address(self) -> Address | None:
        """The peer's IP address (an IPv4-mapped one as IPv4), None for a local session."""
        return split_address(self.src)[0]

    @property
    def peer(self) -> str:
        """Who sends, in however many sessions: a user, all that is local, an IPv4 address, or
        a /64 of IPv6, of which any host can have all."""
        if self.user:
            return f"user {self.user}"
        if self.local:
            return "local"
        address = self.address
        if isinstance(address, ipaddress.IPv6Address):
            return f"{int(address) >> 64:x}::/64"
        return str(address or self.src)

    @property
    def listener(self) -> tuple[Address | None, int]:
        """The listener's address (None for the socket) and port (0 for the socket)."""
        return split_address(self.dest)

    @property
    def tls_parts(self) -> tuple[str, str, str]:
        """TLS version, cipher and bits, each "" without TLS."""
        version, _, rest = self.tls.partition(":")
        cipher, _, bits = rest.partition(":")
        return version, cipher, bits


def split_address(text: str) -> tuple[Address | None, int]:
    """Address and port of `192.0.2.1:25`, `[2001:db8::1]:25`, `[::1]` or `192.0.2.1`; (None, 0)
    for a unix path and for anything else."""
    host, port = text, "0"
    if not text.endswith("]") and (text.startswith("[") or text.count(":") == 1):
        host, _, port = text.rpartition(":")
    try:
        address: Address = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        return None, 0
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address, number
