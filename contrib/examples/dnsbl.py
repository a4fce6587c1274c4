#!/usr/bin/env python3
r"""Whoever is on a DNS blocklist (RFC 5782) is turned away at once.

smtpd.conf:
    filter "dnsbl" \
        proc-exec "/usr/bin/env DNSBL_ZONES=zen.example.net /usr/local/bin/dnsbl.py"
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import dns.asyncresolver
import dns.exception
import dns.reversename

from bridge import Connect, Disconnect, Filter, Session

WAIT = 5.0  # s for all lists together: who can't be looked up passes


def dnsbl(zones: Sequence[str], resolver: dns.asyncresolver.Resolver | None = None) -> Filter:
    """A filter that asks these zones."""
    app = Filter()
    ask = resolver or dns.asyncresolver.Resolver(configure=True)

    async def listed(address: str, zone: str) -> str:
        """The zone if it lists the address, else nothing."""
        origin = dns.name.from_text(zone)
        name = dns.reversename.from_address(address, v4_origin=origin, v6_origin=origin)
        try:
            answer = await ask.resolve(name, "A", lifetime=WAIT)
        except dns.exception.DNSException as error:
            if not isinstance(error, dns.resolver.NXDOMAIN):
                print(f"dnsbl zone={zone} error={type(error).__name__}")  # goes to smtpd's log
            return ""
        # 127.255.255.0/24 is an error of the asker, not a listing.
        codes = [record.address for record in answer]
        good = any(code.startswith("127.") and not code.startswith("127.255.") for code in codes)
        return zone if good else ""

    @app.on(Connect)
    async def connect(event: Connect, session: Session) -> Disconnect | None:
        if session.address is None:  # the local socket
            return None
        address = str(session.address)
        found = await asyncio.gather(*(listed(address, zone) for zone in zones))
        where = ", ".join(filter(None, found))
        return Disconnect("5.7.1", f"{address} is listed by {where}", 554) if where else None

    return app


app = dnsbl(os.environ.get("DNSBL_ZONES", "").split())

if __name__ == "__main__":
    app.run()
