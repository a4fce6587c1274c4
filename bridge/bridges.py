"""The bridges of one shim: started or reached, asked for signs of life, given up, replaced.

Sends open requests to them as they can take them, and hands on what they say.  What an
answer means, and what stands for one that does not come, is shim.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from bridge import link, log
from bridge.child import Backoff, Child
from bridge.config import Endpoint
from bridge.dial import Dialer
from bridge.dispatch import Dispatcher, Pending
from bridge.linkend import LinkEnd
from bridge.smtpd.message import Message

HELLO_WAIT = 30.0  # how long a bridge may take to come up
RECONNECT = 1.0  # between tries at a sidecar that is not there
CONNECT_WAIT = 3.0
MAX_DRAINING = 8  # links to one sidecar that drains, and is replaced, again and again
# asyncio, at the other end, closes without the alert that would say why.
NO_CERTIFICATE = "it ended in place of a hello; hint: does it take our certificate?"
COMPLAIN_AGAIN = 60.0  # of the same sidecar, for the same reason
COMPLAIN_SELDOM = 3600.0  # the same while another one serves

T = TypeVar("T")


class Owner(Protocol):
    """Whom the bridges serve: the shim."""

    def on_answer(self, item: Pending, header: link.Header, body: bytes) -> None:
        """A bridge answered an open request."""

    def on_hello(self, header: link.Header) -> None:
        """A bridge came up."""

    def on_given_up(self, item: Pending, kind: str) -> None:
        """A request will not be answered by any bridge; kind: of failure."""

    def on_unreadable(self, item: Pending, error: OSError) -> None:
        """A request's message could not be read back from its file."""

    def guarded(self, call: Callable[..., object], *arguments: object) -> bool:
        """Call it, whatever goes wrong."""

    def log(self, event: str, **values: object) -> None:
        """Write a log line."""


