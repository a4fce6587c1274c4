"""The process under smtpd: fd 0 and 1, deadlines, and the failure policy's answers.

One thread, one selectors loop, standard library only.  Its promise: every request is
answered exactly once, legally for its phase, in its own protocol version, before its
deadline - or no byte leaves.  It ends only on end-of-file from smtpd.  What may be said
when is smtpd/protocol.py's, which bridge gets what is dispatch.py's, how bridges come and
go is bridges.py's; nothing is decided here but what stands for a missing answer.
"""

from __future__ import annotations

import resource
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bridge import link, log
from bridge.bridges import Bridges
from bridge.child import Child
from bridge.config import Config
from bridge.dial import Dialer
from bridge.dispatch import Dispatcher, Pending
from bridge.failure import REASONS, about, consequence, outcome, unscanned
from bridge.linkend import LinkEnd
from bridge.registration import exposed, from_hello, shipped
from bridge.smtpd import events, wire
from bridge.smtpd.decisions import NO_SPACE, Decision, Proceed, Refusal, tempfail
from bridge.smtpd.items import MESSAGE, BadLine, Broken, Item, Oversize, Slot, Withheld
from bridge.smtpd.message import Splice, SpliceError
from bridge.smtpd.protocol import Protocol
from bridge.smtpd.session import Session, Transaction
from bridge.smtpdend import SmtpdEnd
from bridge.spool import Spool

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
TICK = 1.0  # the longest sleep, s
MAX_KEEP = 4096  # characters of a session's keep
PAUSE = 0.05  # s after a failure: what fails at once, each time, would take a whole core


@dataclass(frozen=True, slots=True)
class Options:
    """How one shim was started, besides its configuration."""

    arguments: Sequence[str] = ()  # of the bridge, as a child
    profile: str | None = None  # forced
    application: bool = False  # the registration is the bridge's to say


