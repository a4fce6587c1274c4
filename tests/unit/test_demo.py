"""contrib/demo on the embedded model: every message fares as the demo says it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What contrib/demo runs once everything is installed."""
    return subprocess.run(
        [sys.executable, "contrib/lib/demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def check(done: subprocess.CompletedProcess[str]) -> None:
    """All messages were shown and fared well."""
    states = re.findall(r"(?m)^ *\d+  .*  (ok|WRONG)$", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states == ["ok"] * 12, done.stdout
    assert "All as expected" in done.stdout


@pytest.mark.parametrize("version", ["6.8", "7.6"])
def test_on_the_model_it_says_so_and_all_is_well(version: str) -> None:
    done = run_demo("--version", version, "--model", "a test")
    assert done.stdout.startswith("NO REAL SERVERS: a test.\n")
    check(done)
