"""What smtpd does to a message after the filters, done before signing so that it changes nothing.

smtpd drops Bcc, completes addresses without a domain in From, To and Cc, and on some listeners
adds Date and Message-ID (smtp_session.c).  `complete` gives the edits after which all that has
no effect.  Its rules were found by asking 6.8 and 7.6; tests/fixtures/completion has what they
answered.  Pure; never looks at the body and never repairs more than smtpd would break.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate

from bridge.edits import MAX_FIELDS, Add, Edit, Remove, Replace, header_fields, unstuff
from bridge.smtpd.session import Session

Version = tuple[int, int]

COMPLETED = ("from", "to", "cc")
# Since 7.5 a backslash in a quoted-string keeps a quotation mark from ending it, but only where
# smtpd looks for commas, not where it looks for domains (OpenSMTPD#1242).
ESCAPES_IN_QUOTES: Version = (7, 5)
NEWEST: Version = (7, 6)
SUBMISSION = 587
# On little-endian machines old versions take 19202 for 587: htons(587), seen on 6.8.
SUBMISSION_SWAPPED = 19202
# smtpd's buffer: an address that does not fit, domain included, stays as it is.
BUFFER = 65_535
# smtpd refuses a message with a From, To or Cc over 65,535 bytes; this leaves room for folds.
MAX_VALUE = 64_000
# RFC 5322, 3.6 allows one field of each; what goes beyond these is left to smtpd, since to
# complete megabytes, or thousands of fields, would take whole seconds.
MAX_COMPLETED, MAX_BYTES = 30, 3 * MAX_VALUE
# One pass changes, the next finds nothing to change; what would not come to rest is `unstable`.
MAX_ROUNDS = 3

_SPACE = b" \t\n\v\f\r"  # isspace(3) in the C locale
_SPLIT = re.compile(rb'[()"\\,]')
_SPECIAL = re.compile(rb'[()"\\<>@:]')
_BLANK_LINE = re.compile(rb"\r?\n[ \t\r]+(?=\n|\Z)")
# A phrase and an address in brackets, or an address, perhaps with a comment behind it.
_ONE_ADDRESS = re.compile(
    rb'(?:"[^"\\]*"|[^<>@:;,"()\\])*<(?P<inside>[^<>,"()\\]*)>\s*'
    rb'|\s*(?P<bare>[^\s<>:;,"()\\]+)\s*(?:\([^()"\\]*\)\s*)?'
)
_LONE_CR = re.compile(rb"\r(?!\n)")


@dataclass(frozen=True, slots=True)
class Completion:
    """edits: what to do, in this order, before signing; unstable: names of fields that smtpd
    will change or refuse all the same, so that a signature over them would not hold."""

    edits: tuple[Edit, ...] = ()
    unstable: tuple[str, ...] = ()


def adds_dates(session: Session) -> bool:
    """Does smtpd add a missing Date and Message-ID on this session's listener?  It does for its
    socket, for 127.0.0.1 and ::1, and for port 587; yes where any version might, since a field too
    many harms nobody and one that smtpd adds later breaks a signature."""
    address, port = session.listener
    loopback = address is not None and address.is_loopback
    return session.local or loopback or port in (SUBMISSION, SUBMISSION_SWAPPED)


def smtpd_version(session: Session) -> Version:
    """smtpd's version, from its handshake or else from its protocol: 0.6 ended with 7.3."""
    if match := re.match(r"(\d{1,4})\.(\d{1,4})", session.smtpd, re.ASCII):
        return int(match[1]), int(match[2])
    return NEWEST if session.version >= (0, 7) else (6, 8)


def complete(
    message: bytes,
    hostname: str,
    *,
    dates: bool,
    now: float,
    unique: str,
    smtpd: Version = NEWEST,
    sender: str = "",
    start: int = 0,
) -> Completion:
    """What smtpd would do to a message in the wire's form.

    hostname: what smtpd adds to addresses; dates: see `adds_dates`; now: seconds since the
    epoch, for Date; unique: the left part of a Message-ID; smtpd: see `smtpd_version`; sender:
    the address that `senders ... masquerade` puts into From; start: where the message begins.
    """
    edits: list[Edit] = []
    unstable: list[str] = []
    counts: Counter[str] = Counter()  # as edits count
    present: set[str] = set()  # as smtpd sees it
    bcc: list[int] = []
    count = size = 0  # of what is completed
    for field in (fields := header_fields(message, start)):
        name = field.name.lower()
        counts[name] += 1
        lines = unstuff(message[field.start : field.end]).removesuffix(b"\n")
        written, _, raw = lines.partition(b":")
        if written.endswith((b" ", b"\t")):
            continue  # the blank is part of the name for smtpd
        present.add(name)
        if name == "bcc":
            bcc.append(counts[name])
        elif name in COMPLETED:
            count, size = count + 1, size + len(raw)
            value: bytes | None = raw if count <= MAX_COMPLETED and size <= MAX_BYTES else None
            if value is not None and sender and name == "from":
                value = masqueraded(raw, sender.encode("utf-8", "surrogateescape"))
            if value is not None:
                value = complete_value(value, hostname.encode("ascii"), smtpd)
            if value is None:
                unstable.append(field.name)
            elif value != raw:
                text = value.decode("utf-8", "surrogateescape")
                edits.append(Replace(field.name, text, counts[name]))
    if bcc:
        edits.append(Remove("Bcc", tuple(bcc)))
    if dates and "date" not in present:
        edits.append(Add("Date", formatdate(now, localtime=True)))
    if dates and "message-id" not in present:
        edits.append(Add("Message-ID", f"<{unique}@{hostname}>"))
    if len(fields) >= MAX_FIELDS:
        unstable.append("header")
    return Completion(tuple(edits), tuple(unstable))


