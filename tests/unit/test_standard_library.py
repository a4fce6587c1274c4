"""Does the shim work where nothing is installed: with Python and the directory bridge/ alone?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.testing.process import FilterProcess
from tests.unit.sidecar import NO_SERVICES, PROJECT, WAIT, Sidecar, send

# -I: nothing of the environment; -S: no site-packages.
BARE = [sys.executable, "-I", "-S"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What contrib/filter-bridge says to put into an image."""
    root = tmp_path / "opt/filter-bridge"
    shutil.copytree(PROJECT / "bridge", root / "bridge", ignore=shutil.ignore_patterns("*.pyc"))
    (root / "bin").mkdir()
    shutil.copy(PROJECT / "contrib/filter-bridge", root / "bin")
    return root / "bin/filter-bridge"


@pytest.mark.parametrize("module", ["httpx", "dns", "pytest"])
def test_this_python_has_nothing_installed(module: str) -> None:
    done = subprocess.run([*BARE, "-c", f"import {module}"], capture_output=True, timeout=WAIT)
    assert b"ModuleNotFoundError" in done.stderr


def test_it_serves_mail_with_a_sidecar(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "shim.toml"
    file.write_text(NO_SERVICES)
    with Sidecar(tmp_path) as bridge:
        command = [*BARE, str(image), "-f", str(file), "--connect", bridge.endpoint]
        with FilterProcess(command, {}, timeout=WAIT, cwd="/") as smtpd:
            assert send(smtpd) == 250
            assert send(smtpd, b"Subject: long\n\n" + (b"x" * 76 + b"\n") * 20_000) == 250
    assert smtpd.faults == []
    assert smtpd.status == 0


def test_the_whole_default_configuration_is_read_there(image: Path, tmp_path: Path) -> None:
    """Tables of the bridge, the token in a file that is not there included, are no matter."""
    file = tmp_path / "shim.toml"
    shutil.copy(PROJECT / "contrib/bridge.toml", file)
    file.write_text(file.read_text() + '\n[[profile]]\nname = "x"\nmatch.port = 587\n')
    where = tmp_path / "nobody.sock"
    command = [*BARE, str(image), "-f", str(file), "--connect", f"unix:{where}"]
    with FilterProcess([*command, "--patience", "0s"], {}, timeout=WAIT) as smtpd:
        assert send(smtpd) == 451


def test_the_version_is_told(image: Path) -> None:
    done = subprocess.run([*BARE, str(image), "--version"], capture_output=True, timeout=WAIT)
    assert done.returncode == 0
    assert done.stdout.startswith(b"filter-bridge ")
