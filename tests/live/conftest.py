"""What do live tests share: their marker, the versions, the service of a file, and the log of a
failed server?
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from bridge.testing.http import StandIn
from tests.live import kept, places
from tests.live.rspamd import Rspamd
from tests.unit.standing import standing_in

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


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Rspamd]:
    """One for all tests of a file; who stops it, or needs another, makes their own."""
    with Rspamd() as running:
        yield running


@pytest.fixture(scope="module")
def service() -> Iterator[StandIn]:
    """In rspamd's place, for all tests of a file."""
    with standing_in("ok") as running:
        yield running


@pytest.fixture(autouse=True)
def _journal() -> None:
    """Forget the servers that ended before this test."""
    kept.journal[:] = [server for server in kept.journal if server.alive]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is a failure here, and a failure shows the servers' logs."""
    report = yield
    if not item.path.is_relative_to(HERE):
        return report
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"a live test was skipped: {report.longrepr}"
    if report.failed:
        for server in kept.journal:
            report.sections.append((server.name, server.log()[-LOG_SHOWN:]))
    return report
