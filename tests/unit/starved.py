"""A shim without a bridge that speaks with an smtpd of few lines, and whose memory ends at any
step that one chooses.

Python's own hook for the steps of a program raises MemoryError before the chosen one of those
that take memory, in the shim's own code: a step that fails has done nothing yet, as one whose
allocation fails.
"""

from __future__ import annotations

import dis
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import bridge
from bridge.config import parse
from bridge.shim import Options, Shim
from bridge.smtpd import events
from bridge.smtpd.items import Registration
from tests.unit.shim_world import Clock, JumpingSelector

HOUSE = Path(bridge.__file__).parent
STARVED = {
    str(HOUSE / f"{name}.py")
    for name in ("shim", "dispatch", "fair", "spool", "bridges")
} | {str(file) for file in (HOUSE / "smtpd").glob("*.py")}  # fmt: skip
# What Python takes memory for: calls, and whatever makes a value.
TAKES = {
    number
    for name, number in dis.opmap.items()
    if name.startswith(("CALL", "BUILD_", "LIST_", "DICT_", "SET_", "MAP_", "BINARY_", "UNARY_"))
    or name in ("FORMAT_VALUE", "GET_ITER", "FOR_ITER", "STORE_SUBSCR", "LOAD_METHOD", "SEND")
    or name in ("MAKE_FUNCTION", "RETURN_GENERATOR", "UNPACK_EX", "MATCH_CLASS", "COMPARE_OP")
}
OVER = -1  # memory has ended, once; there is no second time


class Memory:
    """Ends at the `end`-th step that takes some; counts them.  0: never."""

    def __init__(self, end: int = 0) -> None:
        self.end = end
        self.steps = 0
        self._bytes: dict[CodeType, bytes] = {}

    def __enter__(self) -> None:
        if not self.ended:
            sys.settrace(self._called)

    @property
    def ended(self) -> bool:
        """Is it not to end (again)?"""
        return self.end <= self.steps and self.end != 0

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in STARVED:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        if event != "opcode":
            return self._step
        code = self._bytes.get(frame.f_code)
        if code is None:
            code = self._bytes[frame.f_code] = frame.f_code.co_code
        if code[frame.f_lasti] in TAKES:
            self.steps += 1
            if self.steps == self.end:
                raise MemoryError
        return self._step


class Starved:
    """A shim whose bridge never comes, so that the failure policy lets all pass."""

    def __init__(self, config: str, memory: Memory) -> None:
        self.memory = memory
        self.clock = Clock()
        self._ours, self._theirs = socket.socketpair()
        self._null = open("/dev/null", "wb")  # noqa: SIM115
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        text = f'[shim]\nconnect = ["unix:/nowhere/at/all"]\npatience = "1s"\n{config}\n'
        self._selector = JumpingSelector(self.clock)
        self.shim = Shim(
            parse(text + '[failure.bridge]\ndefault = "accept"\n'),
            Options(),
            stdin=self._theirs.fileno(),
            stdout=self._theirs.fileno(),
            stderr=self._null.fileno(),
            clock=self.clock,
            selector=self._selector,
        )
        self.shim.protocol.start(Registration(phases=frozenset(events.PHASES)))
        self.heard = b""
        self.shim.turn()

    def close(self) -> None:
        self.shim._bridges.leave()
        self._selector.close()
        for each in (self._ours, self._theirs, self._null):
            each.close()

    def turns(self, most: int, until: Callable[[], bool] = lambda: False) -> None:
        """So many turns of a second each, or fewer."""
        for _ in range(most):
            try:
                with self.memory:
                    self.shim.turn()
            except MemoryError:  # as `run` does
                self.shim._something_failed = self.shim._short_of_memory = True
            assert not self.shim._smtpd.gone, "the shim would have left"
            self.clock.now += 1.0
            try:
                while data := self._ours.recv(1 << 20):
                    self.heard += data
            except BlockingIOError:
                pass
            if until():
                return

    def say(self, text: bytes) -> None:
        assert self._ours.send(text) == len(text)


@contextmanager
def starved(config: str, memory: Memory) -> Iterator[Starved]:
    """One, that is closed."""
    world = Starved(config, memory)
    try:
        yield world
    finally:
        world.close()
