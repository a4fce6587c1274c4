"""When what may be said: handshake, open requests, exactly one answer, the message's way.

Pure state: bytes in by `receive`, bytes out by `next_output`.  Whoever drives it gets
reports and slots (a slot is one request that wants an answer) and answers each slot by
`answer`; what may not be said is lowered or dropped here, counted, never sent, never raised.
Knows no clock, no service and no file.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bridge.smtpd import events, wire
from bridge.smtpd.decisions import (
    MAX_REPLY_TEXT,
    Decision,
    Proceed,
    Refusal,
    Reject,
    legal,
    tempfail,
)
from bridge.smtpd.lines import LineReader, Overlong, Run
from bridge.smtpd.message import Message, Splice, break_long, first_too_long
from bridge.smtpd.session import Session

# The phase of a slot that asks for the verdict on a whole message, reached at the final dot.
MESSAGE = "message"

# Reports without which a session can't be followed, or forgotten.
BOOKKEEPING = frozenset(
    {
        *("link-connect", "link-greeting", "link-identify", "link-tls", "link-auth"),
        *("tx-begin", "tx-mail", "tx-rcpt", "tx-reset", "tx-rollback", "tx-commit"),
        "link-disconnect",
    }
)

# Reports of an end: who is told still sees what ended.
ENDS = (events.TxCommit, events.TxRollback, events.TxReset, events.LinkDisconnect)

OUTPUT_CHUNK = 256 * 1024  # about what the socket to smtpd takes at once (208 KiB)
REMEMBERED_DEAD = 4096  # ended sessions, of which a last line may still be under way

LONG_LINE = Reject("5.6.0", "A line of the message is too long", 554)
# Content that is neither held nor echoed, when nobody gave another reply.
DROPPED = Reject("4.3.0", "Internal error, please try again later")


@dataclass(frozen=True, slots=True)
class Registration:
    """What to ask smtpd for, besides what is needed to follow sessions."""

    phases: frozenset[str] = frozenset()  # the message's are data-line and commit
    reports: frozenset[str] = frozenset()  # of smtp-in
    reports_out: frozenset[str] = frozenset()  # of smtp-out
    asks_commit: bool = False  # ask at commit also when the message's verdict was proceed


@dataclass(slots=True, eq=False)
class Slot:
    """One request that wants exactly one answer."""

    session: Session
    phase: str  # as smtpd calls it, or MESSAGE
    event: events.Request
    message: Message | None = None  # with MESSAGE
    open: bool = True


@dataclass(frozen=True, slots=True)
class Oversize:
    """A message has grown over the limit: say `release` or `withhold` at once."""

    session: Session


@dataclass(frozen=True, slots=True)
class Withheld:
    """A message that nobody was asked about will be refused with `decision` at commit."""

    session: Session
    decision: Refusal


@dataclass(frozen=True, slots=True)
class Broken:
    """Lines of a message were too long to go back and were broken."""

    session: Session
    lines: int


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line from smtpd that could not be read, and was ignored."""

    error: str


Item = events.Report | wire.Config | Slot | Oversize | Withheld | Broken | BadLine


