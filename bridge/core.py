"""A filter in one process with the protocol: two threads that meet here.

`Core` belongs to the thread that speaks with smtpd, and keeps its promise whatever the
handlers do: one legal answer for each request, before its deadline.  `Handlers` is the event
loop in which they run.  No file descriptors: inprocess.py and testing/tester.py have those.
"""

from __future__ import annotations

import asyncio
import copy
import math
import queue
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bridge import edits, log
from bridge.failure import TOO_LARGE, about, outcome
from bridge.filter import Filter, Message
from bridge.smtpd import events
from bridge.smtpd.decisions import NO_SPACE, Decision, Proceed, Refusal, tempfail
from bridge.smtpd.items import MESSAGE, BadLine, Broken, Item, Oversize, Slot, Withheld
from bridge.smtpd.message import Splice
from bridge.smtpd.protocol import Protocol
from bridge.smtpd.session import Session
from bridge.smtpd.wire import longest_line
from bridge.spool import Spool

MAX_REPORTS = 10_000  # that wait for their handlers; more are dropped

Log = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that an answer may take, counted from the request and from the final dot, as
    the shim's (its defaults say why); and bytes."""

    command: float = 15.0
    message: float = 45.0
    message_size: int = 64 << 20
    memory: int = 256 << 20  # of all messages that come in; beyond it they go to files
    spill: int = 1 << 30
    judged: int = 256 << 20  # of all messages that the handlers have; the others wait


@dataclass(slots=True, eq=False)
class Asked:
    """A request that the handlers have, or will get."""

    slot: Slot
    session: Session  # a snapshot
    deadline: float
    size: int = 0  # of a message
    held: int = 0  # bytes that the handlers have
    task: asyncio.Task[None] | None = None  # the loop's


class Said(NamedTuple):
    """What the handlers made of it.  decision: None if they failed, error says how."""

    asked: Asked
    decision: Decision | None
    splices: Sequence[Splice] = ()
    reason: str = ""
    error: str = ""


def snapshot(session: Session, deadline: float) -> Session:
    """What a handler gets: what it does to it touches nothing, and nothing touches it."""
    transaction = session.transaction
    if transaction is not None:
        transaction = replace(transaction, recipients=list(transaction.recipients))
    keep = copy.deepcopy(session.keep)
    return replace(session, transaction=transaction, keep=keep, deadline=deadline)


