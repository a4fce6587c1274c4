"""Whatever a bridge answers: is smtpd told one legal thing in time, and never dies?

Each bridge here does one thing wrong with a message or a command; smtpd is the model, which
dies where the real one would.  The reason that stands in X-Unscanned tells what the shim made
of it.
"""

from __future__ import annotations

from typing import Any

import pytest

from bridge import link
from bridge.smtpd import events
from bridge.smtpd.message import Splice
from bridge.testing.outcomes import Reply
from bridge.testing.process import Driver
from tests.unit.shim_world import (
    MARKED,
    MESSAGE,
    Act,
    Acting,
    Bridge,
    Straw,
    World,
    answering,
    send,
    survived,
)


def splicing(*splices: Splice) -> Act:
    def act(straw: Straw, header: link.Header, _: bytes) -> None:
        straw.answer(header["id"], "proceed", list(splices))

    return act


REJECT = {"decision": "reject", "status": "5.7.1", "code": 550}
SENSELESS = "an answer that made no sense"

BAD_ANSWERS: dict[str, tuple[Act, str]] = {
    "no decision": (answering(decision=None), SENSELESS),
    "an unknown decision": (answering(decision="discard"), SENSELESS),
    "a decision that is no text": (answering(decision={"proceed": 1}), SENSELESS),
    "a reply of two lines": (answering(**REJECT, text="No\r\n250 Yes"), SENSELESS),
    "a reply without a text": (answering(**REJECT), SENSELESS),
    "a reply of a number": (answering(**REJECT, text=5), SENSELESS),
    "a code with a fraction": (answering(**REJECT | {"code": 550.0, "text": "No"}), SENSELESS),
    "a code of success": (answering(**REJECT | {"code": 250, "text": "Yes"}), SENSELESS),
    "a reply that is too long": (answering(**REJECT, text="x" * 20_000), SENSELESS),
    "splices that are none": (answering(splices="abc"), SENSELESS),
    "splices of nobody's bytes": (answering(splices=[[0, 0, 5]], body=b"x"), SENSELESS),
    "bytes of no splice": (answering(body=b"x: y\n"), SENSELESS),
    "a splice beyond the end": (splicing(Splice(1 << 40, 1 << 40, b"x: y\n")), SENSELESS),
    "a splice before the beginning": (splicing(Splice(-5, 0, b"")), SENSELESS),
    "splices in no order": (splicing(Splice(9, 9, b""), Splice(0, 0, b"x: y\n")), SENSELESS),
    "a splice inside a line": (splicing(Splice(3, 3, b"x: y\n")), SENSELESS),
    "a line without its end": (splicing(Splice(0, 0, b"x: y")), SENSELESS),
    "a CR": (splicing(Splice(0, 0, b"x: y\r\n")), SENSELESS),
    "a NUL": (splicing(Splice(0, 0, b"x: \0\n")), SENSELESS),
    "a dot that would end the message": (splicing(Splice(0, 0, b"x: y\n.\n")), SENSELESS),
    "a dot that lost its stuffing": (splicing(Splice(0, 0, b".x: y\n")), SENSELESS),
    "a line that is too long": (splicing(Splice(0, 0, b"x" * 65_486 + b"\n")), SENSELESS),
    "a failure of its own": (answering(failed="internal"), "it failed"),
    "a failure of a kind of tomorrow": (answering(failed={"why": [1]}), "it failed"),
}


