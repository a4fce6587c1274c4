"""What rspamd is told of a message, and the client that asks it (/checkv2).

The request's header fields are made from a session alone; what a reply means is
rspamd_verdict.py's question, which server is asked upstream.py's.  Never logs, and lets no
client of the mail server name a field of the request or end one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from ipaddress import ip_address

from bridge import edits
from bridge.services import zstd
from bridge.services.http import Upstreams
from bridge.services.rspamd_reply import Reply, parse_reply
from bridge.services.rspamd_verdict import Translation, translate
from bridge.services.upstream import ServiceError
from bridge.smtpd.session import Session

__all__ = [
    "Reply",
    "Request",
    "Rspamd",
    "Translation",
    "parse_ping",
    "parse_reply",
    "request_headers",
    "translate",
]

# rspamd takes 80 KiB of header and resets the connection above (contrib/http-parser).
RCPT_BUDGET = 60 * 1024
MAX_FIELD = 1024  # smtpd's command lines are shorter: 2,047 bytes with two addresses at most
MAX_SIZE = 50 * 2**20  # rspamd's max_message; above it closes without a reply
# milter: fields folded with LF; body_block: a rewritten body comes along (protocol.c).
FLAGS = "milter,body_block"

# What the fields below say, and what would make rspamd read a local file, take us for its own
# controller client (and skip checks), or break the request (protocol.c, lua_util.lua).
FORBIDDEN = re.compile(
    "ip|helo|hostname|from|rcpt|deliver-to|user|queue-id|mta-name|tls-cipher|tls-version|flags|"
    "user-agent|settings-id|log-tag|file|path|shm.*|password|key|milter|raw|dkimprivatekey|"
    "message-length|content-.*|transfer-encoding|compression|dictionary|accept.*|host|"
    "connection|expect|te|trailer|upgrade|authorization",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110 5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_BYTE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
# vis(3) with VIS_SAFE and VIS_WHITE, as smtpd writes the user's name.
_VIS = re.compile(rb"\\(?:([0-7]{3})|(M?)(?:\^(.)|-(.))|(\\))", re.DOTALL)


def _agent() -> str:
    try:
        return f"opensmtpd-bridge/{metadata.version('opensmtpd-bridge')}"
    except metadata.PackageNotFoundError:  # run from a checkout
        return "opensmtpd-bridge"


@dataclass(frozen=True, slots=True)
class Request:
    """How rspamd is asked.

    mta_name: our name, by default the one smtpd greets with; settings_id: of a rule in
    rspamd's settings; local_ip: what to send as IP for smtpd's own socket, "" for none
    ("127.0.0.1" makes rspamd sign the mail, sign_local, and skip checks); log_tag: let rspamd
    log under our session id (3.10); extra: more header fields.  ValueError for wrong values.
    """

    mta_name: str = ""
    settings_id: str = ""
    local_ip: str = ""
    log_tag: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    agent: str = field(default_factory=_agent)

    def __post_init__(self) -> None:
        if self.local_ip:
            ip_address(self.local_ip)
        for name, value in self.extra.items():
            if not _TOKEN.fullmatch(name) or FORBIDDEN.fullmatch(name):
                raise ValueError(f"header {name!a}: can't be set; expected a name like X-Cluster")
            if _CONTROL.search(value):
                raise ValueError(f"value of header {name}: expected one line")


def request_headers(
    session: Session, options: Request | None = None, *, hostname: str = ""
) -> tuple[list[tuple[str, str]], int]:
    """The header fields of a request, and how many recipients did not fit.

    hostname: the client's forward-confirmed name; any other, and even an empty one, would
    keep rspamd from looking itself.
    """
    options = options or Request()
    transaction = session.transaction
    sender = transaction.sender if transaction else None
    recipients = transaction.recipients if transaction else []
    version, cipher, _ = session.tls_parts
    fields = [
        ("IP", _ip(session, options.local_ip)),
        ("Helo", session.helo),
        ("Hostname", "" if hostname.strip("<>") == "unknown" else hostname),
        ("From", "" if sender is None else sender or "<>"),
        # An empty User counts as authenticated (protocol.c).
        ("User", unvis(session.user)),
        ("Queue-Id", transaction.msgid if transaction else ""),
        ("MTA-Name", options.mta_name or session.hostname),
        ("TLS-Cipher", cipher),
        ("TLS-Version", version),
        ("Deliver-To", recipients[0] if len(recipients) == 1 else ""),
        ("Settings-ID", options.settings_id),
        ("Log-Tag", session.id if options.log_tag else ""),
        ("Flags", FLAGS),
        ("User-Agent", options.agent),
        *options.extra.items(),
    ]
    found = [(name, clean) for name, value in fields if (clean := _clean(value))]
    left = RCPT_BUDGET
    told = [value for recipient in recipients if (value := _clean(recipient))]
    for count, value in enumerate(told):
        left -= len(f"Rcpt: {value}\r\n".encode("utf-8", "surrogateescape"))
        if left < 0:
            return found, len(told) - count
        found.append(("Rcpt", value))
    return found, 0


def unvis(text: str) -> str:
    """Undo vis(3), in which smtpd writes the user's name: `zo\\M-C\\M-+` is zoë."""

    def byte(match: re.Match[bytes]) -> bytes:
        octal, meta, control, plain, backslash = match.groups()
        if backslash:
            return b"\\"
        if octal:
            return bytes([int(octal, 8) & 255])
        if not control and not meta:  # `\-` is nothing that vis writes
            return match[0]
        code = (control or plain)[0]
        code = code if plain else 127 if code == 63 else code & 31
        return bytes([code | 128 if meta else code])

    raw = _NO_BYTE.sub("?", text).encode("utf-8", "surrogateescape")
    return _VIS.sub(byte, raw).decode("utf-8", "surrogateescape")


