"""What does a fault of our own cost on the way to a bridge and back, or a disk's?  Never more than
a message that is refused; never an answer to something that was not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bridge import link
from bridge.bridges import MAX_DRAINING
from bridge.linkend import LinkEnd
from bridge.smtpd.message import Message
from tests.unit.dialogue import FailingStore, take_runs
from tests.unit.shim_world import MESSAGE, Acting, Bridge, Straw, World, begun, send, survived

PLAIN = "[fcrdns]\nenabled = false"


class Noting(Bridge):
    """Lets everything pass, and keeps what it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
        self.bodies.append(body)
        straw.answer(header["id"])


@pytest.mark.parametrize("error", [MemoryError, OSError, KeyError])
def test_a_message_that_was_not_sent_whole_is_refused_whatever_the_bridge_says(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def pieces(message: Message, *_: int) -> Iterator[bytes]:
        yield b"Subject"
        raise error

    with World(Noting(), PLAIN) as world:
        with monkeypatch.context() as patch:
            patch.setattr(Message, "pieces", pieces)
            assert send(world).code in (451, 452)
        survived(world)


def test_one_that_can_not_be_read_back_is_refused_also_when_that_can_not_be_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with World(Noting(), PLAIN) as world:
        real = Message.pieces

        def pieces(message: Message, *where: int) -> Iterator[Any]:
            if not message.stored:
                data = b"".join(take_runs(message))
                message.store, message.stored = FailingStore(data, 4), message.size
            return real(message, *where)

        def speechless(event: str, **_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(Message, "pieces", pieces)
            patch.setattr(world.shim, "log", speechless)
            assert send(world).code == 452
        survived(world)


def test_an_answer_that_fails_does_not_hold_up_the_next_of_the_same_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with World(Acting(lambda *_: None), PLAIN) as world:
        outcomes = [begun(world)[1] for _ in range(2)]
        (straw,) = world.links
        real, left = world.shim.on_answer, [1]

        def on_answer(*arguments: Any) -> None:
            if left[0]:
                left[0] -= 1
                raise KeyError
            real(*arguments)

        monkeypatch.setattr(world.shim, "on_answer", on_answer)
        before = world.clock.now
        for header, _ in straw.requests:
            straw.answer(header["id"])
        assert world.wait(outcomes[1]).code == 250
        assert world.clock.now - before < 2.0  # not until the next sign of life
        assert world.wait(outcomes[0]).code == 451


def test_a_link_whose_writing_fails_is_given_up_and_the_message_goes_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with World(Noting(), PLAIN) as world:
        real, left = LinkEnd.write, [1]

        def write(end: LinkEnd, now: float) -> None:
            if left[0] and end.wants_write:
                left[0] -= 1
                raise MemoryError
            real(end, now)

        monkeypatch.setattr(LinkEnd, "write", write)
        assert send(world).code == 250
        assert "bridge-lost" in world.log
        assert isinstance(world.bridge, Noting)
        (message,) = filter(None, world.bridge.bodies)
        assert message.endswith(MESSAGE.partition(b"\n\n")[2].replace(b"\n.", b"\n.."))


class Draining(Bridge):
    """Drains at once, and stays; from a link of some number on it is a good one."""

    def __init__(self, good_from: int) -> None:
        self.good_from = good_from

    def linked(self, straw: Straw) -> None:
        super().linked(straw)
        if straw.number < self.good_from:
            straw.say("bye")


def test_a_sidecar_that_drains_and_stays_does_not_get_ever_more_links() -> None:
    with World(Draining(10**9), PLAIN) as world:
        world.pass_time(120.0)
        assert len(world.links) == MAX_DRAINING


def test_one_that_is_replaced_several_times_while_it_drains_is_reached_all_the_same() -> None:
    with World(Draining(MAX_DRAINING - 1), PLAIN) as world:
        world.pass_time(20.0)
        assert send(world).code == 250
