"""What rspamd said: a reply of /checkv2 as a value.

A reply without a usable action is an error, never an acceptance.  Nothing in it is trusted to
have the type that it should have.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.services.upstream import ServiceError

# Names that are used inside rspamd and mean that there was no action (cfg_utils.cxx).
NO_ACTIONS = frozenset({"invalid max action", "unknown action", "custom"})
# Bytes of JSON.  A reply has some thousands; 30 MB of `[],` keep Python busy for 20 s, in which
# it would answer nobody, and be taken for hung.
MAX_JSON = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Reply:
    """rspamd's reply.  action: in lower case, never empty; required_score: the highest
    threshold, None if not told; data: all of the JSON; block: a rewritten body (or message)."""

    action: str
    score: float = 0.0
    required_score: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    block: bytes | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def symbols(self) -> list[str]:
        """The names of what was found, sorted."""
        symbols = self.data.get("symbols")
        return sorted(symbols) if isinstance(symbols, dict) else []

    @property
    def smtp_message(self) -> str:
        """A rule's text for the client, or ""."""
        messages = self.data.get("messages")
        text = messages.get("smtp_message") if isinstance(messages, dict) else ""
        return text if isinstance(text, str) else ""

    @property
    def milter(self) -> Mapping[str, Any]:
        """The milter block, empty if there is none."""
        return dict(members(self.data.get("milter")))


def parse_reply(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """A reply of /checkv2, its compression undone; ServiceError if it is none."""
    headers = {name.lower(): value for name, value in headers.items()}
    block = None
    if status == 200 and (offset := headers.get("message-offset", "")):
        if not re.fullmatch(r"[0-9]{1,12}", offset) or not 0 < int(offset) <= len(body):
            raise ServiceError("bad-reply", f"Message-Offset {offset[:20]!a} of {len(body)} bytes")
        body, block = body[: int(offset)], body[int(offset) :]
    if len(body) > MAX_JSON:
        raise ServiceError("bad-reply", f"{len(body)} bytes of JSON, expected {MAX_JSON} at most")
    data = _json(body)
    if status != 200:
        # rspamd's own errors are about the request: no other server will like it better.
        own = isinstance(data, dict) and "error_domain" in data
        hint = "; hint: is the path /checkv2?" if own else ""
        told = f"status {status}{_error(data)}{hint}"
        raise ServiceError("http-error", told, retry=status >= 500 and not own)
    if not isinstance(data, dict):
        raise ServiceError("bad-reply", "no JSON object; hint: is this rspamd's normal worker?")
    action = data.get("action")
    name = " ".join(action.replace("_", " ").split()).lower() if isinstance(action, str) else ""
    if not name or name in NO_ACTIONS:
        hint = "is the path /checkv2?" if "default" in data else "see rspamd's log"
        raise ServiceError("bad-reply", f"action {action!a:.60}{_error(data)}; hint: {hint}")
    # required_score is the highest threshold of all actions, perhaps of one of somebody's own.
    thresholds = data.get("thresholds")
    reject = thresholds.get("reject") if isinstance(thresholds, dict) else None
    required = _number(data.get("required_score") if reject is None else reject)
    return Reply(name, _number(data.get("score")) or 0.0, required, data, block)


def members(value: object) -> Iterator[tuple[str, Any]]:
    """The members of an object; also of one in a list, which Lua makes of two rules' tables
    when the first was empty (lua_ucl.c).  milter.c loses those."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            yield from item.items()


def _error(data: object) -> str:
    error = data.get("error") if isinstance(data, dict) else None
    return f" ({error[:200]!a})" if isinstance(error, str) else ""


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _json(body: bytes) -> object:
    """What is in a body that may hold a BOM and bytes that are no UTF-8; None if no JSON."""
    try:
        return json.loads(body.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
