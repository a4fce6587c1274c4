"""What the protocol tells whoever drives it, one by one, and what it is told to register.

Values, and `Slot`: a request that wants exactly one answer.  Nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.smtpd import events, wire
from bridge.smtpd.decisions import Refusal
from bridge.smtpd.message import Message
from bridge.smtpd.session import Session

# The phase of a slot that asks for the verdict on a whole message, reached at the final dot.
MESSAGE = "message"

# Reports without which a session can't be followed, or forgotten.
BOOKKEEPING = frozenset(
    {
        *("link-connect", "link-greeting", "link-identify", "link-tls", "link-auth"),
        *("tx-begin", "tx-mail", "tx-rcpt", "tx-reset", "tx-rollback", "tx-commit"),
        "link-disconnect",
    }
)


@dataclass(frozen=True, slots=True)
class Registration:
    """What to ask smtpd for, besides what is needed to follow sessions."""

    phases: frozenset[str] = frozenset()  # the message's are data-line and commit
    reports: frozenset[str] = frozenset()  # of smtp-in
    reports_out: frozenset[str] = frozenset()  # of smtp-out
    asks_commit: bool = False  # ask at commit also when the message's verdict was proceed

    def lines(self, *, has_out: bool) -> bytes:
        """As smtpd wants it.  has_out: does it know smtp-out?  6.6 dies of it."""
        names = sorted(self.reports | BOOKKEEPING)
        lines = [wire.register("report", "smtp-in", name) for name in names]
        if self.reports_out and has_out:
            names = sorted(self.reports_out | BOOKKEEPING)
            lines += [wire.register("report", "smtp-out", name) for name in names]
        lines += [wire.register("filter", "smtp-in", name) for name in sorted(self.phases)]
        return b"".join((*lines, wire.READY))


@dataclass(slots=True, eq=False)
class Slot:
    """One request that wants exactly one answer."""

    session: Session
    phase: str  # as smtpd calls it, or MESSAGE
    event: events.Request
    message: Message | None = None  # with MESSAGE
    open: bool = True


@dataclass(frozen=True, slots=True)
class Oversize:
    """A message has grown over the limit: say `release` or `withhold` at once."""

    session: Session


@dataclass(frozen=True, slots=True)
class Withheld:
    """A message that nobody was asked about will be refused with `decision` at commit."""

    session: Session
    decision: Refusal


@dataclass(frozen=True, slots=True)
class Broken:
    """Lines of a message were too long to go back and were broken."""

    session: Session
    lines: int


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line from smtpd that could not be read, and was ignored."""

    error: str


Item = events.Report | wire.Config | Slot | Oversize | Withheld | Broken | BadLine
