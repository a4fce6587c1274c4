"""What can whoever reaches the link do to a bridge?  Say no more than a few bytes, for a short
time, in small numbers; and whoever has said hello can harm only himself.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge import Filter, Message, Session, link
from bridge.config import Endpoint, parse
from bridge.listen import MAX_STRANGERS, Listener
from bridge.server import READ_AHEAD, Server

WAIT = 20.0
SLOTS = 4
LONG = 60.0  # the time for hello, where a test does not wait for its end
SHORT = 1.0  # the same, where it does
HELLO = link.encode({"kind": "hello", "version": 1})


def frame(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(body)) + header + body


def request(id: object, body: bytes = b"Subject: x\n\nbody\n") -> bytes:
    header = {
        "kind": "request", "id": id, "phase": "message", "event": "data-line", "left": 40,
        "time": 1.0, "session": {"id": f"{id}"}, "fields": {"line": "."},
    }  # fmt: skip
    return link.encode(header, len(body)) + body


class World:
    """A bridge that listens, and what it logged.  hold: messages wait for `release`."""

    def __init__(self, path: Path, hello_wait: float) -> None:
        self.path = str(path / "bridge.sock")
        self.logged: list[str] = []
        self.release = asyncio.Event()
        self.release.set()
        self.judged = 0
        self.held = asyncio.Semaphore(0)
        app = Filter()
        app.on(Message)(self._judge)
        self.server = Server(app, slots=SLOTS, bytes=1 << 20, release="test", log=self._log)
        self.listener = Listener(self.server, parse(""), hello_wait=hello_wait)

    async def _judge(self, message: Message, session: Session) -> None:
        self.judged += 1
        self.held.release()
        await self.release.wait()

    async def all_held(self, number: int) -> None:
        """Wait until so many more messages came."""
        for _ in range(number):
            await self.held.acquire()

    def _log(self, event: str, **values: object) -> None:
        self.logged.append(f"{event} {values.get('why', values.get('error', ''))}")

    async def stranger(self) -> Peer:
        """A connection on which nothing was said."""
        return Peer(*await asyncio.open_unix_connection(self.path))

    async def shim(self) -> Peer:
        """One that has said hello."""
        peer = await self.stranger()
        peer.writer.write(HELLO)
        return peer


class Peer:
    """The other side of a link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def frame(self) -> link.Header:
        """The next frame; EOFError at the end."""
        header, body = struct.unpack(">II", await self.reader.readexactly(8))
        ((found, _),) = link.FrameReader().feed(
            struct.pack(">II", header, body) + await self.reader.readexactly(header + body)
        )
        return found

    async def answered(self, id: int) -> str:
        """What it is told about a message."""
        self.writer.write(request(id))
        while (found := await self.frame())["kind"] != "answer":
            pass
        assert found["id"] == id
        return str(found["decision"])

    async def closed(self) -> None:
        """Wait until the bridge has ended it."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


@asynccontextmanager
async def listening(path: Path, hello_wait: float = LONG) -> AsyncIterator[World]:
    world = World(path, hello_wait)
    world.listener.open([Endpoint.parse(f"unix:{world.path}")])
    try:
        yield world
    finally:
        world.listener.close()
        await world.server.drain(0)


def run(test: Callable[[World], Coroutine[Any, Any, None]], path: Path, *wait: float) -> World:
    """Run a test in a world, and see that one who was there all the time took no harm."""

    async def main() -> World:
        async with asyncio.timeout(WAIT), listening(path, *wait) as world:
            good = await world.shim()
            assert await good.answered(1) == "proceed"
            await test(world)
            assert await good.answered(2) == "proceed"
            return world

    return asyncio.run(main())


# Before hello -----------------------------------------------------------------------------

STRANGE = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header of 4 GiB": b"\xff\xff\xff\xff\0\0\0\0",
    "a header of 100 KiB": struct.pack(">II", 100 << 10, 0),
    "a body": frame(b'{"kind":"hello","version":1}', b"x"),
    "a message": request(7),
    "no JSON": frame(b"hello"),
    "a ping": frame(b'{"kind":"ping"}'),
    "hello without a version": frame(b'{"kind":"hello"}'),
    "hello of a version that is no number": frame(b'{"kind":"hello","version":"1"}'),
}


@pytest.mark.parametrize("said", STRANGE.values(), ids=STRANGE.keys())
def test_a_stranger_who_says_anything_but_hello_is_sent_away(said: bytes, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        stranger = await world.stranger()
        stranger.writer.write(said)
        await stranger.closed()

    world = run(test, tmp_path)
    assert world.judged == 2  # the good one's
    assert [line.split()[0] for line in world.logged] == ["link-error"]


@pytest.mark.parametrize("said", [b"", HELLO[:20]], ids=["nothing", "half a hello"])
def test_a_stranger_who_says_too_little_is_sent_away_in_time(said: bytes, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        stranger = await world.stranger()
        stranger.writer.write(said)
        await stranger.closed()

    assert run(test, tmp_path, SHORT).logged == ["link-refused no hello in time"]


def test_a_shim_that_has_nothing_to_ask_stays(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        shim = await world.shim()
        await (await world.stranger()).closed()  # who came later
        assert await shim.answered(1) == "proceed"

    run(test, tmp_path, SHORT)


def test_300_strangers_keep_no_shim_out(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        crowd = [await world.stranger() for _ in range(300)]
        shim = await world.shim()
        assert await shim.answered(1) == "proceed"
        assert len(world.server.links) <= MAX_STRANGERS + 2
        for stranger in crowd[: 300 - MAX_STRANGERS]:
            await stranger.closed()

    world = run(test, tmp_path)
    assert set(world.logged) == {"link-refused too many strangers"}


def test_a_stranger_is_told_nothing_but_hello(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        stranger = await world.stranger()
        good = await world.shim()
        await good.answered(1)
        assert (await stranger.frame())["kind"] == "hello"
        world.listener.close()
        assert await stranger.reader.read() == b""

    run(test, tmp_path)


# After hello ------------------------------------------------------------------------------

SENSELESS = {
    "an id again while it is open": request(1) * 2,
    "a request without an id": request(None),
    "a request whose id is a list": request([1]),
    "more requests than were granted": b"".join(request(n) for n in range(SLOTS * READ_AHEAD + 1)),
    "a frame of 4 GiB": b"\0\0\0\1\xff\xff\xff\xff",
    "garbage": frame(b"[]"),
}


@pytest.mark.parametrize("said", SENSELESS.values(), ids=SENSELESS.keys())
def test_a_link_of_nonsense_is_ended_alone(said: bytes, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.release.clear()
        bad = await world.shim()
        bad.writer.write(said)
        await bad.closed()
        world.release.set()

    assert [line.split()[0] for line in run(test, tmp_path).logged] == ["link-error"]


FAILED = {
    "no session": request(1).replace(b'{"id":"1"}', b'"session-"'),
    "an event of another time": request(1).replace(b'"data-line"', b'"data-like"'),
}


@pytest.mark.parametrize("said", FAILED.values(), ids=FAILED.keys())
def test_a_request_that_makes_no_sense_fails_alone(said: bytes, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        shim = await world.shim()
        shim.writer.write(said)
        assert (await shim.frame())["kind"] == "hello"
        assert (await shim.frame())["failed"] == "internal"
        assert await shim.answered(2) == "proceed"

    run(test, tmp_path)


def test_an_unknown_kind_and_an_unknown_key_are_nothing(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        shim = await world.shim()
        shim.writer.write(frame(b'{"kind":"of tomorrow","more":[1]}', b"body"))
        shim.writer.write(request(1).replace(b'"left":40', b'"lift":40'))
        assert (await shim.frame())["kind"] == "hello"
        assert (await shim.frame())["decision"] == "proceed"

    run(test, tmp_path)


def test_who_never_reads_what_he_is_told_is_not_heard_any_more(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, world.path)
            deaf.send(HELLO)
            pings = frame(b'{"kind":"ping"}') * 4000
            quiet = sent = 0
            rest = pings
            while quiet < 20:  # looks at the bridge's loop
                try:
                    now = deaf.send(rest)
                    rest = rest[now:] or pings
                    sent, quiet = sent + now, 0
                except BlockingIOError:
                    quiet += 1
                assert sent < 32 << 20, "it goes on reading, and keeps all its answers"
                await asyncio.sleep(0)

    run(test, tmp_path)


def test_who_leaves_takes_his_open_requests_along(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.release.clear()
        await world.all_held(1)  # the good one's
        shim = await world.shim()
        shim.writer.write(request(1) + request(2))
        await world.all_held(2)
        open = [task for each in world.server.links for task in each.tasks.values()]
        assert len(open) == 2
        shim.writer.close()
        await asyncio.wait(open)
        assert all(task.cancelled() for task in open)
        world.release.set()

    run(test, tmp_path)
