"""The smtpd.conf recipes of README.md are good, as far as `smtpd -n` can tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import places
from tests.live.documented import reader, verdict_on
from tests.live.world import OpenSMTPD
from tests.unit.test_readme import blocks

RECIPES = blocks("smtpd.conf")


@pytest.fixture(scope="module", params=places.VERSIONS)
def mta(request: pytest.FixtureRequest) -> Iterator[OpenSMTPD]:
    with reader(request.param) as server:
        yield server


def test_there_are_recipes() -> None:
    assert len(RECIPES) == 4


@pytest.mark.parametrize("text", RECIPES, ids=["inbound", "submission", "socket", "chain"])
def test_smtpd_takes_it(mta: OpenSMTPD, text: str) -> None:
    assert verdict_on(mta, text) == "0 configuration OK"


def test_smtpd_would_notice(mta: OpenSMTPD) -> None:
    assert verdict_on(mta, RECIPES[0].replace('filter "bridge"', 'filter "other"', 1)).startswith(
        "1 "
    )
