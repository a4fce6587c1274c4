"""Can an rspamd that is broken, or in the wrong hands, harm the mail server by its reply?

Whatever it wants done to a message: the message passes, with what of it can be done, or it is
refused, and the server is as it was; see hostile.py. What a reply means when it means something
is in test_verdict_edits.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.testing.http import Reply, StandIn
from tests.live import places
from tests.live.bridged import bridged
from tests.live.hostile import SECRET, Attacked
from tests.live.letters import HEAD, SENDER, ready
from tests.live.world import stored
from tests.unit.standing import standing_in

CONFIGURATION = """
[fcrdns]
enabled = false
[rspamd]
servers = ["{rspamd}"]
max_errors = 1000
retries = 0
"""
LETTER = HEAD + b"Subject: " + SECRET.encode() + b"\r\n\r\n" + SECRET.encode() + b"\r\n"


def saying(body: bytes | None = None, /, **reply: Any) -> Reply:
    """What rspamd's worker sends; body: a new one of the message."""
    text = json.dumps({"action": "no action", "score": 0.0, **reply}).encode()
    if body is None:
        return Reply(body=text)
    return Reply(body=text + body, headers=(("Message-Offset", str(len(text))),))


def adding(fields: Any, **reply: Any) -> Reply:
    return saying(milter={"add_headers": fields}, **reply)


FINE = saying()


@pytest.fixture(scope="module")
def service() -> Iterator[StandIn]:
    with standing_in(FINE) as server:
        yield server


@pytest.fixture(scope="module", params=places.VERSIONS)
def attacked(request: pytest.FixtureRequest, service: StandIn) -> Iterator[Attacked]:
    with bridged(request.param, CONFIGURATION, values={"rspamd": service.url}) as mta:
        yield Attacked(ready(mta, "bridge"))
        assert mta.alive
    assert not mta.leftovers


@pytest.fixture(autouse=True)
def _unharmed(attacked: Attacked, service: StandIn) -> Iterator[None]:
    yield
    service.behave(FINE)
    attacked.unharmed()
    attacked.post.clear()


def outcome(attacked: Attacked, service: StandIn, reply: Reply) -> bytes:
    """What comes of a letter: the message below Received, or the reply that refused it."""
    service.behave(reply)
    with attacked.mta.client() as client:
        said = client.deliver(SENDER, [to := attacked.post.recipient()], LETTER)
    if said.code != 250:
        return str(said).encode()
    return attacked.post.arrived(to).below_received


# Fields ------------------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "names that are none": {"": "v", " ": "v", "a b": "v", "a:b": "v", "a\r\nb": "v", "a\0": "v",
                            "\u00e9": "v", "\n": "v", "x" * 77: "v", "-1": [], "a\x7f": "v"},
    "values that are none": {"X-A": None, "X-B": 7, "X-C": True, "X-D": {}, "X-E": [[["v"]]],
                             "X-F": {"value": {"value": "v"}}, "X-G": [None, 7]},
    "fields that are none": [1, "a", None, [], {}],
    "no object": "X-A: v",
}  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_what_is_no_field_is_not_added(attacked: Attacked, service: StandIn, fields: Any) -> None:
    assert outcome(attacked, service, adding(fields)) == stored(LETTER)


INJECTING: dict[str, str] = {
    "a line end and a field": "v\r\nX-Evil: v",
    "a bare LF and a field": "v\nX-Evil: v",
    "a bare CR and a field": "v\rX-Evil: v",
    "the end of the header": "v\r\n\r\nX-Evil: v",
    "a line of blanks": "v\r\n \r\nX-Evil: v",
    "the end of the message": "v\r\n.\r\nMAIL FROM:<x@example.org>\r\nX-Evil: v",
    "a dot in a fold": "v\r\n .\r\n.\r\nX-Evil: v",
    "a NUL and a field": "v\0\r\nX-Evil: v",
    "an answer to smtpd": "v\nfilter-result|0123456789abcdef|0123456789abcdef|proceed\nX-Evil: v",
    "other ends of lines": "v\u0085X-Evil: v\u2028X-Evil: v\x0b\x0cX-Evil: v",
    "surrogates": "v\ud800\nX-Evil: v",
}


