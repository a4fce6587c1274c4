"""Is what goes to smtpd one legal answer to what it asked, whatever comes in, and whatever the
answers are?  Messages are test_protocol_messages.py's, what is legal test_legality.py's.
"""

from __future__ import annotations

import pytest

from bridge.smtpd.decisions import INTERNAL_ERROR, Decision, Junk, Proceed, Refusal, Reject, Rewrite
from bridge.smtpd.events import LinkDisconnect, ProtocolClient
from bridge.smtpd.items import BadLine, Registration, Slot
from bridge.smtpd.lines import MAX_LINE as MAX_INPUT_LINE
from tests.unit.dialogue import EVERY_PHASE, OTHER, TOKENS, Dialogue, S

NO = Reject("5.7.1", "No")
HAM = b"Received: by mx\nSubject: x\n\n..dot\n\nbye\n"

# Registration -----------------------------------------------------------------------------

BOOKKEEPING = (
    b"link-auth", b"link-connect", b"link-disconnect", b"link-greeting", b"link-identify",
    b"link-tls", b"tx-begin", b"tx-commit", b"tx-mail", b"tx-rcpt", b"tx-reset", b"tx-rollback",
)  # fmt: skip
IN = b"".join(b"register|report|smtp-in|%s\n" % name for name in BOOKKEEPING)
READY = b"register|ready\n"


def test_phases_are_registered_at_once() -> None:
    dialogue = Dialogue(registration=None)
    dialogue.protocol.start(Registration(phases=frozenset({"commit", "data-line"})))
    phases = b"register|filter|smtp-in|commit\nregister|filter|smtp-in|data-line\n"
    assert dialogue.output() == IN + phases + READY
    dialogue.feed(b"config|subsystem|smtp-in", b"config|ready")
    assert dialogue.output() == b""


OUT = Registration(reports_out=frozenset({"tx-commit", "timeout"}))
SMTP_OUT = b"".join(
    b"register|report|smtp-out|%s\n" % name for name in sorted((*BOOKKEEPING, b"timeout"))
)


@pytest.mark.parametrize(
    ("handshake", "registered"),
    [
        ([b"config|subsystem|smtp-in", b"config|subsystem|smtp-out", b"config|ready"], SMTP_OUT),
        ([b"config|subsystem|smtp-out", b"config|subsystem|smtp-in", b"config|ready"], SMTP_OUT),
        ([b"config|subsystem|smtp-in", b"config|ready"], b""),
        ([b"config|smtpd-version|6.6.4p1", b"config|ready"], b""),
    ],
    ids=["both", "both, the other way round", "smtp-in only", "6.6, which would die of it"],
)
def test_smtp_out_is_registered_only_where_smtpd_has_it(
    handshake: list[bytes], registered: bytes
) -> None:
    dialogue = Dialogue(registration=None)
    dialogue.protocol.start(OUT)
    dialogue.feed(*handshake[:-1])
    assert dialogue.output() == b""
    dialogue.feed(handshake[-1])
    assert dialogue.output() == IN + registered + READY


def test_a_handshake_that_came_first_is_remembered() -> None:
    dialogue = Dialogue(registration=None)
    dialogue.feed(b"config|subsystem|smtp-out", b"config|ready")
    assert dialogue.output() == b""
    dialogue.protocol.start(OUT)
    assert dialogue.output() == IN + SMTP_OUT + READY


def test_starting_twice_registers_once() -> None:
    dialogue = Dialogue()
    dialogue.protocol.start(EVERY_PHASE)
    assert dialogue.output() == b""


# One answer -------------------------------------------------------------------------------


def test_a_request_is_answered_with_its_own_token() -> None:
    dialogue = Dialogue()
    for phase in ("connect", "ehlo", "mail-from", "rcpt-to"):
        slot = dialogue.ask(phase, "a|b" if phase == "connect" else "x")
        assert dialogue.output() == b""
        assert dialogue.protocol.answer(slot, Proceed()) == Proceed()
        assert dialogue.output() == dialogue.result(phase, "proceed")


def test_an_answer_is_spelled_in_the_version_of_its_request() -> None:
    dialogue = Dialogue("0.4")
    old = dialogue.ask("ehlo", "x")
    dialogue.version = "0.7"
    new = dialogue.ask("ehlo", "x", OTHER)
    dialogue.protocol.answer(new, Proceed())
    assert dialogue.output() == dialogue.result("ehlo", "proceed", OTHER)
    dialogue.protocol.answer(old, Proceed())
    assert dialogue.output() == f"filter-result|{TOKENS['ehlo']}|{S}|proceed\n".encode()


