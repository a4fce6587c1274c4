"""A filter in one process with the protocol: the half that speaks with smtpd.

It keeps its promise whatever the handlers do, which run in another thread (handlerloop.py):
one legal answer for each request, before its deadline.  No file descriptors: inprocess.py and
testing/tester.py have those.
"""

from __future__ import annotations

import math
import queue
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge import log
from bridge.failure import TOO_LARGE, about, outcome
from bridge.filter import Filter, Message
from bridge.handlerloop import Asked, Handlers, Log, Said, snapshot
from bridge.smtpd import events
from bridge.smtpd.decisions import NO_SPACE, Decision, Proceed, Refusal, tempfail
from bridge.smtpd.items import MESSAGE, BadLine, Broken, Item, Oversize, Slot, Withheld
from bridge.smtpd.message import Splice
from bridge.smtpd.protocol import Protocol
from bridge.smtpd.session import Session
from bridge.spool import Spool


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
        self._something_failed = False
        self._spool = Spool(self.limits.memory, self.limits.spill, tempfile.gettempdir())

    def start(self) -> None:
        """Register what the handlers want to be asked and told."""
        self.protocol.start(self._app.registration)

    @property
    def open(self) -> int:
        """How many requests wait for an answer."""
        return len(self._open)

    @property
    def behind(self) -> bool:
        """Is there something that was not handled, for want of memory?  Then nothing more should
        be taken in before the next `settle`."""
        return self.protocol.behind

    def receive(self, data: bytes) -> None:
        """Take bytes from smtpd."""
        self.protocol.take(data)
        self._guarded(self._handle)
        if self._spool.grew(len(data)):
            for session, error in self._spool.balance(self.protocol.messages()):
                self._guarded(self._no_space, session, error)

    def _handle(self) -> None:
        for item in self.protocol.rest():
            self._guarded(self._on_item, item)

    def _guarded(self, call: Callable[..., object], *arguments: object) -> None:
        """What goes wrong for one session must not harm the others, nor end the process."""
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001
            self._something_failed = True
            self._log("internal-error", error=log.folded(error))

    def settle(self, wait: float = 0.0) -> None:
        """Take what the handlers said, waiting up to so many seconds for something, and answer
        for those who are late."""
        try:
            said = self._said.get(timeout=wait) if wait > 0 else self._said.get_nowait()
            while True:
                self._guarded(self._on_answer, said)
                said = self._said.get_nowait()
        except queue.Empty:
            pass
        if self.behind:
            self._guarded(self._handle)
        now = self._clock()
        for asked in [each for each in self._open.values() if each.deadline <= now]:
            self._guarded(self._on_late, asked)
        self._guarded(self._hand_over)
        if self._something_failed:
            self._guarded(self._answer_forgotten)

    def _on_late(self, asked: Asked) -> None:
        self.handlers.cancel(asked)
        self._answer(asked, tempfail(asked.slot.phase), (), "handler late")

    def _answer_forgotten(self) -> None:
        """Answer requests that nobody works on, or that are late: whatever should have done
        something with them has failed."""
        self._something_failed = False
        now = self._clock()
        for live in list(self.protocol.sessions.values()):
            slot = live.slot
            if slot is None or not slot.open:
                continue
            asked = self._open.get(live.session.id)
            if asked is None or asked.slot is not slot or asked.deadline <= now:
                self._open.pop(live.session.id, None)
                self.protocol.answer(slot, tempfail(slot.phase))

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
