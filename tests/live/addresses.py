"""Which loopback address may a server under test have for itself?

An address of 127.77.0.0/16 belongs to whoever holds UDP port 53 on it: either a DNS stand-in
that answers there (smtpd's resolver knows no other port) or a socket that only sits there. So
every server has ports 25, 53 and 587 of its own, and parallel runs never meet.
"""

from __future__ import annotations

import errno
import random
import socket
import sys
from pathlib import Path

from bridge.testing.dns import DnsServer

ATTEMPTS = 50


def _candidate() -> str:
    # From the system's entropy: parallel workers must not share a seed.
    pick = random.SystemRandom().randrange
    return f"127.77.{pick(256)}.{pick(1, 255)}"


def nameserver(zone: str = "") -> DnsServer:
    """A running DNS stand-in on port 53 of an address of its own; `stop` it at the end."""
    for attempt in range(ATTEMPTS):
        try:
            return DnsServer(zone, hosts=(_candidate(),), port=53).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def claim() -> tuple[str, socket.socket]:
    """An address without a DNS server; it is ours until the socket is closed."""
    for attempt in range(ATTEMPTS):
        held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        address = _candidate()
        try:
            held.bind((address, 53))
            return address, held
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def free_port(address: str) -> int:
    """A TCP port that nobody listens on now; only on a claimed address does it stay so."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(address: str, port: int) -> bool:
    """Whether somebody listens there, seen from outside: no connection is made for it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    # proc(5): each 32-bit word of an address in the machine's byte order, as hex.
    words = [raw[i : i + 4] for i in range(0, len(raw), 4)]
    host = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    table = Path("/proc/net/tcp6" if ":" in address else "/proc/net/tcp").read_text()
    return any(
        fields[1] == f"{host}:{port:04X}" and fields[3] == "0A"  # TCP_LISTEN
        for fields in map(str.split, table.splitlines()[1:])
    )
