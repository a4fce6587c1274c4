"""What a filter may say, and in which phase: decisions and the table of their legality.

A decision is a value.  What smtpd would choke on can't be constructed (`Reject("2.0.0", ...)`
raises ValueError), and `legal` says whether smtpd takes a decision in a phase and version.
Never spells a line: that is wire.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

# smtpd shows 4,095 bytes of a reply and dies of 16,300 (reference: Decisions); RFC 5321
# 4.5.3.1.5 allows a reply line of 512 with code and CRLF.  The rest is room for a session id.
MAX_REPLY_TEXT = 440

_STATUS = re.compile(r"([45])\.\d{1,3}\.\d{1,3}", re.ASCII)  # RFC 3463, section 2
_REPLY = re.compile(r"([45]\d\d) ([45]\.\d{1,3}\.\d{1,3}) (.+)", re.ASCII)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Proceed:
    """Go on: the next filter is asked, or smtpd does what the client wants.

    >>> Proceed().keyword
    'proceed'
    """

    keyword: ClassVar[str] = "proceed"


@dataclass(frozen=True, slots=True)
class Junk:
    """Go on, but let smtpd put `X-Spam: Yes` on top.  Before a transaction has begun this
    marks every later message of the session; it ends the phase for later filters
    (smtpd-filters(7), junk; since protocol 0.3).

    >>> Junk().keyword
    'junk'
    """

    keyword: ClassVar[str] = "junk"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What `Reject` and `Disconnect` share: an SMTP reply.

    status: enhanced status code, "5.7.1" (RFC 3463); text: one line of printable ASCII,
    1 to 440 characters; code: SMTP reply code, by default 550 for 5.x.x and 451 for 4.x.x.
    Raises ValueError for what smtpd or a client would choke on.
    """

    keyword: ClassVar[str] = ""
    status: str
    text: str
    code: int = 0

    def __post_init__(self) -> None:
        if not _STATUS.fullmatch(self.status):
            raise ValueError(f"enhanced status code {self.status!r}: expected like 5.7.1 or 4.7.1")
        if not self.code:
            object.__setattr__(self, "code", 550 if self.status[0] == "5" else 451)
        if not 400 <= self.code <= 599 or str(self.code)[0] != self.status[0]:
            raise ValueError(
                f"reply code {self.code} does not go with {self.status}: "
                "expected 4xx with 4.x.x or 5xx with 5.x.x"
            )
        if self.code == 421 and self.keyword == "reject":
            raise ValueError("421 closes the session: use Disconnect")  # SS:1012
        text = self.text.strip()
        if text != self.text or not text or _UNPRINTABLE.search(text):
            raise ValueError(f"reply text {self.text!r}: expected one line of printable ASCII")
        if len(text) > MAX_REPLY_TEXT:
            raise ValueError(f"reply text of {len(text)} characters: expected {MAX_REPLY_TEXT}")

    @classmethod
    def parse(cls, reply: str) -> Self:
        """From a whole reply, "550 5.7.25 Reverse DNS validation failed"; ValueError if it
        is not code, enhanced status code and text."""
        if not (match := _REPLY.fullmatch(reply)):
            raise ValueError(f"reply {reply!r}: expected like '550 5.7.1 Text'")
        return cls(match[2], match[3], int(match[1]))

    @classmethod
    def clean(cls, status: str, text: str, code: int = 0, default: str = "Refused") -> Self:
        """With a text that a service or a client chose: cut to one legal line, never raises
        for the text."""
        text = _UNPRINTABLE.sub(" ", text).strip()[:MAX_REPLY_TEXT].strip()
        return cls(status, text or default, code)

    @property
    def reply(self) -> str:
        """The reply as a client sees it: "550 5.7.1 Text"."""
        return f"{self.code} {self.status} {self.text}"


@dataclass(frozen=True, slots=True)
class Reject(Refusal):
    """Refuse the command or message with a reply; the session goes on.  At `connect` the
    session goes on too, in 503s: use `Disconnect` there (smtpd-filters(7), reject).

    >>> Reject("5.7.1", "Not you").reply
    '550 5.7.1 Not you'
    >>> Reject("4.7.1", "Not now", 450).reply
    '450 4.7.1 Not now'
    """

    keyword: ClassVar[str] = "reject"


@dataclass(frozen=True, slots=True)
class Disconnect(Refusal):
    """Refuse with a reply and close the session (smtpd-filters(7), disconnect).

    >>> Disconnect("4.7.1", "Too many of you", 421).reply
    '421 4.7.1 Too many of you'
    """

    keyword: ClassVar[str] = "disconnect"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Replace the command's argument: a host name for helo and ehlo, `<user@domain>` with
    its angle brackets for mail-from and rcpt-to, `PLAIN ...` for auth.  One line, up to
    1,000 bytes of UTF-8 (smtpd-filters(7), rewrite).

    >>> Rewrite("<new@example.org>").value
    '<new@example.org>'
    """

    keyword: ClassVar[str] = "rewrite"
    value: str

    def __post_init__(self) -> None:
        if not self.value or re.search(r"[\x00-\x1f\x7f]", self.value):
            raise ValueError(f"rewrite value {self.value!r}: expected one line, not empty")
        if len(self.value.encode("utf-8", "surrogateescape")) > 1000:
            raise ValueError("rewrite value: expected at most 1,000 bytes")


Decision = Proceed | Junk | Refusal | Rewrite

# Which decisions a phase takes: the base set, what a phase has more, what it has less.
# Rewrite of an unused argument is an error to the client, at commit a hung session; junk at
# commit ends smtpd; the data-line phase takes no decision at all (reference, section 2.5).
BASE = frozenset({"proceed", "junk", "reject", "disconnect"})
MORE = {phase: {"rewrite"} for phase in ("helo", "ehlo", "auth", "mail-from", "rcpt-to")}
LESS = {"commit": {"junk"}, "data-line": BASE}
LESS_BEFORE = {(0, 3): {"junk"}}  # smtpd's junk came with protocol 0.3
# A message that was not echoed must not be accepted: it would be delivered empty.
WITHHELD = frozenset({"reject", "disconnect"})


def legal(phase: str, version: tuple[int, int], *, withheld: bool = False) -> frozenset[str]:
    """The keywords of the decisions that smtpd takes at `phase` in protocol `version`."""
    allowed = (BASE | MORE.get(phase, set())) - LESS.get(phase, set())
    for before, gone in LESS_BEFORE.items():
        if version < before:
            allowed -= gone
    return allowed & WITHHELD if withheld else allowed


# What stands in for a decision that may not be sent, or that could not be had.
INTERNAL_ERROR = Reject("4.3.0", "Internal error, please try again later")
NO_SPACE = Reject("4.3.1", "Insufficient system storage, please try again later", 452)
INTERNAL_ERROR_CLOSE = Disconnect("4.3.0", "Internal error, please try again later", 421)


def tempfail(phase: str) -> Decision:
    """The refusal for an answer that could not be had: at connect a disconnect, since a
    reject leaves the client in a session of 503s."""
    return INTERNAL_ERROR_CLOSE if phase == "connect" else INTERNAL_ERROR
