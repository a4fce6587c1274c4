"""Ask one of several HTTP servers, within a deadline, and bounded in all directions.

The thin client of every service: which server is asked is upstream.py's decision, what a
reply means is the caller's `parse`.  Each try has a connection, and so a name lookup, of
its own and closes it: rspamd ends the connection after each reply.  Never follows a
redirect, never uses a proxy of the environment, never logs.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import httpx

from bridge.services import zstd
from bridge.services.endpoints import Server, Tls
from bridge.services.upstream import Pool, Rules, ServerState, ServiceError, Try

T = TypeVar("T")
Header = tuple[str | bytes, str | bytes]
# Status, headers with names in lower case, body with its compression undone.
Reply = tuple[int, dict[str, str], bytes]
Parse = Callable[[int, Mapping[str, str], bytes], T]

MAX_REPLY = 64 * 2**20  # a rewritten message of rspamd's own limit, 50 MiB, and its symbols
CHUNK = 256 * 1024  # of a body on its way out; memory above the message itself
# A server may close without a word on a message over its own limit (rspamd does, over its
# max_message); below this no one sets such a limit, above it a reset is nobody's fault.
LARGE_BODY = 8 * 2**20
# A gateway speaking for a server that it could not reach (RFC 9110, 15.6.3 to 15.6.5).
GATEWAY = frozenset({502, 503, 504})
AGENT = b"filter-bridge"  # never "rspamc": rspamd then skips greylisting

BROKE = "the connection broke"
# What went wrong with a connection: the first row that fits.
FAILURES: tuple[tuple[type[Exception], str, str], ...] = (
    (httpx.ConnectTimeout, "unreachable", "no connection in time; hint: is a firewall between?"),
    (httpx.ConnectError, "unreachable", "no connection"),
    (httpx.UnsupportedProtocol, "internal", "no such protocol"),
    (httpx.LocalProtocolError, "internal", "the request can't be sent"),
    (httpx.RemoteProtocolError, "bad-reply", "this is not HTTP; hint: is the port right?"),
    (httpx.DecodingError, "bad-reply", "the reply can't be decoded"),
    (httpx.TimeoutException, "timeout", "no whole reply in time"),
    (httpx.TransportError, "unreachable", BROKE),
    (OSError, "unreachable", BROKE),  # TLS alerts come as ssl.SSLError
)
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
HINTS: tuple[tuple[type[OSError], str], ...] = (
    (ssl.SSLCertVerificationError, "hint: see ca_file and server_name"),
    (ssl.SSLError, "hint: does the server speak TLS, and want a client certificate?"),
    (ConnectionRefusedError, "hint: is it running?"),
    (FileNotFoundError, "hint: is it running, and the path right?"),
    (PermissionError, "hint: may this user open the socket?"),
)
# What httpcore and h11 say when the other side closes early; the rest is not HTTP.
_CLOSED = re.compile("disconnected|peer closed connection")
# No client of the mail server may end a header line: controls become blanks.
_CONTROLS = bytes.maketrans(bytes([*range(9), *range(10, 32), 127]), b" " * 32)


class Upstreams:
    """The servers of one service.

    servers: see `Server.parse`; token: sent as bearer token; connect_timeout: seconds, part
    of a try's timeout; max_reply: bytes, also after decompression; max_body: bytes, None
    for no limit of the service's own; on_change: told when a server goes down or comes
    back; transport: makes what carries one try, for tests.  ValueError for a wrong value.
    """

    def __init__(
        self,
        name: str,
        servers: Sequence[str],
        *,
        rules: Rules | None = None,
        tls: Tls | None = None,
        token: str = "",
        connect_timeout: float = 5.0,
        max_reply: int = MAX_REPLY,
        max_body: int | None = None,
        on_change: Callable[[ServerState], None] | None = None,
        transport: Callable[[Server], httpx.AsyncBaseTransport] | None = None,
    ) -> None:
        tls = tls or Tls()
        self.name = name
        self.servers = [Server.parse(server) for server in servers]
        self.pool = Pool(name, servers, rules or Rules(), on_change=on_change)
        self._max_reply = max_reply
        self._max_body = max_body
        self._transport = transport or self._new_transport
        self._extensions: dict[str, object] = {"timeout": {"connect": connect_timeout}}
        if tls.server_name:
            self._extensions["sni_hostname"] = tls.server_name
        self._wants = "refuse cert_file" if tls.cert_file else "want a client certificate"
        https = any(map(self._is_https, range(len(servers))))
        self._ssl = tls.context() if https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        host = tls.server_name and tls.server_name.encode("idna")
        self._heads = [_head(server, host or None, token) for server in self.servers]

    async def request(
        self,
        path: str,
        headers: Sequence[Header],
        body: bytes,
        *,
        deadline: float,
        parse: Parse[T],
        method: str = "POST",
    ) -> T:
        """Ask, and return what `parse` makes of the reply; ServiceError if none was to be had.

        headers: str values may hold surrogates, controls are blanked; deadline: by the
        loop's clock.  `parse` raises ServiceError for a reply that is none: with retry the
        server counts as failing and another one is asked.  Its message is put behind the
        names of service and server.  It never sees 502 to 504.
        """
        if self._max_body is not None and len(body) > self._max_body:
            why = f"{self.name}: message of {len(body)} bytes, limit {self._max_body}"
            raise ServiceError("too-large", why, retry=False)
        clock = asyncio.get_running_loop().time
        request = _Outgoing(method, path, _encode(headers), body)
        plan = self.pool.plan(deadline)
        try:
            while attempt := plan.next(clock()):
                try:
                    if attempt.pause:
                        await asyncio.sleep(attempt.pause)
                    reply = await self._try(attempt.index, request, attempt.timeout)
                    result = self._understand(attempt, reply, parse)
                except ServiceError as error:
                    plan.failed(error, clock())
                else:
                    plan.succeeded(clock())
                    return result
        finally:
            plan.abandoned()  # if cancelled, or after what nobody thought of
        raise plan.error or ServiceError("internal", f"{self.name}: no server was asked")

    async def ping(
        self, path: str = "/ping", *, timeout: float = 2.0, parse: Parse[None] | None = None
    ) -> list[tuple[str, str | None]]:
        """Each server, as configured, and what is wrong with it, None if nothing.

        Asks all at once, past the breaker and without changing it.  parse: raises
        ServiceError for a wrong reply; by default anything but 200 is one.
        """
        ask = _Outgoing("GET", path, [], b"")

        async def one(index: int) -> str | None:
            try:
                reply = await self._try(index, ask, timeout)
            except ServiceError as error:
                return str(error)
            try:
                (parse or _expect_200)(*reply)
            except ServiceError as error:
                return str(self._named(index, error))
            return None

        wrong = await asyncio.gather(*(one(index) for index in range(len(self.servers))))
        return [(server.text, why) for server, why in zip(self.servers, wrong, strict=True)]

    def states(self) -> list[ServerState]:
        """What is known of each server; within a running loop."""
        return self.pool.states(asyncio.get_running_loop().time())

    def _new_transport(self, server: Server) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._ssl,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
            uds=server.uds or None,
        )

    def _understand(self, attempt: Try, reply: Reply, parse: Parse[T]) -> T:
        status, headers, body = reply
        if status in GATEWAY:
            raise self._error(attempt.index, "http-error", f"status {status}")
        try:
            return parse(status, headers, body)
        except ServiceError as error:
            raise self._named(attempt.index, error) from error
        except Exception as error:  # a bug in `parse` costs a verdict, never the request
            why = f"reply not understood: {type(error).__name__}"
            raise self._error(attempt.index, "internal", why, retry=False) from error

    async def _try(self, index: int, request: _Outgoing, timeout: float) -> Reply:
        """One exchange with one server; ServiceError for all that goes wrong."""
        try:
            async with asyncio.timeout(timeout):  # httpx's own start anew with each read
                return await self._exchange(index, request)
        except ServiceError:
            raise
        except TimeoutError as error:
            why = f"no whole reply in {timeout:.3g} s; hint: is it overloaded or stuck?"
            raise self._error(index, "timeout", why) from error
        except Exception as error:  # an oddity of a library costs a verdict, never the task
            kind, why = _explain(error)
            blame = True
            if len(request.body) > LARGE_BODY and not isinstance(error, NOT_CONNECTED):
                why += f"; hint: is this message of {len(request.body)} bytes over its limit?"
                blame = False
            elif why.startswith(BROKE) and self._is_https(index):  # TLS 1.3 tells too late
                why += f"; hint: does it {self._wants}?"
            raise self._error(index, kind, why, retry=kind != "internal", blame=blame) from error

    async def _exchange(self, index: int, request: _Outgoing) -> Reply:
        server = self.servers[index]
        streams: list[AsyncNetworkStream] = []
        message = httpx.Request(
            request.method,
            _url(server.base, request.path),
            headers=request.head(self._heads[index]),
            stream=_Body(request.body),
            extensions=self._extensions | {"trace": functools.partial(_note, streams)}
            if self._is_https(index)
            else self._extensions,
        )
        try:
            async with self._transport(server) as transport:
                response = await transport.handle_async_request(message)
                try:
                    body = await self._read(index, response)
                finally:
                    await response.aclose()
        finally:
            for stream in streams:
                await stream.aclose()
        headers: dict[str, str] = {}
        for raw_name, value in response.headers.raw:
            name = raw_name.decode("latin-1").lower()
            text = value.decode("latin-1")
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
        return response.status_code, headers, self._decode(index, headers, body)

    async def _read(self, index: int, response: httpx.Response) -> bytes:
        too_long = f"reply over {self._max_reply} bytes"
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_reply:
            raise self._error(index, "bad-reply", too_long)
        body = bytearray()
        async for chunk in response.aiter_raw():  # raw: a decoder without a bound is none
            body += chunk
            if len(body) > self._max_reply:
                raise self._error(index, "bad-reply", too_long)
        return bytes(body)

    def _decode(self, index: int, headers: dict[str, str], body: bytes) -> bytes:
        """Undo the compression, which rspamd announces under both names (3.4 only under its
        own), and take the announcement away."""
        names = {headers.pop("compression", ""), headers.pop("content-encoding", "")}
        names = {name.strip().lower() for name in names} - {"", "identity"}
        if not names or not body:
            return body
        if names != {"zstd"}:
            why = f"reply encoded as {' and '.join(sorted(names))[:60]!r}, which was not asked for"
            raise self._error(index, "bad-reply", why)
        try:
            return zstd.decompress(body, self._max_reply)
        except ValueError as error:
            raise self._error(index, "bad-reply", str(error)) from error

    def _error(
        self, index: int, kind: str, why: str, *, retry: bool = True, blame: bool = True
    ) -> ServiceError:
        where = f"{self.name}: {self.servers[index].text}: {why}"
        return ServiceError(kind, where, retry=retry, blame=blame)

    def _is_https(self, index: int) -> bool:
        return self.servers[index].base.startswith("https:")

    def _named(self, index: int, error: ServiceError) -> ServiceError:
        return self._error(index, error.kind, str(error), retry=error.retry, blame=error.blame)


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A request, the same for each server."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def head(self, own: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The server's own fields, where the caller did not set them, and the caller's."""
        given = {name.lower() for name, _ in self.headers}
        length = (b"Content-Length", b"%d" % len(self.body))
        mine = [field for field in own.items() if field[0].lower() not in given]
        return [*mine, length, *self.headers]


