"""Runs a filter against the model of smtpd: an object in memory, or a program as smtpd
starts it.  Every wait has a deadline; what smtpd would never answer raises `SessionHung`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from bridge.testing.client import Client
from bridge.testing.outcomes import (
    NO_REPLY,
    Delivery,
    Fault,
    Outcome,
    Reply,
    SessionHung,
    SmtpdError,
)
from bridge.testing.smtpd import Smtpd

CHUNK = 65536
POLL = 0.05  # how often the program's death is looked for while nothing is read
GRACE = 2.0  # how long a program may take to leave at end-of-file


class Filter(Protocol):
    """A filter in memory: takes bytes in any pieces, returns what it writes at once."""

    def receive(self, data: bytes, /) -> bytes: ...


class Driver:
    """Runs `filter` against `smtpd` (a `Smtpd("0.7")` unless given).  timeout: seconds that a
    reply may take."""

    def __init__(self, filter: Filter | None, smtpd: Smtpd | None = None, timeout: float = 10.0):
        self.filter = filter
        self.smtpd = smtpd or Smtpd()
        self.timeout = timeout

    @property
    def delivered(self) -> list[Delivery]:
        return self.smtpd.delivered

    @property
    def faults(self) -> list[Fault]:
        return self.smtpd.faults

    @property
    def stderr(self) -> list[str]:
        """The filter's log, line by line."""
        return self.smtpd.stderr

    def connect(
        self,
        src: str = "192.0.2.1:4711",
        dest: str = "203.0.113.1:25",
        rdns: str | None = None,
        fcrdns: str = "pass",
        *,
        smtps: bool = False,
        local: bool = False,
    ) -> Client:
        """A client that has its greeting (`client.greeting`).  Arguments: see `Smtpd.connect`."""
        client = self.connect_later(src, dest, rdns, fcrdns, smtps=smtps, local=local)
        self.wait(client.later.greeting)
        return client

    def connect_later(
        self,
        src: str = "192.0.2.1:4711",
        dest: str = "203.0.113.1:25",
        rdns: str | None = None,
        fcrdns: str = "pass",
        *,
        smtps: bool = False,
        local: bool = False,
    ) -> Client:
        """As `connect`, without waiting."""
        script = self.smtpd.connect(src, dest, rdns, fcrdns, smtps=smtps, local=local)
        return Client(script, self.wait)

    def wait(self, outcome: Outcome) -> Reply:
        """Run until an outcome is there."""
        self.run(lambda: outcome.done)
        return outcome.reply or NO_REPLY

    def run(self, until: Callable[[], bool] | None = None, timeout: float | None = None) -> None:
        """Run until a condition holds, or until no client wants anything more."""
        condition = until or (lambda: all(c.idle for c in self.smtpd.clients))
        self._run(condition, time.monotonic() + (self.timeout if timeout is None else timeout))

    def _run(self, condition: Callable[[], bool], deadline: float) -> None:
        assert self.filter
        while True:
            data = self.smtpd.output()
            if not data and condition():
                return
            answer = self.filter.receive(data)
            if not answer and not data:
                raise SessionHung(self._hung())
            self.smtpd.receive(answer)

    def _hung(self) -> str:
        if not self.smtpd.ready:
            return "the filter has not said register|ready"
        owed = [f"{phase} of {session}" for session, phase in self.smtpd.open_requests]
        return f"the filter has not answered: {', '.join(owed) or 'nothing is open'}"


