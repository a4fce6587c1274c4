#!/usr/bin/env python3
r"""No user sends to more than so many recipients an hour.

smtpd.conf, for the listener where users authenticate:
    filter "limit" \
        proc-exec "/usr/bin/env RATE_LIMIT=100 /usr/local/bin/rate_limit.py"
"""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Callable

from bridge import Filter, RcptTo, Reject, Session

HOUR = 3600.0
LATER = Reject("4.7.1", "You have sent to too many recipients, please try again later", 450)


def rate_limit(limit: int, clock: Callable[[], float] = time.monotonic) -> Filter:
    """A filter that counts in memory: each process counts for itself, from its start on."""
    app = Filter()
    sent: defaultdict[str, deque[float]] = defaultdict(deque)  # times, by user

    @app.on(RcptTo)
    async def recipient(event: RcptTo, session: Session) -> Reject | None:
        """Async handlers all run in one thread, so the counts need no lock."""
        if not session.authenticated:
            return None
        times = sent[session.user or "(local)"]
        now = clock()
        while times and times[0] <= now - HOUR:
            times.popleft()
        if len(times) >= limit:
            return LATER
        times.append(now)
        return None

    return app


app = rate_limit(int(os.environ.get("RATE_LIMIT", "100")))

if __name__ == "__main__":
    app.run()