class Shim:
    """One shim."""

    def __init__(
        self,
        config: Config,
        options: Options,
        *,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        clock: Callable[[], float] = time.monotonic,
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self.config = config
        self.options = options
        self.protocol = Protocol(
            max_message_size=config.shim.max_message_size,
            break_long_lines=config.shim.long_lines == "break",
            session_in_reply=True,
        )
        self._wanted = None if options.application else shipped(config)
        self._stderr = log.Stderr(stderr)
        self._clock = clock
        self._selector = selector or selectors.PollSelector()
        self._smtpd = SmtpdEnd(stdin, stdout, self.protocol.output)
        self._input = b""  # what it said, until the protocol has it
        self._something_failed = False
        self._short_of_memory = False
        self._dispatcher = Dispatcher()
        self._spool = Spool(config.shim.max_memory, config.shim.max_spill, config.shim.spill_dir)
        self._bridges = Bridges(
            self,
            self._dispatcher,
            arguments=options.arguments,
            connect=config.shim.connect,
            dial=Dialer(config.shim),
            ping_timeout=config.bridge.ping_timeout,
            patience=config.shim.patience,
            clock=clock,
            stderr=self._stderr,
        )

    # The loop -----------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until end-of-file from smtpd; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # smtpd sends none; ending would end smtpd
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds mail
        until = self._clock() + self.config.shim.start_wait
        while self._wanted is None and not self._smtpd.gone and self._clock() < until:
            self.guarded(self.turn)
        if self._wanted is None:
            self.log("start-failed", error="the application did not come up")
            self._bridges.leave()
            return 1
        self.protocol.start(self._wanted)
        while not self._smtpd.gone:
            try:
                self.turn()
            except Exception:  # noqa: BLE001 there was no memory even to guard a step
                self._something_failed = self._short_of_memory = True
                time.sleep(PAUSE)
        self._bridges.leave()
        self._stderr.flush()
        return 0

    def turn(self) -> None:
        """One turn of the loop: wait, read and write what can be, then keep time."""
        if not self.guarded(self._wait):
            time.sleep(PAUSE)
        if self._behind:
            self.guarded(self._handle)
        now = self._clock()
        self.guarded(self._keep_time, now)
        self.guarded(self._bridges.keep, now)
        self.guarded(self._bridges.pump, now)
        if self._something_failed:
            self.guarded(self._answer_forgotten)
        self.guarded(self._smtpd.write)
        if self._short_of_memory:
            self.guarded(self._make_room)
        self.guarded(self._stderr.flush)

    def _wait(self) -> None:
        self._watch()
        for key, mask in self._selector.select(0.0 if self._behind else self._sleep()):
            self.guarded(key.data[1], mask)

    def _keep_time(self, now: float) -> None:
        self._spool.recover(now)
        for item in self._dispatcher.expired(now):
            self.guarded(self.on_given_up, item, "timeout" if item.lane else "unreachable")

    def guarded(self, call: Callable[..., object], *arguments: object) -> bool:
        """Whatever goes wrong in one step must not end the process: smtpd would end too.  Did
        it go well?"""
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001
            self._something_failed = True
            if isinstance(error, MemoryError):
                self._short_of_memory = True
            try:  # noqa: SIM105 a context manager would need memory, too
                self._failed(error)
            except Exception:  # noqa: BLE001, S110 there may be no memory to say so
                pass
            return False
        return True

    def _failed(self, error: Exception) -> None:
        self.protocol.counts["internal-error"] += 1
        self.log("internal-error", error=log.folded(error))

    def _make_room(self) -> None:
        """Memory came to its end before shim.max_memory: less of it has to do."""
        self._short_of_memory = False
        time.sleep(PAUSE)
        for session, error in self._spool.shrink(self.protocol.messages(), self._clock()):
            self._no_space(session, error)
        self.log("short-of-memory", max_memory=self._spool.max_memory)

    def _sleep(self) -> float:
        now = self._clock()
        times = (now + TICK, self._dispatcher.next_deadline(), self._bridges.next_event(now))
        return max(0.0, min(time for time in times if time is not None) - now)

    def _watch(self) -> None:
        """Watch each fd for what it has to do now."""
        wanted: dict[int, tuple[int, object, Callable[[int], None]]] = {
            fd: (mask, self, self._on_smtpd) for fd, mask in self._smtpd.watched.items()
        }
        for end in self._bridges.ends:
            mask = READ | WRITE if end.wants_write else READ
            wanted[end.socket.fileno()] = (mask, end, partial(self._on_link, end))
            if end.child is not None and end.child.stderr is not None:
                wanted[end.child.stderr] = (READ, end.child, partial(self._on_child, end.child))
        # The selector itself says what is watched: what else did would be wrong for ever
        # after a failure between the two.
        watched = self._selector.get_map()
        for fd, key in list(watched.items()):
            if fd not in wanted or key.data[0] is not wanted[fd][1]:
                self._selector.unregister(fd)
        for fd, (mask, owner, call) in wanted.items():
            if fd not in watched:
                self._selector.register(fd, mask, (owner, call))
            elif watched[fd].events != mask:
                self._selector.modify(fd, mask, (owner, call))

    def _on_link(self, end: LinkEnd, mask: int) -> None:
        self._bridges.ready(end, read=bool(mask & READ), write=bool(mask & WRITE))

    def _on_child(self, child: Child, _: int) -> None:
        self._bridges.read_stderr(child)

    # smtpd --------------------------------------------------------------------------------

    def _on_smtpd(self, mask: int) -> None:
        if not mask & READ or self._behind:
            return
        self._input = self._smtpd.read()
        if self._input:
            self._handle()

    @property
    def _behind(self) -> bool:
        """Is there something from smtpd that was not handled, for want of memory?"""
        return bool(self._input) or self.protocol.behind

    def _handle(self) -> None:
        """What smtpd said; what can't be handled now is handled in the next turn."""
        full = self._spool.grew(len(self._input))
        if self._input:
            self.protocol.take(self._input)
            self._input = b""
        for item in self.protocol.rest():
            self.guarded(self._on_item, item)
        if full:
            for session, error in self._spool.balance(self.protocol.messages()):
                self._no_space(session, error)

    def _on_item(self, item: Item) -> None:
        match item:
            case Slot():
                self._on_slot(item)
            case events.Report():
                self._on_report(item)
            case Oversize():
                self._on_oversize(item.session)
            case Withheld():
                transaction = item.session.transaction
                self._log_refusal(item.session, transaction, MESSAGE, item.decision, "shim")
            case Broken():
                self.log("long-lines-broken", session=item.session.id, lines=item.lines)
            case BadLine():
                self.log("bad-line-from-smtpd", error=item.error)

    def _on_slot(self, slot: Slot) -> None:
        now = self._clock()
        wait = self.config.shim.command_deadline
        if slot.message is not None:
            wait = self.config.shim.message_deadline
            if not slot.message.size:
                # Without even smtpd's own Received: an earlier filter withheld it, and refuses.
                self.protocol.answer(slot, Proceed())
                return
        slot.session.profile = self.options.profile or ""
        self._dispatcher.add(slot, now, now + wait)

    def _on_report(self, event: events.Report) -> None:
        if isinstance(event, events.LinkDisconnect | events.TxReset | events.TxRollback):
            item = self._dispatcher.of_session(event.session)
            if item is not None and not item.slot.open:  # nobody waits for the answer any more
                self._bridges.cancel(item)
                self._dispatcher.done(item)
        wanted = self.protocol.registration
        names = wanted.reports if event.direction == "smtp-in" else wanted.reports_out
        if event.keyword in names:
            live = self.protocol.sessions.get(event.session)
            session = live.session if live else Session(event.session)
            header: link.Header = {"kind": "report", "session": link.session_to_json(session)}
            self._bridges.report(header | link.event_to_json(event))

    # Answers ------------------------------------------------------------------------------

    def _answer(
        self, item: Pending, decision: Decision, splices: Sequence[Splice], reason: str
    ) -> None:
        self._dispatcher.done(item)
        session, transaction = item.slot.session, item.slot.session.transaction
        said = self.protocol.answer(item.slot, decision, splices)
        if isinstance(said, Refusal):
            self._log_refusal(session, transaction, item.slot.phase, said, reason)
        elif said is not None and reason:
            self._log_event("passed", session, transaction, by=reason)

    def on_given_up(self, item: Pending, kind: str) -> None:
        """The bridge gives no answer: the failure policy's."""
        self._bridges.cancel(item)
        session = item.slot.session
        profile = self.config.profile_for(session, self.options.profile)
        what = consequence(profile, session, "bridge", kind)
        reason = f"bridge: {REASONS[kind]}"
        if item.slot.message is not None:
            splices = [Splice(0, 0, unscanned(reason))] if what.marked else []
            self._answer(item, what.decision, splices, reason)
        elif isinstance(what.decision, Refusal) and self.options.application:
            self._answer(item, tempfail(item.slot.phase), (), reason)
        else:
            # What the shipped policy would have refused at a command, it refuses when it
            # judges the message.  An application may have no handler for that.
            self._answer(item, Proceed(), (), reason)

    def _answer_forgotten(self) -> None:
        """Answer requests that were taken from smtpd and that nobody works on, or that are late:
        whatever should have done something with them has failed."""
        self._something_failed = False
        self._dispatcher.recount(end.lane for end in self._bridges.ends)
        now = self._clock()
        for live in list(self.protocol.sessions.values()):
            slot = live.slot
            if slot is None or not slot.open:
                continue
            item = self._dispatcher.of_session(slot.session.id)
            if item is not None and self._dispatcher.get(item.id) is item:
                if item.slot is slot and item.deadline > now:
                    continue
                self._dispatcher.done(item)
            self.protocol.answer(slot, tempfail(slot.phase))

    def _on_oversize(self, session: Session) -> None:
        """A message that can't be held: it passes line by line, or is refused."""
        profile = self.config.profile_for(session, self.options.profile)
        what = consequence(profile, session, "bridge", "too-large")
        if isinstance(what.decision, Refusal):
            self.protocol.withhold(session, what.decision)
            return
        reason = f"bridge: {REASONS['too-large']}"
        self.protocol.release(session, unscanned(reason) if what.marked else b"")
        self._log_event("passed", session, session.transaction, by=reason)

    def _no_space(self, session: Session, error: OSError) -> None:
        item = self._dispatcher.of_session(session.id)
        if item is not None and item.slot.phase == MESSAGE:
            self._bridges.cancel(item)
            self._answer(item, NO_SPACE, (), "shim: spill failed")
        else:
            self.protocol.withhold(session, NO_SPACE)
        self.log("spill-failed", session=session.id, error=error.strerror or str(error))

    # For bridges.py -----------------------------------------------------------------------

    def on_answer(self, item: Pending, header: link.Header, body: bytes) -> None:
        """A bridge answered: what can be sent, is."""
        slot = item.slot
        if item.torn:
            self.on_unreadable(item, OSError("it could not be sent whole"))
            return
        if "failed" in header:  # it said so in its log
            self.on_given_up(item, "internal")
            return
        try:
            decision = link.decision_from_json(header)
            splices = link.splices_from_json(header.get("splices", []), body)
            if slot.message is not None:
                slot.message.check(splices, wire.longest_line(slot.event.version))
        except (link.LinkError, SpliceError) as error:
            self.log("bad-answer", session=slot.session.id, error=str(error))
            self.on_given_up(item, "bad-reply")
            return
        except OSError as error:
            self.on_unreadable(item, error)
            return
        keep = header.get("keep")
        if isinstance(keep, dict) and len(str(keep)) <= MAX_KEEP:
            slot.session.keep = keep
        self._answer(item, decision, splices, str(header.get("reason", "")))

    def on_hello(self, header: link.Header) -> None:
        """A bridge came up; an application's says what it wants to be asked."""
        if self._wanted is None and (wanted := from_hello(header.get("registration"))):
            if why := exposed(wanted, self.config.shim.connect):
                self.log("start-failed", error=why)
                self._smtpd.gone = True
            else:
                self._wanted = wanted

    def on_unreadable(self, item: Pending, error: OSError) -> None:
        """A message is lost in its file: refused, so that its sender tries again."""
        self._no_space(item.slot.session, error)

    # Log ----------------------------------------------------------------------------------

    def log(self, event: str, **values: object) -> None:
        """Write a line to smtpd's log."""
        self._stderr.write(log.record(event, **values), self._clock())

    def _log_event(
        self, event: str, session: Session, transaction: Transaction | None, **values: object
    ) -> None:
        self.log(event, **about(session, transaction), **values)

    def _log_refusal(
        self, session: Session, transaction: Transaction | None, phase: str, said: Refusal, by: str
    ) -> None:
        values = {"phase": phase, "by": by, "reply": said.reply}
        self._log_event(outcome(said), session, transaction, **values)
