"""A filter in one process: what does a fault of our own cost, or memory that ends, beside what it
hit?
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bridge import core as core_module
from bridge.core import Core
from bridge.filter import Filter
from bridge.handlerloop import Asked
from bridge.smtpd import events
from bridge.smtpd.lines import LineReader
from bridge.smtpd.protocol import Protocol
from tests.unit.dialogue import OTHER, Dialogue, S


class World:
    """A core in a time of its own, whose handlers never answer."""

    def __init__(self) -> None:
        app = Filter()

        @app.on(events.Noop)
        async def noop(_event: events.Noop, _session: object) -> None: ...

        @app.on(events.TxReset)
        async def reset(_event: events.TxReset, _session: object) -> None: ...

        self.now = 0.0
        self.logged: list[str] = []
        self.told = 0
        self.core = Core(app, self._log, clock=lambda: self.now)
        self.core.handlers.ask = self._ask  # type: ignore[method-assign]
        self.core.handlers.cancel = self._cancel  # type: ignore[method-assign]
        self.core.handlers.tell = self._tell  # type: ignore[assignment,method-assign]
        self.lines = Dialogue()
        self.core.start()
        self.said()

    def _log(self, event: str, **_: object) -> None:
        self.logged.append(event)

    def _ask(self, asked: Asked, event: events.Event) -> None: ...

    def _cancel(self, asked: Asked) -> None: ...

    def _tell(self, *_: object) -> None:
        self.told += 1

    def turn(self, *lines: bytes) -> None:
        """As the speaker's."""
        if lines and not self.core.behind:
            self.core.receive(b"".join(line + b"\n" for line in lines))
        self.core.settle()

    def said(self) -> bytes:
        chunks = []
        while self.core.protocol.output:
            chunks.append(self.core.protocol.output.next())
        return b"".join(chunks)

    def noop(self, session: str) -> bytes:
        return self.lines.request("noop", session=session)

    def tempfail(self, session: str) -> bytes:
        return self.lines.result("noop", "reject|451 4.3.0", session).rstrip()


def failing(error: type[Exception], times: int, real: Callable[..., Any]) -> Callable[..., Any]:
    left = [times]

    def call(*arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return real(*arguments)

    return call


def test_deadlines_are_kept_while_there_is_no_memory_to_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.turn(world.noop(S))
    with monkeypatch.context() as patch:
        patch.setattr(LineReader, "_split", failing(MemoryError, 10**9, LineReader._split))
        world.turn(world.noop(OTHER))
        assert world.core.behind
        world.now = 20.0
        world.turn()
        assert world.said().startswith(world.tempfail(S))
    world.turn()
    assert world.core.open == 1
    world.now = 40.0
    world.turn()
    assert world.said().startswith(world.tempfail(OTHER))


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
@pytest.mark.parametrize(
    ("owner", "name", "late"),
    [
        pytest.param(core_module, "snapshot", False, id="when it is handed over"),
        pytest.param(Protocol, "answer", True, id="when it is answered"),
    ],
)
def test_what_fails_on_the_way_is_answered_all_the_same(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, late: bool, error: type[Exception]
) -> None:
    world = World()
    monkeypatch.setattr(owner, name, failing(error, 1, getattr(owner, name)))
    world.turn(world.noop(S), world.noop(OTHER))
    if late:
        world.now = 20.0
        world.turn()
    world.turn()
    assert world.said().count(world.tempfail(S)) == 1
    assert world.logged.count("internal-error") == 1


def test_a_report_that_can_never_be_told_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.turn(world.lines.report("tx-begin", "8b839cae"))
    with monkeypatch.context() as patch:
        patch.setattr(core_module, "snapshot", failing(RecursionError, 10**9, print))
        world.turn(world.lines.report("tx-reset", "8b839cae"))
    assert not world.core.behind
    assert world.told == 0
    world.turn(world.noop(OTHER))
    assert world.core.open == 1
