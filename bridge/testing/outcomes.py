"""What comes of a test against the model: replies, deliveries, faults, and the errors.

SmtpdError                 the filter did something that real smtpd does not survive
    SmtpdDied              the whole mail server ended, every session with it
    SmtpdWedged            smtpd spins at 100 % CPU and reads nothing more of this filter
    SessionHung            smtpd waits for ever, since it has no timeout for a filter
"""

from __future__ import annotations

from dataclasses import dataclass, field


class SmtpdError(Exception):
    """The filter did something that real smtpd does not survive."""


class SmtpdDied(SmtpdError):
    """The mail server ended.  reason: the cause in smtpd's own terms; line: what the filter
    wrote (it may hold content of a message, but not a password: no answer has one)."""

    def __init__(self, reason: str, line: bytes = b"") -> None:
        super().__init__(f"{reason}: {line[:200]!r}" if line else reason)
        self.reason = reason
        self.line = line


class SmtpdWedged(SmtpdError):
    """smtpd's lookup process spins; nothing more is read from this filter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SessionHung(SmtpdError):
    """What was waited for did not come.  reason lists the requests that are open."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong that smtpd survives; a good filter has none.  session: its id, or ""."""

    reason: str
    session: str = ""
    line: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client sees.  lines: each with its code; none when the connection ended."""

    lines: tuple[str, ...] = ()

    @property
    def code(self) -> int:
        """The three digits, or 0 when there was no reply."""
        return int(self.lines[-1][:3]) if self.lines else 0

    @property
    def text(self) -> str:
        """The last line after the code."""
        return self.lines[-1][4:] if self.lines else ""

    def __str__(self) -> str:
        return "\n".join(self.lines)


NO_REPLY = Reply()


@dataclass(slots=True)
class Outcome:
    """Of something a client did: reply is None until it is answered, `NO_REPLY` when the
    connection ended first."""

    reply: Reply | None = None

    @property
    def done(self) -> bool:
        return self.reply is not None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that smtpd accepted.  content: the lines that the filter gave back, without
    dot-stuffing and the final dot, each with LF.  smtpd's own edits after the filters (Bcc
    dropped, domains completed, Date and Message-ID of local mail) are not made."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    msgid: str = field(compare=False)
    session: str = field(compare=False)
