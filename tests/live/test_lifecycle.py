"""What becomes of mail when bridges die, hang and come back, and who leaves when smtpd goes?

On real servers. Who is killed is found by its place in the tree of processes, and every message
is accounted for: delivered once, or deferred to its client.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from bridge.testing.http import BEHAVIOURS, StandIn, Writer
from bridge.testing.http import Reply as Canned
from tests.live import places, processes
from tests.live.bridged import bridged, connected, lines, message
from tests.live.load import Load
from tests.live.rspamd import Rspamd
from tests.live.world import OpenSMTPD, Reply, eventually

TOML = """
[shim]
patience = "40s"
[fcrdns]
enabled = false
[rspamd]
servers = ["{rspamd}"]
"""
OK = BEHAVIOURS["ok"]
POISON = b"POISON"


@pytest.fixture(scope="module", params=places.VERSIONS)
def mta(request: pytest.FixtureRequest, service: StandIn) -> Iterator[OpenSMTPD]:
    """A server of each version that many bridges die under."""
    with bridged(request.param, TOML, values={"rspamd": service.url}) as running:
        running.wait_log("bridge-up", 30)
        pids = running.pids()
        yield running
        assert running.alive
        assert running.pids().filters == pids.filters  # the shim has seen it all
    assert not running.leftovers


def up(mta: OpenSMTPD) -> int:
    """How many bridges have come up so far."""
    return len(lines(mta.log(), "bridge-up"))


def wait_up(mta: OpenSMTPD, number: int) -> None:
    """Wait until so many have."""
    eventually(f"bridge number {number}", lambda: up(mta) >= number, 60)


def kill_bridge(mta: OpenSMTPD, number: signal.Signals = signal.SIGKILL) -> set[int]:
    """Signal it; its pid."""
    found = set(eventually("a bridge", lambda: mta.pids().bridges, 30))
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return found


def send(mta: OpenSMTPD, name: str, text: bytes = b"") -> Reply:
    """The reply to one message, to a recipient of that name."""
    with connected(mta, timeout=90) as client:
        return client.deliver(
            "sender@client.example", [f"{name}@example.org"], text or message(name)
        )


def sent(mta: OpenSMTPD, name: str) -> int:
    """The reply's code."""
    return send(mta, name).code


def count(mta: OpenSMTPD, name: str, expected: int) -> int:
    """How often it was delivered, once nothing is on its way any more."""

    def there() -> int:
        return sum(mail.recipient == f"{name}@example.org" for mail in mta.mails())

    if expected:
        eventually(f"delivery of {name}", there, 30)
    eventually("an empty queue", lambda: mta.queued() == 0, 30)
    return there()


# A bridge dies --------------------------------------------------------------------------------


def test_a_bridge_that_died_before_a_message(mta: OpenSMTPD, service: StandIn) -> None:
    service.behave("ok")
    before = up(mta)
    kill_bridge(mta)
    assert sent(mta, "before") == 250
    assert count(mta, "before", 1) == 1
    assert up(mta) == before + 1


def test_a_bridge_that_dies_of_the_first_try(mta: OpenSMTPD, service: StandIn) -> None:
    """During the scan, that is; the next bridge is asked again."""
    before, asked = up(mta), service.count

    async def die(writer: Writer) -> None:
        kill_bridge(mta)

    service.behave(die, "ok")
    assert sent(mta, "during") == 250
    assert count(mta, "during", 1) == 1
    assert (up(mta), service.count) == (before + 1, asked + 2)


def test_a_bridge_that_dies_between_the_parts_of_a_message(
    mta: OpenSMTPD, service: StandIn
) -> None:
    service.behave("ok")
    before = up(mta)
    with mta.client() as client:
        assert client.begin("a@client.example", ["parts@example.org"]).code == 354
        client.send(message("parts")[:-10])
        kill_bridge(mta)
        wait_up(mta, before + 1)
        client.send(message("parts")[-10:] + b".\r\n")
        assert client.read().code == 250
    assert count(mta, "parts", 1) == 1


def test_a_bridge_that_dies_after_a_message(mta: OpenSMTPD, service: StandIn) -> None:
    service.behave("ok")
    before = up(mta)
    with mta.client() as client:
        for name in ("after1", "after2"):
            reply = client.deliver("a@client.example", [f"{name}@example.org"], message(name))
            assert reply.code == 250
            kill_bridge(mta)
        wait_up(mta, before + 2)
        assert client.quit().code == 221
    assert [count(mta, name, 1) for name in ("after1", "after2")] == [1, 1]


