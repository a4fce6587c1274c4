"""What systemd is told of a bridge: ready, alive, stopping (sd_notify(3)).

Without systemd, or another that sets NOTIFY_SOCKET, nobody is told anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Self

BEATS = 2  # signs of life in the time that the watchdog gives (sd_watchdog_enabled(3))


class Notify:
    """Says READY when it is entered, and gives signs of life until it is left."""

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.say("READY=1")
        if usec := int(os.environ.get("WATCHDOG_USEC", "0")):
            self._beating = asyncio.create_task(self._beat(usec / 1e6 / BEATS))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beating is not None:
            self._beating.cancel()

    def say(self, text: str) -> None:
        """Tell the service manager."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(text.encode(), self._address)
            except OSError as error:
                self._log("notify-failed", error=error.strerror)

    async def _beat(self, every: float) -> None:
        while True:
            self.say("WATCHDOG=1")
            await asyncio.sleep(every)