@dataclass(slots=True, eq=False)
class _Live:
    """What the protocol knows of a session besides its facts."""

    session: Session
    slot: Slot | None = None  # the one open request
    message: Message | None = None  # being received, or waiting for its verdict
    line: events.DataLine | None = None  # version and token of its lines
    longest: int = wire.LONGEST_LINE
    streaming: bool = False  # lines go back as they come
    oversize: bool = False  # was reported as such
    verdict: Decision | None = None  # on the last message, for its commit
    withheld: bool = False  # the last message was not echoed


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
        self.sessions: dict[str, _Live] = {}
        self.config: dict[str, str] = {}  # what smtpd said of itself
        self.registered = False
        self.counts: Counter[str] = Counter()
        self._dead: OrderedDict[str, None] = OrderedDict()
        self._lines = LineReader()
        self._output: deque[Iterator[bytes | memoryview]] = deque()

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
        self.registered = True
        wanted = self.registration
        for name in sorted(wanted.reports | BOOKKEEPING):
            self._say(wire.register("report", "smtp-in", name))
        if wanted.reports_out and "smtp-out" in self.config.get("subsystem", ""):
            for name in sorted(wanted.reports_out | BOOKKEEPING):
                self._say(wire.register("report", "smtp-out", name))
        for name in sorted(wanted.phases):
            self._say(wire.register("filter", "smtp-in", name))
        self._say(wire.READY)

    # Input --------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Item]:
        """Take bytes from smtpd; what they mean, in order."""
        return list(self.items(data))

    def items(self, data: bytes) -> Iterator[Item]:
        """The same one by one: whoever looks at a session sees it as it was then, and at a
        report of an end what it ends."""
        try:
            for piece in self._lines.feed(data):
                match piece:
                    case Run():
                        yield from self._run(piece.head, piece.content)
                    case Overlong():
                        self.counts["bad-line"] += 1
                        yield BadLine("over-long")
                    case _:
                        yield from self._line(piece)
        except Exception:  # no memory, or a bug: lines are lost
            for live in self.sessions.values():
                if live.message is not None and live.slot is None and live.verdict is None:
                    self._withhold(live, DROPPED)  # it may not be whole any more
            raise

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
                if event.token:  # else a `|` of the content would be taken for its end
                    self._lines.learn(line)
                yield from self._data(event, wire.raw(event.line) + b"\n")
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
        if not isinstance(event, ENDS):
            live.session.see(event)
        match event:
            case events.LinkDisconnect():
                self._drop_message(live)
                if live.slot is not None:
                    live.slot.open = False
            case events.TxReset() | events.TxRollback() | events.TxBegin():
                self._drop_message(live)
                live.verdict = None
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
        self._drop_message(live)  # no command comes in the middle of a message
        if (
            isinstance(event, events.Commit)
            and live.verdict is not None
            and not (isinstance(live.verdict, Proceed) and self.registration.asks_commit)
        ):
            self._decide(live, event, live.verdict)
            return
        slot = live.slot = Slot(live.session, event.keyword, event)
        yield slot

    def _data(self, event: events.DataLine, run: bytes) -> Iterator[Item]:
        """A run of data lines, each with its LF; `.` ends the message."""
        if (live := self._live(event)) is None:
            return
        if live.slot is not None and live.slot.phase == MESSAGE:
            self.counts["line-after-dot"] += 1
            return
        if live.message is None:
            live.message, live.line = Message(), event
            live.longest = wire.longest_line(event.version)
            live.streaming = live.oversize = live.withheld = False
            live.verdict = None
        final = run == b".\n" or run.endswith(b"\n.\n")
        if final:
            run = run[:-2]
        if first_too_long(run, live.longest) is not None:
            if self.break_long_lines:
                run, lines = break_long(run, live.longest)
                yield Broken(live.session, lines)
            elif live.verdict is None:
                self._withhold(live, LONG_LINE)
        if live.verdict is None and run:
            if live.streaming:
                self._echo(live, run)
            else:
                live.message.append(run)
                if live.message.size > self.max_message_size and not live.oversize:
                    live.oversize = True
                    yield Oversize(live.session)
        if not final:
            return
        if live.streaming or live.verdict is not None:
            live.message = None
            live.verdict = live.verdict or Proceed()
            self._say(self._prefix(live) + b".\n")
            if isinstance(live.verdict, Refusal):
                yield Withheld(live.session, live.verdict)
        else:
            slot = live.slot = Slot(live.session, MESSAGE, event, live.message)
            yield slot

    def messages(self) -> Iterator[tuple[Session, Message]]:
        """The messages that are held now."""
        for live in self.sessions.values():
            if live.message is not None:
                yield live.session, live.message

    def _live(self, event: events.Event) -> _Live | None:
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
        live = self.sessions[event.session] = _Live(session)
        return live

    def _forget(self, live: _Live) -> None:
        del self.sessions[live.session.id]
        self._dead[live.session.id] = None
        if len(self._dead) > REMEMBERED_DEAD:
            self._dead.popitem(last=False)

    def _drop_message(self, live: _Live) -> None:
        if live.message is not None:
            live.message.drop()
            live.message = None
        if live.slot is not None and live.slot.phase == MESSAGE:
            live.slot.open = False
            live.slot = None

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
        slot.open = False
        live.slot = None
        if slot.phase == MESSAGE:
            return self._finish(live, decision, splices)
        return self._decide(live, slot.event, decision)

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
        live.message, live.streaming = Message(), True
        self._stream(self._lines_back(live, message, splices, final=False))

    def withhold(self, session: Session, decision: Refusal) -> None:
        """Refuse a message that is still coming in, and let go of it."""
        if (live := self.sessions.get(session.id)) is None:
            return
        if live.slot is not None and live.slot.phase == MESSAGE:
            self.answer(live.slot, decision)
        elif live.message is not None and live.verdict is None:
            self._withhold(live, decision)

    def _withhold(self, live: _Live, decision: Refusal) -> None:
        assert live.message is not None
        live.message.drop()
        live.verdict, live.withheld = decision, True

    def _finish(self, live: _Live, decision: Decision, splices: Sequence[Splice]) -> Decision:
        message, live.message = live.message, None
        assert message is not None
        if not isinstance(decision, Proceed | Refusal):
            self.counts["lowered"] += 1
            decision = DROPPED
        if isinstance(decision, Proceed):
            try:
                message.check(splices, live.longest)
            except (ValueError, OSError):  # a store that can't be read, splices unchecked
                self.counts["bad-splices"] += 1
                decision = DROPPED
        live.verdict = decision
        if isinstance(decision, Proceed):
            self._stream(self._lines_back(live, message, splices, final=True))
        else:
            live.withheld = True
            message.drop()
            self._say(self._prefix(live) + b".\n")
        return decision

    def _lines_back(
        self, live: _Live, message: Message, splices: Sequence[Splice], *, final: bool
    ) -> Iterator[bytes | memoryview]:
        """The message as filter-dataline lines; if the store fails on the way, or memory, it ends
        there, on a line's end whatever happened, and is refused at commit."""
        prefix = self._prefix(live)
        between = b"\n" + prefix
        line_start, torn = True, b"\n"
        try:
            for piece in filter(None, message.spliced(splices)):
                if line_start:
                    yield prefix
                lines = piece.replace(b"\n", between)
                line_start, torn = piece.endswith(b"\n"), (torn + piece[-2:])[-2:]
                yield memoryview(lines)[: -len(prefix)] if line_start else lines
        except Exception:  # noqa: BLE001 what follows would be taken for more of this line
            self.counts["store-failed"] += 1
            live.verdict, live.withheld = DROPPED, True
            if not line_start:  # what is torn behind its stuffing would end the message
                yield b".\n" if torn == b"\n." else b"\n"
        finally:
            message.drop()
        if final:
            yield prefix + b".\n"

    def _echo(self, live: _Live, run: bytes) -> None:
        prefix = self._prefix(live)
        self._say(prefix + run[:-1].replace(b"\n", b"\n" + prefix) + b"\n")

    def _prefix(self, live: _Live) -> bytes:
        assert live.line is not None
        return wire.dataline_prefix(live.line.version, live.line.session, live.line.token)

    def _decide(self, live: _Live, event: events.Request, decision: Decision) -> Decision:
        withheld = live.withheld and isinstance(event, events.Commit)
        if decision.keyword not in legal(event.keyword, event.version, withheld=withheld):
            self.counts["lowered"] += 1
            decision = tempfail(event.keyword)
        said = decision
        if self.session_in_reply and isinstance(decision, Refusal):
            note = f" [{event.session}]"
            text = decision.text[: MAX_REPLY_TEXT - len(note)].rstrip() + note
            said = replace(decision, text=text)
        self._say(wire.result(event.version, event.session, event.token, said))
        return decision

    def _say(self, line: bytes) -> None:
        """The one door out, with `_stream`: whole lines, in order."""
        self._output.append(iter((line,)))

    def _stream(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._output.append(pieces)

    @property
    def has_output(self) -> bool:
        """Is there something for smtpd?"""
        return bool(self._output)

    def next_output(self) -> bytes:
        """The next bytes for smtpd, of any size, b"" if there are none."""
        chunk: list[bytes | memoryview] = []
        size = 0
        try:
            while self._output and size < OUTPUT_CHUNK:
                piece = next(self._output[0], None)
                if piece is None:
                    self._output.popleft()
                else:
                    chunk.append(piece)
                    size += len(piece)
            return b"".join(chunk)
        except Exception:  # of memory: nothing that was taken may be lost
            self._output.appendleft(iter(chunk))
            raise
