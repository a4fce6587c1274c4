"""Which fields of a message say what only we may say?

Nobody else is our authserv-id (RFC 8601, section 5) or knows what was not scanned here.  Reads
a claim as the most lenient of readers might: to take off a field too many of a forger is no
loss.  Never looks at what a field claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bridge.edits import Edit, Field, Remove
from bridge.failure import UNSCANNED

AUTHENTICATION_RESULTS = "Authentication-Results"
# An authserv-id that does not begin within so many bytes is hidden on purpose.
FAR = 1000

_INVISIBLE = re.compile(rb"[^!-~]*")  # blanks, and what is no ASCII
_PARENTHESIS = re.compile(rb"\\.|[()]", re.DOTALL)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.){0,600})', re.DOTALL)
# Up to what can be in no token (RFC 2045, 5.1): a version, `mx.example.org/1`, is none of it.
_TOKEN = re.compile(rb"[^]\x00-\x20\x7f-\xff()<>@,;:\\\"/[?=]*")


def forged(fields: Sequence[Field], authserv_id: str) -> Iterator[Edit]:
    """The edits that take them off."""
    results = AUTHENTICATION_RESULTS.lower()
    claims = [field.value for field in fields if field.name.lower() == results]
    ours = tuple(n for n, value in enumerate(claims, 1) if claims_to_be(value, authserv_id))
    if ours:
        yield Remove(AUTHENTICATION_RESULTS, ours)
    if any(field.name.lower() == UNSCANNED.lower() for field in fields):
        yield Remove(UNSCANNED)


def claims_to_be(value: bytes, authserv_id: str) -> bool:
    """May somebody take this Authentication-Results, unfolded, for that authserv-id's?"""
    at = _after_comments(value)
    if at is None:
        return True
    if quoted := _QUOTED.match(value, at):
        found = re.sub(rb"\\(.)", rb"\1", quoted[1], flags=re.DOTALL)
    else:
        found = value[at : _end(_TOKEN, value, at)]
    return _plain(found) == _plain(authserv_id.encode("utf-8", "surrogateescape"))


def _plain(name: bytes) -> bytes:
    """For comparison: nothing but what is visible, in lower case, no final dot."""
    return re.sub(rb"[^!-~]", b"", name).lower().rstrip(b".")


def _after_comments(value: bytes) -> int | None:
    """Where the authserv-id begins, None if that is too far away."""
    at = _end(_INVISIBLE, value, 0)
    while at <= FAR and value.startswith(b"(", at):
        if (end := _comment_end(value, at)) is None:
            return None
        at = _end(_INVISIBLE, value, end)
    return at if at <= FAR else None


def _comment_end(value: bytes, at: int) -> int | None:
    """Where the comment ends that begins there; comments nest (RFC 5322, 3.2.2)."""
    depth = 0
    for match in _PARENTHESIS.finditer(value, at, FAR + 1):
        depth += {b"(": 1, b")": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return None


def _end(pattern: re.Pattern[bytes], value: bytes, at: int) -> int:
    match = pattern.match(value, at)
    return match.end() if match else at
