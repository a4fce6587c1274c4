"""Does each open request go to the right bridge at the right time, and often enough but not
too often?
"""

from __future__ import annotations

import itertools

import pytest

from bridge.dispatch import (
    ALONE_FOR,
    KEEP_ALL,
    KEEP_FREE,
    LARGE,
    MAX_ATTEMPTS,
    Dispatcher,
    Lane,
    Pending,
)
from bridge.smtpd import events
from bridge.smtpd.items import MESSAGE, Slot
from bridge.smtpd.message import Message
from bridge.smtpd.session import Session

names = (f"{number:016x}" for number in itertools.count())


def command(dispatcher: Dispatcher, now: float = 0.0, session: str = "") -> Pending:
    held = Session(session or next(names))
    slot = Slot(held, "rcpt-to", events.RcptTo(held.id, "bob@example.org"))
    return dispatcher.add(slot, now, now + 15.0)


def message(dispatcher: Dispatcher, size: int = 100, now: float = 0.0) -> Pending:
    held = Session(next(names))
    content = Message()
    content.append(b"x" * (size - 1) + b"\n")
    slot = Slot(held, MESSAGE, events.DataLine(held.id, "."), content)
    return dispatcher.add(slot, now, now + 45.0)


def taken(dispatcher: Dispatcher, lane: Lane, now: float = 0.0) -> list[Pending]:
    """All that a lane takes now."""
    found = []
    while (item := dispatcher.next_for(lane, now)) is not None:
        dispatcher.send(item, lane)
        found.append(item)
    return found


# What is granted --------------------------------------------------------------------------


def test_a_lane_without_a_hello_gets_nothing() -> None:
    dispatcher = Dispatcher()
    command(dispatcher)
    assert taken(dispatcher, Lane()) == []


def test_a_lane_gets_as_many_as_it_granted_in_the_order_of_arrival() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=3, commands=3, bytes=1000)
    items = [command(dispatcher) for _ in range(5)]
    assert taken(dispatcher, lane) == items[:3]
    dispatcher.done(items[1])
    assert taken(dispatcher, lane) == [items[3]]
    assert (lane.open, len(dispatcher.pending)) == (3, 4)


def test_commands_go_before_messages() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=10, commands=10, bytes=1000)
    first, second = message(dispatcher), command(dispatcher)
    third, fourth = message(dispatcher), command(dispatcher)
    assert taken(dispatcher, lane) == [second, fourth, first, third]


def test_a_lane_gets_no_more_bytes_than_it_granted() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=10, commands=10, bytes=1000)
    first, large, small = (message(dispatcher, size) for size in (600, 600, 400))
    assert taken(dispatcher, lane) == [first, small]
    assert lane.open_bytes == 1000
    dispatcher.done(first)
    assert taken(dispatcher, lane) == [large]


def test_a_message_larger_than_the_grant_goes_alone() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=10, commands=10, bytes=1000)
    small, large = message(dispatcher, 10), message(dispatcher, 5000)
    assert taken(dispatcher, lane) == [small]
    late = command(dispatcher)
    assert taken(dispatcher, lane) == [late]  # a command needs no bytes
    dispatcher.done(small)
    assert taken(dispatcher, lane) == [large]
    waiting = message(dispatcher, 10)
    assert taken(dispatcher, lane) == []
    dispatcher.done(large)
    assert taken(dispatcher, lane) == [waiting]


def test_a_lane_that_drains_gets_nothing_and_keeps_what_it_has() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=1, commands=1, bytes=1000)
    mine, other = command(dispatcher), command(dispatcher)
    assert taken(dispatcher, lane) == [mine]
    lane.draining, lane.slots, lane.commands = True, 10, 10
    assert taken(dispatcher, lane) == []
    assert taken(dispatcher, Lane(slots=10, commands=10, bytes=1000)) == [other]
    assert mine.lane is lane


def test_two_lanes_share_what_is_open() -> None:
    dispatcher = Dispatcher()
    one, two = Lane(slots=2, commands=2, bytes=1000), Lane(slots=2, commands=2, bytes=1000)
    items = [command(dispatcher) for _ in range(5)]
    assert taken(dispatcher, one) + taken(dispatcher, two) == items[:4]


# What is open -----------------------------------------------------------------------------


def test_what_is_done_is_gone_and_can_be_done_again() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=10, commands=10, bytes=1000)
    item = message(dispatcher, 100)
    taken(dispatcher, lane)
    for _ in range(2):
        dispatcher.done(item)
        assert (lane.open, lane.open_bytes) == (0, 0)
        assert dispatcher.get(item.id) is None
        assert dispatcher.of_session(item.slot.session.id) is None
    assert dispatcher.next_deadline() is None


@pytest.mark.parametrize("id", [None, "1", 1.0, True, [1], 2, -1])
def test_an_id_that_was_never_given(id: object) -> None:
    dispatcher = Dispatcher()
    assert command(dispatcher).id == 1
    assert dispatcher.get(id) is None


