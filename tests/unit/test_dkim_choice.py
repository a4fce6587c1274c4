"""Which mail is signed, and as which domain? Nobody is asked here."""

from __future__ import annotations

import ipaddress

import pytest

from bridge.services.dkim import (
    Choice,
    Signing,
    from_domain,
    signing_domain,
)
from bridge.smtpd.session import Session

MESSAGE = b"Received: by mx\nFrom: Al <al@example.org>\nTo: bob@example.net\n\nHello\n"
LAN = Signing(networks=(ipaddress.ip_network("192.0.2.0/24"),))
STRANGER = Choice()


def session(user: str = "", src: str = "198.51.100.7:4711") -> Session:
    return Session("1", src=src, dest="192.0.2.1:587", user=user)


LOCAL = session(src="unix:/var/run/smtpd.sock")
AL = session("al@example.org")


@pytest.mark.parametrize(
    ("who", "options", "expected"),
    [
        pytest.param(session(), Signing(), STRANGER, id="a stranger with a From of ours"),
        pytest.param(session(), LAN, STRANGER, id="a stranger from another network"),
        pytest.param(AL, Signing(), Choice("example.org"), id="a login"),
        pytest.param(AL, Signing(authenticated=False), STRANGER, id="a login, not wanted"),
        pytest.param(LOCAL, Signing(), Choice("example.org"), id="a local user"),
        pytest.param(LOCAL, Signing(local=False), STRANGER, id="a local user, not wanted"),
        pytest.param(
            session(src="192.0.2.7:4711"), LAN, Choice("example.org"), id="a listed network"
        ),
        pytest.param(
            session(src="[::ffff:192.0.2.7]:4711"), LAN, Choice("example.org"), id="IPv4 as IPv6"
        ),
        pytest.param(session(src="[2001:db8::7]:4711"), LAN, STRANGER, id="IPv6 is no IPv4"),
        pytest.param(session(src=""), LAN, STRANGER, id="nobody knows from where"),
    ],
)
def test_who_gets_a_signature(who: Session, options: Signing, expected: Choice) -> None:
    assert signing_domain(MESSAGE, who, options) == expected


@pytest.mark.parametrize(
    ("domains", "domain", "signed"),
    [
        pytest.param((), "example.org", True, id="none configured"),
        pytest.param(("example.net", "example.org"), "example.org", True, id="one of two"),
        pytest.param(("example.net",), "example.org", False, id="another one"),
        pytest.param(("example.org",), "mail.example.org", False, id="one below, not asked for"),
        pytest.param((".example.org",), "mail.example.org", True, id="one below, asked for"),
        pytest.param((".example.org",), "example.org", True, id="with a dot, the domain itself"),
        pytest.param((".example.org",), "badexample.org", False, id="same end, another domain"),
        pytest.param(("Example.ORG",), "eXample.org", True, id="in any case"),
    ],
)
def test_from_domains(domains: tuple[str, ...], domain: str, signed: bool) -> None:
    message = b"From: al@" + domain.encode() + b"\n\nHello\n"
    found = signing_domain(message, LOCAL, Signing(domains=domains))
    assert found.domain == (domain.lower() if signed else "")
    assert bool(found.reason) is not signed


@pytest.mark.parametrize(
    ("domain", "signing"),
    [
        pytest.param("example.org", "example.org", id="its own"),
        pytest.param("mx.example.org", "example.org", id="one below"),
        pytest.param("news.example.org", "news.example.org", id="an exception, named first"),
        pytest.param("other.example", "brand.example", id="another"),
        pytest.param("a.other.example", "a.other.example", id="one below another"),
    ],
)
def test_a_domain_may_be_signed_as_another(domain: str, signing: str) -> None:
    table = {
        "news.example.org": "news.example.org",
        ".example.org": "example.org",
        "other.example": "brand.example",
    }
    message = b"From: al@" + domain.encode() + b"\n\nHello\n"
    assert signing_domain(message, LOCAL, Signing(sign_as=table)) == Choice(signing)
    refused = signing_domain(message, LOCAL, Signing(sign_as=table, domains=("x.example",)))
    assert refused.domain == ""


