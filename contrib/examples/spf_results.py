#!/usr/bin/env python3
"""Incoming mail gets an Authentication-Results field (RFC 8601) with the result of SPF.

Needs pyspf (Debian: python3-spf), a whole RFC 7208, which is more than an example can be.

smtpd.conf:
    filter "spf" proc-exec "/usr/local/bin/spf_results.py"
"""

from __future__ import annotations

from collections.abc import Callable

import spf  # type: ignore[import-untyped]

from bridge import Filter, Insert, Message, Remove, Session, Verdict

FIELD = "Authentication-Results"
Check = Callable[[str, str, str], str]  # address, sender, HELO name: the result


def check_host(address: str, sender: str, helo: str) -> str:
    """The result's word (RFC 7208, 2.6)."""
    result, _ = spf.check2(address, sender, helo, timeout=5, querytime=20)
    return str(result)


def spf_results(check: Check = check_host) -> Filter:
    """A filter that marks and refuses nothing."""
    app = Filter()

    @app.on(Message)
    def mark(event: Message, session: Session) -> Verdict | None:
        """A plain function, so it runs in a thread: pyspf waits for the DNS."""
        if session.authenticated or session.address is None or session.transaction is None:
            return None
        us, sender = session.hostname, session.transaction.sender or ""
        result = check(str(session.address), sender, session.helo)
        domain = sender.rpartition("@")[2]
        who = f"smtp.mailfrom={domain}" if domain else f"smtp.helo={session.helo}"
        # Only we may speak in our name (RFC 8601, section 5).
        forged = tuple(
            number
            for number, value in enumerate(event.headers(FIELD), 1)
            if value.lower().startswith(us.lower())
        )
        edits = (Remove(FIELD, forged),) if forged else ()
        return Verdict(edits=(*edits, Insert(0, FIELD, f"{us}; spf={result} {who}")))

    return app


app = spf_results()

if __name__ == "__main__":
    app.run()
