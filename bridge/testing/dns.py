"""A small DNS server on loopback for tests and the demo: what would the DNS say?

It answers from a zone text, over UDP and TCP on one port, as a recursive resolver would: it
follows CNAMEs, and says NXDOMAIN, with a SOA, to whatever it does not know, so that it can be
the only resolver of a machine.  Names can be made to misbehave, also at run time.  It runs in
a thread of its own, or as `python -m bridge.testing.dns ZONEFILE`.  It never asks anybody.

A zone text has records, one a line (RFC 1035, section 5; names count from the root, the TTL
is 300 unless given, long quoted strings are split) and two directives of its own:

    mail.example.org 300 A 192.0.2.1
    k._domainkey.example.org TXT "v=DKIM1; k=rsa; p=..."
    $PTR 192.0.2.1 mail.example.org 300
    $FAULT slow.example.org slow:2 A
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

# `slow:2` answers after two seconds, truncate whole over TCP only, garbage with no DNS message.
FAULTS = ("servfail", "refused", "timeout", "truncate", "slow", "garbage")

DEFAULT_TTL = 300
UDP_SIZE = 1232  # DNS flag day 2020
UDP_SIZE_WITHOUT_EDNS = 512  # RFC 1035, section 4.2.1
CNAME_CHAIN = 16  # dnspython gives up there too
TCP_IDLE = 30.0  # seconds
QUERIES = 10_000  # how many are remembered

_RECORD = re.compile(r"(\S+)\s+(?:(\d+)\s+)?(?:IN\s+)?([A-Z]\w*)\s+(\S.*)", re.IGNORECASE)
_LONG_STRING = re.compile(r'"([^"\\\n]{256,})"')  # RFC 1035, section 3.3: at most 255
_SOA = "ns.invalid. hostmaster.invalid. 1 3600 600 86400 {}"


@dataclass(frozen=True, slots=True)
class Query:
    """A question that the server saw.  name: lower case, without the trailing dot."""

    name: str
    type: str
    tcp: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """How a name misbehaves.  kind: one of FAULTS; delay: seconds, for slow."""

    kind: str
    delay: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "servfail" or "slow:2"; ValueError for an unknown kind."""
        kind, _, delay = text.partition(":")
        if kind not in FAULTS:
            raise ValueError(f"fault {text!r}: expected one of {', '.join(FAULTS)}")
        return cls(kind, float(delay or 1.0) if kind == "slow" else 0.0)


_NO_FAULT = Fault("")


def ptr(address: str, *names: str, ttl: int = DEFAULT_TTL) -> str:
    """Zone text that says that `address` has these names."""
    owner = dns.reversename.from_address(address)
    return "".join(f"{owner} {ttl} PTR {name}\n" for name in names)


