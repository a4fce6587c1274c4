"""The bridge as the shim's child: how it is started, what it inherits, how it ends.

It gets one end of a socketpair and nothing else: stdin and stdout are /dev/null (one stray
print on the real stdout would end the mail server), stderr is a pipe that the shim reads.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

# A child that dies before its hello is started again after 0.1 s, then twice that, ...
BACKOFF_FIRST, BACKOFF_LAST = 0.1, 5.0


class Backoff:
    """How long to wait before the next start."""

    def __init__(self) -> None:
        self._delay = 0.0

    def next(self, *, was_healthy: bool) -> float:
        """Seconds until the next start: none after a child that had come up."""
        if was_healthy:
            self._delay = 0.0
        else:
            self._delay = min(max(self._delay * 2, BACKOFF_FIRST), BACKOFF_LAST)
        return self._delay


class Child:
    """One bridge process."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start `python -m bridge ARGUMENTS --link-fd N`; OSError if that can't be done."""
        ours, theirs = socket.socketpair()
        try:
            reader, writer = os.pipe()
        except OSError:
            ours.close()
            theirs.close()
            raise
        root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        fd = theirs.fileno()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bridge", *arguments, "--link-fd", str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=writer,
                pass_fds=[fd],
                env=os.environ | {"PYTHONPATH": path},
            )
        except OSError:
            ours.close()
            os.close(reader)
            raise
        finally:
            theirs.close()
            os.close(writer)
        ours.setblocking(False)
        os.set_blocking(reader, False)
        self.socket = ours
        self.stderr: int | None = reader
        self.stderr_rest = bytearray()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def status(self) -> int | None:
        """Its exit status, negative for a signal, None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once, and collect it."""
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel
            self._process.wait(1.0)

    def leave(self, patience: float = 0.5) -> None:
        """The link is closed: give it the time to leave, then end it."""
        until = time.monotonic() + patience
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        self.kill()

    def close_stderr(self) -> None:
        """Stop reading its stderr."""
        if self.stderr is not None:
            os.close(self.stderr)
            self.stderr = None
