"""Can a client harm the mail server by what it says? Through the real bridge and rspamd.

After each of these the server has to be as it was; see hostile.py.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.live import places
from tests.live.bridged import bridged
from tests.live.client import Client, Closed, Reply
from tests.live.hostile import SECRET, Attacked, broken
from tests.live.letters import HEAD, SENDER, ready
from tests.live.rspamd import Rspamd, verdict
from tests.live.world import Listener

CONFIGURATION = """
[rspamd]
servers = ["{rspamd}"]
score_header = "always"
"""
USERS = {"al|ice": SECRET, "zo\u00eb": SECRET, "b'o\"b<>": SECRET}


@pytest.fixture(scope="module", params=places.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def attacked(version: str, rspamd: Rspamd) -> Iterator[Attacked]:
    tls = version != "6.8"
    with bridged(
        version,
        CONFIGURATION,
        values={"rspamd": rspamd.url},
        listeners=[Listener(), *([Listener.submission()] if tls else [])],
        users=USERS if tls else None,
        limits=["smtp limit max-rcpt 5000"],
    ) as mta:
        yield Attacked(ready(mta, "bridge"))
        assert mta.alive
    assert not mta.leftovers


@pytest.fixture(autouse=True)
def _unharmed(attacked: Attacked) -> Iterator[None]:
    yield
    attacked.unharmed()
    attacked.post.clear()


def data(attacked: Attacked, client: Client, wire: bytes) -> tuple[Reply | None, str]:
    """DATA and exactly these bytes: the reply, None if the connection ended, and to whom."""
    to = attacked.post.recipient()
    assert client.begin(SENDER, [to]).code == 354
    with contextlib.suppress(ConnectionError, Closed):
        client.send(wire)
        return client.read(), to
    return None, to


def accepted(attacked: Attacked, wire: bytes) -> bytes:
    """DATA and these bytes, which have to be accepted: what was stored, below Received, but for
    the score that is always told."""
    with attacked.mta.client() as client:
        reply, to = data(attacked, client, wire)
        assert reply is not None
        assert reply.code == 250, reply
    mail = attacked.post.arrived(to)
    assert mail.message.count(b"\nX-Spam-Score: 0.00 / ") == 1
    assert mail.message.count(b"\nX-Spam-Status: No, score=0.00 ") == 1
    lines = mail.below_received.split(b"\n")
    return b"\n".join(line for line in lines if not line.startswith(b"X-Spam-S"))


# Long lines ----------------------------------------------------------------------------------


def in_the_body(line: bytes) -> bytes:
    return b"\r\n" + line + b"\r\nhello\r\n"


def in_the_header(line: bytes) -> bytes:
    return b"X: " + line[3:] + b"\r\nX-Next: y\r\n\r\nhello\r\n"


def at_the_end(line: bytes) -> bytes:
    return b"\r\n" + line + b"\r\n"


def six_in_a_row(line: bytes) -> bytes:
    return b"\r\n" + (line + b"\r\n") * 6 + b"hello\r\n"


def at_the_end_of_the_header(line: bytes) -> bytes:
    return b"X: " + line[3:] + b"\r\n"


SIZES = [1997, 1998, 2048, 65_485, 65_486, 65_500, 65_533]
PLACES = [in_the_body, in_the_header, at_the_end, six_in_a_row, at_the_end_of_the_header]


@pytest.mark.parametrize("place", PLACES)
def test_a_long_line_is_broken(attacked: Attacked, place: Callable[[bytes], bytes]) -> None:
    for size in SIZES:
        message = HEAD + place(SECRET.encode() * 2 + b"x" * (size - 2 * len(SECRET)))
        lines = [broken(line, attacked.longest) for line in message.split(b"\r\n")]
        assert accepted(attacked, message + b".\r\n") == b"\n".join(lines), size


@pytest.mark.parametrize("char", [b".", b" ", b"\xff", b"\r", b"|"])
def test_a_long_line_of(attacked: Attacked, char: bytes) -> None:
    """A dot at its start is one that the client doubled, a CR at its end is none of it."""
    line = char * 65_533
    with attacked.mta.client() as client:
        reply, to = data(attacked, client, HEAD + b"\r\n" + line + b"\r\n.\r\n")
        assert reply is not None
        assert reply.code == 250
    stored = attacked.post.arrived(to).body
    assert stored.count(char) >= len(line) - 1
    assert max(map(len, stored.split(b"\n"))) <= attacked.longest


def test_a_line_that_smtpd_does_not_take(attacked: Attacked) -> None:
    for size in (65_534, 65_535, 65_536, 200_000):
        with attacked.mta.client() as client:
            reply, to = data(attacked, client, HEAD + b"\r\n" + b"x" * size + b"\r\n.\r\n")
            assert reply is None or (reply.code, reply.text) == (500, "5.0.0 Line too long")
    attacked.unharmed()
    assert attacked.post.found(to) == []


# Ends of lines, dots and NULs ------------------------------------------------------------------

ENDS: dict[str, tuple[bytes, bytes]] = {
    "LF . CRLF ends it": (b"\r\nhello\n.\r\n", b"\nhello\n"),
    "CRLF . LF ends it": (b"\r\nhello\r\n.\n", b"\nhello\n"),
    "LF . LF ends it": (b"\r\nhello\n.\n", b"\nhello\n"),
    "CR . CRLF does not": (b"\r\nhello\r.\r\nx\r\n.\r\n", b"\nhello\r.\nx\n"),
    "CR . CR does not": (b"\r\nhello\r.\r\r\nx\r\n.\r\n", b"\nhello\r.\r\nx\n"),
    "CRLF . CR CRLF does not": (b"\r\nhello\r\n.\r\r\nx\r\n.\r\n", b"\nhello\n\r\nx\n"),
    "a NUL hides the rest of its line": (b"\r\nhe\0llo\r\n\0\r\na\r\n.\r\n", b"\nhe\n\na\n"),
    "a NUL behind a dot": (b"\r\na\r\n.\0b\r\n.\r\n", None),  # type: ignore[dict-item]
    "a NUL in the header": (b"X: a\0b\r\n\r\nx\r\n.\r\n", b"X: a\n\nx\n"),
    "a needless dot": (b"\r\n.x\r\n.. y\r\n. z\r\n.\r\n", b"\nx\n. y\n z\n"),
    "a field goes on behind a dot": (b"X: a\r\n. b\r\n\r\nx\r\n.\r\n", b"X: a\n b\n\nx\n"),
    "blanks after the dot": (b"\r\nx\r\n. \r\n.\t\r\n.\r\n", b"\nx\n \n\t\n"),
    "nothing but the head": (b".\r\n", b""),
}


@pytest.mark.parametrize(("wire", "stored"), ENDS.values(), ids=ENDS.keys())
def test_tricks_with_ends_of_lines(attacked: Attacked, wire: bytes, stored: bytes | None) -> None:
    if stored is not None:
        assert accepted(attacked, HEAD + wire) == HEAD.replace(b"\r\n", b"\n") + stored
        return
    # smtpd takes `.` and a NUL for the end of the message; what comes then is no message any more.
    with attacked.mta.client() as client:
        reply, _ = data(attacked, client, HEAD + wire)
        assert reply is None or reply.code in (250, 500)


@pytest.mark.parametrize("junk", [b"MAIL FROM:<x@y>\r\n", b"QUIT\r\n", b"\0", b"x" * 100_000])
def test_what_comes_with_the_final_dot(attacked: Attacked, junk: bytes) -> None:
    with attacked.mta.client() as client:
        reply, _ = data(attacked, client, HEAD + b"\r\nhello\r\n.\r\n" + junk)
        assert reply is None or reply.code in (250, 500)


# Headers -----------------------------------------------------------------------------------------

BIG: dict[str, bytes] = {
    "10,000 fields": b"".join(b"X-%d: a\r\n" % n for n in range(10_000)),
    "a field of 20,000 lines": b"X: a\r\n" + b" b\r\n" * 20_000,
    "5 MB": b"".join(b"X-%d: " % n + b"a" * 990 + b"\r\n" for n in range(5000)),
    "fields without a value": b"X:\r\n" * 5000,
    "a first line that is a fold": b" goes on our Received\r\n",
    "a field without a name": b": x\r\n",
    "a name of 1,000 characters": b"n" * 1000 + b": a\r\n",
    "bytes that are no ASCII": b"X-\xe9: \xff\xfe\r\nX\x80: a\r\n",
    "a bare CR": b"X: a\rY: b\r\n",
    "lines of blanks in a field": b"X: a\r\n \r\n\t\r\n b\r\n",
}


@pytest.mark.parametrize("fields", BIG.values(), ids=BIG.keys())
def test_a_strange_header_passes(attacked: Attacked, fields: bytes) -> None:
    with attacked.mta.client() as client:
        reply, to = data(attacked, client, fields + HEAD + b"\r\nhello\r\n.\r\n")
        assert reply is not None
        assert reply.code == 250, reply
    assert fields.replace(b"\r\n", b"\n") in attacked.post.arrived(to).message


REFUSED: dict[str, tuple[bytes, str]] = {
    "25,000 fields": (b"X: a\r\n" * 25_000, "554 5.6.0 The message has too many header fields"),
    "a line without a colon": (SECRET.encode() + b"\r\n", "550 5.7.1 "),
    "a line of a CR": (b"\r\r\n", "550 5.7.1 "),
    "a long line without a colon": (b"x" * 65_533 + b"\r\n", "550 5.7.1 "),
}


@pytest.mark.parametrize(("fields", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_header_is_refused(attacked: Attacked, fields: bytes, said: str) -> None:
    with attacked.mta.client() as client:
        reply, to = data(attacked, client, fields + HEAD + b"\r\nhello\r\n.\r\n")
        assert str(reply).startswith(said)
    assert attacked.post.found(to) == []


# Forged fields -------------------------------------------------------------------------------

OURS = [
    b"Authentication-Results: mx.example.org; dkim=pass",
    b"authentication-RESULTS: MX.Example.ORG; dkim=pass",
    b"Authentication-Results : mx.example.org; dkim=pass",
    b".Authentication-Results: mx.example.org; dkim=pass",  # the dot is the wire's
    b"Authentication-Results:\r\n mx.example.org; dkim=pass",
    b"Authentication-Results:\r\n. mx.example.org; dkim=pass",
    b"Authentication-Results:\r\n.\tmx.example.org;\r\n. dkim=pass",
    b"Authentication-Results: (a) (b)mx.example.org; dkim=pass",
    b"Authentication-Results: ((a) b) mx.example.org; dkim=pass",
    b"Authentication-Results: (a\\)) mx.example.org; dkim=pass",
    b"Authentication-Results: (\r\n ) mx.example.org; dkim=pass",
    b'Authentication-Results: "mx.example.org"; dkim=pass',
    b'Authentication-Results: "m\\x.example.org"; dkim=pass',
    b"Authentication-Results: mx.example.org 1; dkim=pass",
    b"Authentication-Results: mx.example.org/1; dkim=pass",
    b"Authentication-Results: mx.example.org(c); dkim=pass",
    b"Authentication-Results: mx.example.org.; dkim=pass",
    b"Authentication-Results: \xa0mx.example.org; dkim=pass",
    b"Authentication-Results: (" + b"a" * 3000 + b") mx.example.org; dkim=pass",
    b"X-Unscanned: nobody knows",
    b"x-unscanned:\r\n. nobody knows",
    b"X-Spam-Score: -100",
    b"X-Spam-Status: No,\r\n. score=-100",
]
THEIRS = [
    b"Authentication-Results: other.example; dkim=pass (mx.example.org)",
    b"Authentication-Results: mx.example.org.evil.example; dkim=pass",
    b"Authentication-Results: evil.mx.example.org; dkim=pass",
    b"Authentication-Results:",
    b"Old-Authentication-Results: mx.example.org; dkim=pass",
    b"X-Spam: Yes",
    b"Received: from x by mx.example.org (OpenSMTPD) with ESMTP id 1;",
]


def test_what_only_we_may_say_is_taken_off(attacked: Attacked) -> None:
    fields = b"".join(b"X-%d: a\r\n%s\r\n" % each for each in enumerate(OURS))
    left = b"".join(b"X-%d: a\n" % number for number in range(len(OURS)))
    stored = left + HEAD.replace(b"\r\n", b"\n") + b"\nhello\n"
    assert accepted(attacked, fields + HEAD + b"\r\nhello\r\n.\r\n") == stored


def test_what_anybody_may_say_stays(attacked: Attacked) -> None:
    message = b"\r\n".join(THEIRS) + b"\r\n" + HEAD + b"\r\nhello\r\n"
    assert accepted(attacked, message + b".\r\n") == message.replace(b"\r\n", b"\n")


def test_9000_forged_fields_cost_no_more_than_their_removal(attacked: Attacked) -> None:
    forged = b"Authentication-Results: mx.example.org; a=pass\r\nX: y\r\n" * 9000
    wire = forged + HEAD + b"\r\n" + b"hello\r\n" * 1000 + b".\r\n"
    assert accepted(attacked, wire).startswith(b"X: y\n" * 9000)


# The session ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", [b"", HEAD, HEAD + b"\r\n" + SECRET.encode(), HEAD + b"\r\n" + b"hello\r\n" * 20_000],
    ids=["before the first line", "in the header", "in a line", "in a long body"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_client_that_leaves_within_its_message(attacked: Attacked, part: bytes, end: str) -> None:
    clients = [attacked.mta.client() for _ in range(5)]
    to = attacked.post.recipient()
    for client in clients:
        assert client.begin(SENDER, [to]).code == 354
        client.send(part)
    for client in clients:
        getattr(client, end)()
    attacked.unharmed()
    assert attacked.post.found(to) == []


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_client_that_leaves_right_after_its_dot(attacked: Attacked, end: str) -> None:
    for _ in range(5):
        client = attacked.mta.client()
        assert client.begin(SENDER, [attacked.post.recipient()]).code == 354
        client.send(HEAD + b"\r\nhello\r\n.\r\n")
        getattr(client, end)()


NAMES = [
    "a", "-", "_", "a_b", "a-", "127.0.0.1", "[127.0.0.1]", "[IPv6:::1]", "[]", "a..b", "a|b",
    "a b", "x" * 255, "x" * 2000, "%s%n", "\u00e9", "a\rb", "a\tb", "a;b", "localhost", "\x01",
    "mx.example.org", "unknown", "<unknown>",
]  # fmt: skip


@pytest.mark.parametrize("word", ["HELO", "EHLO"])
def test_helo_names(attacked: Attacked, word: str) -> None:
    """As far as smtpd lets them pass."""
    for name in NAMES:
        with attacked.mta.client() as client, contextlib.suppress(Closed, ConnectionError):
            if client.cmd(f"{word} {name}").ok:
                client.extensions = ("",)
                attacked.post.sent(client)


def test_a_flood_of_commands(attacked: Attacked) -> None:
    with attacked.mta.client() as client:
        client.ehlo()
        for command in itertools.islice(itertools.cycle(["NOOP", "RSET", "NOOP x", "HELP"]), 2000):
            client.cmd(command)
        for _ in range(50):
            assert client.mail(SENDER).ok
            assert client.rcpt("bo@example.org").ok
            assert client.cmd("RSET").ok
        attacked.post.sent(client)


@pytest.mark.parametrize("number", [1000, pytest.param(4000, marks=pytest.mark.long)])
def test_recipients(attacked: Attacked, rspamd: Rspamd, number: int) -> None:
    told = (60 * 1024) // len(f"Rcpt: {'x' * 60}0000@example.org\r\n")
    with attacked.mta.client() as client:
        assert client.ehlo().ok
        assert client.mail(SENDER).ok
        asked = [client.rcpt(f"{'x' * 60}{n:04}@example.org") for n in range(number)]
        assert [reply for reply in asked if not reply.ok] == []
        assert client.data().code == 354
        reply = client.message(verdict(action="reject") + HEAD + b"\r\nhello\r\n")
        assert str(reply).startswith("554 5.7.1 Spam message rejected")
    # rspamd takes a limited header; the log says how many it was not told of.
    assert len(rspamd.seen()[-1]["rcpts"]) == told
    attacked.mta.wait_log(rf"rspamd was not told of {number - told} recipients")


# Passwords and users ---------------------------------------------------------------------------


def submitting(attacked: Attacked) -> Client:
    client = attacked.mta.client("submission")
    for reply in (client.ehlo(), client.starttls(), client.ehlo()):
        assert reply.ok, reply
    return client


@pytest.mark.parametrize("version", ["7.6"], indirect=True)
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("how", ["auth_plain", "auth_login"])
def test_users_with_strange_names(attacked: Attacked, rspamd: Rspamd, user: str, how: str) -> None:
    with submitting(attacked) as client:
        assert getattr(client, how)(user, SECRET + "x").code == 535
        assert getattr(client, how)(user, SECRET).code == 235
        assert client.deliver(SENDER, ["bo@example.org"], HEAD + b"\r\nhello\r\n").code == 250
    assert rspamd.seen()[-1]["request"]["User"] == user


NOBODIES = ["|", "\\", "a\nb", "a\r\nRcpt: x", "\xff\xfe", "x" * 1000, "%s", "pass|al|ice", ""]


@pytest.mark.parametrize("version", ["7.6"], indirect=True)
def test_users_who_are_none(attacked: Attacked) -> None:
    for user in NOBODIES:
        with submitting(attacked) as client:
            assert client.auth_plain(user, SECRET).code in (501, 535), user
            assert client.mail(SENDER).code == 530


NO_AUTH = ["PLAIN", "PLAIN ===", "PLAIN !", "LOGIN", "CRAM-MD5", "", "PLAIN " + "A" * 1500]


@pytest.mark.parametrize("version", ["7.6"], indirect=True)
def test_auth_that_is_none(attacked: Attacked) -> None:
    for words in NO_AUTH:
        with submitting(attacked) as client:
            reply = client.cmd(f"AUTH {words}")
            if reply.code == 334:
                reply = client.cmd(SECRET)
            assert reply.code >= 334, words
