"""What surrounds the model: its smtpd.conf, its ids and its clock.  All can be passed in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Server:
    """smtpd.conf.  users: None lets everyone in who has a password.  refused: what smtpd
    itself says to a recipient, {"nobody@example.org": "550 Invalid recipient: ..."}."""

    hostname: str = "mx.example.org"
    admd: str = ""
    smtp_out: bool = False
    starttls: bool = True
    session_timeout: int = 300
    max_message_size: int = 36_700_160  # smtpd.conf(5), smtp max-message-size
    max_recipients: int = 1000  # smtpd.conf(5), smtp limit max-rcpt
    users: Mapping[str, str] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


class Ids:
    """Session ids, tokens, message and envelope ids, in the shape of util.c's."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._count = self._random.getrandbits(31)

    def session(self) -> str:
        self._count += 1
        return f"{self._count:08x}{self._random.getrandbits(32):08x}"

    def token(self, phase: str) -> str:
        return self.session()

    def message(self) -> str:
        return f"{self._random.getrandbits(32) | 1:08x}"

    def envelope(self, msgid: str) -> str:
        return f"{msgid}{self._random.getrandbits(32) | 1:08x}"


def ticking(start: float = 1_700_000_000.0) -> Callable[[], float]:
    """A clock that goes on by 3 ms each time it is read."""
    ticks: Iterator[int] = iter(range(1, 1 << 62))
    return lambda: start + next(ticks) * 0.003
