#!/usr/bin/env python3
r"""All events that smtpd reports, one line of JSON each.

The file holds addresses and what clients typed: keep it to yourself, and not for ever.

smtpd.conf (the action only for outgoing mail):
    filter "eventlog" \
        proc-exec "/usr/bin/env EVENTLOG=/var/log/mail.jsonl /usr/local/bin/eventlog.py"
    action "relay" relay filter "eventlog"
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from bridge import Filter, Report, Session
from bridge.smtpd.events import REPORTS


def eventlog(path: str) -> Filter:
    """A filter that only listens, to incoming and outgoing sessions."""
    app = Filter()
    log = -1

    @app.on_start
    def open_log() -> None:
        nonlocal log
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @app.on_stop
    def close_log() -> None:
        os.close(log)

    def write(event: Report, session: Session) -> None:
        said = {"event": event.keyword, **asdict(event), "peer": session.src}
        os.write(log, json.dumps(said).encode() + b"\n")  # one write: lines stay whole

    for direction in ("smtp-in", "smtp-out"):
        app.on(*REPORTS.values(), direction=direction)(write)
    return app


app = eventlog(os.environ.get("EVENTLOG", "events.jsonl"))

if __name__ == "__main__":
    app.run()
