"""Which processes belong to a server under test, and what are they?

Everything that a server starts, whatever session or parent it moves to, stays in the mount
namespace that was made for it; that is the one mark used here. Signals go to processes found
this way, never to names.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process as /proc/PID/stat has it (proc(5)); a value, true when it was read."""

    pid: int
    parent: int
    session: int  # the session's id, as setsid(2) gives it
    state: str  # R, S, D, T, Z ...
    started: int  # clock ticks since boot; with the pid it names a process for good
    argv: tuple[str, ...]  # empty for a zombie

    @property
    def command(self) -> str:
        return " ".join(self.argv)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        now = look(self.pid)
        return now is not None and now.started == self.started and now.state not in "ZX"

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal this very process; a process that is gone is no error."""
        now = look(self.pid)
        if now is not None and now.started == self.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def look(pid: int) -> Process | None:
    """What runs under this pid, or None."""
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
        argv = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, so count from its end.
    fields = stat[stat.rindex(b")") + 2 :].split()
    words = argv.decode("utf-8", "surrogateescape").rstrip("\0 ").split("\0")
    return Process(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        argv=tuple(words) if words != [""] else (),
    )


def namespace(pid: int) -> str | None:
    """The mount namespace of a process, as `mnt:[4026531840]`."""
    try:
        return os.readlink(PROC / str(pid) / "ns/mnt")
    except OSError:
        return None


def members(mark: str) -> list[Process]:
    """All processes of that mount namespace, in the order of their start."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    found = [look(pid) for pid in pids if namespace(pid) == mark]
    return sorted((process for process in found if process), key=lambda p: (p.started, p.pid))
