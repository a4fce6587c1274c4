"""What does a filter of one's own keep, and when are its handlers and hooks called?"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge import (
    Commit,
    Event,
    Filter,
    LinkDisconnect,
    MailFrom,
    RcptTo,
    Session,
    TxBegin,
    TxCommit,
    TxMail,
    TxReset,
    TxRollback,
)
from bridge.testing import FilterTester, Limits, Smtpd

MESSAGE = b"Subject: hi\n\nhello\n"
FAILED = "451 4.3.0 Internal error, please try again later"


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

    @app.on_stop
    def fail() -> None:
        raise ZeroDivisionError

    with FilterTester(app) as smtpd:
        pass
    assert calls == ["first"]
    assert "stop-failed" in smtpd.log[0]
