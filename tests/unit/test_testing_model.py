"""The model of smtpd as authors of filters use it: versions, orders, sessions, faults."""

from __future__ import annotations

import contextlib

import pytest

from bridge.testing.client import Client
from bridge.testing.dialect import DIALECTS, dialect
from bridge.testing.outcomes import NO_REPLY, Reply, SessionHung, SmtpdDied
from bridge.testing.outgoing import relay
from bridge.testing.process import Driver
from bridge.testing.server import Server
from bridge.testing.smtpd import Smtpd
from tests.unit.crash_matrix import decided, echo, on_line, written
from tests.unit.echo_filter import EchoFilter, answer
from tests.unit.replay import TRANSCRIPTS

MESSAGE = b"Subject: test\n\nbody\n"


def begin(driver: Driver, src: str = "192.0.2.1:4711") -> Client:
    client = driver.connect(src)
    client.ehlo("client.example.net")
    client.mail("a@example.net")
    client.rcpt("b@example.org")
    return client


def said(driver: Driver) -> list[bytes]:
    assert isinstance(driver.filter, EchoFilter)
    return [line for line in driver.filter.said if line]


def first(driver: Driver, kind: bytes, name: bytes) -> bytes:
    found = (line for line in said(driver) if line.startswith(kind + b"|"))
    return next(line for line in found if line.split(b"|")[4] == name)


@pytest.mark.parametrize("version", DIALECTS)
def test_a_correct_filter_delivers_in_every_version(version: str) -> None:
    driver = Driver(SpeaksAs(version), Smtpd(version))
    assert begin(driver).data(MESSAGE).code == 250
    assert driver.delivered[0].content.endswith(MESSAGE)
    assert driver.faults == []


class SpeaksAs(EchoFilter):
    """Answers with the token first where that is the order."""

    def __init__(self, version: str) -> None:
        self.row = DIALECTS[version]
        super().__init__(self.turned)

    def turned(self, parts: list[bytes]) -> bytes | None:
        if not self.row.tokens or not self.row.token_first or parts[1] == b"0.4":
            return None
        return answer([parts[0], b"0.4", *parts[2:]])


SPELLINGS = {
    "1": {
        "link-connect": b"report|1|1700000000|smtp-in|link-connect|S|"
        b"client.example.net|pass|192.0.2.1:4711|203.0.113.1:25",
        "link-identify": b"report|1|1700000000|smtp-in|link-identify|S|client.example.net",
        "tx-mail": b"report|1|1700000000|smtp-in|tx-mail|S|M|<a@example.net>|ok",
        "connected": b"filter|1|1700000000|smtp-in|connected|S|client.example.net|192.0.2.1",
    },
    "0.4": {"tx-mail": b"report|0.4|now|smtp-in|tx-mail|S|M|a@example.net|ok"},
    "0.5": {"tx-rcpt": b"report|0.5|now|smtp-in|tx-rcpt|S|M|b@example.org|ok"},
    "0.6": {"tx-rcpt": b"report|0.6|now|smtp-in|tx-rcpt|S|M|ok|b@example.org"},
    "0.7": {
        "link-identify": b"report|0.7|now|smtp-in|link-identify|S|EHLO|client.example.net",
        "connect": b"filter|0.7|now|smtp-in|connect|S|T|client.example.net|192.0.2.1",
        "commit": b"filter|0.7|now|smtp-in|commit|S|T|",
    },
}


@pytest.mark.parametrize("version", SPELLINGS)
def test_lines_are_spelled_as_the_version_has_them(version: str) -> None:
    driver = Driver(SpeaksAs(version), Smtpd(version))
    begin(driver).data(MESSAGE)
    for event, expected in SPELLINGS[version].items():
        kind, *_ = expected.split(b"|")
        parts = first(driver, kind, event.encode()).split(b"|")
        parts[2] = parts[2] if version == "1" else b"now"
        parts[5] = b"S"
        if event.startswith("tx-"):
            parts[6] = b"M"
        elif kind == b"filter" and version != "1":
            parts[6] = b"T"
        assert b"|".join(parts) == expected


@pytest.mark.parametrize(
    ("version", "release", "keys"),
    [
        ("0.7", "", ["smtpd-version", "protocol", "smtp-session-timeout", "admd", "ready"]),
        ("0.7", "7.4.0p0", ["smtpd-version", "smtp-session-timeout", "admd", "ready"]),
        ("0.6", "6.7.1p1", ["smtpd-version", "smtp-session-timeout", "ready"]),
        ("0.4", "", ["smtpd-version", "smtp-session-timeout", "ready"]),
        ("1", "", []),
    ],
)
def test_the_handshake_is_that_of_the_release(version: str, release: str, keys: list[str]) -> None:
    lines = Smtpd(version, release=release).output().decode().split("\n")[:-1]
    assert [line.split("|")[1] for line in lines if "subsystem" not in line] == keys


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected one of 0\.7, 0\.6"):
        Smtpd("0.9")
    with pytest.raises(ValueError, match="expected like"):
        dialect("0.7", "new")