class FilterProcess(Driver):
    """A program as smtpd runs it (smtpd.c, fork_filter_process): `/bin/sh -c "exec COMMAND"`,
    stdin and stdout one socket, stderr another, a session of its own, nothing else open.

    command: an argument list, or a string as it stands in smtpd.conf.  As a context manager
    it starts the program and waits for `register|ready`; at the end it closes the socket, and
    a program that does not leave within two seconds is killed and counted as a fault.
    """

    def __init__(
        self,
        command: Sequence[str] | str,
        env: Mapping[str, str] | None = None,
        *,
        smtpd: Smtpd | None = None,
        timeout: float = 10.0,
        cwd: str | None = None,
        wait_ready: bool = True,
    ) -> None:
        super().__init__(None, smtpd, timeout)
        self.command = command if isinstance(command, str) else shlex.join(command)
        self.status: int | None = None
        self._env = env
        self._cwd = cwd
        self._wait_ready = wait_ready
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._sockets: list[socket.socket] = []

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        try:
            if self._wait_ready:
                self.run(lambda: self.smtpd.ready)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        known = self.smtpd.failed
        self.close()
        if error is None and self.smtpd.failed is not known and self.smtpd.failed:
            raise self.smtpd.failed  # found in the last words of stderr

    def start(self) -> None:
        """Start the program."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        our_err, their_err = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # Their ends stay open here, as in the wrapper process that smtpd leaves behind: a
        # program that closes its descriptors is mute, not gone.
        self._sockets = [ours, our_err, theirs, their_err]
        ours.setblocking(False)
        our_err.setblocking(False)
        their_err.shutdown(socket.SHUT_RD)
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {self.command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=their_err.fileno(),
            start_new_session=True,
            env=self._env,
            cwd=self._cwd,
        )

    def close(self) -> None:
        """End-of-file for the program, as when smtpd ends; `status` has its exit status."""
        process = self._process
        if process is None or self.status is not None:
            return
        self._sockets[0].close()
        deadline = time.monotonic() + GRACE
        while process.poll() is None and time.monotonic() < deadline:
            self._last_words()  # or a full buffer would keep it from leaving
            time.sleep(0.01)
        if process.poll() is None:
            self.smtpd.fault(f"the filter did not leave within {GRACE} s of end-of-file")
            os.killpg(process.pid, signal.SIGKILL)  # its own session: only what we started
        self.status = process.wait()
        self._last_words()
        for sock in self._sockets[1:]:
            sock.close()

    def _run(self, condition: Callable[[], bool], deadline: float) -> None:
        assert self._process
        ours, our_err = self._sockets[:2]
        with selectors.DefaultSelector() as selector:
            selector.register(ours, selectors.EVENT_READ)
            selector.register(our_err, selectors.EVENT_READ)
            while True:
                self._pending += self.smtpd.output()
                if condition() and not self._pending:
                    return
                if time.monotonic() >= deadline:
                    raise SessionHung(self._hung())
                wanted = selectors.EVENT_WRITE if self._pending else 0
                selector.modify(ours, selectors.EVENT_READ | wanted)
                for key, ready in selector.select(POLL):
                    if key.fileobj is our_err:
                        self._read_stderr()
                        continue
                    if ready & selectors.EVENT_WRITE:
                        self._write()
                    if ready & selectors.EVENT_READ:
                        self._read()
                if self._process.poll() is not None:
                    self._exited(self._process.returncode)

    def _write(self) -> None:
        try:
            sent = self._sockets[0].send(self._pending[: 4 * CHUNK])
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._gone()
            return
        self._pending = self._pending[sent:]

    def _read(self) -> bool:
        try:
            data = self._sockets[0].recv(CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._gone()
            return False
        self.smtpd.receive(data)
        return True

    def _read_stderr(self) -> None:
        try:
            while data := self._sockets[1].recv(CHUNK):
                self.smtpd.receive_stderr(data)
        except BlockingIOError:
            return

    def _last_words(self) -> None:
        with contextlib.suppress(SmtpdError):  # kept in smtpd.failed
            self._read_stderr()

    def _gone(self) -> None:
        """The socket is shut although their end is still open here: by shutdown(2)."""
        assert self._process
        if self._process.poll() is None:
            self.smtpd.filter_shut_down()
        self._exited(self._process.returncode)

    def _exited(self, status: int) -> None:
        while self._read():  # what it wrote last is read first
            pass
        self._read_stderr()
        self.smtpd.filter_exited(status)
