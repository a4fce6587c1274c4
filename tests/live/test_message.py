"""Does a message arrive as it was sent, byte for byte? Through the real bridge and rspamd.

A listener of the same server that has no filter is the oracle: what smtpd stores of a message
by itself is what has to arrive through us, below the header fields that we say we add.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from tests.live import places
from tests.live.bridged import bridged
from tests.live.client import Client
from tests.live.letters import DATED, HEAD, LETTER, SENDER, Post, ready, settled
from tests.live.rspamd import GTUBE, Rspamd
from tests.live.world import Listener, eventually, stored

# 127.0.0.1 is exempt from the reverse DNS check, so nothing at all is added to its mail;
# that of 127.5.5.5 gets an Authentication-Results field.
CHECKED = "127.5.5.5"
ZONE = "$PTR 127.5.5.5 good.example\ngood.example A 127.5.5.5"
ADDED = (
    b"Authentication-Results: mx.example.org; iprev=pass policy.iprev=127.5.5.5\n (good.example)\n"
)
CONFIGURATION = """
[fcrdns]
nameservers = ["{dns}"]
exempt_networks = ["127.0.0.1/32"]
[rspamd]
servers = ["{rspamd}"]
timeout = "10s"
"""


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[Post]:
    listeners = [Listener(), Listener("plain", 2525, filters=())]
    with bridged(
        request.param,
        CONFIGURATION,
        values={"rspamd": rspamd.url},
        listeners=listeners,
        zone=ZONE,
    ) as mta:
        yield ready(mta, "bridge")
        assert mta.alive
    assert not mta.leftovers


@pytest.fixture(autouse=True)
def _swept(post: Post) -> Iterator[None]:
    yield
    post.clear()


BYTES = {
    "a plain letter": LETTER,
    "dots at the start of lines": DATED + b"\r\n.\r\n..\r\n...\r\n.x\r\n..x\r\nx.\r\n. \r\n",
    "a dot as the whole body": DATED + b"\r\n.\r\n",
    "a field whose name starts with a dot": DATED + b".x: y\r\n\r\nz\r\n",
    "8-bit bytes that are no UTF-8": DATED
    + b"X-A: \xe9\r\n\r\n"
    + bytes(range(128, 256))
    + b"\r\n",
    "UTF-8": DATED + "Subject: Größe ☃\r\n\r\nGröße ☃\r\n".encode(),
    "control characters and form feeds": DATED
    + b"\r\n\x01\x02\x07\x08\x0b\x0c\x0e\x1b\x1f\x7f\r\n\x0c\r\n\x1a\r\n",
    "empty lines, also at the end": DATED + b"\r\n\r\n\r\na\r\n\r\n\r\n\r\n",
    "a bare CR inside lines and at their ends": DATED + b"\r\na\rb\r\nc\r\r\n\r\r\n\rd\r\n.\r\r\n",
    "a bare CR in the header": DATED + b"X-A: b\rc\r\nX-D: e\r\r\n\r\nf\r\n",
    "bare LFs": DATED + b"X-A: b\n\nc\nd\r\n",
    "trailing blanks": DATED + b"X-A: b  \t\r\n\r\na \t\r\n \r\n\t\r\n  b\r\n",
    "bars and what looks like a protocol line": DATED
    + b"\r\na|b||c\r\n|\r\nfilter-result|0|0|proceed\r\nfilter|0.7|1|smtp-in|commit|1|1|\r\n",
    "folded and odd fields": DATED + b"X-A:\r\n b\r\n\tc\r\nx-a : d\r\nX-E:\r\nX-F:g\r\n\r\nh\r\n",
    "no blank line below the header": HEAD,
    "a header and an empty body": HEAD + b"\r\n",
    "a body without a header": b"\r\na\r\nb: c\r\n",
    "one line without a line end": DATED + b"\r\na",
    "nothing but smtpd's own Received": b"",
    "one empty line": b"\r\n",
    "a line of 990 and one of 1,900 bytes": DATED + b"\r\n" + b"x" * 990 + b"\r\n" + b"y" * 1900,
    "20,000 short lines": DATED + b"\r\n" + b"x\r\n\r\n" * 10_000,
    "what smtpd completes and drops": DATED + b"Bcc: x@y\r\nFrom: al\r\nTo: bo\r\n\r\na\r\n",
    "an mbox line and another message": DATED + b"\r\nFrom x\r\n>From y\r\n\r\n" + LETTER,
}


@pytest.mark.parametrize("message", BYTES.values(), ids=BYTES.keys())
def test_a_message_arrives_byte_for_byte(post: Post, message: bytes) -> None:
    plain = settled(post.send(message, listener="plain").below_received)
    assert settled(post.send(message).below_received) == plain
    checked = settled(post.send(message, source=CHECKED).below_received)
    assert checked.startswith(ADDED)
    assert checked.removeprefix(ADDED) == plain
    if DATED in message and b"Bcc" not in message and message.endswith(b"\r\n"):
        assert plain == stored(message)


def test_smtpds_received_stays_on_top_and_whole(post: Post) -> None:
    received = re.compile(
        rb"Received: from client.example \(\S+ \[127\.\d\.\d\.\d\]\)\n"
        rb"\tby mx.example.org \(OpenSMTPD\) with ESMTP id [0-9a-f]{8}\n"
        rb"\tfor <r\d+@example.org>;\n\t[^\n]+\n"
    )
    for source in (None, CHECKED):
        mail = post.send(source=source)
        found = received.match(mail.message)
        assert found, mail.message
        assert mail.message[found.end() :] == mail.below_received


BAD = {
    "a first line that is no field": b"hello\r\n\r\nworld\r\n",
    "a line in the header that is no field": DATED + b"what\r\n\r\nx\r\n",
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
def test_smtpd_refuses_what_is_no_message_as_without_us(post: Post, message: bytes) -> None:
    with post.mta.client("plain") as client:
        expected = post.refused(client, message)
    with post.mta.client(source=CHECKED) as client:
        assert post.refused(client, message) == expected


def test_an_attachment_of_10_mib(post: Post) -> None:
    lines = random.Random(1).randbytes(10 * 2**20 // 76 * 38).hex()
    body = b"\r\n".join(lines[i : i + 76].encode() for i in range(0, len(lines), 76)) + b"\r\n"
    message = HEAD + b"Content-Type: application/octet-stream\r\n\r\n" + body
    assert len(message) > 10 * 2**20
    mail = post.send(message, source=CHECKED)
    assert mail.below_received == ADDED + stored(message)


def test_the_longest_lines_that_can_go_back(post: Post) -> None:
    lines = [60_000, 65_485] if post.mta.version == "7.6" else [1_996, 1_997]
    body = b"".join(b"x" * length + b"\r\n" for length in lines)
    # A line that starts with a dot travels with one more.
    body += b"." + b"y" * (places.LONGEST[post.mta.version] - 2) + b"\r\nend\r\n"
    mail = post.send(DATED + b"\r\n" + body)
    assert mail.body == stored(body)
    assert "long-lines-broken" not in post.mta.log()


def test_two_messages_in_a_session(post: Post) -> None:
    with post.mta.client(source=CHECKED) as client:
        for body in (b"one\r\n..\r\n", b"two\r\n", b"", b"four\r\n"):
            assert post.sent(client, DATED + b"\r\n" + body).body == stored(body)
        assert client.quit().code == 221


def test_rset_between_and_within_transactions(post: Post) -> None:
    with post.mta.client() as client:
        client.ehlo()
        assert client.cmd("RSET").ok
        assert client.mail("x@client.example").ok
        assert client.rcpt(forgotten := post.recipient()).ok
        assert client.cmd("RSET").ok
        post.sent(client)
        assert client.cmd("RSET").ok
        assert post.sent(client).below_received == stored(LETTER)
    assert post.found(forgotten) == []


def test_commands_between_messages_do_no_harm(post: Post) -> None:
    with post.mta.client() as client:
        client.ehlo()
        for command in ("NOOP", "HELP", "VRFY x", "HELO again.example", "NOOP with words"):
            client.cmd(command)
            assert post.sent(client).below_received == stored(LETTER)


def test_a_message_to_100_recipients(post: Post, rspamd: Rspamd) -> None:
    recipients = [post.recipient() for _ in range(100)]
    with post.mta.client() as client:
        assert client.deliver(SENDER, recipients, LETTER).code == 250
    eventually("100 letters", lambda: len(post.mta.mails()) == 100, 30)
    mails = post.mta.mails()
    assert {mail.recipient for mail in mails} == set(recipients)
    assert {mail.below_received for mail in mails} == {stored(LETTER)}
    assert rspamd.seen()[-1]["rcpts"] == recipients


def test_recipients_that_were_refused_are_no_ones_concern(post: Post, rspamd: Rspamd) -> None:
    good = post.recipient()
    with post.mta.client() as client:
        assert client.begin(SENDER, ["b@d@d", good, "nonsense"]).code == 354
        assert client.message(LETTER).code == 250
    post.arrived(good)
    assert rspamd.seen()[-1]["rcpts"] == [good]


def test_bdat_is_not_offered(post: Post) -> None:
    with post.mta.client() as client:
        assert client.ehlo().ok
        assert not [word for word in client.extensions if word.startswith(("CHUNK", "BINARY"))]
        assert client.mail(SENDER).ok
        assert client.rcpt(post.recipient()).ok
        assert client.cmd("BDAT 3 LAST").code == 500
        assert client.cmd("RSET").ok
        post.sent(client)


def test_sessions_at_the_same_time_keep_to_themselves(post: Post) -> None:
    clients = [post.mta.client(source=CHECKED) for _ in range(10)]
    letters: list[tuple[Client, str, bytes]] = []
    for number, client in enumerate(clients):
        body = b"".join(b"%d-%d\r\n" % (number, line) for line in range(2000))
        to = post.recipient()
        assert client.begin(SENDER, [to]).code == 354
        letters.append((client, to, DATED + b"\r\n" + body))
    for at in range(0, 20_000, 1000):  # interleaved
        for client, _, letter in letters:
            client.send(letter[at : at + 1000])
    for client, _, letter in letters:
        client.send(letter[20_000:] + b".\r\n")
    for client, to, letter in letters:
        assert client.read().code == 250
        assert post.arrived(to).below_received == ADDED + stored(letter)
        client.close()


def test_a_client_that_leaves_in_the_middle_leaves_nothing(post: Post) -> None:
    client = post.mta.client()
    assert client.begin(SENDER, [to := post.recipient()]).code == 354
    client.send(LETTER + GTUBE)
    client.abort()
    assert post.send().below_received == stored(LETTER)
    assert post.found(to) == []
