"""A shim between the model of smtpd and bridges made of straw, in one thread and in a time of
its own: when nobody has anything to do, the clock jumps to when the shim would wake up.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import tempfile
from collections.abc import Callable
from typing import Any, Self

from bridge import link
from bridge.config import parse
from bridge.shim import Options, Shim
from bridge.smtpd.message import Splice
from bridge.testing.client import Client
from bridge.testing.outcomes import Outcome, Reply, SessionHung
from bridge.testing.process import Driver
from bridge.testing.smtpd import Smtpd

TURNS = 20_000  # of one wait; what takes more goes round in circles
MESSAGE = b"Subject: x\n\n.dot\n\nbye\n"
MARKED = '[failure.bridge]\ndefault = "accept-header"'
UNLIMITED = {"slots": 32, "commands": 32, "bytes": 64 << 20}


class Clock:
    """Seconds, as far as they have gone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class JumpingSelector(selectors.PollSelector):
    """Lets time pass instead of waiting for it, when all others wait too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.idle = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if self.idle and not ready:
            assert timeout is not None
            self._clock.now += timeout
        return ready


class Straw:
    """One link, seen from the bridge's end.  requests: all that came, answered or not."""

    def __init__(self, world: World, sock: socket.socket, number: int) -> None:
        self.world = world
        self.bridge = world.bridge  # what it does
        self.number = number  # the how many-th link it is
        self.requests: list[tuple[link.Header, bytes]] = []
        self.frames: list[link.Header] = []  # all that came
        self.deaf = False  # reads nothing any more
        self._socket = sock
        self._socket.setblocking(False)
        self._reader = link.FrameReader()
        self._out = b""
        self.open = True

    def raw(self, data: bytes) -> None:
        """Write bytes."""
        self._out += data

    def say(self, kind: str, **values: Any) -> None:
        self.raw(link.encode({"kind": kind, **values}))

    def hello(self, **changed: Any) -> None:
        self.say("hello", **{"version": link.VERSION, "release": "straw"} | UNLIMITED | changed)

    def answer(
        self,
        id: object,
        decision: object = "proceed",
        splices: list[Splice] | None = None,
        **more: Any,
    ) -> None:
        rows, body = link.splices_to_json(splices or [])
        header = {"kind": "answer", "id": id, "decision": decision, "splices": rows} | more
        self.raw(link.encode(header, len(body)) + body)

    def close(self) -> None:
        """Leave, with what is written so far."""
        if self.open:
            self._write()
            self.open = False
            self._socket.close()

    def step(self) -> bool:
        """Read and write what can be; whether there was anything."""
        moved = self._write()
        while not self.deaf and self.read_some():
            moved = True
        return self._write() or moved

    def read_some(self) -> bool:
        """Read once; whether there was anything."""
        if not self.open:
            return False
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self.close()
        for header, body in self._reader.feed(data):
            self._frame(header, body)
        return True

    def _frame(self, header: link.Header, body: bytes) -> None:
        self.frames.append(header)
        match header["kind"]:
            case "request":
                self.requests.append((header, body))
                self.bridge.request(self, header, body)
            case "ping":
                self.bridge.ping(self)

    def _write(self) -> bool:
        if not self._out or not self.open:
            return False
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            return False
        except ConnectionError:
            sent = len(self._out)
        self._out = self._out[sent:]
        return bool(sent)


class Bridge:
    """What the straw does; a good bridge that lets everything pass.  Tests change parts."""

    application = False
    registration: dict[str, Any] | None = None

    def linked(self, straw: Straw) -> None:
        straw.hello(registration=self.registration)

    def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
        straw.answer(header["id"])

    def ping(self, straw: Straw) -> None:
        straw.say("pong")


