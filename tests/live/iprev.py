"""What was said of a client's reverse name: to it, in the header and in the log?"""

from __future__ import annotations

import re

from tests.live.bridged import lines
from tests.live.mail import Delivered
from tests.live.world import Client, OpenSMTPD, Reply, eventually

FAILED = "550 5.7.25 Reverse DNS validation failed"
TEMPORARY = "451 4.7.25 Reverse DNS lookup failed, try again later"


def the_mail(mta: OpenSMTPD, ident: str) -> Delivered:
    """The one delivered mail with this Message-ID."""
    wanted = f"<{ident}@client.example>".encode()

    def found() -> list[Delivered]:
        return [mail for mail in mta.mails() if mail.header("Message-ID") == [wanted]]

    [mail] = eventually(f"delivery of {ident}", found)
    return mail


def results(mail: Delivered) -> list[str]:
    """Its Authentication-Results, unfolded."""
    fields = mail.header("Authentication-Results")
    return [re.sub(r"\n[ \t]", " ", value.decode("ascii")) for value in fields]


# RFC 8601, 2.2: an authserv-id, one method, its reason and its property, and a comment.
_TOKEN, _QUOTED = r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]+", r'"(?:[^"\\]|\\.)*"'
FIELD = re.compile(
    rf"(?P<id>{_TOKEN}|{_QUOTED}); iprev=(?P<result>[a-z]+)"
    rf"(?: reason=(?P<reason>{_TOKEN}|{_QUOTED}))?"
    rf" policy\.iprev=(?P<address>{_TOKEN}|{_QUOTED})"
    r"(?: \((?P<name>[^()\\]*)\))?"
)


def iprev(mail: Delivered) -> dict[str, str]:
    """What its one Authentication-Results says."""
    [field] = results(mail)
    match = FIELD.fullmatch(field)
    assert match, field
    return {key: value.strip('"') for key, value in match.groupdict(default="").items()}


def ident(*words: str) -> str:
    """A word for a Message-ID."""
    return "-".join(re.sub(r"[^a-z0-9]+", ".", word.lower()).strip(".") for word in words)


def offer(client: Client, text: bytes, reply: str | None) -> None:
    """A message to somebody, or where they are refused with this reply, to postmaster."""
    client.ehlo()
    assert client.mail("sender@client.example").ok
    said = client.rcpt("rcpt@example.org")
    if reply:
        assert refused(said, reply)
        # RFC 5321, 4.5.1: everybody may write to postmaster; and the session goes on.
        assert client.rcpt("postmaster@example.org").ok
    else:
        assert said.ok
    assert client.data().code == 354
    assert client.message(text).code == 250


def refused(reply: Reply, expected: str) -> bool:
    """Is it this reply, with the session's id behind it?"""
    return re.fullmatch(re.escape(expected) + r" \[[0-9a-f]{16}\]", str(reply)) is not None


def log_of(mta: OpenSMTPD, event: str, client: Client) -> dict[str, str]:
    """The one log line of that event about a client's session."""
    mta.wait_log(rf"^bridge: {event} .*peer={re.escape(client.local)} ")
    [line] = [each for each in lines(mta.log(), event) if each["peer"] == client.local]
    return line
