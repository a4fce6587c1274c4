"""Forward-confirmed reverse DNS: does the peer's address have a name that agrees?

The method "iprev" of RFC 8601, section 3: the names that the address's PTR records give, and
of each its addresses; one that leads back is a pass.  `check` and what it calls are the
method, over a resolver that is passed in; `Checker` adds what makes it bearable on a server
(one deadline, a cache, one lookup for all who ask at once); `DnsResolver` asks the DNS.
Never decides what a result means for a session: policy.py does.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.reversename

from bridge.smtpd.session import Address, split_address

TIMEOUT = 5.0  # seconds for a whole check; a third of the 15 that the connect phase has
QUERY_TIMEOUT = 2.0  # seconds until a query is sent again; dnspython's default
MAX_NAMES = 10  # PTR names that are followed; RFC 7208, 4.6.4 has the same limit
MAX_QUERIES = 256  # sockets at once; RLIMIT_NOFILE is often 1,024
MAX_CHECKS = 2000  # addresses looked up at once
MAX_ALIASES = 8  # CNAMEs that we follow ourselves; unbound follows 11
CACHE_SIZE = 10_000
KEPT_NAMES = 3  # names that go into a session's keep

# Seconds.  However short a TTL is, a burst of connections shall cost one lookup; however long,
# what an operator has mended shall be seen within the hour.
LEAST_TTL, MOST_TTL, TEMPERROR_TTL = 10.0, 3600.0, 5.0
NEGATIVE_TTL = 60.0  # for a "no" without a SOA, which RFC 2308, 5 would not have cached


class Result(StrEnum):
    """RFC 8601, section 2.7.3."""

    PASS = "pass"  # reverse and forward lookups agree
    FAIL = "fail"  # there is a PTR, but no name of it has the address: other ones, or none
    TEMPERROR = "temperror"  # SERVFAIL, a timeout or the like: asking later may help
    PERMERROR = "permerror"  # no PTR is published: NXDOMAIN, or an answer without records


@dataclass(frozen=True, slots=True)
class FcRdns:
    """The result of a check.  name: the name that leads back to the address, as the PTR
    spells it, without the final dot; "" unless passed.  names: all usable PTR names, at most
    MAX_NAMES.  reason: for people, a few words why it did not pass."""

    result: Result
    name: str = ""
    names: tuple[str, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """For a session's `keep`; names beyond the first KEPT_NAMES are left out."""
        names = list(self.names[:KEPT_NAMES])
        return {"result": self.result, "name": self.name, "names": names, "reason": self.reason}

    @classmethod
    def from_json(cls, value: object) -> Self | None:
        """What `to_json` made, or None for anything else: another version may have made it."""
        match value:
            case {"result": str(result), "name": str(name), "names": list(names), **rest}:
                if result in set(Result) and all(isinstance(each, str) for each in names):
                    return cls(Result(result), name, tuple(names), str(rest.get("reason", "")))
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the DNS said.  records: PTR names or addresses, none if there are none;
    ttl: seconds; missing: why there are none, NXDOMAIN or NODATA."""

    records: tuple[str, ...] = ()
    ttl: float = NEGATIVE_TTL
    missing: str = "NODATA"


class Unavailable(Exception):
    """The DNS could not be asked or would not say.  Its text is one short phrase: SERVFAIL,
    timeout, network error."""


class Resolver(Protocol):
    """Whom `check` asks.  Both raise Unavailable, and nothing else."""

    async def ptr(self, address: Address) -> Answer:
        """The names of an address, without the final dot."""

    async def addresses(self, name: str, version: int) -> Answer:
        """The IPv4 (version 4) or IPv6 (6) addresses of a name."""


# RFC 1123, 2.1, and the underscore that res_hnok() of libc lets through too.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}", re.ASCII | re.IGNORECASE)


def is_host_name(name: str) -> bool:
    """Can it be a host's name?  Not the root, nothing with blanks or `|`, nothing longer than
    253 (RFC 1035, 2.3.4), nothing that ends in a number and could pass for an address
    (RFC 3696, 2)."""
    last = name.rpartition(".")[2]
    return len(name) <= 253 and not last.isdigit() and bool(_HOST_NAME.fullmatch(name))


def usable_names(names: Collection[str], limit: int = MAX_NAMES) -> tuple[str, ...]:
    """The names that can be followed, each once, at most `limit`, in their order."""
    return tuple({name.lower(): name for name in names if is_host_name(name)}.values())[:limit]


def plain(address: Address) -> Address:
    """An IPv4-mapped address as IPv4, for it is that host's PTR that counts; no scope id."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address


