"""What configuration values are made of and how they are shown, and what a mistake is.

Pure; which key has which of them is schema.py.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SECOND = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
BYTE = {"G": 1 << 30, "M": 1 << 20, "K": 1 << 10, "": 1}

_TCP = re.compile(r"tcp:(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", re.ASCII)


class Mistake(NamedTuple):
    """What is wrong with a value: where in it ("[2]"), what was found, what was expected."""

    at: str
    found: str
    expected: str
    near: str = ""  # what was perhaps meant


class Wrong(ValueError):
    """A value is not of its kind."""

    def __init__(self, *mistakes: Mistake) -> None:
        super().__init__("; ".join(f"{m.found}: expected {m.expected}" for m in mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that no log, traceback or repr shows.  source: literal, env, file or ""."""

    value: str = field(default="", repr=False)
    source: str = ""

    def __bool__(self) -> bool:
        return bool(self.value)

    def __str__(self) -> str:
        return "(secret)" if self.value else ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a bridge listens: a unix socket (`path`) or `host` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """From "unix:PATH" or "tcp:HOST:PORT"; ValueError if it is neither."""
        if text.startswith("unix:/") and is_path(text[5:]):
            return cls(path=text[5:])
        if (match := _TCP.fullmatch(text)) and 0 < int(match[3]) < 65536:
            return cls(host=match[1] or match[2], port=int(match[3]))
        raise ValueError(f"{text!r}: expected unix:PATH or tcp:HOST:PORT")

    @property
    def far(self) -> bool:
        """Is it beyond this machine?  A name that is not "localhost" counts as such."""
        try:
            return not self.path and not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"tcp:{host}:{self.port}"


def is_path(text: str) -> bool:
    """Is it an absolute path?  smtpd's working directory is not ours to know."""
    return text.startswith("/") and text.isprintable() and len(text.encode()) < 4096


def show(raw: object) -> str:
    """A value as TOML spells it, cut to 60 characters."""
    match raw:
        case bool():
            text = "true" if raw else "false"
        case str():
            text = json.dumps(raw, ensure_ascii=False)
        case list() | tuple():
            items = ("[...]" if isinstance(item, list) else show(item) for item in raw[:20])
            text = f"[{', '.join(items)}]"
        case dict():
            text = "a table"
        case _:
            text = str(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def near_miss(word: str, options: Iterable[str]) -> str:
    """The option that was perhaps meant, or ""."""
    from difflib import get_close_matches  # only a file with mistakes pays for it

    found = get_close_matches(word.lower(), list(options), n=1, cutoff=0.6)
    return found[0] if found else ""


def show_duration(seconds: float) -> str:
    """45.0 as "45s", 600.0 as "10m", 0.5 as "500ms"."""
    unit = next((unit for unit in SECOND if seconds and seconds % SECOND[unit] == 0), "s")
    if 0 < seconds < 1:
        unit = "ms"
    return f"{seconds / SECOND[unit]:g}{unit}"


def show_size(size: int) -> str:
    """67108864 as "64M"."""
    unit = next((unit for unit in BYTE if size and size % BYTE[unit] == 0), "")
    return f"{size // BYTE[unit]}{unit}"
