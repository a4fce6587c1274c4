"""What rspamd is told of a message, and the client that asks it."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.services import zstd
from bridge.services.http import Upstreams
from bridge.services.rspamd import (
    Reply,
    Request,
    Rspamd,
    parse_ping,
    request_headers,
    unvis,
)
from bridge.services.upstream import Rules, ServiceError
from bridge.smtpd.session import Session, Transaction

OPTIONS = Request(agent="test/1")


def remote() -> Session:
    return Session(
        "7641df9771b4ed00",
        src="192.0.2.1:4711",
        dest="198.51.100.1:587",
        rdns="client.example",
        hostname="mx.example",
        helo="laptop",
        tls="TLSv1.3:TLS_AES_256_GCM_SHA384:256",
        user="alice",
        transaction=Transaction("deadbeef", "a@b.c", ["d@e.f"]),
    )


def test_all_that_is_known_is_told() -> None:
    headers, left_out = request_headers(remote(), OPTIONS, hostname="client.example")
    assert left_out == 0
    assert headers == [
        ("IP", "192.0.2.1"),
        ("Helo", "laptop"),
        ("Hostname", "client.example"),
        ("From", "a@b.c"),
        ("User", "alice"),
        ("Queue-Id", "deadbeef"),
        ("MTA-Name", "mx.example"),
        ("TLS-Cipher", "TLS_AES_256_GCM_SHA384"),
        ("TLS-Version", "TLSv1.3"),
        ("Deliver-To", "d@e.f"),
        ("Flags", "milter,body_block"),
        ("User-Agent", "test/1"),
        ("Rcpt", "d@e.f"),
    ]


def test_what_is_not_known_is_not_told() -> None:
    headers, _ = request_headers(Session("1"), OPTIONS)
    assert headers == [("Flags", "milter,body_block"), ("User-Agent", "test/1")]


def told(session: Session, name: str, options: Request = OPTIONS, hostname: str = "") -> list[str]:
    headers, _ = request_headers(session, options, hostname=hostname)
    return [value for key, value in headers if key == name]


ADDRESSES = [
    ("192.0.2.1:25", ["192.0.2.1"]),
    ("[2001:db8::1]:25", ["2001:db8::1"]),
    ("[::ffff:192.0.2.1]:25", ["192.0.2.1"]),
    ("[fe80::1%eth0]:25", ["fe80::1"]),
    ("127.0.0.1:25", ["127.0.0.1"]),
    ("unix:/var/run/smtpd.sock", []),  # 127.0.0.1 would switch signing on and checks off
    ("", []),
]


@pytest.mark.parametrize(("src", "want"), ADDRESSES)
def test_the_address_is_bare(src: str, want: list[str]) -> None:
    assert told(Session("1", src=src), "IP") == want


def test_a_local_session_has_an_address_only_if_told_so() -> None:
    local = Session("1", src="unix:/var/run/smtpd.sock")
    assert told(local, "IP", Request(local_ip="127.0.0.1")) == ["127.0.0.1"]
    assert told(remote(), "IP", Request(local_ip="127.0.0.1")) == ["192.0.2.1"]


@pytest.mark.parametrize("hostname", ["", "<unknown>", "unknown"])
def test_only_a_confirmed_name_is_told(hostname: str) -> None:
    assert told(remote(), "Hostname", hostname=hostname) == []


SENDERS = [("a@b.c", ["a@b.c"]), ("", ["<>"]), (None, [])]


@pytest.mark.parametrize(("sender", "want"), SENDERS)
def test_the_null_sender_is_told_too(sender: str | None, want: list[str]) -> None:
    session = remote()
    session.transaction = Transaction("1", sender)
    assert told(session, "From") == want


def test_each_recipient_is_told_and_a_mailbox_only_if_there_is_one() -> None:
    session = remote()
    session.transaction = Transaction("1", "", ["a@b", '"c,d"@e', "\u043f@x"])
    assert told(session, "Rcpt") == ["a@b", '"c,d"@e', "\u043f@x"]
    assert told(session, "Deliver-To") == []


def test_recipients_beyond_the_header_limit_are_counted() -> None:
    session = remote()
    session.transaction = Transaction("1", "", [f"user{i:05}@example.com" for i in range(4000)])
    headers, left_out = request_headers(session, OPTIONS)
    size = sum(len(f"{name}: {value}\r\n") for name, value in headers)
    assert 60_000 < size < 64_000
    assert sum(name == "Rcpt" for name, _ in headers) + left_out == 4000


VIS = [
    ("alice", "alice"),
    ("bo|b", "bo|b"),
    (r"no\040body", "no body"),
    (r"zo\M-C\M-+", "zo\u00eb"),
    (r"\\040", r"\040"),
    (r"a\^Ab\^?", "a\x01b\x7f"),
    (r"\M^A\M-a", "\udc81\udce1"),
    ("a\\", "a\\"),
    (r"\-x", r"\-x"),
]


@pytest.mark.parametrize(("written", "meant"), VIS)
def test_the_user_is_decoded(written: str, meant: str) -> None:
    assert unvis(written) == meant


def test_a_user_of_nothing_is_not_told() -> None:
    session = remote()
    session.user = r"\040\^A"
    assert told(session, "User") == []


def test_options_are_told() -> None:
    options = Request(
        mta_name="mx", settings_id="outgoing", log_tag=True, extra={"X-Cluster": "one"}
    )
    assert told(remote(), "MTA-Name", options) == ["mx"]
    assert told(remote(), "Settings-ID", options) == ["outgoing"]
    assert told(remote(), "Log-Tag", options) == ["7641df9771b4ed00"]
    assert told(remote(), "X-Cluster", options) == ["one"]
    assert re.fullmatch(r"opensmtpd-bridge(/\S+)?", told(remote(), "User-Agent", Request())[0])


EXTRA = ["File", "path", "Shm", "Shm-Anything", "Password", "From", "Content-Length", "X Y", ""]


@pytest.mark.parametrize("name", EXTRA)
def test_dangerous_extra_headers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can't be set"):
        Request(extra={name: "v"})


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one line"):
        Request(extra={"X-A": "a\r\nFile: /etc/passwd"})
    with pytest.raises(ValueError, match="nowhere"):
        Request(local_ip="nowhere")


hostile = st.text("a\r\n\0\x7f :\t\u041f\udcff\ud800", max_size=20)


@settings(deadline=None)
@given(hostile, hostile, hostile, hostile, hostile)
def test_no_client_ends_a_header_field(a: str, b: str, c: str, d: str, e: str) -> None:
    session = Session("1", src="192.0.2.1:1", helo=a, user=b, tls=f"v:{c}:1", hostname=e)
    session.transaction = Transaction("1", d, [e, a])
    for name, value in request_headers(session, OPTIONS, hostname=c)[0]:
        assert not re.search(r"[\x00-\x1f\x7f]", value)
        assert value == value.strip() != ""
        value.encode("utf-8", "surrogateescape")
        assert name != "File"


# The client -------------------------------------------------------------------------------

WIRE = b"Received: x\n\n..dot\nline\n"
SENT = b"Received: x\r\n\r\n.dot\r\nline\r\n"


def ask(
    message: bytes = WIRE,
    session: Session | None = None,
    *,
    status: int = 200,
    reply: bytes = b'{"action":"no action","score":1.5,"required_score":15}',
    headers: dict[str, str] | None = None,
    compress: bool = False,
    max_size: int = 1000,
) -> tuple[Reply, httpx.Request, bytes]:
    """The client's answer, and what a server saw."""
    seen: list[tuple[httpx.Request, bytes]] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request, await request.aread()))
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(reply))

    async def main() -> Reply:
        upstreams = Upstreams(
            "rspamd",
            ["http://127.0.0.1:11333"],
            rules=Rules(retries=0),
            transport=lambda server: httpx.MockTransport(answer),
        )
        client = Rspamd(upstreams, OPTIONS, compress=compress, max_size=max_size)
        deadline = asyncio.get_running_loop().time() + 30
        return await client.check(message, session or remote(), deadline=deadline)

    got = asyncio.run(main())
    return got, *seen[0]


