"""How a bridge process is run: configuration and services into a server, signals, its end.

As the shim's child it has one link, ignores the signals that end a service, and leaves when
the link closes, even when its loop is blocked.  As a service of its own it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from importlib import metadata

from bridge import log
from bridge.config import Config
from bridge.filter import Filter
from bridge.policy import Policy
from bridge.server import Server
from bridge.services.build import Services, build
from bridge.services.upstream import ServerState

PR_SET_PDEATHSIG = 1  # prctl(2)


def release() -> str:
    """The version that is running."""
    try:
        return metadata.version("opensmtpd-bridge")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


class Logger:
    """Writes log lines to stderr."""

    def __init__(self) -> None:
        self._stderr = log.Stderr()

    def __call__(self, event: str, **values: object) -> None:
        self._stderr.write(log.record(event, **values), time.monotonic())

    def on_change(self, service: str, state: ServerState) -> None:
        """A server of a service went down or came back."""
        self(f"{service}-{state.state}", server=state.server, error=state.last_error)


def as_child(config: Config, fd: int) -> int:
    """Serve the shim at the other end of the socket `fd`; the exit status."""
    _harden()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # Linux; elsewhere the thread will do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_blocking(2, False)
    threading.Thread(target=_leave_with, args=(fd,), daemon=True).start()
    asyncio.run(_serve(config, socket.socket(fileno=fd)))
    os._exit(0)  # no thread of a handler may hold us up


async def _serve(config: Config, sock: socket.socket) -> None:
    logger = Logger()
    services = build(config, logger.on_change)
    server = _server(config, Policy(config, services, logger), logger)
    await server.serve_link(sock)
    await _close(services)


def _server(config: Config, app: Filter, logger: Logger) -> Server:
    # What is there after start-up stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    table = config.bridge
    return Server(app, slots=table.slots, bytes=table.bytes, release=release(), log=logger)


async def _close(services: Services) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await services.aclose()


def _harden() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds mail
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    # A print() of somebody's must not meet anything that matters.
    sys.stdout = sys.stderr


def _leave_with(fd: int) -> None:
    """End this process when the other end of `fd` is closed, even if the loop is blocked."""
    poll = select.poll()
    poll.register(fd, 0)  # no more than POLLHUP and POLLERR
    while not poll.poll():
        pass
    time.sleep(0.3)  # for the loop to leave by itself, and for last words
    os._exit(0)
