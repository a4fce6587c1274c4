"""What do all live tests share: their marker, the versions, and the log of a failed server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import places, world

HERE = Path(__file__).parent
# What a failure report shows of each server's log, from its end.
LOG_SHOWN = 20_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory is a live test."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    """A live test that can't run is a failed test; contrib/test leaves them out and says so."""
    if reason := places.missing():
        pytest.fail(reason)


@pytest.fixture(params=places.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version of OpenSMTPD in turn."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _journal() -> None:
    """Forget the servers that ended before this test."""
    world.journal[:] = [mta for mta in world.journal if mta.alive]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed and item.path.is_relative_to(HERE):  # type: ignore[attr-defined]
        for mta in world.journal:
            title = f"smtpd {mta.version} at {mta.address}, pid of the test {os.getpid()}"
            report.sections.append((title, mta.log()[-LOG_SHOWN:]))  # type: ignore[attr-defined]
    return report