@pytest.mark.parametrize(("act", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_passes_its_message_with_the_reason(act: Act, reason: str) -> None:
    with World(Acting(act), MARKED) as world:
        assert send(world).code == 250
        (message,) = world.delivered
        assert message.content.startswith(f"X-Unscanned: bridge: {reason}\nReceived: ".encode())
        assert message.content.endswith(MESSAGE)
        assert f'by="bridge: {reason}"' in world.log
        survived(world)


@pytest.mark.parametrize(("act", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_tempfails_its_message_unless_told_otherwise(act: Act, reason: str) -> None:
    with World(Acting(act)) as world:
        reply = send(world)
        assert str(reply).startswith("451 4.7.1 Message could not be checked")
        assert world.delivered == []
        assert f'by="bridge: {reason}"' in world.log
        survived(world)


# What is no verdict on a message is lowered by the protocol, which knows what is.
@pytest.mark.parametrize("decision", [{"decision": "junk"}, {"decision": "rewrite", "value": "x"}])
def test_a_decision_that_is_none_for_a_message_refuses_it(decision: dict[str, Any]) -> None:
    with World(Acting(answering(**decision)), MARKED) as world:
        assert str(send(world)).startswith("451 4.3.0 Internal error")
        assert world.delivered == []
        survived(world)


def twice(straw: Straw, header: link.Header, _: bytes) -> None:
    straw.answer(header["id"])
    straw.answer(header["id"], "reject", status="5.7.1", text="No", code=550)
    straw.answer(header["id"])


def unknown_ids(straw: Straw, header: link.Header, _: bytes) -> None:
    for id in (999, -1, "1", 1.0, True, None, [1], {"id": 1}):
        straw.answer(id, "reject", status="5.7.1", text="No", code=550)
    straw.answer(header["id"])


def chatty(straw: Straw, header: link.Header, _: bytes) -> None:
    straw.say("of tomorrow", more=[1, 2, 3])
    straw.say("ping")
    straw.say("pong")
    straw.hello(slots=-5, bytes="many", registration={"phases": 7})
    straw.answer(header["id"], mood="good")


def with_keep(straw: Straw, header: link.Header, _: bytes) -> None:
    straw.answer(header["id"], keep={"x": "y" * 10_000})


ODD_BUT_GOOD: dict[str, Act] = {
    "an answer, and two more to the same": twice,
    "answers to what nobody asked, and one": unknown_ids,
    "other frames, another hello, and an answer": chatty,
    "an answer with more to keep than may be kept": with_keep,
    "a reason that is no text": answering(reason=["because"]),
    "keep that is no table": answering(keep=[1]),
}


@pytest.mark.parametrize("act", ODD_BUT_GOOD.values(), ids=ODD_BUT_GOOD.keys())
def test_what_is_odd_but_an_answer_is_taken(act: Act) -> None:
    with World(Acting(act), MARKED) as world:
        assert send(world).code == 250
        (message,) = world.delivered
        assert message.content.startswith(b"Received: ")
        assert message.content.endswith(MESSAGE)
        survived(world)


# Commands: an application that is asked everything ----------------------------------------

PHASES = tuple(sorted(events.PHASES.keys() - {"help", "wiz", "data-line"}))


class Application(Bridge):
    """Is asked at every phase, and acts at one."""

    application = True

    def __init__(self, phase: str, act: Act) -> None:
        self.phase, self.act = phase, act
        phases = [*PHASES, "data-line"]
        self.registration = {"phases": phases, "reports": ["tx-data"], "asks_commit": True}

    def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
        if header["phase"] == self.phase:
            self.act(straw, header, body)
        else:
            straw.answer(header["id"])


def session(driver: Driver) -> list[Reply]:
    """Every command that is asked about; the replies."""
    first = driver.connect()
    client = driver.connect()
    return [
        client.greeting,
        first.helo("client.example.net"),
        client.ehlo("client.example.net"),
        client.starttls(),
        client.ehlo("client.example.net"),
        client.auth("alice", "secret"),
        client.noop(),
        client.mail("alice@example.net"),
        client.rset(),
        client.mail("alice@example.net"),
        client.rcpt("bob@example.org"),
        client.data(MESSAGE),
        client.quit(),
    ]


def silent(straw: Straw, header: link.Header, body: bytes) -> None:
    pass


COMMAND_ACTS: dict[str, Act] = {
    "proceeds": answering(),
    "says junk": answering(decision="junk"),
    "rejects": answering(**REJECT, text="No"),
    "disconnects": answering(decision="disconnect", status="4.3.0", text="Go", code=421),
    "rewrites": answering(decision="rewrite", value="other.example.net"),
    "rewrites to nothing": answering(decision="rewrite", value=""),
    "rewrites to two lines": answering(decision="rewrite", value="a\nb"),
    "rewrites to 2,000 bytes": answering(decision="rewrite", value="a" * 2000),
    "rejects with two lines": answering(**REJECT, text="No\n250 Yes"),
    "decides nothing": answering(decision=None),
    "has splices for a command": splicing(Splice(0, 5, b"x: y\n")),
    "fails": answering(failed="internal"),
    "answers twice": twice,
    "answers what nobody asked": unknown_ids,
    "is silent": silent,
}


@pytest.mark.parametrize("act", COMMAND_ACTS.values(), ids=COMMAND_ACTS.keys())
@pytest.mark.parametrize("phase", [*PHASES, "message"])
def test_whatever_an_application_answers_smtpd_lives(phase: str, act: Act) -> None:
    with World(Application(phase, act)) as world:
        session(world)
        refused = [f.reason for f in world.faults if " is refused: " not in f.reason]
        assert refused == []  # smtpd's word for an argument that it does not take
        assert world.smtpd.open_requests == []
        assert world.counts.get("internal-error", 0) == 0
        assert any(header["phase"] == phase for s in world.links for header, _ in s.requests)


@pytest.mark.parametrize("phase", PHASES)
def test_what_an_application_does_not_say_is_a_tempfail(phase: str) -> None:
    with World(Application(phase, silent)) as world:
        replies = [str(reply) for reply in session(world)]
        code = "421" if phase == "connect" else "451"
        assert any(reply.startswith(f"{code} 4.3.0 Internal error") for reply in replies)
        assert 'by="bridge: no answer in time"' in world.log


class ShippedPhases(Bridge):
    """The shipped policy's bridge, silent at commands."""

    def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
        if header["phase"] == "message":
            straw.answer(header["id"])


def test_the_shipped_policy_lets_a_command_pass_whose_answer_does_not_come() -> None:
    config = '[fcrdns]\nfail = "disconnect"'
    with World(ShippedPhases(), config) as world:
        before = world.clock.now
        assert world.connect().greeting.code == 220
        assert world.clock.now == before + 15.0  # shim.command_deadline
        assert world.faults == []


def test_what_a_bridge_keeps_comes_back_with_the_session_s_next_requests() -> None:
    def keeping(straw: Straw, header: link.Header, _: bytes) -> None:
        count = header["session"].get("keep", {}).get("count", 0)
        straw.answer(header["id"], keep={"count": count + 1})

    class Keeping(Application):
        def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
            keeping(straw, header, body)

    with World(Keeping("", keeping)) as world:
        send(world)
        (straw,) = world.links
        counts = [header["session"].get("keep", {}).get("count", 0) for header, _ in straw.requests]
        assert counts == list(range(7))  # connect, ehlo, mail-from, rcpt-to, data, message, commit
