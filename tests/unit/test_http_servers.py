"""Which of several servers is asked, over real connections, and when one is left alone?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from bridge.services.http import LARGE_BODY, Upstreams
from bridge.services.upstream import Rules, ServerState, ServiceError
from bridge.testing.http import Behaviour, Reply, StandIn
from tests.unit.asking import (
    GENEROUS,
    ask,
    closed_port,
    failure,
    run,
    until,
)


def test_a_single_server_that_restarts_is_asked_again() -> None:
    async def test() -> None:
        async with StandIn("close", "503", "ok") as server:
            upstreams = Upstreams("rspamd", [server.url])
            assert await ask(upstreams)
            assert server.count == 3
            assert upstreams.states() == [ServerState(server.url, "up", 0, "", 0.0)]

    run(test)


def test_round_robin_spreads_and_goes_on_when_one_dies() -> None:
    async def test() -> None:
        async with StandIn() as one, StandIn() as two:
            rules = Rules(strategy="round-robin")
            urls = [one.url, f"http://127.0.0.1:{closed_port()}", two.url]
            upstreams = Upstreams("rspamd", urls, rules=rules)
            for _ in range(6):
                await ask(upstreams)
            assert (one.count, two.count) == (2, 4)
            assert upstreams.states()[1].errors == 2

    run(test)


def test_the_breaker_opens_and_a_probe_closes_it() -> None:
    told: list[str] = []

    def changed(state: ServerState) -> None:
        told.append(state.state)

    async def test() -> None:
        async with StandIn("hang") as server:
            rules = Rules(timeout=0.2, retries=0, max_errors=2, revive=0.5, alone=0.5)
            upstreams = Upstreams("rspamd", [server.url], rules=rules, on_change=changed)
            kinds = [(await failure(upstreams)).kind for _ in range(4)]
            assert kinds == ["timeout", "timeout", "breaker-open", "breaker-open"]
            assert server.count == 2
            server.behave("ok")
            await asyncio.sleep(upstreams.states()[0].probe_in + 0.01)
            assert await ask(upstreams)
            assert await ask(upstreams)
            assert told == ["down", "up"]

    run(test)


def test_the_deadline_holds_over_all_retries() -> None:
    async def test() -> None:
        async with StandIn("hang") as one, StandIn("slow-head") as two:
            rules = Rules(timeout=GENEROUS, retries=5)
            upstreams = Upstreams("rspamd", [one.url, two.url], rules=rules)
            start = time.monotonic()
            assert (await failure(upstreams, patience=0.5)).kind == "timeout"
            assert time.monotonic() - start < GENEROUS / 2
            assert (await failure(upstreams, patience=-1.0)).kind == "timeout"
            assert one.count + two.count == 1

    run(test)


def test_a_lone_server_gets_a_large_message_once() -> None:
    async def test() -> None:
        async with StandIn("slam") as server:
            error = await failure(Upstreams("rspamd", [server.url]), bytes(LARGE_BODY + 1))
            assert (error.kind, server.count) == ("unreachable", 1)
            assert "hint: is this message of" in str(error)

    run(test)


def test_a_cancelled_probe_does_not_hold_the_breaker_open() -> None:
    async def test() -> None:
        async with StandIn("close", "hang", "ok") as server:
            rules = Rules(retries=0, max_errors=1, revive=0.0)
            upstreams = Upstreams("rspamd", [server.url], rules=rules)
            assert (await failure(upstreams)).kind == "unreachable"
            probe = asyncio.create_task(ask(upstreams))
            await until(lambda: server.count >= 2)
            assert (await failure(upstreams)).kind == "breaker-open"
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
            assert await ask(upstreams)

    run(test)


def test_ping_tells_each_server_apart() -> None:
    pong = Reply(200, b"pong\r\n", (("Server", "rspamd/2.7 (milter mode)"),))

    def expect(status: int, headers: Mapping[str, str], body: bytes) -> None:
        if "milter" in headers.get("server", ""):
            raise ServiceError("bad-reply", "this is the milter port")

    async def test() -> None:
        behaviours: list[str | Behaviour] = ["ok", pong, "hang", "500-html"]
        servers = [StandIn(behaviour) for behaviour in behaviours]
        urls = [(await server.__aenter__()).url for server in servers]
        urls.append(f"http://127.0.0.1:{closed_port()}")
        upstreams = Upstreams("rspamd", urls, rules=Rules(max_errors=1))
        told = await upstreams.ping("/ping", timeout=0.4)
        assert [url for url, _ in told] == urls
        for (_, why), says in zip(
            told, [None, None, "no whole reply", "status 500", "is it running?"], strict=True
        ):
            assert why is None if says is None else says in (why or "")
        strict = await upstreams.ping(timeout=0.4, parse=expect)
        assert strict[1][1] == f"rspamd: {urls[1]}: this is the milter port"
        assert {state.state for state in upstreams.states()} == {"up"}
        assert (servers[0].seen[0].method, servers[0].seen[0].path) == ("GET", "/ping")
        for server in servers:
            await server.__aexit__()

    run(test)
