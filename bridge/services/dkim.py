"""Which mail is signed, and for which domain; what the signing endpoint is told and may answer.

The protocol is contrib/dkim-signer/README.md.  `signing_domain` and `parse_reply` are pure;
`Signer` asks.  Never signs what a stranger sends, never takes over a field that could be
anything but a signature, never logs.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from bridge import edits
from bridge.edits import Insert, header_fields
from bridge.services.http import Upstreams
from bridge.services.rspamd import unvis
from bridge.services.upstream import ServiceError
from bridge.smtpd.session import Session

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SIGN, HEALTH = "/sign", "/healthz"
# RFC 6376 and RFC 8617: the fields that sign a message and may be put on top of it.
NAMES = ("DKIM-Signature", "ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results")
MAX_FIELDS = 10  # a few selectors and an ARC set; verifiers stop at about as many
MAX_TOTAL = 64 * 1024
MAX_REPLY = 1 << 20  # far above what MAX_TOTAL takes in JSON, and quick to read
MAX_LINE = 998  # RFC 5322 2.1.1
MAX_FROM = 65_535  # smtpd refuses a longer From (smtp_session.c)
MAX_TOLD = 512  # characters of a request field, RFC 5321 4.5.3.1 allows 254 for an address
MAX_SIZE = 50 << 20

# What a reply other than 200 and 204 means: kind, and whether another server may do better.
# The rest of 4xx is about how this server is set up, 5xx about how it is.
FAILURES = {413: ("too-large", False), 422: ("http-error", False)}

_ERROR = re.compile(r"[a-z][a-z0-9-]{0,39}")
_LINE = re.compile(r"[\t -~]*")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}", re.ASCII)
# A quoted-string, a quoted-pair, or a character that matters (RFC 5322 3.2.1 to 3.2.4).
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*"|\\.|[^"\\()]+|.', re.DOTALL)
_WORD = r'[^<>@:;,"\\\s]+'
_MAILBOX = re.compile(
    rf'[^<>@:;,"\\]*<(?:{_WORD})@(?P<inside>{_WORD})>\s*|\s*(?:{_WORD})@(?P<bare>{_WORD})\s*'
)


@dataclass(frozen=True, slots=True)
class Signing:
    """Whose mail is signed.

    authenticated, local: what clients with a login, and local users over smtpd's socket, send;
    networks: what these addresses send; domains: the From domains, one that begins with a dot
    stands for those below it too, none for all; alignment: which From domain a login may use,
    strict (its own), relaxed (or one below or above it) or none (any); a login without a
    domain may use any; sign_as: the signing domains of From domains, spelled as domains are,
    that are not their own.
    """

    authenticated: bool = True
    local: bool = True
    networks: tuple[Network, ...] = ()
    domains: tuple[str, ...] = ()
    alignment: str = "relaxed"
    sign_as: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """The signing domain, "" for a message that is not to be signed; reason: why it is not, ""
    for a stranger's, of which nobody expects it."""

    domain: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SignatureField:
    """A field for the top of the message; value: folds are LF and a blank, ASCII."""

    name: str
    value: str


def signing_domain(message: bytes, session: Session, options: Signing, start: int = 0) -> Choice:
    """For which domain a message, in the wire's form and completed, is to be signed."""
    if not _trusted(session, options):
        return Choice()
    found = [x for x in header_fields(message, start) if x.name.lower() == "from"]
    if len(found) != 1:
        return Choice(reason=f"{len(found)} From fields")
    domain = from_domain(found[0].value)
    if not domain:
        return Choice(reason="From is not one plain address with a domain")
    if options.domains and not any(_fits(domain, each) for each in options.domains):
        return Choice(reason="From domain not among the configured ones")
    if session.user and not _aligned(domain, session.user, options.alignment):
        return Choice(reason="From domain not that of the login")
    fitting = (name for each, name in options.sign_as.items() if _fits(domain, each))
    return Choice(next(fitting, domain))


def _trusted(session: Session, options: Signing) -> bool:
    address = session.address
    return (
        (options.local and session.local)
        or (options.authenticated and bool(session.user))
        or (address is not None and any(address in network for network in options.networks))
    )


def from_domain(value: bytes) -> str:
    """The domain of the one address in an unfolded From field, in lower case, as the DNS has
    it; "" if there are several, or it is not plain to read: two readers may read two things."""
    if len(value) > MAX_FROM:
        return ""
    text, depth = "", 0
    for match in _TOKEN.finditer(value.decode("utf-8", "replace")):
        token = match[0]
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
            if depth < 0:
                return ""
        elif not depth:
            text += "q" if token[0] == '"' and len(token) > 1 else token
    mailbox = _MAILBOX.fullmatch(text)
    if depth or not mailbox:
        return ""
    return _name(mailbox["inside"] or mailbox["bare"])


def _name(domain: str) -> str:
    try:
        name = domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return ""
    return name if _DOMAIN.fullmatch(name) and len(name) <= 253 else ""


def _fits(domain: str, wanted: str) -> bool:
    wanted = wanted.lower()
    return domain == wanted.removeprefix(".") or (
        wanted.startswith(".") and domain.endswith(wanted)
    )


def _aligned(domain: str, user: str, alignment: str) -> bool:
    login = unvis(user).rpartition("@")[2].lower() if "@" in user else ""
    if not login or alignment == "none" or domain == login:
        return True
    return alignment == "relaxed" and (domain.endswith(f".{login}") or login.endswith(f".{domain}"))