def test_a_second_answer_is_dropped() -> None:
    dialogue = Dialogue()
    slot = dialogue.ask("ehlo", "x")
    dialogue.protocol.answer(slot, NO)
    dialogue.output()
    assert dialogue.protocol.answer(slot, NO) is None
    assert dialogue.protocol.answer(slot, Proceed()) is None
    assert dialogue.output() == b""
    assert dialogue.protocol.counts["late-answer"] == 2


def test_a_second_verdict_on_a_message_is_dropped() -> None:
    dialogue = Dialogue()
    slot = dialogue.message(HAM)
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(HAM + b".\n")
    assert dialogue.protocol.answer(slot, NO) is None
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output() == dialogue.result("commit", "proceed")


def test_an_answer_that_the_next_request_has_overtaken_is_dropped() -> None:
    dialogue = Dialogue()
    first = dialogue.ask("mail-from", "a@b")
    second = dialogue.ask("mail-from", "c@d")
    assert dialogue.protocol.answer(first, NO) is None
    assert dialogue.output() == b""
    dialogue.protocol.answer(second, Proceed())
    assert dialogue.output() == dialogue.result("mail-from", "proceed")


@pytest.mark.parametrize("phase", ["connect", "rcpt-to", "quit"])
def test_an_answer_to_a_session_that_has_ended_is_dropped(phase: str) -> None:
    dialogue = Dialogue()
    slot = dialogue.ask(phase, "a|b" if phase == "connect" else "x")
    (report,) = dialogue.feed(dialogue.report("link-disconnect"))
    assert isinstance(report, LinkDisconnect)
    assert not slot.open
    assert dialogue.protocol.answer(slot, Proceed()) is None
    assert dialogue.output() == b""


def test_nothing_is_said_to_the_last_lines_of_a_session_that_has_ended() -> None:
    dialogue = Dialogue()
    dialogue.ask("ehlo", "x")
    dialogue.feed(dialogue.report("link-disconnect"))
    assert (
        dialogue.feed(
            dialogue.request("quit"),
            *dialogue.lines(b"late\n.\n"),
            dialogue.report("tx-reset", "5287b63d"),
            dialogue.report("link-disconnect"),
        )
        == []
    )
    assert not dialogue.protocol.sessions


def test_a_request_of_a_session_whose_beginning_nobody_saw_is_answered() -> None:
    dialogue = Dialogue()
    slot = dialogue.ask("rcpt-to", "bob@example.org")
    assert slot.session.src == ""
    dialogue.protocol.answer(slot, NO)
    assert dialogue.output() == dialogue.result("rcpt-to", "reject|550 5.7.1 No")


def test_an_end_of_a_session_that_nobody_knows_is_not_told() -> None:
    assert Dialogue().feed(Dialogue().report("link-disconnect")) == []


@pytest.mark.parametrize("session", ["1", "z" * 16, "7641df9771b4ed00" * 4])
def test_ids_are_opaque(session: str) -> None:
    dialogue = Dialogue()
    for _ in range(2):  # the second time the lines are known
        slot = dialogue.message(HAM, session)
        dialogue.protocol.answer(slot, Proceed())
        assert dialogue.output() == dialogue.echo(HAM + b".\n", session)
        dialogue.feed(dialogue.request("commit", session=session))
        assert dialogue.output() == dialogue.result("commit", "proceed", session)


# Legality: illegal decisions are lowered (that the table is right, test_legality.py shows) --

LOWERED: dict[str, tuple[str, Decision, str]] = {
    "rewrite at connect": ("connect", Rewrite("x"), "disconnect|421 4.3.0"),
    "rewrite at data": ("data", Rewrite("x"), "reject|451 4.3.0"),
    "rewrite at rset": ("rset", Rewrite("x"), "reject|451 4.3.0"),
    "rewrite at commit": ("commit", Rewrite("x"), "reject|451 4.3.0"),
    "junk at commit": ("commit", Junk(), "reject|451 4.3.0"),
    "a refusal that is neither": ("ehlo", Refusal("5.7.1", "No"), "reject|451 4.3.0"),
}


@pytest.mark.parametrize(("phase", "decision", "said"), LOWERED.values(), ids=LOWERED.keys())
def test_an_illegal_decision_is_lowered(phase: str, decision: Decision, said: str) -> None:
    dialogue = Dialogue()
    slot = dialogue.ask(phase, "a|b" if phase == "connect" else "")
    lowered = dialogue.protocol.answer(slot, decision)
    assert isinstance(lowered, Refusal)
    text = f"{said} Internal error, please try again later"
    assert dialogue.output() == dialogue.result(phase, text)
    assert dialogue.protocol.counts["lowered"] == 1


