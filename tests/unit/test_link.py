"""Is a stream cut into the frames that were put in, is nonsense refused, and does what shim
and bridge tell each other arrive as it was?
"""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import link
from bridge.link import FrameReader, LinkError
from bridge.smtpd import events as e
from bridge.smtpd.decisions import Decision, Disconnect, Junk, Proceed, Reject, Rewrite
from bridge.smtpd.message import Splice
from bridge.smtpd.session import Session, Transaction

# Frames -----------------------------------------------------------------------------------

kinds = st.fixed_dictionaries({"kind": st.text(max_size=5)}, optional={"id": st.integers()})
frames = st.lists(st.tuples(kinds, st.binary(max_size=40)), max_size=5)


@given(frames, st.integers(1, 60))
def test_frames_come_out_as_they_went_in(frames: list[link.Frame], size: int) -> None:
    stream = b"".join(link.encode(header, len(body)) + body for header, body in frames)
    reader = FrameReader()
    out = [f for at in range(0, len(stream), size) for f in reader.feed(stream[at : at + size])]
    assert out == frames


def test_a_frame_on_the_wire() -> None:
    assert link.encode({"kind": "pong"}) == b"\0\0\0\x0f\0\0\0\0" + b'{"kind":"pong"}'
    assert link.encode({"kind": "answer", "id": 7}, 4)[:8] == b"\0\0\0\x18\0\0\0\x04"


def frame(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(body)) + header + body


