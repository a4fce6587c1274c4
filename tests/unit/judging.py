"""The shipped filter's verdict on one message, with services that note what they were asked.

What a service answers is the test's; its reply is read as the real one's would be. Nothing here
says what is right.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.config import parse
from bridge.edits import Verdict, apply
from bridge.handlers import Message
from bridge.policy import Policy
from bridge.services.build import Services
from bridge.services.upstream import ServiceError
from bridge.smtpd.message import join
from bridge.smtpd.session import Session, Transaction

HAM = {"action": "no action", "score": 0.0, "required_score": 15.0}
SPAM = {**HAM, "action": "add header", "score": 7.0}
FIELDS = [("DKIM-Signature", "v=1; a=rsa-sha256; b=AAAA"), ("DKIM-Signature", "v=1;\r\n b=BB")]
SIGNED = "DKIM-Signature: v=1; a=rsa-sha256; b=AAAA\nDKIM-Signature: v=1;\n b=BB\n"
RECEIVED = b"Received: from x\n\tby mx.example.org;\n"
HEADER = b"Date: x\nMessage-ID: <1@x>\nFrom: Al <al@example.org>\nTo: bob@example.net\n"
BODY = b"\nHello\n..dot\n"
LISTED = "192.0.2.7:4711"

Answer = tuple[int, Any] | ServiceError


@dataclass
class Asked:
    """One question: whose, with which request fields, about what, and until when."""

    service: str
    headers: dict[str, str]
    body: bytes
    deadline: float


class Stand:
    """A service's client: answers each time the same, as the real one's reply is read."""

    def __init__(self, name: str, answer: Answer, asked: list[Asked]) -> None:
        self.name, self._answer, self._asked = name, answer, asked

    async def request(
        self,
        path: str,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        deadline: float,
        parse: Callable[[int, Mapping[str, str], bytes], Any],
    ) -> Any:
        self._asked.append(Asked(self.name, dict(headers), body, deadline))
        if isinstance(self._answer, ServiceError):
            raise self._answer
        status, reply = self._answer
        return parse(status, {}, b"" if reply is None else json.dumps(reply).encode())


def signed(*fields: tuple[str, str]) -> Answer:
    return 200, {"fields": [{"name": name, "value": value} for name, value in fields or FIELDS]}


@dataclass
class Outcome:
    """What became of a message: what was asked, the verdict, its bytes, the log."""

    verdict: Verdict
    message: bytes
    asked: list[Asked]
    logged: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def services(self) -> list[str]:
        return [each.service for each in self.asked]

    @property
    def seen_by_signer(self) -> bytes:
        [found] = [each for each in self.asked if each.service == "dkim"]
        return found.body

    @property
    def not_signed(self) -> list[str]:
        return [fields["why"] for event, fields in self.logged if event == "not-signed"]


def session(**changes: Any) -> Session:
    """A session of al, over port 587 of a server that is not on loopback."""
    given = {"src": "198.51.100.7:4711", "dest": "192.0.2.1:587", "user": "al@example.org"}
    made = Session("1", hostname="mx.example.org", **{**given, **changes})
    made.transaction = Transaction("m1", "al@example.org", ["bob@example.net"])
    return made


def judge(
    header: bytes = HEADER,
    toml: str = "",
    *,
    who: Session | None = None,
    rspamd: Any = HAM,
    signer: Answer | None = None,
    above: bytes = b"",
    body: bytes = BODY,
) -> Outcome:
    """The shipped filter's verdict on a message."""
    config = parse("fcrdns.enabled = false\ndkim.servers = ['http://s:1']\n" + (toml or ENABLED))
    wire = above + RECEIVED + header + body
    asked: list[Asked] = []
    outcome = Outcome(Verdict(), wire, asked)

    def log(event: str, **fields: Any) -> None:
        outcome.logged.append((event, fields))

    async def decide() -> Verdict:
        services: Any = Services(
            None,
            Stand("rspamd", (200, rspamd), asked),  # type: ignore[arg-type]
            Stand("dkim", signer or signed(), asked),  # type: ignore[arg-type]
        )
        message = Message("1", wire)
        return await Policy(config, services, log).decide(message, who or session())

    outcome.verdict = asyncio.run(decide())
    splices = apply(wire, outcome.verdict.edits, start=Message("1", wire).start)
    outcome.message = join(wire, splices)
    return outcome


ENABLED = "dkim.enabled = true\n"
