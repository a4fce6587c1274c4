"""Do scripts of the callback API of 2018 see what they expect, and can they do no harm?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from bridge import opensmtpd
from bridge.opensmtpd import SMTP_IN, SMTP_OUT, smtp_in
from bridge.testing import FilterTester, Limits, Smtpd

MESSAGE = b"Subject: hi\n\nhello\n.\nthe end\n"
VERSIONS = ["0.4", "0.5", "0.6", "0.7"]
FAILED = "451 4.3.0 Internal error, please try again later"

# What an event's arguments are of a mail from a@x to b@y, as patterns of what can be known.
ARGS_2018: dict[str, list[str]] = {
    "link-connect": ["client.example.net", "pass", "192.0.2.1:4711", "203.0.113.1:25"],
    "link-identify": ["client.example"],
    "tx-begin": ["MSGID"],
    "tx-mail": ["MSGID", "a@x", "ok"],
    "tx-rcpt": ["MSGID", "b@y", "ok"],
    "tx-data": ["MSGID", "ok"],
    "tx-commit": ["MSGID", "SIZE"],
    "link-disconnect": [],
}
ARGS_TODAY = ARGS_2018 | {
    "link-identify": ["EHLO", "client.example"],
    "tx-mail": ["MSGID", "ok", "a@x"],
    "tx-rcpt": ["MSGID", "ok", "b@y"],
}
ARGS_OF_05 = ARGS_2018 | {"link-identify": ["EHLO", "client.example"]}

EXPECTED: list[tuple[Callable[[], SMTP_IN], str, dict[str, list[str]]]] = [
    *((SMTP_IN, version, ARGS_2018) for version in VERSIONS),
    *((lambda: SMTP_IN(order="today"), version, ARGS_TODAY) for version in VERSIONS),
    *((smtp_in, version, ARGS_OF_05) for version in ("0.4", "0.5")),
    *((smtp_in, version, ARGS_TODAY) for version in ("0.6", "0.7")),
]


@pytest.mark.parametrize(("make", "version", "expected"), EXPECTED)
def test_the_order_of_arguments(
    make: Callable[[], SMTP_IN], version: str, expected: dict[str, list[str]]
) -> None:
    heard: dict[str, list[str]] = {}
    o = make()

    def note(context: str, timestamp: str, session_id: str, args: list[str]) -> None:
        assert float(timestamp) > 1_000_000_000
        assert len(session_id) == 16
        heard[context] = args

    for event in expected:
        o.on_report(event, note, event)
    with FilterTester(o, Smtpd(version)) as smtpd:
        assert smtpd.send(MESSAGE, "a@x", ["b@y"]).code == 250
    [mail] = smtpd.delivered
    values = {"MSGID": mail.msgid, "SIZE": heard["tx-commit"][1]}
    assert heard == {name: [values.get(x, x) for x in args] for name, args in expected.items()}
    assert smtpd.log == []


def test_the_fields_are_told() -> None:
    assert opensmtpd.fields("tx-rcpt") == ("msgid", "address", "result")
    assert opensmtpd.fields("tx-rcpt", "today") == ("msgid", "result", "address")
    assert opensmtpd.fields("link-auth") == ("user", "result")
    assert opensmtpd.fields("connected") == ("rdns", "addr")


def say(decision: Callable[..., None], *more: str) -> Callable[[str, str, list[str]], None]:
    return lambda timestamp, session_id, args: decision(session_id, *more)


ANSWERS: dict[str, tuple[str, Callable[..., None], tuple[str, ...], str]] = {
    "proceed": ("mail-from", opensmtpd.proceed, (), "250 2.0.0 Ok"),
    "reject": ("mail-from", opensmtpd.reject, ("550 5.7.1 Go away",), "550 5.7.1 Go away"),
    "without enhanced code": ("mail-from", opensmtpd.reject, ("550 no",), "550 5.7.1 no"),
    "greylisted": ("mail-from", opensmtpd.reject, ("451 later",), "451 4.7.1 later"),
    "421": ("mail-from", opensmtpd.reject, ("421 greylisted",), "421 4.7.1 greylisted"),
    "disconnect": ("mail-from", opensmtpd.disconnect, ("550 x",), "550 5.7.1 x"),
    "rewrite": ("mail-from", opensmtpd.rewrite, ("<new@x>",), "250 2.0.0 Ok"),
    "what is no reply": ("mail-from", opensmtpd.reject, ("go away",), FAILED),
    "what is illegal there": ("data", opensmtpd.rewrite, ("x",), FAILED),
}


@pytest.mark.parametrize(
    ("phase", "decision", "more", "reply"), ANSWERS.values(), ids=ANSWERS.keys()
)
def test_answers(phase: str, decision: Any, more: tuple[str, ...], reply: str) -> None:
    o = SMTP_IN()
    o.on_filter(phase, say(decision, *more))
    with FilterTester(o) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        said = client.mail("a@x")
        if phase == "data":
            client.rcpt("b@y")
            said = client.data(MESSAGE)
    assert str(said) == reply


def test_a_callback_may_want_context_and_token() -> None:
    """As py-opensmtpd called it in 2019, when requests had got tokens."""
    o, seen = smtp_in(), []

    def helo(context: str, timestamp: str, token: str, session_id: str, args: list[str]) -> None:
        seen.append((context, len(token), args))
        opensmtpd.reject(token, session_id, "550 5.7.1 no")

    o.on_filter("ehlo", helo, "ctx")
    with FilterTester(o) as smtpd:
        assert str(smtpd.connect().ehlo("x")) == "550 5.7.1 no"
    assert seen == [("ctx", 16, ["x"])]


def test_connect_had_another_name() -> None:
    o = SMTP_IN()
    o.on_filter("connected", lambda timestamp, session_id, args: opensmtpd.proceed(session_id))
    with FilterTester(o, Smtpd("0.6")) as smtpd:
        assert smtpd.send(MESSAGE).code == 250


def test_lines_go_through_the_callback_and_come_back() -> None:
    o = SMTP_IN()

    def line(timestamp: str, session_id: str, args: list[str]) -> None:
        opensmtpd.dataline(session_id, args[0].replace("hello", "HELLO"))

    o.on_filter("data-line", line)
    with FilterTester(o) as smtpd:
        smtpd.send(MESSAGE)
    [mail] = smtpd.delivered
    assert mail.content.endswith(b"Subject: hi\n\nHELLO\n.\nthe end\n")


def test_a_message_given_back_as_it_was_keeps_its_bytes() -> None:
    o = SMTP_IN()
    o.on_filter("data-line", lambda t, session_id, args: opensmtpd.writeline(session_id, args[0]))
    message = b"Subject:  odd\n\n..\xe9\x80\n" + b"x" * 1500 + b"\n"
    with FilterTester(o, Smtpd("0.6")) as smtpd:
        smtpd.send(message)
    assert smtpd.delivered[0].content.endswith(message)


def test_lines_held_back_until_the_end_and_a_refusal_at_commit() -> None:
    """As py-opensmtpd-rspamd did it."""
    o, held, reasons = smtp_in(), {}, {}  # type: ignore[var-annotated]

    def line(context: None, timestamp: str, session_id: str, args: list[str]) -> None:
        if args[0] != ".":
            held.setdefault(session_id, []).append(args[0])
            return
        lines = held.pop(session_id)
        if "Subject: spam" in lines:
            reasons[session_id] = "550 message rejected"
        for each in ["X-Spam-Action: none", *lines, "."]:
            opensmtpd.dataline(session_id, each)

    def commit(context: None, timestamp: str, session_id: str, args: list[str]) -> None:
        if session_id in reasons:
            opensmtpd.reject(session_id, reasons.pop(session_id))
        else:
            opensmtpd.proceed(session_id)

    o.on_filter("data-line", line, None)
    o.on_filter("commit", commit, None)
    with FilterTester(o) as smtpd:
        assert smtpd.send(MESSAGE).code == 250
        assert str(smtpd.send(b"Subject: spam\n\n")) == "550 5.7.1 message rejected"
    [mail] = smtpd.delivered
    assert mail.content.startswith(b"X-Spam-Action: none\nReceived:")


def test_an_answer_may_come_later_from_another_thread() -> None:
    o = SMTP_IN()

    def mail(timestamp: str, session_id: str, args: list[str]) -> None:
        threading.Timer(0.02, opensmtpd.reject, (session_id, "550 5.7.1 later")).start()

    o.on_filter("mail-from", mail)
    with FilterTester(o) as smtpd:
        assert str(smtpd.send(MESSAGE)) == "550 5.7.1 later"


def nothing(timestamp: str, session_id: str, args: list[str]) -> None:
    """Not even an answer."""


def twice(timestamp: str, session_id: str, args: list[str]) -> None:
    opensmtpd.proceed(session_id)
    opensmtpd.reject(session_id, "550 5.7.1 no")
    opensmtpd.proceed("0123456789abcdef")
    opensmtpd.dataline(session_id, "x")


def leave(timestamp: str, session_id: str, args: list[str]) -> None:
    raise SystemExit(1)


@pytest.mark.parametrize(
    ("callback", "reply"), [(nothing, FAILED), (leave, FAILED), (twice, "250 2.0.0 Ok")]
)
def test_what_ended_smtpd_in_2018_does_not_any_more(callback: Any, reply: str) -> None:
    o = SMTP_IN()
    o.on_filter("mail-from", callback)
    with FilterTester(o, limits=Limits(command=0.3)) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        assert str(client.mail("a@x")) == reply
        assert client.noop().code == 250


def test_a_callback_that_blocks_holds_the_others_for_a_second() -> None:
    o, freed, threads = SMTP_IN(), threading.Event(), set()

    def mail(timestamp: str, session_id: str, args: list[str]) -> None:
        threads.add(threading.get_ident())
        if args[0] == "block@x":
            freed.wait(60)
        opensmtpd.proceed(session_id)

    o.on_filter("mail-from", mail)
    with FilterTester(o) as smtpd:
        assert smtpd.send(MESSAGE).code == 250
        assert smtpd.send(MESSAGE).code == 250
        assert len(threads) == 1
        client = smtpd.connect()
        client.ehlo("x")
        blocked = client.later.mail("block@x")
        assert smtpd.send(MESSAGE).code == 250
        assert not blocked.done
        freed.set()
        assert smtpd.wait(blocked).code == 250


def test_the_second_callback_of_an_event_replaces_the_first() -> None:
    o, heard = SMTP_IN(), []
    o.on_report("tx-begin", lambda t, s, a: heard.append(1))
    o.on_report("tx-begin", lambda t, s, a: heard.append(2))
    with FilterTester(o) as smtpd:
        smtpd.send(MESSAGE)
    assert heard == [2]


def test_events_come_as_lines_too() -> None:
    o, lines = smtp_in(), []
    o.on_event(lambda context, line: lines.append(line), None)
    with FilterTester(o, Smtpd("0.5")) as smtpd:
        smtpd.send(MESSAGE, "a@x")
    [mail] = [line for line in lines if "|tx-mail|" in line]
    assert mail.startswith("report|0.5|")
    assert mail.endswith("|a@x|ok")


def test_outgoing_sessions_have_reports_only() -> None:
    o = SMTP_OUT()
    o.on_report("tx-commit", nothing)
    assert o.registration.reports_out == {"tx-commit"}
    with pytest.raises(TypeError, match="reports only"):
        o.on_filter("helo", nothing)


def test_mistakes_are_found_when_a_callback_is_registered() -> None:
    o = SMTP_IN()
    with pytest.raises(ValueError, match="'tx-male': expected one of"):
        o.on_report("tx-male", nothing)
    with pytest.raises(TypeError, match="take 4 arguments"):
        o.on_report("tx-mail", nothing, "context")
    with pytest.raises(TypeError, match="take 4 arguments"):
        o.on_filter("helo", lambda session_id: None)
    with pytest.raises(ValueError, match="order 'old'"):
        SMTP_IN(order="old")  # type: ignore[arg-type]
