"""What does a fault of our own cost, in the middle of one session's line?  That session's message
or command, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge.smtpd import live, protocol
from bridge.smtpd.decisions import Proceed
from bridge.smtpd.items import MESSAGE, Item, Slot
from bridge.smtpd.message import Message
from bridge.smtpd.session import Session
from tests.unit.dialogue import OTHER, Dialogue, S

HAM = b"Subject: x\n\nhello\n"
CHUNKS = (b"Subject: x\n", b"\nhello\n", b"bye\n.\n")


class Bug(Exception):
    """What nobody has thought of."""


def fed(dialogue: Dialogue, *lines: bytes) -> tuple[list[Item], int]:
    """What these lines mean, and how many bugs there were."""
    dialogue.protocol.take(b"".join(line + b"\n" for line in lines))
    items: list[Item] = []
    bugs = 0
    for _ in range(5):
        try:
            items += dialogue.protocol.rest()
            break
        except Bug:
            bugs += 1
    return items, bugs


def fails_at(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[[int], bool]) -> None:
    """The call of that number, from 0 on, fails."""
    real, calls = getattr(owner, name), [0]

    def call(*arguments: Any) -> Any:
        calls[0] += 1
        if when(calls[0] - 1):
            raise Bug
        return real(*arguments)

    patch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        pytest.param(live.Live, "begin", 0, id="at the first line"),
        pytest.param(Message, "append", 0, id="at the first run"),
        pytest.param(Message, "append", 1, id="in the middle"),
        pytest.param(Message, "append", 2, id="at the last lines, with the final dot"),
        pytest.param(protocol, "first_too_long", 2, id="at the last lines, before they are held"),
    ],
)
def test_a_message_of_which_something_was_lost_is_refused_and_another_is_not(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int
) -> None:
    dialogue = Dialogue()
    dialogue.feed(*dialogue.lines(b"Subject: other\n\n", OTHER))
    bugs = 0
    with monkeypatch.context() as patch:
        fails_at(patch, owner, name, lambda call: call == at)
        for chunk in CHUNKS:
            bugs += fed(dialogue, *dialogue.lines(chunk))[1]
    assert bugs == 1
    assert dialogue.output() == dialogue.echo(b".\n")
    assert fed(dialogue, dialogue.request("commit")) == ([], 0)
    assert dialogue.output().startswith(dialogue.result("commit", "reject|451 4.3.0 ").rstrip())
    (slot,) = dialogue.feed(*dialogue.lines(b"all\n.\n", OTHER))
    assert isinstance(slot, Slot)
    assert slot.message is not None
    assert b"".join(slot.message.pieces()) == b"Subject: other\n\nall\n"
    assert dialogue.message(HAM).phase == MESSAGE  # and the next one of the same session


def test_a_request_is_open_and_can_be_answered_and_another_session_s_message_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialogue = Dialogue()
    dialogue.feed(*dialogue.lines(b"Subject: other\n", OTHER))
    with monkeypatch.context() as patch:
        fails_at(patch, Session, "see", lambda call: call == 0)
        items, bugs = fed(
            dialogue,
            dialogue.request("mail-from", "<alice@example.net>"),
            *dialogue.lines(b"\nall\n.\n", OTHER),
        )
    assert bugs == 1
    slot = dialogue.protocol.sessions[S].slot
    assert slot is not None
    assert (slot.open, slot.phase) == (True, "mail-from")
    (other,) = items
    assert isinstance(other, Slot)
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.result("mail-from", "proceed")
    dialogue.protocol.answer(other, Proceed())
    assert dialogue.output() == dialogue.echo(b"Subject: other\n\nall\n.\n", OTHER)


def test_a_report_that_is_lost_costs_the_message_of_its_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialogue = Dialogue()
    dialogue.feed(*dialogue.lines(b"Subject: x\n"), *dialogue.lines(b"Subject: y\n", OTHER))
    with monkeypatch.context() as patch:
        fails_at(patch, Session, "see", lambda call: call == 0)
        assert (
            fed(dialogue, dialogue.report("tx-rcpt", "8b839cae", "ok", "<b@example.org>"))[1] == 1
        )
    dialogue.feed(*dialogue.lines(b"\nbye\n.\n"), dialogue.request("commit"))
    assert dialogue.output().startswith(dialogue.echo(b".\n") + b"filter-result|")
    assert dialogue.protocol.sessions[OTHER].verdict is None


def test_a_message_that_was_streaming_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogue = Dialogue(max_message_size=4)
    dialogue.feed(*dialogue.lines(b"Subject: x\n"))
    dialogue.protocol.release(dialogue.protocol.sessions[S].session)
    with monkeypatch.context() as patch:
        fails_at(patch, protocol, "first_too_long", lambda call: call == 0)
        assert fed(dialogue, *dialogue.lines(b"\nlost\n"))[1] == 1
    dialogue.feed(*dialogue.lines(b"bye\n.\n"), dialogue.request("commit"))
    said = dialogue.output()
    assert said.startswith(dialogue.echo(b"Subject: x\n.\n"))
    assert dialogue.result("commit", "reject|451 4.3.0").rstrip() in said