@pytest.mark.parametrize(
    ("version", "kept"), [("0.4", 1997), ("0.6", 1997), ("0.7", 60_000), ("0.5", 1997)]
)
def test_answers_are_cut_at_2047_bytes_before_0_7(version: str, kept: int) -> None:
    driver = Driver(SpeaksAs(version), Smtpd(version))
    assert begin(driver).data(b"A: b\n\n" + b"x" * 60_000).code == 250
    assert driver.delivered[0].content.endswith(b"\n\n" + b"x" * kept + b"\n")
    assert bool(driver.faults) == (kept < 60_000)


def test_smtp_out_is_fatal_before_0_5() -> None:
    registration = b"register|report|smtp-out|link-connect\n"
    driver = Driver(EchoFilter(registration=registration), Smtpd("0.4"))
    with pytest.raises(SmtpdDied, match="Invalid message direction"):
        driver.run(lambda: driver.smtpd.ready)


def test_the_report_decision_is_fatal_before_7_6() -> None:
    driver = Driver(decided("report|x.example.net"), Smtpd("0.7", release="7.5.0p0"))
    client = driver.connect()
    with pytest.raises(SmtpdDied, match="Invalid directive"):
        client.ehlo("x.example.net")


def test_protocol_1_ignores_what_is_fatal_today() -> None:
    driver = Driver(EchoFilter(registration=b"hello\nregister|bogus\nregister|ready\n"), Smtpd("1"))
    assert driver.connect().greeting.code == 220
    assert len(driver.faults) == 2


def test_a_report_comes_once_for_each_registration_a_request_only_once() -> None:
    twice = b"register|report|smtp-in|link-connect\nregister|filter|smtp-in|ehlo\n" * 2
    driver = Driver(EchoFilter(registration=twice + b"register|ready\n"))
    begin(driver)
    events = [line.split(b"|")[4] for line in said(driver) if b"smtp-in" in line.split(b"|")[3:4]]
    assert events == [b"link-connect", b"link-connect", b"ehlo"]


def test_body_lines_and_reports_come_in_either_order() -> None:
    before = set()
    for order in range(20):
        driver = Driver(EchoFilter(), Smtpd(order=order))
        assert begin(driver).data(MESSAGE).code == 250
        names = [line.split(b"|")[4] for line in said(driver) if b"config" not in line[:6]]
        before.add(names.index(b"data-line") < names.index(b"tx-data"))
        assert names.index(b"tx-begin") < names.index(b"data") < names.index(b"data-line")
        assert driver.faults == []
    assert before == {True, False}


def test_the_same_order_is_the_same_run() -> None:
    runs = []
    for _ in range(2):
        driver = Driver(EchoFilter(), Smtpd(order=3))
        for number in range(4):
            script = driver.connect_later(src=f"192.0.2.{number}:1").later
            script.ehlo("x.example.net")
            script.mail("a@example.net")
            script.rcpt("b@example.org")
            script.data(MESSAGE)
        driver.run()
        assert len(driver.delivered) == 4
        runs.append(said(driver))
    assert runs[0] == runs[1]


def test_a_session_waits_for_its_answer_and_others_go_on() -> None:
    held: list[bytes] = []

    def hold(parts: list[bytes]) -> bytes | None:
        if parts[4] == b"mail-from" and parts[7] == b"slow@example.net":
            held.append(answer(parts))
            return b""
        return None

    driver = Driver(EchoFilter(hold))
    slow, fast = driver.connect(), driver.connect()
    slow.ehlo("slow.example.net")
    outcome = slow.later.mail("slow@example.net")
    slow.later.rcpt("b@example.org")
    fast.ehlo("fast.example.net")
    assert fast.mail("a@example.net").code == 250
    assert not outcome.done
    assert slow.session
    assert driver.smtpd.open_requests == [(slow.session.id, "mail-from")]
    driver.smtpd.receive(held[0])
    driver.run()
    assert outcome.reply == Reply(("250 2.0.0 Ok",))


def test_what_is_never_answered_raises_and_names_it() -> None:
    driver = Driver(EchoFilter(lambda p: b"" if p[4] == b"data-line" else None))
    client = begin(driver)
    with pytest.raises(SessionHung, match="has not answered: data-line of"):
        client.data(MESSAGE)


def test_a_client_that_leaves_in_the_body_is_rolled_back() -> None:
    driver = Driver(EchoFilter())
    client = begin(driver)
    client.data(b"A: b\n", end=False)
    client.abort()
    driver.run(lambda: client.closed)
    names = [line.split(b"|")[4] for line in said(driver)[-3:]]
    assert names == [b"tx-rollback", b"tx-reset", b"link-disconnect"]


def test_a_client_that_leaves_before_the_commit_is_answered_is_delivered_all_the_same() -> None:
    held: list[bytes] = []

    def hold(parts: list[bytes]) -> bytes | None:
        if parts[4] == b"commit":
            held.append(answer(parts))
            return b""
        return None

    driver = Driver(EchoFilter(hold))
    client = begin(driver)
    outcome = client.data_later(MESSAGE)
    with pytest.raises(SessionHung, match="commit of"):
        driver.run(lambda: outcome.done)
    client.abort()
    assert outcome.reply == NO_REPLY
    assert not client.closed
    driver.smtpd.receive(held[0])
    driver.run(lambda: client.closed)
    assert len(driver.delivered) == 1


