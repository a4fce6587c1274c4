"""The handshake: what smtpd announces, and what a filter registers for.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.testing.dialect import EVENTS, PHASES, Dialect
from bridge.testing.server import Ids, Server


class Registry:
    """ready: `register|ready` has come.  reports: one entry for each registration, since each
    is served.  phases: registered; tokens: of those that will be asked."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.ready = False
        self.reports: list[tuple[str, str]] = []  # direction, event
        self.phases: set[str] = set()
        self.tokens: dict[str, str] = {}

    def config(self, server: Server) -> Iterator[tuple[str, ...]]:
        """The lines with which smtpd begins."""
        values = {
            "smtpd-version": self.dialect.release,
            "protocol": self.dialect.version,
            "smtp-session-timeout": str(server.session_timeout),
            "subsystem": "smtp-in",
            "admd": server.admd or server.hostname,
        }
        for key in self.dialect.handshake:
            yield ("config", key, values[key]) if key in values else ("config", key)
            if key == "subsystem" and server.smtp_out:
                yield "config", "subsystem", "smtp-out"

    def register(self, line: str, ids: Ids) -> str:
        """Take a register line; what is wrong with it, or ""."""
        if line == "register|ready":
            if not self.ready:
                self.ready = True
                self.tokens = {p: ids.token(p) for p in PHASES if p in self.phases}
            return ""
        kind, _, rest = line.partition("|")[2].partition("|")
        direction, separator, name = rest.partition("|")
        if not separator or kind not in ("report", "filter"):
            return "Invalid register line received"
        if kind == "report":
            return self._report(direction, name)
        if direction.lower() != "smtp-in":  # strncasecmp, unlike reports
            return "Invalid message direction"
        if name not in PHASES:
            return "Unrecognized report name"
        self.phases.add(name)  # after ready: accepted, without effect
        return ""

    def _report(self, direction: str, name: str) -> str:
        if direction not in ("smtp-in", "smtp-out")[: 1 + self.dialect.smtp_out]:
            return "Invalid message direction"
        known = [event for event in EVENTS if event not in self.dialect.missing_events]
        if name != "*" and name not in known:
            return "Unrecognized report name"
        self.reports += [(direction, event) for event in known if name in ("*", event)]
        return ""