@pytest.mark.parametrize(
    ("user", "domain", "alignments"),
    [
        pytest.param("al@example.org", "example.org", "strict relaxed none", id="its own"),
        pytest.param("al@EXAMPLE.org", "example.org", "strict relaxed none", id="in any case"),
        pytest.param("al@example.org", "mail.example.org", "relaxed none", id="one below"),
        pytest.param("al@mail.example.org", "example.org", "relaxed none", id="one above"),
        pytest.param("al@a.example.org", "b.example.org", "none", id="a sister"),
        pytest.param("al@example.net", "example.org", "none", id="another"),
        pytest.param("al@example.org", "badexample.org", "none", id="same end, another domain"),
        pytest.param("al", "example.org", "strict relaxed none", id="a login without a domain"),
        pytest.param(r"a\040l@example.org", "example.org", "strict relaxed none", id="vis"),
        pytest.param("a@b@example.org", "example.org", "strict relaxed none", id="two at signs"),
        pytest.param("example.org@example.net", "example.org", "none", id="a domain as login"),
    ],
)
@pytest.mark.parametrize("alignment", ["strict", "relaxed", "none"])
def test_alignment(user: str, domain: str, alignments: str, alignment: str) -> None:
    message = b"From: al@" + domain.encode() + b"\n\nHello\n"
    found = signing_domain(message, session(user), Signing(alignment=alignment))
    assert found.domain == (domain if alignment in alignments.split() else "")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param(b"Subject: x", "0 From fields", id="no From"),
        pytest.param(b"From: a@example.org\nFrom: b@example.org", "2 From fields", id="two"),
        pytest.param(b"From: a@example.org\nfrom : b@x.org", "2 From fields", id="two, disguised"),
        pytest.param(b"From:", "one plain address", id="an empty From"),
    ],
)
def test_without_one_from_there_is_no_signature(header: bytes, reason: str) -> None:
    found = signing_domain(header + b"\n\nFrom: a@example.org\n", LOCAL, Signing())
    assert found.domain == ""
    assert reason in found.reason


def test_only_the_message_below_start_counts() -> None:
    assert signing_domain(b"From: a@b.example\n" + MESSAGE, LOCAL, Signing(), start=18) == Choice(
        "example.org"
    )


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ("al@example.org", "example.org"),
        ("Al A. <al@Example.ORG>", "example.org"),
        ('"A, \\"l\\" <x@y.z>" <al@example.org>', "example.org"),
        ("al@example.org (A, l)", "example.org"),
        ("(x@y.z (nested)) al@example.org", "example.org"),
        ("Al(<x@y.z>) <al@example.org> (end)", "example.org"),
        ('"a l"@example.org', "example.org"),
        ("=?utf-8?q?a=40b=2Ec?= <al@example.org>", "example.org"),
        ("Björn <b@bücher.example>", "xn--bcher-kva.example"),
        ("a@example.org, b@example.org", ""),
        ("a@example.org,", ""),
        ("friends: a@example.org;", ""),
        ("<@x.y:al@example.org>", ""),
        ("a@x.org <al@example.org>", ""),
        ("<al@example.org> b@x.org", ""),
        ("<al@example.org", ""),
        ("al@example.org>", ""),
        ('"al <al@example.org>', ""),
        ("al (x <al@example.org>", ""),
        ("al) <al@example.org>", ""),
        ("al@x.y@example.org", ""),
        ("al@[192.0.2.1]", ""),
        ("al@example..org", ""),
        ("al@-example.org", ""),
        ("al@example.org\x00.net", ""),
        ("al@exa mple.org", ""),
        ("al@", ""),
        ("@example.org", ""),
        ("al", ""),
        ("<>", ""),
        ("", ""),
        ("\ufffd@example.org\x7f", ""),
        ("a@" + "x" * 64 + ".org", ""),
        ("a@" + "x." * 130 + "org", ""),
    ],
)
def test_the_domain_of_a_from(value: str, domain: str) -> None:
    assert from_domain(value.encode()) == domain


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"(" * 60_000 + b"al@example.org", id="parentheses"),
        pytest.param(b'"' + b'\\"' * 30_000, id="quoted pairs"),
        pytest.param(b"<" * 60_000, id="brackets"),
        pytest.param(b"a@" * 30_000 + b"example.org", id="at signs"),
        pytest.param(b" " * 60_000 + b"@", id="blanks"),
        pytest.param(b"a " * 30_000 + b"<x", id="words"),
    ],
)
def test_a_hostile_from_has_no_domain(value: bytes) -> None:
    assert from_domain(value) == ""
