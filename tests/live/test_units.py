"""Are our systemd units what systemd takes, and do they shut the services in?  Only looked at, by
systemd-analyze(1): no systemd runs them here.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CONTRIB = Path(__file__).resolve().parents[2] / "contrib"
UNITS = sorted((*CONTRIB.rglob("*.service"), *CONTRIB.rglob("*.socket")))
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
# Tenths of what `systemd-analyze security` calls exposure; a service without any setting has 96.
EXPOSURE = 25


def names(units: list[Path]) -> list[str]:
    return [unit.name for unit in units]


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The units with commands that are there, since ours is not installed here."""
    for unit in UNITS:
        text = re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", unit.read_text(), flags=re.M)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(*arguments: str) -> str:
    """What systemd-analyze says when all is well; else the test fails with it."""
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=names(UNITS))
def test_systemd_takes_it(unit: Path, copies: Path) -> None:
    assert analyze("verify", "--man=no", str(copies / unit.name)) == ""


@pytest.mark.parametrize("unit", SERVICES, ids=names(SERVICES))
def test_it_is_shut_in(unit: Path, copies: Path) -> None:
    limits = ["--offline=true", f"--threshold={EXPOSURE}"]
    analyze("security", *limits, str(copies / unit.name))


def test_a_mistake_would_be_found(copies: Path) -> None:
    unit = copies / "filter-bridge.service"
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchDogSeconds"))
    with pytest.raises(AssertionError, match="Unknown key 'WatchDogSeconds'"):
        assert analyze("verify", "--man=no", str(unit)) == ""
