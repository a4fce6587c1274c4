"""Does a message that is too large to be held pass line by line, or not at all, and is one whose
store fails on the way back refused, with no line of it torn so that smtpd would misread it?
"""

from __future__ import annotations

import pytest

from bridge.smtpd.decisions import (
    INTERNAL_ERROR,
    Proceed,
    Reject,
)
from bridge.smtpd.items import Broken, Item, Oversize, Slot, Withheld
from bridge.smtpd.message import Splice, SpliceError
from tests.unit.dialogue import Dialogue, FailingStore, take_runs

NO = Reject("5.7.1", "No")
HAM = b"Received: by mx\nSubject: x\n\n..dot\n\nbye\n"

# Messages that are too large to be held ---------------------------------------------------


def oversize(items: list[Item]) -> Oversize:
    (item,) = [item for item in items if isinstance(item, Oversize)]
    assert isinstance(item, Oversize)
    return item


def test_a_message_that_grows_too_large_is_told_once() -> None:
    dialogue = Dialogue(max_message_size=10)
    assert dialogue.feed(*dialogue.lines(b"12345678\n")) == []
    oversize(dialogue.feed(*dialogue.lines(b"1\n")))
    assert dialogue.feed(*dialogue.lines(b"12345678\n")) == []


def test_a_released_message_passes_line_by_line_below_its_header() -> None:
    dialogue = Dialogue(max_message_size=10)
    item = oversize(dialogue.feed(*dialogue.lines(b"12345678\n..\n")))
    dialogue.protocol.release(item.session, b"x: y\n")
    assert dialogue.output() == dialogue.echo(b"x: y\n12345678\n..\n")
    assert dialogue.feed(*dialogue.lines(b"\nlater\n")) == []
    assert dialogue.output() == dialogue.echo(b"\nlater\n")
    assert [message.size for _, message in dialogue.protocol.messages()] == [0]
    assert dialogue.feed(*dialogue.lines(b"end\n.\n")) == []
    assert dialogue.output() == dialogue.echo(b"end\n.\n")
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output() == dialogue.result("commit", "proceed")
    dialogue.protocol.answer(dialogue.message(b"small\n"), NO)  # the next one is its own
    assert dialogue.output() == dialogue.echo(b".\n")


def test_a_released_message_has_its_long_lines_broken() -> None:
    dialogue = Dialogue("0.6", max_message_size=10)
    dialogue.protocol.release(oversize(dialogue.feed(*dialogue.lines(HAM))).session)
    (broken,) = dialogue.feed(*dialogue.lines(b"x" * 1998 + b"\n.\n"))
    assert isinstance(broken, Broken)
    assert dialogue.output() == dialogue.echo(HAM + b"x" * 1997 + b"\n x\n.\n")


def test_a_released_message_is_refused_for_a_long_line_where_that_is_wanted() -> None:
    dialogue = Dialogue("0.6", max_message_size=10, break_long_lines=False)
    dialogue.protocol.release(oversize(dialogue.feed(*dialogue.lines(HAM))).session)
    (withheld,) = dialogue.feed(*dialogue.lines(b"x" * 1998 + b"\nmore\n.\n"))
    assert isinstance(withheld, Withheld)
    assert dialogue.output() == dialogue.echo(HAM + b".\n")
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output().startswith(dialogue.result("commit", "reject|554 5.6.0")[:-1])


def test_a_message_that_is_whole_when_it_is_released_is_answered_with_its_header() -> None:
    dialogue = Dialogue(max_message_size=10)
    item, slot = dialogue.feed(*dialogue.lines(HAM + b".\n"))
    assert isinstance(item, Oversize)
    assert isinstance(slot, Slot)
    dialogue.protocol.release(item.session, b"x: y\n")
    assert dialogue.output() == dialogue.echo(b"x: y\n" + HAM + b".\n")
    assert not slot.open
    assert dialogue.protocol.answer(slot, NO) is None
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output() == dialogue.result("commit", "proceed")


def test_a_header_that_can_not_be_sent_is_an_error_and_nothing_is_said() -> None:
    dialogue = Dialogue(max_message_size=10)
    item = oversize(dialogue.feed(*dialogue.lines(HAM)))
    with pytest.raises(SpliceError):
        dialogue.protocol.release(item.session, b"x: y")
    assert dialogue.output() == b""


