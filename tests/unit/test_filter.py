"""What does a filter of one's own do with handlers, their answers and their mistakes?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bridge import (
    Add,
    Commit,
    Connect,
    Data,
    DataLine,
    Disconnect,
    Ehlo,
    Event,
    Filter,
    Insert,
    Junk,
    MailFrom,
    Message,
    Proceed,
    RcptTo,
    Reject,
    Remove,
    Replace,
    Rewrite,
    Session,
    TxBegin,
    TxMail,
    Verdict,
)
from bridge.filter import HandlerError
from bridge.testing import FilterTester

MESSAGE = b"Subject: hi\n\nhello\n"
NO = Reject("5.7.1", "Not you")
FAILED = "451 4.3.0 Internal error, please try again later"


def decide(app: Filter, event: Event, session: Session | None = None) -> Verdict:
    return asyncio.run(app.decide(event, session or Session(event.session)))


def answering(event: type[Event], answer: Any, *, plain: bool = False) -> Filter:
    """A filter with one handler that answers that, or calls it."""
    app = Filter()

    def say(event: Event, session: Session) -> Any:
        return answer() if callable(answer) else answer

    async def say_async(event: Event, session: Session) -> Any:
        return say(event, session)

    app.on(event)(say if plain else say_async)
    return app


# Answers ----------------------------------------------------------------------------------

LEGAL: dict[str, tuple[Event, Any, str]] = {
    "nothing is proceed": (MailFrom("1", "a@b"), None, "proceed"),
    "a decision": (MailFrom("1", "a@b"), NO, "reject"),
    "a verdict at a command": (RcptTo("1", "a@b"), Verdict(NO), "reject"),
    "junk": (Data("1"), Junk(), "junk"),
    "rewrite at a command with an argument": (Ehlo("1", "x"), Rewrite("y"), "rewrite"),
    "disconnect at connect": (Connect("1", "", ""), Disconnect("5.7.1", "No"), "disconnect"),
    "reject at commit": (Commit("1"), NO, "reject"),
    "reject of a message": (Message("1", MESSAGE), NO, "reject"),
    "edits of a message": (Message("1", MESSAGE), Verdict(edits=(Add("A", "b"),)), "proceed"),
    "edits as a list": (Message("1", MESSAGE), Verdict(edits=[Add("A", "b")]), "proceed"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("event", "answer", "keyword"), LEGAL.values(), ids=LEGAL.keys())
@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_what_a_handler_may_answer(event: Event, answer: Any, keyword: str, plain: bool) -> None:
    assert decide(answering(type(event), answer, plain=plain), event).decision.keyword == keyword


def raising(error: BaseException) -> Callable[[], None]:
    def raise_() -> None:
        raise error

    return raise_


WRONG: dict[str, tuple[Event, Any, str]] = {
    "a number": (MailFrom("1", "a@b"), 42, "answered int"),
    "True": (MailFrom("1", "a@b"), True, "answered bool"),
    "a word": (MailFrom("1", "a@b"), "reject", "answered str"),
    "a class": (MailFrom("1", "a@b"), Verdict(Proceed), "expected one of"),  # type: ignore[arg-type]
    "a verdict of a number": (MailFrom("1", "a@b"), Verdict(42), "answered int at"),  # type: ignore[arg-type]
    "rewrite at data": (Data("1"), Rewrite("y"), "answered rewrite at data: expected one of"),
    "rewrite at commit": (Commit("1"), Rewrite("y"), "answered rewrite at commit"),
    "junk at commit": (Commit("1"), Junk(), "answered junk at commit"),
    "junk of a message": (Message("1", MESSAGE), Junk(), "answered junk at message"),
    "junk before it was": (MailFrom("1", "a@b", version=(0, 2)), Junk(), "answered junk"),
    "edits at a command": (Data("1"), Verdict(edits=(Add("A", "b"),)), "edits at data"),
    "edits that are none": (Message("1", MESSAGE), Verdict(edits=("A: b",)), "edits that are none"),  # type: ignore[arg-type]
    "an error": (Data("1"), raising(ValueError("secret")), "ValueError at test_filter.py"),
    "sys.exit": (Data("1"), lambda: sys.exit(3), "SystemExit at test_filter.py"),
    "an interrupt": (Data("1"), raising(KeyboardInterrupt()), "KeyboardInterrupt at"),
    "the end of an iterator": (Data("1"), raising(StopIteration()), "RuntimeError at"),
    "a cancellation of its own": (Data("1"), raising(asyncio.CancelledError()), "CancelledError"),
}


@pytest.mark.parametrize(("event", "answer", "text"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
def test_what_a_handler_may_not_do(event: Event, answer: Any, text: str, plain: bool) -> None:
    with pytest.raises(HandlerError) as caught:
        decide(answering(type(event), answer, plain=plain), event)
    assert text in str(caught.value)
    assert "answering.<locals>.say" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize(
    "answer", [42, Rewrite("x"), raising(ValueError()), lambda: sys.exit(1)],
    ids=["a number", "what is illegal there", "an error", "sys.exit"],
)  # fmt: skip
def test_a_mistake_is_a_tempfail_and_one_line_and_the_session_goes_on(
    answer: Any, plain: bool
) -> None:
    answers = iter([answer, None])

    def each() -> Any:
        given = next(answers)
        return given() if callable(given) else given

    with FilterTester(answering(Data, each, plain=plain)) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        client.mail("a@b")
        client.rcpt("c@d")
        assert str(client.data(MESSAGE)) == FAILED
        assert client.data(MESSAGE).code == 250
    [line] = smtpd.log
    assert line.startswith("deferred session=")
    assert 'phase=data by="handler failed: ' in line


def test_a_refusal_that_smtpd_would_choke_on_can_not_be_made() -> None:
    for mistake in (("2.0.0", "Fine"), ("5.7.1", "two\nlines"), ("5.7.1", "x" * 500)):
        with pytest.raises(ValueError, match=r"status code|reply text"):
            Reject(*mistake)


# Handlers ---------------------------------------------------------------------------------


def test_only_events_can_be_handled_and_lines_come_whole() -> None:
    app = Filter()
    for wrong in (str, Event, Session):
        with pytest.raises(TypeError, match="expected an event"):
            app.on(wrong)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="expected Message"):
        app.on(DataLine)
    with pytest.raises(TypeError, match="reports only"):
        app.on(MailFrom, direction="smtp-out")
    with pytest.raises(ValueError, match="smtp-in or smtp-out"):
        app.on(TxBegin, direction="out")


def test_a_handler_that_could_not_be_called_is_refused_when_it_is_added() -> None:
    app = Filter()
    with pytest.raises(TypeError, match=r"expected \(event, session\)"):

        @app.on(MailFrom)  # type: ignore[arg-type]
        async def sender(event: MailFrom) -> None: ...


def test_registration_is_derived_from_the_handlers() -> None:
    app = Filter()
    app.on(Message, Commit, RcptTo, TxMail)(lambda event, session: None)
    app.on(TxBegin, direction="smtp-out")(lambda event, session: None)
    wanted = app.registration
    assert wanted.phases == {"data-line", "commit", "rcpt-to"}
    assert wanted.reports == {"tx-mail"}
    assert wanted.reports_out == {"tx-begin"}
    assert wanted.asks_commit
    assert not Filter().registration.phases


def test_each_direction_has_its_handlers() -> None:
    app, heard = Filter(), []
    app.on(TxBegin)(lambda event, session: heard.append("in"))
    app.on(TxBegin, direction="smtp-out")(lambda event, session: heard.append("out"))
    asyncio.run(app.report(TxBegin("1", "m", direction="smtp-out"), Session("1")))
    assert heard == ["out"]


def test_all_handlers_of_a_report_are_told_also_when_one_fails() -> None:
    app, heard = Filter(), []

    @app.on(TxBegin)
    def fail(event: TxBegin, session: Session) -> None:
        raise ZeroDivisionError

    app.on(TxBegin)(lambda event, session: heard.append(event.msgid))
    with pytest.raises(HandlerError, match="ZeroDivisionError"):
        asyncio.run(app.report(TxBegin("1", "m"), Session("1")))
    assert heard == ["m"]


def test_a_report_s_handler_that_fails_is_one_line_of_the_log() -> None:
    app = Filter()

    @app.on(TxMail)
    async def fail(event: TxMail, session: Session) -> None:
        raise ValueError("secret")

    with FilterTester(app) as smtpd:
        assert smtpd.send(MESSAGE).code == 250
    [line] = smtpd.log
    assert "handler-failed session=" in line
    assert "report=tx-mail" in line
    assert "secret" not in line


# Several ----------------------------------------------------------------------------------


def test_the_first_decision_that_is_not_proceed_ends_it() -> None:
    app, asked = Filter(), []

    def add(name: str, answer: Any) -> Filter:
        part = Filter()

        @part.on(MailFrom)
        async def say(event: MailFrom, session: Session) -> Any:
            asked.append(name)
            return answer

        return part

    app.include(Filter.chain(add("a", None), add("b", Proceed())))
    app.include(add("c", Verdict(NO, reason="because")))
    app.include(add("d", None))
    assert decide(app, MailFrom("1", "a@b")) == Verdict(NO, reason="because")
    assert asked == ["a", "b", "c"]


def test_parts_of_a_chain_register_together_and_what_is_added_later_counts() -> None:
    one, other = Filter(), Filter()
    app = Filter.chain(one, other)
    one.on(MailFrom)(lambda event, session: None)
    other.on(TxMail)(lambda event, session: None)
    assert app.registration.phases == {"mail-from"}
    assert app.registration.reports == {"tx-mail"}
    with pytest.raises(ValueError, match="itself"):
        one.include(app)


def test_each_handler_sees_the_message_as_those_before_it_left_it() -> None:
    app, seen = Filter(), []

    @app.on(Message)
    async def first(event: Message, session: Session) -> Verdict:
        return Verdict(edits=(Insert(0, "X-A", "1"), Remove("Subject")))

    @app.on(Message)
    def second(event: Message, session: Session) -> Verdict:
        seen.append(event.content)
        [a] = event.headers("x-a")
        return Verdict(edits=(Replace("X-A", a + "2"), Insert(0, "X-B", "3")))

    @app.on(Message)
    async def third(event: Message, session: Session) -> None:
        seen.append(event.content)

    with FilterTester(app) as smtpd:
        smtpd.send(MESSAGE)
    [mail] = smtpd.delivered
    assert seen[1] == mail.content
    assert mail.content.startswith(b"X-B: 3\nX-A: 12\nReceived: ")
    assert mail.content.endswith(b"\n\nhello\n")
    assert b"Subject" not in mail.content


def test_an_earlier_filter_s_mark_is_no_part_of_the_message_also_after_edits() -> None:
    app = Filter.chain(
        answering(Message, Verdict(edits=(Insert(0, "X-A", "1"),))),
        answering(Message, Verdict(edits=(Insert(0, "X-B", "2"),))),
    )
    message = Message("1", b"X-Spam: Yes\nReceived: x\n\nhi\n")
    edited = message.edited(decide(app, message).edits)
    assert edited.wire == b"X-Spam: Yes\nX-B: 2\nX-A: 1\nReceived: x\n\nhi\n"
    assert edited.content == b"X-B: 2\nX-A: 1\nReceived: x\n\nhi\n"
