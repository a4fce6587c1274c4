"""Where held messages go when they are too much for memory: unlinked files.

The shim asks after each read; the largest messages spill until the rest fits.  What can't
be spilled is named, so that its transaction can be refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence

from bridge.smtpd.message import Message
from bridge.smtpd.session import Session

WRITE = 256 * 1024
LEAST = 1 << 20  # bytes of messages that memory must do for
QUIET = 60.0  # seconds


class SpillFile:
    """The beginning of one message, in a file without a name."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._size = 0
        self._fd = -1
        path = os.path.join(spool.directory, f"filter-bridge-{os.getpid()}-{os.urandom(8).hex()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.unlink(path)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def append(self, runs: Sequence[bytes]) -> None:
        """Write runs to the end, all or, with OSError or MemoryError, none of them."""
        size = sum(map(len, runs))
        if self._spool.spilled + size > self._spool.max_spill:
            raise OSError("max_spill is reached")
        at = self._size
        for run in runs:  # one by one: there is no memory to join them
            data = memoryview(run)
            while data:
                written = os.pwrite(self._fd, data[:WRITE], at)
                at += written
                data = data[written:]
        spilled = self._spool.spilled + size
        self._size, self._spool.spilled = at, spilled

    def read(self, offset: int, length: int) -> bytes:
        """length bytes from offset."""
        if self._fd < 0:
            raise OSError("a spill file that is closed")
        data = os.pread(self._fd, length, offset)
        if not data:
            raise OSError("a spill file that is too short")
        return data

    def close(self) -> None:
        """Give the space back."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._spool.spilled -= self._size
            with contextlib.suppress(OSError):  # of what was written, and is wanted no more
                os.close(fd)

    def __del__(self) -> None:
        self.close()


class Spool:
    """The bound on the memory of all held messages together."""

    def __init__(self, max_memory: int, max_spill: int, directory: str) -> None:
        self.max_memory = max_memory
        self.max_spill = max_spill
        self.directory = directory
        self.spilled = 0  # bytes in files
        self._wanted = max_memory
        self._grow_at = 0.0  # when it may be more again
        self._estimate = 0  # at least what is in memory

    def grew(self, size: int) -> bool:
        """Count bytes that have come in; True when it is time to `balance`."""
        self._estimate += size
        return self._estimate > self.max_memory

    def shrink(
        self, messages: Iterable[tuple[Session, Message]], now: float
    ) -> list[tuple[Session, OSError]]:
        """Memory has come to its end: hold half of what there is from now on; see `balance`."""
        self.max_memory = max(min(self._estimate, self.max_memory) // 2, LEAST)
        self._grow_at = now + QUIET
        return self.balance(messages)

    def recover(self, now: float) -> None:
        """After some quiet time it may be twice as much again."""
        if self.max_memory < self._wanted and now >= self._grow_at:
            self.max_memory = min(2 * self.max_memory, self._wanted)
            self._grow_at = now + QUIET

    def balance(self, messages: Iterable[tuple[Session, Message]]) -> list[tuple[Session, OSError]]:
        """Spill the largest messages until the rest fits with an eighth to spare; the sessions
        whose message could not be spilled, and why."""
        held = sorted(messages, key=lambda item: item[1].in_memory)
        self._estimate = sum(message.in_memory for _, message in held)
        failed: list[tuple[Session, OSError]] = []
        while held and self._estimate > self.max_memory * 7 // 8:
            session, message = held.pop()
            self._estimate -= message.in_memory
            try:
                self._spill(message)
            except OSError as error:
                failed.append((session, error))
            except MemoryError:
                failed.append((session, OSError("no memory to spill it")))
        return failed

    def _spill(self, message: Message) -> None:
        if not isinstance(message.store, SpillFile):
            message.store = SpillFile(self)
        message.move(message.store.append)