NONSENSE = {
    "not JSON": frame(b"hello"),
    "no header": frame(b""),
    "a list": frame(b'["kind"]'),
    "a text": frame(b'"kind"'),
    "no kind": frame(b'{"id":1}'),
    "a kind that is no text": frame(b'{"kind":1}'),
    "a kind that is null": frame(b'{"kind":null}'),
    "not UTF-8": frame(b'{"kind":"\xe9"}'),
    "too deep": frame(b'{"kind":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a number of too many digits": frame(b'{"kind":"x","id":' + b"1" * 5000 + b"}"),
    "cut off": frame(b'{"kind":"x"'),
}


@pytest.mark.parametrize("stream", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_frame_that_is_none(stream: bytes) -> None:
    with pytest.raises(LinkError):
        list(FrameReader().feed(stream))


def test_frames_before_a_bad_one_are_still_had() -> None:
    stream = frame(b'{"kind":"pong"}') + frame(b"nonsense")
    reader = FrameReader().feed(stream)
    assert next(reader) == ({"kind": "pong"}, b"")
    with pytest.raises(LinkError):
        next(reader)


@pytest.mark.parametrize(
    ("header", "body"),
    [(101, 0), (0, 1001), (0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)],
)
def test_a_frame_that_is_too_long_is_refused_at_its_lengths(header: int, body: int) -> None:
    with pytest.raises(LinkError):
        list(FrameReader(100, 1000).feed(struct.pack(">II", header, body)))


def test_a_frame_of_just_the_bounds_is_taken() -> None:
    header = b'{"kind":"x","pad":"' + b"p" * 79 + b'"}'
    assert len(header) == 100
    ((_, body),) = FrameReader(100, 1000).feed(frame(header, b"b" * 1000))
    assert body == b"b" * 1000


def test_unknown_keys_and_kinds_are_passed_on_for_others_to_ignore() -> None:
    stream = frame(b'{"kind":"of tomorrow","and":{"more":[1.5,null]}}', b"body")
    ((header, body),) = FrameReader().feed(stream)
    assert header == {"kind": "of tomorrow", "and": {"more": [1.5, None]}}
    assert body == b"body"


def test_many_small_frames_in_one_chunk() -> None:
    stream = link.encode({"kind": "pong"}) * 5000
    assert sum(1 for _ in FrameReader().feed(stream)) == 5000


# What is in them: everything goes through JSON, as on the stream --------------------------

# Any text of smtpd: UTF-8, or bytes that are none (surrogateescape).
texts = st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
keeps = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans())
transactions = st.builds(Transaction, texts, st.none() | texts, st.lists(texts, max_size=4))
sessions = st.builds(
    Session,
    id=texts.filter(bool),
    version=st.tuples(st.integers(-1, 9), st.integers(-1, 99)),
    direction=st.sampled_from(["smtp-in", "smtp-out"]),
    src=texts,
    rdns=texts,
    helo=texts,
    user=texts,
    transaction=st.none() | transactions,
    keep=keeps,
    admd=texts,
    profile=texts,
)


def through_json(value: Any) -> Any:
    """As it comes out at the other end."""
    ((header, _),) = FrameReader().feed(link.encode({"kind": "x", "value": value}))
    return header["value"]


@given(sessions)
def test_a_session_arrives_as_it_was(session: Session) -> None:
    session.deadline = 12.5
    arrived = link.session_from_json(through_json(link.session_to_json(session)))
    session.deadline = Session("").deadline  # of another clock: it stays here
    assert arrived == session


@pytest.mark.parametrize("type_", [*e.PHASES.values(), *e.REPORTS.values()])
@given(data=st.data())
def test_an_event_arrives_as_it_was(type_: type[e.Event], data: st.DataObject) -> None:
    own = {name: data.draw(texts) for name in type_.__annotations__ if name != "keyword"}
    session = Session("1ef1", (0, 6), "smtp-out")
    event = type_("1ef1", time=1.25, direction="smtp-out", version=(0, 6), **own)
    kind = "request" if issubclass(type_, e.Request) else "report"
    header = {"kind": kind} | through_json(link.event_to_json(event))
    assert link.event_from_json(header, session) == event


DECISIONS: dict[str, Decision] = {
    "proceed": Proceed(),
    "junk": Junk(),
    "reject": Reject("5.7.1", 'No "thanks"', 554),
    "disconnect": Disconnect("4.3.0", "Later", 421),
    "rewrite": Rewrite("<caf\udce9@example.org>"),
}


@pytest.mark.parametrize("decision", DECISIONS.values(), ids=DECISIONS.keys())
def test_a_decision_arrives_as_it_was(decision: Decision) -> None:
    assert link.decision_from_json(through_json(link.decision_to_json(decision))) == decision


@given(st.lists(st.builds(Splice, st.integers(), st.integers(), st.binary(max_size=10))))
def test_splices_arrive_as_they_were(splices: list[Splice]) -> None:
    rows, body = link.splices_to_json(splices)
    assert link.splices_from_json(through_json(rows), body) == splices


# What is none -----------------------------------------------------------------------------


def refusal(**changed: Any) -> dict[str, Any]:
    return {"decision": "reject", "status": "5.7.1", "text": "No", "code": 550} | changed


NO_DECISION: dict[str, dict[str, Any]] = {
    "nothing": {},
    "null": {"decision": None},
    "no text": {"decision": ["proceed"]},
    "an unknown one": {"decision": "discard"},
    "of another case": {"decision": "Proceed"},
    "a reject of nothing": {"decision": "reject"},
    "a reject without a code": {"decision": "reject", "status": "5.7.1", "text": "No"},
    "a status that is none": refusal(status="5.7"),
    "a status of success": refusal(status="2.0.0", code=250),
    "a status that is a number": refusal(status=5.7),
    "a code that is none": refusal(code=999),
    "a code of success": refusal(code=250),
    "a code of the other kind": refusal(code=450),
    "a code that closes": refusal(status="4.3.0", code=421),
    "a code with a fraction": refusal(code=550.0),
    "a code that is a text": refusal(code="550"),
    "a code that is true": refusal(code=True),
    "a code that is null": refusal(code=None),
    "a text of two lines": refusal(text="No\r\n250 Yes"),
    "a text with a NUL": refusal(text="No\0"),
    "a text that is not ASCII": refusal(text="Nein, sch\xf6n"),
    "a text of nothing": refusal(text=""),
    "a text that is too long": refusal(text="x" * 441),
    "a text that is a number": refusal(text=5),
    "a text that is a list": refusal(text=["No"]),
    "a text that is null": refusal(text=None),
    "a rewrite to nothing": {"decision": "rewrite"},
    "a rewrite to an empty text": {"decision": "rewrite", "value": ""},
    "a rewrite to two lines": {"decision": "rewrite", "value": "a\nb"},
    "a rewrite to a number": {"decision": "rewrite", "value": 1},
    "a rewrite to what has no bytes": {"decision": "rewrite", "value": "\ud800"},
}


@pytest.mark.parametrize("header", NO_DECISION.values(), ids=NO_DECISION.keys())
def test_an_answer_without_a_decision_never_means_proceed(header: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        link.decision_from_json({"kind": "answer", "id": 1} | header)


NO_SPLICES: dict[str, tuple[Any, bytes]] = {
    "null": (None, b""),
    "a number": (1, b""),
    "a text": ("abc", b""),
    "a table": ({"abc": 1}, b""),
    "rows of two": ([[0, 0]], b""),
    "rows of four": ([[0, 0, 0, 0]], b""),
    "a row that is a number": ([0], b""),
    "offsets that are texts": ([["0", "0", 0]], b""),
    "offsets with a fraction": ([[0.0, 0, 0]], b""),
    "offsets that are true": ([[True, True, 0]], b""),
    "a length below zero": ([[0, 0, -1]], b""),
    "a length that is true": ([[0, 0, True]], b"x"),
    "more bytes than were told": ([[0, 0, 1]], b"xy"),
    "fewer bytes than were told": ([[0, 0, 3]], b"xy"),
    "bytes of no splice": ([], b"x"),
    "more of them than a message can need": ([[0, 0, 0]] * (link.MAX_SPLICES + 1), b""),
}


@pytest.mark.parametrize(("rows", "body"), NO_SPLICES.values(), ids=NO_SPLICES.keys())
def test_splices_that_are_none(rows: Any, body: bytes) -> None:
    with pytest.raises(LinkError):
        link.splices_from_json(through_json(rows), body)


NO_SESSION: dict[str, Any] = {
    "null": None,
    "a text": "id",
    "a number": 5,
    "a list": ["id"],
    "without an id": {"src": "192.0.2.1:25"},
    "with a version that is none": {"id": "1ef1", "version": 7},
    "with a transaction that is none": {"id": "1ef1", "transaction": "5287b63d"},
    "with a transaction without recipients": {"id": "1ef1", "transaction": {"msgid": "x"}},
}


@pytest.mark.parametrize("known", NO_SESSION.values(), ids=NO_SESSION.keys())
def test_a_session_that_is_none(known: Any) -> None:
    with pytest.raises(LinkError):
        link.session_from_json(known)


NO_EVENT: dict[str, dict[str, Any]] = {
    "nothing": {"kind": "request"},
    "an unknown phase": {"kind": "request", "event": "vrfy", "fields": {}},
    "a report that is asked": {"kind": "request", "event": "tx-mail", "fields": {}},
    "a phase that is told": {"kind": "report", "event": "data", "fields": {}},
    "no text": {"kind": "request", "event": ["data"], "fields": {}},
    "without its fields": {"kind": "request", "event": "ehlo", "fields": {}},
    "with fields that are none": {"kind": "request", "event": "ehlo", "fields": None},
    "without fields at all": {"kind": "request", "event": "ehlo"},
    "at no time": {"kind": "request", "event": "data", "fields": {}, "time": "soon"},
    "at a time out of bounds": {"kind": "request", "event": "data", "fields": {}, "time": 10**400},
    "at null": {"kind": "request", "event": "data", "fields": {}, "time": None},
}


@pytest.mark.parametrize("header", NO_EVENT.values(), ids=NO_EVENT.keys())
def test_an_event_that_is_none(header: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        link.event_from_json(header, Session("1ef1"))


def test_what_a_later_version_adds_is_ignored() -> None:
    session = link.session_from_json({"id": "1ef1", "mood": "good", "src": "192.0.2.1:25"})
    assert (session.id, session.src) == ("1ef1", "192.0.2.1:25")
    header = {"kind": "request", "event": "ehlo", "fields": {"name": "x", "mood": "good"}}
    assert link.event_from_json(header, session) == e.Ehlo("1ef1", "x")
    assert link.decision_from_json({"decision": "proceed", "mood": "good"}) == Proceed()


def test_a_token_and_a_password_stay_out_of_what_need_not_have_them() -> None:
    event = e.MailFrom("1ef1", "a@b", token="70ce")
    assert "70ce" not in json.dumps(link.event_to_json(event))
