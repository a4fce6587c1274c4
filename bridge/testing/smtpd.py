"""A model of smtpd's side of the filter protocol that errs where real smtpd dies or hangs.

`Smtpd` is the lookup process: it writes the handshake, reports and requests, and takes what
a filter answers; sessions (session.py) are its dispatcher.  Follows lka_filter.c of 7.8.0p1,
with the differences of older versions from dialect.py.  Sans I/O: process.py drives it.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from bridge.testing.answers import Answer, BadAnswer
from bridge.testing.body import Peer
from bridge.testing.client import Script
from bridge.testing.dialect import dialect, stamp
from bridge.testing.grammar import octets, text
from bridge.testing.outcomes import Delivery, Fault, SmtpdDied, SmtpdError, SmtpdWedged
from bridge.testing.registry import Registry
from bridge.testing.server import Ids, Server, ticking
from bridge.testing.session import Chain, Session

IOBUF_MAX = 65536  # iobuf.c; a line and its LF must fit
SOCKET = "unix:/var/run/smtpd.sock"


class Smtpd:
    """faults: what was wrong but survivable; delivered: accepted messages; failed: the error
    that ended smtpd.  order: a seed or a random.Random that shuffles what real smtpd does not
    order either (reports against body lines, sessions against each other)."""

    def __init__(
        self,
        version: str = "0.7",
        *,
        release: str = "",
        server: Server | None = None,
        order: int | random.Random | None = None,
        clock: Callable[[], float] | None = None,
        ids: Ids | None = None,
    ) -> None:
        self.dialect = dialect(version, release)
        self.server = server or Server()
        self.clock = clock or ticking()
        self.ids = ids or Ids()
        self.order = random.Random(order) if isinstance(order, int) else order
        self.registry = Registry(self.dialect)
        self.faults: list[Fault] = []
        self.delivered: list[Delivery] = []
        self.stderr: list[str] = []
        self.failed: SmtpdError | None = None
        self.clients: list[Script] = []
        self._out: list[bytes] = []
        self._in = bytearray()
        self._err = bytearray()
        self._chains: dict[int, Chain] = {}
        self._ended: set[int] = set()
        self._waiting: deque[tuple[Script, Peer]] = deque()  # connections before ready
        self._to_lookup: deque[Callable[[], None]] = deque()
        self._to_dispatcher: deque[Callable[[], None]] = deque()
        for fields in self.registry.config(self.server):
            self._write(*fields)

    @property
    def ready(self) -> bool:
        """Whether the filter has said that it is."""
        return self.registry.ready

    # The edge -------------------------------------------------------------------------------

    def output(self) -> bytes:
        """Let everything happen that can, and take what smtpd has written to the filter."""
        self.settle()
        data = b"".join(self._out)
        self._out.clear()
        for chain in self._chains.values():
            chain.lines_taken = chain.lines_written
        return data

    def receive(self, data: bytes) -> None:
        """What the filter wrote, in any pieces.  Raises `SmtpdDied` or `SmtpdWedged`."""
        if self.failed:
            raise self.failed
        self._in += data
        while True:
            end = self._in.find(b"\n", 0, IOBUF_MAX)
            if end < 0:
                break
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            self._line(line)
        if len(self._in) >= IOBUF_MAX:
            self._fail(SmtpdWedged(f"a line from the filter of more than {IOBUF_MAX} bytes"))

    def receive_stderr(self, data: bytes) -> None:
        """What the filter wrote to stderr: smtpd logs it line by line."""
        self._err += data
        *lines, rest = self._err.split(b"\n")
        self._err = bytearray(rest)
        self.stderr += [text(bytes(line)) for line in lines]
        if not self.failed and any(len(line) >= IOBUF_MAX for line in (*lines, rest)):
            self._fail(SmtpdWedged(f"{IOBUF_MAX} bytes on stderr without LF"))

    def filter_exited(self, status: int) -> NoReturn:
        """The filter's process ended, however."""
        self._fail(SmtpdDied(f"lost processor: exited abnormally (the filter's status: {status})"))

    def filter_shut_down(self) -> NoReturn:
        """The filter shut its socket down (shutdown(2)) and lives on."""
        self._fail(SmtpdWedged("the filter shut its socket down"))

    def connect(
        self,
        src: str = "192.0.2.1:4711",
        dest: str = "203.0.113.1:25",
        rdns: str | None = None,
        fcrdns: str = "pass",
        *,
        smtps: bool = False,
        local: bool = False,
    ) -> Script:
        """A client connects.  src and dest as in link-connect (`[2001:db8::1]:25`); local: to
        the local socket; smtps: TLS at once.  Before the filter is ready, clients wait."""
        if local or src.startswith("unix:"):
            peer = Peer(SOCKET, SOCKET, self.server.hostname if rdns is None else rdns, "pass")
        else:
            name = "client.example.net" if rdns is None else rdns
            peer = Peer(src, dest, name, fcrdns, smtps)
        client = Script()
        self.clients.append(client)
        self._waiting.append((client, peer))
        return client

    @property
    def open_requests(self) -> list[tuple[str, str]]:
        """Session and phase of what the filter owes an answer to."""
        owed = []
        for chain in self._chains.values():
            session = chain.session
            if session.waiting:
                owed.append((session.id, session.phase))
            elif session.tx and session.tx.ended and "data-line" in self.registry.tokens:
                owed.append((session.id, "data-line"))
        return owed

    # Lines from the filter ------------------------------------------------------------------

    def _line(self, raw: bytes) -> None:
        line = raw.partition(b"\0")[0]  # a C string
        if line != raw:
            self.fault("a NUL cuts the line", line=raw)
        if line.startswith(b"register|"):
            if wrong := self.registry.register(text(line), self.ids):
                self._bad(wrong, line)
        elif not self.ready:
            self._bad("Non-register message before register|ready", line)
        elif line.startswith((b"filter-result|", b"filter-dataline|")):
            self._answer(line)
        elif line.startswith(b"report|"):
            well_spelled = re.match(rb"report\|\d+\.\d{6}\|smtp-in\|", line)
            # The session is then read from the microseconds: no spelling works.
            self._bad("unexpected direction" if well_spelled else "Invalid report", line)
        else:
            self._bad("Invalid filter message type", line)

    def _answer(self, line: bytes) -> None:
        limit = self.dialect.answer_limit
        if limit and len(line) > limit:
            self.fault(f"a line is cut to {limit} bytes", line=line)
            line = line[:limit]
        try:
            answer = Answer.parse(line, self.dialect)
            chain = self._chains.get(answer.reqid)
            if chain is None:
                self._unknown_session(answer, line)
            elif answer.kind == b"filter-dataline":
                self._dataline(chain, answer.token, answer.content, line)
            elif chain.phase == "data-line":
                raise BadAnswer("filter-result in dataline phase")
            else:
                self._decision(chain, answer, line)
        except BadAnswer as wrong:
            self._bad(str(wrong), line)

    def _unknown_session(self, answer: Answer, line: bytes) -> None:
        if answer.token in self._chains:
            reason = "session and token in the wrong order: dropped, the session hangs"
            self.fault(reason, None, line)
        elif answer.reqid not in self._ended:
            self.fault("an answer for a session that never was: dropped", None, line)

    def _decision(self, chain: Chain, answer: Answer, line: bytes) -> None:
        decision, parameter = answer.decision(chain.phase, self.dialect)
        token = answer.token
        wrong = token is not None and token != self._token(chain.phase)
        if decision == "proceed" and token == 0:
            self.fault("a token of zero starts the phases anew", chain.session, line)
            self._query(chain, "connect")
            return
        if decision == "proceed" and wrong:
            raise BadAnswer("misbehaving filter")
        if wrong:
            self.fault(f"{decision} with a token of another phase", chain.session, line)
        if decision == "report":
            self.fault("the report decision works as a rewrite", chain.session, line)
        if b"\r" in parameter:
            self.fault("a CR in a parameter gets to the client", chain.session, line)
        self._decide(chain, decision, parameter)

    def _dataline(self, chain: Chain, token: int | None, content: bytes, line: bytes) -> None:
        session = chain.session
        if chain.phase != "data-line":
            raise BadAnswer("filter-dataline out of dataline phase")
        if token == 0:
            self.fault("a token of zero sends the line to the filter again", session, line)
            self._body_query(chain, content)
            return
        if token is not None and token != self._token("data-line"):
            raise BadAnswer("misbehaving filter")
        if not chain.lines_taken:
            self.fault("a line before the first of this message was read: stale", session, line)
        if chain.dotted or not chain.data_open:
            self.fault("a line after the dot is dropped", session, line)
            return
        if content == b".\r":
            self.fault("a dot with CR does not end the message", session, line)
        chain.dotted = content == b"."
        chain.from_filter.append(content)

    def _token(self, phase: str) -> int:
        return int(self.registry.tokens.get(phase, "0"), 16)

    # Between lookup and dispatcher ----------------------------------------------------------

    def ask(self, session: Session, phase: str, argument: str) -> None:
        def query() -> None:
            chain = self._chains[int(session.id, 16)]
            chain.parameter = argument
            if phase in ("mail-from", "rcpt-to"):
                chain.parameter = argument[1:].partition(">")[0]
            self._query(chain, phase)

        self._to_lookup.append(query)

    def _query(self, chain: Chain, phase: str) -> None:
        chain.phase = phase
        if phase not in self.registry.tokens:
            self._decide(chain, "proceed", b"")
            return
        peer = chain.session.peer
        more = (peer.rdns,) if phase == "connect" else ()
        name = self.dialect.connect_phase if phase == "connect" else phase
        self._request(chain, name, phase, *more, chain.parameter)

    def _decide(self, chain: Chain, decision: str, parameter: bytes) -> None:
        def decided() -> None:
            session = chain.session
            if session.state == "closed":
                return
            if not session.waiting:  # tree_xpop(&wait_filters, ...)
                self._fail(SmtpdDied(f"tree_xpop: {decision} for a session that asked nothing"))
            session.decided(decision, parameter)

        self._to_dispatcher.append(decided)

    def data_begin(self, session: Session) -> None:
        def begin() -> None:
            chain = self._chains[int(session.id, 16)]
            chain.data_open = True
            chain.lines_written = chain.lines_taken = chain.dotted = False
            chain.to_filter.clear()
            chain.from_filter.clear()
            self._to_dispatcher.append(session.begin_message)

        self._to_lookup.append(begin)

    def data_end(self, session: Session) -> None:
        chain = self._chains[int(session.id, 16)]
        chain.from_filter.clear()

        def end() -> None:
            chain.data_open = False
            chain.to_filter.clear()

        self._to_lookup.append(end)

    def body_from_client(self, session: Session, line: bytes) -> None:
        self._chains[int(session.id, 16)].to_filter.append(line)

    def session_end(self, session: Session) -> None:
        def end() -> None:
            self._chains.pop(int(session.id, 16))
            self._ended.add(int(session.id, 16))

        self._to_lookup.append(end)

    def report(self, session: Session, event: str, fields: tuple[str, ...]) -> None:
        now = stamp(self.dialect, self.clock())  # the dispatcher's clock
        self._to_lookup.append(lambda: self.broadcast("smtp-in", event, session.id, now, fields))

    def broadcast(
        self, direction: str, event: str, session: str, now: str, fields: tuple[str, ...]
    ) -> None:
        """Write a report once for each registration of it."""
        for _ in range(self.registry.reports.count((direction, event))):
            self._write("report", self.dialect.version, now, direction, event, session, *fields)

    # What happens when ----------------------------------------------------------------------

    def settle(self) -> None:
        """Everything that can happen without the filter."""
        if self.failed:
            raise self.failed
        while moves := self._moves():
            move = self.order.choice(moves) if self.order else moves[0]
            move()

    def _moves(self) -> list[Callable[[], None]]:
        """What can happen now, the usual first.  Reports and requests are in order among each
        other, body lines are; the two are not."""
        moves: list[Callable[[], None]] = []
        every = self.order is not None
        for chain in self._chains.values():
            if chain.to_filter and chain.data_open:
                moves.append(lambda c=chain: self._pass_on(c))  # type: ignore[misc]
        for queue in (self._to_lookup, self._to_dispatcher):
            if queue:
                moves.append(lambda q=queue: q.popleft()())  # type: ignore[misc]
        if moves and not every:
            return moves
        for chain in self._chains.values():
            if chain.from_filter:
                moves.append(lambda c=chain: self._give_back(c))  # type: ignore[misc]
        if moves and not every:
            return moves
        moves += [client.advance for client in self.clients if client.ready()]
        if self.ready and self._waiting:
            moves.append(self._accept)
        return moves

    def _accept(self) -> None:
        client, peer = self._waiting.popleft()
        session = Session(self, self.ids.session(), peer, client)
        client.session = session
        self._chains[int(session.id, 16)] = Chain(session)
        session.start()

    def _pass_on(self, chain: Chain) -> None:
        count = len(chain.to_filter)
        for _ in range(self.order.randint(1, count) if self.order else count):
            self._body_query(chain, chain.to_filter.popleft())

    def _body_query(self, chain: Chain, line: bytes) -> None:
        chain.phase = "data-line"
        if "data-line" not in self.registry.tokens:
            chain.from_filter.append(line)
            return
        chain.lines_written = True
        self._request(chain, "data-line", "data-line", text(line))

    def _give_back(self, chain: Chain) -> None:
        while chain.from_filter:
            if chain.session.line_from_filter(chain.from_filter.popleft()):
                chain.from_filter.clear()
                return

    # Output and errors ----------------------------------------------------------------------

    def _request(self, chain: Chain, name: str, phase: str, *fields: str) -> None:
        now = stamp(self.dialect, self.clock())  # the lookup process's clock
        token = (self.registry.tokens[phase],) if self.dialect.tokens else ()
        head = ("filter", self.dialect.version, now, "smtp-in", name, chain.session.id)
        self._write(*head, *token, *fields)

    def _write(self, *fields: str) -> None:
        self._out.append(octets("|".join(fields)) + b"\n")

    def fault(self, reason: str, session: Session | None = None, line: bytes = b"") -> None:
        self.faults.append(Fault(reason, session.id if session else "", line))

    def _bad(self, reason: str, line: bytes) -> None:
        """fatalx() since 0.2; before, the line was ignored."""
        if self.dialect.strict:
            self._fail(SmtpdDied(reason, line))
        self.fault(f"{reason} (ignored)", None, line)

    def _fail(self, error: SmtpdError) -> NoReturn:
        self.failed = error
        raise error
