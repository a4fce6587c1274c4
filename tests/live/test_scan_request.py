"""What is rspamd told of a message and its session, and can a client put words in our mouth?

Between the real bridge and the real rspamd a tap keeps every request as it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.live import places
from tests.live.addresses import free_port
from tests.live.bridged import bridged
from tests.live.letters import DATED, LETTER, SENDER, Post, ready, submit
from tests.live.rspamd import PORT, Rspamd, verdict
from tests.live.tap import Asked, Tap
from tests.live.world import Closed, Listener, OpenSMTPD, stored

ZONE = """
$PTR 127.5.5.5 good.example
good.example A 127.5.5.5
$PTR 127.5.5.6 liar.example
liar.example A 127.5.5.5
"""
CONFIGURATION = """
[fcrdns]
nameservers = ["{dns}"]
exempt_networks = ["127.0.0.1/32"]
fail = "mark"
permerror = "mark"
[rspamd]
servers = ["{rspamd}"]
headers = { "MTA-Tag" = "mx1" }
[[profile]]
name = "submission"
match.port = 587
rspamd.settings_id = "outgoing"
[[profile]]
name = "trusted"
match.port = 2501
match.authenticated = true
rspamd.scan_authenticated = false
"""
USERS = {"alice": "secret", "b|ob": "secret", "zo\u00eb@client.example": "secret"}
ALWAYS = {"Host", "Content-Length", "User-Agent", "Flags", "MTA-Name", "MTA-Tag",
          "IP", "Helo", "From", "Queue-Id", "Rcpt"}  # fmt: skip
SOMETIMES = {"Hostname", "Deliver-To", "User", "TLS-Cipher", "TLS-Version", "Settings-ID",
             "Accept-Encoding", "Connection"}  # fmt: skip
HTTPS_OWN = ("Host", "Accept-Encoding", "Connection")


@pytest.fixture(scope="module")
def tap(rspamd: Rspamd) -> Iterator[Tap]:
    with Tap(rspamd.address, PORT) as relay:
        yield relay


def server(version: str, tap: Tap) -> OpenSMTPD:
    """6.8 can't do TLS here, so its port 587 is an open one."""
    secure = Listener.submission(), Listener.submission(name="trusted", port=2501)
    open_one = Listener("submission", 587), Listener("trusted", 2501)
    return bridged(
        version,
        CONFIGURATION,
        values={"rspamd": tap.url},
        listeners=[
            Listener(),
            Listener("six", free_port("::1"), "::1"),
            *(secure if version == "7.6" else open_one),
        ],
        users=USERS,
        zone=ZONE,
    )


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, tap: Tap) -> Iterator[Post]:
    with server(request.param, tap) as mta:
        yield ready(mta, "bridge")
        assert mta.alive
    assert not mta.leftovers


@pytest.fixture(scope="module")
def secure(tap: Tap) -> Iterator[Post]:
    """7.6, which can do TLS."""
    with server("7.6", tap) as mta:
        yield ready(mta, "bridge")
        assert mta.alive


@pytest.fixture(autouse=True)
def asked(tap: Tap) -> list[Asked]:
    """What was asked in this test."""
    tap.asked.clear()
    return tap.asked


def test_a_session_is_told_whole(post: Post, asked: list[Asked], rspamd: Rspamd) -> None:
    to = [post.recipient() for _ in range(3)]
    with post.mta.client(source="127.5.5.5", helo="Greeting.example") as client:
        assert client.begin("Al+x=y@Client.Example", [*to, "b@d@d"]).code == 354
        reply = client.message(LETTER)
    [request] = asked
    assert request.line == "POST /checkv2 HTTP/1.1"
    told = {name: request.values(name) for name in request.names if name not in HTTPS_OWN}
    assert re.fullmatch(r"opensmtpd-bridge(/\S+)?", told.pop("User-Agent")[0])
    assert told == {
        "Content-Length": [str(len(request.body))],
        "IP": ["127.5.5.5"],
        "Helo": ["Greeting.example"],
        "Hostname": ["good.example"],
        "From": ["Al+x=y@Client.Example"],
        "Queue-Id": [reply.text.split()[1]],
        "MTA-Name": ["mx.example.org"],
        "Flags": ["milter,body_block"],
        "MTA-Tag": ["mx1"],
        "Rcpt": to,
    }
    seen = rspamd.seen()[-1]
    assert (seen["from"], seen["rcpts"]) == ("Al+x=y@Client.Example", to)