def agrees(address: Address, answer: Answer | Unavailable | None) -> bool:
    """Is the address among those of a forward lookup?"""
    records = answer.records if isinstance(answer, Answer) else ()
    return any(ipaddress.ip_address(record) == address for record in records)


def conclude(
    address: Address, names: Sequence[str], forward: Mapping[str, Answer | Unavailable]
) -> FcRdns:
    """The result for an address that has a PTR.  names: its usable names; forward: what came
    of them; a name without an entry was not answered in time."""
    names = tuple(names)
    why_not = ""
    for name in names:
        if agrees(address, answer := forward.get(name)):
            return FcRdns(Result.PASS, name, names)
        if not isinstance(answer, Answer):
            why_not = why_not or f"{answer or 'timeout'} for {name}"
    if why_not:
        return FcRdns(Result.TEMPERROR, names=names, reason=why_not)
    if not names:
        return FcRdns(Result.FAIL, reason="PTR is no host name")
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    reason = f"{address} is not an address of {names[0]}{more}"
    return FcRdns(Result.FAIL, names=names, reason=reason)


async def check(
    resolver: Resolver, address: Address, *, timeout: float = TIMEOUT, max_names: int = MAX_NAMES
) -> tuple[FcRdns, float]:
    """The result for an address, within `timeout` seconds, and for how many it holds."""
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        async with asyncio.timeout_at(deadline):
            reverse = await resolver.ptr(address)
    except (Unavailable, TimeoutError) as error:
        return FcRdns(Result.TEMPERROR, reason=f"{str(error) or 'timeout'} for the PTR"), 0.0
    if not reverse.records:
        return FcRdns(Result.PERMERROR, reason=f"no PTR ({reverse.missing})"), reverse.ttl
    names = usable_names(reverse.records, max_names)
    forward = await _forward(resolver, address, names, deadline)
    found = conclude(address, names, forward)
    used = [forward[found.name]] if found.name else forward.values()
    return found, min([reverse.ttl, *(a.ttl for a in used if isinstance(a, Answer))])


async def _forward(
    resolver: Resolver, address: Address, names: Sequence[str], deadline: float
) -> dict[str, Answer | Unavailable]:
    """Look up all names at once, until one agrees or the time is up."""

    async def one(name: str) -> Answer | Unavailable:
        try:
            return await resolver.addresses(name, address.version)
        except Unavailable as error:
            return error

    loop = asyncio.get_running_loop()
    tasks = {name: loop.create_task(one(name)) for name in names}
    pending, first = set(tasks.values()), asyncio.FIRST_COMPLETED
    done: dict[str, Answer | Unavailable] = {}
    try:
        while pending and (left := deadline - loop.time()) > 0:
            _, pending = await asyncio.wait(pending, timeout=left, return_when=first)
            done = {name: task.result() for name, task in tasks.items() if task.done()}
            if any(agrees(address, answer) for answer in done.values()):
                break
        return done
    finally:
        for task in pending:
            task.cancel()


