"""What does a filter of one's own do with handlers, their answers and their mistakes?"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable
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
    LinkDisconnect,
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
    TxCommit,
    TxMail,
    TxReset,
    TxRollback,
    Verdict,
)
from bridge.filter import HandlerError
from bridge.testing import FilterTester, Limits, Smtpd

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


# State ------------------------------------------------------------------------------------


def test_state_lives_as_long_as_what_it_hangs_on() -> None:
    app = Filter()
    senders, recipients = app.per_session(list[str]), app.per_transaction(list[str])
    seen: list[tuple[str, list[str], list[str]]] = []

    @app.on(MailFrom)
    async def sender(event: MailFrom, session: Session) -> None:
        senders(session).append(event.address)
        recipients(session)

    @app.on(RcptTo)
    def recipient(event: RcptTo, session: Session) -> None:
        recipients(session).append(event.address)

    @app.on(TxCommit, TxRollback, LinkDisconnect)
    def note(event: Event, session: Session) -> None:
        seen.append((event.keyword, list(senders(session)), list(recipients(session))))

    with FilterTester(app) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        client.mail("a@x")
        client.rcpt("b@y")
        client.data(MESSAGE)
        client.mail("c@x")
        client.rcpt("d@y")
        client.rset()
        client.quit()
        smtpd.send(MESSAGE, "e@x", ["f@y"])
    assert seen == [
        ("tx-commit", ["a@x"], ["b@y"]),
        ("tx-rollback", ["a@x", "c@x"], ["d@y"]),
        ("link-disconnect", ["a@x", "c@x"], []),
        ("tx-commit", ["e@x"], ["f@y"]),
        ("link-disconnect", ["e@x"], []),
    ]
    assert (len(senders), len(recipients)) == (0, 0)


def test_state_is_dropped_though_no_handler_of_the_end_was_asked_for() -> None:
    app = Filter()
    inner = Filter()
    app.include(inner)
    senders, recipients = inner.per_session(list[str]), inner.per_transaction(list[str])

    @inner.on(MailFrom)
    async def sender(event: MailFrom, session: Session) -> None:
        senders(session).append(event.address)
        assert recipients(session) == []  # a refused MAIL before left nothing
        recipients(session).append("x")

    with FilterTester(app, Smtpd("0.4")) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        client.mail("not an address")
        client.mail("a@x")
        client.command("QUIT")
    assert (len(senders), len(recipients)) == (0, 0)
    assert smtpd.log == []


def test_a_session_s_facts_are_a_snapshot_and_what_ended_is_still_there() -> None:
    app, seen = Filter(), []

    @app.on(RcptTo)
    async def break_things(event: RcptTo, session: Session) -> None:
        assert session.transaction is not None
        session.transaction.recipients.append("forged@x")
        session.user = "forged"

    @app.on(TxCommit, TxReset, LinkDisconnect)
    async def note(event: Event, session: Session) -> None:
        seen.append((event.keyword, session.src, session.user, session.transaction))

    with FilterTester(app) as smtpd:
        smtpd.send(MESSAGE, "a@x", ["b@y"], src="192.0.2.7:1")
    facts = [(word, src, user) for word, src, user, _ in seen]
    peer = "192.0.2.7:1"
    assert facts == [(word, peer, "") for word in ("tx-commit", "tx-reset", "link-disconnect")]
    transaction = seen[0][3]
    assert transaction is not None
    assert (transaction.sender, transaction.recipients) == ("a@x", ["b@y"])


def test_keep_comes_back_unless_it_can_not_be_kept() -> None:
    app = Filter()
    puts: list[Any] = [{"n": 1}, {"n": "x" * 5000}, {"n": {1, 2}}, {"n": 2}]
    seen = []

    @app.on(MailFrom)
    async def sender(event: MailFrom, session: Session) -> None:
        seen.append(dict(session.keep))
        session.keep.update(puts.pop(0))

    with FilterTester(app) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        for _ in range(4):
            assert client.mail("a@x").code == 250
            client.rset()
    assert seen == [{}, {"n": 1}, {"n": 1}, {"n": 1}]
    assert ["over 4096" in smtpd.log[0], "not JSON" in smtpd.log[1]] == [True, True]


# Order and time ---------------------------------------------------------------------------


def test_a_session_s_events_come_one_at_a_time_and_in_order() -> None:
    app, words, busy = Filter(), [], []

    @app.on(TxBegin, TxMail, TxCommit, LinkDisconnect)
    def report(event: Event, session: Session) -> None:
        busy.append(1)
        assert len(busy) == 1
        time.sleep(0.005)
        words.append(event.keyword)
        busy.pop()

    @app.on(Commit)
    async def commit(event: Commit, session: Session) -> None:
        words.append("commit")

    with FilterTester(app) as smtpd:
        smtpd.send(MESSAGE)
    assert words == ["tx-begin", "tx-mail", "commit", "tx-commit", "link-disconnect"]
    assert smtpd.log == []


def blocked(how: str, freed: threading.Event) -> Filter:
    """A filter that blocks at MAIL of `block@x` until it is freed."""
    app = Filter()
    if how == "plain":

        @app.on(MailFrom)
        def block(event: MailFrom, session: Session) -> None:
            if event.address == "block@x":
                freed.wait(60)

    else:

        @app.on(MailFrom)
        async def block_async(event: MailFrom, session: Session) -> None:
            if event.address == "block@x":
                await asyncio.Event().wait()

    return app


@pytest.mark.parametrize("how", ["plain", "async"])
def test_a_handler_that_blocks_harms_no_other_session(how: str) -> None:
    freed = threading.Event()
    with FilterTester(blocked(how, freed), limits=Limits(command=0.5)) as smtpd:
        waiting = []
        for _ in range(20):
            client = smtpd.connect()
            client.ehlo("x")
            waiting.append(client.later.mail("block@x"))
        assert [smtpd.send(MESSAGE).code for _ in range(5)] == [250] * 5
        replies = [str(smtpd.wait(outcome)) for outcome in waiting]
        freed.set()
    assert replies == [FAILED] * 20
    assert sum('by="handler late"' in line for line in smtpd.log) == 20


def test_an_async_handler_that_blocks_the_loop_is_answered_for_in_time() -> None:
    freed = threading.Event()
    app = Filter()

    @app.on(MailFrom)
    async def block(event: MailFrom, session: Session) -> None:
        freed.wait(60)

    with FilterTester(app, limits=Limits(command=0.2)) as smtpd:
        assert str(smtpd.send(MESSAGE)) == FAILED
        freed.set()
        assert smtpd.send(MESSAGE).code == 250


def test_the_deadline_is_by_the_loop_s_clock() -> None:
    app, left = Filter(), []

    @app.on(MailFrom)
    async def sender(event: MailFrom, session: Session) -> None:
        left.append(session.deadline - asyncio.get_running_loop().time())

    with FilterTester(app) as smtpd:
        smtpd.send(MESSAGE)
    assert 14 < left[0] <= 15


def test_more_blocked_plain_handlers_than_threads_make_the_others_wait() -> None:
    freed = threading.Event()
    app = Filter(threads=1)

    @app.on(MailFrom)
    def block(event: MailFrom, session: Session) -> None:
        if event.address == "block@x":
            freed.wait(60)

    with FilterTester(app) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        first = client.later.mail("block@x")
        other = smtpd.connect()
        other.ehlo("x")
        second = other.later.mail("a@x")
        smtpd.run(lambda: True)
        assert (first.done, second.done) == (False, False)
        freed.set()
        assert (smtpd.wait(first).code, smtpd.wait(second).code) == (250, 250)


# Hooks ------------------------------------------------------------------------------------


def test_hooks_run_in_order_those_of_the_parts_too() -> None:
    app, part, calls = Filter(), Filter(), []

    def note(word: str) -> Callable[[], Awaitable[None] | None]:
        async def call_async() -> None:
            await asyncio.sleep(0)
            calls.append(word)

        return call_async if "async" in word else lambda: calls.append(word)

    app.include(part)
    for each in (app, part):
        name = "app" if each is app else "part"
        each.on_start(note(f"{name} starts, async"))
        each.on_stop(note(f"{name} stops"))
    with FilterTester(app):
        pass
    assert calls == ["app starts, async", "part starts, async", "part stops", "app stops"]


def test_a_stop_hook_that_fails_keeps_no_other_from_running() -> None:
    app, calls = Filter(), []
    app.on_stop(lambda: calls.append("first"))
    app.on_stop(raising(ValueError()))
    with FilterTester(app) as smtpd:
        pass
    assert calls == ["first"]
    assert "stop-failed" in smtpd.log[0]
