"""Results as values: host names, smtpd's own check, the header field, JSON."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from bridge.services import fcrdns
from bridge.services.fcrdns import FcRdns, Result

HOST_NAMES = {
    "mail.example.org": True,
    "MAIL": True,
    "_under.a_b.example": True,
    "1-2-3.4.example": True,
    "xn--bcher-kva.example": True,
    "": False,
    ".": False,
    "a..b": False,
    ".a": False,
    "a.": False,
    "-a.example": False,
    "a-.example": False,
    "a b.example": False,
    "a|b.example": False,
    "a\n.example": False,
    "a.example\n": False,
    "a(b).example": False,
    "b\u00fccher.example": False,
    "192.0.2.1": False,
    "a" * 63 + ".example": True,
    "a" * 64 + ".example": False,
    ".".join(["a" * 49] * 5): True,
    ".".join(["a" * 50] * 5): False,
}


@pytest.mark.parametrize(("name", "expected"), HOST_NAMES.items(), ids=map(repr, HOST_NAMES))
def test_host_names(name: str, expected: bool) -> None:
    assert fcrdns.is_host_name(name) is expected


def test_usable_names_are_each_named_once_and_not_too_many() -> None:
    names = ["b.example", "a b", "a.example", "B.example", "c.example", "d.example"]
    assert [name.lower() for name in fcrdns.usable_names(names, 3)] == [
        "b.example", "a.example", "c.example"
    ]  # fmt: skip


FROM_SMTPD = {
    ("pass", "mail.example.org"): ("pass", "mail.example.org"),
    ("pass", "from|hosts"): ("pass", ""),
    ("fail", "mail.example.org"): ("fail", ""),
    ("fail", "<unknown>"): ("permerror", ""),
    ("fail", ""): ("permerror", ""),
    ("error", "<unknown>"): ("temperror", ""),
    ("error", "mail.example.org"): ("temperror", ""),
    ("", ""): ("temperror", ""),
}


@pytest.mark.parametrize(("told", "expected"), FROM_SMTPD.items(), ids=map(str, FROM_SMTPD))
def test_smtpds_own_check(told: tuple[str, str], expected: tuple[str, str]) -> None:
    found = fcrdns.from_smtpd(*told)
    assert (found.result, found.name) == expected
    assert bool(found.reason) is (found.result != "pass")


ME = "mx.example.net"
FIELDS = {
    "a pass with its name": (
        FcRdns(Result.PASS, "mail.example.org"), "192.0.2.1", ME,
        "mx.example.net; iprev=pass policy.iprev=192.0.2.1 (mail.example.org)"),
    "a pass of IPv6, which is quoted": (
        FcRdns(Result.PASS, "mail.example.org"), "2001:db8::1", ME,
        'mx.example.net; iprev=pass policy.iprev="2001:db8::1" (mail.example.org)'),
    "IPv4 mapped into IPv6": (
        FcRdns(Result.PASS, "mail.example.org"), "::ffff:192.0.2.1", ME,
        "mx.example.net; iprev=pass policy.iprev=192.0.2.1 (mail.example.org)"),
    "a fail with its reason": (
        FcRdns(Result.FAIL, reason="192.0.2.1 is not an address of a.example"), "192.0.2.1", ME,
        'mx.example.net; iprev=fail reason="192.0.2.1 is not an address of a.example"'
        " policy.iprev=192.0.2.1"),
    "a reason that needs escapes": (
        FcRdns(Result.TEMPERROR, reason='a "b" \\ c\r\nd'), "192.0.2.1", ME,
        'mx.example.net; iprev=temperror reason="a \\"b\\" \\\\ c??d" policy.iprev=192.0.2.1'),
    "a name that would end the comment": (
        FcRdns(Result.PASS, "a) ; dkim=pass (b"), "192.0.2.1", ME,
        "mx.example.net; iprev=pass policy.iprev=192.0.2.1"),
    "an authserv-id that is no token": (
        FcRdns(Result.PERMERROR), "192.0.2.1", "mx one;",
        '"mx one;"; iprev=permerror policy.iprev=192.0.2.1'),
}  # fmt: skip


@pytest.mark.parametrize(("found", "address", "me", "field"), FIELDS.values(), ids=FIELDS.keys())
def test_authentication_results(found: FcRdns, address: str, me: str, field: str) -> None:
    assert fcrdns.iprev_field(found, ip_address(address), me) == field


def test_a_result_survives_json() -> None:
    found = FcRdns(Result.FAIL, "", ("a.example", "b.example"), "no")
    assert FcRdns.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_result_stays_small_in_json() -> None:
    names = tuple(".".join([f"{n:049}"] * 4 + ["example"]) for n in range(10))
    found = FcRdns(Result.PASS, names[5], names)
    assert len(json.dumps(found.to_json())) < 1500


@pytest.mark.parametrize(
    "value",
    [
        None,
        "pass",
        {},
        {"result": "maybe", "name": "", "names": []},
        {"result": "pass", "name": None, "names": []},
        {"result": "pass", "name": "", "names": [1]},
    ],
    ids=repr,
)
def test_other_json_is_no_result(value: Any) -> None:
    assert FcRdns.from_json(value) is None