class _Body(httpx.AsyncByteStream):
    """A body in pieces: asyncio copies what the socket does not take at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), CHUNK):
            yield self._body[start : start + CHUNK]


class AsyncNetworkStream(Protocol):
    """As httpcore's."""

    async def aclose(self) -> None: ...


async def _note(streams: list[AsyncNetworkStream], event: str, info: Mapping[str, Any]) -> None:
    """Keeps the connection below TLS: httpcore 1.0 forgets it, open, when the handshake is
    cancelled (AnyIOStream.start_tls closes it only after an Exception)."""
    if event == "connection.connect_tcp.complete":
        streams.append(info["return_value"])


def _head(server: Server, host: bytes | None, token: str) -> dict[bytes, bytes]:
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise ValueError("token: expected printable ASCII without blanks")
    fields = {
        b"Host": host or httpx.URL(server.base).netloc,
        b"User-Agent": AGENT,
        b"Accept-Encoding": b"identity",
        b"Connection": b"close",
    }
    if token:
        fields[b"Authorization"] = b"Bearer " + token.encode("ascii")
    return fields


@functools.lru_cache(maxsize=256)
def _url(base: str, path: str) -> httpx.URL:
    return httpx.URL(base + path)


def _encode(headers: Sequence[Header]) -> list[tuple[bytes, bytes]]:
    encoded = []
    for name, value in headers:
        if isinstance(name, str):
            name = name.encode("ascii")
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogateescape")
        encoded.append((name, value.translate(_CONTROLS).strip()))
    return encoded


def _expect_200(status: int, headers: Mapping[str, str], body: bytes) -> None:
    if status != 200:
        raise ServiceError("http-error", f"status {status}")


def _explain(error: Exception) -> tuple[str, str]:
    """The kind and the words for what a transport raised."""
    known = next((row for row in FAILURES if isinstance(error, row[0])), None)
    if not known:
        return "internal", f"{type(error).__name__}: {error}"
    _, kind, why = known
    if isinstance(error, httpx.RemoteProtocolError) and _CLOSED.search(str(error)):
        return "unreachable", "the connection was closed without a whole reply"
    cause = _cause(error)
    reason = (isinstance(cause, OSError) and cause.strerror) or str(cause)
    hint = next((hint for kind_of, hint in HINTS if isinstance(cause, kind_of)), "")
    return kind, "; ".join(part for part in (f"{why} ({reason})" if reason else why, hint) if part)


def _cause(error: BaseException) -> BaseException:
    """The operating system's or OpenSSL's own error below what libraries made of it."""
    found = seen = error
    for _ in range(10):
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
        elif below := seen.__cause__ or seen.__context__:
            seen = below
        else:
            break
        if isinstance(seen, OSError) and str(seen):
            found = seen
    return found
