"""Does a message reach its verdict whole and go back byte for byte, or not at all, and is
what was not echoed never accepted?  Also when a line is too long; what is too large or lies on
a disk that fails is test_protocol_large.py's.
"""

from __future__ import annotations

import pytest

from bridge.smtpd.decisions import (
    INTERNAL_ERROR,
    Decision,
    Disconnect,
    Junk,
    Proceed,
    Refusal,
    Reject,
    Rewrite,
)
from bridge.smtpd.items import MESSAGE, Broken, Registration, Slot, Withheld
from bridge.smtpd.message import Splice
from bridge.smtpd.protocol import LONG_LINE
from tests.unit.dialogue import EVERY_PHASE, OTHER, Dialogue, S

NO = Reject("5.7.1", "No")
HAM = b"Received: by mx\nSubject: x\n\n..dot\n\nbye\n"


def test_a_message_goes_back_byte_for_byte() -> None:
    dialogue = Dialogue()
    content = b"\n..\n\x01caf\xe9\r\n| pipes |\n" + b"x" * 65_485 + b"\n\n"
    slot = dialogue.message(content)
    assert slot.phase == MESSAGE
    assert slot.message is not None
    assert b"".join(slot.message.pieces()) == content
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(content + b".\n")


def test_a_message_goes_back_with_its_splices() -> None:
    dialogue = Dialogue()
    slot = dialogue.message(b"one\ntwo\nthree\n")
    splices = [Splice(0, 0, b"x: y\n"), Splice(4, 8, b""), Splice(14, 14, b"..end\n")]
    dialogue.protocol.answer(slot, Proceed(), splices)
    assert dialogue.output() == dialogue.echo(b"x: y\none\nthree\n..end\n.\n")


def test_splices_that_do_not_fit_refuse_the_message() -> None:
    dialogue = Dialogue()
    assert (
        dialogue.protocol.answer(dialogue.message(HAM), Proceed(), [Splice(3, 3, b"")])
        == INTERNAL_ERROR
    )
    assert dialogue.output() == dialogue.echo(b".\n")
    assert dialogue.protocol.counts["bad-splices"] == 1


def test_an_empty_message_is_asked_about_and_is_its_dot() -> None:
    dialogue = Dialogue()
    slot = dialogue.message(b"")
    assert slot.message is not None
    assert slot.message.size == 0
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(b".\n")


def test_a_refused_message_is_a_lone_dot_and_its_refusal_comes_at_commit() -> None:
    dialogue = Dialogue()
    assert dialogue.protocol.answer(dialogue.message(HAM), NO) == NO
    assert dialogue.output() == dialogue.echo(b".\n")
    assert dialogue.feed(dialogue.request("commit")) == []
    assert dialogue.output() == dialogue.result("commit", "reject|550 5.7.1 No")


def test_a_session_goes_on_after_a_refused_message_and_the_next_one_is_its_own() -> None:
    dialogue = Dialogue()
    for decision, said in ((NO, "reject|550 5.7.1 No"), (Proceed(), "proceed")):
        dialogue.feed(dialogue.report("tx-begin", "5287b63d"))
        dialogue.protocol.answer(dialogue.message(HAM), decision)
        echoed = HAM + b".\n" if decision == Proceed() else b".\n"
        assert dialogue.output() == dialogue.echo(echoed)
        dialogue.feed(dialogue.request("commit"))
        assert dialogue.output() == dialogue.result("commit", said)
        dialogue.feed(dialogue.report("tx-reset", "5287b63d"))


@pytest.mark.parametrize(
    "decision", [Proceed(), Junk(), Rewrite("x"), NO, Disconnect("4.7.0", "Go", 421)]
)
def test_a_message_that_was_not_echoed_can_not_be_accepted_at_commit(decision: Decision) -> None:
    dialogue = Dialogue()
    dialogue.protocol.answer(dialogue.message(HAM), NO)
    dialogue.feed(dialogue.report("tx-reset", "5287b63d"))  # in an order that smtpd has not
    slot = dialogue.ask("commit")
    dialogue.output()
    said = dialogue.protocol.answer(slot, decision)
    assert said == (decision if isinstance(decision, Refusal) else INTERNAL_ERROR)
    assert b"|proceed" not in dialogue.output()


def test_commit_is_asked_about_only_where_that_was_wanted() -> None:
    dialogue = Dialogue(registration=Registration(EVERY_PHASE.phases, asks_commit=True))
    dialogue.protocol.answer(dialogue.message(HAM), Proceed())
    slot = dialogue.ask("commit")
    dialogue.output()
    dialogue.protocol.answer(slot, NO)
    assert dialogue.output() == dialogue.result("commit", "reject|550 5.7.1 No")
    dialogue.protocol.answer(dialogue.message(HAM), NO)
    assert dialogue.feed(dialogue.request("commit")) == []  # it is refused, whoever is asked


def test_commit_is_asked_about_where_no_message_was_seen() -> None:
    dialogue = Dialogue()
    dialogue.protocol.answer(dialogue.ask("commit"), NO)
    assert dialogue.output() == dialogue.result("commit", "reject|550 5.7.1 No")


ABORTS = {
    "it hung up": ["tx-rollback", "tx-reset", "link-disconnect"],
    "it was silent for too long": ["timeout", "tx-rollback", "tx-reset", "link-disconnect"],
    "only the end is told": ["link-disconnect"],
}


