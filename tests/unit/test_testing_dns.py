"""The DNS stand-in: that it answers as a resolver would, and misbehaves only when told to."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from bridge.testing.dns import DnsServer, Query, Zone, ptr

KEY = "v=DKIM1; k=rsa; p=" + "MIIBIjANBgkq" * 33  # 414 characters, a 2048-bit key's length

ZONE = f"""
; comments and empty lines are fine
example.org 3600 SOA ns.example.org. admin.example.org. 1 2 3 4 30
example.org 300 MX 10 mail.example.org
example.org 300 TXT "v=spf1 mx -all"
mail.example.org 300 A 192.0.2.1
mail.example.org 300 A 192.0.2.2
mail.example.org 300 AAAA 2001:db8::1
www.example.org CNAME web.example.org
web.example.org CNAME mail.example.org
lost.example.org CNAME nowhere.example.net
loop.example.org CNAME pool.example.org
pool.example.org CNAME loop.example.org
k._domainkey.example.org TXT "{KEY}"
big.example.org TXT {" ".join(['"' + "x" * 255 + '"'] * 8)}
$PTR 192.0.2.1 mail.example.org 120
$PTR 2001:db8::1 mail.example.org
$FAULT sick.example.org servfail
$FAULT mail.example.org refused TXT
"""

# question, code, answer section, owner of the SOA in the authority section
CASES = {
    "addresses": ("mail.example.org A", "NOERROR", ["A 192.0.2.1", "A 192.0.2.2"], ""),
    "in another case": ("MAIL.example.ORG A", "NOERROR", ["A 192.0.2.1", "A 192.0.2.2"], ""),
    "IPv6": ("mail.example.org AAAA", "NOERROR", ["AAAA 2001:db8::1"], ""),
    "a mail exchanger": ("example.org MX", "NOERROR", ["MX 10 mail.example.org."], ""),
    "a text": ("example.org TXT", "NOERROR", ['TXT "v=spf1 mx -all"'], ""),
    "a DKIM key, in two strings": (
        "k._domainkey.example.org TXT", "NOERROR", [f'TXT "{KEY[:255]}" "{KEY[255:]}"'], ""),
    "a name of an address": (
        "1.2.0.192.in-addr.arpa PTR", "NOERROR", ["PTR mail.example.org."], ""),
    "two aliases": (
        "www.example.org AAAA", "NOERROR",
        ["CNAME web.example.org.", "CNAME mail.example.org.", "AAAA 2001:db8::1"], ""),
    "an alias itself": ("www.example.org CNAME", "NOERROR", ["CNAME web.example.org."], ""),
    "an alias of nothing": (
        "lost.example.org A", "NXDOMAIN", ["CNAME nowhere.example.net."], "."),
    "an alias without this type": (
        "web.example.org MX", "NOERROR", ["CNAME mail.example.org."], "example.org."),
    "aliases in a circle": ("loop.example.org A", "SERVFAIL", [], ""),
    "no such type": ("mail.example.org MX", "NOERROR", [], "example.org."),
    "a name that only has names below": ("_domainkey.example.org A", "NOERROR", [], "example.org."),
    "no such name": ("nope.example.org A", "NXDOMAIN", [], "example.org."),
    "a foreign name": ("2.0.0.127.dnsbl.example.com A", "NXDOMAIN", [], "."),
    "a name told to be broken": ("sick.example.org A", "SERVFAIL", [], ""),
    "a type told to be refused": ("mail.example.org TXT", "REFUSED", [], ""),
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(ZONE) as running:
        yield running


def ask(server: DnsServer, question: str, *, tcp: bool = False, edns: bool = True) -> str:
    """The reply's code, answers and SOA owner as text."""
    response = exchange(server, question, tcp=tcp, edns=edns)
    answers = [f"{dns.rdatatype.to_text(rd.rdtype)} {rd}" for rr in response.answer for rd in rr]
    owners = [rr.name.to_text() for rr in response.authority]
    assert response.flags & (dns.flags.RA | dns.flags.QR)
    return f"{dns.rcode.to_text(response.rcode())} {answers} {''.join(owners)}"


