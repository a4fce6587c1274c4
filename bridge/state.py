"""What an author hangs on a session or transaction: objects in this process, dropped by
themselves when it ends.

Never leaves the process: it is gone when a bridge is, and another bridge has its own.  What
must outlive that is for `Session.keep`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from bridge.smtpd.session import Session

T = TypeVar("T")

# smtpd itself takes up to 2,048 sessions or so at once (a quarter of its file descriptors).
MAX_SESSIONS = 10_000


class State(Generic[T]):
    """One object for each session, or for each transaction, made when it is first asked for.

    Made by `Filter.per_session` and `Filter.per_transaction`; call it with the session.
    Safe to call in any thread.  Beyond `limit`, the one that was not used for longest goes.

    >>> names = State(list[str])
    >>> names(Session("1")).append("a")
    >>> names(Session("1"))
    ['a']
    >>> names(Session("2"))
    []
    """

    def __init__(self, make: Callable[[], T], limit: int = MAX_SESSIONS) -> None:
        self._make = make
        self._limit = limit
        self._held: OrderedDict[str, T] = OrderedDict()  # by session id
        self._lock = threading.Lock()

    def __call__(self, session: Session) -> T:
        with self._lock:
            if session.id in self._held:
                self._held.move_to_end(session.id)
                return self._held[session.id]
            made = self._held[session.id] = self._make()
            if len(self._held) > self._limit:
                self._held.popitem(last=False)
            return made

    def drop(self, session: str) -> None:
        """Let go of what there is for the session with this id."""
        with self._lock:
            self._held.pop(session, None)

    def __len__(self) -> int:
        return len(self._held)
