"""How does a mail client talk to the server under test, byte for byte?

`Client` is a blocking SMTP client that sends exactly what it is given: no line ending is
normalised and nothing is encoded behind the caller's back. It never retries and never guesses:
a reply is what the server sent, and a server that closes raises `Closed`.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

# RFC 5321 4.5.3.2 gives servers minutes; a test that waits half a minute has found a hang.
PATIENCE = 30.0
# No reply of smtpd comes near this; a server that sends more is broken.
LONGEST_REPLY = 1 << 20


class Closed(EOFError):
    """The server ended the connection where a reply was due."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole SMTP reply: `250-a`, `250 b` is Reply(250, ("a", "b"))."""

    code: int
    lines: tuple[str, ...]  # surrogateescape, without code and separator

    @property
    def ok(self) -> bool:
        return 200 <= self.code < 400

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def enhanced(self) -> str:
        """The enhanced status code of RFC 3463, or the empty string."""
        found = re.match(r"[245]\.\d{1,3}\.\d{1,3}(?= |$)", self.lines[0])
        return found.group() if found else ""

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


def stuffed(message: bytes) -> bytes:
    """The message as DATA carries it (RFC 5321 4.5.2), with its final dot.

    Nothing else changes: a bare LF or CR stays one. A message without CRLF at its end gets one.
    """
    body = re.sub(rb"(?m)^\.", b"..", message)
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"
    return body + b".\r\n"


class Client:
    """One connection to an SMTP server.

    `source` is the address to come from, any of 127.0.0.0/8 or ::1. With `greet=False` the
    banner is left unread: a server may keep it back for long. For mail through smtpd's own
    socket see `OpenSMTPD.sendmail`.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        source: str | None = None,
        helo: str = "client.example",
        timeout: float = PATIENCE,
        greet: bool = True,
    ) -> None:
        self.helo = helo
        self.extensions: tuple[str, ...] = ()  # what the last EHLO was told
        self.banner: Reply | None = None
        self._buffer = bytearray()
        self._sock: socket.socket = socket.create_connection(
            (address, port), timeout, (source, 0) if source else None
        )
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if greet:
            try:
                self.banner = self.read()
            except BaseException:
                self._sock.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Bytes.

    @property
    def local(self) -> str:
        """Our own end as smtpd's reports write it: `127.0.0.1:36414` or `[::1]:42840`."""
        host, port = self._sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def tls(self) -> str | None:
        """The TLS version in use, or None."""
        return self._sock.version() if isinstance(self._sock, ssl.SSLSocket) else None

    def timeout(self, seconds: float) -> None:
        """How long every later read and write may take."""
        self._sock.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Send these bytes, no more and no less."""
        self._sock.sendall(data)

    def read(self) -> Reply:
        """Read one reply. Raises Closed at its end, TimeoutError, ValueError for other bytes."""
        lines: list[str] = []
        while True:
            line = self._line()
            found = re.fullmatch(rb"([2-5]\d\d)(?:([ -])(.*))?", line, re.S)
            if not found:
                raise ValueError(f"not a reply line: {line!r}")
            lines.append((found[3] or b"").decode("utf-8", "surrogateescape"))
            if found[2] != b"-":
                return Reply(int(found[1]), tuple(lines))

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > LONGEST_REPLY:
                raise ValueError("a reply line without end")
            try:
                chunk = self._sock.recv(65536)
            except ConnectionResetError as error:
                raise Closed("connection reset by the server") from error
            if not chunk:
                raise Closed(f"closed by the server, unfinished: {bytes(self._buffer)!r}")
            self._buffer += chunk
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line.removesuffix(b"\r")

    def closed_by_server(self, within: float = PATIENCE) -> bool:
        """Whether the server ends the connection, sending nothing more, within that time."""
        before = self._sock.gettimeout()
        self._sock.settimeout(within)
        try:
            return not self._buffer and not self._sock.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        finally:
            self._sock.settimeout(before)

    def close(self) -> None:
        """Close the connection without a word (FIN)."""
        self._sock.close()

    def abort(self) -> None:
        """Close the connection with a reset, as a client does that died."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    # Commands.

    def cmd(self, line: str | bytes) -> Reply:
        """Send one line, to which CRLF is added, and read the reply."""
        raw = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        self.send(raw + b"\r\n")
        return self.read()

    def ehlo(self, name: str | None = None) -> Reply:
        reply = self.cmd(f"EHLO {name or self.helo}")
        if reply.ok:
            self.extensions = reply.lines[1:]
        return reply

    def starttls(self, ca_file: str | None = None, name: str | None = None) -> Reply:
        """STARTTLS; without `ca_file` any certificate is good. EHLO has to follow."""
        reply = self.cmd("STARTTLS")
        if reply.ok:
            self.handshake(ca_file, name)
        return reply

    def handshake(self, ca_file: str | None = None, name: str | None = None) -> None:
        """Begin TLS at once, as on port 465 (connect with greet=False)."""
        context = ssl.create_default_context(cafile=ca_file)
        if ca_file is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._sock = context.wrap_socket(self._sock, server_hostname=name or self.helo)

    def auth_plain(self, user: str, password: str) -> Reply:
        secret = f"\0{user}\0{password}".encode()
        return self.cmd(b"AUTH PLAIN " + base64.b64encode(secret))

    def auth_login(self, user: str, password: str) -> Reply:
        reply = self.cmd("AUTH LOGIN")
        for word in (user, password):
            if reply.code != 334:
                break
            reply = self.cmd(base64.b64encode(word.encode()))
        return reply

    def mail(self, sender: str, parameters: str = "") -> Reply:
        return self.cmd(f"MAIL FROM:<{sender}> {parameters}".rstrip())

    def rcpt(self, recipient: str, parameters: str = "") -> Reply:
        return self.cmd(f"RCPT TO:<{recipient}> {parameters}".rstrip())

    def data(self) -> Reply:
        return self.cmd("DATA")

    def message(self, message: bytes) -> Reply:
        """After DATA's 354: send the message, dot-stuffed and ended, and read the reply."""
        self.send(stuffed(message))
        return self.read()

    def quit(self) -> Reply:
        reply = self.cmd("QUIT")
        self.close()
        return reply

    def begin(self, sender: str, recipients: Iterable[str]) -> Reply:
        """EHLO if there was none, MAIL, every RCPT, DATA.

        The 354, or the reply that ended it: a refused MAIL or DATA, or the last refused RCPT
        when all were refused.
        """
        if not self.extensions:
            reply = self.ehlo()
            if not reply.ok:
                return reply
        reply = self.mail(sender)
        if not reply.ok:
            return reply
        replies = [self.rcpt(recipient) for recipient in recipients]
        if not any(reply.ok for reply in replies):
            return replies[-1]
        return self.data()

    def deliver(self, sender: str, recipients: Iterable[str], message: bytes) -> Reply:
        """One whole transaction; the reply that decided it. The connection stays open."""
        reply = self.begin(sender, recipients)
        return self.message(message) if reply.code == 354 else reply
