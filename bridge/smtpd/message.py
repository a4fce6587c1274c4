"""The message's bytes as smtpd sends them: lines ended by LF, dot-stuffed, without the final dot."""

from __future__ import annotations

from typing import NamedTuple


class Splice(NamedTuple):
    """Replace bytes [start, end) of the message by `new`.  start and end are offsets on line
    starts (or the message's end); `new` is empty or whole lines, dot-stuffed, ended by LF."""

    start: int
    end: int
    new: bytes
