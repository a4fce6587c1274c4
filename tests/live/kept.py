"""How is a server run so that nothing of it outlives the test? Under a keeper; see keeper.py.

`Kept` starts a command in mount and UTS namespaces of its own and ends all that it became. It
knows nothing of mail.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.live import processes
from tests.live.places import Step
from tests.live.processes import Process
from tests.live.waiting import eventually

KEEPER = Path(__file__).with_name("keeper.py")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS = 20.0
# The server gets this long for its orderly end, then what is left gets the second to go by itself.
STOP_SECONDS = 10.0
LEAVE_SECONDS = 3.0

# What is running or has run in the current test, for its failure report; see conftest.py.
journal: list[Kept] = []


class Kept:
    """A command and everything it starts. `directory` gets its log and the keeper's notes."""

    def __init__(
        self,
        directory: Path,
        argv: Sequence[str],
        *,
        name: str,  # for the report of a failure
        mounts: Sequence[Step] = (),
        env: Mapping[str, str] | None = None,
        hostname: str = "localhost",
    ) -> None:
        self.name = name
        self.directory = directory
        self.env = {"PATH": PATH, "LANG": "C.UTF-8", **(env or {})}
        self.leftovers: list[str] = []  # commands that had to be killed
        self.exit_code: int | None = None  # once it ended; negative for a signal
        self.server: Process | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._final_log = ""
        self._spec = {
            "directory": str(directory),
            "hostname": hostname,
            "mounts": list(mounts),
            "argv": list(argv),
            "env": self.env,
        }

    def start(self) -> None:
        """Start it; returns when the process is there."""
        if self not in journal:
            journal.append(self)
        for note in ("exit", "leftovers"):
            (self.directory / note).unlink(missing_ok=True)
        self.exit_code = None
        (self.directory / "spec.json").write_text(json.dumps(self._spec))
        with (self.directory / "keeper").open("wb") as errors:
            self._keeper = subprocess.Popen(
                ["unshare", "--mount", "--uts", "--propagation", "private",
                 sys.executable, "-I", str(KEEPER), str(self.directory / "spec.json")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        assert self._keeper.stdout is not None
        ready = select.select([self._keeper.stdout], [], [], START_SECONDS)[0]
        line = self._keeper.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"no namespace: {(self.directory / 'keeper').read_text()}")
        self.server = processes.look(int(line))

    def stop(self) -> None:
        """End it: SIGTERM, then a while for what it started to leave, then SIGKILL.

        A process that was stopped by a signal goes on first.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        if self.server is not None:
            self.server.kill(signal.SIGTERM)
            self.server.kill(signal.SIGCONT)
            self._within(STOP_SECONDS, lambda: not self.alive)
            self._within(LEAVE_SECONDS, lambda: not self._processes(keeper))
        keeper.communicate(timeout=30)  # closes its stdin, which tells it to end
        self.exited()
        left = self.directory / "leftovers"
        self.leftovers = json.loads(left.read_text()) if left.exists() else []
        self._final_log = self.log()

    @staticmethod
    def _within(seconds: float, probe: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            eventually("", probe, seconds)

    @property
    def alive(self) -> bool:
        """Whether the first process runs."""
        return self.server is not None and self.server.alive

    def exited(self) -> int | None:
        """The exit code, if it ended and the keeper has noticed."""
        with contextlib.suppress(FileNotFoundError):
            self.exit_code = int((self.directory / "exit").read_text())
        return self.exit_code

    def wait_exit(self, within: float = 10.0) -> int:
        """Wait for its end; the exit code."""
        eventually("its end", lambda: self.exited() is not None, within)
        assert self.exit_code is not None
        return self.exit_code

    def processes(self) -> list[Process]:
        """Everything that runs in the namespace."""
        return self._processes(self._keeper) if self._keeper else []

    @staticmethod
    def _processes(keeper: subprocess.Popen[bytes]) -> list[Process]:
        if (mark := processes.namespace(keeper.pid)) is None:
            return []
        return [p for p in processes.members(mark) if p.pid != keeper.pid and p.state not in "ZX"]

    def run(self, command: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Another command inside the namespace, as root; at most 60 s."""
        assert self._keeper is not None
        return subprocess.run(
            ["nsenter", "--uts", "--mount", "--root", "--target", str(self._keeper.pid), "--",
             *command],
            cwd="/", input=stdin, capture_output=True, timeout=60, env=self.env,
        )  # fmt: skip

    def log(self) -> str:
        """All that it wrote to stdout and stderr."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "log").read_text("utf-8", "surrogateescape")
        return self._final_log

    def wait_log(self, pattern: str, within: float = 10.0) -> re.Match[str]:
        """Wait until some line of the log matches (re.search, multi-line)."""
        found = re.compile(pattern, re.M)
        match = eventually(f"/{pattern}/ in the log", lambda: found.search(self.log()), within)
        assert match is not None
        return match
