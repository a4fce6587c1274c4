"""Many clients at once, and where every one of their messages went. On a real server.

Each message has an id of its own as its recipient. `Load` sends and keeps the books; what
happens to the server meanwhile is the test's.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Self

from tests.live.bridged import connected, message
from tests.live.world import Closed, OpenSMTPD, eventually

PAUSE = 0.02  # of a client between two messages, so that the machine is not only busy with them
A_SESSION = 3  # messages
ANSWER = 90.0  # seconds that a client waits for a reply: twice what the filter may take
LEAVE = 120.0


class Load:
    """Clients that send messages one after another until it ends. `accepted`, `deferred` and
    `wrong` (a permanent refusal, a lost connection) hold the ids."""

    def __init__(self, mta: OpenSMTPD, clients: int, *, source: str = "127.0.0.1") -> None:
        self.mta = mta
        self.accepted: list[str] = []
        self.deferred: list[str] = []
        self.wrong: dict[str, str] = {}
        self._source = source
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        deadline = time.monotonic() + LEAVE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def done(self) -> int:
        """How many messages have their reply."""
        return len(self.accepted) + len(self.deferred) + len(self.wrong)

    def _client(self, client: int) -> None:
        number = 0
        while not self._ending.is_set():
            ident = f"c{client}"
            try:
                with connected(self.mta, source=self._source, timeout=ANSWER) as session:
                    for _ in range(A_SESSION):
                        number += 1
                        ident = f"c{client}-{number}"
                        reply = session.deliver(
                            "sender@client.example", [f"{ident}@example.org"], message(ident)
                        )
                        self._note(ident, reply.code, str(reply))
                        if self._ending.wait(PAUSE):
                            return
            except (OSError, Closed, ValueError) as error:
                self.wrong[ident] = repr(error)

    def _note(self, ident: str, code: int, reply: str) -> None:
        if code == 250:
            self.accepted.append(ident)
        elif 400 <= code < 500:
            self.deferred.append(ident)
        else:
            self.wrong[ident] = reply

    def check(self) -> None:
        """Every message is delivered once, or its client was told to come again: never both,
        never neither, never twice."""
        assert not any(thread.is_alive() for thread in self._threads), "a client waits for ever"
        assert self.wrong == {}
        eventually("an empty queue", lambda: self.mta.queued() == 0, 60)
        found = Counter(mail.recipient.partition("@")[0] for mail in self.mta.mails())
        twice = {ident for ident, count in found.items() if count > 1}
        assert twice == set()
        assert set(found) == set(self.accepted)
        assert not set(self.accepted) & set(self.deferred)
