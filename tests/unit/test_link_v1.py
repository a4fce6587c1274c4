"""Do today's shim and today's bridge still understand, and are they understood by, those who
speak version 1 of the link and nothing else?  The other side here is a transcript and a reader of
frames of its own, so that a change of link.py can't change both ends at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.testing.process import FilterProcess
from bridge.testing.server import Ids
from bridge.testing.smtpd import Smtpd
from tests.unit.sidecar import COMMAND, NO_SERVICES, PROJECT, WAIT, Sidecar, said

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures/link-v1.txt"
# What is another one with each program or moment; it must be there all the same.
VOLATILE = {"release", "left", "smtpd"}
# What a shim may say or not, as it sees fit.
OPTIONAL = {"cancel", "ping", "pong"}


class Frame(NamedTuple):
    """One frame.  who: ">" the shim, "<" the bridge."""

    who: str
    header: bytes
    body: bytes

    @property
    def values(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.header)
        return values

    @property
    def wire(self) -> bytes:
        return struct.pack(">II", len(self.header), len(self.body)) + self.header + self.body

    def of_tomorrow(self) -> bytes:
        """The same as a later version may say it: a kind and keys that nobody knows yet."""
        new = {**self.values, "tomorrow": {"more": [1, None]}}
        if isinstance(new.get("session"), dict):
            new["session"]["tomorrow"] = "x"
        if isinstance(new.get("fields"), dict):
            new["fields"]["tomorrow"] = "x"
        unknown = Frame(self.who, b'{"kind":"of-tomorrow","id":1,"decision":"reject"}', b"body")
        later = Frame(self.who, json.dumps(new).encode(), self.body)
        first = [] if new["kind"] == "hello" else [unknown]
        return b"".join(frame.wire for frame in [*first, later, unknown])


def transcript() -> list[Frame]:
    frames: list[Frame] = []
    for line in FIXTURE.read_bytes().splitlines(keepends=True):
        mark, rest = line[:1].decode(), line[2:]
        if mark == "|":
            frames[-1] = frames[-1]._replace(body=frames[-1].body + rest)
        elif mark in "<>":
            frames.append(Frame(mark, rest.rstrip(b"\n"), b""))
    return frames


class Wire:
    """A stream of frames, read and written as in version 1."""

    def __init__(self, sock: socket.socket, who: str) -> None:
        sock.settimeout(WAIT)
        self._sock = sock
        self._who = who  # at the other end

    def read(self) -> Frame:
        header, body = struct.unpack(">II", self._exactly(8))
        return Frame(self._who, self._exactly(header), self._exactly(body))

    def write(self, data: bytes) -> None:
        self._sock.sendall(data)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data


def differences(old: object, new: object, path: str = "") -> Iterator[str]:
    """What of the old one is missing or another in the new one, which may have more."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if key not in new:
                yield f"{path}.{key} is missing"
            elif key not in VOLATILE:
                yield from differences(value, new[key], f"{path}.{key}")
    elif old != new:
        yield f"{path} is {new!r}, was {old!r}"


def test_the_transcript_has_every_kind_of_frame_and_of_answer() -> None:
    values = [frame.values for frame in transcript()]
    assert {each["kind"] for each in values} == {
        "hello", "report", "request", "answer", "cancel", "bye",
    }  # fmt: skip
    answers = [each for each in values if each["kind"] == "answer"]
    assert {each.get("decision") for each in answers} == {"proceed", "reject", "rewrite", None}
    assert any("splices" in each for each in answers)
    assert any("reason" in each for each in answers)
    assert any("failed" in each for each in answers)


# A shim of version 1 and today's bridge ---------------------------------------------------


