"""Bridges that do not come, hang, die, drain or come back: is each request answered once and in
time, and nobody's message lost or delivered twice?
"""

from __future__ import annotations

import struct

import pytest

from bridge import link
from bridge.smtpd.message import Splice
from tests.unit.shim_world import (
    MARKED,
    Act,
    Acting,
    Bridge,
    Straw,
    World,
    answering,
    begun,
    send,
    survived,
)

# Nothing is asked but messages; and what passes unscanned says why.
PLAIN = "[fcrdns]\nenabled = false"
ONLY_MESSAGES = f"{MARKED}\n{PLAIN}"

LARGE = b"x: y\n\n" + (b"z" * 900 + b"\n") * 4000  # far above what sockets hold


def reason(world: World) -> str:
    """Why the last message passed unscanned."""
    first, _, _ = world.delivered[-1].content.partition(b"\n")
    assert first.startswith(b"X-Unscanned: bridge: ")
    return first.removeprefix(b"X-Unscanned: bridge: ").decode()


# Never there ------------------------------------------------------------------------------


class Mute(Bridge):
    """Takes the link and says nothing."""

    def linked(self, straw: Straw) -> None:
        pass

    def ping(self, straw: Straw) -> None:
        pass


class Hasty(Bridge):
    """Takes the link and leaves."""

    def linked(self, straw: Straw) -> None:
        straw.close()


class Raving(Bridge):
    """Takes the link and says nonsense."""

    def __init__(self, nonsense: bytes) -> None:
        self.nonsense = nonsense

    def linked(self, straw: Straw) -> None:
        straw.raw(self.nonsense)


