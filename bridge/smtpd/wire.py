"""How events and decisions are spelled, in protocol 1 and 0.1 to 0.7.

Versions are data: the newest spelling in full, and for each older version what was
different before it.  Adding a version means adding rows.  Never keeps state and never
decides when something may be said: that is protocol.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bridge.smtpd import events
from bridge.smtpd.decisions import Decision, Disconnect, Reject, Rewrite
from bridge.smtpd.events import Event, Version


class WireError(ValueError):
    """smtpd wrote a line that can't be read.  Says what was wrong, never the content."""


@dataclass(frozen=True, slots=True)
class Config:
    """One line of the handshake: `config|key|value`; `ready` has no value."""

    key: str
    value: str = ""


# The versions that have no dot are older than all that have: `1` was in OpenBSD 6.5, `0` in
# git for some days of August 2019, then the version became a string and began at 0.1.
INTEGER_VERSIONS: dict[bytes, Version] = {b"1": (0, -1), b"0": (0, 0)}

# Events that were renamed: the old name, the class that it is today.
OLD_NAMES = {"link-reset": "tx-reset", "connected": "connect"}

# The fields of an event in the newest version, in the order of its dataclass; one in OPTIONAL
# may be missing at the end of a line.
FIELDS: dict[type[Event], tuple[str, ...]] = {
    event: tuple(name for name in event.__annotations__ if name != "keyword")
    for event in (*events.REPORTS.values(), *events.PHASES.values())
}
OPTIONAL: dict[type[Event], set[str]] = {
    events.TxReset: {"msgid"},
    events.FilterResponse: {"param"},
}

# Before this version, these events had their fields in this order (smtpd-filters(7) of the
# releases; the last change first, so that the oldest matching row is the last word).
FIELDS_BEFORE: tuple[tuple[Version, dict[type[Event], tuple[str, ...]]], ...] = (
    ((0, 7), {events.LinkAuth: ("user", "result")}),
    (
        (0, 6),
        {
            events.TxMail: ("msgid", "address", "result"),
            events.TxRcpt: ("msgid", "address", "result"),
        },
    ),
    ((0, 1), {events.LinkIdentify: ("name",)}),
)
# The one field of an event that may contain `|`, where it is not the last one.
WIDE: dict[type[Event], str] = {
    events.LinkConnect: "rdns",  # a name from /etc/hosts is not checked
    events.Connect: "rdns",
    events.LinkAuth: "user",
    events.TxMail: "address",
    events.TxRcpt: "address",
}

# Up to this version an answer names the token first, later the session.
TOKEN_FIRST: Version = (0, 4)
# The longest line that smtpd takes back: before 7.4 (protocol 0.7) it cut an answer at 2,047
# bytes; since then 65,536 bytes without a LF wedge it.  50 of them are the prefix.
LONGEST_LINE = 65_485
LONGEST_LINE_BEFORE: tuple[tuple[Version, int], ...] = (((0, 7), 1_997),)


def parse_version(text: bytes) -> Version:
    """The version of a line as numbers; WireError if it is none."""
    if text in INTEGER_VERSIONS:
        return INTEGER_VERSIONS[text]
    if not (match := re.fullmatch(rb"(\d{1,4})\.(\d{1,4})", text)):
        raise WireError("no protocol version in the second field")
    return int(match[1]), int(match[2])


def longest_line(version: Version) -> int:
    """How many bytes of content a line may have that goes back to smtpd."""
    return min((n for before, n in LONGEST_LINE_BEFORE if version < before), default=LONGEST_LINE)


def parse(line: bytes) -> Event | Config:
    """The event in a line (without its LF).  WireError for what is none, or one we don't know."""
    kind, _, rest = line.partition(b"|")
    if kind == b"config":
        key, _, value = _text(rest).partition("|")
        return Config(key, value)
    if kind not in (b"report", b"filter"):
        raise WireError("not a config, report or filter line")
    head = rest.split(b"|", 4)
    if len(head) < 4 or not head[-1]:
        raise WireError(f"a {_text(kind)} line of too few fields")
    version, stamp, direction, name = parse_version(head[0]), head[1], head[2], _text(head[3])
    session, has_more, tail = (head[4] if len(head) > 4 else b"").partition(b"|")
    if not session:
        raise WireError(f"a {_text(kind)} line without a session")
    table = events.REPORTS if kind == b"report" else events.PHASES
    event = table.get(OLD_NAMES.get(name, name))
    if event is None:
        raise WireError(f"an unknown {_text(kind)}: {name[:40]!r}")
    token = b""
    # Requests had no token in the first weeks, when a timestamp had no fraction either.
    if kind == b"filter" and (version >= (0, 0) or b"." in stamp):
        token, has_more, tail = tail.partition(b"|")
    values = _fields(event, version, _text(tail), bool(has_more))
    if kind == b"filter":
        values["token"] = _text(token)
    return event(
        _text(session), time=_time(stamp), direction=_text(direction), version=version, **values
    )


def fields_of(event: type[Event], version: Version) -> tuple[str, ...]:
    """The names of an event's fields, in the order of that version."""
    names = FIELDS[event]
    for before, changed in FIELDS_BEFORE:
        if version < before:
            names = changed.get(event, names)
    return names


def _fields(event: type[Event], version: Version, tail: str, present: bool) -> dict[str, str]:
    names = fields_of(event, version)
    if not names:
        return {}
    parts = tail.split("|") if present else []
    if event is events.LinkIdentify and len(parts) == 2:
        names = FIELDS[event]  # protocol 1 gained the method while it was 1
    if (surplus := len(parts) - len(names)) > 0:
        wide = names.index(WIDE[event]) if event in WIDE else len(names) - 1
        parts[wide : wide + surplus + 1] = ["|".join(parts[wide : wide + surplus + 1])]
    values = dict(zip(names, parts, strict=False))
    if missing := set(names) - set(values) - OPTIONAL.get(event, set()):
        raise WireError(f"{event.keyword} without {', '.join(sorted(missing))}")
    if version < (0, 0):  # protocol 1 wrote addresses with their angle brackets
        if values.get("address", "").startswith("<"):
            values["address"] = values["address"].removeprefix("<").removesuffix(">")
        if event is events.LinkIdentify:
            values.setdefault("method", "")
    return values


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _time(stamp: bytes) -> float:
    try:
        return float(stamp)
    except ValueError:
        return 0.0


def raw(text: str) -> bytes:
    """The bytes of a text that came from a line."""
    return text.encode("utf-8", "surrogateescape")


def result(version: Version, session: str, token: str, decision: Decision) -> bytes:
    """The answer to a request other than data-line."""
    match decision:
        case Reject() | Disconnect():
            said = f"{decision.keyword}|{decision.reply}"
        case Rewrite():
            said = f"rewrite|{decision.value}"
        case _:
            said = decision.keyword
    return b"filter-result|%s|%s\n" % (_ids(version, session, token), raw(said))


def dataline_prefix(version: Version, session: str, token: str) -> bytes:
    """What stands before each line of the message that goes back."""
    return b"filter-dataline|%s|" % _ids(version, session, token)


def _ids(version: Version, session: str, token: str) -> bytes:
    if not token:
        return raw(session)
    first, second = (token, session) if version <= TOKEN_FIRST else (session, token)
    return raw(f"{first}|{second}")


def register(kind: str, direction: str, name: str) -> bytes:
    """One registration; kind: report or filter."""
    return f"register|{kind}|{direction}|{name}\n".encode()


READY = b"register|ready\n"
