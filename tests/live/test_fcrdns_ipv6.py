"""What becomes of a client with an IPv6 address? On real servers.

A machine has one IPv6 loopback address, so here it is the zone that differs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import places
from tests.live.addresses import free_port
from tests.live.bridged import bridged, message
from tests.live.iprev import FAILED, ident, iprev, offer, results, the_mail
from tests.live.rspamd import Rspamd
from tests.live.world import Listener, OpenSMTPD

SIX = """
[fcrdns]
nameservers = ["{dns}"]
exempt_networks = []
cache_entries = 0
temperror = "mark"
[rspamd]
servers = ["{rspamd}"]
"""
ZONES: dict[str, tuple[str, str, str]] = {
    "the name leads back": ("$PTR ::1 six.example\nsix.example AAAA ::1", "pass", "six.example"),
    "one of several addresses is its own": (
        "$PTR ::1 six.example\nsix.example AAAA 2001:db8::1\nsix.example AAAA 0:0::0:1",
        "pass",
        "six.example",
    ),
    "there is no PTR": ("", "permerror", ""),
    "the name has only an IPv4 address": (
        "$PTR ::1 six.example\nsix.example A 1.2.3.4",
        "fail",
        "",
    ),
    "the name has another's address": (
        "$PTR ::1 six.example\nsix.example AAAA 2001:db8::1",
        "fail",
        "",
    ),
    "SERVFAIL": ("$FAULT ::1 servfail", "temperror", ""),
}


@pytest.fixture(scope="module", params=places.VERSIONS)
def six(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[OpenSMTPD]:
    listeners = [Listener("six", free_port("::1"), "::1")]
    values = {"rspamd": rspamd.url}
    with bridged(request.param, SIX, values=values, listeners=listeners) as running:
        yield running


@pytest.mark.parametrize(("zone", "result", "name"), ZONES.values(), ids=ZONES.keys())
def test_a_client_with_an_ipv6_address(
    six: OpenSMTPD, rspamd: Rspamd, zone: str, result: str, name: str
) -> None:
    six.dns.replace(zone)
    which = ident("six", zone)
    with six.client() as client:
        offer(client, message(which), FAILED if result in ("fail", "permerror") else None)
    found = iprev(the_mail(six, which))
    assert (found["result"], found["address"], found["name"]) == (result, "::1", name)
    assert rspamd.seen()[-1]["request"]["IP"] == "::1"
    assert rspamd.seen()[-1]["request"].get("Hostname", "") == name


@pytest.mark.parametrize("networks", ["", '"::/64"'], ids=["the default", "another network"])
def test_loopback_is_exempt_unless_told_otherwise(version: str, networks: str) -> None:
    toml = '[fcrdns]\nnameservers = ["{dns}"]\n' + (
        f"exempt_networks = [{networks}]\n" if networks else ""
    )
    toml += "[rspamd]\nenabled = false\n"
    with bridged(version, toml, listeners=[Listener("six", free_port("::1"), "::1")]) as mta:
        with mta.client() as client:
            assert client.deliver("a@client.example", ["b@example.org"], message()).code == 250
        assert results(mta.wait_delivered(1)[0]) == []
        assert mta.alive
