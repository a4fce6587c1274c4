"""Forward-confirmed reverse DNS: one small world, asked through a fake resolver and through
real sockets, and what the client around it promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import ip_address

import pytest

from bridge.services import fcrdns
from bridge.services.fcrdns import (
    Answer,
    Cache,
    Checker,
    DnsResolver,
    FcRdns,
    Resolver,
    Result,
    Unavailable,
)
from bridge.smtpd.session import Address
from bridge.testing.dns import DnsServer, ptr

# The world: what each address is called, and where each name leads.  A word is a fault of the
# nameserver.  Names are spelled as in a zone file.
PTR: Mapping[str, list[str] | str] = {
    "192.0.2.1": ["Mail.Example.org"],
    "192.0.2.3": ["nowhere.example.org"],
    "192.0.2.4": ["elsewhere.example.org"],
    "192.0.2.5": "servfail",
    "192.0.2.6": ["broken.example.org"],
    "192.0.2.7": "timeout",
    "192.0.2.8": ["hung.example.org"],
    "192.0.2.9": ["nowhere.example.org", "elsewhere.example.org", "third.example.org"],
    "192.0.2.10": ["broken.example.org", "hung.example.org", "tenth.example.org"],
    "192.0.2.11": ["elsewhere.example.org", "broken.example.org"],
    "192.0.2.12": ["."],
    "192.0.2.20": ["broken.example.org", "sick.example.org"],
    "192.0.2.13": [r"bad\032name.example.org", "a|b.example.org", r"c\010.example.org"],
    "192.0.2.14": ["192.0.2.14"],
    "192.0.2.15": [r"bad\032name.example.org", "under_score.example.org"],
    "192.0.2.16": ["only-v6.example.org"],
    "192.0.2.17": "refused",
    "192.0.2.18": [f"n{n:02}.example.org" for n in range(11)],
    "192.0.2.19": [f"n{n:02}.{'long-' * 8}name.example.org" for n in range(40)],
    "2001:db8::1": ["mail.example.org"],
    "2001:db8::3": ["elsewhere.example.org"],
}
FORWARD: Mapping[str, list[str] | str] = {
    "mail.example.org": ["198.51.100.7", "192.0.2.1", "2001:DB8:0::1"],
    "elsewhere.example.org": ["198.51.100.7", "2001:db8::7"],
    "broken.example.org": "servfail",
    "sick.example.org": "refused",
    "hung.example.org": "timeout",
    "third.example.org": ["192.0.2.9"],
    "tenth.example.org": ["192.0.2.10"],
    "under_score.example.org": ["192.0.2.15"],
    "only-v6.example.org": ["2001:db8::16"],
    "192.0.2.14": ["192.0.2.14"],
    "n10.example.org": ["192.0.2.18"],
    f"n02.{'long-' * 8}name.example.org": ["192.0.2.19"],
}

# address, result, confirmed name, reason
CASES = {
    "a name that leads back": ("192.0.2.1", "pass", "Mail.Example.org", ""),
    "no PTR": ("192.0.2.2", "permerror", "", "no PTR (NXDOMAIN)"),
    "a PTR to a name without addresses": (
        "192.0.2.3", "fail", "", "192.0.2.3 is not an address of nowhere.example.org"),
    "a PTR to a name with other addresses": (
        "192.0.2.4", "fail", "", "192.0.2.4 is not an address of elsewhere.example.org"),
    "SERVFAIL for the PTR": ("192.0.2.5", "temperror", "", "SERVFAIL for the PTR"),
    "SERVFAIL for the name": ("192.0.2.6", "temperror", "", "SERVFAIL for broken.example.org"),
    "no answer for the PTR": ("192.0.2.7", "temperror", "", "timeout for the PTR"),
    "no answer for the name": ("192.0.2.8", "temperror", "", "timeout for hung.example.org"),
    "REFUSED for the PTR": ("192.0.2.17", "temperror", "", "REFUSED for the PTR"),
    "only the third name leads back": ("192.0.2.9", "pass", "third.example.org", ""),
    "one leads back, one is broken, one hangs": ("192.0.2.10", "pass", "tenth.example.org", ""),
    "one leads elsewhere, one is broken": (
        "192.0.2.11", "temperror", "", "SERVFAIL for broken.example.org"),
    "two are broken, the first is told": (
        "192.0.2.20", "temperror", "", "SERVFAIL for broken.example.org"),
    "a PTR to the root": ("192.0.2.12", "fail", "", "PTR is no host name"),
    "names that no host can have": ("192.0.2.13", "fail", "", "PTR is no host name"),
    "a name that looks like the address": ("192.0.2.14", "fail", "", "PTR is no host name"),
    "a bad name before a good one": ("192.0.2.15", "pass", "under_score.example.org", ""),
    "only an address of the other family": (
        "192.0.2.16", "fail", "", "192.0.2.16 is not an address of only-v6.example.org"),
    "the eleventh of eleven names": (
        "192.0.2.18", "fail", "", "192.0.2.18 is not an address of n00.example.org and 9 more"),
    "forty names, the third leads back": (
        "192.0.2.19", "pass", f"n02.{'long-' * 8}name.example.org", ""),
    "IPv6": ("2001:db8::1", "pass", "mail.example.org", ""),
    "IPv6 without PTR": ("2001:db8::2", "permerror", "", "no PTR (NXDOMAIN)"),
    "IPv6 with other addresses": (
        "2001:db8::3", "fail", "", "2001:db8::3 is not an address of elsewhere.example.org"),
    "IPv4 mapped into IPv6": ("::ffff:192.0.2.1", "pass", "Mail.Example.org", ""),
    "IPv6 with a scope": ("2001:db8::1%eth0", "pass", "mail.example.org", ""),
}  # fmt: skip


class World:
    """A resolver over dictionaries; `hold` keeps PTR lookups waiting until it is set."""

    def __init__(self, ttl: float = 300.0) -> None:
        self.ttl = ttl
        self.asked: list[str] = []
        self.running = 0  # forward lookups under way
        self.hold: asyncio.Event | None = None

    async def ptr(self, address: Address) -> Answer:
        self.asked.append(str(address))
        if self.hold is not None:
            await self.hold.wait()
        return await self._tell(PTR.get(str(address), []))

    async def addresses(self, name: str, version: int) -> Answer:
        self.asked.append(name)
        self.running += 1
        try:
            found = await self._tell(FORWARD.get(name.lower(), []))
        finally:
            self.running -= 1
        records = tuple(each for each in found.records if ip_address(each).version == version)
        return Answer(records, found.ttl)

    async def _tell(self, what: list[str] | str) -> Answer:
        if what == "timeout":
            await asyncio.sleep(3600)
        if isinstance(what, str):
            raise Unavailable(what.upper())
        return Answer(tuple(what), self.ttl, "" if what else "NXDOMAIN")


def zone() -> str:
    """The same world as zone text."""
    lines = []
    for address, names in PTR.items():
        fault = isinstance(names, str)
        lines += [f"$FAULT {address} {names}"] if fault else [ptr(address, *names, ttl=120)]
    for name, addresses in FORWARD.items():
        if isinstance(addresses, str):
            lines.append(f"$FAULT {name} {addresses}")
            continue
        lines += [f"{name}. 60 {'AAAA' if ':' in a else 'A'} {a}" for a in addresses]
    return "\n".join(lines)


def run_check(make: Callable[[float], Resolver], address: str, expected: str) -> FcRdns:
    """Check with a deadline that only those reach that are to reach it."""

    async def run() -> FcRdns:
        timeout = 0.4 if expected == "temperror" else 30.0
        return await Checker(make(timeout), timeout=timeout).check(ip_address(address))

    return asyncio.run(run())


@pytest.mark.parametrize(("address", "result", "name", "reason"), CASES.values(), ids=CASES.keys())
def test_the_method(address: str, result: str, name: str, reason: str) -> None:
    found = run_check(lambda _: World(), address, result)
    assert (found.result, found.name, found.reason) == (result, name, reason)
    assert len(found.names) <= 10


@pytest.mark.parametrize(("address", "result", "name", "reason"), CASES.values(), ids=CASES.keys())
def test_the_method_over_sockets(address: str, result: str, name: str, reason: str) -> None:
    with DnsServer(zone()) as server:
        found = run_check(lambda t: DnsResolver([server.address], timeout=t), address, result)
    assert (found.result, found.name, found.reason) == (result, name, reason)
    assert len(found.names) <= 10


def test_lookups_that_are_not_needed_any_more_are_given_up() -> None:
    world = World()

    async def run() -> None:
        async with asyncio.timeout(30):  # and so the hung one is not waited for
            await fcrdns.check(world, ip_address("192.0.2.10"), timeout=3600)
        await asyncio.sleep(0)
        assert world.running == 0

    asyncio.run(run())
    assert "hung.example.org" in world.asked


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# address, TTL of the records, how long the result is known
LIFETIMES = {
    "a pass for its TTL": ("192.0.2.1", 300, 300),
    "a pass without TTL for ten seconds": ("192.0.2.1", 0, 10),
    "a pass for a week for an hour": ("192.0.2.1", 604800, 3600),
    "a fail for its TTL": ("192.0.2.4", 300, 300),
    "no PTR for its TTL": ("192.0.2.2", 60, 60),
    "a temporary error for five seconds": ("192.0.2.6", 300, 5),
    "a temporary error of the PTR too": ("192.0.2.5", 300, 5),
}


@pytest.mark.parametrize(("address", "ttl", "known"), LIFETIMES.values(), ids=LIFETIMES.keys())
def test_results_are_known(address: str, ttl: float, known: float) -> None:
    clock, world = Clock(), World(ttl)
    checker = Checker(world, cache=Cache(clock=clock))

    async def lookups() -> int:
        await checker.check(ip_address(address))
        return world.asked.count(address)

    async def run() -> None:
        assert await lookups() == 1
        clock.now += known - 0.1
        assert await lookups() == 1
        clock.now += 0.1
        assert await lookups() == 2

    asyncio.run(run())


def test_a_full_cache_drops_the_oldest() -> None:
    cache, found = Cache(size=2), FcRdns(Result.PASS, "a.example")
    one, two, three = (ip_address(f"192.0.2.{n}") for n in (1, 2, 3))
    for address in (one, two, one, three):
        cache.put(address, found, 60)
    assert [cache.get(address) for address in (one, two, three)] == [found, None, found]
    assert len(cache) == 2


def test_all_who_ask_at_once_share_one_lookup_and_one_may_leave() -> None:
    world = World()
    checker = Checker(world)

    async def run() -> None:
        world.hold = asyncio.Event()
        asking = [asyncio.create_task(checker.check(ip_address("192.0.2.1"))) for _ in range(5)]
        asking.append(asyncio.create_task(checker.check(ip_address("::ffff:192.0.2.1"))))
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
        world.hold.set()
        gone, *rest = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert rest == [FcRdns(Result.PASS, "Mail.Example.org", ("Mail.Example.org",))] * 5

    asyncio.run(run())
    assert world.asked == ["192.0.2.1", "Mail.Example.org"]


def test_a_lookup_that_everybody_has_left_still_ends_and_is_known() -> None:
    world = World()
    checker = Checker(world, timeout=30)

    async def run() -> None:
        world.hold = asyncio.Event()
        asking = asyncio.create_task(checker.check(ip_address("192.0.2.1")))
        await asyncio.sleep(0)
        asking.cancel()
        world.hold.set()
        assert (await checker.check(ip_address("192.0.2.1"))).result == "pass"

    asyncio.run(run())
    assert world.asked.count("192.0.2.1") == 1


def test_closing_answers_those_who_wait() -> None:
    world = World()
    checker = Checker(world)

    async def run() -> FcRdns:
        world.hold = asyncio.Event()
        asking = asyncio.create_task(checker.check(ip_address("192.0.2.1")))
        await asyncio.sleep(0)
        await checker.aclose()
        return await asking

    assert asyncio.run(run()).result == "temperror"


def test_too_many_lookups_at_once_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcrdns, "MAX_CHECKS", 1)
    world = World()
    checker = Checker(world)

    async def run() -> FcRdns:
        world.hold = asyncio.Event()
        asking = asyncio.create_task(checker.check(ip_address("192.0.2.1")))
        await asyncio.sleep(0)
        found = await checker.check(ip_address("192.0.2.4"))
        world.hold.set()
        assert (await asking).result == "pass"
        assert (await checker.check(ip_address("192.0.2.4"))).result == "fail"
        return found

    assert asyncio.run(run()) == FcRdns(Result.TEMPERROR, reason="too many lookups at once")


class Buggy(World):
    async def addresses(self, name: str, version: int) -> Answer:
        raise RuntimeError("oops")


def test_a_bug_is_a_temporary_error() -> None:
    found = run_check(lambda _: Buggy(), "192.0.2.1", "pass")
    assert found == FcRdns(Result.TEMPERROR, reason="internal error: RuntimeError('oops')")