class Handlers:
    """The event loop of a filter's handlers."""

    def __init__(self, app: Filter, say: Callable[[Said], None], log: Log) -> None:
        self._app = app
        self._say = say
        self._log = log
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._on_stray)
        self._leaving = asyncio.Event()
        self._asks: set[asyncio.Task[None]] = set()
        self._reports: set[asyncio.Task[None]] = set()
        self._told = self._heard = 0  # reports handed over, and done with
        self._dropping = False

    # In the thread that speaks with smtpd -------------------------------------------------

    def ask(self, asked: Asked, event: events.Event) -> None:
        """Let the handlers answer."""
        self._loop.call_soon_threadsafe(self._begin, asked, event)

    def cancel(self, asked: Asked) -> None:
        """Nobody waits for this answer any more."""
        self._loop.call_soon_threadsafe(self._end, asked)

    def tell(self, event: events.Report, session: Session) -> None:
        """Let the handlers know of a report."""
        dropping = self._told - self._heard >= MAX_REPORTS
        if dropping and not self._dropping:
            self._log("reports-dropped", waiting=MAX_REPORTS)
        self._dropping = dropping
        if not dropping:
            self._told += 1
            self._loop.call_soon_threadsafe(self._report, event, session)

    def settle(self, patience: float) -> None:
        """Wait until the handlers of all reports so far are done, at most so many seconds."""
        until = time.monotonic() + patience
        while self._heard < self._told and time.monotonic() < until:
            time.sleep(0.005)

    def leave(self) -> None:
        """Let `serve` return."""
        self._loop.call_soon_threadsafe(self._leaving.set)

    # In the thread of the loop ------------------------------------------------------------

    def start(self) -> None:
        """Call the start hooks; whatever one raises."""
        self._loop.run_until_complete(self._app.start())

    def serve(self) -> None:
        """Run until `leave`, whatever happens in the loop."""
        leaving = self._loop.create_task(self._leaving.wait())
        while not leaving.done():
            try:
                self._loop.run_until_complete(leaving)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
                # Of a task that a handler made, or somebody stopped the loop: not ours to obey.
                self._log("handler-failed", error=log.folded(error))

    def stop(self, patience: float) -> None:
        """Finish the reports and call the stop hooks, each for up to so many seconds."""
        self._loop.run_until_complete(self._stop(patience))
        self._loop.close()

    async def _stop(self, patience: float) -> None:
        for task in self._asks:
            task.cancel()
        if self._reports:
            await asyncio.wait(self._reports, timeout=patience)
        for task in self._reports:
            task.cancel()
        try:
            async with asyncio.timeout(patience):
                await asyncio.gather(*self._asks, *self._reports, return_exceptions=True)
                await self._app.stop()
        except Exception as error:  # noqa: BLE001 an author's hook: we leave all the same
            self._log("stop-failed", error=log.folded(error))

    def _begin(self, asked: Asked, event: events.Event) -> None:
        asked.task = self._loop.create_task(self._decide(asked, event))
        self._asks.add(asked.task)
        asked.task.add_done_callback(self._asks.discard)

    def _end(self, asked: Asked) -> None:
        if asked.task is not None:
            asked.task.cancel()

    def _report(self, event: events.Report, session: Session) -> None:
        task = self._loop.create_task(self._hear(event, session))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _hear(self, event: events.Report, session: Session) -> None:
        try:
            await self._app.report(event, session)
        except Exception as error:  # noqa: BLE001 whatever a handler raises
            self._failed(session, event.keyword, log.folded(error))
        finally:
            self._heard += 1

    async def _decide(self, asked: Asked, event: events.Event) -> None:
        try:
            verdict = await self._app.decide(event, asked.session)
            splices: Sequence[Splice] = ()
            if isinstance(event, Message) and verdict.edits:
                longest = longest_line(event.version)
                splices = edits.apply(event.wire, verdict.edits, start=event.start, longest=longest)
            said = Said(asked, verdict.decision, splices, verdict.reason)
        except Exception as error:  # noqa: BLE001 whatever a handler raises
            said = Said(asked, None, error=log.folded(error))
        self._say(said)

    def _failed(self, session: Session, event: str, error: str) -> None:
        self._log("handler-failed", session=session.id, report=event, error=error)

    def _on_stray(self, _loop: object, context: dict[str, object]) -> None:
        error = context.get("exception")
        said = log.folded(error) if isinstance(error, BaseException) else context.get("message")
        self._log("handler-failed", error=said)


