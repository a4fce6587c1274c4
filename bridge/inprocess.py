"""A filter in the process that smtpd has started: `Filter.run()`.

One thread speaks with smtpd on what were fd 0 and 1, keeps deadlines and ends only at
end-of-file; the main thread runs the handlers.  What they print, on fd 1 as on fd 2, is cut
into lines for smtpd's log: one stray byte on the real fd 1, or 64 KiB on the real fd 2
without a LF, would end or wedge the mail server.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from bridge import log
from bridge.core import Core, Limits
from bridge.filter import Filter
from bridge.smtpdend import SmtpdEnd

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
CHUNK = 256 * 1024  # read at once; smtpd's socket holds 208 KiB
TICK = 1.0  # the longest sleep, s
START = 30.0  # s that the start hooks may take: smtpd takes no mail until then
STOP = 0.5  # s that the last reports may take, and the stop hooks: smtpd's end waits for ours
BAD_START = 1  # before register|ready, ending is an answer; it ends smtpd


def run(app: Filter, limits: Limits | None = None) -> NoReturn:
    """Be the filter that smtpd has started."""
    if os.isatty(0):
        sys.exit(f"{sys.argv[0]}: to be started by smtpd, by a filter line of smtpd.conf(5)")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # smtpd sends none; ending would end smtpd
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds mail
    speaker = Speaker(app, *_take_over(), limits=limits)
    speaker.start()
    handlers = speaker.core.handlers
    try:
        handlers.start()
    except BaseException as error:  # noqa: BLE001 sys.exit() of a hook too
        speaker.log("start-failed", error=log.folded(error))
        speaker.leave(BAD_START)
    speaker.ready.set()
    handlers.serve()
    handlers.stop(STOP)
    speaker.leave(0)


def _take_over() -> tuple[int, int, int, int]:
    """Take smtpd's descriptors away from everybody else: in, out, stderr, and the end of a
    pipe for what is printed."""
    taken = os.dup(0), os.dup(1), os.dup(2)  # not inherited by what a handler starts
    null = os.open(os.devnull, os.O_RDONLY)
    printed, pipe = os.pipe()
    for fd, instead in ((0, null), (1, pipe), (2, pipe)):
        os.dup2(instead, fd)
    for fd in (null, pipe):
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # somebody else's object
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return *taken, printed


class Speaker:
    """The thread that speaks with smtpd.  stdin, stdout, stderr: the real ones; printed: what
    the rest of the process writes can be read from it."""

    def __init__(
        self,
        app: Filter,
        stdin: int,
        stdout: int,
        stderr: int,
        printed: int,
        *,
        limits: Limits | None = None,
    ) -> None:
        self._in, self._out, self._printed = stdin, stdout, printed
        self._stderr = log.Stderr(stderr)
        self._lock = threading.Lock()  # of stderr
        self._selector = selectors.PollSelector()
        self._cut = bytearray()  # the beginning of a printed line
        self._woken, self._waker = os.pipe()
        for fd in (printed, self._woken, self._waker):
            os.set_blocking(fd, False)
        for fd in (stdin, printed, self._woken):
            self._selector.register(fd, READ)
        self._left = threading.Event()
        self.ready = threading.Event()  # the start hooks are done
        self.core = Core(app, self.log, limits=limits, wake=self._wake)
        self._smtpd = SmtpdEnd(stdin, stdout, self.core.protocol.output)

    def log(self, event: str, **values: object) -> None:
        """Write a line to smtpd's log."""
        self._write_log(log.record(event, **values))

    def start(self) -> None:
        """Start the thread; it says nothing to smtpd before `ready`."""
        sys.excepthook = lambda kind, error, trace: self.log("failed", error=log.folded(error))
        threading.excepthook = self._on_thread_failed
        threading.Thread(target=self._speak, name="smtpd").start()

    def leave(self, status: int) -> NoReturn:
        """End the process, whatever else runs in it."""
        self._left.set()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        self._guarded(self._read_printed)
        self._write_log("")
        os._exit(status)

    def _on_thread_failed(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            self.log("failed", error=log.folded(args.exc_value))

    def _write_log(self, line: str) -> None:
        with self._lock:
            if line:
                self._stderr.write(line, time.monotonic())
            self._stderr.flush()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    # The thread ---------------------------------------------------------------------------

    def _speak(self) -> None:
        until = time.monotonic() + START
        while not self.ready.is_set():
            self._guarded(self._read_printed)
            self.ready.wait(0.02)
            if time.monotonic() > until:
                self.log("start-failed", error=f"the start hooks took over {START:.0f} s")
                self.leave(BAD_START)
        self.core.start()
        while not self._smtpd.gone:
            self._guarded(self._turn)
        self.core.handlers.leave()
        # The main thread ends the process, unless a handler holds it.
        if not self._left.wait(3 * STOP):
            self.leave(0)

    def _guarded(self, call: Callable[[], object]) -> None:
        """Whatever goes wrong in one step must not end the process: smtpd would end too."""
        try:
            call()
        except Exception as error:  # noqa: BLE001
            self.log("internal-error", error=log.folded(error))
            time.sleep(0.01)  # lest it fails for ever at full speed

    def _turn(self) -> None:
        self._watch_output()
        wait = 0.0 if self.core.behind else self.core.sleep()
        for key, mask in self._selector.select(TICK if wait is None else min(wait, TICK)):
            if key.fd == self._in and mask & READ and not self.core.behind:
                self._guarded(self._read_smtpd)
            elif key.fd == self._printed:
                self._guarded(self._read_printed)
            elif key.fd == self._woken:
                os.read(self._woken, CHUNK)
        self._guarded(self.core.settle)
        self._guarded(self._smtpd.write)
        self._write_log("")

    def _watch_output(self) -> None:
        watched = self._out in self._selector.get_map()
        if self._smtpd.wants_write and not watched:
            self._selector.register(self._out, WRITE)
        elif watched and not self._smtpd.wants_write:
            self._selector.unregister(self._out)

    def _read_smtpd(self) -> None:
        if data := self._smtpd.read():
            self.core.receive(data)

    def _read_printed(self) -> None:
        try:
            data = os.read(self._printed, CHUNK)
        except BlockingIOError:
            return
        for line in log.cut_lines(self._cut, data):
            self._write_log(line)
        if self._left.is_set() and self._cut:
            self._write_log(self._cut.decode("utf-8", "backslashreplace"))
