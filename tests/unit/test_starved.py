"""Is every request answered once, legally, wherever memory ends?  The shim's own steps fail one
after the other, each in a conversation of its own.
"""

from __future__ import annotations

import errno
import mmap
import re
from collections.abc import Iterator

import pytest

from bridge import shim
from bridge.smtpd.decisions import legal
from tests.unit.starved import OVER, Memory, starved

A, B = "7641df9771b4ed00", "0123456789abcdef"
BODY = ("Subject: x", "", "..dot", "a long line: " + 1100 * "x", "bye")
HEAD = "0.7|1700000000.250000|smtp-in"
TURNS = 120  # of a second: no deadline is that far away
EACH = 97  # so-many-th step fails; all of them take some minutes


def report(session: str, event: str, *fields: str) -> str:
    return "|".join(("report", HEAD, event, session, *fields))


def request(session: str, phase: str, argument: str = "") -> str:
    return "|".join(("filter", HEAD, phase, session, f"{phase:x<16}"[:16].encode().hex(), argument))


def lines(session: str, *content: str) -> list[str]:
    return [request(session, "data-line", line) for line in content]


def both(*texts: str) -> list[str]:
    """The same of both sessions, in turn."""
    return [text.replace("SESSION", session) for text in texts for session in (A, B)]


# What smtpd writes at once, and which answers it then waits for.
STEPS: tuple[tuple[list[str], list[tuple[str, str]]], ...] = (
    (
        both(
            report("SESSION", "link-connect", "x.example", "pass", "192.0.2.1:1", "192.0.2.2:25"),
            request("SESSION", "connect", "x.example|192.0.2.1"),
        ),
        [(A, "connect"), (B, "connect")],
    ),
    (both(request("SESSION", "ehlo", "x.example")), [(A, "ehlo"), (B, "ehlo")]),
    (
        [
            *both(report("SESSION", "tx-begin", "2cb6e4d4")),
            *both(report("SESSION", "tx-mail", "2cb6e4d4", "ok", "alice@example.net")),
            *both(report("SESSION", "tx-rcpt", "2cb6e4d4", "ok", "bob@example.org")),
            *both(request("SESSION", "data")),
        ],
        [(A, "data"), (B, "data")],
    ),
    (
        [*lines(A, *BODY[:3]), *lines(B, BODY[0]), request(B, "noop"), *lines(A, *BODY[3:], ".")],
        [(B, "noop"), (A, "data-line")],
    ),
    (
        [request(A, "commit"), *lines(B, *BODY), *lines(B, ".")],
        [(A, "commit"), (B, "data-line")],
    ),
    ([request(B, "commit"), report(A, "tx-commit", "2cb6e4d4", "9")], [(B, "commit")]),
    ([report(A, "link-disconnect"), request(B, "quit")], [(B, "quit")]),
)


def answers(heard: bytes) -> Iterator[tuple[str, str, str]]:
    """Session, token and what was said, of each line of the shim."""
    assert heard.endswith(b"\n") or not heard
    for line in heard.decode().splitlines():
        match = re.fullmatch(r"filter-(result|dataline)\|(\w{16})\|(\w+)\|(.*)", line)
        assert match, line
        yield match[2], match[3], match[4]


def phase_of(token: str) -> str:
    return bytes.fromhex(token).decode().rstrip("x")


def converse(config: str, end: int) -> int:
    """The whole conversation, in which memory ends at one step; how many steps there were."""
    memory = Memory(end)
    with starved(config, memory) as world:
        world.turns(1)
        for texts, expected in STEPS:
            world.heard = b""
            world.say("".join(f"{text}\n" for text in texts).encode())

            def all_said(expected: list[tuple[str, str]] = expected) -> bool:
                said = [
                    (session, phase_of(token))
                    for session, token, text in answers(world.heard)
                    if phase_of(token) != "data-line" or text == "."
                ]
                return set(said) >= set(expected)

            world.turns(TURNS, all_said)
            check(world.heard, expected)
        steps, memory.end = memory.steps, OVER
        world.turns(60)  # what was added by half has its deadline
        assert not world.shim.protocol.behind
        assert list(world.shim.protocol.sessions) == [B]
        assert world.shim._dispatcher.pending == {}
    return steps


whole: dict[str, bool] = {}


def check(heard: bytes, expected: list[tuple[str, str]]) -> None:
    """Each has its answer, once, a legal one; none goes on with a message that is not whole."""
    bodies: dict[str, list[str]] = {}
    said: list[tuple[str, str]] = []
    for session, token, text in answers(heard):
        phase = phase_of(token)
        if phase == "data-line":
            bodies.setdefault(session, []).append(text)
            if text != ".":
                continue
        else:
            withheld = phase == "commit" and not whole[session]
            assert text.partition("|")[0] in legal(phase, (0, 7), withheld=withheld)
        said.append((session, phase))
    assert sorted(said) == sorted(expected)
    for session, body in bodies.items():
        assert body[-1] == "."
        whole[session] = [line for line in body if not line.startswith("X-")] == [*BODY, "."]


CONFIGS = {"held": "", "that passes line by line": 'max_message_size = "1K"'}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_wherever_memory_ends_each_request_is_answered(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "PAUSE", 0.0)
    converse(config, 0)
    steps = converse(config, 0)  # the first time, Python has to prepare some
    assert whole == {A: True, B: True}
    assert steps > 1000
    for end in range(1, steps, EACH):
        try:
            converse(config, end)
        except BaseException as error:
            raise AssertionError(f"where memory ended at step {end} of {steps}") from error


def test_nothing_is_read_while_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "PAUSE", 0.0)

    def full(length: int, size: int, **_: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with starved("", Memory(OVER)) as world:
        world.turns(1)
        world.heard = b""
        world.say(f"{request(A, 'noop')}\n".encode())
        with monkeypatch.context() as patched:
            patched.setattr(mmap, "mmap", full)
            world.turns(30)
            assert (world.heard, world.shim.protocol.sessions) == (b"", {})
        world.turns(30)
        assert [said for _, _, said in answers(world.heard)] == ["proceed"]