def request_headers(domain: str, session: Session) -> list[tuple[str, str]]:
    """What the endpoint is told beside the message; fields without a value are left out."""
    transaction = session.transaction
    fields = [
        ("Content-Type", "message/rfc822"),
        ("Accept", "application/json"),
        ("DKIM-Domain", domain),
        ("DKIM-User", unvis(session.user)),
        ("DKIM-Mail-From", (transaction.sender or "") if transaction else ""),
        ("DKIM-Queue-Id", transaction.msgid if transaction else ""),
    ]
    return [(name, _told(value)) for name, value in fields if value]


def _told(value: str) -> str:
    """All but printable ASCII percent-encoded: neither a line end nor a charset can matter."""
    raw = value[:MAX_TOLD].encode("utf-8", "replace" if _lone(value) else "surrogateescape")
    return quote(raw, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}~-._")


def _lone(value: str) -> bool:
    """Is there a surrogate that stands for no byte?"""
    return re.search(r"[\ud800-\udc7f\udd00-\udfff]", value) is not None


def parse_reply(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    names: tuple[str, ...] = NAMES,
) -> tuple[SignatureField, ...]:
    """The fields of a reply in their order; none if there is no key for the domain.  names:
    of fields that may come.  ServiceError for all that is no good."""
    if status == 204:
        return ()
    if status != 200:
        kind, retry = FAILURES.get(status, ("http-error", True))
        raise ServiceError(kind, f"status {status}{_said(body)}", retry=retry)
    if len(body) > MAX_REPLY:
        raise _bad(f"{len(body)} bytes")
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad("no JSON") from error
    match reply:
        case {"fields": [_, *_] as found} if len(found) <= MAX_FIELDS:
            fields = tuple(_field(each, names) for each in found)
        case {"fields": list(found)}:
            raise _bad(f"{len(found)} fields, expected 1 to {MAX_FIELDS}; hint: 204 for none")
        case _:
            raise _bad('no list "fields"; hint: is this a signing endpoint?')
    if sum(len(field.name) + len(field.value) for field in fields) > MAX_TOTAL:
        raise _bad(f"fields of over {MAX_TOTAL} bytes")
    return fields


def _field(found: object, names: tuple[str, ...]) -> SignatureField:
    match found:
        case {"name": str(name), "value": str(value)}:
            pass
        case _:
            raise _bad("a field without name and value")
    spelled = {each.lower(): each for each in names}.get(name.lower())
    if spelled is None:
        raise _bad(f"field {name[:40]!a}, expected {', '.join(names)}")
    if len(value) > MAX_TOTAL:
        raise _bad(f"a value of {len(value)} bytes")
    lines = value.strip(" \t\r\n").replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines):
        if not line.strip(" \t") or not _LINE.fullmatch(line):
            raise _bad(f"{spelled} with an empty line or what is not printable ASCII")
        if number and line[0] not in " \t":
            raise _bad(f"{spelled} with a line that is no continuation")
        if len(line) + (0 if number else len(spelled) + 2) > MAX_LINE:
            raise _bad(f"{spelled} with a line of over {MAX_LINE} bytes")
    return SignatureField(spelled, "\n".join(lines))


def _bad(why: str) -> ServiceError:
    return ServiceError("bad-reply", why)


def _said(body: bytes) -> str:
    """The endpoint's own word for an error."""
    try:
        reply = json.loads(body[:4096])
    except (ValueError, RecursionError):
        return ""
    word = reply.get("error") if isinstance(reply, dict) else None
    return f" ({word})" if isinstance(word, str) and _ERROR.fullmatch(word) else ""


def parse_health(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """ServiceError unless this is a signing endpoint with keys, all of them in use."""
    try:
        state = json.loads(body)["status"]
    except (ValueError, KeyError, TypeError, RecursionError):
        state = None
    if status == 200 and state == "ok":
        return
    if state in ("stale", "no keys"):
        raise ServiceError("bad-reply", f"{state}; hint: the signer's log says why")
    raise ServiceError("bad-reply", f"status {status}; hint: is this a signing endpoint?")


def parse_access(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """ServiceError if a request that names no domain was refused because of who asks: it has
    to be refused, but for that."""
    if status in (401, 403):
        why = f"status {status}{_said(body)}; hint: is the token right?"
        raise ServiceError("http-error", why, retry=False)


def on_top(fields: tuple[SignatureField, ...]) -> tuple[Insert, ...]:
    """The edits that put fields on top of a message, in their order."""
    return tuple(Insert(0, field.name, field.value) for field in reversed(fields))


class Signer:
    """Asks the endpoint.  max_size: bytes of a message as it is sent, the most that is asked
    about; names: of fields that it may return."""

    def __init__(
        self,
        upstreams: Upstreams,
        *,
        max_size: int = MAX_SIZE,
        names: tuple[str, ...] = NAMES,
    ) -> None:
        self.upstreams = upstreams
        self._max_size = max_size
        self._names = names

    async def sign(
        self, message: bytes, session: Session, domain: str, *, deadline: float
    ) -> tuple[SignatureField, ...]:
        """The fields for the top of a message in the wire's form, as it will leave; none when
        there is no key for the domain.  ServiceError if there was no good answer by the
        deadline, which is by the loop's clock."""
        body = edits.to_crlf(edits.unstuff(message))
        if len(body) > self._max_size:
            why = f"message of {len(body)} bytes, limit {self._max_size}"
            raise ServiceError("too-large", f"{self.upstreams.name}: {why}", retry=False)
        return await self.upstreams.request(
            SIGN,
            request_headers(domain, session),
            body,
            deadline=deadline,
            parse=lambda status, headers, reply: parse_reply(status, headers, reply, self._names),
        )
