"""The bridge process: links in, one task for each request, answers out.

Keeps no session state that matters: whatever a request needs comes with it.  What is
decided is the filter's (policy.py or an application); how it is started is cli.py's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import asdict

from bridge import edits, link, log
from bridge.filter import Filter, Message
from bridge.smtpd.protocol import MESSAGE

READ_AHEAD = 2  # times the grant: a shim that sends more is stopped from reading until then
HIGH_WATER = 1 << 20  # bytes of answers that wait to be written

Log = Callable[..., None]


class Server:
    """One filter, asked over any number of links."""

    def __init__(self, app: Filter, *, slots: int, bytes: int, release: str, log: Log) -> None:
        self.app = app
        self.slots, self.bytes, self.release = slots, bytes, release
        self.log = log
        self.links: set[Link] = set()
        self.draining = False

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
            "bytes": self.bytes,
        }

    async def serve_link(self, sock: socket.socket) -> None:
        """Serve one link until it ends."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        _, served = await loop.create_connection(lambda: Link(self), sock=sock)
        await served.ended.wait()

    async def drain(self, patience: float) -> None:
        """Take no new requests, finish the open ones, end all links."""
        self.draining = True
        for each in self.links:
            each.say({"kind": "bye"})
        tasks = [task for each in self.links for task in each.tasks.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        for each in list(self.links):
            each.close()


class Link(asyncio.Protocol):
    """One link to one shim."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._reader = link.FrameReader()
        self._held = 0  # bytes of messages that are being judged
        self._reports: set[asyncio.Task[None]] = set()
        self.tasks: dict[int, asyncio.Task[None]] = {}  # by request id
        self.ended = asyncio.Event()

    # asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open with hello."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.links.add(self)
        self.say(self._server.hello())

    def data_received(self, data: bytes) -> None:
        """Take frames."""
        try:
            for header, body in self._reader.feed(data):
                self._on_frame(header, body)
        except link.LinkError as error:
            self._server.log("link-error", error=str(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for answers any more."""
        self._server.links.discard(self)
        for task in (*self.tasks.values(), *self._reports):
            task.cancel()
        self.ended.set()

    def close(self) -> None:
        """End the link, once what was said is written."""
        if self._transport is not None:
            self._transport.close()

    def say(self, header: link.Header, body: bytes = b"") -> None:
        """Write a frame."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(link.encode(header, len(body)))
            if body:
                self._transport.write(body)

    # Frames -------------------------------------------------------------------------------

    def _on_frame(self, header: link.Header, body: bytes) -> None:
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
        if len(self.tasks) >= self._server.slots * READ_AHEAD:
            raise link.LinkError("more requests than were granted")
        task = asyncio.create_task(self._answer(id, header, body))
        self.tasks[id] = task
        self._held += len(body)
        self._flow()

        def done(_: object) -> None:
            self.tasks.pop(id, None)
            self._held -= len(body)
            self._flow()

        task.add_done_callback(done)

    def _flow(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._held > self._server.bytes * READ_AHEAD:
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

    async def _answer(self, id: int, header: link.Header, body: bytes) -> None:
        try:
            answer, new = await self._decide(header, body)
        except Exception as error:  # noqa: BLE001 whatever a handler raises
            session = header.get("session")
            name = session.get("id") if isinstance(session, dict) else None
            self._server.log("handler-failed", session=name, error=log.folded(error))
            answer, new = {"failed": "internal"}, b""
        self.say({"kind": "answer", "id": id} | answer, new)

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
        splices = edits.apply(event.wire, verdict.edits, start=event.start)
        answer["splices"], new = link.splices_to_json(splices)
        return answer, new
