"""Does the reference signer sign what others verify, and nothing that it should not?"""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from bridge.services.dkim import parse_reply
from tests.dkim_messages import MESSAGES, Case
from tests.signing import MAX_SIGNED, NOW, Made, Rules, Unsignable, relaxed, tags


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize("number", [0, 1], ids=["RSA", "Ed25519"])
@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES.keys())
def test_dkimpy_verifies(case: Case, number: int, made: Made) -> None:
    assert made.verify(case.signed(made.sign(case.message)[number]))


@pytest.mark.parametrize("number", [0, 1], ids=["RSA", "Ed25519"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"Hello", b"hello", id="of the body"),
        pytest.param(b"Bob\r\n", b"Bob\r\n.\r\n", id="appended to the body"),
        pytest.param(b"A test", b"A Test", id="of the subject"),
        pytest.param(b"Al <", b"Al  B <", id="of the From"),
        pytest.param(b"12:00:00", b"12:00:01", id="of the date"),
        pytest.param(b"bob@", b"rob@", id="of the To"),
    ],
)
def test_a_changed_byte_fails(old: bytes, new: bytes, number: int, made: Made) -> None:
    case = MESSAGES["plain"]
    message = case.signed(made.sign(case.message)[number])
    assert made.verify(message)
    assert old in message
    assert not made.verify(message.replace(old, new))


@pytest.mark.parametrize(
    "added", ["Subject: x", "From: x@example.net", "To: x", "Cc: x", "Reply-To: x", "Date: x",
              "MIME-Version: 2", "Content-Type: text/html", "In-Reply-To: <x>"]
)  # fmt: skip
def test_an_added_field_fails(added: str, made: Made) -> None:
    case = MESSAGES["plain"]
    message = case.signed(made.sign(case.message)[0])
    assert not made.verify(added.encode() + b"\r\n" + message)


def test_what_lists_and_servers_add_does_not_matter(made: Made) -> None:
    case = MESSAGES["plain"]
    message = case.signed(made.sign(case.message)[0])
    assert made.verify(b"Received: by x\r\nList-Id: <x>\r\nSender: x\r\nX-A: b\r\n" + message)


def test_what_is_in_a_signature(made: Made) -> None:
    rsa, ed25519 = (tags(field) for field in made.sign(MESSAGES["plain"].message))
    for found, algorithm, selector in (
        (rsa, "rsa-sha256", "s1-rsa"),
        (ed25519, "ed25519-sha256", "s1-ed25519"),
    ):
        signature, hashed = found.pop("b"), found.pop("bh")
        assert base64.b64decode(signature)
        assert base64.b64decode(hashed) == hashlib.sha256(b"Hello Bob\r\n").digest()
        assert found == {
            "v": "1",
            "a": algorithm,
            "c": "relaxed/relaxed",
            "d": "example.org",
            "s": selector,
            "t": str(NOW),
            "h": "from:from:reply-to:subject:subject:date:date:message-id:message-id:to:to:cc:"
            "mime-version:content-type:content-transfer-encoding:in-reply-to:references",
        }


@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES.keys())
def test_the_bridge_takes_the_fields(case: Case, made: Made) -> None:
    fields = made.sign(case.message)
    body = json.dumps({"fields": [{"name": n, "value": v} for n, v in fields]}).encode()
    taken = parse_reply(200, {}, body)
    assert [(x.name, x.value.replace("\n", "\r\n")) for x in taken] == fields


