"""The bridge process: links in, one task for each request, answers out.

Keeps no session state that matters: whatever a request needs comes with it.  What is
decided is the filter's (policy.py or an application); how it is started is cli.py's.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

from bridge import edits, link, log
from bridge.filter import Filter, Message
from bridge.metrics import LinkUse, Metrics, shim_name
from bridge.smtpd import events
from bridge.smtpd.items import MESSAGE
from bridge.smtpd.wire import longest_line

STRANGERS_HEADER = 64 * 1024  # bytes of a frame before hello
COMMANDS = 16  # for each slot: they hold next to nothing, and mostly wait for the DNS
READ_AHEAD = 2  # times the grant: a shim that sends more is stopped from reading until then
HIGH_WATER = 1 << 20  # bytes of answers that wait for the shim to read them
FLUSH = 1.0  # seconds for the last answers to be written
FAILED = "failed"  # instead of a decision, in the metrics

Log = Callable[..., None]


class Server:
    """One filter, asked over any number of links."""

    def __init__(
        self,
        app: Filter,
        *,
        slots: int,
        bytes: int,
        release: str,
        log: Log,
        metrics: Metrics | None = None,
    ) -> None:
        self.app = app
        self.slots, self.bytes, self.release = slots, bytes, release
        self.log = log
        self.metrics = metrics or Metrics(release)
        self.metrics.begin({"requests_total": ((MESSAGE,), ("proceed", "reject", FAILED))})
        self.links: set[Link] = set()

    def hello(self) -> link.Header:
        """The frame that opens a link."""
        wanted = {
            key: sorted(value) if isinstance(value, frozenset) else value
            for key, value in asdict(self.app.registration).items()
        }
        return {
            "kind": "hello",
            "version": link.VERSION,
            "release": self.release,
            "registration": wanted,
            "slots": self.slots,
            "commands": self.slots * COMMANDS,
            "bytes": self.bytes,
        }

    def grant(self, slots: int, bytes: int) -> None:
        """Take so much from each shim at a time from now on."""
        self.slots, self.bytes = slots, bytes
        for each in self.links:
            each.greet()

    async def serve_link(self, sock: socket.socket) -> None:
        """Serve one link until it ends."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        _, served = await loop.create_connection(lambda: Link(self), sock=sock)
        await served.ended.wait()

    async def drain(self, patience: float) -> None:
        """Take no new requests, finish the open ones, end all links."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        for each in self.links:
            each.say({"kind": "bye"})
        # What was sent before the shim read that arrives now.
        await asyncio.sleep(min(patience, 0.2))
        while open := [task for each in self.links for task in each.tasks.values()]:
            if (left := until - loop.time()) <= 0:
                self.log("drain-cut-short", open=len(open))
                break
            await asyncio.wait(open, timeout=left)
        ending = [asyncio.create_task(each.ended.wait()) for each in self.links]
        for each in list(self.links):
            each.close()
        if ending:  # for the last answers to be written
            await asyncio.wait(ending, timeout=FLUSH)


class Link(asyncio.Protocol):
    """One link to one shim."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._reader = link.FrameReader(STRANGERS_HEADER, 0)
        self._slots = self._bytes = 0  # the most that was ever granted
        self._open: Counter[str] = Counter()  # how many messages and commands there are
        self._name = ""  # what the shim calls itself
        self._asked = 0  # requests so far
        self._held = 0  # bytes of messages that are being judged
        self._full = False  # does the other side not read what we say?
        self._reports: set[asyncio.Task[None]] = set()
        self.tasks: dict[int, asyncio.Task[None]] = {}  # by request id
        self.known = asyncio.Event()  # it has said hello; also set when that will not come
        self.ended = asyncio.Event()

    # asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open with hello."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._server.links.add(self)
        self.greet()

    def data_received(self, data: bytes) -> None:
        """Take frames."""
        try:
            for header, body in self._reader.feed(data):
                self._on_frame(header, body)
        except link.LinkError as error:
            self._server.log("link-error", error=str(error))
            self.close()

    def pause_writing(self) -> None:
        """Whoever does not read is not heard."""
        self._full = True
        self._flow()

    def resume_writing(self) -> None:
        """It reads again."""
        self._full = False
        self._flow()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for answers any more."""
        self._server.links.discard(self)
        self.known.set()
        for task in (*self.tasks.values(), *self._reports):
            task.cancel()
        self.ended.set()

    def greet(self) -> None:
        """Say hello, with what is granted."""
        self._slots = max(self._slots, self._server.slots)
        self._bytes = max(self._bytes, self._server.bytes)
        self.say(self._server.hello())

    def close(self) -> None:
        """End the link, once what was said is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the link at once."""
        if self._transport is not None:
            self._transport.abort()

    def say(self, header: link.Header, body: bytes = b"") -> None:
        """Write a frame."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(link.encode(header, len(body)))
            if body:
                self._transport.write(body)

    # Frames -------------------------------------------------------------------------------

    def _on_frame(self, header: link.Header, body: bytes) -> None:
        if not self.known.is_set():
            if header["kind"] != "hello" or not isinstance(header.get("version"), int):
                raise link.LinkError("no hello")
            self.known.set()
            self._name = shim_name(header.get("name"))
            self._reader.widen(link.MAX_HEADER, max(self._server.bytes, link.LEAST_BODY))
            return
        match header["kind"]:
            case "request":
                self._on_request(header, body)
            case "report":
                self._on_report(header)
            case "cancel":
                if isinstance(id := header.get("id"), int) and (task := self.tasks.get(id)):
                    task.cancel()
            case "ping":
                self.say({"kind": "pong"})
            case _:
                pass  # a kind of a later version

    def _on_request(self, header: link.Header, body: bytes) -> None:
        id = header.get("id")
        if not isinstance(id, int) or id in self.tasks:
            raise link.LinkError("a request without an id of its own")
        kind, granted = "command", self._slots * COMMANDS
        if header.get("phase") == MESSAGE:
            kind, granted = MESSAGE, self._slots
        if self._open[kind] >= granted * READ_AHEAD:
            raise link.LinkError("more requests than were granted")
        task = asyncio.create_task(self._answer(id, header, body))
        self.tasks[id] = task
        self._asked += 1
        self._open[kind] += 1
        self._held += len(body)
        self._flow()

        def done(_: object) -> None:
            self.tasks.pop(id, None)
            self._open[kind] -= 1
            self._held -= len(body)
            self._flow()

        task.add_done_callback(done)

    def _flow(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._full or self._held > self._bytes * READ_AHEAD:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _on_report(self, header: link.Header) -> None:
        if len(self._reports) > self._server.slots * 32:
            return  # reports are best effort
        task = asyncio.create_task(self._report(header))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, header: link.Header) -> None:
        try:
            session = link.session_from_json(header.get("session"))
            await self._server.app.report(link.event_from_json(header, session), session)
        except Exception as error:  # noqa: BLE001 whatever a handler raises
            self._server.log("report-failed", error=log.folded(error))

    @property
    def use(self) -> LinkUse:
        """What it does now."""
        return LinkUse(self._name, self._asked, len(self.tasks), self._held)

    async def _answer(self, id: int, header: link.Header, body: bytes) -> None:
        clock = asyncio.get_running_loop().time
        began, decision = clock(), FAILED
        try:
            answer, new = await self._decide(header, body)
            self.say({"kind": "answer", "id": id} | answer, new)
            decision = answer["decision"]
        except Exception as error:  # noqa: BLE001 whatever a handler raises or keeps
            session = header.get("session")
            name = session.get("id") if isinstance(session, dict) else None
            self._server.log("handler-failed", session=name, error=log.folded(error))
            self.say({"kind": "answer", "id": id, "failed": "internal"})
        self._server.metrics.answered(_phase(header), decision, clock() - began)

    async def _decide(self, header: link.Header, body: bytes) -> tuple[link.Header, bytes]:
        session = link.session_from_json(header.get("session"))
        left = header.get("left")
        if isinstance(left, int | float):
            session.deadline = asyncio.get_running_loop().time() + left
        event = link.event_from_json(header, session)
        if header.get("phase") == MESSAGE:
            event = Message(
                session.id, body, time=event.time, version=event.version, direction=event.direction
            )
        verdict = await self._server.app.decide(event, session)
        answer = link.decision_to_json(verdict.decision) | {"keep": session.keep}
        if verdict.reason:
            answer["reason"] = verdict.reason
        if not isinstance(event, Message) or not verdict.edits:
            return answer, b""
        longest = longest_line(event.version)
        splices = edits.apply(event.wire, verdict.edits, start=event.start, longest=longest)
        answer["splices"], new = link.splices_to_json(splices)
        return answer, new


def _phase(header: link.Header) -> str:
    """A request's phase, one of those that there are."""
    phase = header.get("phase")
    return phase if phase == MESSAGE or phase in events.PHASES else "unknown"