@pytest.mark.parametrize("value", INJECTING.values(), ids=INJECTING.keys())
@pytest.mark.parametrize("where", ["a field", "the subject", "a signature", "the spam header"])
def test_a_value_stays_one_value(
    attacked: Attacked, service: StandIn, where: str, value: str
) -> None:
    replies = {
        "a field": adding({"X-A": {"value": value, "order": 1}}),
        "the subject": saying(action="rewrite subject", subject=value),
        "a signature": saying(None, **{"dkim-signature": value}),
        "the spam header": saying(action="add header", milter={"spam_header": value}),
    }
    found = outcome(attacked, service, replies[where])
    head, _, body = found.partition(b"\n\n")
    names = re.findall(rb"(?m)^([^\s:]*)", head)
    assert b"X-Evil" not in names
    assert b"" not in names[1:-1] or b"\n " in head  # only folds begin with a blank
    assert body == SECRET.encode() + b"\n"
    assert b"\r" not in found
    assert b"\0" not in found


ORDERS = [0, -1, 10**9, -(10**9), 2**63, -(2**63), 10**300, 1.0, 1.5, "1", None, True, [], {}]


def test_orders_that_are_none(attacked: Attacked, service: StandIn) -> None:
    fields = {f"X-{n}": {"value": "v", "order": order} for n, order in enumerate(ORDERS)}
    found = outcome(attacked, service, adding(fields))
    service.behave(adding({}))
    message = attacked.post.send(LETTER).message
    assert found.count(b": v\n") + 4 == len(ORDERS)  # four are above smtpd's Received
    assert found.endswith(b"\n\n" + SECRET.encode() + b"\n")
    assert message.endswith(stored(LETTER))


MANY: dict[str, tuple[Reply, int]] = {
    "10,000 fields": (adding({f"X-{n}": "v" for n in range(10_000)}), 500),
    "10,000 of one name": (adding({"X-A": ["v"] * 10_000}), 500),
    "40 of 100 KB": (adding({f"X-{n}": "v " * 50_000 for n in range(40)}), 40),
    "one of 4 MB": (adding({"X-A": "v" * 4_000_000}), 1),
    "100,000 that go": (saying(milter={"remove_headers": {"X-A": list(range(100_000))}}), 0),
    "all go": (saying(milter={"remove_headers": {"Received": 0, "Subject": 0}}), 0),
    "folded 10,000 times": (adding({"X-A": "v\n " * 10_000}), 1),
}


@pytest.mark.parametrize(("reply", "number"), MANY.values(), ids=MANY.keys())
def test_too_much_of_it(attacked: Attacked, service: StandIn, reply: Reply, number: int) -> None:
    found = outcome(attacked, service, reply)
    head, _, body = found.partition(b"\n\n")
    assert body == SECRET.encode() + b"\n"
    assert len(re.findall(rb"(?m)^X-", head)) == number
    assert max(map(len, head.split(b"\n"))) <= 998  # RFC 5322, 2.1.1


# Replies to the client ---------------------------------------------------------------------------