@pytest.mark.parametrize("later", [False, True], ids=["of version 1", "of a later version"])
def test_a_shim_is_understood_by_today_s_bridge(later: bool, tmp_path: Path) -> None:
    with (
        Sidecar(tmp_path, app="tests.unit.linked:app") as bridge,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        sock.settimeout(WAIT)
        sock.connect(bridge.endpoint[5:])
        wire = Wire(sock, "<")
        for frame in transcript():
            if frame.who == ">":
                wire.write(frame.of_tomorrow() if later else frame.wire)
                continue
            if frame.values["kind"] == "bye":
                bridge.signal(signal.SIGTERM)
            said = wire.read()
            assert list(differences(frame.values, said.values)) == []
            assert said.body == frame.body
        with pytest.raises(EOFError):
            wire.read()
        assert bridge.wait() == 0


def test_a_ping_is_answered_and_a_cancelled_request_is_not(tmp_path: Path) -> None:
    release = tmp_path / "release"
    (message,) = (
        frame for frame in transcript() if b"Subject: hi" in frame.body and frame.who == ">"
    )
    held = message._replace(
        body=message.body.replace(b"Subject: hi", f"X-Hold: {release}".encode())
    )
    number = message.values["id"]
    with Sidecar(tmp_path) as bridge, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT)
        sock.connect(bridge.endpoint[5:])
        wire = Wire(sock, "<")
        for frame in (
            transcript()[0],
            held,
            Frame(">", b'{"kind":"cancel","id":%d}' % number, b""),
        ):
            wire.write(frame.wire)
        wire.write(Frame(">", b'{"kind":"ping"}', b"").wire)
        assert [wire.read().values["kind"] for _ in range(2)] == ["hello", "pong"]
        release.touch()
        wire.write(Frame(">", b'{"kind":"ping"}', b"").wire)
        assert wire.read().values["kind"] == "pong"


# Today's shim and a bridge of version 1 ---------------------------------------------------


class FrozenBridge(threading.Thread):
    """A bridge that says what the transcript says, and wants to hear what it heard then."""

    def __init__(self, path: Path, *, later: bool) -> None:
        super().__init__(daemon=True)
        self.wrong: list[str] = []
        self.through = False  # has it come to the transcript's end?
        self._later = later
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(WAIT)

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as sock:
            wire = Wire(sock, ">")
            try:
                for frame in transcript():
                    self._step(wire, frame)
                self.through = True
            except (EOFError, OSError) as error:
                self.wrong.append(f"the link ended: {error!r}")

    def _step(self, wire: Wire, frame: Frame) -> None:
        if frame.who == "<":
            wire.write(frame.of_tomorrow() if self._later else frame.wire)
            return
        if frame.values["kind"] in OPTIONAL:
            return
        heard = wire.read()
        while heard.values["kind"] in OPTIONAL:
            heard = wire.read()
        self.wrong += differences(frame.values, heard.values)
        if heard.body != frame.body:
            self.wrong.append(f"body is {heard.body!r}, was {frame.body!r}")


SENT = b"From: alice@example.net\nSubject: hi\n\n.dot\nbody\n"


@pytest.mark.parametrize("later", [False, True], ids=["of version 1", "of a later version"])
def test_a_bridge_is_understood_by_today_s_shim(later: bool, tmp_path: Path) -> None:
    path, file = tmp_path / "bridge.sock", tmp_path / "bridge.toml"
    file.write_text(NO_SERVICES)
    frozen = FrozenBridge(path, later=later)
    frozen.start()
    # The application is the bridge's; what it wants to be asked is in its hello.
    arguments = ["run", "-f", str(file), "--connect", f"unix:{path}", "not.here:app"]
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    with FilterProcess([*COMMAND, *arguments], env, smtpd=Smtpd(ids=Ids(1)), timeout=WAIT) as smtpd:
        client = smtpd.connect(rdns="client.example.net")
        client.ehlo("client.example.net")
        assert client.mail("alice@example.net").code == 250
        assert client.rcpt("bob@example.org").code == 250
        assert client.rcpt("nobody@example.org").lines[0].startswith("550 5.1.1 No such user")
        assert client.data(SENT).code == 250
        for subject, code in (("spam", 550), ("fail", 451)):
            client.mail("dave@example.net")
            client.rcpt("bob@example.org")
            assert client.data(f"Subject: {subject}\n\nx\n".encode()).code == code
        assert client.quit().code == 221
        smtpd.run(lambda: said(smtpd, "bridge-drains") == 1)
    frozen.join(WAIT)
    assert frozen.wrong == []
    assert frozen.through
    assert smtpd.faults == []
    (mail,) = smtpd.delivered
    assert mail.sender == "carol@example.net"
    assert mail.content.startswith(b"X-First: 1\nReceived: ")
    assert mail.content.count(b"\nX-Third: 3\n") == 1
    assert mail.content.endswith(b"\n\n.dot\nbody\n")