@pytest.mark.parametrize(
    ("source", "hostname"),
    [
        ("127.5.5.5", ["good.example"]),
        ("127.5.5.6", []),
        ("127.5.5.7", []),
        ("127.0.0.1", []),
    ],
    ids=["confirmed", "not confirmed", "without a name", "not checked"],
)
def test_a_hostname_only_when_it_is_confirmed(
    post: Post, asked: list[Asked], source: str, hostname: list[str]
) -> None:
    post.send(source=source)
    assert asked[0].values("Hostname") == hostname
    assert asked[0].values("IP") == [source]


def test_an_ipv6_address_stands_alone(post: Post, asked: list[Asked]) -> None:
    post.send(listener="six")
    assert asked[0].values("IP") == ["::1"]


def test_an_empty_sender_is_told_too(post: Post, asked: list[Asked], rspamd: Rspamd) -> None:
    post.send(sender="")
    assert asked[0].values("From") == ["<>"]
    assert rspamd.seen()[-1]["from"] == ""


def test_each_message_has_its_own_envelope(post: Post, asked: list[Asked]) -> None:
    with post.mta.client() as client:
        client.begin("one@client.example", [first := post.recipient(), post.recipient()])
        client.message(LETTER)
        client.mail("two@client.example")
        client.rcpt("forgotten@example.org")
        client.cmd("RSET")
        client.begin("three@client.example", [second := post.recipient()])
        client.message(LETTER)
    assert [request.values("From") for request in asked] == [
        ["one@client.example"],
        ["three@client.example"],
    ]
    assert asked[0].values("Rcpt")[0] == first
    assert (asked[0].values("Deliver-To"), asked[1].values("Deliver-To")) == ([], [second])
    assert asked[1].values("Rcpt") == [second]
    assert asked[0].values("Queue-Id") != asked[1].values("Queue-Id")
    assert len(asked) == 2


def test_the_message_is_what_smtpd_will_store(post: Post, asked: list[Asked]) -> None:
    message = DATED + b"X-A: \xe9\r\n\r\n.\r\n..x\r\na\rb\r\nc\r\r\n \t\r\n\r\n\r\n"
    mail = post.send(message)
    assert asked[0].body == mail.message.replace(b"\n", b"\r\n")
    assert asked[0].body.endswith(b"\r\n\r\n.\r\n..x\r\na\rb\r\nc\r\r\n \t\r\n\r\n\r\n")


