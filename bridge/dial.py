"""How the shim reaches a sidecar: a unix socket, or TCP, with TLS where a CA is set.

Never waits: a connection may still be on its way when it is returned, and names are looked
up by a thread that does nothing else, since getaddrinfo(3) has no deadline.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bridge.config import Endpoint

if TYPE_CHECKING:
    import ssl

    from bridge.config.processes import Shim

Secure = Callable[[socket.socket], "ssl.SSLSocket"]
Found = list[tuple[Any, ...]] | OSError  # what getaddrinfo gave


class Dialer:
    """Makes connections to sidecars."""

    def __init__(self, table: Shim) -> None:
        self._table = table
        self._found: dict[Endpoint, Found] = {}  # by the thread
        self._asked: set[Endpoint] = set()  # names that are being looked up
        self._tries: Counter[Endpoint] = Counter()

    def __call__(self, endpoint: Endpoint) -> socket.socket:
        """A non-blocking stream that is connected or on its way; OSError if it can't be had,
        BlockingIOError while its name is being looked up."""
        if endpoint.path:
            return _begin(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), endpoint.path)
        found = self._resolve(endpoint)
        # A name may have several addresses, of which one works.
        family, kind, proto, _, address = found[self._tries[endpoint] % len(found)]
        self._tries[endpoint] += 1
        return _begin(socket.socket(family, kind, proto), address)

    def secure(self, endpoint: Endpoint) -> Secure | None:
        """What makes TLS of a connected stream to the endpoint, None where there is none.
        OSError for certificates that can't be read."""
        if not self._table.ca_file or endpoint.path:
            return None
        try:
            context = self._context()
        except OSError as error:
            why = f"shim.ca_file, client_certificate or client_key: {error.strerror or error}"
            raise OSError(error.errno, why) from error
        name = self._table.server_name or endpoint.host

        def wrap(sock: socket.socket) -> ssl.SSLSocket:
            return context.wrap_socket(sock, do_handshake_on_connect=False, server_hostname=name)

        return wrap

    def _context(self) -> ssl.SSLContext:
        """Made for each connection: certificates are replaced while smtpd runs."""
        import ssl  # 2 MiB that most shims have no use for

        context = ssl.create_default_context(cafile=self._table.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python 3.13 refuses CAs without a key usage, which plain openssl req makes.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        if self._table.client_certificate:
            context.load_cert_chain(self._table.client_certificate, self._table.client_key or None)
        return context

    def _resolve(self, endpoint: Endpoint) -> list[tuple[Any, ...]]:
        with contextlib.suppress(socket.gaierror):
            return socket.getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        # What was found is used once: a container's address may be another one next time.
        found = self._found.pop(endpoint, None)
        if isinstance(found, OSError):
            raise found
        if found:
            return found
        if endpoint not in self._asked:
            self._asked.add(endpoint)
            threading.Thread(target=self._look_up, args=(endpoint,), daemon=True).start()
        raise BlockingIOError

    def _look_up(self, endpoint: Endpoint) -> None:
        try:
            found: Found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        except OSError as error:
            found = error
        self._found[endpoint] = found
        self._asked.discard(endpoint)


def _begin(sock: socket.socket, address: Any) -> socket.socket:
    sock.setblocking(False)
    try:
        with contextlib.suppress(BlockingIOError):  # it will be writable, or fail
            sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock
