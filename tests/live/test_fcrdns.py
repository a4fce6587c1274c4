"""What becomes of a client whose name does not lead back to its address? On real servers.

Each policy is a profile of its own port and each client an address of its own, so that one
server serves them all. What the DNS says to whom stands in ZONE.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from bridge.testing.dns import DnsServer
from tests.live import addresses, places
from tests.live.bridged import bridged, message
from tests.live.iprev import (
    FAILED,
    FIELD,
    TEMPORARY,
    ident,
    iprev,
    log_of,
    offer,
    refused,
    results,
    the_mail,
)
from tests.live.rspamd import Rspamd
from tests.live.world import Client, Listener, OpenSMTPD, eventually

PORTS = {
    "default": 25, "disconnect": 2501, "reject": 2502, "mark": 2503, "ignore": 2504,
    "smtpd": 2505, "submission": 587, "strict": 588,
}  # fmt: skip
TOML = """
[fcrdns]
nameservers = ["{names}"]
timeout = "700ms"
exempt_networks = ["127.9.0.0/16"]
exempt_names = [".exempt.example"]
[rspamd]
servers = ["{rspamd}"]
[[profile]]
name = "disconnect"
match.port = 2501
fcrdns = { fail = "disconnect", permerror = "disconnect", temperror = "disconnect" }
[[profile]]
name = "reject"
match.port = 2502
fcrdns = { fail = "reject", permerror = "reject", temperror = "reject" }
[[profile]]
name = "mark"
match.port = 2503
fcrdns = { fail = "mark", permerror = "mark", temperror = "mark" }
authserv_id = "own.example.org"
[[profile]]
name = "ignore"
match.port = 2504
fcrdns = { fail = "ignore", permerror = "ignore", temperror = "ignore" }
[[profile]]
name = "smtpd"
match.port = 2505
fcrdns = { source = "smtpd" }
[[profile]]
name = "strict"
match.port = 588
fcrdns = { exempt_authenticated = false }
"""
ZONE = """
    $PTR 127.8.0.1 good.example
    good.example A 127.8.0.1
    $PTR 127.8.0.3 nowhere.example
    $PTR 127.8.0.4 liar.example
    liar.example A 127.8.0.1
    $FAULT 127.8.0.5 servfail
    $PTR 127.8.0.6 broken.example
    $FAULT broken.example servfail
    $FAULT 127.8.0.7 timeout
    $PTR 127.8.0.8 silent.example
    $FAULT silent.example timeout
    $PTR 127.8.0.9 nowhere.example
    $PTR 127.8.0.9 liar.example
    $PTR 127.8.0.9 third.example
    third.example A 127.8.0.1
    third.example A 127.8.0.9
    10.0.8.127.in-addr.arpa CNAME 10.sub.0.8.127.in-addr.arpa
    10.sub.0.8.127.in-addr.arpa PTR classless.example
    classless.example A 127.8.0.10
    $PTR 127.8.0.11 alias.example
    alias.example CNAME target.example
    target.example A 127.8.0.11
    $PTR 127.8.0.12 not\\032a\\032host.example
    $PTR 127.8.0.13 mail.exempt.example