def test_the_list_of_fields_can_be_another(made: Made) -> None:
    rules = Rules(oversign=("from",), sign=("subject", "x-a"))
    message = b"X-A: 1\r\nX-A: 2\r\n" + MESSAGES["plain"].message
    [rsa, _] = made.sign(message, rules)
    assert tags(rsa)["h"] == "from:from:subject:x-a:x-a"
    assert made.verify(Case(message).signed(rsa))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"oversign": ("to",)}, "without from", id="no From"),
        pytest.param({"sign": ("received",)}, "changes on the way", id="Received"),
        pytest.param({"sign": ("dkim-signature",)}, "changes on the way", id="a signature"),
        pytest.param({"sign": ("Subject",)}, "expected lower case", id="capitals"),
        pytest.param({"sign": ("a:b",)}, "without colon", id="a colon"),
    ],
)
def test_refuses_a_list_of_fields(changes: dict[str, tuple[str, ...]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rules(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        pytest.param(b"Subject: x", "no-from", id="no From"),
        pytest.param(b"", "no-from", id="no header"),
        pytest.param(b"From: a@example.org\r\nFROM: a@example.org", "two-from", id="two From"),
        pytest.param(b"From: a@example.org\r\nFrom : a@x.org", "two-from", id="two, disguised"),
        pytest.param(b"From: a@example.net", "from-mismatch", id="another domain"),
        pytest.param(b"From: a@badexample.org", "from-mismatch", id="same end"),
        pytest.param(b"From: a@example.org.", "from-mismatch", id="a dot at the end"),
        pytest.param(b"From: a@example.org, b@x.org", "from-mismatch", id="one of two"),
        pytest.param(b"From: a@x.org <a@example.org>", "from-mismatch", id="two in one"),
        pytest.param(b'From: "<a@example.org>" <a@x.org>', "from-mismatch", id="in quotes"),
        pytest.param(b"From: a@x.org (<a@example.org>)", "from-mismatch", id="in a comment"),
        pytest.param(b"From: al", "from-mismatch", id="no domain"),
        pytest.param(b"From: " + b"(" * 60_000, "from-mismatch", id="parentheses"),
        pytest.param(
            b"From: a@example.org" + b"\r\nTo: b" * MAX_SIGNED, "too-many-fields", id="many To"
        ),
    ],
)
def test_does_not_sign(header: bytes, kind: str, made: Made) -> None:
    with pytest.raises(Unsignable) as caught:
        made.sign(header + b"\r\n\r\nHello\r\n")
    assert caught.value.kind == kind
    assert "example.net" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["a@example.org", "A <a@sub.example.org>", '"B, A" <a@Example.ORG>', "a@example.org (A)",
     "a@example.org, b@mail.example.org"],
)  # fmt: skip
def test_signs_for_the_domain_and_below(value: str, made: Made) -> None:
    assert len(made.sign(f"From: {value}\r\n\r\n".encode())) == 2


def test_signs_any_from_if_told_so(made: Made) -> None:
    assert made.sign(b"From: a@example.net\r\n\r\n", Rules(any_from=True))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b" \t\r\n\r\n", b""),
        (b"a", b"a\r\n"),
        (b"a ", b"a\r\n"),
        (b"a\r\n\r\n", b"a\r\n"),
        (b" a\t\tb  \r\n\tc\r\n", b" a b\r\n c\r\n"),
        (b"a\n\nb\n", b"a\r\n\r\nb\r\n"),
        (b"a\r\r\n\r\r\n\r\n", b"a\r\r\n\r\r\n"),
        (b"\x0c \r\n\x0b\r\n", b"\x0c\r\n\x0b\r\n"),
        (b"a\r", b"a\r\r\n"),
    ],
)
def test_the_relaxed_body(body: bytes, expected: bytes) -> None:
    assert relaxed(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b" \t" * 4_000_000 + b"x", b" x\r\n", id="blanks"),
        pytest.param(b"x" + b" " * 8_000_000, b"x\r\n", id="blanks at the end"),
        pytest.param(b"\r\n" * 4_000_000, b"", id="empty lines"),
        pytest.param(b"x" + b" \r\n" * 3_000_000, b"x\r\n", id="lines of a blank"),
        pytest.param(b"x" + b"\r" * 8_000_000, b"x" + b"\r" * 8_000_001 + b"\n", id="CR"),
    ],
)
def test_a_hostile_body_ends_in_this_life(body: bytes, expected: bytes) -> None:
    assert relaxed(body) == expected