def test_a_client_that_leaves_while_no_bridge_is_up(mta: OpenSMTPD, service: StandIn) -> None:
    before = up(mta)
    asked = service.count
    kill_bridge(mta)
    with mta.client() as client:
        assert client.begin("a@client.example", ["gone@example.org"]).code == 354
        client.send(message("gone"))
        client.abort()
    assert sent(mta, "stays") == 250
    wait_up(mta, before + 1)
    assert [count(mta, "stays", 1), count(mta, "gone", 0)] == [1, 0]
    assert service.count == asked + 1


def test_a_message_that_kills_every_bridge_is_deferred_and_the_others_are_not(
    mta: OpenSMTPD, service: StandIn
) -> None:
    """Three attempts, and whoever was with it on the way is asked about again."""
    before = up(mta)
    asked: list[bytes] = []

    async def perhaps_die(writer: Writer) -> None:
        body = service.seen[-1].body
        asked.append(body)
        if POISON in body:
            kill_bridge(mta)
            return
        # Some are on their way whenever it strikes.
        await asyncio.sleep(random.uniform(0, 0.3))
        assert isinstance(OK, Canned)
        writer.write(OK.head() + OK.body)
        await writer.drain()

    service.behave(perhaps_die)
    names = [f"well{number}" for number in range(12)]
    with ThreadPoolExecutor(len(names) + 1) as pool:
        others = [pool.submit(sent, mta, name) for name in names[:6]]
        poison = pool.submit(send, mta, "poison", message(body=POISON + b"\r\n"))
        others += [pool.submit(sent, mta, name) for name in names[6:]]
        assert [other.result() for other in others] == [250] * len(names)
        reply = poison.result()
    service.behave("ok")
    assert reply.code == 451
    assert sum(POISON in body for body in asked) == 3
    [line] = [e for e in lines(mta.log(), "deferred") if f"[{e['session']}]" in reply.text]
    assert line["by"] == "bridge: it failed"
    wait_up(mta, before + 3)
    assert up(mta) == before + 3
    assert [count(mta, name, 1) for name in names] == [1] * len(names)
    assert count(mta, "poison", 0) == 0


# A bridge hangs -------------------------------------------------------------------------------

IMPATIENT = TOML + '[bridge]\nping_timeout = "2s"\n'


def test_a_bridge_that_hangs_is_replaced_and_its_messages_are_not_lost(
    version: str, service: StandIn
) -> None:
    service.behave("ok")
    with bridged(version, IMPATIENT, values={"rspamd": service.url}) as mta:
        mta.wait_log("bridge-up", 30)
        [hung] = mta.pids().bridges
        os.kill(hung, signal.SIGSTOP)
        names = [f"n{number}" for number in range(6)]
        with ThreadPoolExecutor(len(names)) as pool:
            assert list(pool.map(lambda name: sent(mta, name), names)) == [250] * len(names)
        [lost, *_] = lines(mta.log(), "bridge-lost")
        assert (lost["bridge"], lost["why"]) == (f"pid {hung}", "no sign of life")
        assert hung not in mta.pids().bridges
        assert [count(mta, name, 1) for name in names] == [1] * len(names)
        assert processes.look(hung) is None


def test_a_bridge_that_hangs_is_noticed_while_clients_keep_coming(
    version: str, service: StandIn
) -> None:
    """What is written to it is no sign of its life."""
    service.behave("ok")
    with bridged(version, IMPATIENT, values={"rspamd": service.url}) as mta:
        mta.wait_log("bridge-up", 30)
        [hung] = mta.pids().bridges
        os.kill(hung, signal.SIGSTOP)
        names = [f"n{number}" for number in range(24)]
        with ThreadPoolExecutor(len(names)) as pool:
            codes = []
            for name in names:  # two a second, for several times the timeout
                codes.append(pool.submit(sent, mta, name))
                time.sleep(0.5)
            mta.wait_log(f'bridge-lost bridge="pid {hung}" why="no sign of life"', 0.1)
            assert [code.result() for code in codes] == [250] * len(names)
        assert [count(mta, name, 1) for name in names] == [1] * len(names)


