"""Is each line of smtpd read as what it says, in each version, and each answer spelled as that
version wants it?  The tables hold what comes after the direction; the transcripts of real
servers are test_transcripts.py's.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.smtpd import events as e
from bridge.smtpd import wire
from bridge.smtpd.decisions import Decision, Disconnect, Junk, Proceed, Reject, Rewrite
from bridge.testing import dialect

S, T = "1ef1", "70ce"  # session and token
ALL = {f"0.{minor}": (0, minor) for minor in range(1, 8)}
NEWER = {"0.8": (0, 8), "0.12": (0, 12), "1.3": (1, 3)}

REPORTS: dict[str, e.Report] = {
    "link-connect|1ef1|mail.example.net|pass|192.0.2.1:4711|203.0.113.1:25": e.LinkConnect(
        S, "mail.example.net", "pass", "192.0.2.1:4711", "203.0.113.1:25"
    ),
    "link-connect|1ef1|<unknown>|fail|[2001:db8::1]:4711|[::1]:25": e.LinkConnect(
        S, "<unknown>", "fail", "[2001:db8::1]:4711", "[::1]:25"
    ),
    "link-connect|1ef1||error|192.0.2.1:4711|0.0.0.0:25": e.LinkConnect(
        S, "", "error", "192.0.2.1:4711", "0.0.0.0:25"
    ),
    "link-connect|1ef1|mx|pass|unix:/run/smtpd.sock|unix:/run/smtpd.sock": e.LinkConnect(
        S, "mx", "pass", "unix:/run/smtpd.sock", "unix:/run/smtpd.sock"
    ),
    "link-greeting|1ef1|mx.example.org": e.LinkGreeting(S, "mx.example.org"),
    "link-identify|1ef1|EHLO|client.example.net": e.LinkIdentify(S, "EHLO", "client.example.net"),
    "link-identify|1ef1|HELO|client.example.net": e.LinkIdentify(S, "HELO", "client.example.net"),
    "link-tls|1ef1|TLSv1.3:TLS_AES_256_GCM_SHA384:256": e.LinkTls(
        S, "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
    ),
    "link-auth|1ef1|pass|alice": e.LinkAuth(S, "pass", "alice"),
    "link-auth|1ef1|fail|no\\040body": e.LinkAuth(S, "fail", "no\\040body"),
    "link-auth|1ef1|pass|pipe|name|pass": e.LinkAuth(S, "pass", "pipe|name|pass"),
    "link-disconnect|1ef1": e.LinkDisconnect(S),
    "tx-reset|1ef1|5287b63d": e.TxReset(S, "5287b63d"),
    "tx-reset|1ef1": e.TxReset(S),
    "tx-begin|1ef1|5287b63d": e.TxBegin(S, "5287b63d"),
    "tx-mail|1ef1|5287b63d|ok|alice@example.net": e.TxMail(
        S, "5287b63d", "ok", "alice@example.net"
    ),
    "tx-mail|1ef1|5287b63d|ok|": e.TxMail(S, "5287b63d", "ok", ""),
    "tx-mail|1ef1|00000000|permfail|a|b@example.net": e.TxMail(
        S, "00000000", "permfail", "a|b@example.net"
    ),
    "tx-rcpt|1ef1|5287b63d|tempfail|bob@example.org": e.TxRcpt(
        S, "5287b63d", "tempfail", "bob@example.org"
    ),
    "tx-rcpt|1ef1|5287b63d|ok|a|b|@example.org": e.TxRcpt(S, "5287b63d", "ok", "a|b|@example.org"),
    "tx-envelope|1ef1|5287b63d|5287b63dbd5a6d7c": e.TxEnvelope(S, "5287b63d", "5287b63dbd5a6d7c"),
    "tx-data|1ef1|5287b63d|ok": e.TxData(S, "5287b63d", "ok"),
    "tx-commit|1ef1|5287b63d|521": e.TxCommit(S, "5287b63d", "521"),
    "tx-rollback|1ef1|5287b63d": e.TxRollback(S, "5287b63d"),
    "protocol-client|1ef1|MAIL FROM:<a|b@example.net> SIZE=1": e.ProtocolClient(
        S, "MAIL FROM:<a|b@example.net> SIZE=1"
    ),
    "protocol-client|1ef1|": e.ProtocolClient(S, ""),
    "protocol-server|1ef1|250-PIPELINING|x": e.ProtocolServer(S, "250-PIPELINING|x"),
    "filter-report|1ef1|proc|bridge|it | is": e.FilterReport(S, "proc", "bridge", "it | is"),
    "filter-response|1ef1|connected|proceed": e.FilterResponse(S, "connected", "proceed"),
    "filter-response|1ef1|helo|reject|550 a|b": e.FilterResponse(S, "helo", "reject", "550 a|b"),
    "timeout|1ef1": e.Timeout(S),
}

REQUESTS: dict[str, e.Request] = {
    "connect|1ef1|70ce|mail.example.net|192.0.2.1": e.Connect(S, "mail.example.net", "192.0.2.1"),
    "connect|1ef1|70ce||[2001:db8::1]": e.Connect(S, "", "[2001:db8::1]"),
    "connect|1ef1|70ce|a|b|local": e.Connect(S, "a|b", "local"),
    "helo|1ef1|70ce|client.example.net": e.Helo(S, "client.example.net"),
    "ehlo|1ef1|70ce|[192.0.2.1]": e.Ehlo(S, "[192.0.2.1]"),
    "starttls|1ef1|70ce|": e.StartTls(S),
    "auth|1ef1|70ce|PLAIN AGFsaWNlAHNlY3JldA==": e.Auth(S, "PLAIN AGFsaWNlAHNlY3JldA=="),
    "mail-from|1ef1|70ce|": e.MailFrom(S, ""),
    "mail-from|1ef1|70ce|a|b@example.net": e.MailFrom(S, "a|b@example.net"),
    "rcpt-to|1ef1|70ce|bob@example.org": e.RcptTo(S, "bob@example.org"),
    "data|1ef1|70ce|": e.Data(S),
    "data-line|1ef1|70ce|": e.DataLine(S, ""),
    "data-line|1ef1|70ce|.": e.DataLine(S, "."),
    "data-line|1ef1|70ce||a||b|": e.DataLine(S, "|a||b|"),
    "rset|1ef1|70ce|": e.Rset(S),
    "quit|1ef1|70ce|": e.Quit(S),
    "noop|1ef1|70ce|": e.Noop(S),
    "help|1ef1|70ce|": e.Help(S),
    "wiz|1ef1|70ce|": e.Wiz(S),
    "commit|1ef1|70ce|": e.Commit(S),
}

# How those lines read that were spelled otherwise before a version: the same events.
BEFORE: dict[str, tuple[str, str]] = {
    "link-auth|1ef1|pass|alice": ("0.7", "link-auth|1ef1|alice|pass"),
    "link-auth|1ef1|fail|no\\040body": ("0.7", "link-auth|1ef1|no\\040body|fail"),
    "link-auth|1ef1|pass|pipe|name|pass": ("0.7", "link-auth|1ef1|pipe|name|pass|pass"),
    "tx-mail|1ef1|5287b63d|ok|alice@example.net": (
        "0.6",
        "tx-mail|1ef1|5287b63d|alice@example.net|ok",
    ),
    "tx-mail|1ef1|5287b63d|ok|": ("0.6", "tx-mail|1ef1|5287b63d||ok"),
    "tx-mail|1ef1|00000000|permfail|a|b@example.net": (
        "0.6",
        "tx-mail|1ef1|00000000|a|b@example.net|permfail",
    ),
    "tx-rcpt|1ef1|5287b63d|tempfail|bob@example.org": (
        "0.6",
        "tx-rcpt|1ef1|5287b63d|bob@example.org|tempfail",
    ),
    "tx-rcpt|1ef1|5287b63d|ok|a|b|@example.org": (
        "0.6",
        "tx-rcpt|1ef1|5287b63d|a|b|@example.org|ok",
    ),
}


def spelled(tail: str, version: str) -> str:
    """A line of the tables as a version has it."""
    before, old = BEFORE.get(tail, ("0.0", tail))
    known = {**ALL, **NEWER}
    return old if known[version] < wire.parse_version(before.encode()) else tail


@pytest.mark.parametrize("direction", ["smtp-in", "smtp-out"])
@pytest.mark.parametrize("version", [*ALL, *NEWER])
@pytest.mark.parametrize("tail", REPORTS)
def test_a_report_of_each_version(tail: str, version: str, direction: str) -> None:
    line = f"report|{version}|1700000000.250000|{direction}|{spelled(tail, version)}"
    number = {**ALL, **NEWER}[version]
    head = {"time": 1700000000.25, "direction": direction, "version": number}
    assert wire.parse(line.encode()) == replace(REPORTS[tail], **head)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [*ALL, *NEWER])
@pytest.mark.parametrize("tail", REQUESTS)
def test_a_request_of_each_version(tail: str, version: str) -> None:
    line = f"filter|{version}|1700000000.250000|smtp-in|{tail}"
    number = {**ALL, **NEWER}[version]
    expected = replace(REQUESTS[tail], token=T, time=1700000000.25, version=number)
    assert wire.parse(line.encode()) == expected


def test_the_tables_have_every_event_and_every_phase() -> None:
    assert {type(event) for event in REPORTS.values()} == set(e.REPORTS.values())
    assert {type(event) for event in REQUESTS.values()} == set(e.PHASES.values())
    assert set(e.REPORTS) == set(dialect.EVENTS)
    assert set(e.PHASES) == set(dialect.PHASES)


# Protocol 1, which changed while it was 1: December 2018 and OpenBSD 6.5.
ONE: dict[str, tuple[str, e.Event]] = {
    "a connection": (
        "report|1|1544000000|smtp-in|link-connect|1ef1|mail|pass|192.0.2.1:4711|192.0.2.2:25",
        e.LinkConnect(S, "mail", "pass", "192.0.2.1:4711", "192.0.2.2:25"),
    ),
    "identify has only the name": (
        "report|1|1544000000|smtp-in|link-identify|1ef1|client.example.net",
        e.LinkIdentify(S, "", "client.example.net"),
    ),
    "identify has gained the method": (
        "report|1|1560000000.5|smtp-in|link-identify|1ef1|EHLO|client.example.net",
        e.LinkIdentify(S, "EHLO", "client.example.net"),
    ),
    "tls": (
        "report|1|1544000000|smtp-in|link-tls|1ef1|version=TLSv1.2, cipher=X, bits=256",
        e.LinkTls(S, "version=TLSv1.2, cipher=X, bits=256"),
    ),
    "the user before the result": (
        "report|1|1560000000.5|smtp-in|link-auth|1ef1|alice|pass",
        e.LinkAuth(S, "pass", "alice"),
    ),
    "a sender in angle brackets, the result last": (
        "report|1|1544000000|smtp-in|tx-mail|1ef1|5287b63d|<alice@example.net>|ok",
        e.TxMail(S, "5287b63d", "ok", "alice@example.net"),
    ),
    "the null sender": (
        "report|1|1544000000|smtp-in|tx-mail|1ef1|5287b63d|<>|ok",
        e.TxMail(S, "5287b63d", "ok", ""),
    ),
    "a recipient in angle brackets, the result last": (
        "report|1|1544000000|smtp-in|tx-rcpt|1ef1|5287b63d|<a|b@example.org>|permfail",
        e.TxRcpt(S, "5287b63d", "permfail", "a|b@example.org"),
    ),
    "link-reset, which is tx-reset today": (
        "report|1|1560000000.5|smtp-in|link-reset|1ef1|5287b63d",
        e.TxReset(S, "5287b63d"),
    ),
    "the end of a session": (
        "report|1|1544000000|smtp-in|link-disconnect|1ef1",
        e.LinkDisconnect(S),
    ),
    "the connect phase under its old name, without a token": (
        "filter|1|1544000000|smtp-in|connected|1ef1|mail.example.net|192.0.2.1",
        e.Connect(S, "mail.example.net", "192.0.2.1"),
    ),
    "a sender, without a token": (
        "filter|1|1544000000|smtp-in|mail-from|1ef1|<alice@example.net>",
        e.MailFrom(S, "alice@example.net"),
    ),
    "a body line, without a token": (
        "filter|1|1544000000|smtp-in|data-line|1ef1|a|b",
        e.DataLine(S, "a|b"),
    ),
    "an empty body line, without a token": (
        "filter|1|1544000000|smtp-in|data-line|1ef1|",
        e.DataLine(S, ""),
    ),
    "commit, without a token": ("filter|1|1544000000|smtp-in|commit|1ef1|", e.Commit(S)),
    "a body line, with a token": (
        "filter|1|1560000000.5|smtp-in|data-line|1ef1|70ce|a|b",
        e.DataLine(S, "a|b", token=T),
    ),
    "commit, with a token": (
        "filter|1|1560000000.5|smtp-in|commit|1ef1|70ce|",
        e.Commit(S, token=T),
    ),
}


@pytest.mark.parametrize(("line", "expected"), ONE.values(), ids=ONE.keys())
def test_protocol_1(line: str, expected: e.Event) -> None:
    event = wire.parse(line.encode())
    assert isinstance(event, e.Event)
    assert event.version < (0, 0)
    assert event.time in (1544000000.0, 1560000000.5)
    assert event == replace(expected, time=event.time, version=event.version)


CONFIG = {
    "config|smtpd-version|7.8.0-portable": wire.Config("smtpd-version", "7.8.0-portable"),
    "config|admd|mx.example.org": wire.Config("admd", "mx.example.org"),
    "config|subsystem|smtp-out": wire.Config("subsystem", "smtp-out"),
    "config|ready": wire.Config("ready"),
    "config|a-key-of-tomorrow|with|pipes": wire.Config("a-key-of-tomorrow", "with|pipes"),
}


@pytest.mark.parametrize("line", CONFIG)
def test_a_line_of_the_handshake(line: str) -> None:
    assert wire.parse(line.encode()) == CONFIG[line]


def test_what_is_not_utf_8_comes_back_as_it_was() -> None:
    event = wire.parse(b"filter|0.7|1.0|smtp-in|data-line|1ef1|70ce|caf\xe9 \xf0\x9f\x90\xa1\x01")
    assert isinstance(event, e.DataLine)
    assert event.line == "caf\udce9 \N{BLOWFISH}\x01"
    assert wire.raw(event.line) == b"caf\xe9 \xf0\x9f\x90\xa1\x01"


BAD = {
    "an empty line": b"",
    "no protocol at all": b"hunter2",
    "what a filter says": b"filter-result|1ef1|70ce|hunter2",
    "too few fields": b"report|0.7|1.0|hunter2",
    "no event": b"report|0.7|1.0|smtp-in",
    "an empty event": b"report|0.7|1.0|smtp-in||hunter2",
    "no session": b"report|0.7|1.0|smtp-in|link-disconnect",
    "an empty session": b"report|0.7|1.0|smtp-in|tx-begin||hunter2",
    "an event that nobody knows": b"report|0.7|1.0|smtp-in|tx-sideways|1ef1|hunter2",
    "a phase that nobody knows": b"filter|0.7|1.0|smtp-in|vrfy|1ef1|70ce|hunter2",
    "a phase as a report": b"report|0.7|1.0|smtp-in|mail-from|1ef1|hunter2",
    "a report as a phase": b"filter|0.7|1.0|smtp-in|tx-mail|1ef1|70ce|5287b63d|ok|hunter2",
    "a version that is none": b"report|0.x|1.0|smtp-in|tx-begin|1ef1|hunter2",
    "an integer version that never was": b"report|7|1.0|smtp-in|tx-begin|1ef1|hunter2",
    "a report without its fields": b"report|0.7|1.0|smtp-in|tx-mail|1ef1|hunter2",
    "a transaction that begins without its id": b"report|0.7|1.0|smtp-in|tx-begin|1ef1",
    "a commit without its size": b"report|0.7|1.0|smtp-in|tx-commit|1ef1|hunter2",
    "a rollback without its id": b"report|0.7|1.0|smtp-in|tx-rollback|1ef1",
    "a connect without an address": b"filter|0.7|1.0|smtp-in|connect|1ef1|70ce|hunter2",
    "a request without its argument": b"filter|0.7|1.0|smtp-in|rcpt-to|1ef1|70ce",
    "an auth without its argument": b"filter|0.7|1.0|smtp-in|auth|1ef1|hunter2",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_a_line_that_is_none_is_refused_without_its_content(line: bytes) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.parse(line)
    assert "hunter2" not in str(caught.value)


def test_a_password_is_not_in_the_repr_of_its_event() -> None:
    event = wire.parse(b"filter|0.7|1.0|smtp-in|auth|1ef1|70ce|PLAIN aHVudGVyMg==")
    assert "aHVudGVyMg" not in repr(event)


def test_a_timestamp_that_is_none_costs_no_event() -> None:
    assert wire.parse(b"report|0.7|soon|smtp-in|timeout|1ef1") == e.Timeout(S, time=0.0)


# Versions ---------------------------------------------------------------------------------


def test_versions_compare_as_numbers() -> None:
    in_order = [b"1", b"0", b"0.1", b"0.4", b"0.7", b"0.10", b"0.12", b"1.0", b"1.3", b"10.0"]
    assert sorted(in_order, key=wire.parse_version) == in_order
    assert len(set(map(wire.parse_version, in_order))) == len(in_order)


@pytest.mark.parametrize(
    "text", [b"", b"2", b"0.", b".7", b"0.7.1", b"-0.7", b" 0.7", b"0,7", b"0.7\r", b"99999.1"]
)
def test_a_version_that_is_none(text: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.parse_version(text)


@pytest.mark.parametrize(
    ("version", "longest"),
    [
        ("1", 1997), ("0", 1997), ("0.1", 1997), ("0.4", 1997), ("0.6", 1997),
        ("0.7", 65_485), ("0.8", 65_485), ("0.12", 65_485), ("1.3", 65_485),
    ],
)  # fmt: skip
def test_the_longest_line_that_may_go_back(version: str, longest: int) -> None:
    number = wire.parse_version(version.encode())
    assert wire.longest_line(number) == longest
    # What smtpd keeps of an answer, LF not counted: 2,047 bytes, later 65,535.
    prefix = wire.dataline_prefix(number, "a" * 16, "b" * 16)
    assert len(prefix) + longest == (2047 if longest == 1997 else 65_535)


# Answers ----------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[Decision, str]] = {
    "proceed": (Proceed(), "proceed"),
    "junk": (Junk(), "junk"),
    "reject": (Reject("5.7.1", "No"), "reject|550 5.7.1 No"),
    "reject with a pipe": (Reject("4.7.1", "a|b", 450), "reject|450 4.7.1 a|b"),
    "disconnect": (Disconnect("4.3.0", "Later", 421), "disconnect|421 4.3.0 Later"),
    "rewrite": (Rewrite("<bob@example.org>"), "rewrite|<bob@example.org>"),
    "rewrite in UTF-8": (Rewrite("zo\xeb"), "rewrite|zo\xeb"),
    "rewrite with a byte that is not UTF-8": (Rewrite("caf\udce9"), "rewrite|caf\udce9"),
}
ORDERS = {
    "0.1": "70ce|1ef1", "0.2": "70ce|1ef1", "0.3": "70ce|1ef1", "0.4": "70ce|1ef1",
    "1": "70ce|1ef1", "0": "70ce|1ef1",
    "0.5": "1ef1|70ce", "0.6": "1ef1|70ce", "0.7": "1ef1|70ce",
    "0.8": "1ef1|70ce", "0.12": "1ef1|70ce", "1.3": "1ef1|70ce",
}  # fmt: skip


@pytest.mark.parametrize("version", ORDERS)
@pytest.mark.parametrize(("decision", "said"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_has_the_order_of_its_version(
    decision: Decision, said: str, version: str
) -> None:
    line = wire.result(wire.parse_version(version.encode()), S, T, decision)
    assert line == wire.raw(f"filter-result|{ORDERS[version]}|{said}\n")


@pytest.mark.parametrize("version", ORDERS)
def test_a_body_line_has_the_order_of_its_version(version: str) -> None:
    prefix = wire.dataline_prefix(wire.parse_version(version.encode()), S, T)
    assert prefix == f"filter-dataline|{ORDERS[version]}|".encode()


def test_an_answer_to_a_request_without_a_token_has_none() -> None:
    one = wire.parse_version(b"1")
    assert wire.result(one, S, "", Proceed()) == b"filter-result|1ef1|proceed\n"
    assert wire.dataline_prefix(one, S, "") == b"filter-dataline|1ef1|"


def test_registrations() -> None:
    assert wire.register("report", "smtp-out", "tx-mail") == b"register|report|smtp-out|tx-mail\n"
    assert wire.register("filter", "smtp-in", "commit") == b"register|filter|smtp-in|commit\n"
    assert wire.READY == b"register|ready\n"
