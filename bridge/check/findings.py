"""What `filter-bridge check` finds out, and how that reads: a line for each, no colours.

Values only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "FAIL"
MAX_TEXT = 500  # some of it is what a server said
MAX_COLUMN = 48


@dataclass(frozen=True, slots=True)
class Finding:
    """state: OK, WARN or FAIL; subject: what and where; text: for FAIL what is wrong with it
    and a hint."""

    state: str
    subject: str
    text: str


def lines(findings: Iterable[Finding]) -> list[str]:
    """Aligned: `ok    rspamd http://127.0.0.1:11333  rspamd/3.4, 12 ms`."""
    rows = [(each.state, shown(each.subject), shown(each.text)) for each in findings]
    width = max((len(row[1]) for row in rows if len(row[1]) <= MAX_COLUMN), default=0)
    return [f"{state:<4}  {subject:<{width}}  {text}".rstrip() for state, subject, text in rows]


def shown(text: str) -> str:
    """One line that is safe on a terminal, whoever wrote it."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 3] + "..."