def _ip(session: Session, local_ip: str) -> str:
    if session.local:
        return local_ip
    address = session.address
    return str(address).partition("%")[0] if address else ""


def _clean(value: str) -> str:
    """One header field's worth, whatever a client sent."""
    return _NO_BYTE.sub("?", _CONTROL.sub("", value[:MAX_FIELD])).strip()


def parse_ping(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """ServiceError unless this is an rspamd that scans: its milter port answers /ping too."""
    if "milter" in headers.get("server", ""):
        hint = "this is rspamd's milter port (11332); hint: the normal worker's is 11333"
        raise ServiceError("bad-reply", hint)
    if status != 200 or body.strip() != b"pong":
        raise ServiceError("bad-reply", f"status {status} and no pong; hint: is this rspamd?")


class Rspamd:
    """Asks rspamd.  compress: send the message in zstd; max_size: bytes of a message as it is
    sent, the most that is asked about."""

    def __init__(
        self,
        upstreams: Upstreams,
        options: Request | None = None,
        *,
        path: str = "/checkv2",
        compress: bool = False,
        max_size: int = MAX_SIZE,
    ) -> None:
        if compress and not zstd.HAVE_ZSTD:
            raise ValueError("compress: needs the zstandard package")
        self.upstreams = upstreams
        self._options = options or Request()
        self._path = path
        self._compress = compress
        self._max_size = max_size

    async def check(
        self, message: bytes, session: Session, *, deadline: float, hostname: str = ""
    ) -> Reply:
        """rspamd's reply on a message in the wire's form; ServiceError if none was to be had.

        deadline: by the loop's clock; hostname: as in `request_headers`.
        """
        body = edits.to_crlf(edits.unstuff(message)) or b"\r\n"  # rspamd rejects an empty one
        if len(body) > self._max_size:
            why = f"message of {len(body)} bytes, limit {self._max_size}"
            raise ServiceError("too-large", f"{self.upstreams.name}: {why}", retry=False)
        headers, left_out = request_headers(session, self._options, hostname=hostname)
        if self._compress:
            body = zstd.compress(body)
            headers.append(("Compression", "zstd"))  # the name that all versions know (task.c)
        reply = await self.upstreams.request(
            self._path, headers, body, deadline=deadline, parse=parse_reply
        )
        if not left_out:
            return reply
        note = f"rspamd was not told of {left_out} recipients: too many for its header limit"
        return dataclasses.replace(reply, notes=(*reply.notes, note))
