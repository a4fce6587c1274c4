"""Does `complete` do what smtpd did, and does smtpd then find nothing left to do?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import edits
from bridge.completion import (
    BUFFER,
    MAX_VALUE,
    Completion,
    adds_dates,
    complete,
    complete_value,
    smtpd_version,
)
from bridge.smtpd.message import join
from bridge.smtpd.session import Session

FIXTURES = Path(__file__).parents[1] / "fixtures" / "completion"
HEADERS: list[dict[str, str]] = json.loads((FIXTURES / "headers.json").read_text())
MASQUERADE: list[dict[str, Any]] = json.loads((FIXTURES / "masquerade.json").read_text())
LISTENERS: list[dict[str, Any]] = json.loads((FIXTURES / "listeners.json").read_text())
VERSIONS = {"6.8": (6, 8), "7.6": (7, 6)}
HOST = "mx.example.org"
NOW = 1700000000.0
REST = b"Date: x\nMessage-ID: y\n\nhello\n"

# Where we stop short of what smtpd does, because it would do it again to the result, or because
# it can't be said in an edit: what smtpd made of it, and we.
DIFFERENT = {
    "a comment only, without a blank": ("To:(@mx.example.orgnobody)", "To: (nobody)"),
    "an empty comment only": ("From:(@mx.example.org)", "From: ()"),
    "a comment only behind a comma": (
        "To: bob@mx.example.org,(@mx.example.orgnobody)",
        "To: bob@mx.example.org, (nobody)",
    ),
    "a line of blanks at the end": ("To: bob@mx.example.org\n \t", "To: bob@mx.example.org"),
    "a line of blanks between": (
        "To: al@mx.example.org,\n  \n bob@mx.example.org",
        "To: al@mx.example.org,\n bob@mx.example.org",
    ),
    "a carriage return inside": (
        "To: al\rbob@mx.example.org, carol@mx.example.org",
        "To: al bob@mx.example.org, carol@mx.example.org",
    ),
}


def completed(message: bytes, version: str = "7.6", *, dates: bool = False) -> bytes:
    """The message after the edits of `complete`; both without dot-stuffing."""
    wire = edits.stuff(message)
    found = complete(
        wire, HOST, dates=dates, now=NOW, unique="0123456789abcdef", smtpd=VERSIONS[version]
    )
    assert not found.unstable
    for splice in reversed(edits.apply(wire, found.edits)):
        wire = wire[: splice.start] + splice.new + wire[splice.end :]
    return edits.unstuff(wire)


def flat(header: str) -> str:
    """Folds undone, and one blank after each colon: what an edit may change and smtpd does not."""
    return re.sub(r"(?m)^(\S+):(?=\S)", r"\1: ", re.sub(r"\n(?=[ \t])", "", header))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", HEADERS, ids=lambda case: case["name"])
def test_completes_as_smtpd_does(case: dict[str, str], version: str) -> None:
    stored = case.get(f"stored by {version}", case["stored"])
    ours = completed(case["sent"].encode("latin-1") + b"\n" + REST, version)
    assert ours.endswith(REST)
    got = ours.removesuffix(REST).decode("latin-1").removesuffix("\n")
    if case["name"] in DIFFERENT:
        assert (stored, got) == DIFFERENT[case["name"]]
    else:
        assert flat(got) == flat(stored)


def test_every_exception_is_a_recorded_case() -> None:
    assert set(DIFFERENT) <= {case["name"] for case in HEADERS}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", HEADERS, ids=lambda case: case["name"])
def test_has_nothing_left_to_complete(case: dict[str, str], version: str) -> None:
    once = completed(case["sent"].encode("latin-1") + b"\n" + REST, version)
    assert completed(once, version) == once


WORDS = [
    *'abc ,,""\\\\()<>@:;.\t',
    "\n ",
    "\n\t",
    "<bob>",
    '"x y"',
    "(c)",
    "a@b",
    "é",
    "\r",
    "\x0c",
]


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from(WORDS), max_size=16).map("".join),
    st.sampled_from(sorted(VERSIONS)),
)
def test_comes_to_rest_and_leaves_the_neighbours_alone(value: str, version: str) -> None:
    message = b"X-A: b\nTo:" + value.encode().rstrip(b"\r") + b"\nSubject: s\n\nhello\n"
    once = completed(message, version)
    assert completed(once, version) == once
    assert once.startswith(b"X-A: b\nTo:")
    assert once.endswith(b"\nSubject: s\n\nhello\n")


def test_a_complete_message_needs_no_edit() -> None:
    message = b'From: "B, Bob" <bob@example.net>\nTo: al@example.net,\n carol@example.net\n' + REST
    assert complete(message, HOST, dates=True, now=NOW, unique="x") == Completion()


def test_only_the_message_below_start_counts() -> None:
    message = b"To: bob\nFrom: a@example.net\n\nhello\n"
    assert complete(message, HOST, dates=False, now=NOW, unique="x", start=8) == Completion()


def test_a_dot_stuffed_field_is_no_recipient() -> None:
    message = b"..To: bob\n" + REST
    assert complete(message, HOST, dates=True, now=NOW, unique="x") == Completion()


def test_the_body_is_not_looked_at() -> None:
    body = REST + b"To: bob\nBcc: al\n"
    assert completed(b"To: bob\n" + body) == b"To: bob@mx.example.org\n" + body


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param("", "Date: D\nMessage-ID: M\n", id="both missing"),
        pytest.param("Date: x\n", "Date: x\nMessage-ID: M\n", id="Message-ID missing"),
        pytest.param("MESSAGE-id: y\n", "MESSAGE-id: y\nDate: D\n", id="Date missing"),
        pytest.param("date: \nMessage-Id:\n", "date: \nMessage-Id:\n", id="both there but empty"),
        pytest.param(
            "Date : x\nMessage-ID: y\n",
            "Date : x\nMessage-ID: y\nDate: D\n",
            id="a blank before the colon makes another name",
        ),
        pytest.param(
            "Resent-Date: x\n", "Resent-Date: x\nDate: D\nMessage-ID: M\n", id="Resent-Date only"
        ),
    ],
)
@pytest.mark.parametrize("body", ["\nhello\n", ""], ids=["with a body", "without a body"])
def test_adds_dates(sent: str, expected: str, body: str) -> None:
    message = f"Subject: s\n{sent}{body}".encode()
    got = completed(message, dates=True).decode()
    got = re.sub(r"(?m)^Date: \w{3}, \d\d Nov 2023 \d\d:\d\d:20 [+-]\d{4}$", "Date: D", got)
    got = got.replace("<0123456789abcdef@mx.example.org>", "M")
    assert got == f"Subject: s\n{expected}{body}"
    assert completed(message, dates=False) == message


@pytest.mark.parametrize("case", LISTENERS, ids=lambda case: str(case["listener"]))
def test_adds_dates_where_some_version_does(case: dict[str, Any]) -> None:
    did = any(case[version] for version in VERSIONS)
    # Other loopback addresses: no version seen does, but nothing is lost.
    expected = did or case["listener"].startswith("127.")
    assert adds_dates(Session("1", src="192.0.2.7:4711", dest=case["listener"])) is expected


def test_adds_dates_to_what_comes_over_the_socket() -> None:
    assert adds_dates(Session("1", src="unix:/var/run/smtpd.sock", dest="unix:/var/run/smtpd.sock"))


@pytest.mark.parametrize(
    ("said", "protocol", "expected"),
    [
        ("7.6.0-portable", (0, 7), (7, 6)),
        ("6.8.0", (0, 6), (6, 8)),
        ("7.10", (0, 8), (7, 10)),
        ("", (0, 6), (6, 8)),
        ("", (0, 7), (7, 6)),
        ("current", (0, 7), (7, 6)),
    ],
)
def test_smtpds_version(said: str, protocol: tuple[int, int], expected: tuple[int, int]) -> None:
    assert smtpd_version(Session("1", version=protocol, smtpd=said)) == expected


# Two addresses, the second one of that many bytes; seen on 6.8 and 7.6 alike.
@pytest.mark.parametrize(
    ("length", "gets_a_domain"),
    [
        pytest.param(BUFFER - len(HOST) - 3, True, id="fits with its domain"),
        pytest.param(BUFFER - len(HOST) - 2, False, id="does not fit with its domain"),
    ],
)
def test_smtpds_buffer(monkeypatch: pytest.MonkeyPatch, length: int, gets_a_domain: bool) -> None:
    monkeypatch.setattr("bridge.completion.MAX_VALUE", 2 * BUFFER)
    done = complete_value(b" al@example.net," + b"x" * length, HOST.encode())
    assert done is not None
    assert done.endswith(b"x@mx.example.org") is gets_a_domain


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b" al," * (MAX_VALUE // 10), id="longer than smtpd takes, once completed"),
        pytest.param(b" " + b"x" * (MAX_VALUE - 5), id="one word, completed just over the limit"),
    ],
)
def test_says_which_field_smtpd_would_refuse(value: bytes) -> None:
    found = complete(b"To:" + value + b"\n" + REST, HOST, dates=True, now=NOW, unique="x")
    assert found == Completion((), ("To",))


@pytest.mark.parametrize("case", MASQUERADE, ids=lambda case: case["name"])
def test_puts_the_sender_into_from_as_smtpd_would(case: dict[str, Any]) -> None:
    message = b"From:" + case["sent"].encode() + b"\n" + REST
    found = complete(message, HOST, dates=True, now=NOW, unique="x", sender="al@example.org")
    if case.get("left to smtpd"):
        assert found == Completion((), ("From",))
        return
    done = join(message, edits.apply(message, found.edits))
    assert flat(done.decode()) == flat(f"From:{case['stored']}\n" + REST.decode())


def test_says_when_there_are_more_fields_than_can_be_named() -> None:
    message = b"X: y\n" * edits.MAX_FIELDS + b"To: bob\n" + REST
    found = complete(message, HOST, dates=False, now=NOW, unique="x")
    assert found.unstable == ("header",)
