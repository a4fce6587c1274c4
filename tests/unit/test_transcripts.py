"""Do recordings of real servers read as what they say, in whatever pieces they come, and does
what goes back equal what the recorded filter wrote?

`oracle` reads a recording by a table of its own, a line at a time, and knows nothing of
wire.py and protocol.py.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bridge.smtpd import events, wire
from bridge.smtpd.decisions import (
    INTERNAL_ERROR,
    Decision,
    Disconnect,
    Junk,
    Proceed,
    Reject,
    Rewrite,
)
from bridge.smtpd.items import MESSAGE, Broken, Item, Registration, Slot
from bridge.smtpd.protocol import Protocol

FOLDER = Path(__file__).parents[1] / "fixtures" / "transcripts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.in"))
EVERYTHING = Registration(
    phases=frozenset(events.PHASES),
    reports=frozenset(events.REPORTS),
    reports_out=frozenset(events.REPORTS),
    asks_commit=True,
)

# The oracle -------------------------------------------------------------------------------

# The fields after the session (and a request's token) in 7.8.0p1; the last takes the rest.
FIELDS = {
    "link-connect": "rdns fcrdns src dest",
    "link-greeting": "hostname",
    "link-identify": "method name",
    "link-tls": "tls",
    "link-auth": "result user",
    "link-disconnect": "",
    "tx-reset": "msgid",
    "tx-begin": "msgid",
    "tx-mail": "msgid result address",
    "tx-rcpt": "msgid result address",
    "tx-envelope": "msgid evpid",
    "tx-data": "msgid result",
    "tx-commit": "msgid size",
    "tx-rollback": "msgid",
    "protocol-client": "command",
    "protocol-server": "response",
    "filter-response": "phase response param",
    "timeout": "",
    "connect": "rdns addr",
    "helo": "name",
    "ehlo": "name",
    "auth": "argument",
    "mail-from": "address",
    "rcpt-to": "address",
    **dict.fromkeys(("starttls", "data", "rset", "quit", "noop", "commit"), ""),
}
# The same in 6.6.4p1: no address of its recordings has a `|`.
FIELDS_0_4 = {"tx-mail": "msgid address result", "tx-rcpt": "msgid address result"}
LONGEST = {b"0.4": 1997, b"0.6": 1997, b"0.7": 65_485}

TRY_LATER = b"451 4.3.0 Internal error, please try again later"

Parsed = tuple[Any, ...]  # kind, event, session, and what else is compared


def oracle(recording: bytes) -> list[Parsed]:
    """What a recording says.  Body lines are one entry at their final dot."""
    said: list[Parsed] = []
    bodies: dict[bytes, list[bytes]] = defaultdict(list)
    for line in recording.split(b"\n")[:-1]:
        kind, _, rest = line.partition(b"|")
        if kind == b"config":
            key, _, value = rest.partition(b"|")
            said.append(("config", key, value))
            continue
        version, stamp, direction, event, session = rest.split(b"|")[:5]
        tail = rest.split(b"|", 5)[5] if rest.count(b"|") > 4 else b""
        token = b""
        if kind == b"filter":
            token, _, tail = tail.partition(b"|")
        if event == b"data-line":
            if tail != b".":
                bodies[session] += broken(tail, LONGEST[version])
                continue
            body = b"".join(line + b"\n" for line in bodies.pop(session, []))
            said.append(("message", b"data-line", session, body))
            continue
        if event == b"link-disconnect":
            bodies.pop(session, None)
        head = (kind.decode(), event, session, float(stamp), direction, version, token)
        said.append((*head, fields(version, event.decode(), tail)))
    return said


def fields(version: bytes, event: str, tail: bytes) -> dict[str, bytes]:
    names = FIELDS[event].split()
    if version == b"0.4":
        names = FIELDS_0_4.get(event, FIELDS[event]).split()
    if event == "link-auth" and version != b"0.7":
        user, _, result = tail.rpartition(b"|")
        return {"user": user, "result": result}
    values = tail.split(b"|", len(names) - 1) if names else []
    return dict(zip(names, values, strict=False))


def broken(line: bytes, longest: int) -> list[bytes]:
    """A line that is too long to go back, as the configuration breaks it."""
    lines = [line[:longest]]
    for start in range(longest, len(line), longest - 1):
        lines.append(b" " + line[start : start + longest - 1])
    return lines


# The protocol -----------------------------------------------------------------------------


def parsed(items: list[Item]) -> Iterator[Parsed]:
    """The same of what the protocol says; a message is looked at while it is held."""
    for item in items:
        match item:
            case wire.Config():
                yield ("config", wire.raw(item.key), wire.raw(item.value))
            case Slot(phase="message", message=held):
                assert held is not None
                body = b"".join(held.pieces())
                yield ("message", b"data-line", wire.raw(item.session.id), body)
            case Slot():
                yield ("filter", *_of(item.event), wire.raw(item.event.token), _own(item.event))
            case events.Report():
                yield ("report", *_of(item), b"", _own(item))
            case Broken():
                pass
            case _:
                pytest.fail(f"{item} in a recording of a real server")


def _of(event: events.Event) -> tuple[Any, ...]:
    version = b"%d.%d" % event.version
    direction = wire.raw(event.direction)
    return event.keyword.encode(), wire.raw(event.session), event.time, direction, version


def _own(event: events.Event) -> dict[str, bytes]:
    names = [name for name in type(event).__annotations__ if name != "keyword"]
    return {name: wire.raw(getattr(event, name)) for name in names if getattr(event, name)}


def _present(entry: Parsed) -> Parsed:
    """Without the empty fields: whether one was empty or missing is wire's to know."""
    if isinstance(entry[-1], dict):
        return (*entry[:-1], {name: value for name, value in entry[-1].items() if value})
    return entry


