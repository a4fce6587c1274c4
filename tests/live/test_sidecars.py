"""Do two shims under a real smtpd lose no message while their two sidecars are killed, stopped and
replaced?  A small part of tests/chaos/test_sidecars.py.
"""

from __future__ import annotations

from pathlib import Path

from tests.chaos.storm import storm

SESSIONS = 60
DEEDS = {"kill": 3, "stop": 1, "replace": 2}


def test_no_message_is_lost_or_doubled(version: str, tmp_path: Path) -> None:
    with storm(version, tmp_path) as world:
        before = world.mta.pids()
        world.rage(DEEDS, SESSIONS, clients=8, seed=1)
        delivered = world.settle()
        told = world.books.told
        assert world.books.wrong == {}
        assert delivered == {ident: 1 for ident, code in told.items() if code == 250}
        assert len(told) >= SESSIONS
        assert len(delivered) > SESSIONS / 2, world.books.codes
        assert world.mta.pids() == before
    assert world.mta.leftovers == []
