"""What became of a message, and was it said? For the tests of failures, on real servers.

Each choice of the failure policy is a profile of its own port. That nothing passes unsaid is
the point: every message that was not scanned has a line in the log, whatever became of it.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from tests.live.bridged import connected, lines
from tests.live.mail import Delivered
from tests.live.world import Listener, OpenSMTPD, eventually

TEMPFAIL = "451 4.7.1 Message could not be checked, please try again later"
TOO_LARGE = "451 4.3.4 Message is too large to be checked"
DEADLINE = 10.0  # of a message; what asks longer is not seen below
LISTENERS = (Listener("tempfail"), Listener("accept", 2501), Listener("accept-header", 2502))
POLICIES = """
[failure.rspamd.authenticated]
default = "accept-header"
[[profile]]
name = "accept"
match.port = 2501
failure.rspamd.default = "accept"
failure.rspamd.too_large = "tempfail"
failure.bridge.default = "accept"
[[profile]]
name = "accept-header"
match.port = 2502
failure.rspamd.default = "accept-header"
failure.bridge.default = "accept-header"
"""


class Outcome(NamedTuple):
    """What a client was told, what arrived, and what the log says of it."""

    reply: str
    seconds: float
    mails: list[Delivered]
    logged: list[tuple[str, dict[str, str]]]  # event and values


def post(mta: OpenSMTPD, policy: str, text: bytes, name: str) -> Outcome:
    """One message under a policy, to a recipient of its own."""
    recipient = f"{name}@example.org"
    with connected(mta, policy) as client:
        start = time.monotonic()
        reply = client.deliver("sender@client.example", [recipient], text)
        seconds = time.monotonic() - start
        peer = client.local
        # The session is usable.
        assert client.cmd("NOOP").code == 250
        assert client.mail("sender@client.example").code == 250
    mails = arrived(mta, recipient, 1 if reply.ok else 0)
    log = mta.log()
    events = ("refused", "deferred", "disconnected", "passed")
    logged = [(e, line) for e in events for line in lines(log, e) if line["peer"] == peer]
    return Outcome(str(reply), seconds, mails, logged)


def arrived(mta: OpenSMTPD, recipient: str, number: int) -> list[Delivered]:
    """So many mails for a recipient."""

    def found() -> list[Delivered]:
        return [mail for mail in mta.mails() if mail.recipient == recipient]

    if number:
        eventually(f"mail for {recipient}", lambda: len(found()) >= number, 30)
    return found()


def unscanned(outcome: Outcome) -> list[bytes]:
    [mail] = outcome.mails
    return mail.header("X-Unscanned")


def check_deferred(outcome: Outcome, by: str, reply: str = TEMPFAIL) -> None:
    """Refused for a while, nothing delivered, and one line that tells all. by: a regular
    expression for what is said to have decided."""
    assert re.fullmatch(re.escape(reply) + r" \[[0-9a-f]{16}\]", outcome.reply)
    assert outcome.mails == []
    [(event, line)] = outcome.logged
    assert event == "deferred"
    assert re.fullmatch("[0-9a-f]{16}", line["session"])
    assert re.fullmatch("[0-9a-f]{8}", line["msgid"])
    assert (line["from"], line["rcpts"], line["phase"]) == (
        "<sender@client.example>",
        "1",
        "message",
    )
    assert re.match(by, line["by"])
    assert line["reply"] == reply
    assert outcome.reply.endswith(f"[{line['session']}]")


def check_passed(outcome: Outcome, by: str, *, marked: str = "") -> None:
    """Delivered, marked or not, and one line that tells why."""
    assert outcome.reply.startswith("250 ")
    values = unscanned(outcome)
    assert len(values) == bool(marked)
    assert all(re.fullmatch(marked, value.decode()) for value in values)
    [(event, line)] = outcome.logged
    assert event == "passed"
    assert line["msgid"] in outcome.reply
    assert re.match(by, line["by"])
