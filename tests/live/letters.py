"""What letters do tests post, and how is one found again among those that arrived?

Tests that share a server give each letter a recipient of its own; `Post` makes the names up and
looks there. It decides nothing about what should have arrived.
"""

from __future__ import annotations

import itertools
import re

from tests.live.client import Client, Reply
from tests.live.mail import Delivered
from tests.live.waiting import eventually
from tests.live.world import HOSTNAME, OpenSMTPD

# Complete, so that smtpd has nothing to add where it listens on loopback (smtp_session.c).
DATED = b"Date: Sun, 22 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n"
HEAD = b"From: al@client.example\r\nTo: bo@example.org\r\n" + DATED
LETTER = HEAD + b"Subject: hello\r\n\r\nhello\r\n"
SENDER = "al@client.example"


class Post:
    """A server's letters."""

    def __init__(self, mta: OpenSMTPD) -> None:
        self.mta = mta
        self._numbers = itertools.count(1)

    def recipient(self) -> str:
        """An address that no other letter goes to."""
        return f"r{next(self._numbers)}@example.org"

    def found(self, recipient: str) -> list[Delivered]:
        """What has arrived there."""
        return [mail for mail in self.mta.mails() if mail.recipient == recipient]

    def arrived(self, recipient: str) -> Delivered:
        """Wait for the one letter to that recipient."""
        [mail] = eventually(f"a letter to {recipient}", lambda: self.found(recipient), 30)
        return mail

    def sent(self, client: Client, message: bytes = LETTER, sender: str = SENDER) -> Delivered:
        """Send a letter that has to be accepted, as it arrived."""
        reply = client.deliver(sender, [to := self.recipient()], message)
        assert reply.code == 250, reply
        return self.arrived(to)

    def send(
        self,
        message: bytes = LETTER,
        *,
        listener: str = "",
        source: str | None = None,
        sender: str = SENDER,
    ) -> Delivered:
        """The same in a session of its own."""
        with self.mta.client(listener, source=source) as client:
            return self.sent(client, message, sender)

    def refused(self, client: Client, message: bytes, sender: str = SENDER) -> Reply:
        """Send a letter that has to be refused; nothing of it may arrive, and the session has
        to take the next one. The reply."""
        reply = client.deliver(sender, [to := self.recipient()], message)
        assert reply.code >= 400, reply
        self.sent(client)
        eventually("an empty queue", lambda: self.mta.queued() == 0)
        assert self.found(to) == []
        return reply

    def clear(self) -> None:
        """Throw away what has arrived."""
        eventually("an empty queue", lambda: self.mta.queued() == 0)
        for path in (self.mta.dir / "mail").glob("**/new/*"):
            path.unlink()


def ready(mta: OpenSMTPD, *filters: str) -> Post:
    """Wait until the bridges of these filters are up: many at once may take their time."""
    for name in filters:
        mta.wait_log(rf"^{re.escape(name)}: bridge-up ", within=60)
    return Post(mta)


def submit(mta: OpenSMTPD, user: str, password: str, listener: str = "submission") -> Client:
    """A client that has done STARTTLS and AUTH (7.6 only)."""
    client = mta.client(listener)
    for reply in (client.ehlo(), client.starttls(), client.ehlo()):
        assert reply.ok, reply
    assert client.auth_plain(user, password).code == 235
    return client


def settled(raw: bytes) -> bytes:
    """With the Date and Message-ID that smtpd made up the same for every letter."""
    made = rf"(?m)^Date: .*\nMessage-ID: <[0-9a-f]+@{re.escape(HOSTNAME)}>$"
    return re.sub(made.encode(), b"Date: D\nMessage-ID: M", raw)
