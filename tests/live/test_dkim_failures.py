"""What becomes of outgoing mail when the signing endpoint is down, slow, or lies?

A stand-in for the endpoint misbehaves once and then says that it has no key. By default the mail
is deferred; a listener of its own lets it pass, so that what is injected would be seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.testing.http import Behaviour, Reply, StandIn
from tests.dkim_messages import MESSAGES
from tests.live import places
from tests.live.letters import Post, ready
from tests.live.world import Listener, OpenSMTPD, stored
from tests.unit.standing import standing_in

LISTED = "127.9.9.9"  # whose mail is signed without a login
SERVICES = f"""
fcrdns.enabled = false
rspamd.enabled = false
dkim.enabled = true
dkim.servers = ["SIGNER"]
dkim.sign_networks = ["{LISTED}"]
dkim.timeout = "1s"
dkim.retries = 0
dkim.max_errors = 1000
[[profile]]
name = "lenient"
match.port = 2501
failure.dkim.default = "accept-header"
[[profile]]
name = "strict"
match.port = 2502
dkim.domains = ["example.org"]
"""
LISTENERS = [
    Listener(filters=("lying",)),
    Listener("lenient", 2501, filters=("lying",)),
    Listener("strict", 2502, filters=("lying",)),
    Listener("down", 2503, filters=("down",)),
]
PLAIN = MESSAGES["plain"].message
NO_KEY = Reply(204, b"")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[StandIn]:
    with standing_in(NO_KEY) as service:
        yield service


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, endpoint: StandIn) -> Iterator[Post]:
    servers = {"lying": endpoint.url, "down": "unix:/nowhere/signer"}
    with OpenSMTPD(
        request.param,
        filters={name: f"{{bridge}} -f {{dir}}/{name}.toml" for name in servers},
        files={f"{name}.toml": SERVICES.replace("SIGNER", url) for name, url in servers.items()},
        socket_filters=("down",),
        listeners=LISTENERS,
    ) as mta:
        yield ready(mta, *servers)
        assert mta.alive
    assert not mta.leftovers


def saying(*fields: Any) -> Reply:
    """An endpoint's reply: fields are (name, value), or whatever is no field."""
    members = [
        {"name": each[0], "value": each[1]} if isinstance(each, tuple) else each for each in fields
    ]
    return Reply(body=json.dumps({"fields": members}).encode())


GOOD = ("DKIM-Signature", "v=1; a=rsa-sha256; b=AAAA")
NAME, LINE, FORM = "bad-reply: .*expected DKIM-Signature", "bad-reply: .*a line", "bad-reply: "
# What the endpoint does, and what the log says of it.
LIES: dict[str, tuple[str | Behaviour, str]] = {
    "another field": (saying(("X-Evil", "x")), NAME),
    "another field below a good one": (saying(GOOD, ("From", "x@evil.example")), NAME),
    "a name with a colon": (saying(("DKIM-Signature: X-Evil", "x")), NAME),
    "a name with a blank": (saying(("DKIM-Signature ", "x")), NAME),
    "a name with a line end": (saying(("X-Evil: x\r\nDKIM-Signature", "x")), NAME),
    "an empty name": (saying(("", "x")), NAME),
    "CRLF in a value": (saying(("DKIM-Signature", "v=1\r\nX-Evil: x")), LINE),
    "LF in a value": (saying(("DKIM-Signature", "v=1\nX-Evil: x")), LINE),
    "CR in a value": (saying(("DKIM-Signature", "v=1\rX-Evil: x")), "printable"),
    "a body in a value": (saying(("DKIM-Signature", "v=1\r\n\r\nX-Evil: x")), "empty line"),
    "a line of blanks in a value": (saying(("DKIM-Signature", "v=1\r\n \r\n x")), "empty line"),
    "a NUL in a value": (saying(("DKIM-Signature", "v=1\0")), "printable"),
    "8-bit in a value": (saying(("DKIM-Signature", "v=1; \u00fc\u2028x")), "printable"),
    "a lone surrogate": (saying(("DKIM-Signature", "v=1 \udc0a")), "printable"),
    "a value that is no text": (saying(("DKIM-Signature", 1)), "without name and value"),
    "no value": (saying({"name": "DKIM-Signature"}), "without name and value"),
    "a field that is none": (saying("DKIM-Signature: x"), "without name and value"),
    "a line of 999 bytes": (saying(("DKIM-Signature", "x" * 983)), "line of over 998"),
    "a value of 1 MB": (saying(("DKIM-Signature", "x" * 2**20)), r"bad-reply: .*: \d{7} bytes"),
    "1 MB of fields": (saying(*[GOOD] * 20_000), r"bad-reply: .*: \d{7} bytes"),
    "a value of half of that": (saying(("DKIM-Signature", "x" * 2**19)), "value of 524288 bytes"),
    "half of that in fields": (saying(*[GOOD] * 7_000), "7000 fields"),
    "no fields": (saying(), "0 fields"),
    "no list": (Reply(body=b'{"fields": {"name": "a"}}'), FORM),
    "another service's JSON": ("ok", FORM),
    "deep JSON": (Reply(body=b"[" * 200_000), FORM),
    "no JSON": ("garbage", FORM),
    "nothing": ("empty", FORM),
    "no HTTP": ("not-http", ""),
    "200 MB": ("huge", ""),
    "a body that never ends": ("endless", ""),
    "a head that never ends": ("endless-head", ""),
    "half a reply": ("cut-body", ""),
    "the end of the connection": ("close", "unreachable"),
    "a reset": ("reset", "unreachable"),
    "a refusal of this message": (Reply(422, b'{"error":"two-from"}'), r"http-error.*\(two-from\)"),
    "a wrong token": ("401", "http-error: .*401"),
    "an error": ("500-json", "http-error: .*500"),
    "somewhere else": ("redirect", "http-error: .*302"),
    "silence": ("hang", "timeout"),
    "a head that is slow": ("slow-head", "timeout"),
    "a body that is slow": ("slow-body", "timeout"),
}
WITH_LIES = pytest.mark.parametrize(("lie", "why"), LIES.values(), ids=LIES.keys())


