"""The event loop in which a filter's handlers run, for a filter in one process with the protocol.

Two threads use it: the one that speaks with smtpd asks and tells, the loop's own answers.
What an answer leads to is core.py's.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bridge import edits, log
from bridge.filter import Filter, Message
from bridge.smtpd import events
from bridge.smtpd.decisions import Decision
from bridge.smtpd.items import Slot
from bridge.smtpd.message import Splice
from bridge.smtpd.session import Session
from bridge.smtpd.wire import longest_line

MAX_REPORTS = 10_000  # that wait for their handlers; more are dropped

Log = Callable[..., None]


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
