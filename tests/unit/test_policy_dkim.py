"""When does the shipped filter have a message signed, with what done to it before, and what
becomes of it?  Services are stand-ins that note what they were asked."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from bridge.completion import MAX_VALUE
from bridge.config import parse
from bridge.edits import unstuff
from bridge.handlers import JUNK_LINE, Message
from bridge.policy import Policy
from bridge.services.build import Services
from bridge.services.upstream import ServiceError
from bridge.smtpd.decisions import Proceed, Refusal
from bridge.smtpd.session import Session
from tests.unit.judging import (
    BODY,
    ENABLED,
    HAM,
    HEADER,
    LISTED,
    RECEIVED,
    SIGNED,
    SPAM,
    Answer,
    Asked,
    Stand,
    judge,
    session,
    signed,
)

# The order.


@pytest.mark.parametrize(
    ("header", "rspamd"),
    [
        pytest.param(HEADER, HAM, id="nothing to change"),
        pytest.param(HEADER, SPAM, id="marked as spam"),
        pytest.param(b"From: al\nTo: bob\nBcc: carl\n", HAM, id="completed"),
        pytest.param(b"From: al\nTo: bob\nBcc: carl\n", SPAM, id="completed and marked"),
        pytest.param(
            HEADER + b"Authentication-Results: mx.example.org; spf=pass\nX-Unscanned: no\n",
            HAM,
            id="forged fields taken off",
        ),
        pytest.param(
            HEADER, {**SPAM, "action": "rewrite subject", "subject": "x"}, id="a new subject"
        ),
    ],
)
@pytest.mark.parametrize("above", [b"", JUNK_LINE], ids=["", "behind another filter"])
def test_what_is_signed_is_what_leaves(header: bytes, rspamd: dict[str, Any], above: bytes) -> None:
    found = judge(header, rspamd=rspamd, above=above)
    assert found.services == ["rspamd", "dkim"]
    rest = unstuff(found.message).removeprefix(above + SIGNED.encode())
    assert found.message.startswith(above + SIGNED.encode())
    assert found.seen_by_signer == rest.replace(b"\n", b"\r\n")


def test_rspamd_sees_it_completed_and_without_forged_fields() -> None:
    found = judge(b"From: al\nBcc: x\nX-Unscanned: no\n")
    scanned = found.asked[0].body
    assert b"From: al@mx.example.org" in scanned
    assert b"\nDate: " in scanned
    assert b"Bcc" not in scanned
    assert b"X-Unscanned" not in scanned


def test_nothing_is_completed_for_a_stranger() -> None:
    found = judge(header := b"From: al\nBcc: x\n", who=session(user=""))
    assert found.message == RECEIVED + header + BODY
    assert found.services == ["rspamd"]


def test_the_signer_has_its_time_and_no_more_than_is_left() -> None:
    toml = ENABLED + "rspamd.enabled = false\ndkim.deadline = '7s'\n"
    for left, expected in ((1000.0, 7.0), (3.0, 3.0)):
        who = session()

        async def ask(who: Session = who, left: float = left) -> float:
            now = asyncio.get_running_loop().time()
            who.deadline = now + left
            asked: list[Asked] = []
            services: Any = Services(None, None, Stand("dkim", signed(), asked))  # type: ignore[arg-type]
            policy = Policy(parse(toml + "dkim.servers = ['http://s:1']"), services, print)
            await policy.decide(Message("1", RECEIVED + HEADER + BODY), who)
            return asked[0].deadline - now

        assert asyncio.run(ask()) == pytest.approx(expected, abs=1.0)


def test_the_signer_is_told_domain_login_sender_and_queue_id() -> None:
    headers = judge().asked[1].headers
    assert {name: value for name, value in headers.items() if name.startswith("DKIM-")} == {
        "DKIM-Domain": "example.org",
        "DKIM-User": "al@example.org",
        "DKIM-Mail-From": "al@example.org",
        "DKIM-Queue-Id": "m1",
    }


# Who gets a signature.


@pytest.mark.parametrize(
    ("who", "toml", "why"),
    [
        pytest.param(session(), ENABLED, "", id="a login"),
        pytest.param(session(user="", src="unix:/s"), ENABLED, "", id="a local user"),
        pytest.param(
            session(user="", src=LISTED),
            ENABLED + "dkim.sign_networks = ['192.0.2.0/24']",
            "",
            id="a listed network",
        ),
        pytest.param(
            session(user="eve@example.net"),
            ENABLED,
            "From domain not that of the login",
            id="a login of another domain",
        ),
        pytest.param(
            session(),
            ENABLED + "dkim.domains = ['example.net']",
            "From domain not among the configured ones",
            id="another domain configured",
        ),
    ],
)
def test_who_gets_a_signature(who: Session, toml: str, why: str) -> None:
    found = judge(toml=toml, who=who)
    assert found.not_signed == ([why] if why else [])
    assert ("dkim" in found.services) is not bool(why)
    assert found.message.startswith(SIGNED.encode()) is not bool(why)
    assert found.verdict.decision == Proceed()


@pytest.mark.parametrize("src", ["198.51.100.7:4711", LISTED], ids=["", "in no list"])
def test_a_stranger_gets_no_signature_and_no_line_in_the_log(src: str) -> None:
    found = judge(toml=ENABLED, who=session(user="", src=src))
    assert found.services == ["rspamd"]
    assert found.message == RECEIVED + HEADER + BODY
    assert found.logged == []


PROFILES = """
dkim.enabled = false
dkim.servers = ["http://s:1"]
[[profile]]
name = "submission"
match.port = 587
dkim.enabled = true
dkim.alignment = "strict"
dkim.hostname = "mail.example.org"
[[profile]]
name = "smtps"
match.port = 465
dkim.enabled = true
dkim.sign_authenticated = false
"""


@pytest.mark.parametrize(
    ("port", "asked"), [(587, True), (465, False), (25, False)], ids=["on", "not logins", "off"]
)
def test_a_profile_says_whose_mail_is_signed(port: int, asked: bool) -> None:
    toml = PROFILES.replace('dkim.servers = ["http://s:1"]\n', "")
    found = judge(toml=toml, who=session(dest=f"192.0.2.1:{port}"))
    assert ("dkim" in found.services) is asked


def test_a_profile_has_its_own_hostname_and_alignment() -> None:
    toml = PROFILES.replace('dkim.servers = ["http://s:1"]\n', "")
    found = judge(b"From: al\n", toml, who=session(user="al@mail.example.org"))
    assert found.asked[1].headers["DKIM-Domain"] == "mail.example.org"
    found = judge(b"From: al@example.org\n", toml, who=session(user="al@mail.example.org"))
    assert found.not_signed == ["From domain not that of the login"]


def test_a_domain_is_signed_as_another() -> None:
    toml = ENABLED + "dkim.sign_as = { '.example.org' = 'example.org' }"
    found = judge(b"From: root\n", toml, who=session(user="", src="unix:/s"))
    assert found.asked[1].headers["DKIM-Domain"] == "example.org"


def test_the_senders_address_is_put_into_from_where_smtpd_does_so() -> None:
    toml = ENABLED + "dkim.masquerade = true"
    found = judge(b"From: Boss <boss@example.net>\n", toml)
    assert b"From: Boss <al@example.org>\r\n" in found.seen_by_signer
    local = judge(b"From: b@example.net\n", toml, who=session(user="", src="unix:/s"))
    assert b"From: b@example.net\r\n" in local.seen_by_signer


def test_what_rspamd_signed_is_not_signed_again() -> None:
    found = judge(rspamd={**HAM, "dkim-signature": "v=1; a=rsa-sha256; b=RSPAMD"})
    assert found.services == ["rspamd"]
    assert found.message.count(b"DKIM-Signature:") == 1
    assert b"b=RSPAMD" in found.message
    assert found.not_signed == []


def test_a_signature_that_a_client_sent_does_not_count_as_ours() -> None:
    found = judge(b"DKIM-Signature: v=1; b=FORGED\n" + HEADER)
    assert found.services == ["rspamd", "dkim"]
    assert found.message.startswith(SIGNED.encode())


# What is not signed all the same.


def test_without_a_key_mail_passes_and_the_log_says_so() -> None:
    found = judge(signer=(204, None))
    assert found.verdict.decision == Proceed()
    assert found.message == RECEIVED + HEADER + BODY
    assert found.not_signed == ["no key for example.org"]


def test_without_a_key_for_a_domain_that_has_to_be_signed_mail_waits() -> None:
    found = judge(toml=ENABLED + "dkim.domains = ['example.org']", signer=(204, None))
    assert isinstance(found.verdict.decision, Refusal)
    assert found.verdict.decision.code == 451
    assert found.verdict.reason == "dkim: bad-reply: no key for example.org"


def test_a_field_that_smtpd_will_change_again_is_not_signed() -> None:
    header = HEADER + b"Cc: " + b"a,\n " * (MAX_VALUE // 8) + b"b\n"
    found = judge(header)
    assert found.services == ["rspamd"]
    assert found.verdict.decision == Proceed()
    assert found.verdict.reason == "dkim: not signed: smtpd will change Cc"
    assert found.message == RECEIVED + header + BODY


def test_a_message_that_is_refused_is_not_signed() -> None:
    found = judge(rspamd={**HAM, "action": "reject", "score": 20.0})
    assert found.services == ["rspamd"]
    assert isinstance(found.verdict.decision, Refusal)


DOWN = ServiceError("unreachable", "dkim: nobody listens")


@pytest.mark.parametrize(
    ("toml", "signer", "body", "code", "enhanced", "marked"),
    [
        pytest.param("", DOWN, BODY, 451, "4.7.1", "", id="down"),
        pytest.param("", (500, {}), BODY, 451, "4.7.1", "", id="an error"),
        pytest.param("", (422, {}), BODY, 451, "4.7.1", "", id="not this message"),
        pytest.param("", signed(("From", "x")), BODY, 451, "4.7.1", "", id="a lie"),
        pytest.param(
            "dkim.max_size = '1K'", signed(), b"\n" + b"x" * 2000, 451, "4.3.4", "", id="too large"
        ),
        pytest.param(
            "failure.dkim.default = 'accept-header'", DOWN, BODY, 0, "", "unreachable", id="marked"
        ),
        pytest.param("failure.dkim.default = 'accept'", DOWN, BODY, 0, "", "", id="accepted"),
        pytest.param(
            "failure.dkim.authenticated.unreachable = 'accept-header'",
            DOWN, BODY, 0, "", "unreachable",
            id="marked for a login",
        ),
        pytest.param(
            "failure.dkim.too_large = 'accept-header'\ndkim.max_size = '1K'",
            signed(), b"\n" + b"x" * 2000, 0, "", "too-large",
            id="too large, marked",
        ),
    ],
)  # fmt: skip
def test_the_failure_policy_decides(
    toml: str, signer: Answer, body: bytes, code: int, enhanced: str, marked: str
) -> None:
    found = judge(toml=ENABLED + toml, signer=signer, body=body)
    decision = found.verdict.decision
    if code:
        assert isinstance(decision, Refusal)
        assert (decision.code, decision.status) == (code, enhanced)
    else:
        assert decision == Proceed()
        mark = f"X-Unscanned: dkim: {marked}\n".encode() if marked else b""
        assert found.message == RECEIVED + HEADER + mark + body
    assert found.verdict.reason.startswith("dkim: ")


@pytest.mark.parametrize(
    ("signer", "noted"),
    [
        pytest.param(signed(), r"would let pass, \d edits; rspamd: no action \S+", id="signed"),
        pytest.param(DOWN, r"would let pass.*; dkim: unreachable: nobody listens", id="down"),
    ],
)
def test_without_enforcement_the_signer_is_asked_and_nothing_done(
    signer: Answer, noted: str
) -> None:
    found = judge(toml=ENABLED + "enforce = false", signer=signer)
    assert found.services == ["rspamd", "dkim"]
    assert (found.verdict.decision, found.verdict.edits) == (Proceed(), ())
    assert re.fullmatch(f"not enforced, {noted}", found.verdict.reason)