def _started() -> Protocol:
    protocol = Protocol()
    protocol.start(EVERYTHING)
    protocol.output.next()
    return protocol


def steps(recording: bytes) -> Iterator[bytes]:
    """A recording, cut after each line that smtpd waits for an answer to."""
    step: list[bytes] = []
    for line in recording.split(b"\n")[:-1]:
        step.append(line + b"\n")
        if line.startswith(b"filter|") and (b"|data-line|" not in line or line.endswith(b"|.")):
            yield b"".join(step)
            step = []
    yield b"".join(step)


def pieces(data: bytes, how: str) -> Iterator[bytes]:
    chance = random.Random(len(data))
    sizes = {"whole": (len(data),), "in pieces": (1, 7, 60, 81, 200, 3000), "byte by byte": (1,)}
    at = 0
    while at < len(data):
        size = chance.choice(sizes[how])
        yield data[at : at + size]
        at += size


@cache
def recording(name: str) -> tuple[bytes, list[Parsed]]:
    data = (FOLDER / f"{name}.in").read_bytes()
    return data, [_present(entry) for entry in oracle(data)]


# Byte by byte takes seconds where there is much, and shows no more than where there is little.
WAYS = [
    (name, how)
    for name in NAMES
    for how in ("whole", "in pieces", "byte by byte")
    if how != "byte by byte" or len(recording(name)[0]) < 100_000
]


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_a_recording_reads_as_what_it_says(name: str, how: str) -> None:
    data, expected = recording(name)
    protocol = _started()
    said: list[Parsed] = []
    for step in steps(data):
        for piece in pieces(step, how):
            items = protocol.receive(piece)
            said += map(_present, parsed(items))
            for item in items:
                if isinstance(item, Slot):
                    protocol.answer(item, Proceed())
    assert said == expected
    ended = {entry[2] for entry in expected if entry[1] == b"link-disconnect"}
    begun = {entry[2] for entry in expected if entry[1] == b"link-connect"}
    assert {wire.raw(session) for session in protocol.sessions} == begun - ended


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_a_recording_reads_the_same_when_nobody_answers(name: str, how: str) -> None:
    data, expected = recording(name)
    protocol = _started()
    said = [entry for piece in pieces(data, how) for entry in parsed(protocol.receive(piece))]
    assert [_present(entry)[:3] for entry in said] == [entry[:3] for entry in expected]


# What went back --------------------------------------------------------------------------