@pytest.mark.parametrize("rest", [b"..more\n.\n", b".\n"], ids=["with more", "at its end"])
def test_a_message_that_is_withheld_on_its_way_is_a_lone_dot(rest: bytes) -> None:
    dialogue = Dialogue(max_message_size=10)
    item = oversize(dialogue.feed(*dialogue.lines(HAM)))
    dialogue.protocol.withhold(item.session, NO)
    assert [message.size for _, message in dialogue.protocol.messages()] == [0]
    assert dialogue.output() == b""
    dialogue.feed(*dialogue.lines(rest))
    assert dialogue.output() == dialogue.echo(b".\n")
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output() == dialogue.result("commit", "reject|550 5.7.1 No")


def test_a_message_that_is_whole_when_it_is_withheld_is_answered() -> None:
    dialogue = Dialogue(max_message_size=10)
    item, slot = dialogue.feed(*dialogue.lines(HAM + b".\n"))
    assert isinstance(item, Oversize)
    dialogue.protocol.withhold(item.session, NO)
    assert dialogue.output() == dialogue.echo(b".\n")
    assert isinstance(slot, Slot)
    assert dialogue.protocol.answer(slot, Proceed()) is None


@pytest.mark.parametrize("what", ["release", "withhold"])
def test_a_message_whose_client_is_gone_can_be_told_so_late(what: str) -> None:
    dialogue = Dialogue(max_message_size=10)
    gone = dialogue.report("link-disconnect")
    item = oversize(dialogue.feed(*dialogue.lines(HAM), gone))
    if what == "release":
        dialogue.protocol.release(item.session, b"x: y\n")
    else:
        dialogue.protocol.withhold(item.session, NO)
    assert dialogue.output() == b""


def test_a_released_message_whose_client_leaves_says_nothing_more() -> None:
    dialogue = Dialogue(max_message_size=10)
    dialogue.protocol.release(oversize(dialogue.feed(*dialogue.lines(HAM))).session)
    dialogue.output()
    dialogue.feed(dialogue.report("tx-rollback", "5287b63d"), dialogue.report("link-disconnect"))
    assert dialogue.feed(*dialogue.lines(b"late\n.\n")) == []
    assert dialogue.output() == b""


# Stores that fail -------------------------------------------------------------------------

TORN = {
    "between two lines": (b"one\n", b"one\n"),
    "in a line": (b"one\ntw", b"one\ntw\n"),
    "at once": (b"", b""),
    "behind a line's stuffing, which must not end the message": (b"one\n.", b"one\n..\n"),
}


@pytest.mark.parametrize(("readable", "echoed"), TORN.values(), ids=TORN.keys())
def test_a_store_that_fails_on_the_way_back_refuses_the_message(
    readable: bytes, echoed: bytes
) -> None:
    dialogue = Dialogue()
    slot = dialogue.message(b"one\n..two\nthree\n")
    assert slot.message is not None
    take_runs(slot.message)
    store = slot.message.store = FailingStore(readable, len(readable))
    slot.message.stored = slot.message.size
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.echo(echoed + b".\n")
    assert store.closed
    assert dialogue.feed(dialogue.request("commit")) == []
    assert dialogue.output() == dialogue.result("commit", f"reject|{INTERNAL_ERROR.reply}")


def test_a_store_that_fails_when_its_splices_are_checked_refuses_the_message() -> None:
    dialogue = Dialogue()
    slot = dialogue.message(b"one\ntwo\n")
    assert slot.message is not None
    take_runs(slot.message)
    slot.message.store, slot.message.stored = FailingStore(b"", 0), slot.message.size
    assert dialogue.protocol.answer(slot, Proceed(), [Splice(4, 4, b"x: y\n")]) == INTERNAL_ERROR
    assert dialogue.output() == dialogue.echo(b".\n")


def test_a_store_that_fails_while_an_oversize_message_passes_refuses_it() -> None:
    dialogue = Dialogue(max_message_size=10)
    item = oversize(dialogue.feed(*dialogue.lines(HAM)))
    ((_, message),) = dialogue.protocol.messages()
    take_runs(message)
    message.store, message.stored = FailingStore(b"Received", 8), message.size
    dialogue.protocol.release(item.session)
    assert dialogue.output() == dialogue.echo(b"Received\n")
    dialogue.feed(*dialogue.lines(b"more\n.\n"))
    assert dialogue.output() == dialogue.echo(b".\n")
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output() == dialogue.result("commit", f"reject|{INTERNAL_ERROR.reply}")
