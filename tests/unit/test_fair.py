"""Does a peer that sends much leave room for those that send little, and does nobody wait for
ever?
"""

from __future__ import annotations

import random

import pytest

from bridge.dispatch import Dispatcher, Lane, Pending
from bridge.fair import LOOK, OLDEST, FairQueue
from bridge.smtpd import events
from bridge.smtpd.items import MESSAGE, Slot
from bridge.smtpd.message import Message
from bridge.smtpd.session import Session


def ask(
    dispatcher: Dispatcher, name: str, src: str, *, size: int = 9, user: str = "", phase: str = ""
) -> Pending:
    """A message's request, or a command's."""
    session = Session(name, src=src, user=user)
    if phase:
        slot = Slot(session, phase, events.RcptTo(name, "bob@example.org"))
    else:
        content = Message()
        content.append(b"x" * (size - 1) + b"\n")
        slot = Slot(session, MESSAGE, events.DataLine(name, "."), content)
    return dispatcher.add(slot, 0.0, 45.0)


def taken(dispatcher: Dispatcher, lane: Lane) -> str:
    """The sessions whose requests a lane takes now."""
    found = []
    while (item := dispatcher.next_for(lane, 0.0)) is not None:
        dispatcher.send(item, lane)
        found.append(item.slot.session.id)
    return " ".join(found)


A, A2, B, C = "192.0.2.1:1001", "192.0.2.1:1002", "192.0.2.2:1", "192.0.2.3:1"


@pytest.mark.parametrize(
    ("waiting", "slots", "sent"),
    [
        pytest.param("a1 a2 a3 b1 c1", 3, "a1 b1 c1", id="one of each before a second of one"),
        pytest.param("a1 a2 b1 b2", 3, "a1 b1 a2", id="the first to come among equals"),
        pytest.param("b1 a1 b2 a2", 3, "b1 a1 b2", id="whoever that is"),
        pytest.param("a1 a2 a3", 3, "a1 a2 a3", id="all of one who is alone"),
        pytest.param("a1 a2 a3 a4 b1 b2 c1 c2", 8, "a1 b1 c1 a2 b2 c2 a3 a4", id="in turn"),
        pytest.param("a1 a2 a3 b1 b2 b3", 4, "a1 b1 a2 a3", id="each fourth the oldest"),
    ],
)
@pytest.mark.parametrize("phase", ["", "rcpt-to"], ids=["messages", "commands"])
def test_peers_share(waiting: str, slots: int, sent: str, phase: str) -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=slots, commands=slots, bytes=1000)
    for name in waiting.split():
        ask(dispatcher, name, {"a": A, "b": B, "c": C}[name[0]], phase=phase)
    assert taken(dispatcher, lane) == sent


def test_what_other_lanes_have_counts_and_what_is_done_does_not() -> None:
    dispatcher = Dispatcher()
    one, two = (Lane(slots=2, commands=2, bytes=1000) for _ in range(2))
    first = [ask(dispatcher, name, A) for name in ("a1", "a2")]
    assert taken(dispatcher, one) == "a1 a2"
    ask(dispatcher, "a3", A2)
    ask(dispatcher, "b1", B)
    two.slots = 1
    assert taken(dispatcher, two) == "b1"
    for item in first:
        dispatcher.done(item)
    ask(dispatcher, "b2", B)
    one.slots = 1
    dispatcher.done(ask(dispatcher, "c1", C))
    assert taken(dispatcher, one) == "a3"


