"""Does a real smtpd still do what was recorded, and nothing to what `complete` has completed?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.completion import adds_dates, complete
from bridge.edits import apply, stuff, unstuff
from bridge.smtpd.message import join
from bridge.smtpd.session import Session
from tests.live import addresses
from tests.live.letters import Post, submit
from tests.live.world import HOSTNAME, Listener, OpenSMTPD

FIXTURES = Path(__file__).parents[1] / "fixtures" / "completion"
MASQUERADE: list[dict[str, str]] = json.loads((FIXTURES / "masquerade.json").read_text())
HEADERS: list[dict[str, str]] = json.loads((FIXTURES / "headers.json").read_text())
VERSIONS = {"6.8": (6, 8), "7.6": (7, 6)}
NOW = 1700000000.0
# smtpd ends a session after so many messages (smtpd.conf(5), max-mails).
PER_SESSION = 50


def numbered(number: int) -> bytes:
    """What follows the fields under test, and makes a message known again."""
    return b"Date: x\nMessage-ID: <%d@test>\n\nhello\n" % number


def through(version: str, messages: list[bytes]) -> list[bytes]:
    """Each message (LF, `numbered` at its end) as smtpd delivers it, its own Received cut off."""
    with OpenSMTPD(version) as mta:
        for start in range(0, len(messages), PER_SESSION):
            with mta.client() as client:
                for message in messages[start : start + PER_SESSION]:
                    wire = message.replace(b"\n", b"\r\n")
                    reply = client.deliver("sender@client.example", ["rcpt@example.org"], wire)
                    assert reply.ok, (reply, message)
        mails = mta.wait_delivered(len(messages), within=120)
    found: dict[int, bytes] = {}
    for mail in mails:
        number = re.search(rb"(?m)^Message-ID: <(\d+)@test>$", mail.raw)
        assert number
        found[int(number[1])] = mail.below_received
    return [found[number] for number in range(len(messages))]


def completed(message: bytes, version: str) -> bytes:
    wire = stuff(message)
    found = complete(
        wire, HOSTNAME, dates=True, now=NOW, unique="0123456789abcdef", smtpd=VERSIONS[version]
    )
    assert not found.unstable
    return unstuff(join(wire, apply(wire, found.edits)))


def test_smtpd_does_what_was_recorded(version: str) -> None:
    messages = [
        case["sent"].encode("latin-1") + b"\n" + numbered(number)
        for number, case in enumerate(HEADERS)
    ]
    for number, stored in enumerate(through(version, messages)):
        case = HEADERS[number]
        expected = case.get(f"stored by {version}", case["stored"]).encode("latin-1")
        expected += b"\n" if expected else b""
        assert stored == expected + numbered(number), case["name"]


def test_smtpd_changes_nothing_that_was_completed(version: str) -> None:
    messages = [
        completed(case["sent"].encode("latin-1") + b"\n" + numbered(number), version)
        for number, case in enumerate(HEADERS)
    ]
    for number, stored in enumerate(through(version, messages)):
        assert stored == messages[number], HEADERS[number]["name"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_dates_are_added_on_loopback(version: str, address: str) -> None:
    port = addresses.free_port(address)
    shown = f"[{address}]" if ":" in address else address
    assert adds_dates(Session("1", src="192.0.2.7:1", dest=f"{shown}:{port}"))
    with OpenSMTPD(version, listeners=[Listener(port=port, address=address)]) as mta:
        assert mta.send(b"Subject: x\r\n\r\nhello\r\n").ok
        assert mta.send(b"Subject: x\r\nDate: y\r\nMessage-ID: z\r\n\r\nhello\r\n").ok
        first, second = (mail.below_received for mail in mta.wait_delivered(2))
    both = sorted([first, second], key=len)
    assert both[0] == b"Subject: x\nDate: y\nMessage-ID: z\n\nhello\n"
    assert re.fullmatch(
        rb"Subject: x\nDate: \w{3}, [ \d]\d \w{3} \d{4} [\d:]{8} [+-]\d{4} \(\w+\)\n"
        rb"Message-ID: <[0-9a-f]{16}@[\w.]+>\n\nhello\n",
        both[1],
    )


def test_port_587_is_submission_since_the_byte_order_is_right(version: str) -> None:
    listener = Listener(name="submission", port=587)
    with OpenSMTPD(version, listeners=[listener]) as mta:
        assert adds_dates(Session("1", src="192.0.2.7:1", dest=f"{mta.address}:587"))
        assert mta.send(b"Subject: x\r\n\r\nhello\r\n").ok
        [mail] = mta.wait_delivered(1)
    assert (b"\nDate: " in mail.below_received) is (version == "7.6")


@pytest.fixture(scope="module")
def masquerading() -> Iterator[Post]:
    """AUTH, which masquerade needs, works on 7.6 only."""
    with OpenSMTPD(
        "7.6",
        listeners=[Listener.submission(options="senders <allowed> masquerade")],
        users={"al": "secret"},
        files={"allowed": "al: al@example.org\n"},
        conf="table allowed file:{dir}/allowed",
    ) as mta:
        yield Post(mta)


def masqueraded(post: Post, messages: list[bytes]) -> list[bytes]:
    """Each message as it is delivered."""
    with submit(post.mta, "al", "secret") as client:
        return [
            post.sent(client, each.replace(b"\n", b"\r\n"), "al@example.org").below_received
            for each in messages
        ]


def test_masquerade_puts_the_sender_into_from(masquerading: Post) -> None:
    messages = [b"From:" + case["sent"].encode() + b"\n" + numbered(1) for case in MASQUERADE]
    for case, stored in zip(MASQUERADE, masqueraded(masquerading, messages), strict=True):
        assert stored == b"From:" + case["stored"].encode() + b"\n" + numbered(1), case["name"]


def test_masquerade_changes_nothing_that_was_completed(masquerading: Post) -> None:
    messages = []
    for case in MASQUERADE:
        sent = b"From:" + case["sent"].encode() + b"\n" + numbered(1)
        done = complete(sent, HOSTNAME, dates=True, now=NOW, unique="x", sender="al@example.org")
        if not done.unstable:
            messages.append(join(sent, apply(sent, done.edits)))
    assert len(messages) > 10
    assert masqueraded(masquerading, messages) == messages
