"""An answer line of a filter, taken apart as smtpd does it (lka_filter_process_response).

Pure: says what is wrong in smtpd's own words; whether an answer is due is smtpd.py's question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bridge.testing.dialect import Dialect
from bridge.testing.grammar import text

PARAMETER_MAX = 16_300  # a little under MAX_IMSGSIZE; died with 17,000, lived with 16,000

# strtoull(3) base 16: blanks, a sign, 0x and missing zeros are all taken.
_NUMBER = re.compile(rb"[ \t\n\v\f\r]*[+-]?(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]+)\|")


class BadAnswer(Exception):
    """What fatalx() says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """kind: filter-result or filter-dataline; token: None in a protocol without; content: the
    decision or the line."""

    kind: bytes
    reqid: int
    token: int | None
    content: bytes

    @classmethod
    def parse(cls, line: bytes, dialect: Dialect) -> Answer:
        kind, _, rest = line.partition(b"|")
        if not dialect.tokens:
            reqid, rest = _number(rest, "reqid")
            return cls(kind, reqid, None, rest)
        first, second = ("token", "reqid") if dialect.token_first else ("reqid", "token")
        one, rest = _number(rest, first)
        other, rest = _number(rest, second, empty=dialect.empty_token)
        reqid, token = (other, one) if dialect.token_first else (one, other)
        return cls(kind, reqid, token, rest)

    def decision(self, phase: str, dialect: Dialect) -> tuple[str, bytes]:
        """Decision and parameter, if smtpd takes them in this phase."""
        word, present, parameter = self.content.partition(b"|")
        name = text(word)
        bare = not present and name in ("proceed", "junk") and name in dialect.decisions
        if bare and name == "junk" and phase == "commit":
            raise BadAnswer("filter-reponse junk after DATA")
        if not bare and not present:
            raise BadAnswer("Missing parameter")
        if not bare and (name in ("proceed", "junk") or name not in dialect.decisions):
            raise BadAnswer("Invalid directive")
        if len(parameter) > PARAMETER_MAX:
            raise BadAnswer("message too large")
        return name, parameter


def _number(raw: bytes, name: str, *, empty: bool = True) -> tuple[int, bytes]:
    if raw.startswith(b"|") and empty:
        return 0, raw[1:]
    match = _NUMBER.match(raw)
    if not match or (value := int(match[1], 16)) >= 1 << 64:
        raise BadAnswer(f"Invalid {name}")
    return value, raw[match.end() :]