def test_messages_and_commands_are_counted_apart() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=2, commands=0, bytes=1000)
    ask(dispatcher, "a1", A, phase="rcpt-to")
    lane.commands = 1
    assert taken(dispatcher, lane) == "a1"
    ask(dispatcher, "a2", A)
    ask(dispatcher, "b1", B)
    assert taken(dispatcher, lane) == "a2 b1"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(("192.0.2.1:1", ""), ("192.0.2.1:2", ""), True, id="ports"),
        pytest.param(("192.0.2.1:1", ""), ("192.0.2.2:1", ""), False, id="addresses"),
        pytest.param(("[2001:db8::1]:1", ""), ("[2001:db8::ffff:2]:1", ""), True, id="one /64"),
        pytest.param(("[2001:db8::1]:1", ""), ("[2001:db8:0:1::1]:1", ""), False, id="two /64"),
        pytest.param(("[::ffff:192.0.2.1]:1", ""), ("192.0.2.1:2", ""), True, id="IPv4 within"),
        pytest.param(("unix:/a", ""), ("unix:/b", ""), True, id="local sessions"),
        pytest.param(("192.0.2.1:1", "al"), ("192.0.2.2:1", "al"), True, id="one user's addresses"),
        pytest.param(("192.0.2.1:1", "al"), ("192.0.2.1:2", "bo"), False, id="users of a proxy"),
        pytest.param(("192.0.2.1:1", "al"), ("192.0.2.1:2", ""), False, id="a user and a stranger"),
    ],
)
def test_who_is_one_peer(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    first, second = (Session("1", src=src, user=user) for src, user in (one, other))
    assert (first.peer == second.peer) is same


def test_a_peer_with_something_open_does_not_wait_for_all_who_have_nothing() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=2, commands=0, bytes=1000)
    held = ask(dispatcher, "a1", A)
    dispatcher.send(held, lane)
    waits = ask(dispatcher, "a2", A)
    for number in range(OLDEST):  # one after the other, of always new ones
        stranger = ask(dispatcher, f"s{number}", f"198.51.100.{number}:1")
        if taken(dispatcher, lane) == "a2":
            break
        dispatcher.done(stranger)
    assert waits.lane is lane


def test_a_message_that_does_not_fit_does_not_hold_up_the_next() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=9, commands=9, bytes=100)
    ask(dispatcher, "b1", B, size=50)
    for name, src, size in (("a1", A, 60), ("b2", B, 60), ("a2", A, 40), ("c1", C, 5)):
        ask(dispatcher, name, src, size=size)
    assert taken(dispatcher, lane) == "b1 a2 c1"


def test_what_a_dead_bridge_had_is_sent_again_before_what_came_later() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=2, commands=2, bytes=1000)
    for name in ("a1", "a2", "a3", "a4"):
        ask(dispatcher, name, A)
    assert taken(dispatcher, lane) == "a1 a2"
    assert dispatcher.lost(lane, 1.0) == []
    ask(dispatcher, "b1", B)
    assert taken(dispatcher, Lane(slots=5, commands=2, bytes=1000)) == "a1 a2 b1 a3 a4"


def test_nothing_is_left_of_what_is_gone() -> None:
    dispatcher, chance = Dispatcher(), random.Random(7)
    lane = Lane(slots=20, commands=20, bytes=1000)
    items: list[Pending] = []
    for number in range(3000):
        src = f"192.0.2.{chance.randrange(40)}:1"
        items.append(ask(dispatcher, str(number), src, phase=chance.choice(["", "rcpt-to"])))
        if chance.random() < 0.5:
            taken(dispatcher, lane)
        while len(items) > chance.randrange(200):
            dispatcher.done(items.pop(chance.randrange(len(items))))
        if number % 500 == 499:
            dispatcher.lost(lane, float(number))
    for item in items:
        dispatcher.done(item)
    assert (lane.open, lane.open_messages, lane.open_bytes) == (0, 0, 0)
    assert (dispatcher.next_deadline(), dispatcher.pending) == (None, {})
    for queue in dispatcher._queues:
        assert (queue._items, queue._by_peer, queue._open) == ({}, {}, {})
        assert len(queue._heap) < 100


def test_each_choice_looks_at_few_however_many_wait() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5000):
        queue.add(number, str(number % 2500), number)
    looked_at: list[int] = []

    def never(item: int) -> bool:
        looked_at.append(item)
        return False

    assert queue.choose(never) is None
    assert looked_at == list(range(LOOK))
    looked_at.clear()
    assert queue.choose(lambda item: never(item) or item == 5) == 5  # as if nothing had been
    assert looked_at == list(range(6))
