#!/usr/bin/env python3
r"""Greylisting: a stranger's first try is put off; five minutes later the next one passes.

smtpd.conf:
    filter "greylist" \
        proc-exec "/usr/bin/env GREYLIST_DB=/var/db/grey.db /usr/local/bin/greylisting.py"
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_network

from bridge import Filter, RcptTo, Reject, Session

LATER = Reject("4.7.1", "Greylisted, please try again in a few minutes", 450)
REMEMBERED = 36 * 86400.0  # a month, and some days for monthly newsletters


def greylisting(path: str, delay: float = 300.0, clock: Callable[[], float] = time.time) -> Filter:
    """A filter that keeps its triplets in an SQLite file."""
    app = Filter()

    @app.on_start
    def create() -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("create table if not exists seen (who text primary key, since real)")

    @app.on(RcptTo)
    def recipient(event: RcptTo, session: Session) -> Reject | None:
        """A plain function, so it runs in a thread: SQLite may wait for a lock."""
        if session.authenticated or session.address is None or session.transaction is None:
            return None
        # A whole network: large senders try again from another machine.
        prefix = 24 if session.address.version == 4 else 64
        network = ip_network(f"{session.address}/{prefix}", strict=False)
        who = f"{network} {session.transaction.sender} {event.address}".lower()
        now = clock()
        with closing(sqlite3.connect(path, timeout=5)) as db, db:
            db.execute("delete from seen where since < ?", (now - REMEMBERED,))
            db.execute("insert or ignore into seen values (?, ?)", (who, now))
            [(since,)] = db.execute("select since from seen where who = ?", (who,))
        return LATER if now - since < delay else None

    return app


app = greylisting(os.environ.get("GREYLIST_DB", "greylist.sqlite3"))

if __name__ == "__main__":
    app.run()
