"""The real processes, as smtpd starts them: how they begin, what the bridge inherits, and that
both go when smtpd goes, however the bridge feels.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.testing.outcomes import SmtpdDied
from bridge.testing.process import FilterProcess
from tests.unit.shim_world import send

PATIENCE = 20.0  # s; only a failure takes so long

GOOD = """
[fcrdns]
enabled = false
[rspamd]
servers = ["http://127.0.0.1:{port}"]
"""


def program(tmp_path: Path, config: str, extra: str = "") -> FilterProcess:
    """`filter-bridge -f FILE`; extra: Python that runs first in the bridge."""
    file = tmp_path / "bridge.toml"
    file.write_text(config)
    site = tmp_path / "site"
    site.mkdir()
    start = f"import sys\nif '--link-fd' in sys.orig_argv:\n    exec({extra!r})\n"
    (site / "sitecustomize.py").write_text(start)
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(root), str(site)))
    return FilterProcess(
        [sys.executable, "-m", "bridge", "-f", str(file)],
        os.environ | {"PYTHONPATH": path},
        timeout=PATIENCE,
        wait_ready=False,
    )


@pytest.fixture
def good() -> Iterator[str]:
    """A configuration whose rspamd refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield GOOD.format(port=taken.getsockname()[1])


def up(process: FilterProcess, times: int = 1) -> int:
    """Wait until so many bridges have come up; the pid of the last."""
    process.run(lambda: sum("bridge-up" in line for line in process.stderr) >= times)
    log = "\n".join(process.stderr)
    return int(re.findall(r"bridge-started pid=(\d+)", log)[-1])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Has a process ended (whether or not somebody has asked for its status)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def opened(pid: int) -> dict[int, str]:
    """What a process has open."""
    folder = f"/proc/{pid}/fd"
    return {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


def test_it_registers_before_its_bridge_is_up(tmp_path: Path, good: str) -> None:
    with program(tmp_path, good, "import time; time.sleep(60)") as process:
        process.run(lambda: process.smtpd.ready)
        assert not any("bridge-up" in line for line in process.stderr)


@pytest.mark.parametrize("stopped", [False, True], ids=["as it is", "stopped by SIGSTOP"])
def test_at_end_of_file_both_go(tmp_path: Path, good: str, stopped: bool) -> None:
    with program(tmp_path, good) as process:
        bridge = up(process)
        if stopped:
            os.kill(bridge, signal.SIGSTOP)
    assert process.faults == []  # FilterProcess waits for two seconds
    assert process.status == 0
    assert gone(bridge)


def test_when_the_shim_is_killed_the_bridge_goes(tmp_path: Path, good: str) -> None:
    with program(tmp_path, good) as process:
        bridge = up(process)
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: gone(bridge))


def test_a_bridge_that_is_killed_is_started_anew_and_mail_goes_on(
    tmp_path: Path, good: str
) -> None:
    with program(tmp_path, good) as process:
        first = up(process)
        os.kill(first, signal.SIGKILL)
        second = up(process, 2)
        assert second != first
        assert str(send(process)).startswith("451 4.7.1")  # of a bridge that found no rspamd
        assert any("bridge-lost" in line and "status=-9" in line for line in process.stderr)
    assert process.faults == []


def test_signals_that_end_services_do_not_end_the_filter(tmp_path: Path, good: str) -> None:
    with program(tmp_path, good) as process:
        bridge = up(process)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(process.pid, number)
            os.kill(bridge, number)
        assert str(send(process)).startswith("451 4.7.1")
        assert not gone(bridge)
        assert len([line for line in process.stderr if "bridge-started" in line]) == 1
    assert process.faults == []


def test_the_bridge_inherits_its_link_and_nothing_else(tmp_path: Path, good: str) -> None:
    with program(tmp_path, good) as process:
        bridge = up(process)
        ours, theirs = opened(process.pid), opened(bridge)
        arguments = Path(f"/proc/{bridge}/cmdline").read_bytes().split(b"\0")
        link = int(arguments[arguments.index(b"--link-fd") + 1])
        assert theirs[0] == theirs[1] == "/dev/null"
        assert theirs[link].startswith("socket:")
        assert theirs[2].startswith("pipe:")
        shared = {name for name in theirs.values() if name.startswith(("socket:", "pipe:"))}
        assert shared & set(ours.values()) == {theirs[2]}  # of which the shim has the other end
        assert ours[0] == ours[1] != ours[2]  # smtpd's, and its log


def test_where_memory_ends_the_bridge_goes_and_not_the_shim(tmp_path: Path, good: str) -> None:
    with program(tmp_path, good) as process:
        bridge = up(process)
        ours, theirs = (
            int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (process.pid, bridge)
        )
        assert theirs > ours == int(Path("/proc/self/oom_score_adj").read_text())


def test_what_a_handler_prints_never_reaches_smtpd(tmp_path: Path, good: str) -> None:
    extra = (
        "import os, threading, time\n"
        "os.write(1, b'straight to fd 1\\n')\n"
        "def chatter():\n"
        "    while True:\n"
        "        print('a stray print', flush=True)\n"
        "        time.sleep(0.01)\n"
        "threading.Thread(target=chatter, daemon=True).start()\n"
    )
    with program(tmp_path, good, extra) as process:
        up(process)
        process.run(lambda: "a stray print" in process.stderr)  # as a line of the log
        assert str(send(process)).startswith("451 4.7.1")
        assert not any("straight to fd 1" in line for line in process.stderr)
    assert process.faults == []


def test_the_last_words_of_a_bridge_are_logged(tmp_path: Path, good: str) -> None:
    with program(tmp_path, good, "import os; os.write(2, b'no more'); os._exit(3)") as process:
        process.run(lambda: "no more" in process.stderr)
        process.run(lambda: any("status=3" in line for line in process.stderr))


def test_a_bad_configuration_is_told_whole_and_ends_it_before_it_registers(tmp_path: Path) -> None:
    config = '[shim]\nlong_lines = "cut"\n[rspamd]\nservers = ["ftp://x"]\n[bridge]\nslots = 0\n'
    process = program(tmp_path, config)
    with pytest.raises(SmtpdDied, match="the filter's status: 2"), process:
        process.run(lambda: process.smtpd.ready)
    log = "\n".join(process.stderr)
    for key in ("shim.long_lines", "rspamd.servers", "bridge.slots"):
        assert key in log
    assert process.smtpd.registry.reports == []
    assert process.smtpd.registry.tokens == {}


def test_a_configuration_that_is_not_there_ends_it_before_it_registers(tmp_path: Path) -> None:
    process = program(tmp_path, "")
    (tmp_path / "bridge.toml").unlink()
    with pytest.raises(SmtpdDied, match="the filter's status: 2"), process:
        process.run(lambda: process.smtpd.ready)
    assert "No such file or directory" in "\n".join(process.stderr)


def test_a_program_without_smtpd_says_so(tmp_path: Path) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text("")
    main, terminal = os.openpty()
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "bridge", "-f", str(file)],
            os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            file_actions=[(os.POSIX_SPAWN_DUP2, terminal, fd) for fd in (0, 1, 2)],
        )
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        assert b"to be started by smtpd" in os.read(main, 4096)
    finally:
        os.close(main)
        os.close(terminal)