def exchange(
    server: DnsServer, question: str, *, tcp: bool = False, edns: bool = True, timeout: float = 30.0
) -> dns.message.Message:
    name, type_ = question.split()
    query = dns.message.make_query(name, type_, use_edns=edns)
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, server.hosts[0], port=server.port, timeout=timeout)


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(("question", "code", "answers", "soa"), CASES.values(), ids=CASES.keys())
def test_questions(
    server: DnsServer, question: str, code: str, answers: list[str], soa: str, tcp: bool
) -> None:
    assert ask(server, question, tcp=tcp) == f"{code} {answers} {soa}"


def test_the_negative_ttl_stands_in_the_soa() -> None:
    wire = dns.message.make_query("nope.example", "A").to_wire()
    reply = Zone(negative_ttl=7).respond(wire, tcp=False)
    assert reply is not None
    assert dns.message.from_wire(reply[0]).resolve_chaining().minimum_ttl == 7  # type: ignore[attr-defined]


def test_edns_is_answered_with_edns(server: DnsServer) -> None:
    assert exchange(server, "mail.example.org A").edns == 0
    assert exchange(server, "mail.example.org A", edns=False).edns == -1


@pytest.mark.parametrize(
    ("question", "edns", "cut"),
    [
        ("mail.example.org A", False, False),
        ("k._domainkey.example.org TXT", False, False),
        ("big.example.org TXT", True, True),
        ("big.example.org TXT", False, True),
    ],
)
def test_what_is_too_long_for_udp_is_cut(
    server: DnsServer, question: str, edns: bool, cut: bool
) -> None:
    response = exchange(server, question, edns=edns)
    assert bool(response.flags & dns.flags.TC) is cut
    assert bool(response.answer) is not cut
    assert exchange(server, question, tcp=True, edns=edns).answer


def test_truncate(server: DnsServer) -> None:
    server.fault("mail.example.org", "truncate")
    assert exchange(server, "mail.example.org A").flags & dns.flags.TC
    assert not exchange(server, "mail.example.org A", tcp=True).flags & dns.flags.TC


def test_timeout(server: DnsServer) -> None:
    server.fault("mail.example.org", "timeout", "A")
    with pytest.raises(dns.exception.Timeout):
        exchange(server, "mail.example.org A", timeout=0.2)
    assert ask(server, "mail.example.org AAAA") == "NOERROR ['AAAA 2001:db8::1'] "
    assert server.asked("mail.example.org", "A") == 1


def test_garbage(server: DnsServer) -> None:
    server.fault("mail.example.org", "garbage")
    with pytest.raises(dns.exception.DNSException):
        exchange(server, "mail.example.org A", timeout=1)


def test_slow_is_late_and_does_not_hold_up_others(server: DnsServer) -> None:
    server.fault("mail.example.org", "slow:3600")
    with pytest.raises(dns.exception.Timeout):
        exchange(server, "mail.example.org A", timeout=0.2)
    assert ask(server, "nope.example.org A").startswith("NXDOMAIN")
    server.fault("mail.example.org", "slow:0.1")
    assert ask(server, "mail.example.org A").startswith("NOERROR")


def test_a_fault_of_all_names_and_its_end(server: DnsServer) -> None:
    server.fault("*", "servfail")
    assert ask(server, "mail.example.org A").startswith("SERVFAIL")
    server.fault("*", "")
    assert ask(server, "mail.example.org A").startswith("NOERROR")


def test_a_fault_of_an_address_is_that_of_its_ptr(server: DnsServer) -> None:
    server.fault("192.0.2.1", "refused")
    assert ask(server, "1.2.0.192.in-addr.arpa PTR").startswith("REFUSED")
    assert server.asked("192.0.2.1") == server.asked("192.0.2.1", "PTR") == 1


