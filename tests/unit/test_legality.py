"""Is each decision that may be sent one that smtpd survives, in each phase and version?

The table here is what became of real servers (fixtures/crash-matrix-7.8.0p1.txt, ph-*); the
model of smtpd judges what the protocol makes of each decision.
"""

from __future__ import annotations

import pytest

from bridge.smtpd.decisions import (
    Decision,
    Disconnect,
    Junk,
    Proceed,
    Refusal,
    Reject,
    Rewrite,
    legal,
    tempfail,
)
from bridge.smtpd.items import MESSAGE, Registration, Slot
from bridge.smtpd.protocol import Protocol
from bridge.smtpd.wire import parse_version
from bridge.testing.dialect import DIALECTS
from bridge.testing.process import Driver
from bridge.testing.smtpd import Smtpd

EVERYWHERE = {"proceed", "junk", "reject", "disconnect"}
WITH_REWRITE = EVERYWHERE | {"rewrite"}
# What may be said at a phase since junk came (0.3); before it, the same without junk.
SURVIVED = {
    "connect": EVERYWHERE,  # a rewrite is ignored there: it would be no answer to anything
    "helo": WITH_REWRITE,
    "ehlo": WITH_REWRITE,
    "starttls": EVERYWHERE,  # a rewrite is 500 to the client
    "auth": WITH_REWRITE,
    "mail-from": WITH_REWRITE,
    "rcpt-to": WITH_REWRITE,
    "data": EVERYWHERE,
    "data-line": set[str](),  # any filter-result there ends smtpd
    "rset": EVERYWHERE,
    "quit": EVERYWHERE,
    "noop": EVERYWHERE,
    "help": EVERYWHERE,
    "wiz": EVERYWHERE,
    "commit": EVERYWHERE - {"junk"},  # junk ends smtpd, a rewrite hangs the session
}
VERSIONS = ["1", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.12", "1.3"]
WITHOUT_JUNK = {"1", "0.1", "0.2"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("phase", SURVIVED)
def test_what_may_be_said_is_what_was_survived(phase: str, version: str) -> None:
    expected = SURVIVED[phase] - ({"junk"} if version in WITHOUT_JUNK else set())
    number = parse_version(version.encode())
    assert legal(phase, number) == expected
    assert legal(phase, number, withheld=True) == expected & {"reject", "disconnect"}


class Answering:
    """A filter that says one thing in one phase, and proceed in all others."""

    def __init__(self, phase: str, decision: Decision) -> None:
        self.phase, self.decision = phase, decision
        self.said: list[Decision | None] = []
        self.protocol = Protocol(session_in_reply=True)
        phases = frozenset(SURVIVED)
        self.protocol.start(Registration(phases=phases, asks_commit=True))

    def receive(self, data: bytes) -> bytes:
        for item in self.protocol.receive(data):
            if not isinstance(item, Slot):
                continue
            if item.phase == self.phase:
                self.said.append(self.protocol.answer(item, self.decision))
            else:
                self.protocol.answer(item, Proceed())
        chunks = []
        while self.protocol.output:
            chunks.append(self.protocol.output.next())
        return b"".join(chunks)


# Arguments that fit the phase, as a client would type them (smtpd-filters(7), rewrite).
ARGUMENTS = {
    "auth": "PLAIN AGFsaWNlAHNlY3JldA==",
    "mail-from": "<other@example.net>",
    "rcpt-to": "<other@example.org>",
}
KEYWORDS = ("proceed", "junk", "reject", "disconnect", "rewrite")


def made(keyword: str, phase: str) -> Decision:
    decisions: dict[str, Decision] = {
        "proceed": Proceed(),
        "junk": Junk(),
        "reject": Reject("5.7.1", "No"),
        "disconnect": Disconnect("4.3.0", "Go away", 421),
        "rewrite": Rewrite(ARGUMENTS.get(phase, "other.example.net")),
    }
    return decisions[keyword]


def session_through_every_phase(driver: Driver) -> None:
    """Two messages, and every command that a filter can be asked about."""
    client = driver.connect()
    client.helo("client.example.net")
    client = driver.connect()
    client.ehlo("client.example.net")
    client.starttls()
    client.ehlo("client.example.net")
    client.auth("alice", "secret")
    client.noop()
    client.mail("a@example.net")
    client.rset()
    for _ in range(2):
        client.mail("a@example.net")
        client.rcpt("b@example.org")
        client.data(b"Subject: x\n\n.dot\n")
    client.quit()


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("phase", [*(p for p in SURVIVED if p not in ("help", "wiz")), MESSAGE])
@pytest.mark.parametrize("version", DIALECTS)
def test_smtpd_survives_every_decision(version: str, phase: str, keyword: str) -> None:
    if phase == "data-line":  # the protocol has no slot for it
        phase = MESSAGE
    decision = made(keyword, phase)
    filter = Answering(phase, decision)
    driver = Driver(filter, Smtpd(version))
    session_through_every_phase(driver)
    assert faults(driver) == []
    assert driver.smtpd.open_requests == []
    allowed = legal(
        "commit" if phase == MESSAGE else phase, parse_version(version.split()[0].encode())
    )
    if phase == MESSAGE:
        allowed -= {"junk", "rewrite"}
    assert filter.said
    for said in filter.said:
        if keyword in allowed:
            assert said == decision
        else:
            assert isinstance(said, Refusal)
            assert said.status == "4.3.0"


@pytest.mark.parametrize("keyword", ["reject", "disconnect"])
@pytest.mark.parametrize("version", DIALECTS)
def test_a_refused_message_is_not_delivered_in_any_part(version: str, keyword: str) -> None:
    driver = Driver(Answering(MESSAGE, made(keyword, MESSAGE)), Smtpd(version))
    client = driver.connect()
    client.helo("client.example.net")
    client.mail("a@example.net")
    client.rcpt("b@example.org")
    reply = client.data(b"Subject: x\n\n.dot\n")
    assert str(reply).startswith(made(keyword, MESSAGE).reply)  # type: ignore[union-attr]
    assert driver.delivered == []
    if keyword == "reject":  # the session goes on
        assert client.mail("a@example.net").code == 250
    assert faults(driver) == []


def faults(driver: Driver) -> list[str]:
    """What was wrong; before 0.2 smtpd ignores the name of a report that it does not have."""
    ignored = "Unrecognized report name (ignored)"
    return [fault.reason for fault in driver.faults if fault.reason != ignored]


def test_what_stands_in_at_connect_closes_the_session() -> None:
    assert isinstance(tempfail("connect"), Disconnect)
    assert isinstance(tempfail("rcpt-to"), Reject)
