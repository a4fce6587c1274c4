"""How a bridge process is run: configuration and services into a server, signals, its end.

As the shim's child it has one link, ignores the signals that end a service, and leaves when
the link closes, even when its loop is blocked.  As a service of its own it listens, and
drains when it is told to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge import log
from bridge.config import Config, ConfigError, Endpoint, load
from bridge.control import Control, Said
from bridge.exporter import Exporter
from bridge.filter import Filter
from bridge.listen import Listener
from bridge.metrics import Metrics, ServerUse
from bridge.notify import Notify
from bridge.policy import COUNTED, Policy
from bridge.registration import changes
from bridge.release import release
from bridge.server import Server
from bridge.services.build import Services, build
from bridge.services.upstream import ServerState

OOM_SCORE = 500  # of 1,000
PR_SET_PDEATHSIG = 1  # prctl(2)
APPLICATION_STOP = 0.2  # seconds for its stop hooks: the shim kills after half a second
OLD_SERVICES = 60.0  # seconds that those of an old configuration live on


def load_application(name: str) -> Filter:
    """The filter named `module:attribute`; ValueError with a hint if there is none."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"application {name!r}: expected MODULE:NAME, like myfilter:app")
    sys.path.insert(0, os.getcwd())
    try:
        app = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"application {name!r}: {error}; hint: is PYTHONPATH right?") from error
    if not isinstance(app, Filter):
        raise ValueError(f"application {name!r}: it is no bridge.Filter")
    return app


class Logger:
    """Writes log lines to stderr."""

    def __init__(self) -> None:
        self._stderr = log.Stderr()

    def __call__(self, event: str, **values: object) -> None:
        self._stderr.write(log.record(event, **values), time.monotonic())

    def on_change(self, service: str, state: ServerState) -> None:
        """A server of a service went down or came back."""
        self(f"{service}-{state.state}", server=state.server, error=state.last_error)


@dataclass(frozen=True, slots=True)
class Process:
    """How one bridge process was started."""

    file: str
    application: str = ""  # module:attribute, "" for the shipped policy
    profile: str | None = None


