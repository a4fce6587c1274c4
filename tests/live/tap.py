"""What exactly was rspamd asked? A relay in front of it that keeps each request as it came."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from dataclasses import dataclass
from typing import Self

PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its first line, its header fields in order, and its body."""

    line: str
    fields: tuple[tuple[str, str], ...]  # surrogateescape
    body: bytes

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.fields]

    def values(self, name: str) -> list[str]:
        """Of all fields of that name, in any case."""
        return [value for key, value in self.fields if key.lower() == name.lower()]


class Tap:
    """Relays connections to `port` of `host`, one request each."""

    def __init__(self, host: str, port: int) -> None:
        self.asked: list[Asked] = []
        tap, target = self, (host, port)

        class Relay(socketserver.BaseRequestHandler):
            request: socket.socket

            def handle(self) -> None:
                with contextlib.suppress(OSError, EOFError):
                    self.request.settimeout(PATIENCE)
                    raw, asked = _read(self.request)
                    tap.asked.append(asked)
                    with socket.create_connection(target, PATIENCE) as there:
                        there.sendall(raw)
                        while data := there.recv(65536):
                            self.request.sendall(data)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return "http://127.0.0.1:{1}".format(*self._server.server_address)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _read(sock: socket.socket) -> tuple[bytes, Asked]:
    """One request whole, and what is in it."""
    raw = bytearray()
    while (end := raw.find(b"\r\n\r\n")) < 0:
        raw += _some(sock)
    line, *lines = bytes(raw[:end]).decode("utf-8", "surrogateescape").split("\r\n")
    fields = tuple((name, value.strip()) for name, _, value in (x.partition(":") for x in lines))
    length = next(int(v) for n, v in fields if re.fullmatch("content-length", n, re.IGNORECASE))
    while len(raw) < end + 4 + length:
        raw += _some(sock)
    return bytes(raw), Asked(line, fields, bytes(raw[end + 4 :]))


def _some(sock: socket.socket) -> bytes:
    if not (data := sock.recv(65536)):
        raise EOFError
    return data