def test_a_local_session_is_authenticated_and_has_no_address() -> None:
    driver = Driver(EchoFilter())
    assert begin(driver, src="unix:/var/run/smtpd.sock").data(MESSAGE).code == 250
    assert first(driver, b"filter", b"connect").endswith(b"|mx.example.org|local")
    socket = b"unix:/var/run/smtpd.sock"
    assert first(driver, b"report", b"link-connect").endswith(b"|pass|%s|%s" % (socket, socket))
    assert b" with ESMTPA id " in driver.delivered[0].content


def test_tls_and_auth_are_reported_and_the_password_only_asked() -> None:
    driver = Driver(EchoFilter(), Smtpd(server=Server(users={"no body": "secret"})))
    client = driver.connect(smtps=True)
    client.ehlo("x.example.net")
    assert client.auth("no body", "wrong").code == 535
    assert client.auth("no body", "secret", method="LOGIN").code == 235
    assert first(driver, b"report", b"link-auth").endswith(rb"|fail|no\040body")
    assert b"AG5vIGJvZHkAd3Jvbmc=" in first(driver, b"filter", b"auth")
    reports = b"\n".join(line for line in said(driver) if line.startswith(b"report|"))
    assert b"AG5vIGJvZHkAd3Jvbmc=" not in reports


def test_the_server_s_own_limits_speak_for_themselves() -> None:
    server = Server(max_message_size=200, max_recipients=2, refused={"no@example.org": "550 No"})
    driver = Driver(EchoFilter(), Smtpd(server=server))
    client = begin(driver)
    assert client.rcpt("no@example.org").code == 550
    assert client.rcpt("c@example.org").code == 250
    assert client.rcpt("d@example.org").code == 451
    assert client.data(b"A: b\n\n" + b"x\n" * 200).code == 554
    assert client.mail("a@example.net").code == 250
    assert driver.delivered == []


FAULTY = {
    "nothing but the dot is echoed": (
        on_line(lambda c, p: echo(c, p) if c == b"." else b""),
        "delivered an empty message",
    ),
    "the answer is in the old order": (
        written("filter-result|T|S|proceed", "data"),
        "in the wrong order: dropped, the session hangs",
    ),
    "the message is rewritten at commit": (
        decided("rewrite|x", "commit"),
        "rewrite at commit is refused",
    ),
    "a second dot follows": (
        on_line(lambda c, p: echo(c, p) * (2 if c == b"." else 1)),
        "a line after the dot is dropped",
    ),
    "the reply is no reply": (decided("reject|no", "mail-from"), "not a reply that smtpd"),
    "the session is unknown": (
        written("filter-result|1|T|proceed\nfilter-result|S|T|proceed", "mail-from"),
        "a session that never was",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_what_smtpd_survives_is_a_fault(case: str) -> None:
    filter, reason = FAULTY[case]
    driver = Driver(filter)
    with contextlib.suppress(SessionHung):
        begin(driver).data(MESSAGE)
    assert [fault.reason for fault in driver.faults if reason in fault.reason]


def test_a_line_sent_before_the_first_was_read_is_stale() -> None:
    filter = EchoFilter()
    driver = Driver(filter)
    client = begin(driver)
    client.data(MESSAGE)
    old = first(driver, b"filter", b"data-line").split(b"|", 7)
    client.mail("a@example.net")
    client.rcpt("b@example.org")
    outcome = client.later.data(MESSAGE)
    driver.smtpd.receive(filter.receive(driver.smtpd.output()))  # DATA
    driver.smtpd.settle()  # the first lines are written, but not yet read
    driver.smtpd.receive(answer([*old[:7], b"X-Stale: yes"]))
    driver.wait(outcome)
    assert "stale" in driver.faults[0].reason
    assert driver.delivered[1].content.startswith(b"X-Stale: yes\n")


def test_a_relayed_message_is_reported_as_the_recorded_server_reported_one() -> None:
    name = "6.8.0p2-smtp-out-and-bounce"
    recorded = [
        line.split(b"|")
        for line in (TRANSCRIPTS / f"{name}.in").read_bytes().split(b"\n")
        if b"|smtp-out|" in line
    ]
    smtpd = Smtpd("0.6", server=Server(smtp_out=True))
    assert b"config|subsystem|smtp-out\n" in smtpd.output()
    smtpd.receive(b"register|report|smtp-out|*\nregister|ready\n")
    good, bad = "good@relay.example.org", "bad@relay.example.org"
    relay(smtpd, "a@example.net", [good, bad], refused={bad: "550 5.1.1 no such user"})
    lines = [line.split(b"|") for line in smtpd.output().split(b"\n")[:-1]]
    assert len(lines) == len(recorded)
    for line, expected in zip(lines, recorded, strict=True):
        if line[4].startswith(b"tx-"):
            line[6] = expected[6]
        if line[4] == b"tx-envelope":
            line[7] = expected[7]
        assert line[3:5] + line[6:] == expected[3:5] + expected[6:]