def test_junk_is_lowered_before_it_came() -> None:
    dialogue = Dialogue("0.2")
    dialogue.protocol.answer(dialogue.ask("rcpt-to", "a@b"), Junk())
    assert dialogue.output().endswith(b"|reject|451 4.3.0 Internal error, please try again later\n")


@pytest.mark.parametrize("decision", [Junk(), Rewrite("x")])
def test_what_is_no_verdict_on_a_message_refuses_it(decision: Decision) -> None:
    dialogue = Dialogue()
    assert dialogue.protocol.answer(dialogue.message(HAM), decision) == INTERNAL_ERROR
    assert dialogue.output() == dialogue.echo(b".\n")
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output() == dialogue.result("commit", f"reject|{INTERNAL_ERROR.reply}")


def test_a_reply_carries_the_session_and_still_has_a_bounded_length() -> None:
    dialogue = Dialogue(session_in_reply=True)
    dialogue.protocol.answer(dialogue.ask("ehlo", "x"), NO)
    assert dialogue.output() == dialogue.result("ehlo", f"reject|550 5.7.1 No [{S}]")
    dialogue.protocol.answer(dialogue.ask("ehlo", "x"), Reject("5.7.1", "x" * 440))
    line = dialogue.output()
    assert line.endswith(f"xxx [{S}]\n".encode())
    assert len(line.split(b"|", 3)[3]) <= len("reject|550 5.7.1 ") + 440 + 1
    dialogue.protocol.answer(dialogue.ask("ehlo", "x"), Proceed())
    assert dialogue.output() == dialogue.result("ehlo", "proceed")


# Input that is none -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["at once", "in pieces"])
def test_a_bad_line_is_told_and_the_next_one_is_read(how: str) -> None:
    dialogue = Dialogue()
    data = (
        b"nonsense|hunter2\n" + dialogue.report("tx-begin") + b"\n" + dialogue.request("ehlo", "x")
    )
    data += b"\n"
    size = len(data) if how == "at once" else 5
    items = []
    for at in range(0, len(data), size):
        items += dialogue.protocol.receive(data[at : at + size])
    first, second, slot = items
    assert isinstance(first, BadLine)
    assert isinstance(second, BadLine)
    assert "hunter2" not in first.error
    assert isinstance(slot, Slot)
    assert dialogue.protocol.counts["bad-line"] == 2


def test_a_line_without_an_end_takes_no_memory_and_costs_only_itself() -> None:
    dialogue = Dialogue()
    for _ in range(MAX_INPUT_LINE // 1000 + 50):
        assert dialogue.protocol.receive(b"x" * 1000) == []
    assert dialogue.protocol.receive(b"filter|0.7") == []
    tail = b"|1.0|smtp-in|ehlo|" + S.encode() + b"|a1|x\n" + dialogue.request("ehlo", "x") + b"\n"
    bad, slot = dialogue.protocol.receive(tail)
    assert bad == BadLine("over-long")
    assert isinstance(slot, Slot)


def test_a_line_of_just_the_bound_is_read() -> None:
    dialogue = Dialogue()
    line = dialogue.report("protocol-client", "x")
    line += b"x" * (MAX_INPUT_LINE - len(line))
    assert dialogue.protocol.receive(line[:100]) == []
    assert dialogue.protocol.receive(line[100:]) == []
    (report,) = dialogue.protocol.receive(b"\n")
    assert isinstance(report, ProtocolClient)


def test_what_is_told_of_a_session_is_known_when_its_slot_comes() -> None:
    dialogue = Dialogue()
    *_, slot = dialogue.feed(
        dialogue.report(
            "link-connect", "mail.example.net", "pass", "192.0.2.1:4711", "192.0.2.2:25"
        ),
        dialogue.report("tx-begin", "5287b63d"),
        dialogue.report("tx-mail", "5287b63d", "ok", "a|b@example.net"),
        dialogue.report("tx-rcpt", "5287b63d", "permfail", "nobody@example.org"),
        dialogue.report("tx-rcpt", "5287b63d", "ok", "bob@example.org"),
        *dialogue.lines(b"x: y\n.\n"),
    )
    assert isinstance(slot, Slot)
    transaction = slot.session.transaction
    assert transaction is not None
    assert slot.session.src == "192.0.2.1:4711"
    assert (transaction.sender, transaction.recipients) == ("a|b@example.net", ["bob@example.org"])