def complete_value(raw: bytes, hostname: bytes, smtpd: Version = NEWEST) -> bytes | None:
    """What is after the colon of a From, To or Cc field, without its final LF, as smtpd would
    leave it; None if smtpd would go on changing it for ever, or refuse it."""
    once = _once(raw, hostname, smtpd)
    if once == raw:
        return raw
    # What an edit can't carry: a line of blanks may pass for the header's end elsewhere.
    value = _LONE_CR.sub(b" ", _BLANK_LINE.sub(b"", raw))
    for _ in range(MAX_ROUNDS):
        value, before = _once(value, hostname, smtpd), value
        if value == before:
            return value if len(value) <= MAX_VALUE else None
    return None


def masqueraded(raw: bytes, sender: bytes) -> bytes | None:
    """What is after the colon of a From field, with the address that smtpd puts into it; None
    unless it is one address, plain to read."""
    match = _ONE_ADDRESS.fullmatch(raw)
    if match is None:
        return None
    start, end = match.span("bare" if match["inside"] is None else "inside")
    return raw[:start] + sender + raw[end:]


def _once(value: bytes, hostname: bytes, smtpd: Version) -> bytes:
    """One pass of smtpd over a field."""
    addresses = list(_addresses(value + b"\n", smtpd >= ESCAPES_IN_QUOTES))
    return b",".join(_completed(address, hostname) for address in addresses)[:-1]


def _addresses(value: bytes, escapes_in_quotes: bool) -> Iterator[bytes]:
    """Cut at the commas outside quotes and comments."""
    quoted, comments, escaped, start = False, 0, -1, 0
    for match in _SPLIT.finditer(value):
        at, char = match.start(), match[0]
        if at == escaped and char != b",":  # smtpd: a backslash does not keep a comma
            continue
        if char == b"\\" and not comments and (escapes_in_quotes or not quoted):
            escaped = at + 1
        elif char == b'"' and not comments:
            quoted = not quoted
        elif char == b"(" and not quoted:
            comments += 1
        elif char == b")" and not quoted and comments:
            comments -= 1
        elif char == b"," and not quoted and not comments:
            yield value[start:at]
            start = at + 1
    yield value[start:]


def _completed(address: bytes, hostname: bytes) -> bytes:
    """An address with its domain; as it is when it has one, is a group, empty or broken."""
    at = _insertion(address)
    if at is None or len(address) + 1 + len(hostname) >= BUFFER:
        return address
    if at == 0:
        return b" " + address
    return address[:at] + b"@" + hostname + address[at:]


def _insertion(address: bytes) -> int | None:
    """Where the domain goes: before the last closing bracket, or else behind the last word
    outside comments.  0 for a comment at the very start: smtpd would write into it again and
    again, but not if a blank stands before it."""
    quoted, comments, bracket, escaped = False, 0, False, -1
    closing = -1  # the last closing bracket
    outside, word = 0, -1  # where the text outside comments goes on; its last word's end
    for match in _SPECIAL.finditer(address):
        at, char = match.start(), match[0]
        if at == escaped and char in b'()"\\':  # smtpd: a backslash does not keep the others
            continue
        if char == b"\\" and not comments and not quoted:
            escaped = at + 1
        elif char == b'"' and not comments:
            quoted = not quoted
        elif char == b"(" and not quoted:
            if not comments:
                word = max(word, _last_word(address, outside, at))
            comments += 1
        elif char == b")" and not quoted and comments:
            comments -= 1
            outside = at
        elif comments or quoted:
            continue
        elif char == b"<":
            bracket = True
        elif char == b">" and bracket:
            bracket, closing = False, at
        elif char in b"@:":  # complete, or a group
            return None
    if quoted or comments or bracket or escaped == len(address):
        return None
    if closing >= 0:
        at = len(address[:closing].rstrip(_SPACE))
        return None if address[at - 1 : at] == b"<" else at
    word = max(word, _last_word(address, outside, len(address)))
    if word < 0 and address[:1] == b"(":
        return 0
    return None if word < 0 and address[:1].strip(_SPACE) == b"" else max(word, 0) + 1


def _last_word(address: bytes, start: int, end: int) -> int:
    """The last byte of [start, end) that is neither blank nor a closing parenthesis, or -1."""
    length = len(address[start:end].rstrip(_SPACE + b")"))
    return start + length - 1 if length else -1