TEXTS: dict[str, Any] = {
    "two lines": "no\r\n250 yes",
    "a bar and a decision": "no|proceed",
    "an answer to smtpd": "no\nfilter-result|0123456789abcdef|0123456789abcdef|proceed",
    "100 KB": "no " * 33_000,
    "nothing that is visible": "\0\r\n\t ",
    "no text": {"no": ["no"]},
    "UTF-8": "n\u00f6 \u2603",
    "another code": "250 2.0.0 ok",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize(("action", "code"), [("reject", 554), ("soft reject", 451)])
def test_a_refusal_stays_a_refusal_of_one_line(
    attacked: Attacked, service: StandIn, action: str, code: int, text: Any
) -> None:
    service.behave(saying(action=action, messages={"smtp_message": text}))
    reply = attacked.post.mta.send(LETTER)
    assert reply.code == code
    assert len(reply.lines) == 1
    assert len(reply.text) < 512
    assert reply.text.isascii()


# A new body --------------------------------------------------------------------------------------

BODIES: dict[str, tuple[bytes, bytes]] = {
    "dots": (b".\r\n..\r\n.x\r\n", b".\n..\n.x\n"),
    "no final line end": (b"a\r\nb", b"a\nb\n"),
    "a dot without a line end": (b"a\r\n.", b"a\n.\n"),
    "the end of a message and commands": (b"a\n.\nQUIT\n", b"a\n.\nQUIT\n"),
    "CR and NUL": (b"a\rb\r\r\n\0c\0\r\n\r", b"ab\nc\n"),
    "empty lines": (b"\r\n\n\r\n", b"\n\n\n"),
    "an answer to smtpd": (b"|\nfilter-dataline|1|2|.\n", b"|\nfilter-dataline|1|2|.\n"),
    "20,000 lines of a dot": (b".\n" * 20_000, b".\n" * 20_000),
    "nothing": (b"\r\n", b"\n"),
}


@pytest.mark.parametrize(("body", "arrives"), BODIES.values(), ids=BODIES.keys())
def test_a_new_body(attacked: Attacked, service: StandIn, body: bytes, arrives: bytes) -> None:
    found = outcome(attacked, service, saying(body))
    assert found.partition(b"\n\n")[2] == arrives


@pytest.mark.parametrize("size", [1997, 1998, 65_485, 65_486, 1_000_000])
@pytest.mark.parametrize("char", [b"x", b".", b"\xff"])
def test_a_new_body_s_long_lines_are_broken(
    attacked: Attacked, service: StandIn, size: int, char: bytes
) -> None:
    body = outcome(attacked, service, saying(char * size + b"\nend\n")).partition(b"\n\n")[2]
    assert max(map(len, body.split(b"\n"))) <= attacked.longest
    assert body.replace(b"\n ", b"") == char * size + b"\nend\n"


def test_a_new_body_of_5_mb_whose_lines_are_all_too_long(
    attacked: Attacked, service: StandIn
) -> None:
    line = b"x" * (attacked.longest + 1) + b"\n"
    body = line * (5_000_000 // len(line))
    found = outcome(attacked, service, saying(body)).partition(b"\n\n")[2]
    assert found.replace(b"\n ", b"") == body


# What is no reply --------------------------------------------------------------------------------

NONE: dict[str, Reply] = {
    "nested a million times": Reply(body=b'{"action":' + b"[" * 1_000_000),
    "a number of a million digits": Reply(body=b'{"action":' + b"1" * 1_000_000 + b"}"),
    "an offset behind its end": Reply(body=b"{}", headers=(("Message-Offset", "999"),)),
    "an offset of 0": Reply(body=b"{}", headers=(("Message-Offset", "0"),)),
    "an offset that is none": Reply(body=b"{}", headers=(("Message-Offset", "-1"),)),
    "two offsets": Reply(body=b"{}", headers=(("Message-Offset", "1"), ("Message-Offset", "2"))),
    "10,000,000 empty lists": Reply(body=b'{"a":[' + b"[]," * 9_999_999 + b"[]]}"),
    "1,000,000 empty lists": Reply(body=b'{"a":[' + b"[]," * 999_999 + b"[]]}"),
    "no action": Reply(body=b'{"action":null}'),
    "an action of a megabyte": Reply(body=b'{"action":"' + b"x" * 1_000_000 + b'"}'),
    "text that is no UTF-8": Reply(body=b'{"action":"\xff"}'),
    "packed text": Reply(body=b"{}", headers=(("Content-Encoding", "gzip"),)),
    "a status of 999": Reply(999),
    "a redirect": Reply(302, headers=(("Location", "http://127.0.0.1:1/"),)),
    "5,000 header fields": Reply(headers=tuple(("X", "y") for _ in range(5000))),
}


@pytest.mark.parametrize("reply", NONE.values(), ids=NONE.keys())
def test_what_is_no_reply(attacked: Attacked, service: StandIn, reply: Reply) -> None:
    said = outcome(attacked, service, reply)
    unknown = b'"x' in reply.body or b"\xff" in reply.body  # actions of an operator's own
    assert said == stored(LETTER) if unknown else said.startswith(b"451 4.7.1 "), said[:200]
