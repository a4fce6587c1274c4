"""How smtpd of each protocol version spells things and what it tolerates, as rows of
differences.  Deliberately not bridge.smtpd.wire: the model must not share its mistakes.

From lka_filter.c and lka_report.c of the releases, and from transcripts of running servers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Dialect:
    """One version.  The defaults are those of the newest."""

    version: str = "0.7"
    release: str = "7.8.0-portable"
    # The handshake, in order.
    handshake: tuple[str, ...] = (
        "smtpd-version",
        "protocol",
        "smtp-session-timeout",
        "subsystem",
        "admd",
        "ready",
    )
    answer_limit: int = 0  # bytes of a line that smtpd keeps; 0: all
    token_first: bool = False  # in answers
    tokens: bool = True
    whole_seconds: bool = False
    auth_fields: tuple[str, ...] = ("result", "user")
    address_fields: tuple[str, ...] = ("msgid", "result", "address")
    identify_fields: tuple[str, ...] = ("method", "name")
    angle_brackets: bool = False  # addresses in reports as the client wrote them
    tx_before_reply: bool = False  # tx-* reports come before the protocol-server line
    # What it knows.
    missing_events: frozenset[str] = frozenset()
    decisions: frozenset[str] = frozenset(
        {"proceed", "junk", "reject", "disconnect", "rewrite", "report"}
    )
    smtp_out: bool = True
    noop_arguments: bool = True
    strict: bool = True  # a bad line is fatal; before 0.2 it was ignored
    empty_token: bool = True
    connect_phase: str = "connect"


_07 = Dialect()
_06 = replace(
    _07,
    version="0.6",
    release="6.8.0p2",
    handshake=("smtpd-version", "smtp-session-timeout", "subsystem", "admd", "ready"),
    answer_limit=2047,  # LINE_MAX - 1
    auth_fields=("user", "result"),
    decisions=_07.decisions - {"report"},
    noop_arguments=False,
    empty_token=False,
)
_05 = replace(
    _06,
    version="0.5",
    release="6.6.0-git",
    handshake=("smtpd-version", "smtp-session-timeout", "subsystem", "ready"),
    address_fields=("msgid", "address", "result"),
    tx_before_reply=True,
)
_04 = replace(
    _05,
    version="0.4",
    release="6.6.4p1",
    handshake=("smtpd-version", "smtp-session-timeout", "ready"),
    token_first=True,
    smtp_out=False,
)
_03 = replace(
    _04,
    version="0.3",
    handshake=("smtp-session-timeout", "ready"),
    missing_events=frozenset({"filter-report"}),
)
_02 = replace(_03, version="0.2", decisions=_03.decisions - {"junk"})
_01 = replace(
    _02, version="0.1", missing_events=_02.missing_events | {"link-greeting"}, strict=False
)
_1_65 = replace(_01, version="1", handshake=(), angle_brackets=True)  # OpenBSD 6.5
_1 = replace(  # December 2018, git only
    _1_65,
    whole_seconds=True,
    tokens=False,
    identify_fields=("name",),
    connect_phase="connected",
    missing_events=_1_65.missing_events | {"link-auth", "tx-reset", "timeout"},
)

DIALECTS: dict[str, Dialect] = {
    "0.7": _07, "0.6": _06, "0.5": _05, "0.4": _04, "0.3": _03, "0.2": _02, "0.1": _01,
    "1 (6.5)": _1_65, "1": _1,
}  # fmt: skip

# What a release adds within a protocol version.
HANDSHAKE_SINCE = {"protocol": (7, 6), "admd": (6, 8)}
DECISION_SINCE = {"report": (7, 6)}


def dialect(version: str, release: str = "") -> Dialect:
    """The row of a version, for a certain release of it ("7.4.0-portable") if one is named.
    ValueError for an unknown version."""
    if version not in DIALECTS:
        raise ValueError(f"protocol {version!r}: expected one of {', '.join(DIALECTS)}")
    row = DIALECTS[version]
    if not release:
        return row
    if not (number := re.match(r"(\d+)\.(\d+)", release)):
        raise ValueError(f"release {release!r}: expected like 7.6.0p1")
    known = (int(number[1]), int(number[2]))
    return replace(
        row,
        release=release,
        handshake=tuple(k for k in row.handshake if known >= HANDSHAKE_SINCE.get(k, (0, 0))),
        decisions=frozenset(d for d in row.decisions if known >= DECISION_SINCE.get(d, (0, 0))),
    )


def stamp(row: Dialect, seconds: float) -> str:
    return str(int(seconds)) if row.whole_seconds else f"{seconds:.6f}"


def ordered(fields: tuple[str, ...], **values: str) -> tuple[str, ...]:
    """The values of an event in the order of a version."""
    return tuple(values[name] for name in fields)


EVENTS = (
    "link-connect", "link-disconnect", "link-greeting", "link-identify", "link-tls",
    "link-auth", "tx-reset", "tx-begin", "tx-mail", "tx-rcpt", "tx-envelope", "tx-data",
    "tx-commit", "tx-rollback", "protocol-client", "protocol-server", "filter-report",
    "filter-response", "timeout",
)  # fmt: skip
PHASES = (
    "connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data",
    "data-line", "rset", "quit", "noop", "help", "wiz", "commit",
)  # fmt: skip
# The phases' names in filter-response (lka_filter.c, lka_report_smtp_filter_response).
RESPONSE_PHASE = {"connect": "connected", "starttls": "tls"}