@pytest.mark.parametrize("reports", ABORTS.values(), ids=ABORTS.keys())
@pytest.mark.parametrize("complete", [False, True])
def test_a_client_that_leaves_in_its_message(reports: list[str], complete: bool) -> None:
    dialogue = Dialogue()
    items = dialogue.feed(*dialogue.lines(HAM + (b".\n" if complete else b"")))
    (message,) = [message for _, message in dialogue.protocol.messages()]
    for name in reports:
        dialogue.feed(dialogue.report(name, *(["5287b63d"] if name.startswith("tx-") else [])))
    assert dialogue.output() == b""
    assert message.size == 0
    assert list(dialogue.protocol.messages()) == []
    assert not dialogue.protocol.sessions
    for item in items:
        assert isinstance(item, Slot)
        assert dialogue.protocol.answer(item, Proceed()) is None
    assert dialogue.output() == b""


def test_sessions_whose_lines_come_in_one_chunk_are_kept_apart() -> None:
    dialogue = Dialogue()
    mine = dialogue.lines(b"a1\na2\na3\n.\n", S)
    theirs = dialogue.lines(b"b1\nb2\n.\n", OTHER)
    items = dialogue.feed(mine[0], theirs[0], theirs[1], mine[1], mine[2], theirs[2], mine[3])
    contents = {
        item.session.id: b"".join(item.message.pieces())
        for item in items
        if isinstance(item, Slot) and item.message
    }
    assert contents == {S: b"a1\na2\na3\n", OTHER: b"b1\nb2\n"}


def test_reports_between_the_lines_of_a_message_do_not_touch_it() -> None:
    dialogue = Dialogue()
    first, second, dot = dialogue.lines(b"one\ntwo\n.\n")
    data = dialogue.report("tx-data", "5287b63d", "ok")
    _, slot = dialogue.feed(first, data, second, dot)
    assert isinstance(slot, Slot)
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(b"one\ntwo\n.\n")


@pytest.mark.parametrize("complete", [False, True])
def test_a_command_in_the_middle_of_a_message_is_the_end_of_it(complete: bool) -> None:
    dialogue = Dialogue()
    dialogue.feed(*dialogue.lines(b"old\n" + (b".\n" if complete else b"")))
    dialogue.protocol.answer(dialogue.ask("mail-from", "a@b"), Proceed())
    assert list(dialogue.protocol.messages()) == []
    dialogue.output()
    dialogue.protocol.answer(dialogue.message(b"new\n"), Proceed())
    assert dialogue.output() == dialogue.echo(b"new\n.\n")


def test_lines_behind_the_final_dot_are_ignored() -> None:
    dialogue = Dialogue()
    slot = dialogue.message(b"one\n")
    assert dialogue.feed(*dialogue.lines(b"two\n.\n")) == []
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(b"one\n.\n")


@pytest.mark.parametrize("line", ["|smtp-in|data-line|", "filter|0.7|1|smtp-in|data-line|x|y|z"])
def test_a_line_that_looks_like_the_protocol_is_a_line(line: str) -> None:
    dialogue = Dialogue()
    content = f"{line}\n{line}\n|\n".encode()
    slot = dialogue.message(content)
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(content + b".\n")


def test_a_shorter_id_does_not_make_the_content_s_pipe_the_line_s() -> None:
    dialogue = Dialogue()
    content = b"0123456789abcd|" * 3 + b"\n"  # a `|` where that of a usual line would be
    slot = dialogue.message(content * 3, "1")
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(content * 3 + b".\n", "1")


def test_lines_without_a_token_keep_what_stands_before_their_first_pipe() -> None:
    dialogue = Dialogue("1")
    head = f"filter|1|1544000000|smtp-in|data-line|{S}|".encode()
    assert dialogue.feed(head + b"hello|world") == []  # known from now on, if it were
    (slot,) = dialogue.feed(head + b"hello|again", head + b"hello|", head, head + b".")
    assert isinstance(slot, Slot)
    dialogue.protocol.answer(slot, Proceed())
    back = b"filter-dataline|%s|" % S.encode()
    expected = (b"hello|world", b"hello|again", b"hello|", b"", b".")
    assert dialogue.output() == b"".join(back + line + b"\n" for line in expected)


# Long lines -------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "longest"), [("0.6", 1997), ("0.7", 65_485)])
def test_a_line_of_the_longest_length_passes(version: str, longest: int) -> None:
    dialogue = Dialogue(version, break_long_lines=False)
    line = b"x" * longest + b"\n"
    slot = dialogue.message(line)
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(line + b".\n")


@pytest.mark.parametrize(("version", "longest"), [("0.6", 1997), ("0.7", 65_485)])
@pytest.mark.parametrize("first", [b"", b"y: z\n"], ids=["the first line", "a later line"])
def test_a_longer_line_is_broken_and_never_cut(version: str, longest: int, first: bytes) -> None:
    dialogue = Dialogue(version)
    line = b"x" * longest
    broken, slot = dialogue.feed(*dialogue.lines(first + line + b"END\nz\n.\n"))
    assert isinstance(broken, Broken)
    assert broken.lines == 1
    assert isinstance(slot, Slot)
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(first + line + b"\n END\nz\n.\n")


@pytest.mark.parametrize(("version", "longest"), [("0.6", 1997), ("0.7", 65_485)])
def test_a_longer_line_refuses_its_message_where_that_is_wanted(version: str, longest: int) -> None:
    dialogue = Dialogue(version, break_long_lines=False)
    lines = dialogue.lines(b"y: z\n" + b"x" * (longest + 1) + b"\nmore\n.\n")
    (withheld,) = dialogue.feed(*lines)
    assert isinstance(withheld, Withheld)
    assert withheld.decision == LONG_LINE
    assert dialogue.output() == dialogue.echo(b".\n")
    assert dialogue.feed(dialogue.request("commit")) == []
    said = "reject|554 5.6.0 A line of the message is too long"
    assert dialogue.output() == dialogue.result("commit", said)
    dialogue.protocol.answer(dialogue.message(HAM), Proceed())  # the next one is its own
    assert dialogue.output() == dialogue.echo(HAM + b".\n")
