"""DnsResolver over real sockets: aliases, TTLs, truncation and several nameservers."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import dns.message
import dns.name
import dns.rdatatype
import pytest

from bridge.services import fcrdns
from bridge.services.fcrdns import DnsResolver, FcRdns, Result
from bridge.testing.dns import DnsServer, ptr


def ask(address: str, *nameservers: str, query_timeout: float = 30.0) -> tuple[FcRdns, float]:
    async def run() -> tuple[FcRdns, float]:
        resolver = DnsResolver(nameservers, timeout=30.0, query_timeout=query_timeout)
        return await fcrdns.check(resolver, ip_address(address), timeout=60.0)

    return asyncio.run(run())


CLASSLESS = """
1.2.0.192.in-addr.arpa 350 CNAME 1.0/25.2.0.192.in-addr.arpa
1.0/25.2.0.192.in-addr.arpa 400 PTR mail.example.org
mail.example.org 600 CNAME host.example.net
host.example.net 700 A 192.0.2.1
"""
PASSED = FcRdns(Result.PASS, "mail.example.org", ("mail.example.org",))


class Lazy(DnsServer):
    """Gives the first CNAME and leaves the rest of the chain to the client."""

    def _fill(
        self, response: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
    ) -> None:
        known = self._records.get(name, {})
        response.answer = [known[each] for each in (rdtype, dns.rdatatype.CNAME) if each in known]


@pytest.mark.parametrize("kind", [DnsServer, Lazy])
def test_cnames_are_followed_and_the_least_ttl_counts(kind: type[DnsServer]) -> None:
    with kind(CLASSLESS) as server:
        assert ask("192.0.2.1", server.address) == (PASSED, 350.0)


def test_a_cname_loop_is_a_temporary_error() -> None:
    loop = "1.2.0.192.in-addr.arpa CNAME a.example.\na.example CNAME 1.2.0.192.in-addr.arpa."
    with Lazy(loop) as server:
        found, _ = ask("192.0.2.1", server.address)
    assert found == FcRdns(Result.TEMPERROR, reason="CNAME loop for the PTR")


@pytest.mark.parametrize(
    ("text", "reason", "ttl"),
    [
        ("", "no PTR (NXDOMAIN)", 77.0),
        ("1.2.0.192.in-addr.arpa TXT x", "no PTR (NODATA)", 77.0),
        ("x.1.2.0.192.in-addr.arpa TXT x", "no PTR (NODATA)", 77.0),
        ("1.2.0.192.in-addr.arpa 9 CNAME a.example.", "no PTR (NXDOMAIN)", 9.0),
    ],
    ids=["no name", "another type", "only a name below", "an alias of nothing"],
)
def test_no_ptr_holds_for_the_negative_ttl(text: str, reason: str, ttl: float) -> None:
    with DnsServer(text, negative_ttl=77) as server:
        assert ask("192.0.2.1", server.address) == (
            FcRdns(Result.PERMERROR, reason=reason), ttl
        )  # fmt: skip


def test_a_no_without_soa_holds_for_a_minute() -> None:
    with Lazy() as server:
        assert ask("192.0.2.1", server.address)[1] == 60.0


@pytest.mark.parametrize("fault", ["servfail", "refused", "timeout", "garbage"])
def test_the_second_nameserver_is_asked_when_the_first_fails(fault: str) -> None:
    with DnsServer(f"$FAULT * {fault}") as first, DnsServer(CLASSLESS) as second:
        found, _ = ask("192.0.2.1", first.address, second.address, query_timeout=0.3)
        assert found == PASSED
        assert first.asked("192.0.2.1") >= 1


@pytest.mark.parametrize("fault", ["truncate", ""])
def test_what_is_truncated_is_asked_again_over_tcp(fault: str) -> None:
    many = ptr("192.0.2.1", *(f"name-{n}.of-many.example.org" for n in range(40)))
    with DnsServer(CLASSLESS if fault else many) as server:
        server.fault("*", fault)
        assert ask("192.0.2.1", server.address)[0].result == ("pass" if fault else "fail")
        first, second, *_ = server.queries
    assert (first.tcp, second.tcp) == (False, True)
    assert first.name == second.name


def test_an_ipv6_nameserver() -> None:
    with DnsServer(CLASSLESS, hosts=["::1"]) as server:
        assert ask("192.0.2.1", server.address)[0] == PASSED


NAMESERVERS = {
    "192.0.2.53": "192.0.2.53 53",
    "192.0.2.53:5353": "192.0.2.53 5353",
    "2001:db8::53": "2001:db8::53 53",
    "[2001:db8::53]": "2001:db8::53 53",
    "[2001:db8::53]:5353": "2001:db8::53 5353",
    "localhost": "",
    "": "",
    "192.0.2.53:65536": "",
    "192.0.2.53:dns": "",
}


@pytest.mark.parametrize(("text", "meaning"), NAMESERVERS.items())
def test_nameserver_addresses(text: str, meaning: str) -> None:
    if not meaning:
        with pytest.raises(ValueError, match="expected an address"):
            DnsResolver([text])
        return
    server = fcrdns.parse_nameserver(text)
    assert f"{server.answer_nameserver()} {server.answer_port()}" == meaning