class Bridges:
    """All bridges that the shim knows, up or not."""

    def __init__(
        self,
        owner: Owner,
        dispatcher: Dispatcher,
        *,
        arguments: Sequence[str],
        connect: Sequence[Endpoint],
        dial: Dialer,
        ping_timeout: float,
        patience: float,
        clock: Callable[[], float],
        stderr: log.Stderr,
    ) -> None:
        self.ends: list[LinkEnd] = []
        self._owner = owner
        self._dispatcher = dispatcher
        self._arguments = arguments  # of the bridge, as a child
        self._connect = connect  # sidecars; none: a child
        self._dial = dial
        self._ping_timeout = ping_timeout
        self._patience = patience  # how long a request waits while no bridge is up
        self._clock = clock
        self._stderr = stderr
        self._backoff = Backoff()
        self._start_at = 0.0  # when a child may be started
        self._retry_at: dict[Endpoint, float] = {}  # the same for each sidecar
        self._complaints: dict[str, tuple[str, float]] = {}  # by sidecar: the last, and when
        self._down_since: float | None = clock()  # when the last bridge went
        self._sent = 0  # requests; says whose turn it is

    # The loop's side ----------------------------------------------------------------------

    def next_event(self, now: float) -> float:
        """When `keep` has something to do, at the latest."""
        if not self.ends and not self._connect:
            return self._start_at
        return now + min(1.0, self._ping_timeout / 4)

    def keep(self, now: float) -> None:
        """Start, reach, ask for a sign of life, give up on."""
        for end in list(self.ends):
            silent = now - end.heard
            if not end.up:
                if now - end.since > (HELLO_WAIT if end.child else CONNECT_WAIT):
                    self._lose(end, "no hello")
            elif end.pinged is not None and now - end.pinged > self._ping_timeout < silent:
                self._lose(end, "no sign of life")
            elif silent > self._ping_timeout / 4 and end.pinged is None:
                end.ping(now)
        if self._connect:
            for endpoint in self._connect:
                self._reach(endpoint, now)
        elif now >= self._start_at and all(end.lane.draining for end in self.ends):
            self._start(now)
        if any(end.up and not end.lane.draining for end in self.ends):
            self._down_since = None
            return
        if self._down_since is None:
            self._down_since = now
        for item in list(self._dispatcher.pending.values()):
            # A message waits for itself, for its sender would have to send it again; commands
            # only together, or fifty recipients would take fifty times as long.
            since = self._down_since
            if item.slot.message is not None:
                since = max(since, item.since)
            if item.lane is None and now - since >= self._patience:
                self._owner.on_given_up(item, "unreachable")

    def pump(self, now: float) -> None:
        """Hand out what the bridges can take, write what they take."""
        up = [end for end in self.ends if end.up and not end.lane.draining]
        good = [end for end in up if not end.doubtful(now)] or up
        first = self._sent % max(1, len(good))
        # Who has the least to do, first: one that hangs does not get half of all that comes.
        takers = sorted(good[first:] + good[:first], key=lambda end: end.lane.open)
        while takers:  # one each in turn, as long as there are some
            for end in list(takers):
                if (item := self._dispatcher.next_for(end.lane, now)) is None:
                    takers.remove(end)
                else:
                    self._send(end, item, now)
        for end in list(self.ends):
            if end.wants_write:
                self._write(end)

    def _send(self, end: LinkEnd, item: Pending, now: float) -> None:
        self._dispatcher.send(item, end.lane)
        self._sent += 1
        slot = item.slot
        header: link.Header = {
            "kind": "request",
            "id": item.id,
            "phase": slot.phase,
            "attempt": item.attempt,
            "left": round(item.deadline - now, 3),  # seconds to the deadline
            "session": link.session_to_json(slot.session),
            **link.event_to_json(slot.event),
        }
        end.send(header, iter(()) if slot.message is None else self._body(item, slot.message), item)

    def _body(self, item: Pending, message: Message) -> Iterator[bytes | memoryview]:
        try:
            yield from message.pieces()
        except (OSError, MemoryError) as error:
            if item.slot.open:
                why = error if isinstance(error, OSError) else OSError("no memory to read it")
                self._owner.on_unreadable(item, why)
            raise

    def cancel(self, item: Pending) -> None:
        """Nobody waits for this answer any more."""
        for end in self.ends:
            if end.lane is item.lane:
                end.say("cancel", id=item.id)

    def report(self, header: link.Header) -> None:
        """Tell one bridge of an event."""
        end = next((end for end in self.ends if end.up and not end.lane.draining), None)
        if end is not None and not end.crowded:
            end.report(header)

    # What comes in ------------------------------------------------------------------------

    def ready(self, end: LinkEnd, *, read: bool, write: bool) -> None:
        """A link's socket can be read or written."""
        if write and end in self.ends:
            self._write(end)
        if not read or end not in self.ends:
            return
        frames = end.read(self._clock())
        while (frame := self._guarded(end, next, frames, None)) is not None:
            self._owner.guarded(self._on_frame, end, *frame)

    def _write(self, end: LinkEnd) -> None:
        self._guarded(end, end.write, self._clock())

    def _guarded(self, end: LinkEnd, call: Callable[..., T], *arguments: object) -> T | None:
        """What reads or writes a link; a link that fails is given up."""
        try:
            return call(*arguments)
        except EOFError:
            left = "it left" if end.lane.draining else "it ended"
            self._lose(end, NO_CERTIFICATE if end.secured and not end.up else left)
        except OSError as error:
            self._lose(end, error.strerror or "it failed")
        except link.LinkError as error:
            self._lose(end, str(error))
        except Exception:  # out of step, whatever it was
            self._lose(end, "an error of ours")
            raise
        return None

    def _on_frame(self, end: LinkEnd, header: link.Header, body: bytes) -> None:
        match header["kind"]:
            case "answer":
                item = self._dispatcher.get(header.get("id"))
                if item is not None and item.lane is end.lane:
                    self._owner.on_answer(item, header, body)
            case "hello":
                end.lane.slots = _grant(header, "slots")
                end.lane.commands = _grant(header, "commands")
                end.lane.bytes = _grant(header, "bytes")
                if not end.up:
                    end.up = True
                    self._complaints.pop(end.name, None)
                    self._owner.log("bridge-up", bridge=end.name, release=header.get("release"))
                    self._owner.on_hello(header)
            case "ping":
                if not end.crowded:  # by one who asks and never reads
                    end.say("pong")
            case "bye":
                end.lane.draining = True
                self._owner.log("bridge-drains", bridge=end.name)
            case _:
                pass  # a kind of a later version

    def _lose(self, end: LinkEnd, why: str) -> None:
        """A bridge is gone: what it had is sent again, but for what several died of."""
        now = self._clock()
        self.ends.remove(end)
        end.close()
        if end.child is not None:
            end.child.kill()
        given_up = self._dispatcher.lost(end.lane, now)
        status = None
        if end.child is not None:
            status = end.child.status()
            for _ in range(16):  # its last words
                self.read_stderr(end.child)
            end.child.close_stderr()
            self._start_at = now + self._backoff.next(was_healthy=end.up)
        if end.up or end.child is not None:
            self._owner.log("bridge-lost", bridge=end.name, why=why, status=status)
        else:
            self._complain(end.name, why, now)
        for item in given_up:
            self._owner.on_given_up(item, "internal")

    # Beginnings and ends ------------------------------------------------------------------

    def _start(self, now: float) -> None:
        try:
            child = Child(self._arguments)
        except OSError as error:
            self._start_at = now + self._backoff.next(was_healthy=False)
            self._owner.log("bridge-start-failed", error=error.strerror)
            return
        self.ends.append(LinkEnd(child.socket, f"pid {child.pid}", now, child=child))
        self._owner.log("bridge-started", pid=child.pid)

    def _reach(self, endpoint: Endpoint, now: float) -> None:
        """Connect to a sidecar that is not connected."""
        name = str(endpoint)
        there = [end for end in self.ends if end.name == name]
        if len(there) >= MAX_DRAINING or any(not end.lane.draining for end in there):
            return
        if now < self._retry_at.get(endpoint, 0.0):
            return
        self._retry_at[endpoint] = now + RECONNECT
        try:
            secure = self._dial.secure(endpoint)
            sock = self._dial(endpoint)
        except BlockingIOError:  # its name is being looked up
            return
        except OSError as error:
            self._complain(name, error.strerror or str(error), now)
            return
        self.ends.append(LinkEnd(sock, name, now, secure=secure))

    def _complain(self, name: str, why: str, now: float) -> None:
        """Log that a sidecar can't be reached, but not with each try."""
        told, when = self._complaints.get(name, ("", 0.0))
        again = COMPLAIN_SELDOM if any(end.up for end in self.ends) else COMPLAIN_AGAIN
        if why != told or now - when >= again:
            self._complaints[name] = why, now
            self._owner.log("bridge-unreachable", bridge=name, why=why)

    def read_stderr(self, child: Child) -> None:
        """Pass on what a child wrote to its stderr, a line at a time."""
        if child.stderr is None:
            return
        try:
            data = os.read(child.stderr, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            child.close_stderr()
        for line in log.cut_lines(child.stderr_rest, data or b"\n"):  # last words have no LF
            self._stderr.write(line, self._clock())

    def leave(self) -> None:
        """smtpd is gone: so are the links, and the child."""
        for end in self.ends:
            end.close()
        for end in self.ends:
            if end.child is not None:
                end.child.leave()


def _grant(header: link.Header, key: str) -> int:
    """How much a bridge takes at once; at least one, whatever it says."""
    value = header.get(key)
    return max(1, value) if isinstance(value, int) else 1