def test_the_zone_changes_while_it_is_served(server: DnsServer) -> None:
    server.add("new.example.org 5 A 192.0.2.9\nmail.example.org A 192.0.2.3")
    server.add(ptr("2001:db8::9", "new.example.org", "old.example.org"))
    assert ask(server, "new.example.org A") == "NOERROR ['A 192.0.2.9'] "
    assert ask(server, "mail.example.org A").count("192.0.2.") == 3
    name = "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
    assert ask(server, f"{name} PTR").count("PTR") == 2
    server.remove("mail.example.org", "A")
    assert ask(server, "mail.example.org A") == "NOERROR [] example.org."
    assert ask(server, "mail.example.org AAAA") == "NOERROR ['AAAA 2001:db8::1'] "
    server.remove("mail.example.org")
    assert ask(server, "mail.example.org AAAA") == "NXDOMAIN [] example.org."
    server.replace("only.example A 192.0.2.1")
    assert ask(server, "only.example A") == "NOERROR ['A 192.0.2.1'] "
    assert ask(server, "example.org MX") == "NXDOMAIN [] ."


def test_it_remembers_what_it_was_asked(server: DnsServer) -> None:
    ask(server, "Mail.example.org A")
    ask(server, "nope.example MX", tcp=True)
    assert list(server.queries) == [
        Query("mail.example.org", "A", tcp=False),
        Query("nope.example", "MX", tcp=True),
    ]
    assert (server.asked("MAIL.example.org"), server.asked("mail.example.org", "MX")) == (1, 0)


def test_several_questions_on_one_connection(server: DnsServer) -> None:
    query = dns.message.make_query("mail.example.org", "A")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        for _ in range(3):
            assert dns.query.tcp(query, "127.0.0.1", sock=sock, timeout=30).answer


@pytest.mark.parametrize(
    "wire",
    [b"", b"x", b"\0" * 12, b"\xff" * 600],
    ids=["nothing", "a byte", "a bare header", "a response, long"],
)
def test_what_is_no_question_gets_no_answer_or_an_error(wire: bytes) -> None:
    reply = Zone(ZONE).respond(wire, tcp=False)
    assert reply is None or dns.message.from_wire(reply[0]).rcode() == dns.rcode.NOTIMP


def test_ipv6_and_ipv4_on_one_port() -> None:
    with DnsServer(ZONE, hosts=["::1", "127.0.0.1"]) as server:
        assert server.address == f"[::1]:{server.port}"
        assert ask(server, "mail.example.org AAAA", tcp=True).startswith("NOERROR")
        server.hosts = ("127.0.0.1",)
        assert ask(server, "mail.example.org AAAA").startswith("NOERROR")


def test_stopping_frees_the_port_and_ends_the_thread() -> None:
    with DnsServer(ZONE) as server:
        assert "dns" in [thread.name for thread in threading.enumerate()]
        exchange(server, "mail.example.org A", tcp=True)
    assert "dns" not in [thread.name for thread in threading.enumerate()]
    with DnsServer(ZONE, port=server.port) as again:
        assert ask(again, "mail.example.org A").startswith("NOERROR")


MISTAKES = {
    "a.example A 1.2.3": "zone text",
    "a.example BLAH x": "zone text",
    "a.example": "expected NAME",
    "$FAULT a.example nonsense": "expected one of servfail, refused",
    "$FAULT a.example slow:x": "could not convert",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items())
def test_a_mistake_in_the_zone_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Zone(text)


def test_only_loopback() -> None:
    with pytest.raises(ValueError, match="loopback"):
        DnsServer(hosts=["0.0.0.0"])


def test_as_a_process(tmp_path: Path) -> None:
    """It serves a zone file, reads it again on SIGHUP, keeps it when the new one is bad."""
    zone = tmp_path / "zone"
    zone.write_text("a.example A 192.0.2.1\n")
    command = [sys.executable, "-m", "bridge.testing.dns", "--verbose", str(zone)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        word, address = process.stdout.readline().split()
        assert word == "listening"
        far = DnsServer(port=int(address.rpartition(":")[2]))  # never started: an address only
        assert ask(far, "a.example A") == "NOERROR ['A 192.0.2.1'] "
        assert process.stdout.readline() == "a.example A\n"
        zone.write_text("a.example A nonsense\n")
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline().startswith("zone file not read: zone text ")
        zone.write_text("a.example A 192.0.2.2\n")
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "zone file read\n"
        assert ask(far, "a.example A") == "NOERROR ['A 192.0.2.2'] "
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