def test_the_message_is_sent_unstuffed_with_crlf() -> None:
    reply, request, body = ask()
    assert (reply.action, reply.score, reply.required_score) == ("no action", 1.5, 15.0)
    assert body == SENT
    assert (request.method, request.url.path) == ("POST", "/checkv2")
    assert request.headers["flags"] == "milter,body_block"
    assert request.headers["user-agent"] == "test/1"
    assert "compression" not in request.headers


def test_an_empty_message_is_never_sent() -> None:
    assert ask(b"")[2] == b"\r\n"


def test_a_message_can_go_compressed() -> None:
    _, request, body = ask(compress=True)
    assert request.headers["compression"] == "zstd"
    assert zstd.decompress(body, 1000) == SENT


def test_a_rewritten_body_comes_back() -> None:
    reply, _, _ = ask(reply=b'{"action":"no action"}new', headers={"Message-Offset": "22"})
    assert reply.block == b"new"


def test_left_out_recipients_are_noted() -> None:
    session = remote()
    session.transaction = Transaction("1", "", ["x" * 500 + "@y"] * 200)
    reply, _, _ = ask(session=session)
    assert re.search(r"not told of \d+ recipients", reply.notes[0])


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ServiceError, match=f"message of {len(SENT)} bytes, limit 25") as raised:
        ask(max_size=25)
    assert (raised.value.kind, raised.value.retry) == ("too-large", False)
    ask(max_size=len(SENT))


def test_an_error_tells_where_and_what() -> None:
    with pytest.raises(ServiceError) as raised:
        ask(status=500, reply=b'{"error":"invalid command","error_domain":"protocol-error"}')
    assert raised.value.kind == "http-error"
    for word in ("rspamd", "127.0.0.1:11333", "status 500", "invalid command", "/checkv2"):
        assert word in str(raised.value)


PINGS = [
    (200, {}, b"pong\r\n", ""),
    (200, {"server": "rspamd/2.7 (milter mode)"}, b"pong\r\n", "milter port"),
    (200, {}, b"<html>", "no pong"),
    (404, {}, b"pong", "status 404"),
]


@pytest.mark.parametrize(("status", "headers", "body", "wrong"), PINGS)
def test_a_ping_knows_the_milter_port(
    status: int, headers: dict[str, str], body: bytes, wrong: str
) -> None:
    if not wrong:
        parse_ping(status, headers, body)
        return
    with pytest.raises(ServiceError, match=wrong):
        parse_ping(status, headers, body)
