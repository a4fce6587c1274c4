"""When what may be said: handshake, open requests, exactly one answer, the message's way.

Pure state: bytes in by `receive`, bytes out by `output.next`.  Whoever drives it gets
reports and slots (a slot is one request that wants an answer) and answers each slot by
`answer`; what may not be said is lowered or dropped here, counted, never sent, never raised.
Knows no clock, no service and no file.

Memory may end at any step.  So whatever takes several is prepared first, then done by
assignments, which can't fail; a piece of the input that was not marked as handled, in
`_lines.at`, is handled again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from bridge.smtpd import events, wire
from bridge.smtpd.decisions import (
    INTERNAL_ERROR,
    MAX_REPLY_TEXT,
    NO_SPACE,
    Decision,
    Proceed,
    Refusal,
    Reject,
    legal,
    tempfail,
)
from bridge.smtpd.items import (
    MESSAGE,
    BadLine,
    Broken,
    Item,
    Oversize,
    Registration,
    Slot,
    Withheld,
)
from bridge.smtpd.lines import LineReader, Overlong, Run
from bridge.smtpd.live import Live
from bridge.smtpd.message import Message, Splice, break_long, first_too_long
from bridge.smtpd.output import Output
from bridge.smtpd.session import Session

# Reports of an end: who is told still sees what ended.
ENDS = (events.TxCommit, events.TxRollback, events.TxReset, events.LinkDisconnect)

REMEMBERED_DEAD = 4096  # ended sessions, of which a last line may still be under way

LONG_LINE = Reject("5.6.0", "A line of the message is too long", 554)


class Protocol:
    """The filter's end of smtpd-filters(7)."""

    def __init__(
        self,
        *,
        max_message_size: int = 64 << 20,
        break_long_lines: bool = True,
        session_in_reply: bool = False,
    ) -> None:
        self.registration = Registration()
        self.started = False
        self.max_message_size = max_message_size
        self.break_long_lines = break_long_lines
        self.session_in_reply = session_in_reply  # a refusal ends with the session's id
        self.sessions: dict[str, Live] = {}
        self.config: dict[str, str] = {}  # what smtpd said of itself
        self.registered = False
        self.counts: Counter[str] = Counter()
        self.output = Output()
        self._dead: OrderedDict[str, None] = OrderedDict()
        self._lines = LineReader()
        self._content_taken = False  # of the run of data lines that is being handled

    # Handshake ----------------------------------------------------------------------------

    def start(self, registration: Registration) -> None:
        """Register, at once if smtpd need not be heard first: smtp-out may be registered only
        where smtpd has said that it has it (6.6 dies of it)."""
        self.registration, self.started = registration, True
        if not registration.reports_out or "ready" in self.config:
            self._register()

    def _register(self) -> None:
        if self.registered or not self.started:
            return
        has_out = "smtp-out" in self.config.get("subsystem", "")
        self.output.say(self.registration.lines(has_out=has_out))
        self.registered = True

    # Input --------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Item]:
        """Take bytes from smtpd; what they mean, in order."""
        return list(self.items(data))

    def items(self, data: bytes) -> Iterator[Item]:
        """The same one by one: whoever looks at a session sees it as it was then, and at a
        report of an end what it ends."""
        self.take(data)
        return self.rest()

    def take(self, data: bytes) -> None:
        """Take bytes from smtpd; what they mean, `rest` tells."""
        self._lines.take(data)

    @property
    def behind(self) -> bool:
        """Was something taken that is not handled, since there was no memory?"""
        return self._lines.behind

    def rest(self) -> Iterator[Item]:
        """What has been taken means, one by one.  After a MemoryError it goes on, when it is
        called again, with the line that it could not handle."""
        piece: bytes | Run | Overlong = b""
        try:
            for piece in self._lines.pieces():
                match piece:
                    case Run():
                        yield from self._run(piece.head, piece.content)
                    case Overlong():
                        self.counts["bad-line"] += 1
                        yield BadLine("over-long")
                    case _:
                        yield from self._line(piece)
                self._lines.at = self._lines.following
                self._content_taken = False
        except MemoryError:
            self._lines.be_frugal()
            raise
        except Exception:  # a bug: the line is lost
            self._lines.at = self._lines.following
            self._content_taken = False
            self._spoil(piece)
            raise

    def _spoil(self, piece: bytes | Run | Overlong) -> None:
        """What a bug has lost must harm nobody else: a message is refused, a request is open and
        will be found so."""
        event = self._parsed(piece if isinstance(piece, bytes) else getattr(piece, "head", b""))
        if not isinstance(event, events.Event) or (live := self._live(event)) is None:
            return
        if isinstance(event, events.DataLine):
            if live.slot is None:
                run = piece.content if isinstance(piece, Run) else wire.raw(event.line) + b"\n"
                self.output.say(live.spoil(event, final=run == b".\n" or run.endswith(b"\n.\n")))
        elif isinstance(event, events.Request):
            live.slot = Slot(live.session, event.keyword, event)
        elif live.message is not None and live.slot is None:
            live.withhold(INTERNAL_ERROR)

    def _run(self, head: bytes, run: bytes) -> Iterator[Item]:
        event = self._parsed(head)
        if isinstance(event, events.DataLine):
            yield from self._data(event, run)
        elif isinstance(event, BadLine):
            yield event

    def _line(self, line: bytes) -> Iterator[Item]:
        match event := self._parsed(line):
            case wire.Config():
                yield from self._handshake(event)
            case events.DataLine():
                yield from self._data(event, wire.raw(event.line) + b"\n")
                if event.token:  # else a `|` of the content would be taken for its end
                    self._lines.learn(line)
            case events.Request():
                yield from self._request(event)
            case events.Report():
                yield from self._report(event)
            case BadLine():
                yield event

    def _parsed(self, line: bytes) -> events.Event | wire.Config | BadLine:
        try:
            return wire.parse(line)
        except wire.WireError as error:
            self.counts["bad-line"] += 1
            return BadLine(str(error))

    def _handshake(self, config: wire.Config) -> Iterator[Item]:
        value = config.value
        if config.key == "subsystem":  # one line each
            value = f"{self.config.get('subsystem', '')} {value}".lstrip()
        self.config[config.key[:64]] = value
        if config.key == "ready":
            self._register()
        yield config

    def _report(self, event: events.Report) -> Iterator[Item]:
        if (live := self._live(event)) is None:
            return
        match event:
            case events.LinkDisconnect():
                live.drop()
                if live.slot is not None:
                    live.slot.open = False
            case events.TxReset() | events.TxRollback() | events.TxBegin():
                live.drop()
                live.verdict = None
        if not isinstance(event, ENDS):
            live.session.see(event)
            self._lines.at = self._lines.following  # or a recipient would be seen twice
        yield event
        if isinstance(event, ENDS):
            live.session.see(event)
        if isinstance(event, events.LinkDisconnect):
            self._forget(live)

    def _request(self, event: events.Request) -> Iterator[Item]:
        if (live := self._live(event)) is None:
            return
        live.session.see(event)
        if live.slot is not None:  # smtpd asks one thing at a time: it waits for the new one
            self.counts["overtaken"] += 1
            live.slot.open = False
            live.slot = None
        live.drop()  # no command comes in the middle of a message
        if (
            isinstance(event, events.Commit)
            and live.verdict is not None
            and not (isinstance(live.verdict, Proceed) and self.registration.asks_commit)
        ):
            self._decide(live, event, live.verdict)
            self._lines.at = self._lines.following
            return
        slot = live.slot = Slot(live.session, event.keyword, event)
        self._lines.at = self._lines.following
        yield slot

    def _data(self, event: events.DataLine, run: bytes) -> Iterator[Item]:
        """A run of data lines, each with its LF; `.` ends the message."""
        if (live := self._live(event)) is None:
            return
        if live.slot is not None and live.slot.phase == MESSAGE:
            self.counts["line-after-dot"] += 1
            return
        if live.message is None:
            live.begin(event)
        final = run == b".\n" or run.endswith(b"\n.\n")
        if not self._content_taken and live.verdict is None:
            yield from self._content(live, run[:-2] if final else run)
        if final:
            yield from self._final(live, event)

    def _content(self, live: Live, run: bytes) -> Iterator[Item]:
        """Hold these lines or let them pass; where memory ends, the message is refused."""
        assert live.message is not None
        broken = 0
        try:
            if first_too_long(run, live.longest) is not None:
                if self.break_long_lines:
                    run, broken = break_long(run, live.longest)
                else:
                    live.withhold(LONG_LINE)
                    return
            if run and live.streaming:
                self.output.say(live.lines(run))
            elif run:
                live.message.append(run)
        except MemoryError:  # what is held may not be whole
            live.withhold(NO_SPACE)
            raise
        self._content_taken = True
        if broken:
            yield Broken(live.session, broken)
        if live.message.size > self.max_message_size and not live.oversize:
            live.oversize = True
            yield Oversize(live.session)

    def _final(self, live: Live, event: events.DataLine) -> Iterator[Item]:
        if live.streaming or live.verdict is not None:
            verdict = live.verdict or Proceed()
            self.output.say(live.last_line)
            live.message, live.verdict = None, verdict
            self._lines.at, self._content_taken = self._lines.following, False
            if isinstance(verdict, Refusal):
                yield Withheld(live.session, verdict)
        else:
            slot = live.slot = Slot(live.session, MESSAGE, event, live.message)
            self._lines.at, self._content_taken = self._lines.following, False
            yield slot

    def messages(self) -> Iterator[tuple[Session, Message]]:
        """The messages that are held now."""
        for live in self.sessions.values():
            if live.message is not None:
                yield live.session, live.message

    def _live(self, event: events.Event) -> Live | None:
        """The state of an event's session; None if the session has ended, or is unknown to
        a report of its end."""
        if (live := self.sessions.get(event.session)) is not None:
            return live
        if isinstance(event, events.LinkConnect):  # an id may come again, some day
            self._dead.pop(event.session, None)
        if event.session in self._dead or isinstance(event, events.LinkDisconnect):
            return None
        said = self.config
        session = Session(
            event.session, admd=said.get("admd", ""), smtpd=said.get("smtpd-version", "")
        )
        live = self.sessions[event.session] = Live(session, self.counts)
        return live

    def _forget(self, live: Live) -> None:
        del self.sessions[live.session.id]
        self._dead[live.session.id] = None
        if len(self._dead) > REMEMBERED_DEAD:
            self._dead.popitem(last=False)

    # Output -------------------------------------------------------------------------------

    def answer(
        self, slot: Slot, decision: Decision, splices: Sequence[Splice] = ()
    ) -> Decision | None:
        """Answer a slot: what was said, or None if it was not open any more.  A message that
        is refused is not echoed; its refusal follows at commit."""
        live = self.sessions.get(slot.session.id)
        if not slot.open or live is None or live.slot is not slot:
            slot.open = False
            self.counts["late-answer"] += 1
            return None
        if slot.phase == MESSAGE:
            said = self._finish(live, decision, splices)
        else:
            said = self._decide(live, slot.event, decision)
        slot.open = False  # not before: what fails is to be answered otherwise
        live.slot = None
        return said

    def release(self, session: Session, header: bytes = b"") -> None:
        """Let an oversize message pass: `header` (whole lines), what is held, and then each
        line as it comes.  ValueError if the header's lines can't be sent."""
        live = self.sessions.get(session.id)
        if live is None or live.message is None or live.streaming or live.verdict is not None:
            return
        message = live.message
        splices = [Splice(0, 0, header)]
        message.check(splices, live.longest)
        if live.slot is not None and live.slot.phase == MESSAGE:  # it is whole already
            self.answer(live.slot, Proceed(), splices)
            return
        coming = Message()
        self.output.stream(live.lines_back(message, splices))
        live.message, live.streaming = coming, True

    def withhold(self, session: Session, decision: Refusal) -> None:
        """Refuse a message that is still coming in, and let go of it."""
        if (live := self.sessions.get(session.id)) is None:
            return
        if live.slot is not None and live.slot.phase == MESSAGE:
            self.answer(live.slot, decision)
        elif live.message is not None and live.verdict is None:
            live.withhold(decision)

    def _finish(self, live: Live, decision: Decision, splices: Sequence[Splice]) -> Decision:
        message = live.message
        assert message is not None
        if not isinstance(decision, Proceed | Refusal):
            self.counts["lowered"] += 1
            decision = INTERNAL_ERROR
        if isinstance(decision, Proceed):
            try:
                message.check(splices, live.longest)
            except (ValueError, OSError):  # a store that can't be read, splices unchecked
                self.counts["bad-splices"] += 1
                decision = INTERNAL_ERROR
        last_line = live.last_line
        withheld = isinstance(decision, Refusal)
        if withheld:
            message.drop()
            self.output.say(last_line)
        else:
            # Not to be torn: the last line comes even if all before it fails.
            self.output.stream(chain(live.lines_back(message, splices), (last_line,)))
        live.message, live.verdict = None, decision
        if withheld:
            live.withheld = True
        return decision

    def _decide(self, live: Live, event: events.Request, decision: Decision) -> Decision:
        withheld = live.withheld and isinstance(event, events.Commit)
        if decision.keyword not in legal(event.keyword, event.version, withheld=withheld):
            self.counts["lowered"] += 1
            decision = tempfail(event.keyword)
        said = decision
        if self.session_in_reply and isinstance(decision, Refusal):
            note = f" [{event.session}]"
            text = decision.text[: MAX_REPLY_TEXT - len(note)].rstrip() + note
            said = replace(decision, text=text)
        self.output.say(wire.result(event.version, event.session, event.token, said))
        return decision