HOSTILE: dict[str, bytes] = {
    "a CR in EHLO": b"EHLO x.example\rFile: /etc/passwd",
    "a LF in EHLO": b"EHLO x.example\nFile: /etc/passwd",
    "an address in EHLO": b"EHLO [127.0.0.1]",
    "a field in EHLO": b"EHLO File:/etc/passwd",
    "a NUL in EHLO": b"EHLO x\x00y.example",
    "8-bit in EHLO": b"EHLO \xe9.example",
    "a very long EHLO": b"EHLO " + b"x" * 1500,
    "two words in EHLO": b"EHLO a.example User:admin",
    "a field in HELO": b"HELO User:admin",
    "a CR in MAIL": b"MAIL FROM:<a\rPath: /etc/passwd@client.example>",
    "a CR behind a domain": b"MAIL FROM:<a@client.example\rUser: admin>",
    "a control character in MAIL": b"MAIL FROM:<a\x01b@client.example>",
    "a comma in MAIL": b"MAIL FROM:<a,User:admin@client.example>",
    "a source route": b"MAIL FROM:<@relay.example:a@client.example>",
    "a bar and a parameter": b"MAIL FROM:<a|b@client.example> SIZE=100",
    "a CR in a parameter": b"MAIL FROM:<a@client.example> AUTH=<>\rUser: admin",
    "a quoted local part": b'MAIL FROM:<"a b"@client.example>',
    "8-bit in MAIL": b"MAIL FROM:<\xe9@client.example>",
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_client_names_a_field_of_the_request(
    post: Post, asked: list[Asked], line: bytes
) -> None:
    """What smtpd refuses is tried all the same: what is refused today may pass tomorrow."""
    with post.mta.client() as client:
        try:
            if line.startswith(b"MAIL"):
                client.ehlo()
            for command in (line, b"EHLO client.example", b"MAIL FROM:<a@client.example>"):
                client.cmd(command)
            client.rcpt(post.recipient(), "NOTIFY=NEVER ORCPT=rfc822;a\rFile:x")
            client.rcpt(post.recipient())
            if client.data().code == 354:
                assert client.message(LETTER).code == 250
        except Closed:
            pass
    for request in asked:
        assert {*request.names} >= ALWAYS
        assert {*request.names} <= ALWAYS | SOMETIMES
        assert not request.values("User")
        assert all(value.isprintable() for _, value in request.fields)
    post.send()


def test_the_profile_goes_by_the_listeners_port(post: Post, asked: list[Asked]) -> None:
    if post.mta.version == "7.6":
        with submit(post.mta, "alice", "secret") as client:
            post.sent(client)
    else:
        post.send(listener="submission")
    assert asked[0].values("Settings-ID") == ["outgoing"]
    post.send()
    assert asked[1].values("Settings-ID") == []


def test_local_mail_is_judged_too(post: Post, asked: list[Asked]) -> None:
    letter = stored(LETTER)
    ham, spam, bad = (post.recipient() for _ in range(3))
    assert post.mta.sendmail(letter, [ham]).returncode == 0
    assert post.mta.sendmail(stored(verdict(score=7)) + letter, [spam]).returncode == 0
    refusal = stored(verdict(action="reject", message="not from here either"))
    refused = post.mta.sendmail(refusal + letter, [bad])
    assert refused.returncode != 0
    assert post.arrived(ham).below_received == letter
    assert post.arrived(spam).junk
    post.mta.wait_log(r"refused session=\w+ peer=unix:\S+ .*554 5.7.1 not from here either")
    assert post.found(bad) == []
    assert len(asked) == 3
    for request in asked:
        assert {*request.names} & {"IP", "Hostname", "User", "TLS-Version"} == set()
        assert request.values("Helo") == ["localhost"]
        assert request.values("From") == ["sender@client.example"]


def test_only_so_many_recipients_are_told_as_rspamd_takes(post: Post, asked: list[Asked]) -> None:
    many = [f"{number:04d}-{'x' * 60}@example.org" for number in range(1000)]
    with post.mta.client() as client:
        reply = client.deliver(SENDER, many, verdict(action="reject") + LETTER)
        assert reply.code == 554
        told = asked[0].values("Rcpt")
        assert told == many[: len(told)]
        assert 600 < len(told) < 1000
        left = len(many) - len(told)
        post.mta.wait_log(rf'rspamd-note session=\w+ note="rspamd was not told of {left} recipi')


# Who authenticated; smtpd 6.8 can't do TLS here.


@pytest.mark.parametrize("user", USERS)
def test_who_authenticated_is_told(secure: Post, asked: list[Asked], user: str) -> None:
    with submit(secure.mta, user, USERS[user]) as client:
        secure.sent(client)
        assert asked[0].values("User") == [user]
        assert asked[0].values("TLS-Version") == [client.tls]
        assert re.fullmatch(r"[A-Z0-9_-]+", asked[0].values("TLS-Cipher")[0])


def test_who_failed_to_authenticate_is_nobody(secure: Post, asked: list[Asked]) -> None:
    with secure.mta.client("submission") as client:
        for reply in (client.ehlo(), client.starttls(), client.ehlo()):
            assert reply.ok
        assert client.auth_plain("alice", "wrong").code == 535
        assert client.mail(SENDER).code == 530
    secure.send()
    assert [request.values("User") for request in asked] == [[]]


def test_authenticated_clients_can_be_left_alone(secure: Post, asked: list[Asked]) -> None:
    with submit(secure.mta, "alice", "secret", "trusted") as client:
        message = verdict(action="reject") + LETTER
        assert secure.sent(client, message).below_received == stored(message)
    assert asked == []
