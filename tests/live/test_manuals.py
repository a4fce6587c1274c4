"""mandoc has nothing to say of the manuals in contrib/man."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

MAN = Path(__file__).parents[2] / "contrib" / "man"
# What it says of the machine that it runs on.
OF_THE_MACHINE = ("referenced manual not found", "outdated mandoc.db")


def lint(path: Path) -> list[str]:
    """What mandoc says of a manual."""
    command = ["mandoc", "-T", "lint", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not any(each in line for each in OF_THE_MACHINE)]


@pytest.mark.parametrize("name", sorted(path.name for path in MAN.iterdir()))
def test_mandoc_has_nothing_to_say(name: str) -> None:
    assert lint(MAN / name) == []


def test_it_would_notice(tmp_path: Path) -> None:
    bad = tmp_path / "bad.8"
    bad.write_text((MAN / "filter-bridge.8").read_text().replace(".El\n", "", 1))
    assert lint(bad) != []
