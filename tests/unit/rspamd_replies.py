"""The recorded replies of rspamd, and a message on which to try what they want.

What each of them has to lead to is the tests'.
"""

from __future__ import annotations

from pathlib import Path

from bridge import edits
from bridge.edits import Add, Edit, Remove
from bridge.services import zstd
from bridge.services.rspamd import Reply, Translation, parse_reply, translate
from bridge.smtpd.decisions import Proceed
from bridge.smtpd.message import join

REPLIES = Path(__file__).parent.parent / "fixtures" / "rspamd-replies"
NO_SCORE = Translation(score_header="never")
BIG = 10**7

MARKED: list[Edit] = [Remove("X-Spam"), Add("X-Spam", "Yes")]
SPAM, DEFERRED = "554 5.7.1 Spam message rejected", "451 4.7.1 Try again later"

SAMPLE = b"""\
Received: from client by us
\tfor d@e.f
X-Spam: 1
X-L: 1
From: a@b.c
Reply-To: r@b.c
X-L: 2
Subject: hello
 folded
X-Spam: 2
X-L: 3
X-Spam-Score: -100

..body
"""


def recorded(name: str) -> Reply:
    """What a fixture says, its compression undone; ServiceError when that is no reply."""
    raw = (REPLIES / name).read_bytes()
    if not name.endswith(".http"):
        return parse_reply(200, {}, raw)
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if "compression" in headers:
        body = zstd.decompress(body, BIG)
    return parse_reply(int(status.split()[1]), headers, body)


def joined(message: bytes, wanted: tuple[Edit, ...]) -> bytes:
    """A message, edited."""
    return join(message, edits.apply(message, wanted))


def accepted(name: str, options: Translation | None = None) -> bytes:
    """The sample, edited as a fixture wants it."""
    verdict, _ = translate(recorded(name), options)
    assert verdict.decision == Proceed()
    return joined(SAMPLE, verdict.edits)


def fields(message: bytes) -> list[str]:
    """The fields of a message as they stand, folds as \\n."""
    return [message[x.start : x.end - 1].decode() for x in edits.header_fields(message)]
