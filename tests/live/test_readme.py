"""The smtpd.conf recipes of README.md are good, as far as `smtpd -n` can tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import places
from tests.live.world import Listener, OpenSMTPD
from tests.unit.test_readme import blocks

RECIPES = blocks("smtpd.conf")
# What stands in for the reader's own files.
CERTIFICATE = {
    "/etc/ssl/mx.example.org.crt": "{dir}/cert.pem",
    "/etc/ssl/private/mx.example.org.key": "{dir}/key.pem",
}


@pytest.fixture(scope="module", params=places.VERSIONS)
def mta(request: pytest.FixtureRequest) -> Iterator[OpenSMTPD]:
    """A server in whose world smtpd can be run; its TLS listener makes a certificate."""
    with OpenSMTPD(request.param, listeners=[Listener(tls="tls")]) as server:
        yield server


def verdict_on(mta: OpenSMTPD, text: str) -> str:
    """What `smtpd -n` says of a configuration."""
    for theirs, ours in CERTIFICATE.items():
        text = text.replace(theirs, ours)
    path = mta.write("recipe.conf", text)
    done = mta.run(["/usr/sbin/smtpd", "-n", "-f", str(path)])
    return f"{done.returncode} {(done.stdout + done.stderr).decode().strip()}"


def test_there_are_recipes() -> None:
    assert len(RECIPES) == 4


@pytest.mark.parametrize("text", RECIPES, ids=["inbound", "submission", "socket", "chain"])
def test_smtpd_takes_it(mta: OpenSMTPD, text: str) -> None:
    assert verdict_on(mta, text) == "0 configuration OK"


def test_smtpd_would_notice(mta: OpenSMTPD) -> None:
    assert verdict_on(mta, RECIPES[0].replace('filter "bridge"', 'filter "other"', 1)).startswith(
        "1 "
    )
