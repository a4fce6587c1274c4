"""The stream between shim and bridge: frames, and what is in them.

A frame is two big-endian u32 lengths (header, body), a JSON header, raw bytes.  Unknown
keys are ignored and unknown kinds dropped by whoever reads them, so that old and new can
meet during an upgrade; a frame that is none raises LinkError and ends the link.  No I/O.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from bridge.smtpd import events
from bridge.smtpd.decisions import Decision, Disconnect, Junk, Proceed, Refusal, Reject, Rewrite
from bridge.smtpd.message import Splice
from bridge.smtpd.session import Session, Transaction

VERSION = 1  # of the link; announced in hello
PREFIX = struct.Struct(">II")
MAX_HEADER = 8 << 20  # 20,000 recipients of 256 bytes, and room
MAX_BODY = 256 << 20  # of an answer: what is new in a message; the shim has to hold it
# Each is looked up in the message by the shim, which must not be held up.  A client can make
# half of edits.MAX_FIELDS necessary, by forging every other field; services add some hundreds.
MAX_SPLICES = 25_000
LEAST_BODY = 256 << 20  # what a bridge takes of a shim that is set up for longer messages

Header = dict[str, Any]
Frame = tuple[Header, bytes]


class LinkError(ValueError):
    """The other side of the link wrote what is no frame, or a frame that makes no sense."""


def encode(header: Header, body_size: int = 0) -> bytes:
    """The frame's lengths and header; body_size bytes of body must follow on the stream."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return PREFIX.pack(len(text), body_size) + text


class FrameReader:
    """Cuts a stream into frames, however it comes in."""

    def __init__(self, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> None:
        self._max = max_header, max_body
        self._chunks: list[bytes] = []  # not yet a frame
        self._size = 0  # of the chunks
        self._need = PREFIX.size  # bytes until there is something to do
        self._lengths: tuple[int, int] | None = None  # of the frame that is coming in

    def widen(self, max_header: int, max_body: int) -> None:
        """Take longer frames from now on."""
        self._max = max_header, max_body

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with these bytes.  LinkError for what is none."""
        self._chunks.append(data)
        self._size += len(data)
        while self._size >= self._need:
            data = b"".join(self._chunks)
            if self._lengths is None:
                self._lengths = PREFIX.unpack_from(data)
                if self._lengths[0] > self._max[0] or self._lengths[1] > self._max[1]:
                    raise LinkError(f"a frame of {sum(self._lengths)} bytes")
                self._chunks = [data]
                self._need = PREFIX.size + sum(self._lengths)
                continue
            end = PREFIX.size + self._lengths[0]
            header, body, rest = data[PREFIX.size : end], data[end : self._need], data[self._need :]
            self._chunks, self._size = [rest], len(rest)
            self._need, self._lengths = PREFIX.size, None
            yield _header(header), body


def _header(text: bytes) -> Header:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LinkError("a frame's header is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise LinkError("a frame without a kind")
    return header


# What is in the frames --------------------------------------------------------------------


def session_to_json(session: Session) -> Header:
    """A snapshot of all that is known of a session, without what is empty."""
    known = {
        field.name: value
        for field in fields(session)
        if field.name not in ("transaction", "deadline") and (value := getattr(session, field.name))
    }
    if session.transaction is not None:
        of = session.transaction  # asdict would copy each recipient, with each RCPT TO
        known["transaction"] = {name: getattr(of, name) for name in Transaction.__slots__}
    return known


def session_from_json(known: Any) -> Session:
    """The session of a snapshot.  LinkError for what is none."""
    try:
        values = {f.name: known[f.name] for f in fields(Session) if f.name in known}
        values["version"] = tuple(values.get("version", events.NEWEST))
        if values.get("transaction") is not None:
            of = values["transaction"]
            values["transaction"] = Transaction(of["msgid"], of["sender"], list(of["recipients"]))
        return Session(**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise LinkError("a session that is none") from error


def event_to_json(event: events.Event) -> Header:
    """An event's own fields, its keyword and time; the session and token stay here."""
    own = {name: getattr(event, name) for name in type(event).__annotations__ if name != "keyword"}
    return {"event": event.keyword, "time": event.time, "fields": own}


def event_from_json(header: Header, session: Session) -> events.Event:
    """The event of a request or report frame.  LinkError for one that is not known."""
    name = str(header.get("event", ""))
    event = events.PHASES.get(name) if header["kind"] == "request" else events.REPORTS.get(name)
    if event is None:
        raise LinkError(f"an unknown event {name[:40]!r}")
    given = header.get("fields", {})
    names = [name for name in event.__annotations__ if name != "keyword"]
    try:
        own = {name: given[name] for name in names if name in given}
        return event(
            session.id,
            time=float(header.get("time", 0)),
            direction=session.direction,
            version=session.version,
            **own,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise LinkError(f"an event {name} that is none") from error


def decision_to_json(decision: Decision) -> Header:
    """The decision part of an answer."""
    match decision:
        case Refusal():
            reply = {"status": decision.status, "text": decision.text, "code": decision.code}
            return {"decision": decision.keyword, **reply}
        case Rewrite():
            return {"decision": "rewrite", "value": decision.value}
        case _:
            return {"decision": decision.keyword}


def decision_from_json(header: Header) -> Decision:
    """The decision of an answer.  LinkError for one that can't be sent or is none: an answer
    without a decision never means proceed."""
    try:
        match header.get("decision"):
            case "proceed":
                return Proceed()
            case "junk":
                return Junk()
            case "reject":
                return Reject(*_reply(header))
            case "disconnect":
                return Disconnect(*_reply(header))
            case "rewrite":
                return Rewrite(header["value"])
    except (KeyError, TypeError, ValueError) as error:
        raise LinkError(f"a decision that is none: {error}") from error
    raise LinkError("an answer without a decision")


def _reply(header: Header) -> tuple[str, str, int]:
    status, text, code = header["status"], header["text"], header["code"]
    if not (type(status) is type(text) is str and type(code) is int):
        raise LinkError("a reply that is none")
    return status, text, code


def splices_to_json(splices: Sequence[Splice]) -> tuple[list[list[int]], bytes]:
    """The splices of an answer, and the frame's body with their new bytes."""
    rows = [[splice.start, splice.end, len(splice.new)] for splice in splices]
    return rows, b"".join(splice.new for splice in splices)


def splices_from_json(rows: Any, body: bytes) -> list[Splice]:
    """The splices of an answer; whether they fit their message, `Message.check` says.
    LinkError for what are none."""
    splices: list[Splice] = []
    at = 0
    try:
        if len(rows) > MAX_SPLICES:
            raise LinkError("too many splices")
        for start, end, length in rows:
            if not (type(start) is type(end) is type(length) is int and length >= 0):
                raise LinkError("a splice that is none")
            splices.append(Splice(start, end, body[at : at + length]))
            at += length
    except (TypeError, ValueError) as error:
        raise LinkError("splices that are none") from error
    if at != len(body):
        raise LinkError("splices that are not as long as their bytes")
    return splices
