"""What happens to mail that could not be judged: the tables below `failure`.

Each names a kind of failure and its answer; `Failures.choose` finds it.  Which failures there
are is endpoints.py's and the shim's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.config import kinds as k
from bridge.config.rows import own

TEMPFAIL = "tempfail"
INHERIT = "inherit"
_ANSWER = k.choice(TEMPFAIL, "accept", "accept-header")
_OR = k.choice(TEMPFAIL, "accept", "accept-header", INHERIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeFailure:
    """When the bridge gives no answer."""

    default: str = own(
        _ANSWER, TEMPFAIL, "The answer for all kinds of failure that have none of their own."
    )
    unreachable: str = own(_OR, INHERIT, "There was no bridge for as long as shim.patience.")
    timeout: str = own(_OR, INHERIT, "The deadline passed without an answer.")
    bad_reply: str = own(_OR, INHERIT, "The bridge gave an answer that makes no sense.")
    too_large: str = own(_OR, "accept-header", "The message is over shim.max_message_size.")
    internal: str = own(_OR, INHERIT, "Three bridges died of the request, or an error of our own.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFailure:
    """When a service gives no answer."""

    default: str = own(
        _ANSWER, TEMPFAIL, "The answer for all kinds of failure that have none of their own."
    )
    unreachable: str = own(
        _OR, INHERIT, "The server could not be reached, or closed the connection."
    )
    timeout: str = own(_OR, INHERIT, "The server gave no answer in time.")
    http_error: str = own(_OR, INHERIT, "The server gave an HTTP error.")
    bad_reply: str = own(_OR, INHERIT, "The server gave an answer that makes no sense.")
    too_large: str = own(_OR, INHERIT, "The message is over max_size of the service.")
    breaker_open: str = own(_OR, INHERIT, "All servers are out of use; see max_errors.")
    internal: str = own(_OR, INHERIT, "An error of our own.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RspamdFailure(ServiceFailure):
    """When rspamd gives no answer."""

    # A tempfail would be for ever, and rspamd itself only closes the connection on one.
    too_large: str = own(_OR, "accept-header", "The message is over max_size of the service.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeFailureAuthenticated(BridgeFailure):
    """The same for authenticated and local clients; "inherit": as for all."""

    default: str = own(
        _OR, INHERIT, "The answer for all kinds of failure that have none of their own here."
    )
    too_large: str = own(_OR, INHERIT, "The message is over shim.max_message_size.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFailureAuthenticated(ServiceFailure):
    """The same for authenticated and local clients; "inherit": as for all."""

    default: str = own(
        _OR, INHERIT, "The answer for all kinds of failure that have none of their own here."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What happens to mail that could not be judged."""


@dataclass(frozen=True, slots=True)
class Failures:
    """The failure policy: its tables by their path below `failure`, "rspamd.authenticated"."""

    tables: Mapping[str, Any]

    def choose(self, service: str, kind: str, authenticated: bool) -> str:
        """The answer (tempfail, accept, accept-header) to a failure of bridge, rspamd or dkim.

        For authenticated clients their table goes first.  A service or kind without a row
        gets the default, and that of an unknown service is tempfail: nothing passes unnamed.
        """
        paths = [f"{service}.authenticated"] if authenticated else []
        for path in (*paths, service):
            for name in (kind.replace("-", "_"), "default"):
                answer = getattr(self.tables.get(path), name, INHERIT)
                if answer != INHERIT:
                    return str(answer)
        return TEMPFAIL