ABSENT: dict[str, Bridge] = {
    "it says no hello": Mute(),
    "it leaves before its hello": Hasty(),
    "it says HTTP": Raving(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "it announces 4 GiB": Raving(struct.pack(">II", 0xFFFFFFFF, 0)),
    "it announces 4 GiB of body": Raving(struct.pack(">II", 2, 0xFFFFFFFF) + b"{}"),
    "it says what is no frame": Raving(struct.pack(">II", 2, 0) + b"[]"),
    "it says half a hello": Raving(link.encode({"kind": "hello"})[:-1]),
}


@pytest.mark.parametrize("bridge", ABSENT.values(), ids=ABSENT.keys())
def test_without_a_bridge_a_message_waits_for_its_patience_only(bridge: Bridge) -> None:
    with World(bridge, ONLY_MESSAGES) as world:
        before = world.clock.now
        assert send(world).code == 250
        assert reason(world) == "no bridge"
        assert world.clock.now - before <= 10.0 + 1.0  # shim.patience
        survived(world)


def test_where_nobody_listens_a_message_is_tempfailed_and_a_later_bridge_is_found() -> None:
    with World() as world:
        world.turned_away = True
        world.links[0].close()
        assert str(send(world)).startswith("451 4.7.1")
        world.turned_away = False
        survived(world)


def test_a_bridge_that_comes_in_time_gets_what_has_waited() -> None:
    with World(Mute(), ONLY_MESSAGES) as world:
        _, outcome = begun(world)
        world.pass_time(4.0)
        world.bridge = Bridge()
        assert world.wait(outcome).code == 250
        assert world.delivered[0].content.startswith(b"Received: ")


# Hung -------------------------------------------------------------------------------------


class Hung(Bridge):
    """Says hello and then nothing, not even pong."""

    def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
        pass

    def ping(self, straw: Straw) -> None:
        pass


# bridge.ping_timeout, a quarter of it until the ping, and the shim's sleeps in between.
FOUND_OUT = 10.0 + 2.5 + 2 * 1.0


def silent(straw: Straw, header: link.Header, body: bytes) -> None:
    pass


def test_an_answer_that_does_not_come_is_given_at_the_deadline() -> None:
    with World(Acting(silent), ONLY_MESSAGES) as world:
        before = world.clock.now
        assert send(world).code == 250
        assert world.clock.now == before + 45.0  # shim.message_deadline
        assert reason(world) == "no answer in time"
        (straw,) = world.links  # it answers pings: it is busy, not dead
        assert [frame for frame in straw.frames if frame["kind"] == "cancel"]
        survived(world)


def test_an_answer_behind_its_deadline_is_not_sent() -> None:
    with World(Acting(silent), PLAIN) as world:
        client, outcome = begun(world)
        world.pass_time(46.0)
        assert str(outcome.reply).startswith("451 4.7.1")
        (straw,) = world.links
        for header, _ in straw.requests:
            straw.answer(header["id"])
        world.pass_time(1.0)
        assert client.noop().code == 250
        assert world.delivered == []
        survived(world)


def test_a_bridge_that_is_silent_to_pings_is_replaced_and_its_requests_sent_again() -> None:
    with World(Hung(), ONLY_MESSAGES) as world:
        _, outcome = begun(world)
        before = world.clock.now
        world.bridge = Bridge()  # the next one is good
        world.run(lambda: len(world.links) == 2)
        assert world.clock.now - before <= FOUND_OUT  # bridge.ping_timeout
        assert world.wait(outcome).code == 250
        assert world.delivered[0].content.startswith(b"Received: ")
        assert 'why="no sign of life"' in world.log


def test_a_bridge_that_reads_nothing_is_found_out_although_there_is_always_more_to_write() -> None:
    with World(Hung(), ONLY_MESSAGES) as world:
        world.connect()
        world.links[0].deaf = True
        outcomes = []
        before = world.clock.now
        while len(world.links) == 1 and world.clock.now < before + 60.0:
            outcomes.append(begun(world)[1])  # something to write every second
            world.pass_time(1.0)
        assert world.clock.now - before <= FOUND_OUT
        world.bridge = Bridge()
        for outcome in outcomes:
            assert world.wait(outcome).code == 250


def test_a_bridge_that_reads_a_large_message_slowly_is_not_taken_for_hung() -> None:
    class Slow(Hung):
        def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
            straw.answer(header["id"])

    with World(Slow(), ONLY_MESSAGES) as world:
        world.connect()
        (straw,) = world.links
        straw.deaf = True
        _, outcome = begun(world, LARGE)
        for _ in range(30):  # a piece every second, 30 s in all
            world.pass_time(1.0)
            assert straw.read_some() or outcome.done
        straw.deaf = False
        assert world.wait(outcome).code == 250
        assert len(world.links) == 1


# Dying ------------------------------------------------------------------------------------


def dies(straw: Straw, header: link.Header, _: bytes) -> None:
    straw.close()


def dies_in_its_answer(straw: Straw, header: link.Header, _: bytes) -> None:
    frame = link.encode({"kind": "answer", "id": header["id"], "decision": "proceed"}, 100)
    straw.raw(frame + b"x" * 50)
    straw.close()


def raves(straw: Straw, header: link.Header, _: bytes) -> None:
    straw.raw(b"Traceback (most recent call last):\n")


DEATHS: dict[str, Act] = {
    "without a word": dies,
    "in the middle of its answer": dies_in_its_answer,
    "with nonsense in place of its answer": raves,
}


@pytest.mark.parametrize("act", DEATHS.values(), ids=DEATHS.keys())
def test_what_three_bridges_die_of_is_given_up(act: Act) -> None:
    with World(Acting(act), ONLY_MESSAGES) as world:
        assert send(world).code == 250
        assert reason(world) == "it failed"
        attempts = [header["attempt"] for straw in world.links for header, _ in straw.requests]
        assert attempts == [0, 1, 2]
        survived(world)


@pytest.mark.parametrize("act", DEATHS.values(), ids=DEATHS.keys())
@pytest.mark.parametrize("deaths", [1, 2])
def test_what_a_bridge_died_of_or_with_is_asked_again(deaths: int, act: Act) -> None:
    def at_first(straw: Straw, header: link.Header, body: bytes) -> None:
        if header["attempt"] < deaths:
            act(straw, header, body)
        else:
            assert body == straw.world.links[0].requests[0][1]
            straw.answer(header["id"], "proceed", [Splice(0, 0, b"X-Seen: yes\n")])

    with World(Acting(at_first), ONLY_MESSAGES) as world:
        assert send(world).code == 250
        assert world.delivered[0].content.startswith(b"X-Seen: yes\nReceived: ")
        assert len(world.links) == deaths + 1
        survived(world)


def test_a_message_that_kills_every_bridge_harms_no_other() -> None:
    def poisoned(straw: Straw, header: link.Header, body: bytes) -> None:
        if b"poison" in body:
            straw.close()
        else:
            straw.answer(header["id"])

    with World(Acting(poisoned)) as world:
        world.connect()
        world.links[0].deaf = True
        outcomes = []
        for number in range(20):
            word = b"poison" if number == 7 else b"good"
            outcomes.append(begun(world, b"Subject: %d\n\n%s\n" % (number, word))[1])
        world.links[0].deaf = False
        replies = [world.wait(outcome) for outcome in outcomes]
        assert [n for n, reply in enumerate(replies) if reply.code != 250] == [7]
        assert str(replies[7]).startswith("451 4.7.1")
        assert len(world.delivered) == 19
        survived(world)


def test_two_places_of_which_one_answers() -> None:
    class OneGood(Bridge):
        def linked(self, straw: Straw) -> None:
            if straw.number % 2:
                super().linked(straw)

    with World(OneGood(), places=2) as world:
        for _ in range(3):
            assert send(world).code == 250
        assert len(world.delivered) == 3


def test_a_bridge_that_answers_what_another_was_asked_is_not_heard() -> None:
    with World(Acting(silent), PLAIN, places=2) as world:
        _, outcome = begun(world)
        asked = next(straw for straw in world.links if straw.requests)
        (other,) = [straw for straw in world.links if straw is not asked]
        ((header, _),) = asked.requests
        other.answer(header["id"], "reject", status="5.7.1", text="No", code=550)
        world.pass_time(1.0)
        assert not outcome.done
        asked.answer(header["id"])
        assert world.wait(outcome).code == 250


# Leaving ----------------------------------------------------------------------------------


def test_a_bridge_that_drains_finishes_what_it_has_and_gets_nothing_new() -> None:
    with World(Acting(silent), ONLY_MESSAGES, places=2) as world:
        _, held = begun(world)
        old = next(straw for straw in world.links if straw.requests)
        ((header, _),) = old.requests
        old.say("bye")
        world.run(lambda: "bridge-drains" in world.log)
        world.become(Acting(answering()))
        for _ in range(3):
            assert send(world).code == 250  # by the other one
        assert len(old.requests) == 1
        assert not held.done
        old.answer(header["id"], "reject", status="5.7.1", text="No", code=550)
        assert str(world.wait(held)).startswith("550 5.7.1 No [")
        old.close()
        world.pass_time(1.0)
        assert 'why="it left"' in world.log
        survived(world)


def test_a_bridge_that_leaves_without_finishing_has_its_requests_sent_elsewhere() -> None:
    with World(Acting(silent), ONLY_MESSAGES, places=2) as world:
        _, held = begun(world)
        old = next(straw for straw in world.links if straw.requests)
        old.say("bye")
        world.become(Acting(answering()))
        old.close()
        assert world.wait(held).code == 250


def test_when_only_a_draining_bridge_is_left_requests_wait_for_the_next_one() -> None:
    with World(Acting(silent), ONLY_MESSAGES) as world:
        _, held = begun(world)
        (old,) = world.links
        old.say("bye")
        world.bridge = Bridge()
        assert send(world).code == 250
        assert len(world.links) == 2
        ((header, _),) = old.requests
        old.answer(header["id"])
        assert world.wait(held).code == 250


# Clients that leave -----------------------------------------------------------------------


def test_a_client_that_leaves_is_told_to_the_bridge_and_nothing_is_said() -> None:
    with World(Acting(silent), ONLY_MESSAGES) as world:
        client, outcome = begun(world)
        (straw,) = world.links
        ((header, _),) = straw.requests
        client.later.abort()
        straw.answer(header["id"])
        assert not world.wait(outcome).code
        world.pass_time(1.0)
        survived(world)


def test_a_session_that_ends_while_a_bridge_is_asked_wants_no_answer() -> None:
    with World(Acting(silent), PLAIN) as world:
        client, outcome = begun(world)
        (straw,) = world.links
        ((header, _),) = straw.requests
        assert client.later.session
        world.inject(f"report|0.7|1.0|smtp-in|link-disconnect|{client.later.session.id}\n")
        world.run(lambda: straw.frames[-1] == {"kind": "cancel", "id": header["id"]})
        straw.answer(header["id"])
        world.pass_time(60.0)  # also at its deadline
        assert not outcome.done


def test_a_session_that_ends_while_its_message_is_on_its_way_leaves_the_link_in_order() -> None:
    with World(Acting(answering()), PLAIN) as world:
        world.connect()
        (straw,) = world.links
        straw.deaf = True
        _, large = begun(world, LARGE)
        client, _ = begun(world)  # waits behind it
        assert client.later.session
        world.inject(f"report|0.7|1.0|smtp-in|link-disconnect|{client.later.session.id}\n")
        world.pass_time(1.0)
        straw.deaf = False
        assert world.wait(large).code == send(world).code == 250
        assert world.links == [straw]
        first, second, third = (body for _, body in straw.requests)
        assert (first[-5:], second[-5:], third[-5:]) == (b"zzzz\n", bytes(5), b"\nbye\n")
