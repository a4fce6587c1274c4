"""Does the model for authors' tests tell what a filter did, and err where smtpd would?"""

from __future__ import annotations

import threading

import pytest

from bridge import Connect, Disconnect, Filter, MailFrom, Message, RcptTo, Reject, Session, Verdict
from bridge.edits import ReplaceMessage
from bridge.testing import Decided, FilterTester, Limits, SessionHung, Smtpd, SmtpdDied

MESSAGE = b"Subject: hi\n\nhello\n"
NO = Reject("5.7.1", "Not you")


def test_decisions_deliveries_and_replies_are_told() -> None:
    app = Filter()

    @app.on(RcptTo)
    async def recipient(event: RcptTo, session: Session) -> Reject | None:
        return NO if event.address == "no@y" else None

    @app.on(Message)
    async def message(event: Message, session: Session) -> Verdict:
        return Verdict(edits=(ReplaceMessage(b"Subject: new\n\n.\n"),), reason="why not")

    with FilterTester(app) as smtpd:
        assert smtpd.send(MESSAGE, "a@x", ["no@y", "b@y"]).code == 250
        assert str(smtpd.send(MESSAGE, "a@x", ["no@y"])) == "550 5.7.1 Not you"
    [mail] = smtpd.delivered
    assert (mail.sender, mail.recipients, mail.content) == ("a@x", ("b@y",), b"Subject: new\n\n.\n")
    said = [(each.phase, each.decision.keyword) for each in smtpd.decisions]
    refused = ("rcpt-to", "reject")
    assert said == [refused, ("rcpt-to", "proceed"), ("message", "proceed"), refused]
    assert smtpd.decisions[0] == Decided(mail.session, "rcpt-to", NO)
    assert smtpd.log[1].endswith('phase=message by="why not"')
    assert smtpd.faults == []


def test_a_refusal_of_the_connection_is_the_reply() -> None:
    app = Filter()

    @app.on(Connect)
    async def connect(event: Connect, session: Session) -> Disconnect:
        return Disconnect("4.7.1", "Later", 421)

    with FilterTester(app) as smtpd:
        assert str(smtpd.send(MESSAGE)) == "421 4.7.1 Later"


def test_the_version_is_the_model_s() -> None:
    app, seen = Filter(), []

    @app.on(MailFrom)
    async def sender(event: MailFrom, session: Session) -> None:
        seen.append(event.version)

    for version in ("0.4", "0.7"):
        with FilterTester(app, Smtpd(version)) as smtpd:
            smtpd.send(MESSAGE)
    assert seen == [(0, 4), (0, 7)]


def test_a_message_over_the_limit_is_refused_without_a_handler() -> None:
    app = Filter()
    app.on(Message)(lambda event, session: None)
    with FilterTester(app, limits=Limits(message_size=1000)) as smtpd:
        assert str(smtpd.send(b"x" * 900 + b"\n")) == (
            "451 4.3.4 Message is too large to be checked"
        )
        assert smtpd.send(MESSAGE).code == 250


def test_messages_wait_while_the_handlers_have_as_many_bytes_as_they_may() -> None:
    app, freed, begun = Filter(), threading.Event(), []

    @app.on(Message)
    def message(event: Message, session: Session) -> None:
        begun.append(session.id)
        freed.wait(60)

    with FilterTester(app, limits=Limits(judged=100, memory=1000)) as smtpd:
        waiting = []
        for _ in range(3):
            client = smtpd.connect()
            client.ehlo("x")
            client.mail("a@x")
            client.rcpt("b@y")
            waiting.append(client.later.data(MESSAGE + b"x" * 500 + b"\n"))
        with pytest.raises(SessionHung):
            smtpd.run(timeout=0.2)
        assert len(begun) == 1
        freed.set()
        assert [smtpd.wait(each).code for each in waiting] == [250] * 3
    assert [len(mail.content) > 500 for mail in smtpd.delivered] == [True] * 3


def test_what_real_smtpd_would_die_of_is_an_error() -> None:
    """A filter can't get there by its answers; whoever drives the model by hand can."""
    with FilterTester(Filter()) as smtpd:
        smtpd.connect()
        with pytest.raises(SmtpdDied):
            smtpd.smtpd.receive(b"nonsense\n")
