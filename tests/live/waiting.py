"""How do tests wait: for a condition, up to a deadline, and never by sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T], within: float = 10.0) -> T:
    """Call `probe` until it returns something true; that is returned.

    After `within` seconds TimeoutError is raised, naming `what`: "a second delivery".
    """
    deadline = time.monotonic() + within
    while not (result := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:g} s: {what}")
        time.sleep(0.02)
    return result