def from_smtpd(fcrdns: str, rdns: str) -> FcRdns:
    """smtpd's own check as a result.  It tells less: a PTR that could not be had, for whatever
    reason, is a fail without a name there (libasr, getnameinfo_async.c)."""
    named = rdns not in ("", "<unknown>")
    names = (rdns,) if is_host_name(rdns) else ()
    match fcrdns:
        case "pass":
            return FcRdns(Result.PASS, "".join(names), names)
        case "fail" if named:
            return FcRdns(Result.FAIL, names=names, reason="smtpd: name has another address")
        case "fail":
            return FcRdns(Result.PERMERROR, reason="smtpd: no PTR")
    return FcRdns(Result.TEMPERROR, names=names, reason="smtpd: DNS error")


def iprev_field(found: FcRdns, address: Address, authserv_id: str) -> str:
    """The body of an Authentication-Results field, unfolded (RFC 8601, 2.2 and 2.7.3):
    `mx.example.org; iprev=pass policy.iprev=192.0.2.1 (mail.example.org)`."""
    parts = [f"{_value(authserv_id)}; iprev={found.result}"]
    if found.reason:
        parts.append(f"reason={_value(found.reason)}")
    parts.append(f"policy.iprev={_value(str(plain(address)))}")
    if is_host_name(found.name):  # nothing else, or it might end the comment
        parts.append(f"({found.name})")
    return " ".join(parts)


