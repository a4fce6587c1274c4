"""What a handler is, what it may be given and may answer, and what is wrong with one.

Pure: filter.py calls them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from bridge import log
from bridge.edits import Edit, Verdict, apply, header_fields, unstuff
from bridge.smtpd import events
from bridge.smtpd.decisions import Decision, Junk, Proceed, Refusal, Rewrite, legal
from bridge.smtpd.items import Registration
from bridge.smtpd.message import join
from bridge.smtpd.session import Session

Answer = Decision | Verdict | None
Handler = Callable[[Any, Session], Answer | Awaitable[Answer]]

# smtpd's mark of a session or message that an earlier filter called junk: the very first line,
# above smtpd's own Received (smtp_session.c, smtp_message_begin).
JUNK_LINE = b"X-Spam: Yes\n"
DIRECTIONS = ("smtp-in", "smtp-out")


@dataclass(frozen=True, slots=True)
class Message(events.Event):
    r"""A whole message, at its final dot; the answer is the verdict on it.

    wire: its bytes as smtpd sends them, lines ended by LF, dot-stuffed, smtpd's own Received
    first; offsets of splices count in these.  start: where the message begins, after smtpd's
    own `X-Spam: Yes`, if there is one.

    >>> Message("1", b"Subject: hi\n\n..and a dot\n").content
    b'Subject: hi\n\n.and a dot\n'
    """

    keyword: ClassVar[str] = "message"
    wire: bytes = field(repr=False)
    start: int = field(default=-1, kw_only=True)

    def __post_init__(self) -> None:
        if self.start < 0:
            marked = self.wire.startswith(JUNK_LINE + b"Received:")
            object.__setattr__(self, "start", len(JUNK_LINE) if marked else 0)

    def edited(self, edits: Sequence[Edit]) -> Message:
        """The message as these edits leave it."""
        wire = join(self.wire, apply(self.wire, edits, start=self.start))
        return replace(self, wire=wire)

    def headers(self, name: str) -> list[str]:
        r"""The values of all fields of that name, from the top, unfolded, as they stand there.

        >>> Message("1", b"To: a@example.org,\n b@example.org\n\n").headers("to")
        ['a@example.org, b@example.org']
        """
        return [
            each.value.decode("utf-8", "surrogateescape")
            for each in header_fields(self.wire, self.start)
            if each.name.lower() == name.lower()
        ]

    @property
    def content(self) -> bytes:
        """The RFC 5322 message, lines ended by LF, without smtpd's `X-Spam: Yes`."""
        return unstuff(self.wire[self.start :])


class HandlerError(log.Told):
    """A handler failed: the failure policy answers.  The text names handler, error and place,
    and nothing that a client or a service wrote."""


def check_type(type_: type[events.Event], direction: str) -> None:
    """TypeError unless there can be a handler of these events in that direction."""
    if type_ is events.DataLine:
        raise TypeError("DataLine: expected Message; lines come whole, at the final dot")
    known = (*events.REPORTS.values(), *events.PHASES.values(), Message)
    if type_ not in known:
        raise TypeError(f"{type_!r}: expected an event of bridge.smtpd.events, or Message")
    if direction == "smtp-out" and not issubclass(type_, events.Report):
        raise TypeError(f"{type_.__name__}: of smtp-out there are reports only")


def checked(handler: Handler, event: events.Event, answer: object) -> Verdict:
    """What a handler answered, as a verdict; HandlerError for what is none or is not legal."""
    match answer:
        case None:
            return Verdict()
        case Verdict():
            verdict = answer
        case Proceed() | Junk() | Refusal() | Rewrite():
            verdict = Verdict(answer)
        case _:
            kind = type(answer).__name__
            raise HandlerError(
                f"{name_of(handler)}: answered {kind}: expected a decision, a Verdict or None"
            )
    phase = "commit" if isinstance(event, Message) else event.keyword
    allowed = legal(phase, event.version)
    decision = verdict.decision
    said = decision.keyword if isinstance(decision, Decision) else ""
    if said not in allowed:
        raise HandlerError(
            f"{name_of(handler)}: answered {said or type(decision).__name__} at {event.keyword}: "
            f"expected one of {', '.join(sorted(allowed))}"
        )
    edits = tuple(verdict.edits)
    if not all(isinstance(edit, Edit) for edit in edits):
        raise HandlerError(f"{name_of(handler)}: answered edits that are none")
    if edits and not isinstance(event, Message):
        raise HandlerError(f"{name_of(handler)}: edits at {event.keyword}: expected at Message")
    return Verdict(decision, edits, verdict.reason)


def both(one: Registration, other: Registration) -> Registration:
    """What two filters want together."""
    return Registration(
        one.phases | other.phases,
        one.reports | other.reports,
        one.reports_out | other.reports_out,
        one.asks_commit or other.asks_commit,
    )


def name_of(handler: object) -> str:
    """For a log line: module and function."""
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    return f"{getattr(handler, '__module__', '')}.{name}".lstrip(".")
