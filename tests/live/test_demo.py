"""contrib/demo on real servers: every message fares as the demo says it should."""

from __future__ import annotations

from tests.unit.test_demo import check, run_demo


def test_all_is_well(version: str) -> None:
    done = run_demo("--version", version)
    assert f"  OpenSMTPD {version}." in done.stdout, done.stdout + done.stderr
    check(done)
