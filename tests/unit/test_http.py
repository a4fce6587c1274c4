"""The HTTP client against a stand-in that misbehaves, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from bridge.services.http import LARGE_BODY, Upstreams
from bridge.services.upstream import Rules, ServerState
from bridge.testing.http import BEHAVIOURS, Reply, StandIn
from tests.unit.asking import (
    GENEROUS,
    ask,
    closed_port,
    failure,
    run,
    until,
)

QUICK = Rules(timeout=0.4, retries=0)

# What the client makes of each misbehaviour, of a single server without retries.
OUTCOMES: dict[str, tuple[str, str]] = {
    "empty": ("bad-reply", "not JSON"),
    "garbage": ("bad-reply", "not JSON"),
    "500-json": ("http-error", "status 500"),
    "500-html": ("http-error", "status 500"),
    "502": ("http-error", "status 502"),
    "503": ("http-error", "status 503"),
    "504": ("http-error", "status 504"),
    "401": ("http-error", "status 401"),
    "redirect": ("http-error", "status 302"),
    "slam": ("unreachable", "closed without a whole reply"),
    "deaf": ("timeout", "no whole reply in 0.4 s"),
    "hang": ("timeout", "no whole reply in 0.4 s"),
    "close": ("unreachable", "closed without a whole reply"),
    "reset": ("unreachable", ""),
    "slow-head": ("timeout", "no whole reply in 0.4 s"),
    "slow-body": ("timeout", "no whole reply in 0.4 s"),
    "cut-body": ("unreachable", "closed without a whole reply"),
    "huge": ("bad-reply", "over 1048576 bytes"),
    "endless": ("bad-reply", "over 1048576 bytes"),
    "endless-head": ("bad-reply", "not HTTP"),
    "not-http": ("bad-reply", "not HTTP"),
}


@pytest.mark.parametrize(("behaviour", "kind", "says"), [(b, *o) for b, o in OUTCOMES.items()])
def test_a_misbehaviour_ends_as_its_kind_in_time(behaviour: str, kind: str, says: str) -> None:
    async def test() -> None:
        async with StandIn(behaviour) as server:
            upstreams = Upstreams("rspamd", [server.url], rules=QUICK, max_reply=2**20)
            start = time.monotonic()
            error = await failure(upstreams)
            assert time.monotonic() - start < GENEROUS
            assert (error.kind, server.count) == (kind, 1)
            assert says in str(error)
            assert str(error).startswith(f"rspamd: {server.url}: ")

    run(test)


def test_every_behaviour_is_told() -> None:
    assert set(OUTCOMES) | {"ok"} == set(BEHAVIOURS)


# Which of them another server is asked after, and which are held against the first.
RETRIED = {
    "garbage", "empty", "502", "503", "504", "slam", "deaf", "hang", "close", "reset",
    "slow-head", "slow-body", "cut-body", "huge", "endless", "endless-head", "not-http",
}  # fmt: skip


@pytest.mark.parametrize("behaviour", OUTCOMES)
def test_another_server_is_asked_unless_the_first_refused(behaviour: str) -> None:
    async def test() -> None:
        async with StandIn(behaviour) as bad, StandIn("ok") as good:
            rules = Rules(timeout=0.4, retries=1, max_errors=1)
            upstreams = Upstreams("rspamd", [bad.url, good.url], rules=rules, max_reply=2**20)
            if behaviour in RETRIED:
                assert (await ask(upstreams))["action"] == "no action"
            else:
                assert (await failure(upstreams)).retry is False
            expected = ("down", 1) if behaviour in RETRIED else ("up", 0)
            assert (upstreams.states()[0].state, good.count) == expected

    run(test)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param("http://127.0.0.1:{port}", "hint: is it running?", id="closed port"),
        pytest.param("unix:{tmp}/none.sock", "hint: is it running, and", id="no unix socket"),
        pytest.param("http://none.invalid:11333", "no connection", id="no such name"),
    ],
)
def test_no_connection_is_unreachable_with_a_hint(url: str, says: str, tmp_path: Path) -> None:
    where = url.format(port=closed_port(), tmp=tmp_path)

    async def test() -> None:
        error = await failure(Upstreams("rspamd", [where], rules=Rules(retries=0)))
        assert error.kind == "unreachable"
        assert where in str(error)
        assert says in str(error)

    asyncio.run(test())  # a name lookup starts a thread: no count of descriptors


@pytest.mark.parametrize(
    ("connect_timeout", "timeout", "kind"),
    [
        pytest.param(0.3, GENEROUS, "unreachable", id="by the connect timeout"),
        pytest.param(GENEROUS, 0.3, "timeout", id="by the whole timeout"),
    ],
)
def test_a_host_that_swallows_packets_is_given_up(
    connect_timeout: float, timeout: float, kind: str
) -> None:
    async def test() -> None:
        # A listener that takes no one and whose queue is full.
        with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            rules = Rules(timeout=timeout, retries=0)
            upstreams = Upstreams("rspamd", [url], rules=rules, connect_timeout=connect_timeout)
            error = await failure(upstreams)
            assert error.kind == kind
            assert ("no connection in time" in str(error)) == (kind == "unreachable")

    run(test)


# A good exchange --------------------------------------------------------------------------


def test_the_request_as_it_comes() -> None:
    async def test() -> None:
        async with StandIn() as server:
            upstreams = Upstreams("rspamd", [server.url + "/prefix/"], token="s3cret")
            headers = [
                ("Rcpt", "one@example.org"),
                ("Rcpt", "t\u00fc\udcff@example.org"),
                (b"Helo", b"a\r\nInjected: b\x00c\x0cd \t"),
                ("From", ""),
            ]
            await ask(upstreams, b"body\n", headers=headers)
            [seen] = server.seen
            assert (seen.method, seen.path, seen.body) == ("POST", "/prefix/checkv2", b"body\n")
            assert seen.values("rcpt") == [b"one@example.org", b"t\xc3\xbc\xff@example.org"]
            assert seen.values("helo") == [b"a  Injected: b c d"]
            assert seen.values("from") == [b""]
            assert seen.values("injected") == []
            assert seen.values("host") == [server.url.removeprefix("http://").encode()]
            assert seen.values("authorization") == [b"Bearer s3cret"]
            assert seen.values("accept-encoding") == [b"identity"]
            assert seen.values("connection") == [b"close"]
            assert seen.values("user-agent") == [b"filter-bridge"]
            assert seen.values("content-length") == [b"5"]

    run(test)


def test_the_callers_fields_replace_the_clients_own() -> None:
    async def test() -> None:
        async with StandIn() as server:
            headers = [("user-agent", "tester"), ("ACCEPT-ENCODING", "zstd")]
            await ask(Upstreams("rspamd", [server.url]), headers=headers)
            assert server.seen[0].values("User-Agent") == [b"tester"]
            assert server.seen[0].values("Accept-Encoding") == [b"zstd"]

    run(test)


def test_parse_gets_status_headers_in_lower_case_and_body() -> None:
    fields = (("Message-Offset", "2"), ("X-A", "1"), ("x-a", "2"))

    async def test() -> None:
        async with StandIn(Reply(404, b"{}body", fields)) as server:
            upstreams = Upstreams("rspamd", [server.url])
            status, headers, body = await ask(upstreams, parse=lambda *reply: reply)
            assert (status, body) == (404, b"{}body")
            assert (headers["message-offset"], headers["x-a"]) == ("2", "1, 2")

    run(test)


def test_a_large_message_arrives_whole() -> None:
    body = os.urandom(1000) * 20_000

    async def test() -> None:
        async with StandIn() as server:
            await ask(Upstreams("rspamd", [server.url]), body)
            assert server.seen[0].body == body

    run(test)


def test_many_at_once() -> None:
    async def test() -> None:
        async with StandIn() as server:
            upstreams = Upstreams("rspamd", [server.url])
            answers = await asyncio.gather(*(ask(upstreams) for _ in range(100)))
            assert len(answers) == server.count == 100

    run(test)


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def test() -> None:
        async with StandIn() as server:
            assert await ask(Upstreams("rspamd", [server.url]))

    run(test)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "unix:{tmp}/rspamd.sock"])
def test_where_a_server_may_be(listen: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with StandIn(listen=listen.format(tmp=tmp_path)) as server:
            assert (await ask(Upstreams("rspamd", [server.url])))["action"] == "no action"
            if listen.startswith("unix:"):
                assert server.seen[0].values("host") == [b"localhost"]

    run(test)


# Failing servers --------------------------------------------------------------------------


def test_a_message_over_the_services_limit_is_not_sent() -> None:
    async def test() -> None:
        async with StandIn() as server:
            upstreams = Upstreams("rspamd", [server.url], max_body=10)
            assert await ask(upstreams, b"0123456789")
            error = await failure(upstreams, b"0123456789+")
            assert (error.kind, error.retry, server.count) == ("too-large", False, 1)

    run(test)


@pytest.mark.parametrize(
    ("size", "state"),
    [
        pytest.param(LARGE_BODY + 1, "up", id="a large one is nobody's fault"),
        pytest.param(1000, "down", id="a small one is the server's"),
    ],
)
def test_a_connection_closed_on_a_message(size: int, state: str) -> None:
    async def test() -> None:
        async with StandIn("slam") as server, StandIn("ok") as other:
            rules = Rules(max_errors=1)
            upstreams = Upstreams("rspamd", [server.url, other.url], rules=rules)
            assert await ask(upstreams, bytes(size))
            assert upstreams.states()[0].state == state
            assert (server.count, other.count) == (1, 1)

    run(test)


def test_a_bug_in_parse_is_an_internal_error_and_no_ones_failure() -> None:
    def buggy(status: int, headers: Mapping[str, str], body: bytes) -> None:
        raise KeyError("secret")

    async def test() -> None:
        async with StandIn() as server:
            upstreams = Upstreams("rspamd", [server.url], rules=Rules(max_errors=1))
            error = await failure(upstreams, parse=buggy)
            assert error.kind == "internal"
            assert "secret" not in str(error)
            assert (server.count, upstreams.states()[0].state) == (1, "up")

    run(test)


def test_a_request_that_cant_be_sent_is_an_internal_error() -> None:
    async def test() -> None:
        async with StandIn() as server:
            upstreams = Upstreams("rspamd", [server.url], rules=Rules(max_errors=1))
            error = await failure(upstreams, headers=[("not a name", "x")])
            assert (error.kind, error.retry) == ("internal", False)
            assert (server.count, upstreams.states()[0].state) == (0, "up")

    run(test)


# Cancelled --------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["hang", "deaf", "slow-head", "slow-body", "endless"])
def test_a_cancelled_request_frees_everything(behaviour: str) -> None:
    async def test() -> None:
        async with StandIn(behaviour) as server:
            rules = Rules(timeout=GENEROUS, max_errors=1)
            upstreams = Upstreams("rspamd", [server.url], rules=rules, max_reply=2**40)
            tasks = [asyncio.create_task(ask(upstreams, bytes(2**20))) for _ in range(5)]
            await until(lambda: server.connections >= 5)
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert upstreams.states() == [ServerState(server.url, "up", 0, "", 0.0)]

    run(test)


# Ping -------------------------------------------------------------------------------------
