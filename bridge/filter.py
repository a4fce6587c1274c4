"""The callback API: a filter is a set of handlers of events, composed and asked in order.

The shipped policy (policy.py) is its first user.  Knows nothing of processes and links;
server.py and those who run a filter in process call `decide` and `report`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from bridge.edits import Verdict, unstuff
from bridge.smtpd import events
from bridge.smtpd.decisions import Decision, Junk, Proceed, Refusal, Rewrite
from bridge.smtpd.protocol import Registration
from bridge.smtpd.session import Session

Answer = Decision | Verdict | None
Handler = Callable[[Any, Session], Answer | Awaitable[Answer]]
H = TypeVar("H", bound=Handler)

# smtpd's mark of a session or message that an earlier filter called junk: the very first line,
# above smtpd's own Received (smtp_session.c, smtp_message_begin).
JUNK_LINE = b"X-Spam: Yes\n"


@dataclass(frozen=True, slots=True)
class Message(events.Event):
    """A whole message, at its final dot; the answer is the verdict on it.

    wire: its bytes as smtpd sends them, lines ended by LF, dot-stuffed, smtpd's own Received
    first; offsets of splices count in these.
    """

    keyword: ClassVar[str] = "message"
    wire: bytes = field(repr=False)

    @property
    def start(self) -> int:
        """Where the message begins: after smtpd's own `X-Spam: Yes`, if there is one."""
        marked = self.wire.startswith(JUNK_LINE + b"Received:")
        return len(JUNK_LINE) if marked else 0

    @property
    def content(self) -> bytes:
        """The RFC 5322 message, lines ended by LF, without smtpd's `X-Spam: Yes`."""
        return unstuff(self.wire[self.start :])


class Filter:
    """Handlers of events.

    >>> app = Filter()
    >>> @app.on(events.MailFrom)
    ... async def sender(event: events.MailFrom, session: Session) -> Answer:
    ...     return Reject("5.7.1", "Not you") if event.address == "a@example.org" else None

    A handler gets the event and the session, and returns a decision, a `Verdict` (for
    `Message`), or None for proceed.  Several handlers of one event are asked in order; edits
    add up, and the first decision that is not proceed ends it.  Plain functions run in a
    thread, so that one that blocks harms no other session.
    """

    def __init__(self) -> None:
        self._handlers: dict[type[events.Event], list[Handler]] = {}

    def on(self, *types: type[events.Event]) -> Callable[[H], H]:
        """Decorate a handler of these events.  TypeError for what is no event."""
        for type_ in types:
            if type_ is not Message and type_.keyword not in events.REPORTS | events.PHASES:
                raise TypeError(f"{type_!r}: expected an event of bridge.smtpd.events, or Message")

        def add(handler: H) -> H:
            for type_ in types:
                self._handlers.setdefault(type_, []).append(handler)
            return handler

        return add

    @property
    def registration(self) -> Registration:
        """What smtpd is to be asked for, derived from the handlers."""
        phases = {t.keyword for t in self._handlers if t.keyword in events.PHASES}
        asks_commit = events.Commit in self._handlers
        if Message in self._handlers:
            phases |= {"data-line", "commit"}
        reports = frozenset(t.keyword for t in self._handlers if t.keyword in events.REPORTS)
        return Registration(frozenset(phases), reports, asks_commit=asks_commit)

    async def report(self, event: events.Event, session: Session) -> None:
        """Tell the handlers of a report."""
        for handler in self._handlers.get(type(event), ()):
            await _call(handler, event, session)

    async def decide(self, event: events.Event, session: Session) -> Verdict:
        """What the handlers say to a request or message.  TypeError for an answer that is
        none; whatever a handler raises."""
        verdict = Verdict()
        for handler in self._handlers.get(type(event), ()):
            match answer := await _call(handler, event, session):
                case None:
                    pass
                case Verdict():
                    edits = (*verdict.edits, *answer.edits)
                    verdict = Verdict(answer.decision, edits, answer.reason or verdict.reason)
                case Proceed() | Junk() | Refusal() | Rewrite():
                    verdict = Verdict(answer, verdict.edits, verdict.reason)
                case _:
                    raise TypeError(f"a handler answered {type(answer).__name__}")
            if not isinstance(verdict.decision, Proceed):
                break
        return verdict


async def _call(handler: Handler, event: events.Event, session: Session) -> object:
    if inspect.iscoroutinefunction(handler):
        return await handler(event, session)
    answer = await asyncio.to_thread(handler, event, session)
    return await answer if inspect.isawaitable(answer) else answer