class Zone:
    """What the server knows and how it misbehaves; thread-safe, no I/O."""

    def __init__(self, text: str = "", *, negative_ttl: int = 60) -> None:
        self.queries: deque[Query] = deque(maxlen=QUERIES)  # oldest first
        self.watch: Callable[[Query], None] | None = None  # told of each question
        self._lock = threading.RLock()
        self._records: dict[dns.name.Name, dict[dns.rdatatype.RdataType, dns.rrset.RRset]] = {}
        self._faults: dict[tuple[str, str], Fault] = {}  # by name ("*" is all) and type ("" is all)
        self._soa = dns.rrset.from_text(".", negative_ttl, "IN", "SOA", _SOA.format(negative_ttl))
        self.add(text)

    def add(self, text: str) -> None:
        """Add the records and faults of a zone text; ValueError says what is wrong with it."""
        rrsets, faults = [], []
        for line in text.splitlines():
            match line.split():
                case ["$PTR", address, name, *ttl]:
                    rrsets.append(_record(ptr(address, name, ttl=int("".join(ttl) or DEFAULT_TTL))))
                case ["$FAULT", name, what, *type_]:
                    faults.append((name, what, "".join(type_)))
                case [word, *_] if not word.startswith(";"):
                    rrsets.append(_record(line))
        with self._lock:
            for rrset in rrsets:
                known = self._records.setdefault(rrset.name, {}).setdefault(rrset.rdtype, rrset)
                for rdata in list(rrset):
                    known.add(rdata, rrset.ttl)
            for fault in faults:
                self.fault(*fault)

    def remove(self, name: str, type: str = "") -> None:
        """Forget the records of a name, all or of one type."""
        owner = dns.name.from_text(name)
        with self._lock:
            if type:
                self._records.get(owner, {}).pop(dns.rdatatype.from_text(type), None)
            if not type or not self._records.get(owner):
                self._records.pop(owner, None)

    def replace(self, text: str) -> None:
        """Forget everything and start with this text."""
        fresh = Zone(text)
        with self._lock:
            self._records, self._faults = fresh._records, fresh._faults

    def fault(self, name: str, what: str, type: str = "") -> None:
        """Let a name ("*" for all) misbehave for all types or for one; "" ends it.  A PTR
        owner may be given as its address."""
        with self._lock:
            if what:
                self._faults[_key(name), type.upper()] = Fault.parse(what)
            else:
                self._faults.pop((_key(name), type.upper()), None)

    def asked(self, name: str, type: str = "") -> int:
        """How many questions for a name (or the PTR of an address) there were."""
        key = _key(name)
        with self._lock:
            return sum(q.name == key and type.upper() in ("", q.type) for q in self.queries)

    def respond(self, wire: bytes, *, tcp: bool) -> tuple[bytes, float] | None:
        """The reply to a message and the seconds to wait before it; None for no reply."""
        try:
            query = dns.message.from_wire(wire)
            response = dns.message.make_response(query, True, UDP_SIZE)  # recursion available
        except (dns.exception.DNSException, ValueError):
            return None  # not a question; silence can't start a quarrel of two servers
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            response.set_rcode(dns.rcode.NOTIMP)
            return response.to_wire(), 0.0
        question = query.question[0]
        name, type_ = _text(question.name), dns.rdatatype.to_text(question.rdtype)
        with self._lock:
            seen = Query(name, type_, tcp)
            self.queries.append(seen)
            if self.watch is not None:
                self.watch(seen)
            keys = ((name, type_), (name, ""), ("*", type_), ("*", ""))
            fault = next((self._faults[key] for key in keys if key in self._faults), _NO_FAULT)
            if fault.kind == "timeout":
                return None
            if fault.kind == "garbage":
                return wire[:2] + b"\xff" * 7, 0.0
            if fault.kind in ("servfail", "refused"):
                response.set_rcode(dns.rcode.from_text(fault.kind))
            elif question.rdclass != dns.rdataclass.IN:
                response.set_rcode(dns.rcode.REFUSED)
            else:
                self._fill(response, question.name, question.rdtype)
            if tcp:
                return _fit(response, 65535), fault.delay
            size = min(query.payload, UDP_SIZE) if query.edns >= 0 else UDP_SIZE_WITHOUT_EDNS
            return _fit(response, 0 if fault.kind == "truncate" else size), fault.delay

    def _fill(
        self, response: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
    ) -> None:
        """Answer and authority sections for a question."""
        response.flags |= dns.flags.AA
        for _ in range(CNAME_CHAIN):
            known = self._records.get(name, {})
            wanted = known if rdtype == dns.rdatatype.ANY else {rdtype} & known.keys()
            response.answer += [known[each] for each in wanted]
            if wanted:
                return
            alias = known.get(dns.rdatatype.CNAME)
            if alias is None:
                break
            response.answer.append(alias)
            name = alias[0].target
        else:
            response.answer = []
            response.set_rcode(dns.rcode.SERVFAIL)  # a loop
            return
        if not any(owner.is_subdomain(name) for owner in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(self._soa_above(name))

    def _soa_above(self, name: dns.name.Name) -> dns.rrset.RRset:
        """The zone's own SOA if it has one (RFC 2308, section 3), else that of a made-up root."""
        while name != dns.name.root:
            if soa := self._records.get(name, {}).get(dns.rdatatype.SOA):
                return soa
            name = name.parent()
        return self._soa


class DnsServer(Zone):
    """A Zone on sockets of its own, answered in a thread; a context manager.  hosts: loopback
    addresses; port: for UDP and TCP on all of them, 0 for any that is free."""

    def __init__(
        self,
        text: str = "",
        *,
        hosts: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
        negative_ttl: int = 60,
    ) -> None:
        super().__init__(text, negative_ttl=negative_ttl)
        if not all(ipaddress.ip_address(host).is_loopback for host in hosts):
            raise ValueError(f"{', '.join(hosts)}: expected loopback addresses")
        self.hosts, self.port = tuple(hosts), port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()

    @property
    def address(self) -> str:
        """Where it listens first: "127.0.0.1:5353" or "[::1]:5353"."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def start(self) -> Self:
        """Bind and answer; OSError if a port is taken."""
        sockets = _bind(self.hosts, self.port)
        self.port = sockets[0].getsockname()[1]
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(sockets, ready)), name="dns", daemon=True
        )
        self._thread.start()
        ready.result(10)
        return self

    def stop(self) -> None:
        """Close the sockets and end the thread; harmless when it is not running."""
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(10)
            self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _serve(self, sockets: Iterable[socket.socket], ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            for sock in sockets:
                stack.callback(sock.close)
                if sock.type == socket.SOCK_STREAM:
                    server = await asyncio.start_server(self._tcp, sock=sock)
                    stack.callback(server.close)
                else:
                    self._loop.add_reader(sock, self._udp, sock)
                    stack.callback(self._loop.remove_reader, sock)
            ready.set_result(None)
            await self._end.wait()

    def _udp(self, sock: socket.socket) -> None:
        """One datagram."""
        with contextlib.suppress(OSError):
            wire, peer = sock.recvfrom(65535)
            if reply := self.respond(wire, tcp=False):
                asyncio.get_running_loop().call_later(reply[1], sock.sendto, reply[0], peer)

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: messages with a two-byte length before them (RFC 1035, 4.2.2)."""
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
            while True:
                async with asyncio.timeout(TCP_IDLE):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(size)
                if reply := self.respond(wire, tcp=True):
                    await asyncio.sleep(reply[1])
                    writer.write(len(reply[0]).to_bytes(2, "big") + reply[0])
                    await writer.drain()
        writer.close()


def _bind(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """UDP and TCP sockets on all hosts and one port."""
    for tries in range(19, -1, -1):  # a free TCP port may be taken for UDP: then try another
        wanted, sockets = port, []
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sockets.append(sock := socket.socket(family, kind))
                    if kind == socket.SOCK_STREAM:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((host, wanted))
                    sock.setblocking(False)
                    wanted = sock.getsockname()[1]
            return sockets
        except OSError:
            for sock in sockets:
                sock.close()
            if port or not tries:
                raise
    raise AssertionError


def _record(line: str) -> dns.rrset.RRset:
    """One record from its line."""
    if not (match := _RECORD.fullmatch(line.strip())):
        raise ValueError(f"zone text {line!r}: expected NAME [TTL] TYPE DATA")
    name, ttl, type_, data = match.groups()
    try:
        data = _LONG_STRING.sub(_split, data)
        rdata = dns.rdata.from_text("IN", type_, data, dns.name.root, relativize=False)
        return dns.rrset.from_rdata(dns.name.from_text(name), int(ttl or DEFAULT_TTL), rdata)
    except dns.exception.DNSException as error:
        raise ValueError(f"zone text {line!r}: {error}") from error


def _split(match: re.Match[str]) -> str:
    text = match[1]
    return " ".join(f'"{text[i : i + 255]}"' for i in range(0, len(text), 255))


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _key(name: str) -> str:
    """How a name is written in queries and faults; an address stands for its PTR owner."""
    with contextlib.suppress(dns.exception.SyntaxError):
        return _text(dns.reversename.from_address(name))
    return _text(dns.name.from_text(name))


def _fit(response: dns.message.Message, size: int) -> bytes:
    """The wire form, without its records and with TC if it is longer than `size`."""
    with contextlib.suppress(dns.exception.TooBig):
        if size:
            return response.to_wire(max_size=size, want_shuffle=False)
    response.answer, response.authority = [], []
    response.flags |= dns.flags.TC
    return response.to_wire(max_size=UDP_SIZE_WITHOUT_EDNS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a zone file until SIGTERM or SIGINT; SIGHUP reads it again."""
    parser = argparse.ArgumentParser(prog="python -m bridge.testing.dns", description=main.__doc__)
    parser.add_argument("zonefile", type=Path)
    parser.add_argument("--host", action="append", help="loopback address; 127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="UDP and TCP; 0 is any free one")
    parser.add_argument("--verbose", action="store_true", help="print each question")
    options = parser.parse_args(arguments)
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the thread, which inherits it
    try:
        text = options.zonefile.read_text()
        server = DnsServer(text, hosts=options.host or ["127.0.0.1"], port=options.port)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.verbose:
        server.watch = lambda query: print(query.name, query.type, flush=True)
    with server:
        print(f"listening {server.address}", flush=True)
        while signal.sigwait(signals) == signal.SIGHUP:
            try:
                server.replace(options.zonefile.read_text())
                print("zone file read", flush=True)
            except (OSError, ValueError) as error:
                print(f"zone file not read: {error}", flush=True)


if __name__ == "__main__":
    main()