class Core:
    """The protocol and a filter.  log: writes a line, (event, **fields), from any thread;
    wake: called from the loop's thread when there is something to `settle`."""

    def __init__(
        self,
        app: Filter,
        log: Log,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or Limits()
        self.protocol = Protocol(max_message_size=self.limits.message_size)
        self.handlers = Handlers(app, self._on_said, log)
        self._app = app
        self._log = log
        self._clock = clock
        self._wake = wake
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._open: dict[str, Asked] = {}  # by session, which has one at a time
        self._waiting: deque[Asked] = deque()  # messages, until there is room for them
        self._judged = 0  # bytes of messages that the handlers have
        self._spool = Spool(self.limits.memory, self.limits.spill, tempfile.gettempdir())

    def start(self) -> None:
        """Register what the handlers want to be asked and told."""
        self.protocol.start(self._app.registration)

    @property
    def open(self) -> int:
        """How many requests wait for an answer."""
        return len(self._open)

    def receive(self, data: bytes) -> None:
        """Take bytes from smtpd."""
        self.protocol.take(data)
        full = self._spool.grew(len(data))
        self._handle()
        if full:
            for session, error in self._spool.balance(self.protocol.messages()):
                self._no_space(session, error)

    def _handle(self) -> None:
        for item in self.protocol.rest():
            self._on_item(item)

    def settle(self, wait: float = 0.0) -> None:
        """Take what the handlers said, waiting up to so many seconds for something, and answer
        for those who are late."""
        try:
            said = self._said.get(timeout=wait) if wait > 0 else self._said.get_nowait()
            while True:
                self._on_answer(said)
                said = self._said.get_nowait()
        except queue.Empty:
            pass
        if self.protocol.behind:  # something failed
            self._handle()
        now = self._clock()
        for asked in [each for each in self._open.values() if each.deadline <= now]:
            self.handlers.cancel(asked)
            self._answer(asked, tempfail(asked.slot.phase), (), "handler late")
        self._hand_over()

    def sleep(self) -> float | None:
        """Seconds until somebody is late, None if nobody is waited for."""
        if not self._open:
            return None
        first = min(asked.deadline for asked in self._open.values())
        return max(0.0, first - self._clock())

    # Items of the protocol ----------------------------------------------------------------

    def _on_item(self, item: Item) -> None:
        match item:
            case Slot():
                self._on_slot(item)
            case events.Report():
                self._on_report(item)
            case Oversize(session):
                self.protocol.withhold(session, TOO_LARGE)
            case Withheld(session, decision):
                self._tell(session, MESSAGE, decision, "")
            case Broken(session, lines):
                self._log("long-lines-broken", session=session.id, lines=lines)
            case BadLine(error):
                self._log("bad-line-from-smtpd", error=error)
            case _:
                pass

    def _on_slot(self, slot: Slot) -> None:
        if (overtaken := self._open.pop(slot.session.id, None)) is not None:
            self._let_go(overtaken)
        size = slot.message.size if slot.message is not None else 0
        if slot.message is not None and not size:
            # Without even smtpd's own Received: an earlier filter withheld it, and refuses.
            self.protocol.answer(slot, Proceed())
            return
        wait = self.limits.command if slot.message is None else self.limits.message
        deadline = self._clock() + wait
        asked = Asked(slot, snapshot(slot.session, deadline), deadline, size)
        self._open[slot.session.id] = asked
        if slot.message is None:
            self.handlers.ask(asked, slot.event)
        else:
            self._waiting.append(asked)
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the handlers the messages that there is room for."""
        while self._waiting:
            asked = self._waiting[0]
            if self._judged and self._judged + asked.size > self.limits.judged:
                return
            self._waiting.popleft()
            event, message = asked.slot.event, asked.slot.message
            if not asked.slot.open or message is None:
                continue
            try:
                wire = b"".join(message.pieces())
            except OSError as error:
                self._no_space(asked.slot.session, error)
                continue
            asked.held = asked.size
            self._judged += asked.held
            self.handlers.ask(
                asked, Message(event.session, wire, time=event.time, version=event.version)
            )

    def _on_report(self, event: events.Report) -> None:
        asked = self._open.get(event.session)
        if asked is not None and not asked.slot.open:  # its session or transaction is gone
            del self._open[event.session]
            self._let_go(asked)
        wanted = self.protocol.registration
        names = wanted.reports if event.direction == "smtp-in" else wanted.reports_out
        if event.keyword in names:
            live = self.protocol.sessions[event.session]
            self.handlers.tell(event, snapshot(live.session, math.inf))

    # Answers ------------------------------------------------------------------------------

    def _on_said(self, said: Said) -> None:
        self._said.put(said)
        self._wake()

    def _on_answer(self, said: Said) -> None:
        asked = said.asked
        if self._open.get(asked.session.id) is not asked:
            return  # too late, and answered
        if said.decision is None:
            why = f"handler failed: {said.error}"
            self._answer(asked, tempfail(asked.slot.phase), (), why)
            return
        asked.slot.session.keep = asked.session.keep
        self._answer(asked, said.decision, said.splices, said.reason)

    def _answer(
        self, asked: Asked, decision: Decision, splices: Sequence[Splice], reason: str
    ) -> None:
        self._open.pop(asked.session.id, None)
        self._room(asked)
        said = self.protocol.answer(asked.slot, decision, splices)
        if isinstance(said, Refusal) or reason:
            self._tell(asked.slot.session, asked.slot.phase, said, reason)

    def _let_go(self, asked: Asked) -> None:
        self.handlers.cancel(asked)
        self._room(asked)

    def _room(self, asked: Asked) -> None:
        self._judged -= asked.held
        asked.held = 0
        if asked in self._waiting:
            self._waiting.remove(asked)

    def _no_space(self, session: Session, error: OSError) -> None:
        self._log("spill-failed", session=session.id, error=error.strerror or str(error))
        asked = self._open.get(session.id)
        if asked is not None and asked.slot.phase == MESSAGE:
            self.handlers.cancel(asked)
            self._answer(asked, NO_SPACE, (), "spill failed")
        else:
            self.protocol.withhold(session, NO_SPACE)

    def _tell(self, session: Session, phase: str, decision: Decision | None, reason: str) -> None:
        reply = decision.reply if isinstance(decision, Refusal) else ""
        said = {"phase": phase, "by": reason, "reply": reply}
        self._log(outcome(decision), **about(session, session.transaction), **said)
