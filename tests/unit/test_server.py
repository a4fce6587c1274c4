"""Whatever a handler does, is each request answered, and does a bridge bear whatever comes over
a link?
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bridge import Add, Data, Filter, MailFrom, Message, Reject, Session, TxReset, Verdict, link
from bridge.server import COMMANDS, READ_AHEAD, Server
from bridge.smtpd.events import DataLine

Frame = tuple[dict[str, Any], bytes]
SLOTS = 2
PATIENCE = 20.0  # s; only a failure takes so long


class Peer:
    """A shim of straw at the other end of a link."""

    def __init__(self, app: Filter) -> None:
        self.log: list[str] = []
        self._server = Server(app, slots=SLOTS, bytes=1 << 20, release="test", log=self._write)
        ours, self._theirs = socket.socketpair()
        self._ours = ours
        ours.setblocking(False)
        self._reader = link.FrameReader()
        self._frames: list[Frame] = []

    def _write(self, event: str, **values: object) -> None:
        self.log.append(f"{event} {values}")

    async def __aenter__(self) -> Peer:
        self._serving = asyncio.create_task(self._server.serve_link(self._theirs))
        header, _ = await self.frame()
        assert header["kind"] == "hello"
        await self.say("hello", version=link.VERSION)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ours.close()
        await asyncio.wait_for(self._serving, PATIENCE)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._ours, data)

    async def say(self, kind: str, body: bytes = b"", **values: Any) -> None:
        await self.send(link.encode({"kind": kind} | values, len(body)) + body)

    async def ask(self, id: object, address: str = "a@b", **changed: Any) -> None:
        session = link.session_to_json(Session("1ef1"))
        event = link.event_to_json(MailFrom("1ef1", address))
        header = {"id": id, "phase": "mail-from", "session": session} | event | changed
        await self.say("request", b"", **header)

    async def ask_message(self, id: int, content: bytes) -> None:
        session = link.session_to_json(Session("1ef1"))
        event = link.event_to_json(DataLine("1ef1", "."))
        await self.say("request", content, id=id, phase="message", session=session, **event)

    async def frame(self) -> Frame:
        """The next frame from the bridge; EOFError when it has ended the link."""
        while not self._frames:
            loop = asyncio.get_running_loop()
            data = await asyncio.wait_for(loop.sock_recv(self._ours, 65536), PATIENCE)
            if not data:
                raise EOFError
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)


def run(app: Filter, talk: Callable[[Peer], Coroutine[Any, Any, None]]) -> list[str]:
    """Talk to a bridge; its log."""

    async def whole() -> list[str]:
        async with Peer(app) as peer:
            await talk(peer)
        return peer.log

    return asyncio.run(whole())


# Handlers ---------------------------------------------------------------------------------


def raises(event: MailFrom, session: Session) -> None:
    raise ValueError(f"hunter2 {event.address}")


async def raises_later(event: MailFrom, session: Session) -> None:
    await asyncio.sleep(0)
    raise ValueError(f"hunter2 {event.address}")


def answers_a_word(event: MailFrom, session: Session) -> str:
    return "proceed"


BAD = [raises, raises_later, answers_a_word]


@pytest.mark.parametrize("handler", BAD, ids=lambda handler: handler.__name__)
def test_a_bad_handler_fails_its_request_and_no_other(handler: Any) -> None:
    app = Filter()
    app.on(MailFrom)(handler)

    @app.on(Data)
    def good(event: Data, session: Session) -> Reject:
        return Reject("5.7.1", "No")

    async def talk(peer: Peer) -> None:
        await peer.ask(1)
        assert await peer.frame() == ({"kind": "answer", "id": 1, "failed": "internal"}, b"")
        await peer.ask(2, phase="data", **link.event_to_json(Data("1ef1")))
        header, _ = await peer.frame()
        assert (header["id"], header["decision"], header["text"]) == (2, "reject", "No")

    log = run(app, talk)
    assert [line for line in log if "handler-failed" in line]
    assert "hunter2" not in str(log)


def test_edits_come_back_as_splices() -> None:
    app = Filter()

    @app.on(Message)
    def tag(event: Message, session: Session) -> Verdict:
        return Verdict(edits=(Add("X-Seen", "yes"),), reason="seen")

    async def talk(peer: Peer) -> None:
        await peer.ask_message(1, b"Subject: x\n\nhello\n")
        header, body = await peer.frame()
        assert header["splices"] == [[11, 11, len(body)]]
        assert body == b"X-Seen: yes\n"
        assert (header["decision"], header["reason"]) == ("proceed", "seen")

    run(app, talk)


def test_a_report_whose_handler_fails_is_logged_and_the_link_goes_on() -> None:
    app = Filter()

    failed = asyncio.Event()

    @app.on(TxReset)
    async def bad(event: TxReset, session: Session) -> None:
        failed.set()
        raise ValueError("hunter2")

    async def talk(peer: Peer) -> None:
        session = link.session_to_json(Session("1ef1"))
        await peer.say("report", session=session, **link.event_to_json(TxReset("1ef1", "5287b63d")))
        await peer.say("report", session="none", event=["none"])
        await asyncio.wait_for(failed.wait(), PATIENCE)
        await peer.ask(1)
        header, _ = await peer.frame()
        assert header["decision"] == "proceed"

    log = run(app, talk)
    assert len([line for line in log if "report-failed" in line]) == 2
    assert "hunter2" not in str(log)


# Links ------------------------------------------------------------------------------------


def test_pings_are_answered_and_what_is_not_known_is_ignored() -> None:
    async def talk(peer: Peer) -> None:
        await peer.say("of tomorrow", b"body", more=[1, 2])
        await peer.say("cancel", id=99)
        await peer.say("cancel", id="x")
        await peer.say("ping")
        assert await peer.frame() == ({"kind": "pong"}, b"")

    assert run(Filter(), talk) == []


ODD_REQUESTS: dict[str, dict[str, Any]] = {
    "no session": {"session": None},
    "a phase that is none": {"event": "vrfy"},
    "an event without its fields": {"fields": {}},
    "an event that is no text": {"event": ["mail-from"]},
}


@pytest.mark.parametrize("changed", ODD_REQUESTS.values(), ids=ODD_REQUESTS.keys())
def test_a_request_that_makes_no_sense_fails(changed: dict[str, Any]) -> None:
    async def talk(peer: Peer) -> None:
        await peer.ask(1, **changed)
        assert await peer.frame() == ({"kind": "answer", "id": 1, "failed": "internal"}, b"")

    run(Filter(), talk)


@pytest.mark.parametrize("id", [None, "1", 1.5, [1]])
def test_a_request_without_an_id_ends_the_link(id: object) -> None:
    async def talk(peer: Peer) -> None:
        await peer.ask(id)
        with pytest.raises(EOFError):
            await peer.frame()

    assert "link-error" in run(Filter(), talk)[0]


def waiting() -> tuple[Filter, list[str]]:
    """An application whose answers never come; what it heard of cancellations."""
    app, cancelled = Filter(), list[str]()

    @app.on(MailFrom)
    async def wait(event: MailFrom, session: Session) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(event.address)

    return app, cancelled


def test_a_request_of_an_id_that_is_open_ends_the_link() -> None:
    app, cancelled = waiting()

    async def talk(peer: Peer) -> None:
        await peer.ask(1, "first@b")
        await peer.ask(1, "second@b")
        with pytest.raises(EOFError):
            await peer.frame()

    run(app, talk)
    assert cancelled == ["first@b"]


def test_more_requests_than_were_granted_end_the_link() -> None:
    app, _ = waiting()
    granted = SLOTS * COMMANDS * READ_AHEAD

    async def talk(peer: Peer) -> None:
        for id in range(granted + 1):
            await peer.ask(id)
        with pytest.raises(EOFError):
            await peer.frame()

    assert "more requests than were granted" in run(app, talk)[0]


def test_a_cancelled_request_is_not_answered() -> None:
    app, cancelled = waiting()

    async def talk(peer: Peer) -> None:
        await peer.ask(1, "gone@b")
        await peer.say("ping")
        await peer.frame()
        await peer.say("cancel", id=1)
        await peer.say("ping")
        assert (await peer.frame())[0] == {"kind": "pong"}

    run(app, talk)
    assert cancelled == ["gone@b"]


def test_when_a_link_ends_nobody_works_for_it_any_more() -> None:
    app, cancelled = waiting()

    async def talk(peer: Peer) -> None:
        await peer.ask(1, "a@b")
        await peer.say("ping")
        await peer.frame()

    run(app, talk)
    assert cancelled == ["a@b"]