# What the recorded filter said that can't be made a decision of: smtpd turned each into
# `421 Internal server error`, passed a bare CR on, or sent more than a reply may have.
UNSAYABLE = {
    b"reject|421 4.3.0 go away now": "421 closes the session",
    b"reject|999 bad code": "expected like",
    b"reject|250 this is not an error": "expected like",
    b"reject|550": "expected like",
    b"reject|550-first line": "expected like",
    b"reject|550 5.7.1 a\r550 b": "printable ASCII",
    b"reject|550 5.7.1 rejet\xc3\xa9 \xe2\x9c\x93": "printable ASCII",
    b"reject|550 5.7.1 " + b"x" * 3000: "expected 440",
    b"reject|550 5.7.1 " + b"x" * 5000: "expected 440",
    b"rewrite|": "not empty",
}
# A rewrite of a command without an argument, which smtpd answered with 500.
LOWERED = {(phase, b"rewrite|whatever") for phase in ("data", "noop", "quit", "rset", "starttls")}


def by_session(output: bytes, sessions: set[bytes]) -> dict[bytes, list[bytes]]:
    """What a filter answered, in order."""
    said: dict[bytes, list[bytes]] = {session: [] for session in sessions}
    for line in output.split(b"\n"):
        if line.startswith(b"filter-"):
            first, second = line.split(b"|")[1:3]  # 0.4 has the token first
            said[first if first in sessions else second].append(line)
    return said


def expected_lines(lines: list[bytes], longest: int) -> list[bytes]:
    """The same with our two differences: the lines of a message whose client went away are not
    sent, and those that smtpd would not take back are broken."""
    said: list[bytes] = []
    message: list[bytes] = []
    for line in lines:
        if line.startswith(b"filter-result|"):
            said.append(line)
            continue
        prefix, content = line[:50], line[50:]
        message += [prefix + part for part in broken(content, longest)]
        if content == b".":
            said += message
            message = []
    return said


def sayable(answer: bytes) -> Decision:
    """The same, or what stands for it."""
    if answer not in UNSAYABLE:
        return decision(answer)
    with pytest.raises(ValueError, match=re.escape(UNSAYABLE[answer])):
        decision(answer)
    return INTERNAL_ERROR


def decision(answer: bytes) -> Decision:
    """As the recorded filter said it; ValueError where that can't be said."""
    keyword, _, parameter = answer.decode("utf-8", "surrogateescape").partition("|")
    match keyword:
        case "proceed":
            return Proceed()
        case "junk":
            return Junk()
        case "reject":
            return Reject.parse(parameter)
        case "disconnect":
            return Disconnect.parse(parameter)
    return Rewrite(parameter)


@pytest.mark.parametrize("name", NAMES)
def test_what_goes_back_is_what_the_recorded_filter_wrote(name: str) -> None:
    data, entries = recording(name)
    sessions = {entry[2] for entry in entries if entry[0] == "filter"}
    theirs = by_session((FOLDER / f"{name}.out").read_bytes(), sessions)
    answers = {
        session: iter([line for line in lines if line.startswith(b"filter-result|")])
        for session, lines in theirs.items()
    }
    instead: dict[bytes, bytes] = {}  # what we say, for each line that differs
    protocol = _started()
    output: list[bytes] = []
    for step in steps(data):
        for slot in protocol.receive(step):
            if not isinstance(slot, Slot):
                continue
            if slot.phase == MESSAGE:
                protocol.answer(slot, Proceed())
                continue
            line = next(answers[wire.raw(slot.session.id)])
            said = line.split(b"|", 3)[3]
            protocol.answer(slot, sayable(said))
            if said in UNSAYABLE or (slot.phase, said) in LOWERED:
                instead[line] = line.removesuffix(said) + b"reject|" + TRY_LATER
        while protocol.output:
            output.append(protocol.output.next())
    ours = by_session(b"".join(output), sessions)
    longest = LONGEST[entries[-1][5]]
    for session, lines in theirs.items():
        expected = [instead.get(line, line) for line in expected_lines(lines, longest)]
        assert ours[session] == expected
    assert len(instead) == (27 if name.endswith("filter-decisions") else 0)