def test_a_session_that_asks_anew_is_known_by_its_last_request() -> None:
    dispatcher = Dispatcher()
    first = command(dispatcher, session="1ef1")
    second = command(dispatcher, session="1ef1")
    assert dispatcher.of_session("1ef1") is second
    dispatcher.done(first)
    assert dispatcher.of_session("1ef1") is second


def test_deadlines() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=1, commands=1, bytes=1000)
    early = command(dispatcher, now=0.0)
    late = command(dispatcher, now=1.0)
    long = message(dispatcher, now=0.5)
    taken(dispatcher, lane)
    assert dispatcher.next_deadline() == 15.0
    assert dispatcher.expired(14.9) == []
    assert dispatcher.expired(15.0) == [early]
    assert dispatcher.expired(100.0) == [early, late, long]
    dispatcher.done(early)
    assert dispatcher.next_deadline() == 16.0


# Bridges that die -------------------------------------------------------------------------


def test_what_was_open_when_a_bridge_died_is_sent_again_in_its_order() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=2, commands=2, bytes=1000)
    items = [command(dispatcher) for _ in range(3)]
    taken(dispatcher, lane)
    assert dispatcher.lost(lane, 1.0) == []
    assert taken(dispatcher, Lane(slots=10, commands=10, bytes=1000), 1.0) == items
    assert [item.attempt for item in items] == [1, 1, 0]


def test_what_three_bridges_died_of_is_given_up() -> None:
    dispatcher = Dispatcher()
    item = command(dispatcher)
    for _ in range(MAX_ATTEMPTS - 1):
        lane = Lane(slots=1, commands=1, bytes=1000)
        assert taken(dispatcher, lane) == [item]
        assert dispatcher.lost(lane, 1.0) == []
    lane = Lane(slots=1, commands=1, bytes=1000)
    taken(dispatcher, lane)
    assert dispatcher.lost(lane, 1.0) == [item]
    assert dispatcher.get(item.id) is item  # until it is answered


def test_a_bridge_that_had_nothing_dies_of_nothing() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=1, commands=1, bytes=1000)
    item = command(dispatcher)
    assert dispatcher.lost(lane, 1.0) == []
    assert item.attempt == 0


def suspects(dispatcher: Dispatcher, count: int) -> list[Pending]:
    """Requests that two bridges have died of, or with, at 10.0."""
    items = [message(dispatcher, now=0.0) for _ in range(count)]
    for _ in range(2):
        lane = Lane(slots=count, commands=count, bytes=100_000)
        assert taken(dispatcher, lane, 10.0) == items
        dispatcher.lost(lane, 10.0)
    return items


def test_suspects_are_sent_one_at_a_time_and_nothing_with_them() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=10, commands=10, bytes=100_000)
    first, second = suspects(dispatcher, 2)
    innocent = command(dispatcher)
    assert taken(dispatcher, lane, 10.0) == [first]
    dispatcher.done(first)
    assert taken(dispatcher, lane, 10.1) == [second]
    dispatcher.done(second)
    assert taken(dispatcher, lane, 10.2) == [innocent]


def test_a_suspect_waits_for_a_lane_to_be_empty_but_not_for_ever() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=10, commands=10, bytes=100_000)
    busy = command(dispatcher)
    assert taken(dispatcher, lane, 9.0) == [busy]
    (suspect,) = suspects(dispatcher, 1)
    assert taken(dispatcher, lane, 10.0) == []
    assert taken(dispatcher, lane, 10.0 + ALONE_FOR) == [suspect]


def test_others_do_not_wait_for_a_suspect_for_ever() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=10, commands=10, bytes=100_000)
    (suspect,) = suspects(dispatcher, 1)
    other = command(dispatcher)
    assert taken(dispatcher, lane, 10.0) == [suspect]
    assert taken(dispatcher, lane, 10.0 + ALONE_FOR - 0.1) == []
    assert taken(dispatcher, lane, 10.0 + ALONE_FOR) == [other]


def test_many_suspects_hold_up_nobody_for_longer_than_one_death_asks() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=40, commands=40, bytes=100_000)
    waiting = suspects(dispatcher, 10)
    other = command(dispatcher, now=10.0)
    now, batch = 10.0, []
    while other not in batch:
        batch = taken(dispatcher, lane, now)
        assert sum(item in waiting for item in batch) <= 1
        now += 2.0  # each takes its time
        for item in batch:
            dispatcher.done(item)
    assert now - 10.0 <= ALONE_FOR + 2.0 + 2.0