# smtpd goes -----------------------------------------------------------------------------------

WAYS: dict[str, Callable[[OpenSMTPD], None]] = {
    "smtpd is told to end": lambda mta: os.kill(mta.pids().smtpd, signal.SIGTERM),
    "smtpd is killed": lambda mta: os.kill(mta.pids().smtpd, signal.SIGKILL),
    "the shim is killed": lambda mta: os.kill(mta.pids().filters[0], signal.SIGKILL),
}


@pytest.mark.parametrize("state", ["idle", "busy", "stopped"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_nobody_stays_behind(
    version: str, service: StandIn, way: Callable[[OpenSMTPD], None], state: str
) -> None:
    service.behave("hang")
    with bridged(version, TOML, values={"rspamd": service.url}) as mta:
        mta.wait_log("bridge-up", 30)
        pids = mta.pids()
        assert (len(pids.filters), len(pids.bridges)) == (1, 1)
        client = mta.client()
        if state == "busy":
            asked = service.count
            assert client.begin("a@client.example", ["b@example.org"]).code == 354
            client.send(message() + b".\r\n")
            eventually("a scan", lambda: service.count > asked)
        elif state == "stopped":
            os.kill(pids.bridges[0], signal.SIGSTOP)
        ours = [processes.look(pid) for pid in (*pids.filters, *pids.bridges)]
        way(mta)
        # They have a second; a busy machine may need some more to let them have it.
        eventually("their end", lambda: not any(p and p.alive for p in ours), 5)
        client.close()
    assert mta.leftovers == []


# Under load -----------------------------------------------------------------------------------

UNDER_LOAD = """
[shim]
patience = "40s"
[fcrdns]
nameservers = ["{dns}"]
exempt_networks = []
[rspamd]
servers = ["{rspamd}"]
"""
PEER = "127.8.5.5"
CLIENTS = 20
ZONE = f"$PTR {PEER} good.example\ngood.example A {PEER}"


def grow(ids: list[str], number: int) -> None:
    """Wait until so many messages more are among these."""
    before = len(ids)
    eventually("more messages", lambda: len(ids) >= before + number, 90)


def test_rspamd_is_restarted_under_load(version: str) -> None:
    with (
        Rspamd() as rspamd,
        bridged(version, UNDER_LOAD, values={"rspamd": rspamd.url}, zone=ZONE) as mta,
    ):
        mta.wait_log("bridge-up", 30)
        with Load(mta, 8, source=PEER) as load:
            grow(load.accepted, 20)
            for _ in range(2):
                rspamd.stop()
                grow(load.deferred, 1)
                rspamd.start()
                grow(load.accepted, 20)
        load.check()
        assert mta.alive


def scanned_again(rspamd: Rspamd) -> int:
    """How many messages were with rspamd when their bridge died, and came again."""
    seen = [each["message_id"] for each in rspamd.seen()]
    return len(seen) - len(set(seen))


@pytest.mark.parametrize(
    "kills",
    [pytest.param(10, id="10 times"), pytest.param(100, id="100 times", marks=pytest.mark.long)],
)
def test_the_bridge_is_killed_under_load(version: str, kills: int) -> None:
    """By many clients, each with one message after another."""
    with (
        Rspamd() as rspamd,
        bridged(version, UNDER_LOAD, values={"rspamd": rspamd.url}, zone=ZONE) as mta,
    ):
        mta.wait_log("bridge-up", 30)
        pids, killed, rounds = mta.pids(), set[int](), 0
        with Load(mta, CLIENTS, source=PEER) as load:
            # It is no test if nothing was on its way when a bridge died.
            while rounds < kills or (rounds < 6 * kills and scanned_again(rspamd) < kills / 2):
                rounds += 1
                # More than were on their way when the last one died: so the next one works.
                grow(load.accepted, CLIENTS + 1)
                time.sleep(random.uniform(0, 0.3))
                killed |= kill_bridge(mta)
            grow(load.accepted, CLIENTS + 1)
        load.check()
        assert len(killed) == rounds >= kills
        assert (mta.pids().smtpd, mta.pids().filters) == (pids.smtpd, pids.filters)
        assert scanned_again(rspamd) >= kills / 2
        assert not re.search(r"^bridge: (internal-error|bad-answer|bad-line)", mta.log(), re.M)
