"""What stands between the tests and a server: the first process in its private namespace.

Run as `unshare --mount --uts ... python3 -I keeper.py SPEC.json`, it makes the mounts, starts
the server, collects every orphan, and writes down how the server ended. When its standard input
ends, because the test is over or was killed, it ends all that is left in the namespace by
SIGKILL and writes what that was. It never talks to the server. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def mount(step: list[str]) -> None:
    """One step of the plan: ["bind", source, target] or ["tmpfs", target]."""
    target = Path(step[-1])
    if step[0] == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(target)]
    else:
        if Path(step[1]).is_dir():
            target.mkdir(parents=True, exist_ok=True)
        command = ["mount", "--rbind", step[1], str(target)]
    subprocess.run(command, check=True, timeout=30)


def collect(server: int) -> int | None:
    """Take the status of every child that ended; the server's exit code if it was among them.

    As os.waitstatus_to_exitcode has it: negative for a signal.
    """
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == server:
                code = os.waitstatus_to_exitcode(status)
    return code


def others() -> list[int]:
    """The pids of the namespace's other processes, zombies excepted."""
    mine = os.readlink("/proc/self/ns/mnt")
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{entry}/ns/mnt") == mine:
                stat = Path(f"/proc/{entry}/stat").read_bytes()
                if stat[stat.rindex(b")") + 2 :][:1] not in b"ZX":
                    found.append(int(entry))
    return found


def end_all() -> list[str]:
    """Kill until nothing is left, and say what it was."""
    ended: dict[int, str] = {}
    deadline = time.monotonic() + 10
    while (pids := others()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                ended.setdefault(pid, command.decode("utf-8", "replace").strip())
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return list(ended.values())


def main() -> None:
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    # An interrupt from the terminal is for the test; the end of stdin tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    socket.sethostname(spec["hostname"])
    for step in spec["mounts"]:
        mount(step)
    directory = Path(spec["directory"])
    with (directory / "log").open("ab") as log:
        server = subprocess.Popen(
            spec["argv"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=spec["env"],
            cwd="/",
            start_new_session=True,
            restore_signals=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    print(server.pid, flush=True)
    while True:
        note(directory, collect(server.pid))
        if select.select([0], [], [], 0.05)[0] and not os.read(0, 1):
            break
    leftovers = end_all()
    note(directory, collect(server.pid))
    (directory / "leftovers").write_text(json.dumps(leftovers))


def note(directory: Path, code: int | None) -> None:
    """Write down how the server ended, once that is known."""
    if code is not None:
        (directory / "exit.new").write_text(str(code))
        (directory / "exit.new").rename(directory / "exit")


if __name__ == "__main__":
    main()