class Bridge:
    """One bridge process: its configuration, which may change, and its server."""

    def __init__(self, process: Process, config: Config) -> None:
        self._process = process
        self._config = config
        self._leaving = asyncio.Event()
        self._listener: Listener | None = None  # of a service
        self.log = Logger()
        self._metrics = Metrics(release())
        self._metrics.reloaded = time.time()
        self._services = build(config, self.log.on_change, self._metrics.asked)
        app = load_application(process.application) if process.application else self._policy()
        table = config.bridge
        self.server = Server(
            app,
            slots=table.slots,
            bytes=table.bytes,
            release=release(),
            log=self.log,
            metrics=self._metrics,
        )
        # What is there after start-up stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    def _policy(self) -> Policy:
        self._metrics.begin(COUNTED)
        return Policy(self._config, self._services, self.log, self._metrics.count)

    async def serve_child(self, fd: int) -> None:
        """Serve the shim at the other end of the socket `fd`, until it closes."""
        async with self._control(), self._exporter():
            served = asyncio.create_task(self.server.serve_link(socket.socket(fileno=fd)))
            leaving = asyncio.create_task(self._leaving.wait())
            await asyncio.wait((served, leaving), return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not served.done():
                await self.server.drain(self._config.bridge.drain)

    async def serve_links(self, endpoints: Sequence[Endpoint], *, insecure: bool) -> None:
        """Listen until told to leave, then drain.  OSError if it can't listen."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._listener = Listener(self.server, self._config, insecure=insecure)
        names = self._listener.open(endpoints)
        async with self._control(), self._exporter(), Notify(self.log) as notify:
            self.log("listening", on=", ".join(names), release=release())
            await self._leaving.wait()
            notify.say("STOPPING=1")
            self._listener.close()
            self.log("draining", links=len(self.server.links))
            await self.server.drain(self._config.bridge.drain)

    def _control(self) -> Control:
        commands = {"reload": self.reload, "restart": self.restart}
        return Control(self._config.bridge.run_dir, commands, self.log)

    def _exporter(self) -> Exporter:
        def text() -> str:
            links = (each.use for each in self.server.links)
            return self._metrics.text(links, self._servers())

        return Exporter(self._config.bridge.metrics, text, self.log)

    def _servers(self) -> Iterator[ServerUse]:
        """Those whom the shipped policy asks; whom an application does, it knows itself."""
        for service in () if self._process.application else self._services.upstreams:
            for server in service.states():
                yield ServerUse(service.name, server.server, server.state == "up")

    def _on_hangup(self) -> None:
        for line in self.reload()[1]:
            self.log("reload", said=line)

    def restart(self) -> Said:
        """Drain and leave; whoever started us starts the new version."""
        asyncio.get_running_loop().call_later(0.05, self._leaving.set)
        return True, ["draining; the next bridge runs what is installed now"]

    def reload(self) -> Said:
        """Take up the configuration file as it is now, or keep the old one."""
        if self._process.application:
            return False, ["an application is reloaded by: filter-bridge reload --restart"]
        try:
            new = load(self._process.file, profile=self._process.profile)
            services = build(new, self.log.on_change, self._metrics.asked)
            policy = Policy(new, services, self.log, self._metrics.count)
            if self._listener is not None:
                self._listener.renew(new)
        except ConfigError as error:
            return False, [*error.problems, "the old configuration stays"]
        except (ValueError, OSError) as error:
            return False, [f"{self._process.file}: {error}", "the old configuration stays"]
        old, self._services = self._services, services
        # What is under way goes on with the old services; their last lookups end by themselves.
        asyncio.get_running_loop().call_later(OLD_SERVICES, _let_go, old)
        told = [f"{key}: takes a restart of {who}" for key, who in changes(self._config, new)]
        self._config = new
        self._metrics.reloaded = time.time()
        self.server.app = policy
        self.server.grant(new.bridge.slots, new.bridge.bytes)
        return True, [*new.warnings, *told, "reloaded"]

    async def start(self) -> None:
        """Let the filter begin; whatever a start hook of an application raises."""
        await self.server.app.start()

    async def aclose(self) -> None:
        """Give up what is under way."""
        try:
            async with asyncio.timeout(APPLICATION_STOP):
                await self.server.app.stop()
        except Exception as error:  # noqa: BLE001 an application's hook: we leave all the same
            self.log("stop-failed", error=log.folded(error))
        await _close(self._services)


def as_child(process: Process, config: Config, fd: int) -> int:
    """Serve the shim at the other end of the socket `fd`; the exit status."""
    _harden()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # Linux; elsewhere the thread will do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):  # proc(5): where memory ends we go, and not the shim
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}\n")
    os.set_blocking(2, False)
    threading.Thread(target=_leave_with, args=(fd,), daemon=True).start()
    asyncio.run(_child(process, config, fd))
    os._exit(0)  # no thread of a handler may hold us up


async def _child(process: Process, config: Config, fd: int) -> None:
    bridge = Bridge(process, config)
    await bridge.start()
    await bridge.serve_child(fd)
    await bridge.aclose()


def as_service(
    process: Process, config: Config, endpoints: Sequence[Endpoint], *, insecure: bool
) -> int:
    """Listen for shims; the exit status."""
    _harden()
    try:
        asyncio.run(_service(process, config, endpoints, insecure=insecure))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        print(f"filter-bridge: {why or error}", file=sys.stderr)
        return 1
    sys.stderr.flush()
    os._exit(0)


async def _service(
    process: Process, config: Config, endpoints: Sequence[Endpoint], *, insecure: bool
) -> None:
    bridge = Bridge(process, config)
    await bridge.start()
    await bridge.serve_links(endpoints, insecure=insecure)
    await bridge.aclose()


def _let_go(services: Services) -> None:
    task = asyncio.ensure_future(_close(services))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()  # or the collector might take them


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
