"""The model against transcripts of real servers: the same clients and the same answers of the
filter must lead to the same reports, requests and deliveries, whatever the order is."""

from __future__ import annotations

import re
from collections import defaultdict, deque

import pytest

from bridge.testing.smtpd import Smtpd
from tests.unit.replay import DATE, TRANSCRIPTS, Recorded, RecordedIds, act, connect

# Not replayed: chain-one and chain-two are halves of a chain of two filters, which the model
# does not have.
NAMES = sorted(
    {path.stem for path in TRANSCRIPTS.glob("*.txt")}
    | {path.stem for path in TRANSCRIPTS.glob("*.in")}
)
REPLAYED = [name for name in NAMES if "-chain-" not in name]

# What a transcript's filter did wrong on purpose, or what its server did to it.
FAULTS = {
    "filter-decisions": {
        "not a reply that smtpd passes on",
        "rewrite at",
        "a CR in a parameter",
        "cut to 2047",
    },
    "longlines": {"cut to 2047"},
}


def replay(name: str, order: int | None = None) -> tuple[Recorded, Smtpd, list[bytes]]:
    """Feed a transcript's filter answers to the model as soon as they are due."""
    recorded = Recorded.load(name)
    smtpd = Smtpd(
        recorded.version,
        release=recorded.release,
        server=recorded.server(),
        ids=RecordedIds(recorded),
        order=order,
    )
    session_at = 2 if smtpd.dialect.token_first else 1
    answers: dict[bytes, deque[bytes]] = defaultdict(deque)
    for line in recorded.answered:
        if line.startswith(b"register|"):
            smtpd.receive(line + b"\n")
        else:
            answers[line.split(b"|")[session_at]].append(line)
    said: list[bytes] = []
    for events in recorded.sessions.values():
        script = connect(smtpd, events)
        act(script, events)
        while data := smtpd.output():
            lines = data.split(b"\n")[:-1]
            said += lines
            for line in lines:
                if line.startswith(b"filter|") and (due := answers[line.split(b"|")[5]]):
                    smtpd.receive(due.popleft() + b"\n")
    assert not any(answers.values())  # the model asked for all of them
    return recorded, smtpd, said


def normal(lines: list[bytes], session: bytes) -> tuple[list[bytes], list[bytes]]:
    """A session's reports and requests, and its body lines, without what differs each time:
    timestamps and the ids that the queue makes."""
    names: dict[bytes, bytes] = {}

    def name(match: re.Match[bytes]) -> bytes:
        return names.setdefault(match[0], b"<id %d>" % len(names))

    events: list[bytes] = []
    body: list[bytes] = []
    for line in lines:
        parts = line.split(b"|")
        if parts[0] not in (b"report", b"filter") or parts[5] != session:
            continue
        if parts[4] == b"tx-begin":
            names[parts[6]] = b"<id %d>" % len(names)
        if parts[4] == b"tx-envelope":
            parts[7] = b"<envelope of %s>" % names.get(parts[7][:8], b"?")
        text = b"|".join([*parts[:2], b"now", *parts[3:]])
        text = re.sub(b"|".join(map(re.escape, names)) or b"(?!)", name, text)
        (body if parts[4] == b"data-line" else events).append(text)
    return events, [DATE.sub(b"\t<date>", line) for line in body]


def compare(said: list[bytes], recorded: Recorded) -> None:
    for session in recorded.sessions:
        events, body = normal(said, session)
        recorded_events, recorded_body = normal(recorded.said, session)
        assert events == recorded_events
        if (recorded.name, session) == ("7.8.0p1-pipelining", b"813ee36e2c4a3f97"):
            # The rollback overtook the body on its way to the filter: either order happens.
            assert body[: len(recorded_body)] == recorded_body
        else:
            assert body == recorded_body


@pytest.mark.parametrize("name", REPLAYED)
def test_the_model_says_what_the_recorded_server_said(name: str) -> None:
    recorded, _, said = replay(name)
    handshake = [line for line in recorded.said if line.startswith(b"config|")]
    assert [line for line in said if line.startswith(b"config|")] == handshake
    compare(said, recorded)


@pytest.mark.parametrize("name", ["6.6.4p1-two-messages-rset", "7.8.0p1-helo"])
def test_in_another_order_each_event_comes_all_the_same(name: str) -> None:
    usual = replay(name)[2]
    others = []
    for order in range(8):
        recorded, _, said = replay(name, order)
        compare(said, recorded)
        others.append(said != usual)
    assert any(others)


@pytest.mark.parametrize("name", REPLAYED)
def test_the_model_finds_fault_only_with_what_was_done_on_purpose(name: str) -> None:
    _, smtpd, _ = replay(name)
    expected = FAULTS.get(name.split("-", 1)[1], set())
    found = {next((e for e in expected if e in f.reason), f.reason) for f in smtpd.faults}
    assert found <= expected
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    "name",
    [n for n in REPLAYED if (TRANSCRIPTS / f"{n}.mbox").exists()],
)
def test_the_model_delivers_what_the_recorded_server_delivered(name: str) -> None:
    _, smtpd, _ = replay(name)
    mbox = (TRANSCRIPTS / f"{name}.mbox").read_bytes()
    assert smtpd.delivered
    for delivery in smtpd.delivered:
        header, blank, text = delivery.content.partition(b"\n\n")
        assert header in mbox
        assert blank + text in mbox  # between the two, smtpd may add Date and Message-ID
