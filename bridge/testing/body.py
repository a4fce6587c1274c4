"""A transaction and its message, as smtpd keeps them: what it puts on top before the filters
see it, and what it checks of the lines that come back.  Pure; never talks to anyone.

Follows smtp_session.c (smtp_message_begin, smtp_tx_dataline) and rfc5322.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from email.utils import formatdate

from bridge.testing import grammar
from bridge.testing.grammar import Address, octets

MAX_HOPS = 100  # smtpd.h, MAX_HOPS_COUNT
HEADER_NAME_MAX = 1023  # rfc5322.c


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connects to which listener.  smtps: TLS before the banner."""

    src: str
    dest: str
    rdns: str
    fcrdns: str
    smtps: bool = False

    @property
    def local(self) -> bool:
        return self.src.startswith("unix:")

    @property
    def addr(self) -> str:
        """As in a connect request: `192.0.2.1`, `[2001:db8::1]` or `local`."""
        return "local" if self.local else self.src.rpartition(":")[0]

    @property
    def completed(self) -> bool:
        """Whether smtpd adds Date and Message-ID to its mail: listeners on loopback and the
        local socket, and port 587."""
        host, _, port = self.dest.rpartition(":")
        return self.local or port == "587" or host == "[::1]" or host.startswith("127.")

    @property
    def bracketed(self) -> str:
        return self.addr if self.addr.startswith("[") else f"[{self.addr}]"


@dataclass(slots=True)
class Transaction:
    """From MAIL FROM to commit or rollback."""

    sender: Address
    msgid: str = ""  # empty until the queue made the message
    recipients: list[Address] = field(default_factory=list)
    junk: bool = False
    filtered: bool = False  # the body goes through the filter: from DATA to commit or rollback
    datain: int = 0  # bytes of body from the client
    ended: bool = False  # the client sent its dot
    error: str = ""  # the reply that the commit will get
    lines: list[bytes] = field(default_factory=list)  # what came back, without stuffing
    in_header: bool = True
    hops: int = 0
    names: set[bytes] = field(default_factory=set)  # of header fields, lower case
    size: int = 0  # as tx-commit has it: our own header is counted on both sides of the filter

    def take(self, line: bytes) -> None:
        """One line that came back from the filters, other than the dot."""
        if self.error:
            return
        line = line[1:] if line.startswith(b".") else line
        if self.in_header and (error := self._header_error(line)):
            self.error = error
            return
        self.lines.append(line)
        self.size += len(line) + 1

    def _header_error(self, line: bytes) -> str:
        if not line:
            self.in_header = False
            return ""
        if line[:1] in (b" ", b"\t"):
            return "" if self.lines else grammar.NOT_COMPLIANT  # nothing to continue
        name, colon, _ = line.partition(b":")
        if not colon or len(name) > HEADER_NAME_MAX:
            return grammar.NOT_COMPLIANT
        self.names.add(name.strip().lower())
        self.hops += name.strip().lower() == b"received"
        return grammar.LOOP if self.hops >= MAX_HOPS else ""


def late_fields(tx: Transaction, hostname: str, now: float) -> list[str]:
    """What smtpd adds to mail of its own users after the filters, if it is missing."""
    fields = []
    if b"date" not in tx.names:
        fields.append(f"Date: {time_to_text(now)}")
    if b"message-id" not in tx.names:
        fields.append(f"Message-ID: <{int(now):016x}@{hostname}>")
    return fields


def time_to_text(now: float) -> str:
    return formatdate(now).removesuffix(" -0000") + " +0000 (UTC)"


def received(
    tx: Transaction, peer: Peer, helo: str, hostname: str, protocol: str, tls: str, now: float
) -> list[bytes]:
    """smtpd's own header field.  protocol: SMTP, ESMTP, ESMTPSA, ...; tls: "" without."""
    lines = [
        f"Received: from {helo} ({peer.rdns} {peer.bracketed})",
        f"\tby {hostname} (OpenSMTPD) with {protocol} id {tx.msgid}",
    ]
    if tls:
        lines[-1] += f" ({tls}:NO)"
    if len(tx.recipients) == 1:
        lines.append(f"\tfor <{tx.recipients[0]}>")
    lines[-1] += ";"
    lines.append(f"\t{time_to_text(now)}")
    return [octets(line) for line in lines]
