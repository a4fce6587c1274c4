"""The callback API: a filter is a set of handlers of events, composed and asked in order.

The shipped policy (policy.py) is its first user.  Knows nothing of processes and links:
server.py, inprocess.py and testing/tester.py call `start`, `decide`, `report` and `stop`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from bridge import log
from bridge.edits import Verdict
from bridge.handlers import (
    DIRECTIONS,
    Answer,
    Handler,
    HandlerError,
    Message,
    both,
    check_type,
    checked,
    name_of,
)
from bridge.smtpd import events
from bridge.smtpd.decisions import Proceed
from bridge.smtpd.items import Registration
from bridge.smtpd.session import Session
from bridge.state import State
from bridge.threads import LIMIT, Threads

if TYPE_CHECKING:
    from bridge.core import Limits

__all__ = ["Answer", "Filter", "Handler", "HandlerError", "Message"]

Hook = Callable[[], Awaitable[None] | None]

T = TypeVar("T")
E = TypeVar("E", bound=events.Event)
R = TypeVar("R", bound=Answer | Awaitable[Answer])
H = TypeVar("H", bound=Handler)
K = TypeVar("K", bound=Hook)

MAX_KEEP = 4096  # characters of a session's keep, as JSON; it travels with every request

# Which states end with which report, after its handlers (smtpd says tx-reset after commit and
# rollback, but to a filter of outgoing mail not always last: mta_session.c).
TRANSACTION_ENDS = (events.TxCommit, events.TxRollback, events.TxReset, events.LinkDisconnect)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One handler of one event."""

    type: type[events.Event]
    direction: str
    call: Handler


