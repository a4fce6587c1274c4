"""Which of several sidecars is asked, what is said of one that can't be reached, and what comes of
a grant that changes?  In the shim's own time, so that a minute takes no time.
"""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from bridge import link
from bridge.config import Endpoint, parse
from bridge.dial import Dialer
from tests.unit.shim_world import Act, Acting, Bridge, Straw, World, begun, send, survived

PLAIN = "[fcrdns]\nenabled = false"


def held(straw: Straw, header: link.Header, body: bytes) -> None:
    """No answer."""


silent: Act = held


@pytest.mark.parametrize(("seconds", "words"), [(20, 1), (150, 3)])
def test_one_that_cannot_be_reached_is_told_once_a_minute(seconds: float, words: int) -> None:
    with World(config=PLAIN) as world:
        world.turned_away = True
        world.links.clear()
        world.shim._bridges.ends[:] = []
        before = world.log.count("bridge-unreachable")
        world.pass_time(seconds)
        assert world.log.count("bridge-unreachable") - before == words
        world.turned_away = False
        survived(world)


@pytest.mark.parametrize(("minutes", "words"), [(10, 1), (61, 2)])
def test_one_that_cannot_be_reached_is_told_once_an_hour_while_another_serves(
    minutes: int, words: int
) -> None:
    with World(config=PLAIN, places=2) as world:
        world.turned_away = True  # who comes from now on: the first to leave
        before = world.log.count("bridge-unreachable")
        world.links[0].close()
        for _ in range(minutes):
            world.pass_time(60.0)
        assert world.log.count("bridge-unreachable") - before == words
        survived(world)


def test_messages_are_shared_out_and_who_has_less_to_do_gets_more() -> None:
    with World(Acting(silent), PLAIN, places=3) as world:
        outcomes = [begun(world)[1] for _ in range(7)]
        assert sorted(len(each.requests) for each in world.links) == [2, 2, 3]
        hung, *others = world.links
        for each in others:
            for header, _ in each.requests:
                each.answer(header["id"])
        had = len(hung.requests)
        outcomes += [begun(world)[1] for _ in range(2)]
        assert len(hung.requests) == had
        for each in world.links:
            for header, _ in each.requests:
                each.answer(header["id"])
        assert [world.wait(outcome).code for outcome in outcomes] == [250] * 9


def test_one_that_owes_a_sign_of_life_is_not_asked_while_another_gives_it() -> None:
    class OneLate(Acting):
        def linked(self, straw: Straw) -> None:
            straw.hello(slots=1)

        def ping(self, straw: Straw) -> None:
            if straw.number:
                super().ping(straw)

    with World(OneLate(silent), PLAIN, places=2) as world:
        world.pass_time(5.0)  # a ping goes out after a quarter of ping_timeout, 10 s
        late, good = world.links
        outcomes = [begun(world)[1] for _ in range(2)]
        assert (len(late.requests), len(good.requests)) == (0, 1)
        good.answer(good.requests[0][0]["id"])
        world.run(lambda: len(good.requests) == 2)
        good.answer(good.requests[1][0]["id"])
        assert [world.wait(outcome).code for outcome in outcomes] == [250, 250]
        assert late.requests == []


def test_the_only_one_is_asked_all_the_same() -> None:
    class Late(Bridge):
        def ping(self, straw: Straw) -> None:
            pass

    with World(Late(), PLAIN) as world:
        world.pass_time(5.0)
        assert send(world).code == 250


def test_a_second_hello_changes_what_is_granted() -> None:
    with World(Acting(silent), PLAIN) as world:
        world.pass_time(1.0)
        (straw,) = world.links
        straw.hello(slots=1)
        world.pass_time(1.0)
        outcomes = [begun(world)[1] for _ in range(3)]
        assert len(straw.requests) == 1
        straw.hello(slots=2)
        world.pass_time(1.0)
        assert len(straw.requests) == 2
        assert world.log.count("bridge-up") == 1
        world.become(Bridge())
        for header, _ in list(straw.requests):
            straw.answer(header["id"])
        for outcome in outcomes:
            assert world.wait(outcome).code == 250


# The way there ----------------------------------------------------------------------------


def test_a_name_of_several_addresses_is_tried_at_each() -> None:
    with socket.create_server(("127.0.0.2", 0)) as there:
        endpoint = Endpoint(host="bridge", port=there.getsockname()[1])
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, endpoint.port))
            for host in ("127.0.0.3", "127.0.0.2")
        ]
        dial = Dialer(parse("").shim)
        reached = 0
        for _ in range(4):
            dial._found[endpoint] = found  # as by its thread
            with suppress(OSError), dial(endpoint) as sock:
                sock.settimeout(5.0)
                reached += sock.getpeername()[0] == "127.0.0.2"
        assert reached == 2
