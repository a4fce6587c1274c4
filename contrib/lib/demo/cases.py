"""Which mail does the demo send, and what should become of it?  A table; nothing is done here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.live.rspamd import GTUBE, verdict

CONFIRMED, NAMELESS, LIAR, OURS = "127.5.5.5", "127.6.6.6", "127.7.7.7", "127.8.8.8"
ZONE = f"""
$PTR {CONFIRMED} good.example
good.example 300 A {CONFIRMED}
$PTR {LIAR} good.example
$PTR {OURS} office.good.example
office.good.example 300 A {OURS}
"""

CONFIGURATION = f"""\
[fcrdns]
nameservers = ["{{dns}}"]
exempt_networks = []  # by default whoever comes from loopback is

[rspamd]
servers = ["{{rspamd}}"]

[dkim]
enabled = true
servers = ["{{signer}}"]
sign_networks = ["{OURS}"]  # beside whoever authenticated
"""

# What happens before a message is sent, or while it is judged.
Mishap = Literal["", "kill the bridge", "stop rspamd", "start rspamd"]


@dataclass(frozen=True, slots=True)
class Case:
    """One message, and what is expected of it; headers and log are regular expressions."""

    what: str
    reply: str  # how the one that decided begins
    source: str = CONFIRMED
    recipient: str = "user@example.org"
    body: bytes = b"Hello.\r\n.A dot, \xe9, and an empty line:\r\n\r\n"
    verdict: Mapping[str, object] = field(
        default_factory=dict
    )  # rspamd's; see tests/live/rspamd.py
    headers: tuple[str, ...] = ()  # what it arrives with more than it was sent with
    log: tuple[str, ...] = ()  # of the filter
    mishap: Mishap = ""
    junk: bool = False  # the folder that it arrives in
    broken: bool = False  # arrives with its long lines broken
    signed: bool = False  # arrives with signatures, RSA and Ed25519

    @property
    def arrives(self) -> bool:
        return self.reply.startswith("2")

    def message(self, number: int) -> bytes:
        """The bytes that are sent."""
        head = (
            f"Date: Sun, 22 Nov 2026 12:00:00 +0000\r\nMessage-ID: {message_id(number)}\r\n"
            f"From: sender@good.example\r\nTo: {self.recipient}\r\nSubject: {self.what}\r\n"
        )
        wanted = verdict(**self.verdict) if self.verdict else b""
        return wanted + head.encode() + b"\r\n" + self.body


def message_id(number: int) -> str:
    """Of the message of that number."""
    return f"<{number}@demo.example>"


IPREV = r"Authentication-Results: mx\.example\.org; iprev="
PASS = rf"{IPREV}pass policy\.iprev={re.escape(CONFIRMED)}"
NO_NAME = rf"{IPREV}permerror"
SIGNATURES = tuple(
    rf"DKIM-Signature: v=1; a={kind}-sha256; .*d=good\.example;" for kind in ("rsa", "ed25519")
)
NO_FCRDNS = "550 5.7.25 Reverse DNS validation failed"


def cases(protocol: str) -> tuple[Case, ...]:
    """All of them, in order, for an OpenSMTPD of that protocol version."""
    # OpenSMTPD before 7.4 cuts what a filter gives back after 2,048 bytes (lka_filter.c).
    breaks = protocol < "0.7"
    return (
        Case("ham, its reverse DNS confirmed", "250 2.0.0", headers=(PASS,)),
        Case(
            "spam for certain: GTUBE", "554 5.7.1 Gtube pattern",
            body=GTUBE + b"\r\n",
            log=(r'refused .*by="rspamd: reject',),
        ),
        Case(
            "what looks like spam", "250 2.0.0",
            verdict={"score": 7.5},
            headers=(PASS, r"X-Spam: Yes", r"X-Spam-Score: 7\.5", r"X-Spam-Status: Yes"),
            junk=True,
        ),
        Case(
            "greylisted by rspamd", "451 4.7.1 Try again later",
            verdict={"action": "soft reject", "message": "Try again later"},
            log=(r'deferred .*by="rspamd: soft reject',),
        ),
        Case(
            "a client without reverse DNS", NO_FCRDNS,
            source=NAMELESS,
            log=(r'refused .*phase=rcpt-to by="fcrdns: permerror',),
        ),
        Case(
            "a client with the name of another", NO_FCRDNS,
            source=LIAR,
            log=(r'refused .*phase=rcpt-to by="fcrdns: fail',),
        ),
        Case(
            "no reverse DNS, but to postmaster", "250 2.0.0",
            source=NAMELESS, recipient="postmaster@example.org",
            headers=(NO_NAME,),
        ),
        Case(
            "a line of 60,000 bytes", "250 2.0.0",
            body=b"0123456789" * 6000 + b"\r\n",
            headers=(PASS,),
            log=(r"long-lines-broken .*lines=1",) if breaks else (),
            broken=breaks,
        ),
        Case(
            "from our own network: signed", "250 2.0.0",
            source=OURS,
            headers=(*SIGNATURES, rf"{IPREV}pass policy\.iprev={re.escape(OURS)}"),
            signed=True,
        ),
        Case(
            "the bridge killed (-9) during the scan", "250 2.0.0",
            verdict={"delay": 1},
            headers=(PASS,),
            log=(r"bridge-lost .*status=-9", r"bridge-started", r"bridge-up"),
            mishap="kill the bridge",
        ),
        Case(
            "rspamd stopped", "451 4.7.1 Message could not be checked",
            log=(r'deferred .*by="rspamd: unreachable',),
            mishap="stop rspamd",
        ),
        Case("rspamd started again", "250 2.0.0", headers=(PASS,), mishap="start rspamd"),
    )  # fmt: skip
