"""How a header field of ours is written: folded where it is long, and where it may be.

Knows no message; where the field goes is edits.py's.
"""

from __future__ import annotations

import re

FOLD_AT = 78  # RFC 5322 2.1.1
# Folding is seen by a signature that canonicalises its own field "simple" (RFC 6376 3.4.1).
SIGNATURES = frozenset({"dkim-signature", "arc-seal", "arc-message-signature"})

_LEAD = re.compile(rb"[^ \t:]*:?[ \t]*")


def written(name: str, value: str, max_line: int) -> bytes:
    """The field's lines, each with its LF, none over `max_line` bytes.  Folds that a value has
    are kept: it may be a signature."""
    blank = " " if value and value[0] not in " \t\r\n" else ""
    raw = f"{name}:{blank}{value}".encode("utf-8", "surrogateescape").replace(b"\r\n", b"\n")
    keep = b"\n" in raw or name.lower() in SIGNATURES
    lines = [
        line
        for part in raw.split(b"\n")
        for line in _fold(part, max_line if keep else FOLD_AT, max_line)
    ]
    return b"\n".join(lines) + b"\n"


def _fold(line: bytes, soft: int, hard: int) -> list[bytes]:
    """Fold at blanks to `soft` where there are some, to `hard` in any case (RFC 5322 2.2.3)."""
    if len(line) <= soft:
        return [line]
    line, lines = line.rstrip(b" \t"), []
    if len(line) > hard:  # no run of blanks may be longer than a line
        line = re.sub(rb"(?<=[^ \t])[ \t]+", b" ", line)
    while len(line) > soft and (at := _break(line, soft, hard)):
        lines.append(line[:at])
        line = line[at:] if line[at : at + 1] in (b" ", b"\t") else b" " + line[at:]
    return [*lines, line]


def _break(line: bytes, soft: int, hard: int) -> int:
    """Where to break a line over `soft` bytes; 0 if it can stay."""
    match = _LEAD.match(line)
    lead = match.end() if match else 0
    flat = line.replace(b"\t", b" ")
    at = flat.rfind(b" ", lead + 1, soft + 1)
    if at < 0:
        at = flat.find(b" ", soft + 1, hard + 1)
    if at > 0:
        return len(flat[:at].rstrip(b" "))
    if len(line) <= hard:
        return 0
    word = (flat + b" ").find(b" ", lead)
    if flat[:1] != b" " and flat[lead - 1 : lead] == b" " and word - lead < hard:
        return lead - 1  # after the colon: the word fits a line of its own
    if (at := max(line.rfind(b";", lead + 1, hard), line.rfind(b",", lead + 1, hard))) > 0:
        return at + 1
    at = hard
    while at > hard - 3 and line[at] & 0xC0 == 0x80:  # not within a UTF-8 character
        at -= 1
    return at