"""
# smtpd looks clients up too, before it greets them, and would wait long for the silent ones: it
# asks a server of its own, which just does not know these.
ZONE_OF_SMTPD = "".join(line for line in ZONE.splitlines(True) if "timeout" not in line)


class Peer(NamedTuple):
    """A client: where it comes from, what iprev says of it, and of which name."""

    address: str
    result: str
    name: str = ""


PEERS = {
    "the name leads back": Peer("127.8.0.1", "pass", "good.example"),
    "there is no PTR": Peer("127.8.0.2", "permerror"),
    "the name has no address": Peer("127.8.0.3", "fail"),
    "the name has another's address": Peer("127.8.0.4", "fail"),
    "SERVFAIL for the PTR": Peer("127.8.0.5", "temperror"),
    "SERVFAIL for the name": Peer("127.8.0.6", "temperror"),
    "no answer for the PTR": Peer("127.8.0.7", "temperror"),
    "no answer for the name": Peer("127.8.0.8", "temperror"),
    "one of several names leads back": Peer("127.8.0.9", "pass", "third.example"),
    "the PTR is behind a CNAME": Peer("127.8.0.10", "pass", "classless.example"),
    "the name is an alias": Peer("127.8.0.11", "pass", "alias.example"),
    "the PTR is no host name": Peer("127.8.0.12", "fail"),
}
# What is done at RCPT TO under each policy, by result; with "disconnect" at once.
REFUSED = {
    "default": {"fail": FAILED, "permerror": FAILED},
    "disconnect": {"fail": FAILED, "permerror": FAILED, "temperror": TEMPORARY},
    "reject": {"fail": FAILED, "permerror": FAILED, "temperror": TEMPORARY},
    "mark": {},
    "ignore": {},
}
# Of whom nothing is said in the header.
UNSAID = {
    "default": {"temperror"},
    "ignore": {"fail", "permerror", "temperror"},
}


@pytest.fixture(scope="module")
def names() -> Iterator[DnsServer]:
    """The DNS that our filter asks, and nobody else."""
    server = addresses.nameserver(ZONE)
    yield server
    server.stop()


@pytest.fixture(scope="module", params=places.VERSIONS)
def mta(request: pytest.FixtureRequest, rspamd: Rspamd, names: DnsServer) -> Iterator[OpenSMTPD]:
    """A server of each version that has all the policies; on 7.6 with TLS and AUTH."""
    names.queries.clear()
    secure = () if request.param == "6.8" else ("submission", "strict")
    listeners = [
        Listener(name, port) if name not in ("submission", "strict")
        else Listener.submission(name=name, port=port, auth="auth-optional")
        for name, port in PORTS.items()
        if name in secure or name not in ("submission", "strict")
    ]  # fmt: skip
    with bridged(
        request.param,
        TOML,
        values={"rspamd": rspamd.url, "names": names.address},
        listeners=listeners,
        zone=ZONE_OF_SMTPD,
        conf='admd "admd.example.org"',
        users={"alice": "secret"},
    ) as running:
        yield running
    assert not running.leftovers


# The server side of Debian's 6.8 fails every TLS handshake.
with_tls = pytest.mark.parametrize("mta", ["7.6"], indirect=True)


# What each policy makes of each result ---------------------------------------------------------


@pytest.mark.parametrize("policy", ["default", "reject", "mark", "ignore"])
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS.keys())
def test_a_recipient_is_refused_or_the_message_marked(
    mta: OpenSMTPD, peer: Peer, policy: str
) -> None:
    name = ident("rcpt", policy, peer.address)
    reply = REFUSED[policy].get(peer.result)
    with mta.client(policy, source=peer.address) as client:
        assert client.banner is not None
        assert client.banner.code == 220
        offer(client, message(name), reply)
        if reply:
            line = log_of(mta, "refused" if reply == FAILED else "deferred", client)
            assert line["phase"] == "rcpt-to"
            assert line["by"].startswith(f"fcrdns: {peer.result} ")
            assert (line["reply"], line["from"]) == (reply, "<sender@client.example>")
    mail = the_mail(mta, name)
    if peer.result in UNSAID.get(policy, ()):
        assert results(mail) == []
    else:
        found = iprev(mail)
        assert found["id"] == ("own.example.org" if policy == "mark" else "admd.example.org")
        assert (found["result"], found["address"]) == (peer.result, peer.address)
        assert found["name"] == peer.name
        assert bool(found["reason"]) == (peer.result != "pass")


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS.keys())
def test_a_client_is_disconnected_before_it_is_greeted(mta: OpenSMTPD, peer: Peer) -> None:
    reply = REFUSED["disconnect"].get(peer.result)
    with mta.client("disconnect", source=peer.address) as client:
        assert client.banner is not None
        if reply is None:
            assert client.banner.code == 220
            name = ident("connect", peer.address)
            assert client.deliver("a@client.example", ["b@example.org"], message(name)).ok
            assert iprev(the_mail(mta, name))["result"] == "pass"
            return
        assert refused(client.banner, reply)
        assert client.closed_by_server()
        line = log_of(mta, "disconnected", client)
        assert (line["phase"], line["reply"]) == ("connect", reply)
        assert line["by"].startswith(f"fcrdns: {peer.result} ")


@pytest.mark.parametrize("recipient", ["postmaster@example.org", "PostMaster@Example.Org"])
def test_mail_to_postmaster_alone_is_scanned_and_passes(
    mta: OpenSMTPD, rspamd: Rspamd, recipient: str
) -> None:
    name = ident("only", recipient)
    with mta.client("reject", source="127.8.0.2") as client:
        assert client.deliver("a@client.example", [recipient], message(name)).code == 250
    assert iprev(the_mail(mta, name))["result"] == "permerror"
    assert rspamd.seen()[-1]["message_id"] == f"{name}@client.example"


# Who is exempt ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["disconnect", "reject"])
def test_an_exempt_network_is_not_checked(mta: OpenSMTPD, policy: str) -> None:
    name = ident("network", policy)
    with mta.client(policy, source="127.9.1.1") as client:
        assert client.deliver("a@client.example", ["b@example.org"], message(name)).code == 250
    assert results(the_mail(mta, name)) == []


@pytest.mark.parametrize("policy", ["disconnect", "reject"])
def test_an_exempt_name_is_not_refused_but_told(mta: OpenSMTPD, policy: str) -> None:
    name = ident("name", policy)
    with mta.client(policy, source="127.8.0.13") as client:
        assert client.deliver("a@client.example", ["b@example.org"], message(name)).code == 250
    assert iprev(the_mail(mta, name))["result"] == "fail"


def test_a_local_user_is_not_checked(mta: OpenSMTPD) -> None:
    name = "over-the-socket"
    done = mta.sendmail(message(name).replace(b"\r\n", b"\n"))
    assert done.returncode == 0, done.stderr
    assert results(the_mail(mta, name)) == []


@with_tls
def test_who_authenticates_may_have_no_name(mta: OpenSMTPD) -> None:
    name = "authenticated"
    with mta.client("submission", source="127.8.0.2") as client:
        begin_tls(client)
        assert client.auth_plain("alice", "secret").code == 235
        assert client.deliver("a@client.example", ["b@example.org"], message(name)).code == 250
    assert results(the_mail(mta, name)) == []


@with_tls
def test_who_could_authenticate_but_did_not_is_refused(mta: OpenSMTPD) -> None:
    with mta.client("submission", source="127.8.0.2") as client:
        begin_tls(client)
        assert refused(client.begin("a@client.example", ["b@example.org"]), FAILED)
        # In the same session, and with the same result of the check.
        assert client.cmd("RSET").ok
        assert client.auth_plain("alice", "secret").code == 235
        assert client.deliver("a@client.example", ["b@example.org"], message("later")).ok


@with_tls
def test_who_authenticates_may_be_no_exception(mta: OpenSMTPD) -> None:
    with mta.client("strict", source="127.8.0.2") as client:
        begin_tls(client)
        assert client.auth_plain("alice", "secret").code == 235
        assert refused(client.begin("a@client.example", ["b@example.org"]), FAILED)


def begin_tls(client: Client) -> None:
    client.ehlo()
    assert client.starttls().code == 220
    client.ehlo()


# What else is made of the result -----------------------------------------------------------------

# smtpd's own word. It takes one name only, and can't tell a PTR that it could not get from one
# that is not there (libasr, getnameinfo_async.c).
BY_SMTPD = {
    "a pass": (Peer("127.8.0.1", "pass", "good.example"), None),
    "no PTR": (Peer("127.8.0.2", "permerror"), FAILED),
    "another's address": (Peer("127.8.0.4", "fail"), FAILED),
    "SERVFAIL for the PTR": (Peer("127.8.0.5", "permerror"), FAILED),
}


@pytest.mark.parametrize(("peer", "reply"), BY_SMTPD.values(), ids=BY_SMTPD.keys())
def test_smtpds_own_check_can_be_the_source(mta: OpenSMTPD, peer: Peer, reply: str | None) -> None:
    name = ident("smtpd", peer.address)
    with mta.client("smtpd", source=peer.address) as client:
        offer(client, message(name), reply)
    found = iprev(the_mail(mta, name))
    assert (found["result"], found["name"]) == (peer.result, peer.name)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS.keys())
def test_rspamd_is_told_a_confirmed_name_and_no_other(
    mta: OpenSMTPD, rspamd: Rspamd, peer: Peer
) -> None:
    name = ident("hostname", mta.version, peer.address)
    assert mta.send(message(name), source=peer.address, listener="mark").code == 250
    [seen] = [each for each in rspamd.seen() if each["message_id"] == f"{name}@client.example"]
    assert seen["request"]["IP"] == peer.address
    assert seen["request"].get("Hostname", "") == peer.name


def test_a_forged_result_of_ours_is_taken_off_and_anothers_stays(mta: OpenSMTPD) -> None:
    forged = (
        b"Authentication-Results: admd.example.org; iprev=pass\r\n"
        b"Authentication-Results: ADMD.example.org 1;\r\n dkim=pass\r\n"
        b"Authentication-Results: (c) other.example; spf=pass\r\n"
    )
    with mta.client("default", source="127.8.0.1") as client:
        reply = client.deliver(
            "a@client.example", ["b@example.org"], message("forged", head=forged)
        )
        assert reply.code == 250
    first, other = results(the_mail(mta, "forged"))
    match = FIELD.fullmatch(first)
    assert match
    assert (match["id"], match["result"], match["name"]) == (
        "admd.example.org", "pass", "good.example",
    )  # fmt: skip
    assert other == "(c) other.example; spf=pass"


def test_an_answer_of_the_dns_is_remembered(mta: OpenSMTPD, names: DnsServer) -> None:
    for number in range(3):
        assert mta.send(message(f"again{number}"), source="127.8.0.1", listener="mark").ok
    assert names.asked("127.8.0.1", "PTR") == 1
    assert names.asked("good.example", "A") == 1


def test_the_dns_is_asked_before_anybody_waits_for_it(mta: OpenSMTPD, names: DnsServer) -> None:
    with mta.client("default", source="127.8.7.7"):
        eventually("a question for the PTR", lambda: names.asked("127.8.7.7", "PTR"))


def test_only_who_is_checked_is_looked_up(mta: OpenSMTPD, names: DnsServer) -> None:
    assert mta.send(message("unasked"), source="127.9.2.2", listener="reject").ok
    assert mta.send(message("believed"), source="127.8.0.10", listener="smtpd").ok
    assert names.asked("127.9.2.2") == 0
