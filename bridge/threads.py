"""Where handlers run that are plain functions: threads of our own, bounded, never joined.

A handler that blocks keeps its thread and nobody else's; asyncio's own threads are few, and
a process that ends waits for them.  Knows nothing of filters.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# At once.  With handlers that block until a command's deadline (15 s) these are 8 new ones a
# second; 128 is nginx's and Apache's order of magnitude too (ThreadsPerChild 25 to 64 a process).
LIMIT = 128
IDLE = 30.0  # s that a thread waits for more work before it ends


@dataclass(slots=True, eq=False)
class _Job:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[tuple[Any, BaseException | None]]
    call: Callable[[], Any]


class Threads:
    """Up to `limit` daemon threads, started when there is work for them."""

    def __init__(self, limit: int = LIMIT, idle: float = IDLE) -> None:
        if limit < 1:
            raise ValueError(f"limit {limit}: expected 1 or more")
        self._limit = limit
        self._patience = idle
        self._jobs: deque[_Job] = deque()  # that no thread has taken
        self._changed = threading.Condition()
        self._count = 0
        self._idle = 0

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """What the call returns or raises, whatever it is.  Waits for a free thread first;
        a call whose caller has gone by then is not made."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[T, BaseException | None]] = loop.create_future()
        context = contextvars.copy_context()
        self._add(_Job(loop, future, partial(context.run, call, *arguments)))
        # As values: what a future can be made to raise is less than what a call can.
        result, error = await future
        if error is not None:
            raise error
        return result

    def _add(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            if len(self._jobs) > self._idle and self._count < self._limit:
                thread = threading.Thread(target=self._work, name="handler", daemon=True)
                try:
                    thread.start()
                    self._count += 1
                except RuntimeError:  # no more threads to be had: those that are will do
                    if not self._count:
                        self._jobs.remove(job)
                        raise
            self._changed.notify()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if job.future.cancelled():
                continue
            result, error = None, None
            try:
                result = job.call()
            except BaseException as caught:  # noqa: BLE001 sys.exit() too: it is the caller's
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
                job.loop.call_soon_threadsafe(_settle, job.future, (result, error))
            del job, result, error  # not until the next job comes

    def _next(self) -> _Job | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs, self._patience)
            self._idle -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._count -= 1
            return None


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if not future.done():
        future.set_result(outcome)
