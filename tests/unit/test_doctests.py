"""Do the examples in the docstrings of the public API run?"""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable

import pytest

import bridge
from bridge import opensmtpd
from bridge.smtpd import events

MODULES = (
    "filter", "handlers", "state", "opensmtpd", "shipped", "testing.tester", "edits",
    "smtpd.decisions", "smtpd.session",
)  # fmt: skip
# Handlers of events have theirs in Filter.
EVENTS = {event.__name__ for event in {*events.REPORTS.values(), *events.PHASES.values()}}
THINGS = [getattr(bridge, name) for name in bridge.__all__ if name not in EVENTS]
THINGS = [thing for thing in THINGS if thing.__name__ not in ("Event", "Report", "Request")]
THINGS += [getattr(opensmtpd, name) for name in opensmtpd.__all__]
THINGS += [
    getattr(bridge.Filter, name)
    for name in ("on", "include", "chain", "per_session", "per_transaction", "on_start", "on_stop")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_a_module_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(f"bridge.{name}"))
    assert failed == 0


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__qualname__)
def test_an_author_finds_an_example_in_each_docstring(thing: Callable[..., object]) -> None:
    assert ">>>" in (thing.__doc__ or "")
