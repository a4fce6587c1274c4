"""Where a bridge of its own listens: unix sockets, TCP with TLS, sockets from systemd.

A unix socket is 0660 with the configured group.  TCP beyond loopback wants certificates both
ways, unless told otherwise explicitly.  Who has not said hello is a stranger: there may be few
of them, for a short time, and a new one pushes out the oldest, so that none keeps a shim out.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import ssl
import stat
from collections.abc import Sequence

from bridge.config import Config, Endpoint
from bridge.config.processes import Bridge
from bridge.server import Link, Server

FIRST_FD = 3  # sd_listen_fds(3)
HELLO_WAIT = 10.0  # seconds that a stranger has for TLS and hello
LEAVING = "leaving"  # nobody is refused for that
MAX_STRANGERS = 64
MAX_LINKS = 256  # shims
BACKLOG = 128
ACCEPT_AGAIN = 0.5  # seconds, when there are no file descriptors


class Listener:
    """All sockets that one bridge listens on."""

    def __init__(
        self,
        server: Server,
        config: Config,
        *,
        insecure: bool = False,
        hello_wait: float = HELLO_WAIT,
    ) -> None:
        self._server = server
        self._table = config.bridge
        self._insecure = insecure
        self._hello_wait = hello_wait
        self._tls = _context(config.bridge)
        self._accepting: list[asyncio.Task[None]] = []
        self._strangers: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._paths: list[str] = []

    def open(self, endpoints: Sequence[Endpoint]) -> list[str]:
        """Listen; the names of what is listened on.  OSError or ValueError, with a hint."""
        sockets = _from_systemd()
        names = [f"fd {sock.fileno()}" for sock in sockets]
        for name, sock in zip(names, sockets, strict=True):
            if sock.family != socket.AF_UNIX:
                self._check(name, sock.getsockname()[0])
        for endpoint in endpoints:
            names.append(str(endpoint))
            try:
                sockets += [self._unix(endpoint.path)] if endpoint.path else self._tcp(endpoint)
            except OSError as error:
                raise OSError(error.errno, f"{endpoint}: {error.strerror or error}") from error
        if not sockets:
            raise ValueError("nothing to listen on; hint: --listen unix:PATH or tcp:HOST:PORT")
        for sock in sockets:
            sock.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(sock)))
        return names

    def _check(self, name: str, host: str) -> None:
        if self._tls is None and not self._insecure and Endpoint(host=host).far:
            raise ValueError(
                f"{name}: not beyond loopback without TLS; hint: set bridge.certificate, "
                "bridge.certificate_key and bridge.client_ca, or say --insecure"
            )

    def _unix(self, path: str) -> socket.socket:
        clear_stale(path)
        gid = _group(self._table.group)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
        self._paths.append(path)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, 0o660)
        sock.listen(BACKLOG)
        return sock

    def _tcp(self, endpoint: Endpoint) -> list[socket.socket]:
        self._check(str(endpoint), endpoint.host)
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        return [
            socket.create_server(address[:2], family=family, backlog=BACKLOG)
            for family, *_, address in found
        ]

    def renew(self, config: Config) -> None:
        """Use the certificates as they are now for new links; OSError, and nothing changed, for
        those that can't be read.  TLS itself is neither begun nor given up."""
        if self._tls is not None and config.bridge.certificate:
            self._tls = _context(config.bridge)

    # Links --------------------------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listening)
                except OSError as error:  # no file descriptors; the client is gone again
                    self._server.log("accept-failed", error=error.strerror)
                    await asyncio.sleep(ACCEPT_AGAIN)
                    continue
                if len(self._strangers) >= MAX_STRANGERS:
                    oldest = next(iter(self._strangers))
                    del self._strangers[oldest]
                    oldest.cancel("too many strangers")
                task = asyncio.create_task(self._meet(sock))
                self._strangers[task] = None
                task.add_done_callback(lambda task: self._strangers.pop(task, None))
                await asyncio.sleep(0)  # accepting one that waits already lets nobody else run

    async def _meet(self, sock: socket.socket) -> None:
        """Make a link of a stranger, in time."""
        peer = _peer(sock)
        tls = self._tls if sock.family != socket.AF_UNIX else None
        link = Link(self._server)
        why = ""
        try:
            async with asyncio.timeout(self._hello_wait):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: link, sock, ssl=tls
                )
                await link.known.wait()
                if sum(each.known.is_set() for each in self._server.links) > MAX_LINKS:
                    why = "too many links"
        except TimeoutError:
            why = "no hello in time"
        except asyncio.CancelledError as error:  # by _accept or close, which say why
            why = str(error)
        except OSError as error:  # ssl.SSLError is one
            why = error.strerror or str(error) or "the connection was lost"
        if why and why != LEAVING:
            self._server.log("link-refused", peer=peer, why=why)
        if why:
            link.abort()

    def close(self) -> None:
        """Take no new links.  A unix socket's path is free before the socket is closed: what
        is there later is another bridge's."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        for task in (*self._accepting, *self._strangers):
            task.cancel(LEAVING)


def _context(table: Bridge) -> ssl.SSLContext | None:
    """TLS with certificates both ways, None without a certificate."""
    if not table.certificate:
        return None
    if not table.client_ca:
        raise ValueError("bridge.client_ca: nothing, expected who signs the shims' certificates")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(table.certificate, table.certificate_key or None)
        context.load_verify_locations(table.client_ca)
    except OSError as error:
        why = f"bridge.certificate, certificate_key or client_ca: {error.strerror or error}"
        raise OSError(error.errno, why) from error
    # Python 3.13 refuses CAs without a key usage, which plain openssl req makes.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _group(name: str) -> int | None:
    if not name or name.isdecimal():  # that of another container has no name here
        return int(name) if name else None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"bridge.group: there is no group {name!r}") from None


def _peer(sock: socket.socket) -> str:
    """Who is at the other end, for the log."""
    with contextlib.suppress(OSError):
        if sock.family != socket.AF_UNIX:
            return str(sock.getpeername()[0])
    return "unix"


def clear_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; OSError if somebody does."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError("there is something that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise FileExistsError("somebody listens there already")


def _from_systemd() -> list[socket.socket]:
    """The sockets that systemd opened for us (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + count)]
