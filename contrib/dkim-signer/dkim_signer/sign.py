"""From a message and keys to DKIM-Signature fields (RFC 6376, RFC 8463): relaxed/relaxed.

dkimpy signs.  What it gets is prepared here: so any header that a mail server passes can be
signed, the body is hashed once for all keys, and a hostile one costs no more than another.
Never opens a file, never asks the clock.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import dkim  # type: ignore[import-untyped]
from dkim.canonicalization import CanonicalizationPolicy  # type: ignore[import-untyped]
from dkim.crypto import parse_pem_private_key  # type: ignore[import-untyped]
from nacl.signing import SigningKey

from dkim_signer.keys import RSA, Key, is_domain

# Signed and, so that nobody can add another one that is shown instead, signed once more than
# they are there (RFC 6376, 8.15).
OVERSIGN = (
    "from", "reply-to", "subject", "date", "message-id", "to", "cc", "mime-version",
    "content-type", "content-transfer-encoding", "in-reply-to", "references",
)  # fmt: skip
# Signed where they are there (RFC 6376, 5.4.1; RFC 8058, 4; RFC 9477): what lists add later,
# and with reason, must not break a signature.
SIGN = (
    "sender", "resent-date", "resent-from", "resent-sender", "resent-to", "resent-cc",
    "resent-message-id", "list-id", "list-help", "list-unsubscribe", "list-unsubscribe-post",
    "list-subscribe", "list-post", "list-owner", "list-archive", "autocrypt",
)  # fmt: skip
# RFC 6376, 5.4: what changes on the way.  dkimpy refuses them.
NEVER = frozenset(name.decode() for name in dkim.DKIM.SHOULD_NOT) | {"delivered-to"}
# The h= tag holds each name; a field with more is none that anybody wants to verify.
MAX_SIGNED = 200

POLICY = CanonicalizationPolicy.from_c_value(b"relaxed/relaxed")

_LINE_END = re.compile(rb"\r?\n")
_FIELD = re.compile(rb"(?P<name>[!-9;-~]++)[ \t]*+:(?P<value>.*)", re.DOTALL)
# A quoted-string, a quoted-pair, or a character that matters (RFC 5322, 3.2.2 and 3.2.4).
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*"|\\.|[^"\\()]+|.', re.DOTALL)
_MAILBOX = re.compile(
    r"[^<>@:;\"\\]*<[^<>@:;\"\\\s]+@(?P<in>[^<>@:;\"\\\s]+)>\s*"
    r"|\s*[^<>@:;\"\\\s]+@(?P<bare>[^<>@:;\"\\\s]+)\s*"
)
_BLANKS = re.compile(rb"[ \t]{2,}+|\t")
_EMPTY_LINES = re.compile(rb"(?:\n\r)*")  # backwards


class Unsignable(Exception):
    """This message gets no signature.  kind: a word for programs; the text never quotes it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Rules:
    """What is signed.  sign and oversign: field names in lower case, in the order of h=;
    any_from: sign also when the From domain is not the signing domain or below it."""

    oversign: tuple[str, ...] = OVERSIGN
    sign: tuple[str, ...] = SIGN
    any_from: bool = False

    def __post_init__(self) -> None:
        names = [*self.oversign, *self.sign]
        if "from" not in names:
            raise ValueError("header list without from: RFC 6376, 5.4 wants it signed")
        for name in names:
            if not re.fullmatch(r"[!-9;-~]+", name) or name != name.lower():
                raise ValueError(f"header name {name!r}: expected lower case, without colon")
            if name in NEVER:
                raise ValueError(f"header name {name!r}: changes on the way, can't be signed")


class Field(NamedTuple):
    """A header field: name in lower case; value: what is after the colon, CRLF and folds
    included."""

    name: str
    value: bytes


def sign(
    message: bytes, domain: str, keys: Sequence[Key], rules: Rules, now: int
) -> list[tuple[str, str]]:
    """The fields to put on top of a message, in this order, as name and value.

    A value may be folded, by CRLF and a blank, and goes behind the name, a colon and a blank.
    Raises Unsignable.
    """
    fields, body = split(message)
    if not rules.any_from:
        check_from(fields, domain)
    names = signed_names(fields, rules)
    wanted = set(names)
    head = b"".join(b"%b:%b" % (f.name.encode(), f.value) for f in fields if f.name in wanted)
    digest = base64.b64encode(hashlib.sha256(relaxed(body)).digest())
    try:
        return [_signature(head, digest, domain, key, names, now) for key in keys]
    except dkim.DKIMException as error:
        raise Unsignable("unsignable", f"dkimpy: {type(error).__name__}") from error


def _signature(
    head: bytes, digest: bytes, domain: str, key: Key, names: Sequence[str], now: int
) -> tuple[str, str]:
    """One field.  This is `dkim.DKIM.sign`, with a body that was hashed before."""
    signer = dkim.DKIM(head, signature_algorithm=key.algorithm)
    signer.hasher = hashlib.sha256
    tags = [
        (b"v", b"1"),
        (b"a", key.algorithm),
        (b"c", b"relaxed/relaxed"),
        (b"d", domain.encode()),
        (b"s", key.selector.encode()),
        (b"t", b"%d" % now),
        (b"h", " : ".join(names).encode()),  # the blanks let it be folded
        (b"bh", digest),
        (b"b", b"0" * 60),  # dkimpy: makes b= start a line of its own
    ]
    private = parse_pem_private_key(key.private) if key.kind == RSA else SigningKey(key.private)
    value: bytes = signer.gen_header(
        tags, [n.encode() for n in names], POLICY, b"DKIM-Signature", private
    )
    return "DKIM-Signature", value.decode("ascii").strip()


def split(message: bytes) -> tuple[list[Field], bytes]:
    """The header's fields from top to bottom, and the body."""
    head, body = message, b""
    if match := re.match(rb"\r?\n", message):
        head, body = b"", message[match.end() :]
    elif match := re.search(rb"\n\r?\n", message):
        head, body = message[: match.start() + 1], message[match.end() :]
    head = _LINE_END.sub(b"\r\n", head)
    if head and not head.endswith(b"\r\n"):
        head += b"\r\n"
    fields = []
    for raw in re.split(rb"(?<=\r\n)(?![ \t])", head):
        if match := _FIELD.fullmatch(raw):  # lines of no field are not signed
            fields.append(Field(match["name"].decode("ascii").lower(), match["value"]))
    return fields, body


def relaxed(body: bytes) -> bytes:
    """A body as RFC 6376, 3.4.4 wants it, in linear time whatever is in it."""
    if body.count(b"\n") != body.count(b"\r\n"):
        body = _LINE_END.sub(b"\r\n", body)
    if not body.endswith(b"\r\n"):
        body += b"\r\n"
    body = _BLANKS.sub(b" ", body).replace(b" \r\n", b"\r\n")
    tail = body[len(body.rstrip(b"\r\n")) :]
    match = _EMPTY_LINES.match(tail[::-1])
    empty = match.end() if match else 0
    if empty == len(body):
        return b""
    return body[: len(body) - empty] + b"\r\n"


def signed_names(fields: Sequence[Field], rules: Rules) -> list[str]:
    """The names for h=, each as often as its field is to be signed."""
    there = Counter(field.name for field in fields)
    names = [name for name in rules.oversign for _ in range(there[name] + 1)]
    names += [name for name in rules.sign for _ in range(there[name])]
    if len(names) > MAX_SIGNED:
        raise Unsignable("too-many-fields", f"{len(names)} fields to sign, limit {MAX_SIGNED}")
    if not there["from"]:
        raise Unsignable("no-from", "no From field")
    return names


def check_from(fields: Sequence[Field], domain: str) -> None:
    """Unsignable unless there is one From, and all its addresses are in the domain or below
    it, which is what DMARC calls aligned (RFC 7489, 3.1.1)."""
    values = [field.value for field in fields if field.name == "from"]
    if len(values) != 1:
        raise Unsignable("no-from" if not values else "two-from", f"{len(values)} From fields")
    found = address_domains(_LINE_END.sub(b"", values[0]).decode("utf-8", "replace"))
    if not found or not all(each == domain or each.endswith(f".{domain}") for each in found):
        raise Unsignable("from-mismatch", f"From is not in {domain}")


def address_domains(value: str) -> list[str]:
    """The domains of the addresses in a From field; none if one of them is not plain to read,
    since two readers may then read two things."""
    text, depth = "", 0
    for match in _TOKEN.finditer(value):
        token = match[0]
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
            if depth < 0:
                return []
        elif not depth:
            text += "q" if token[0] == '"' else token
    found = [_MAILBOX.fullmatch(mailbox) for mailbox in text.split(",")]
    domains = [_ascii(match["in"] or match["bare"]) for match in found if match]
    if depth or not all(found) or not all(domains):
        return []
    return domains


def _ascii(domain: str) -> str:
    try:
        name = domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return ""
    return name if is_domain(name) else ""
