"""Does the command line do what no command does by itself: find a file, warn, and end quietly?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge import cli, control, shim
from bridge.config import Config

ROOT = Path(__file__).parents[2]
CLEAR = "mail goes to {} in clear: set shim.ca_file if others can get there"
FAR, NEAR, UNIX = "tcp:192.0.2.9:4711", "tcp:127.0.0.1:4711", "unix:/run/bridge.sock"


# The configuration that is not there ------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What bridges are told, of which there are none here."""
    found: list[tuple[str, str]] = []

    def tell(run_dir: str, command: str) -> int:
        found.append((run_dir, command))
        return 0

    monkeypatch.setattr(control, "tell", tell)
    return found


def test_reload_needs_no_file_where_run_does_not(
    told: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "DEFAULT_FILE", str(tmp_path / "bridge.toml"))
    assert cli.main(["reload", "--restart"]) == 0
    assert told == [("/run/filter-bridge", "restart")]


def test_a_file_that_is_named_must_be_there(told: list[tuple[str, str]], tmp_path: Path) -> None:
    assert cli.main(["reload", "-f", str(tmp_path / "other.toml")]) == cli.BAD_CONFIGURATION
    assert told == []


# Warnings at the start --------------------------------------------------------------------


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the shim logs before it runs, which it does not do here."""
    lines: list[tuple[str, Any]] = []

    class Quiet:
        def __init__(self, config: Config, options: shim.Options) -> None:
            pass

        def log(self, event: str, *, text: str) -> None:
            lines.append((event, text))

        def run(self) -> int:
            return 0

    monkeypatch.setattr(shim, "Shim", Quiet)
    monkeypatch.setattr(os, "isatty", lambda fd: False)
    return lines


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        pytest.param(f'connect = ["{FAR}"]', [], ["{file}: shim.connect: "], id="in the file"),
        pytest.param("", ["--connect", FAR], ["--connect: "], id="as an argument"),
        pytest.param(
            f'connect = ["{FAR}"]\nca_file = "/etc/ca.pem"', [], [], id="not with TLS in the file"
        ),
        pytest.param(
            'ca_file = "/etc/ca.pem"', ["--connect", FAR], [], id="not with TLS and an argument"
        ),
        pytest.param(f'connect = ["{NEAR}"]', [], [], id="not on loopback"),
        pytest.param(f'connect = ["{UNIX}"]', [], [], id="not at a unix socket"),
        pytest.param("", ["--connect", "tcp:localhost:4711"], [], id="not at localhost"),
    ],
)
def test_mail_in_clear_is_warned_of(
    logged: list[tuple[str, Any]],
    text: str,
    arguments: list[str],
    expected: list[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text(f"[shim]\n{text}\n")
    assert cli.main(["shim", "-f", str(file), *arguments]) == 0
    warned = [each.format(file=file) + CLEAR.format(FAR) for each in expected]
    assert logged == [("config-warning", line) for line in warned]


# The end of a pipe ------------------------------------------------------------------------


def test_check_ends_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    (tmp_path / "bridge.toml").write_text("")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "bridge", "check", "--offline", "-f", "bridge.toml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, env=environment, cwd=tmp_path
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