class World(Driver):
    """A shim, smtpd and bridges.  `connect` and its clients are those of any driver; what they
    wait for costs no time."""

    def __init__(
        self,
        bridge: Bridge | None = None,
        config: str = "",
        *,
        smtpd: Smtpd | None = None,
        places: int = 1,
        send_buffer: int = 0,
    ) -> None:
        super().__init__(None, smtpd)
        self.bridge = bridge or Bridge()
        self.clock = Clock()
        self.links: list[Straw] = []
        self.turned_away = False  # nobody listens
        self._folder = tempfile.mkdtemp()
        self._listeners = [self._listen(f"{self._folder}/{n}") for n in range(places)]
        connect = ", ".join(f'"unix:{self._folder}/{n}"' for n in range(places))
        self._ours, theirs = socket.socketpair()
        self._err, their_err = socket.socketpair()
        self._theirs = theirs, their_err
        for sock in (self._ours, self._err, theirs, their_err):
            sock.setblocking(False)
        if send_buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        text = f"{config}\n" if "[shim]" in config else f"[shim]\n{config}\n"
        self._selector = JumpingSelector(self.clock)
        self.shim = Shim(
            parse(text.replace("[shim]", f"[shim]\nconnect = [{connect}]", 1)),
            Options(application=self.bridge.application),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=their_err.fileno(),
            clock=self.clock,
            selector=self._selector,
        )
        self._pending = b""

    def _listen(self, path: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        return listener

    def __enter__(self) -> Self:
        self.run(lambda: self.shim._wanted is not None)
        assert self.shim._wanted is not None
        self.shim.protocol.start(self.shim._wanted)
        self.run(lambda: self.smtpd.ready)
        return self

    def __exit__(self, *_: object) -> None:
        self.shim._bridges.leave()
        self._selector.close()
        for straw in self.links:
            straw.close()
        for sock in (*self._listeners, self._ours, self._err, *self._theirs):
            sock.close()
        shutil.rmtree(self._folder)

    @property
    def log(self) -> str:
        """What the shim has logged."""
        return "\n".join(self.stderr)

    @property
    def counts(self) -> dict[str, int]:
        """What the protocol has counted."""
        return dict(self.shim.protocol.counts)

    def run(self, until: Callable[[], bool] | None = None, timeout: float | None = None) -> None:
        """As the driver's; the timeout is in the shim's time."""
        condition = until or (lambda: all(client.idle for client in self.smtpd.clients))
        self._run(condition, self.clock.now + (300.0 if timeout is None else timeout))

    def become(self, bridge: Bridge) -> None:
        """From now on all links, also those that are up, do what this bridge does."""
        self.bridge = bridge
        for straw in self.links:
            straw.bridge, straw.deaf = bridge, False

    def inject(self, lines: str) -> None:
        """Let smtpd say what the model would not say now."""
        self._pending += lines.encode()

    def pass_time(self, seconds: float) -> None:
        """Let this much time pass."""
        until = self.clock.now + seconds
        self.run(lambda: self.clock.now >= until)

    def _run(self, condition: Callable[[], bool], deadline: float) -> None:
        for _ in range(TURNS):
            self._selector.idle = not self.step()
            if condition() and self._selector.idle:
                return
            if self.clock.now > deadline:
                raise SessionHung(f"{self._hung()} after {deadline} s")
        raise SessionHung(f"{self._hung()} after {TURNS} turns")

    def step(self) -> bool:
        """One turn of everybody; whether anything moved."""
        self._pending += self.smtpd.output()
        moved = bool(self._pending)
        try:
            sent = self._ours.send(self._pending) if self._pending else 0
        except BlockingIOError:
            sent = 0
        self._pending = self._pending[sent:]
        self.shim.turn()
        assert not self.shim._smtpd.gone, "the shim would have left"
        while data := _received(self._ours):
            moved = True
            self.smtpd.receive(data)
        while data := _received(self._err):
            self.smtpd.receive_stderr(data)
        for listener in self._listeners:
            moved |= self._accept(listener)
        for straw in self.links:
            moved |= straw.step()
        return moved

    def _accept(self, listener: socket.socket) -> bool:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return False
        straw = Straw(self, sock, len(self.links))
        if self.turned_away:
            sock.close()
            return False
        self.links.append(straw)
        straw.bridge.linked(straw)
        return True


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return b""


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


# What tests do ----------------------------------------------------------------------------

Act = Callable[[Straw, link.Header, bytes], None]


class Acting(Bridge):
    """Does something with each message that is asked about."""

    def __init__(self, act: Act) -> None:
        self.act = act

    def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
        if header["phase"] == "message":
            self.act(straw, header, body)
        else:
            straw.answer(header["id"])


def send(driver: Driver, content: bytes = MESSAGE) -> Reply:
    """A message of a client of its own; the reply to its final dot."""
    client = driver.connect()
    client.ehlo("client.example.net")
    client.mail("alice@example.net")
    client.rcpt("bob@example.org")
    return client.data(content)


def survived(world: World) -> None:
    """Nobody waits, nothing was said that should not have been, and the next message passes."""
    assert world.faults == []
    assert world.smtpd.open_requests == []
    assert world.counts.get("internal-error", 0) == 0
    delivered = len(world.delivered)
    world.become(Bridge())
    assert send(world).code == 250
    assert len(world.delivered) == delivered + 1
    assert world.faults == []


def answering(**answer: Any) -> Act:
    """Answers with this header in place of a good one."""

    def act(straw: Straw, header: link.Header, _: bytes) -> None:
        body = answer.get("body", b"")
        good = {"kind": "answer", "id": header["id"], "decision": "proceed"}
        text = {**good, **{key: value for key, value in answer.items() if key != "body"}}
        straw.raw(link.encode(text, len(body)) + body)

    return act


def begun(world: World, content: bytes = MESSAGE) -> tuple[Client, Outcome]:
    """A client whose message is complete, and what will be said to it."""
    client = world.connect()
    client.ehlo("client.example.net")
    client.mail("alice@example.net")
    client.rcpt("bob@example.org")
    outcome = client.data_later(content)
    session = client.later.session
    assert session
    asked = (session.id, "data-line")
    world.run(lambda: asked in world.smtpd.open_requests or outcome.done)
    return client, outcome
