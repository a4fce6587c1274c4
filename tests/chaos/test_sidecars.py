"""A thousand sessions through two shims and two sidecars, each of which is killed fifty times,
stopped, and replaced: minutes.  tests/live/test_sidecars.py is the same in small.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import DEADLINE, SLACK, storm
from tests.live import places

pytestmark = [pytest.mark.live, pytest.mark.long]

SESSIONS = 1000
DEEDS = {"kill": 50, "stop": 10, "replace": 10}


@pytest.mark.parametrize("version", places.VERSIONS)
def test_no_message_is_lost_doubled_or_held_up(version: str, tmp_path: Path) -> None:
    with storm(version, tmp_path) as world:
        before = world.mta.pids()
        harms = world.rage(DEEDS, SESSIONS, clients=24, seed=1)
        delivered = world.settle()
        books = world.books
        print(
            f"{version}: {len(books.told)} told {books.codes}, {len(delivered)} delivered, "
            f"deferred for {world.reasons()}, "
            f"longest reply {books.longest:.1f} s, done to each: {[dict(h.done) for h in harms]}"
        )
        assert books.wrong == {}, world.mta.log()[-20_000:]
        assert delivered == {ident: 1 for ident, code in books.told.items() if code == 250}
        assert len(books.told) >= SESSIONS
        assert books.longest < DEADLINE + SLACK
        assert [harm.done for harm in harms] == [DEEDS, DEEDS]
        assert world.mta.alive
        assert world.mta.pids().filters == before.filters
    assert world.mta.leftovers == []