def _value(text: str) -> str:
    """A token, or else a quoted-string (RFC 2045, 5.1): an IPv6 address has tspecials."""
    text = re.sub(r"[^ -~]", "?", text)
    if re.fullmatch(r"[^][ ()<>@,;:\\\"/?=]+", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


class Cache:
    """Results by address, each for its TTL within bounds; the oldest goes when it is full.
    clock: seconds, monotonic."""

    def __init__(self, size: int = CACHE_SIZE, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._clock = size, clock
        self._entries: dict[Address, tuple[float, FcRdns]] = {}  # until when; oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, address: Address) -> FcRdns | None:
        """The result, if one is known and still holds."""
        until, found = self._entries.get(address, (0.0, None))
        return found if until > self._clock() else None

    def put(self, address: Address, found: FcRdns, ttl: float) -> None:
        """Keep a result for `ttl` seconds, or what the bounds make of it."""
        ttl = min(max(ttl, LEAST_TTL), MOST_TTL)
        if found.result is Result.TEMPERROR:
            ttl = TEMPERROR_TTL
        self._entries.pop(address, None)
        self._entries[address] = (self._clock() + ttl, found)
        while len(self._entries) > self._size:
            del self._entries[next(iter(self._entries))]


_GIVEN_UP = FcRdns(Result.TEMPERROR, reason="the bridge is going down")


class Checker:
    """`check` with a cache, and with one lookup for all that ask for an address at once."""

    def __init__(
        self,
        resolver: Resolver,
        *,
        timeout: float = TIMEOUT,
        max_names: int = MAX_NAMES,
        cache: Cache | None = None,
    ) -> None:
        self._check = functools.partial(check, resolver, timeout=timeout, max_names=max_names)
        self._cache = Cache() if cache is None else cache
        self._open: dict[Address, asyncio.Task[FcRdns]] = {}  # lookups under way

    async def check(self, address: Address) -> FcRdns:
        """The result for a peer's address, an IPv4-mapped one taken as IPv4.  Never raises;
        takes at most the timeout.  A waiter that is cancelled leaves the lookup to others."""
        address = plain(address)
        if (found := self._cache.get(address)) is not None:
            return found
        if (task := self._open.get(address)) is None:
            if len(self._open) >= MAX_CHECKS:
                return FcRdns(Result.TEMPERROR, reason="too many lookups at once")
            task = self._open[address] = asyncio.create_task(self._look_up(address))
            task.add_done_callback(lambda _: self._open.pop(address, None))
        await asyncio.wait((task,))
        return _GIVEN_UP if task.cancelled() else task.result()

    async def aclose(self) -> None:
        """Give up the lookups under way; who waits for one gets temperror."""
        tasks = list(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, address: Address) -> FcRdns:
        try:
            found, ttl = await self._check(address)
        except Exception as error:  # noqa: BLE001 a bug here must not cost the session
            return FcRdns(Result.TEMPERROR, reason=f"internal error: {error!r:.200}")
        self._cache.put(address, found, ttl)
        return found


class DnsResolver:
    """Asks nameservers over UDP, and over TCP what is too long for it.

    nameservers: "192.0.2.53", "192.0.2.53:5353", "[2001:db8::53]:53"; none for those of
    /etc/resolv.conf, or this machine if it names none, as resolv.conf(5) has it.  Raises
    ValueError for what is no address.  timeout: seconds for one lookup, query_timeout: until
    a query is sent again, to the next server.
    """

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        *,
        timeout: float = TIMEOUT,
        query_timeout: float = QUERY_TIMEOUT,
    ) -> None:
        try:
            self._dns = dns.asyncresolver.Resolver(configure=not nameservers)
        except dns.resolver.NoResolverConfiguration:
            self._dns = dns.asyncresolver.Resolver(configure=False)
            nameservers = ("127.0.0.1",)
        if nameservers:
            self._dns.nameservers = [parse_nameserver(text) for text in nameservers]
        self._dns.lifetime, self._dns.timeout = timeout, query_timeout
        self._free = asyncio.Semaphore(MAX_QUERIES)

    async def ptr(self, address: Address) -> Answer:
        """See Resolver."""
        return await self._ask(dns.reversename.from_address(str(address)), dns.rdatatype.PTR)

    async def addresses(self, name: str, version: int) -> Answer:
        """See Resolver."""
        rdtype = dns.rdatatype.A if version == 4 else dns.rdatatype.AAAA
        return await self._ask(dns.name.from_text(name), rdtype)

    async def _ask(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Answer:
        ttl = float("inf")
        for _ in range(MAX_ALIASES):
            response = await self._query(name, rdtype)
            chain = response.resolve_chaining()
            if chain.answer is not None:
                records = tuple(rdata.to_text().removesuffix(".") for rdata in chain.answer)
                return Answer(records, min(ttl, chain.minimum_ttl))
            final = any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)
            missing = "NXDOMAIN" if response.rcode() == dns.rcode.NXDOMAIN else "NODATA"
            if not chain.cnames or final or missing == "NXDOMAIN":
                return Answer((), min(ttl, chain.minimum_ttl if final else NEGATIVE_TTL), missing)
            name = chain.canonical_name  # a server that left the rest of the chain to us
            ttl = min(ttl, *(alias.ttl for alias in chain.cnames))
        raise Unavailable("CNAME loop")

    async def _query(
        self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
    ) -> dns.message.QueryMessage:
        """One lookup; turns what dnspython raises into Unavailable."""
        try:
            async with self._free:
                answer = await self._dns.resolve(name, rdtype, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN as no:
            response: dns.message.QueryMessage = no.kwargs["responses"][name]
            return response
        except dns.exception.Timeout as error:
            raise Unavailable("timeout") from error
        except dns.resolver.NoNameservers as error:
            raise Unavailable(_last_error(error)) from error
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise Unavailable(f"DNS error {type(error).__name__}") from error
        return answer.response


def _last_error(error: dns.resolver.NoNameservers) -> str:
    """Why the last nameserver was given up: its code, or what kind of error it was."""
    *_, cause, _ = (error.kwargs.get("errors") or [("no answer", None)])[-1]
    if isinstance(cause, str):
        return cause
    return "network error" if isinstance(cause, OSError | EOFError) else "bad answer"


def parse_nameserver(text: str) -> dns.nameserver.Nameserver:
    """From "192.0.2.53", "192.0.2.53:5353", "[2001:db8::53]:53"; ValueError for the rest."""
    address, port = split_address(text)
    if address is None or not 0 <= port <= 65535:
        raise ValueError(f"nameserver {text!r}: expected an address, like 127.0.0.1 or [::1]:53")
    return dns.nameserver.Do53Nameserver(str(address), port or 53)