class Filter:
    """Handlers of events.

    >>> from bridge import Filter, MailFrom, Reject, Session
    >>> app = Filter()
    >>> @app.on(MailFrom)
    ... async def sender(event: MailFrom, session: Session) -> Reject | None:
    ...     return Reject("5.7.1", "Not you") if event.address == "a@example.org" else None

    A handler gets the event and the session, and returns a decision, a `Verdict` (for
    `Message`), or None for proceed.  Several handlers of one event are asked in order; edits
    add up, each handler sees the message as those before it left it, and the first decision
    that is not proceed ends it.  Handlers of one session run one at a time, in the order of
    its events; those of different sessions run side by side.

    An async handler must not block: it would hold up all others.  Plain functions run in
    threads, at most `threads` at once, so that one that blocks harms no other session; beyond
    that, calls wait for a free thread.  Whoever has no answer at `session.deadline` (by the
    event loop's clock), raises, or answers what is none or is not legal in that phase, is
    answered for by the failure policy, 451 4.3.0 unless configured, and one log line tells.

    Where to keep things:

    ====================  ============================  =====================================
    `per_session(make)`   any object, in this process   gone with the session or the process
    `per_transaction()`   the same                      gone with the transaction
    `session.keep`        JSON, 4,096 characters, from  gone with the session; outlives the
                          handlers of requests          process, and other bridges see it
    the session's fields  what smtpd said               a snapshot: changes are lost
    ====================  ============================  =====================================

    Runs in three ways: `app.run()` at the end of `myfilter.py`, which smtpd starts;
    `filter-bridge run myfilter:app`, which smtpd starts, and which starts the filter anew
    when it dies or hangs; `filter-bridge serve --app myfilter:app` somewhere else.
    """

    def __init__(self, *, threads: int = LIMIT) -> None:
        self._parts: list[_Entry | Filter] = []  # in the order in which they are asked
        self._sessions: list[State[Any]] = []
        self._transactions: list[State[Any]] = []
        self._starts: list[Hook] = []
        self._stops: list[Hook] = []
        self._started: list[Filter] = []  # with the included ones
        self._threads = Threads(threads)
        self._turns: dict[str, _Turn] = {}  # of the sessions that have something to do

    # Handlers -----------------------------------------------------------------------------

    @overload
    def on(
        self, event: type[E], /, *, direction: str = "smtp-in"
    ) -> Callable[[Callable[[E, Session], R]], Callable[[E, Session], R]]: ...

    @overload
    def on(self, *types: type[events.Event], direction: str = "smtp-in") -> Callable[[H], H]: ...

    def on(self, *types: type[events.Event], direction: str = "smtp-in") -> Callable[[Any], Any]:
        """Decorate a handler of these events.  direction: smtp-in, or smtp-out for reports of
        outgoing mail (`action ... relay ... filter NAME` in smtpd.conf; smtpd 6.7 and later).
        TypeError for what is no event or no handler.

        >>> from bridge import Filter, Session, TxCommit, TxRollback
        >>> app = Filter()
        >>> @app.on(TxCommit, TxRollback, direction="smtp-out")
        ... def ended(event: TxCommit | TxRollback, session: Session) -> None: ...
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r}: expected {' or '.join(DIRECTIONS)}")
        for type_ in types:
            check_type(type_, direction)

        def add(handler: Any) -> Any:
            try:
                inspect.signature(handler).bind(None, None)
            except TypeError as error:
                raise TypeError(f"{name_of(handler)}: expected (event, session): {error}") from None
            self._parts += [_Entry(type_, direction, handler) for type_ in types]
            return handler

        return add

    def include(self, other: Filter) -> None:
        """Ask `other` after what is here so far.  It goes on being itself: handlers that it
        gets later are asked too.

        >>> from bridge import Filter
        >>> app, shared = Filter(), Filter()
        >>> app.include(shared)
        """
        if any(part is self for part in other._all()):
            raise ValueError("a filter can't include itself")
        self._parts.append(other)

    @classmethod
    def chain(cls, *filters: Filter) -> Filter:
        """A filter that asks these in order.

        >>> from bridge import Filter
        >>> app = Filter.chain(Filter(), Filter())
        """
        chained = Filter()
        for each in filters:
            chained.include(each)
        return chained

    def per_session(self, make: Callable[[], T]) -> State[T]:
        """State of each session, made by `make` at first use, dropped after link-disconnect.

        >>> from collections import Counter
        >>> from bridge import Filter, RcptTo, Session
        >>> app = Filter()
        >>> seen = app.per_session(Counter[str])
        >>> @app.on(RcptTo)
        ... async def count(event: RcptTo, session: Session) -> None:
        ...     seen(session)[event.address] += 1
        """
        self._sessions.append(state := State(make))
        return state

    def per_transaction(self, make: Callable[[], T]) -> State[T]:
        """State of each session's transaction, from its `MailFrom` on, dropped when it ends.

        >>> from bridge import Filter
        >>> app = Filter()
        >>> recipients = app.per_transaction(list[str])
        """
        self._transactions.append(state := State(make))
        return state

    def on_start(self, hook: K) -> K:
        """Decorate what is called before the first event, in the event loop: to make clients.

        >>> from bridge import Filter
        >>> app = Filter()
        >>> @app.on_start
        ... async def connect() -> None: ...
        """
        self._starts.append(hook)
        return hook

    def on_stop(self, hook: K) -> K:
        """Decorate what is called at the end, which may be cut short: to close clients.

        >>> from bridge import Filter
        >>> app = Filter()
        >>> @app.on_stop
        ... async def close() -> None: ...
        """
        self._stops.append(hook)
        return hook

    def run(self, limits: Limits | None = None) -> NoReturn:
        """Be the filter that smtpd has started: speak on stdin and stdout, leave at the end.

        What is printed from now on goes to stderr, which smtpd logs.  Needs nothing but
        smtpd.conf: `filter "mine" proc-exec "/usr/local/bin/myfilter.py"`.  limits: deadlines
        and bounds; under the shim, bridge.toml has them.
        """
        from bridge.inprocess import run  # not for those who never run a filter themselves

        run(self, limits)

    # What those who run it call -----------------------------------------------------------

    @property
    def registration(self) -> Registration:
        """What smtpd is to be asked for, by this filter and those that it includes."""
        included = [part.registration for part in self._parts if isinstance(part, Filter)]
        return reduce(both, included, self.own_registration)

    @property
    def own_registration(self) -> Registration:
        """The same without those included; derived from the handlers."""
        own = [part for part in self._parts if isinstance(part, _Entry)]
        types = {entry.type for entry in own if entry.direction == "smtp-in"}
        phases = {type_.keyword for type_ in types} & events.PHASES.keys()
        if Message in types:
            phases |= {"data-line", "commit"}
        told, told_out = (
            {entry.type.keyword for entry in own if entry.direction == direction}
            & events.REPORTS.keys()
            for direction in DIRECTIONS
        )
        # Whoever has state must be told of its end.
        ends = {type_.keyword for type_ in TRANSACTION_ENDS} if self._transactions else set()
        ends |= {events.LinkDisconnect.keyword} if self._sessions else set()
        return Registration(
            phases=frozenset(phases),
            reports=frozenset(told | ends if told or phases else ()),
            reports_out=frozenset(told_out | ends if told_out else ()),
            asks_commit=events.Commit in types,
        )

    async def start(self) -> None:
        """Call the start hooks; whatever one raises."""
        for each in self._all():
            self._started.append(each)
            for hook in each._starts:
                await _hooked(hook)

    async def stop(self) -> None:
        """Call the stop hooks, of whom was started last first; the first error of one."""
        errors: list[Exception] = []
        while self._started:
            for hook in reversed(self._started.pop()._stops):
                try:
                    await _hooked(hook)
                except Exception as error:  # noqa: BLE001 the others are to be called too
                    errors.append(error)
        if errors:
            raise errors[0]

    async def report(self, event: events.Event, session: Session) -> None:
        """Tell the handlers of a report, all of them; the first `HandlerError` of one."""
        errors: list[HandlerError] = []
        async with self._turn(session.id):
            try:
                for handler in self._handlers(event):
                    try:
                        await self._call(handler, event, session)
                    except HandlerError as error:
                        errors.append(error)
            finally:
                self._drop_after(event)
        if errors:
            raise errors[0]

    async def decide(self, event: events.Event, session: Session) -> Verdict:
        """What the handlers say to a request or message; legal in its phase.  HandlerError
        for anything else that one of them does."""
        async with self._turn(session.id):
            if isinstance(event, events.MailFrom):  # the one before may have been refused
                self._drop(events.TxReset, session.id)
            kept = json.dumps(session.keep)
            verdict = await self._ask(event, session)
            try:
                if len(json.dumps(session.keep)) <= MAX_KEEP:
                    return verdict
                why = f"keep dropped: over {MAX_KEEP} characters"
            except (TypeError, ValueError, RecursionError):
                why = "keep dropped: not JSON"
            session.keep = json.loads(kept)
            return Verdict(verdict.decision, verdict.edits, _joined(verdict.reason, why))

    async def _ask(self, event: events.Event, session: Session) -> Verdict:
        verdict = Verdict()
        done = 0  # of the verdict's edits, those that are in the event
        for handler in self._handlers(event):
            if isinstance(event, Message) and (new := verdict.edits[done:]):
                event = event.edited(new)
                done = len(verdict.edits)
            said = checked(handler, event, await self._call(handler, event, session))
            verdict = Verdict(
                said.decision, verdict.edits + said.edits, _joined(verdict.reason, said.reason)
            )
            if not isinstance(said.decision, Proceed):
                break
        return verdict

    async def _call(self, handler: Handler, event: events.Event, session: Session) -> object:
        """What a handler answers; HandlerError for whatever it raises, sys.exit() too."""
        try:
            if inspect.iscoroutinefunction(handler):
                return await handler(event, session)
            answer = await self._threads.run(handler, event, session)
            return await answer if inspect.isawaitable(answer) else answer
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # we are not wanted any more
                raise
            raise HandlerError(f"{name_of(handler)}: {log.folded(error)}") from error
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise HandlerError(f"{name_of(handler)}: {log.folded(error)}") from error

    # The parts ----------------------------------------------------------------------------

    def _all(self) -> Iterator[Filter]:
        yield self
        for part in self._parts:
            if isinstance(part, Filter):
                yield from part._all()

    def _handlers(self, event: events.Event) -> Iterator[Handler]:
        for part in self._parts:
            if isinstance(part, Filter):
                yield from part._handlers(event)
            elif part.type is type(event) and part.direction == event.direction:
                yield part.call

    def _drop_after(self, event: events.Event) -> None:
        if isinstance(event, TRANSACTION_ENDS):
            self._drop(type(event), event.session)

    def _drop(self, end: type[events.Event], session: str) -> None:
        for each in self._all():
            ended = each._transactions
            if end is events.LinkDisconnect:
                ended = ended + each._sessions
            for state in ended:
                state.drop(session)

    @asynccontextmanager
    async def _turn(self, session: str) -> AsyncIterator[None]:
        """Wait until the session's earlier events are done with."""
        turn = self._turns.setdefault(session, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[session]


@dataclass(slots=True, eq=False)
class _Turn:
    """Whose turn it is among the events of a session."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # first come, first served
    wanted: int = 0


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


async def _hooked(hook: Hook) -> None:
    called = hook()
    if inspect.isawaitable(called):
        await called
