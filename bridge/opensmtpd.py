"""The callback API of December 2018 (poolp.org, py-opensmtpd), on the core of `Filter`.

    from bridge import opensmtpd

    def tx_mail(timestamp, session_id, args):
        tx_id, address, status = args

    o = opensmtpd.SMTP_IN()
    o.on_report("tx-mail", tx_mail)
    o.run()

Old scripts run with their import line changed, and can't end smtpd any more.  `args` are the
fields of the event, which changed places over the years:

    ==================  ==================  ====================  ===========================
    event               order="2018"        order="today" (0.7)   changed with protocol
    ==================  ==================  ====================  ===========================
    tx-mail, tx-rcpt    tx, address, status tx, status, address   0.6, OpenSMTPD 6.8
    link-auth           user, result        result, user          0.7, OpenSMTPD 7.4
    link-identify       name                method, name          0.1, OpenSMTPD 6.6
    link-connect        rdns, fcrdns, src, dest; src is the client
    ==================  ==================  ====================  ===========================

and all other events never did (`fields` tells).  `SMTP_IN` and `SMTP_OUT` give the order of
2018, whatever smtpd speaks, since whoever calls them unpacks that one; `SMTP_IN(order="today")`
gives today's.  `smtp_in` and `smtp_out`, the later form, give the order that smtpd speaks
(order="spoken").  Addresses come without angle brackets in every order.

Callbacks run one at a time in the order of events, in a thread of their own; one that takes
over a second no longer keeps the others waiting.  What is not answered by its deadline is
answered by the failure policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from bridge.edits import ReplaceMessage, Verdict, unstuff
from bridge.filter import Answer, Filter, Handler, Message
from bridge.smtpd import events, wire
from bridge.smtpd.decisions import Decision, Disconnect, Proceed, Refusal, Reject, Rewrite
from bridge.smtpd.session import Session
from bridge.threads import Threads

__all__ = [
    "SMTP_IN", "SMTP_OUT", "dataline", "disconnect", "fields", "proceed", "reject", "rewrite",
    "smtp_in", "smtp_out", "writeline",
]  # fmt: skip

Callback = Callable[..., object]
Order = Literal["2018", "spoken", "today"]

# The version whose order of fields it is; None is the event's own.
ORDERS: dict[str, events.Version | None] = {
    "2018": wire.INTEGER_VERSIONS[b"1"],
    "spoken": None,
    "today": events.NEWEST,
}
PATIENCE = 1.0  # s that a callback may take before the next one is called all the same

_REASON = re.compile(r"([45]\d\d)(?:[ -]([45]\.\d{1,3}\.\d{1,3}))?(?:[ -](.*))?", re.ASCII)


class SMTP_IN(Filter):
    """Reports and requests of incoming sessions.

    >>> from bridge import opensmtpd
    >>> o = opensmtpd.SMTP_IN()
    >>> o.on_report("link-disconnect", lambda timestamp, session_id, args: None)
    >>> o.on_filter("helo", lambda timestamp, session_id, args: opensmtpd.proceed(session_id))

    order: of the fields in `args`, see the module.  It is a `Filter`: it can be put in a
    chain, tried with `FilterTester`, and run under `filter-bridge run`.
    """

    direction = "smtp-in"

    def __init__(self, *, order: Order = "2018") -> None:
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"order {order!r}: expected one of {', '.join(ORDERS)}")
        self._order = ORDERS[order]
        self._in_order = _InOrder()
        self._callbacks: dict[type[events.Event], Handler] = {}  # a second one replaces the first

    def on_report(self, event: str, callback: Callback, *context: object) -> None:
        """Call `callback(timestamp, session_id, args)` at a report, or
        `callback(context, timestamp, session_id, args)` if a context is given.  args: its
        fields, as str; timestamp: seconds since the epoch, as str."""
        _check_call(callback, (*context, "", "", []))
        type_ = _known(event, events.REPORTS)

        async def tell(event: events.Event, session: Session) -> None:
            await self._in_order.run(
                callback, *context, _stamp(event), session.id, self._args(event)
            )

        self._add(type_, callback, tell)

    def on_filter(self, phase: str, callback: Callback, *context: object) -> None:
        """Call `callback(timestamp, session_id, args)` at a request, with the context first if
        there is one, and with the token before the session id if it takes that many:
        `callback(context, timestamp, token, session_id, args)`.  It answers by one of the
        functions below, at once or later, in any thread.

        data-line: called for each line of a message, once the message is complete, dot-stuffed
        and with the `.` at its end; `dataline` gives lines back, up to the `.`."""
        with_token = not _accepts(callback, (*context, "", "", []))
        if with_token:
            _check_call(callback, (*context, "", "", "", []))
        type_ = _known(phase, events.PHASES)

        def call(event: events.Event, args: Sequence[str]) -> tuple[Any, ...]:
            token = (getattr(event, "token", ""),) if with_token else ()
            return (callback, *context, _stamp(event), *token, event.session, args)

        async def ask(event: events.Event, session: Session) -> Answer:
            with _Open(session.id) as asked:
                await self._in_order.run(*call(event, self._args(event)))
                return await asked.decision

        async def ask_lines(event: Message, session: Session) -> Answer:
            lines = event.wire.decode("utf-8", "surrogateescape").split("\n")

            def each() -> None:
                for line in (*lines[:-1], "."):
                    first, *others = call(event, [line])
                    first(*others)

            with _Open(session.id) as asked:
                await self._in_order.run(each)
                decision = await asked.decision
            return decision if isinstance(decision, Refusal) else _new(event, asked.lines)

        if type_ is events.DataLine:
            self._add(Message, callback, ask_lines)
        else:
            self._add(type_, callback, ask)

    def on_event(self, callback: Callback, *context: object) -> None:
        """Call `callback(line)` with each report as a line, or `callback(context, line)`."""
        _check_call(callback, (*context, ""))

        async def tell(event: events.Event, session: Session) -> None:
            version = ".".join(map(str, event.version))
            head = ("report", version, _stamp(event), event.direction, event.keyword)
            names = wire.fields_of(type(event), event.version)
            line = "|".join((*head, session.id, *(getattr(event, name) for name in names)))
            await self._in_order.run(callback, *context, line)

        tell.__qualname__ = getattr(callback, "__qualname__", "callback")
        self.on(*events.REPORTS.values(), direction=self.direction)(tell)

    def _add(self, type_: type[events.Event], callback: Callback, handler: Handler) -> None:
        if type_ not in self._callbacks:

            async def current(event: events.Event, session: Session) -> Any:
                return await self._callbacks[type_](event, session)  # type: ignore[misc]

            current.__module__ = getattr(callback, "__module__", __name__)
            current.__qualname__ = getattr(callback, "__qualname__", "callback")
            self.on(type_, direction=self.direction)(current)
        self._callbacks[type_] = handler

    def _args(self, event: events.Event) -> list[str]:
        names = wire.fields_of(type(event), self._order or event.version)
        return [getattr(event, name) for name in names]


class SMTP_OUT(SMTP_IN):
    """Reports of outgoing sessions (`action ... relay ... filter NAME`); no requests.

    >>> from bridge import opensmtpd
    >>> o = opensmtpd.SMTP_OUT()
    >>> o.on_report("tx-commit", lambda timestamp, session_id, args: None)
    """

    direction = "smtp-out"


class smtp_in(SMTP_IN):
    """The later form: a context for each callback, and fields in the order that smtpd speaks.

    >>> from bridge import opensmtpd
    >>> def tx_data(context, timestamp, session_id, args):
    ...     context.append(args)
    >>> o = opensmtpd.smtp_in()
    >>> o.on_report("tx-data", tx_data, [])
    """

    def __init__(self, *, order: Order = "spoken") -> None:
        super().__init__(order=order)


class smtp_out(SMTP_OUT):
    """As `smtp_in`, of outgoing sessions.

    >>> from bridge import opensmtpd
    >>> o = opensmtpd.smtp_out()
    """

    def __init__(self, *, order: Order = "spoken") -> None:
        super().__init__(order=order)


def fields(event: str, order: Order = "2018") -> tuple[str, ...]:
    """What the `args` of a report or request are.

    >>> fields("tx-mail"), fields("tx-mail", "today")
    (('msgid', 'address', 'result'), ('msgid', 'result', 'address'))
    """
    type_ = _known(event, {**events.PHASES, **events.REPORTS})
    return wire.fields_of(type_, ORDERS[order] or events.NEWEST)


# Answers ----------------------------------------------------------------------------------
# The first arguments are the session's id, or the token and the session's id.


def proceed(*ids: str) -> None:
    """Go on: `proceed(session_id)` or `proceed(token, session_id)`.

    >>> proceed("7641df9771b4ed00")
    """
    _answer(ids[-1], Proceed())


def reject(*arguments: str) -> None:
    """Refuse: `reject(session_id, "550 5.7.1 Not you")`, with or without token and enhanced
    status code.  ValueError for what is no reply; 421 closes the session.

    >>> reject("7641df9771b4ed00", "550 go away")
    """
    _answer(arguments[-2], _refusal(Reject, arguments[-1]))


def disconnect(*arguments: str) -> None:
    """Refuse and close the session; arguments as of `reject`.

    >>> disconnect("7641df9771b4ed00", "421 4.7.1 Too many of you")
    """
    _answer(arguments[-2], _refusal(Disconnect, arguments[-1]))


def rewrite(*arguments: str) -> None:
    """Replace the command's argument.

    >>> rewrite("7641df9771b4ed00", "<new@example.org>")
    """
    _answer(arguments[-2], Rewrite(arguments[-1]))


def dataline(*arguments: str, flush: bool = True) -> None:
    """Give a line of the message back, dot-stuffed: `dataline(session_id, line)`; `.` ends
    it.  flush: taken for the sake of old scripts.

    >>> dataline("7641df9771b4ed00", "Subject: hi")
    """
    *_, session, line = arguments
    if (asked := _OPEN.get(session)) is not None:
        asked.lines += line.split("\n")
        if line == ".":
            asked.answer(Proceed())


writeline = dataline  # its first name


# ------------------------------------------------------------------------------------------


class _Open:
    """A session's open request, for the functions above to find."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self.decision: asyncio.Future[Decision] = self._loop.create_future()
        self.lines: list[str] = []

    def __enter__(self) -> _Open:
        _OPEN[self._session] = self
        return self

    def __exit__(self, *_: object) -> None:
        if _OPEN.get(self._session) is self:
            del _OPEN[self._session]

    def answer(self, decision: Decision) -> None:
        """Answer it, unless it was; in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
            self._loop.call_soon_threadsafe(self._settle, decision)

    def _settle(self, decision: Decision) -> None:
        if not self.decision.done():
            self.decision.set_result(decision)


# The functions of 2018 know a session's id and nothing else.
_OPEN: dict[str, _Open] = {}


def _answer(session: str, decision: Decision) -> None:
    if (asked := _OPEN.get(session)) is not None:  # else nobody asked, or it is too late
        asked.answer(decision)


def _refusal(kind: type[Reject] | type[Disconnect], reason: str) -> Refusal:
    if not (match := _REASON.fullmatch(reason.strip())):
        raise ValueError(f"reply {reason!r}: expected like '550 5.7.1 Text'")
    code = int(match[1])
    status = match[2] or f"{match[1][0]}.7.1"
    return (Disconnect if code == 421 else kind).clean(status, match[3] or "", code)


def _new(message: Message, lines: Sequence[str]) -> Verdict:
    """What the lines that were given back make of a message; no line is no change."""
    if not lines:
        return Verdict()
    new = "".join(f"{line}\n" for line in lines[: lines.index(".")])
    raw = wire.raw(new).removeprefix(message.wire[: message.start])
    if raw == message.wire[message.start :]:
        return Verdict()
    return Verdict(edits=(ReplaceMessage(unstuff(raw)),))


class _InOrder:
    """Callbacks one at a time, first come, first called."""

    def __init__(self) -> None:
        self._threads = Threads()
        self._loop: asyncio.AbstractEventLoop | None = None  # that the others belong to
        self._next = asyncio.Lock()
        self._running: asyncio.Task[object] | None = None  # the last one that was called

    async def run(self, callback: Callback, *arguments: object) -> None:
        """Call it; whatever it raises."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._loop, self._next, self._running = loop, asyncio.Lock(), None
        async with self._next:
            if self._running is not None:
                await asyncio.wait((self._running,), timeout=PATIENCE)
            running = asyncio.ensure_future(self._threads.run(callback, *arguments))
            self._running = running
        await asyncio.shield(running)  # it can't be stopped, only no longer waited for


def _known(name: str, table: dict[str, Any]) -> type[events.Event]:
    type_: type[events.Event] | None = table.get(wire.OLD_NAMES.get(name, name))
    if type_ is None:
        raise ValueError(f"{name!r}: expected one of {', '.join(sorted(table))}")
    return type_


def _accepts(callback: Callback, arguments: tuple[object, ...]) -> bool:
    try:
        inspect.signature(callback).bind(*arguments)
    except TypeError:
        return False
    return True


def _check_call(callback: Callback, arguments: tuple[object, ...]) -> None:
    if not _accepts(callback, arguments):
        raise TypeError(f"{callback!r}: expected to take {len(arguments)} arguments")


def _stamp(event: events.Event) -> str:
    return f"{event.time:.6f}"
