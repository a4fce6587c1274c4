"""What does a service manager see of a bridge?  The manager here is a stand-in that hands over a
socket and listens, as sd_listen_fds(3) and sd_notify(3) have it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.unit.sidecar import (
    APPLICATION,
    COMMAND,
    NO_SERVICES,
    PROJECT,
    WAIT,
    Sidecar,
    hold,
    said,
    send,
    shim,
)


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """Where the service manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(WAIT)
        yield listening


def heard(listening: socket.socket, wanted: bytes) -> list[bytes]:
    """All that is said until that is."""
    texts = [listening.recv(1000)]
    while texts[-1] != wanted:
        texts.append(listening.recv(1000))
    return texts


@pytest.mark.parametrize("abstract", [False, True], ids=["a path", "an abstract name"])
def test_it_says_when_it_is_ready_alive_and_stopping(abstract: bool, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    name = f"@filter-bridge-{os.getpid()}" if abstract else path
    env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"}
    with manager("\0" + name[1:] if abstract else path) as listening:
        bridge = Sidecar(tmp_path, env=env)
        bridge.begin()
        assert listening.recv(1000) == b"READY=1"
        assert [listening.recv(1000) for _ in range(5)] == [b"WATCHDOG=1"] * 5
        bridge.signal(signal.SIGTERM)
        assert set(heard(listening, b"STOPPING=1")) <= {b"WATCHDOG=1", b"STOPPING=1"}
        assert bridge.wait() == 0


def test_it_stays_alive_while_it_drains(tmp_path: Path) -> None:
    release = tmp_path / "release"
    path = str(tmp_path / "notify")
    env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"}
    with (
        manager(path) as listening,
        Sidecar(tmp_path, env=env) as bridge,
        shim(tmp_path, bridge.endpoint) as smtpd,
    ):
        outcome = hold(smtpd, release)
        smtpd.run(lambda: bridge.messages() == 1)
        bridge.signal(signal.SIGTERM)
        heard(listening, b"STOPPING=1")
        smtpd.run(lambda: said(smtpd, "bridge-drains") == 1)
        assert [listening.recv(1000) for _ in range(5)] == [b"WATCHDOG=1"] * 5
        release.touch()
        smtpd.run(lambda: outcome.done)
        assert outcome.reply is not None
        assert outcome.reply.code == 250
        assert bridge.wait() == 0


def test_a_frozen_one_is_silent_so_that_the_watchdog_finds_it(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"}
    with manager(path) as listening, Sidecar(tmp_path, env=env) as bridge:
        heard(listening, b"WATCHDOG=1")
        bridge.signal(signal.SIGSTOP)
        listening.settimeout(1.0)
        beats = 0
        with suppress(TimeoutError):
            while beats < 50:  # before it was stopped
                beats += listening.recv(1000) == b"WATCHDOG=1"
        assert beats < 50


def test_a_manager_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    with (
        Sidecar(tmp_path, env={"NOTIFY_SOCKET": str(tmp_path / "gone")}) as bridge,
        shim(tmp_path, bridge.endpoint) as smtpd,
    ):
        assert send(smtpd) == 250
        assert "notify-failed error=" in bridge.log


# Sockets that the manager has opened ------------------------------------------------------


# What systemd does between fork and exec.
HAND_OVER = """
import os, sys
given, pid, *command = sys.argv[1:]
os.dup2(int(given), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": pid or str(os.getpid())}
os.execv(command[0], command)
"""


class Activated:
    """A bridge that was given a socket as its descriptor 3."""

    def __init__(self, directory: Path, listening: socket.socket, *, pid: str = "") -> None:
        file = directory / "bridge.toml"
        file.write_text(f'{NO_SERVICES}[bridge]\nrun_dir = "{directory}"\n')
        given = str(listening.fileno())
        env = {"PYTHONPATH": str(PROJECT), "BRIDGE": "x", "HELD": str(directory / "held")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HAND_OVER, given, pid, *COMMAND, "serve", "-f", str(file),
             "--app", APPLICATION],
            env=os.environ | env,
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> Activated:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=WAIT)


def test_it_serves_the_socket_it_was_given_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with shim(tmp_path, f"unix:{path}") as smtpd:
            with Activated(tmp_path, listening) as first:
                assert send(smtpd) == 250
                first.process.terminate()
                smtpd.run(lambda: said(smtpd, 'why="it left"') == 1)
                assert first.process.wait(WAIT) == 0
            assert path.exists()
            with Activated(tmp_path, listening):  # whoever connected meanwhile has waited
                assert send(smtpd) == 250
    assert said(smtpd, "bridge-up") == 2


def test_a_tcp_socket_is_served_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with (
            Activated(tmp_path, listening),
            shim(tmp_path, f"tcp:127.0.0.1:{port}") as smtpd,
        ):
            assert send(smtpd) == 250


def test_a_socket_that_is_meant_for_another_process_is_left_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with Activated(tmp_path, listening, pid="1") as bridge:
            _, errors = bridge.process.communicate(timeout=WAIT)
        assert bridge.process.returncode == 1
        assert "nothing to listen on" in errors