@WITH_LIES
def test_the_mail_is_deferred(
    lie: str | Behaviour, why: str, post: Post, endpoint: StandIn
) -> None:
    with post.mta.client(source=LISTED) as client:
        endpoint.behave(lie, NO_KEY)
        reply = post.refused(client, PLAIN)
        post.mta.wait_log(rf'^lying: deferred session=\w+ peer={client.local} .*by="dkim: .*{why}')
    assert (reply.code, reply.enhanced) == (451, "4.7.1")


@WITH_LIES
def test_what_passes_all_the_same_says_so_and_nothing_is_injected(
    lie: str | Behaviour, why: str, post: Post, endpoint: StandIn
) -> None:
    with post.mta.client("lenient", source=LISTED) as client:
        endpoint.behave(lie, NO_KEY)
        mail = post.sent(client, PLAIN)
    [reason] = mail.header("X-Unscanned")
    assert re.fullmatch(rb"dkim: (bad-reply|http-error|unreachable|timeout)", reason)
    head, _, body = stored(PLAIN).partition(b"\n\n")
    assert mail.below_received == head + b"\nX-Unscanned: " + reason + b"\n\n" + body
    assert mail.headers[0][0] == "Received"


def test_without_an_endpoint_mail_is_deferred(post: Post) -> None:
    with post.mta.client("down", source=LISTED) as client:
        reply = client.deliver("al@example.org", [to := post.recipient()], PLAIN)
        assert (reply.code, reply.enhanced) == (451, "4.7.1")
        post.mta.wait_log(rf'^down: deferred .*peer={client.local} .*by="dkim: unreachable')
    done = post.mta.sendmail(b"From: al@example.org\n\nHello\n", [to], "al@example.org")
    assert done.returncode != 0
    assert b"451 4.7.1 Message could not be checked" in done.stderr
    assert post.found(to) == []


def test_what_a_stranger_sends_needs_no_endpoint(post: Post) -> None:
    assert post.send(PLAIN, listener="down").below_received == stored(PLAIN)


def test_no_key_for_a_domain_that_has_to_be_signed_is_a_failure(
    post: Post, endpoint: StandIn
) -> None:
    endpoint.behave(NO_KEY)
    with post.mta.client("strict", source=LISTED) as client:
        reply = post.refused(client, PLAIN, "al@example.org")
        post.mta.wait_log(rf'deferred .*{client.local} .*by="dkim: bad-reply: no key for example')
    assert (reply.code, reply.enhanced) == (451, "4.7.1")


def test_an_endpoint_that_fails_once_is_asked_again_for_the_next_mail(
    post: Post, endpoint: StandIn
) -> None:
    with post.mta.client(source=LISTED) as client:
        endpoint.behave("500-json", saying(GOOD))
        reply = client.deliver("al@example.org", [post.recipient()], PLAIN)
        assert reply.code == 451
        mail = post.sent(client, PLAIN)
    assert mail.header("DKIM-Signature") == [GOOD[1].encode()]


def test_an_arc_set_is_put_on_top_as_it_came(post: Post, endpoint: StandIn) -> None:
    fields = [
        ("ARC-Seal", "i=1; cv=none; a=rsa-sha256;\r\n\td=example.org; b=AA\r\n AA"),
        ("ARC-Message-Signature", "i=1; a=rsa-sha256; b=AAAA"),
        ("ARC-Authentication-Results", "i=1; example.org;\r\n spf=pass"),
        GOOD,
    ]
    endpoint.behave(saying(*fields))
    mail = post.send(PLAIN, source=LISTED)
    assert mail.headers[:4] == [(name, stored(value.encode())) for name, value in fields]
    assert mail.headers[4][0] == "Received"
    assert mail.below_received == stored(PLAIN)
