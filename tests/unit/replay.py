"""A recorded transcript played against the model: its clients from what smtpd reported of
them, its filter's answers byte for byte.  Helper of test_testing_transcripts.py."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bridge.testing.client import Script
from bridge.testing.server import Ids, Server
from bridge.testing.smtpd import Smtpd

TRANSCRIPTS = Path(__file__).parent.parent / "fixtures" / "transcripts"
USERS = {"alice": "secret", "bo|b": "secret"}
# What the recorded servers had in smtpd.conf that their transcripts do not show.
MAX_RECIPIENTS = {"too-many-rcpts": 3}
PIPELINING = b"500 5.5.1 Invalid command: Pipelining not supported"
LINE_TOO_LONG = b"500 5.0.0 Line too long"
COMMAND_TOO_LONG = b"500 5.0.0 Command line too long"
DATE = re.compile(rb"\t\w{3}, \d\d? \w{3} \d{4} \d\d:\d\d:\d\d \+0000 \(UTC\)")


@dataclass
class Recorded:
    """A transcript: the lines of smtpd, those of the filter, and the sessions in order."""

    name: str
    version: str
    said: list[bytes]
    answered: list[bytes]
    sessions: dict[bytes, list[list[bytes]]] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> Recorded:
        txt = (TRANSCRIPTS / f"{name}.txt").read_bytes() if _exists(name, "txt") else b""
        if _exists(name, "in"):
            said, answered = (
                (TRANSCRIPTS / f"{name}.{ext}").read_bytes().split(b"\n")[:-1]
                for ext in ("in", "out")
            )
        else:
            lines = txt.split(b"\n")
            said = [line[2:] for line in lines if line.startswith(b"< ")]
            answered = [line[2:] for line in lines if line.startswith(b"> ")]
        version = next(line.split(b"|")[1] for line in said if line.startswith(b"report|"))
        recorded = cls(name, version.decode(), said, answered)
        for line in said:
            parts = line.split(b"|")
            if parts[0] in (b"report", b"filter") and parts[3] == b"smtp-in":
                recorded.sessions.setdefault(parts[5], []).append(parts)
        return recorded

    @property
    def release(self) -> str:
        return next(
            line.split(b"|")[2].decode() for line in self.said if b"|smtpd-version|" in line
        )

    def server(self) -> Server:
        size = re.search(rb"\|250-SIZE (\d+)", b"\n".join(self.said))
        scenario = self.name.split("-", 1)[1]
        return Server(
            max_message_size=int(size[1]) if size else 36_700_160,
            max_recipients=MAX_RECIPIENTS.get(scenario, 1000),
            starttls=any(b"|250-STARTTLS" in line for line in self.said),
            users=USERS,
            smtp_out=b"config|subsystem|smtp-out" in self.said,
        )


def _exists(name: str, ext: str) -> bool:
    return (TRANSCRIPTS / f"{name}.{ext}").exists()


class RecordedIds(Ids):
    """The session ids and tokens of a transcript, so that its answers fit as they are."""

    def __init__(self, recorded: Recorded) -> None:
        super().__init__()
        self._sessions: Iterator[bytes] = iter(recorded.sessions)
        self._tokens = {
            parts[4].decode(): parts[6].decode()
            for events in recorded.sessions.values()
            for parts in events
            if parts[0] == b"filter"
        }

    def session(self) -> str:
        return next(self._sessions).decode()

    def token(self, phase: str) -> str:
        return self._tokens.get(phase, "00000000000000ff")


def tail(parts: list[bytes]) -> bytes:
    """The fields after session (report) or token (request)."""
    return b"|".join(parts[7 if parts[0] == b"filter" else 6 :])


def connect(smtpd: Smtpd, events: list[list[bytes]]) -> Script:
    rdns, fcrdns, src, dest = tail(events[0]).decode().split("|")
    names = [parts[4] for parts in events]
    smtps = b"link-tls" in names and names.index(b"link-tls") < names.index(b"protocol-server")
    return smtpd.connect(src, dest, rdns, fcrdns, smtps=smtps)


def act(script: Script, events: list[list[bytes]]) -> None:
    """Queue what the client of a recorded session did."""
    reply = b""
    asked = True  # something of the client's is unanswered
    bodies = [list(body(turn)) for turn in turns(events)]
    for index, parts in enumerate(events):
        event, rest = parts[4], tail(parts)
        if parts[0] == b"filter":
            continue
        if event == b"protocol-client" and rest != b".":
            command(script, rest, reply, events[index:])
            asked = True
        elif event == b"timeout":
            script.timeout()
        elif event == b"protocol-server":
            if rest == PIPELINING and not asked:
                script.send(b"ONE\r\nTWO\r\n")
            elif rest == COMMAND_TOO_LONG and not asked:
                script.send(b"x" * 3000 + b"\r\n")
            elif rest.startswith(b"354") and (raw := b"".join(bodies.pop(0))):
                script.send(raw)
            reply, asked = rest, rest[3:4] == b"-" or rest[:3] == b"354"
    if tail(events[-1]) == b"" and events[-1][4] == b"link-disconnect":
        script.abort()


def turns(events: list[list[bytes]]) -> Iterator[list[list[bytes]]]:
    """What belongs to each DATA that was accepted.  Body lines and reports are recorded in
    any order."""
    turn: list[list[bytes]] = []
    for parts in [*events, [b"report", b"", b"", b"", b"protocol-client", b"", b"end"]]:
        if parts[4] == b"protocol-client" and tail(parts) != b".":
            if any(p[4] == b"protocol-server" and tail(p)[:3] == b"354" for p in turn):
                yield turn
            turn = []
        turn.append(parts)


def body(turn: list[list[bytes]]) -> Iterator[bytes]:
    """The bytes that the client wrote after the 354: smtpd's own header is left out."""
    lines = [tail(parts) for parts in turn if parts[4] == b"data-line"]
    said = [tail(parts) for parts in turn if parts[4] == b"protocol-server"]
    echoed = any(parts[4] == b"protocol-client" and tail(parts) == b"." for parts in turn)
    lines = lines[next(i for i, line in enumerate(lines) if DATE.fullmatch(line)) + 1 :]
    if any(b"message too big" in reply for reply in said):
        lines.insert(-1, b"x" * 60_000)  # smtpd forwards nothing above the limit
    yield from (line + b"\r\n" for line in lines)
    if LINE_TOO_LONG in said:
        yield b"x" * 70_000 + b"\r\n"
    elif not echoed and PIPELINING in said:
        yield b"QUIT\r\n" if lines[-1:] == [b"."] else b".\r\nQUIT\r\n"


def command(script: Script, line: bytes, reply: bytes, later: list[list[bytes]]) -> None:
    if line.upper() == b"STARTTLS" and any(parts[4] == b"link-tls" for parts in later):
        script.starttls()  # not in the transcripts of 6.8, whose TLS was broken
    elif line == b"AUTH PLAIN ********":
        script.command(b"AUTH " + next(tail(p) for p in later if p[4] == b"auth"))
    elif line == b"********":
        script.command(base64.b64encode(credential(reply, later)))
    else:
        script.command(line)


def credential(prompt: bytes, later: list[list[bytes]]) -> bytes:
    one, other = next(tail(p).rsplit(b"|", 1) for p in later if p[4] == b"link-auth")
    if one in (b"pass", b"fail") or one.startswith((b"pass|", b"fail|")):
        result, _, user = b"|".join((one, other)).partition(b"|")
    else:
        user, result = one, other
    user = user.replace(rb"\040", b" ")
    password = b"secret" if result == b"pass" else b"wrong"
    if prompt == b"334 VXNlcm5hbWU6":
        return user
    return password if prompt == b"334 UGFzc3dvcmQ6" else b"\0" + user + b"\0" + password
