"""Does each service that the configuration names answer, and is it what it should be?

Asks with the bridge's own clients, each server by itself, all at once and LIMIT seconds at
most.  Sends no mail but a message of its own to rspamd.
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypeVar

import dns.resolver

from bridge import link
from bridge.check.findings import FAIL, OK, WARN, Finding
from bridge.config import Config, Endpoint
from bridge.services import zstd
from bridge.services.build import build
from bridge.services.dkim import HEALTH, SIGN, parse_access, parse_health
from bridge.services.fcrdns import DnsResolver, Unavailable
from bridge.services.http import Upstreams
from bridge.services.rspamd import parse_ping, parse_reply
from bridge.services.rspamd_reply import Reply
from bridge.services.upstream import ServiceError

P = ParamSpec("P")
T = TypeVar("T")

LIMIT = 5.0  # seconds for one probe
PING = 2.0  # of them for /ping, which rspamd answers from memory
MAX_HELLO = 1 << 20  # bytes; a hello has some 300

# rspamd does not learn from it, and local mail it scans without asking the network.
SCAN_HEADERS = (
    ("IP", "127.0.0.1"),
    ("From", "<>"),
    ("Rcpt", "postmaster@localhost"),
    ("Queue-Id", "check"),
    ("Flags", "milter,body_block,no_stat"),
    ("User-Agent", "filter-bridge"),
)
MESSAGE = b"""\
From: <postmaster@localhost>\r
To: <postmaster@localhost>\r
Subject: filter-bridge check\r
Date: Thu, 01 Jan 1970 00:00:00 +0000\r
Message-ID: <check@filter-bridge.invalid>\r
\r
filter-bridge check asks whether this port scans mail.\r
"""
LOCALHOST = ipaddress.ip_address("127.0.0.1")


class Failed(Exception):
    """What was asked did not answer well; the text is for an operator."""


@dataclass(frozen=True, slots=True)
class Probe:
    """subject: what and where; ask: the good news, or raises Failed; hint: for whoever finds
    none in the bad news; failed: what a failure is worth, FAIL or WARN."""

    subject: str
    ask: Callable[[], Awaitable[str]]
    hint: str
    failed: str = FAIL


def all_probes(config: Config) -> Iterator[Probe]:
    """A probe for each server of each service that some profile uses, and for each bridge;
    ValueError for what no client can be made of."""
    profiles = (config.main, *config.profiles)
    # Then other machines ask the services, and may reach what this one can't.
    failed = WARN if config.shim.connect else FAIL
    if any(profile.rspamd.enabled for profile in profiles):
        hint = "is this the address of rspamd's normal worker, port 11333?"
        for server in config.main.rspamd.servers:
            ask = partial(rspamd, _alone(config, "rspamd", server), config.main.rspamd.compress)
            yield Probe(f"rspamd {server}", ask, hint, failed)
    if any(profile.dkim.enabled for profile in profiles):
        hint = "is this the address of the signing endpoint?"
        for server in config.main.dkim.servers:
            ask = partial(signer, _alone(config, "dkim", server))
            yield Probe(f"dkim {server}", ask, hint, failed)
    if any(profile.fcrdns.enabled and profile.fcrdns.source == "dns" for profile in profiles):
        hint = "does it run, and answer recursive queries of this machine?"
        for server in nameservers(config):
            yield Probe(f"dns {server}", partial(nameserver, server), hint, failed)
    hint = "is filter-bridge serve running there?"
    for endpoint in config.shim.connect:
        yield Probe(f"bridge {endpoint}", partial(sidecar, endpoint), hint)


def run(probes: Sequence[Probe], limit: float = LIMIT) -> list[Finding]:
    """What came of the probes, in their order."""

    async def all_at_once() -> list[Finding]:
        asyncio.get_running_loop().set_default_executor(_Threads())
        return await asyncio.gather(*(_finding(probe, limit) for probe in probes))

    return asyncio.run(all_at_once())


async def _finding(probe: Probe, limit: float) -> Finding:
    try:
        async with asyncio.timeout(limit):
            return Finding(OK, probe.subject, await probe.ask())
    except Failed as error:
        why = str(error)
    except TimeoutError:
        why = f"no answer in {limit:g} s"
    except OSError as error:
        why = f"no connection ({error.strerror or error})"
    except Exception as error:  # noqa: BLE001 a bug here must not hide what the others found
        why = f"internal error: {error!r:.200}"
    if "hint:" not in why:
        why += f"; hint: {probe.hint}"
    if probe.failed == WARN:
        why += " (the bridges ask it, not this machine)"
    return Finding(probe.failed, probe.subject, why)


async def rspamd(upstreams: Upstreams, compress: bool) -> str:
    """Scans a message: /ping alone proves nothing, rspamd's milter port answers it too, and
    only tells why a scan fails."""
    server = ""

    def parse_pong(status: int, headers: Mapping[str, str], body: bytes) -> None:
        nonlocal server
        server = headers.get("server", "")
        parse_ping(status, headers, body)

    def parse_scan(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        nonlocal server
        server = headers.get("server", server)
        return parse_reply(status, headers, body)

    clock = asyncio.get_running_loop().time
    until = clock() + LIMIT - 0.1
    [(name, no_pong)] = await upstreams.ping(timeout=PING, parse=parse_pong)
    if no_pong and "milter" in server:
        raise Failed(_bare(no_pong, upstreams.name, name))
    body, headers = MESSAGE, list(SCAN_HEADERS)
    if compress and zstd.HAVE_ZSTD:
        body = zstd.compress(body)
        headers.append(("Compression", "zstd"))
    since = clock()
    try:
        reply = await upstreams.request("/checkv2", headers, body, deadline=until, parse=parse_scan)
    except ServiceError as error:
        why = _bare(str(error), upstreams.name, name)
        if not no_pong and "hint:" not in why:
            why += "; hint: it answers /ping but scans nothing: is it the milter port, 11332?"
        raise Failed(why) from error
    version = server if server.startswith("rspamd") else "rspamd of unknown version"
    less = "; /ping is not answered" if no_pong else ""
    return f"{version}, {_took(clock() - since)} for a scan: {reply.action}{less}"


async def signer(upstreams: Upstreams) -> str:
    """Asks for its health, which needs no token, then to sign nothing for nobody."""
    clock = asyncio.get_running_loop().time
    since = clock()
    [(name, why)] = await upstreams.ping(HEALTH, timeout=LIMIT - 0.1, parse=parse_health)
    if why:
        raise Failed(_bare(why, upstreams.name, name))
    took = _took(clock() - since)
    until = since + LIMIT - 0.1
    try:
        await upstreams.request(SIGN, [], b"", deadline=until, parse=parse_access)
    except ServiceError as error:
        raise Failed(_bare(str(error), upstreams.name, name)) from error
    return f"healthy, {took}"


async def nameserver(address: str) -> str:
    """Asks for the name of 127.0.0.1; that there is none is an answer as well."""
    clock = asyncio.get_running_loop().time
    since = clock()
    try:
        await DnsResolver([address], timeout=LIMIT - 0.1).ptr(LOCALHOST)
    except Unavailable as error:
        raise Failed(str(error)) from error
    return f"answers, {_took(clock() - since)}"


async def sidecar(endpoint: Endpoint) -> str:
    """Connects to a bridge and waits for its hello."""
    if endpoint.path:
        reader, writer = await asyncio.open_unix_connection(endpoint.path)
    else:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        frames = link.FrameReader(max_header=MAX_HELLO, max_body=0)
        while data := await reader.read(1 << 16):
            for header, _ in frames.feed(data):
                if header["kind"] == "hello":
                    return f"release {header.get('release')}, link version {header.get('version')}"
    except link.LinkError as error:
        raise Failed(f"no bridge: {error}") from error
    finally:
        writer.close()
    raise Failed("closed without a hello")


def nameservers(config: Config) -> tuple[str, ...]:
    """Who is asked: those configured, else the system's, as DnsResolver has it."""
    if config.main.fcrdns.nameservers:
        return config.main.fcrdns.nameservers
    try:
        return tuple(str(server) for server in dns.resolver.Resolver().nameservers)
    except dns.resolver.NoResolverConfiguration:
        return (str(LOCALHOST),)


def _alone(config: Config, service: str, server: str) -> Upstreams:
    """The client of a service with but one server, so that none hides behind another."""
    main = config.main
    if service == "rspamd":
        main = replace(main, rspamd=replace(main.rspamd, servers=(server,), retries=0))
    else:
        main = replace(main, dkim=replace(main.dkim, servers=(server,), retries=0))
    services = build(replace(config, main=main), lambda _service, _state: None)
    upstreams = services.rspamd if service == "rspamd" else services.dkim
    assert upstreams is not None  # a profile uses it
    return upstreams


def _bare(error: str, service: str, server: str) -> str:
    """An error without the names that the line begins with anyway."""
    return error.removeprefix(f"{service}: ").removeprefix(f"{server}: ")


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "under 1 ms"


class _Threads(ThreadPoolExecutor):
    """A thread for each call, waited for by nobody: getaddrinfo(3) can't be cancelled and may
    take half a minute."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def call() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 it is the caller's to handle
                future.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing to wait for."""