def test_a_large_message_is_overtaken_for_some_seconds_only() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=99, commands=9, bytes=1000)
    held = [message(dispatcher, 300, now=0.0) for _ in range(3)]
    assert taken(dispatcher, lane, 0.0) == held
    large = message(dispatcher, 600, now=0.0)
    now = 0.0
    while large.lane is None:
        now += 0.5
        assert now < KEEP_FREE + 3.0
        message(dispatcher, 300, now=now)
        dispatcher.done(held.pop(0))
        held += taken(dispatcher, lane, now)
    assert now > KEEP_FREE


def test_much_smaller_ones_overtake_it_a_little_longer() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=99, commands=9, bytes=1280)
    held = message(dispatcher, 1000)
    assert taken(dispatcher, lane, 0.0) == [held]
    large = message(dispatcher, 1200, now=0.0)
    assert taken(dispatcher, lane, KEEP_FREE + 0.1) == []
    little = message(dispatcher, 10, now=4.0)
    message(dispatcher, 11, now=4.0)
    assert taken(dispatcher, lane, 4.0) == [little]
    dispatcher.done(little)
    message(dispatcher, 10, now=5.0)
    late = KEEP_FREE + KEEP_ALL + 0.2
    assert taken(dispatcher, lane, late) == []
    dispatcher.done(held)
    assert taken(dispatcher, lane, late)[0] is large


def test_one_lane_is_kept_free_and_the_others_are_not() -> None:
    dispatcher = Dispatcher()
    one, two = (Lane(slots=9, commands=9, bytes=1000) for _ in range(2))
    for lane in (one, two):
        message(dispatcher, 600, now=0.0)
        assert len(taken(dispatcher, lane, 0.0)) == 1
    large = message(dispatcher, 900, now=0.0)
    assert taken(dispatcher, one, 4.0) == []
    first, second = message(dispatcher, 300, now=4.0), message(dispatcher, 300, now=4.0)
    assert taken(dispatcher, two, 4.0) == [first]
    dispatcher.lost(two, 5.0)
    assert large.lane is None
    dispatcher.lost(one, 5.0)
    assert second.lane is None
    assert large in taken(dispatcher, Lane(slots=9, commands=9, bytes=3000), 5.0)


def test_150_large_messages_leave_a_small_one_room() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=32, commands=9, bytes=2 * LARGE)
    for _ in range(150):
        message(dispatcher, LARGE, now=0.0)
    assert len(taken(dispatcher, lane, 0.0)) == 2
    lane.bytes += 100
    small = message(dispatcher, 100, now=0.0)
    assert taken(dispatcher, lane, 0.0) == [small]


def test_large_messages_that_never_end_leave_small_ones_room() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=32, commands=9, bytes=4 * LARGE)
    for _ in range(100):
        message(dispatcher, LARGE, now=0.0)
    lane.bytes += 100
    now, held = 20.0, taken(dispatcher, lane, 20.0)
    for _ in range(10):
        now += 2.0
        small = message(dispatcher, 100, now=now)
        dispatcher.done(held.pop(0))
        sent = taken(dispatcher, lane, now)
        assert small in sent
        dispatcher.done(small)
        held += [item for item in sent if item is not small]


def test_after_something_failed_all_is_counted_anew() -> None:
    dispatcher, lane, gone = Dispatcher(), Lane(2, 2, 1000), Lane(2, 2, 1000)
    items = [message(dispatcher, 100), command(dispatcher), message(dispatcher, 50)]
    assert len(taken(dispatcher, lane)) == 3
    lost = command(dispatcher)
    dispatcher.send(lost, gone)
    del dispatcher.pending[items[0].id]  # and then it failed
    waits = message(dispatcher, 10)
    dispatcher.recount([lane])
    assert (lane.open, lane.open_messages, lane.open_bytes) == (2, 1, 50)
    assert lost.lane is None
    assert taken(dispatcher, lane) == [lost, waits]
    assert dispatcher.next_deadline() == 15.0
    for item in [*items, lost, waits]:
        dispatcher.done(item)
    assert (lane.open, lane.open_messages, lane.open_bytes) == (0, 0, 0)


@pytest.mark.parametrize("place", [0, 7, 31])
def test_of_32_open_requests_only_the_one_that_kills_is_given_up(place: int) -> None:
    dispatcher = Dispatcher()
    items = [message(dispatcher) for _ in range(32)]
    poison = items[place]
    now, deaths, given_up = 0.0, 0, []
    answered: list[Pending] = []
    while dispatcher.pending:
        lane = Lane(slots=32, commands=32, bytes=100_000)
        while batch := taken(dispatcher, lane, now):
            now += 0.1
            if poison in batch:  # it dies before it has answered anything
                deaths += 1
                lost = dispatcher.lost(lane, now)
                given_up += lost
                for item in lost:
                    dispatcher.done(item)
                break
            for item in batch:
                answered.append(item)
                dispatcher.done(item)
        assert deaths <= MAX_ATTEMPTS
    assert given_up == [poison]
    assert deaths == MAX_ATTEMPTS
    assert len(answered) == 31
