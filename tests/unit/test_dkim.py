"""What is the signing endpoint told, and what may it answer?"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bridge.edits import Insert, apply
from bridge.services.dkim import (
    MAX_FIELDS,
    SignatureField,
    Signer,
    on_top,
    parse_access,
    parse_health,
    parse_reply,
    request_headers,
)
from bridge.services.http import Upstreams
from bridge.services.upstream import Rules, ServiceError
from bridge.smtpd.message import join
from bridge.smtpd.session import Session, Transaction

MESSAGE = b"Received: by mx\nFrom: Al <al@example.org>\nTo: bob@example.net\n\nHello\n"


def session(user: str) -> Session:
    return Session("1", src="198.51.100.7:4711", dest="192.0.2.1:587", user=user)


AL = session("al@example.org")


# What the endpoint is told ------------------------------------------------------------------


def test_the_request() -> None:
    who = session(r"zo\M-C\M-+@example.org")
    who.transaction = Transaction("0a1b2c3d", sender="al+x@example.org")
    assert request_headers("example.org", who) == [
        ("Content-Type", "message/rfc822"),
        ("Accept", "application/json"),
        ("DKIM-Domain", "example.org"),
        ("DKIM-User", "zo%C3%AB@example.org"),
        ("DKIM-Mail-From", "al+x@example.org"),
        ("DKIM-Queue-Id", "0a1b2c3d"),
    ]


@pytest.mark.parametrize(
    ("user", "told"),
    [
        pytest.param(r"a\^M\^Jb", "a%0D%0Ab", id="line ends"),
        pytest.param("a%0Ab", "a%250Ab", id="a per cent sign"),
        pytest.param(r"a\040b", "a%20b", id="a blank"),
        pytest.param(r"\M^?", "%FF", id="a byte that is no UTF-8"),
        pytest.param("a\ud800b", "a?b", id="a surrogate that stands for no byte"),
        pytest.param("x" * 3000, "x" * 512, id="a long one is cut"),
    ],
)
def test_a_login_can_not_break_the_request(user: str, told: str) -> None:
    assert dict(request_headers("example.org", session(user)))["DKIM-User"] == told


def test_what_is_not_known_is_left_out() -> None:
    local = Session("1", src="unix:/var/run/smtpd.sock")
    assert [name for name, _ in request_headers("example.org", local)] == [
        "Content-Type",
        "Accept",
        "DKIM-Domain",
    ]


# What it may answer -------------------------------------------------------------------------


def ok(*fields: Any) -> bytes:
    return json.dumps({"fields": list(fields)}).encode()


def one(value: Any, name: Any = "DKIM-Signature") -> bytes:
    return ok({"name": name, "value": value})


def test_fields_come_in_order_with_lf_folds() -> None:
    body = ok(
        {"name": "dkim-signature", "value": "v=1;\r\n b=x;\r\n\tc"},
        {"name": "ARC-Seal", "value": " i=1;\n a=b \r\n", "more": 1},
    )
    assert parse_reply(200, {}, body) == (
        SignatureField("DKIM-Signature", "v=1;\n b=x;\n\tc"),
        SignatureField("ARC-Seal", "i=1;\n a=b"),
    )


def test_no_key_is_no_field() -> None:
    assert parse_reply(204, {}, b"") == ()


FITS = "x" * (998 - len("DKIM-Signature: "))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(one(FITS), id="a line of 998"),
        pytest.param(one("\r\n ".join(["v=1", *["x" * 997] * 60])), id="nearly 64 KiB"),
        pytest.param(ok(*[{"name": "DKIM-Signature", "value": "x"}] * MAX_FIELDS), id="ten"),
    ],
)
def test_takes_what_just_fits(body: bytes) -> None:
    assert parse_reply(200, {}, body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "no JSON", id="nothing"),
        pytest.param(b"<html>", "no JSON", id="a web page"),
        pytest.param(b"\xff", "no JSON", id="no UTF-8"),
        pytest.param(b"[" * 100_000, "no JSON", id="deep nesting"),
        pytest.param(b"[]", "no list", id="a list"),
        pytest.param(b'{"fields": {}}', "no list", id="fields is no list"),
        pytest.param(b'{"fields": []}', "0 fields", id="an empty list"),
        pytest.param(
            ok(*[{"name": "DKIM-Signature", "value": "x"}] * 11), "11 fields", id="too many fields"
        ),
        pytest.param(ok("DKIM-Signature: x"), "without name and value", id="a text as field"),
        pytest.param(one(1), "without name and value", id="a number as value"),
        pytest.param(one(None), "without name and value", id="null as value"),
        pytest.param(one("x", None), "without name and value", id="null as name"),
        pytest.param(one("x", "Subject"), "field 'Subject', expected", id="another field"),
        pytest.param(one("x", "DKIM-Signature:"), "expected", id="a name with a colon"),
        pytest.param(one("x", "DKIM-Signature\r\nSubject"), "expected", id="a name with a line"),
        pytest.param(one("x", " DKIM-Signature"), "expected", id="a name with a blank"),
        pytest.param(one(""), "an empty line", id="an empty value"),
        pytest.param(one(" \r\n "), "an empty line", id="a blank value"),
        pytest.param(one("v=1\r\n\r\nbody"), "an empty line", id="an end of header"),
        pytest.param(one("v=1\n \nSubject: x"), "an empty line", id="a line of blanks"),
        pytest.param(one("v=1\r\nSubject: x"), "no continuation", id="a field by CRLF"),
        pytest.param(one("v=1\nSubject: x"), "no continuation", id="a field by LF"),
        pytest.param(one("v=1\rSubject: x"), "not printable", id="a field by CR"),
        pytest.param(one("v=1\r\r\n x"), "not printable", id="one CR too many"),
        pytest.param(one("v=1\x00"), "not printable", id="NUL"),
        pytest.param(one("v=1\x0b\x0c"), "not printable", id="other line ends"),
        pytest.param(one("v=1\x85\u2028Subject: x"), "not printable", id="Unicode line ends"),
        pytest.param(one("v=\udc80"), "not printable", id="a surrogate"),
        pytest.param(one("v=ä"), "not printable", id="no ASCII"),
        pytest.param(one(FITS + "x"), "a line of over 998", id="a long first line"),
        pytest.param(one("v=1\n " + "x" * 998), "a line of over 998", id="a long line"),
        pytest.param(one("x" * 1_000_000), "a value of 1000000 bytes", id="a value of 1 MB"),
        pytest.param(
            ok(*[{"name": "DKIM-Signature", "value": "x\n " + "\n ".join(["x" * 900] * 20)}] * 9),
            "fields of over 65536",
            id="all together too long",
        ),
    ],
)
def test_a_lying_endpoint_adds_nothing(body: bytes, why: str) -> None:
    with pytest.raises(ServiceError, match=re.escape(why)) as caught:
        parse_reply(200, {}, body)
    assert (caught.value.kind, caught.value.retry) == ("bad-reply", True)


def test_the_names_can_be_others() -> None:
    names = ("DKIM-Signature",)
    assert parse_reply(200, {}, one("x"), names)
    with pytest.raises(ServiceError, match=r"field 'ARC-Seal', expected DKIM-Signature$"):
        parse_reply(200, {}, one("x", "ARC-Seal"), names)


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        pytest.param(400, "http-error", True, id="400, perhaps the wrong server"),
        pytest.param(401, "http-error", True, id="401, another one may take our token"),
        pytest.param(404, "http-error", True, id="404, no endpoint"),
        pytest.param(413, "too-large", False, id="413, too large"),
        pytest.param(422, "http-error", False, id="422, this message can not be signed"),
        pytest.param(500, "http-error", True, id="500, an error there"),
        pytest.param(201, "http-error", True, id="201, no such answer"),
        pytest.param(302, "http-error", True, id="302, a redirect"),
    ],
)
def test_an_error_status(status: int, kind: str, retry: bool) -> None:
    body = b'{"error": "from-mismatch", "message": "x"}'
    with pytest.raises(ServiceError, match=rf"status {status} \(from-mismatch\)$") as caught:
        parse_reply(status, {}, body)
    assert (caught.value.kind, caught.value.retry) == (kind, retry)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error": 1}', b'{"error": "Al <al@example.org>"}']
)
def test_an_error_that_says_nothing_usable(body: bytes) -> None:
    with pytest.raises(ServiceError, match=r"status 500$"):
        parse_reply(500, {}, body)


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        pytest.param(200, b'{"status": "ok", "keys": 2}', "", id="well"),
        pytest.param(200, b'{"status": "stale"}', "stale; hint: the signer's log", id="stale"),
        pytest.param(503, b'{"status": "no keys"}', "no keys; hint", id="no keys"),
        pytest.param(200, b"pong", "is this a signing endpoint", id="something else"),
        pytest.param(200, b"[]", "is this a signing endpoint", id="a list"),
        pytest.param(404, b'{"status": "ok"}', "status 404", id="not found"),
    ],
)
def test_health(status: int, body: bytes, wrong: str) -> None:
    if not wrong:
        parse_health(status, {}, body)
        return
    with pytest.raises(ServiceError, match=wrong):
        parse_health(status, {}, body)


@pytest.mark.parametrize("status", [400, 415, 500])
def test_a_refusal_of_nothing_is_good(status: int) -> None:
    parse_access(status, {}, b"")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_because_of_who_asks(status: int) -> None:
    with pytest.raises(ServiceError, match=r"\(unauthorized\); hint: is the token right"):
        parse_access(status, {}, b'{"error": "unauthorized"}')


def test_on_top_keeps_the_order() -> None:
    found = on_top((SignatureField("DKIM-Signature", "a;\n b"), SignatureField("ARC-Seal", "c")))
    assert found == (Insert(0, "ARC-Seal", "c"), Insert(0, "DKIM-Signature", "a;\n b"))
    message = b"Received: x\n\nHello\n"
    assert join(message, apply(message, found)) == (
        b"DKIM-Signature: a;\n b\nARC-Seal: c\nReceived: x\n\nHello\n"
    )


# The client ---------------------------------------------------------------------------------


def ask(
    answer: Callable[[httpx.Request], httpx.Response], message: bytes, **options: Any
) -> tuple[SignatureField, ...]:
    async def go() -> tuple[SignatureField, ...]:
        upstreams = Upstreams(
            "dkim",
            ["http://127.0.0.1:8893"],
            token="secret-token",
            rules=Rules(retries=0),
            transport=lambda server: httpx.MockTransport(answer),
        )
        deadline = asyncio.get_running_loop().time() + 5
        return await Signer(upstreams, **options).sign(
            message, AL, "example.org", deadline=deadline
        )

    return asyncio.run(go())


def test_sends_the_message_as_it_will_leave() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(one("v=1")))

    assert ask(answer, b"From: a@example.org\n\n..\nx\r\n") == (
        SignatureField("DKIM-Signature", "v=1"),
    )
    [request] = seen
    assert (request.method, request.url.path) == ("POST", "/sign")
    assert request.read() == b"From: a@example.org\r\n\r\n.\r\nx\r\r\n"
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["dkim-domain"] == "example.org"


def test_a_message_over_the_limit_is_not_sent() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError("asked")

    with pytest.raises(ServiceError, match="limit 20") as caught:
        ask(answer, MESSAGE, max_size=20)
    assert (caught.value.kind, caught.value.retry) == ("too-large", False)
