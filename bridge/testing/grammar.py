"""What smtpd takes from a client, and the replies it has of its own.

The rules are those of smtp_session.c and util.c (valid_domainpart, valid_localpart,
valid_smtp_response), not those of RFC 5321: tests must see what filters will see.
"""

from __future__ import annotations

import binascii
import ipaddress
import re
from dataclasses import dataclass

LINE_MAX = 2048  # limits.h; a command line has one byte less
SMTP_LINE_MAX = 65535  # smtpd.h; a line with its CR must be shorter
REPLY_MAX = 2 * LINE_MAX - 1  # smtp_reply()'s buffer
ADDRESS_MAX = 255  # smtpd.h, SMTPD_MAXMAILADDRSIZE - 1, also the longest local part

BAD_SEQUENCE = "503 5.5.1 Invalid command: Command not allowed at this point."
IDENTIFIED = "503 5.5.1 Invalid command: Already identified"
AUTHENTICATED = "503 5.5.1 Invalid command: Already authenticated"
SECURED = "503 5.5.1 Invalid command: Channel already secured"
NOT_SUPPORTED = "503 5.5.1 Invalid command: Command not supported"
NO_RECIPIENT = "503 5.5.4 Invalid command arguments: No recipient specified"
UNRECOGNIZED = "500 5.5.1 Invalid command: Command unrecognized"
NO_ARGUMENTS = "500 5.5.4 Invalid command arguments: command does not accept arguments."
PIPELINING = "500 5.5.1 Invalid command: Pipelining not supported"
WIZ = "500 5.5.1 Invalid command: this feature is not supported yet ;-)"
LINE_TOO_LONG = "500 5.0.0 Line too long"
COMMAND_TOO_LONG = "500 5.0.0 Command line too long"
LOOP = "500 5.4.6 Routing loop detected: Loop detected"
NO_PARAMETERS = "501 5.5.4 Invalid command arguments: No parameters allowed"
NO_PARAMETERS_GIVEN = "501 5.5.4 Invalid command arguments: No parameters given"
NEEDS_DOMAIN = "501 5.5.1 Invalid command: {} requires domain name"
BAD_DOMAIN = "501 5.5.4 Invalid command arguments: Invalid domain name"
BAD_RECIPIENT = "501 5.1.3 Recipient address syntax error"
BAD_SENDER = "553 5.1.0 Sender address syntax error"
BAD_AUTH = "501 5.5.2 Syntax error: Syntax error"
BAD_OPTION = "503 5.5.4 Invalid command arguments: Unsupported option {}"
BAD_RCPT_OPTION = "503 Unsupported option {}"
BAD_METHOD = '504 5.7.4 Security features not supported: AUTH method "{}" not supported'
AUTH_FAILED = "535 Authentication failed"
TOO_MANY = "451 4.5.3 Too many recipients: Too many recipients"
NOT_COMPLIANT = (
    "550 5.7.1 Delivery not authorized, message refused: Message is not RFC 2822 compliant"
)
TOO_BIG = "554 5.3.4 Message too big for system: Transaction failed, message too big"
INTERNAL = "421 Internal server error"
OK = "250 2.0.0 Ok"
RESET = "250 2.0.0 Reset state"
RECIPIENT_OK = "250 2.1.5 Destination address valid: Recipient ok"
ENTER_MAIL = '354 Enter mail, end with "." on a line by itself'
START_TLS = "220 2.0.0 Ready to start TLS"
AUTH_OK = "235 2.0.0 Authentication succeeded"
BYE = "221 2.0.0 Bye"
HELP = (
    "214-2.0.0 This is OpenSMTPD",
    "214-2.0.0 To report bugs in the implementation, please contact bugs@openbsd.org",
    "214-2.0.0 with full details",
    "214 2.0.0 End of HELP info",
)
ACCEPTED = "250 2.0.0 {} Message accepted for delivery"

MAIL_OPTIONS = re.compile(r"(?:AUTH=|SIZE=|RET=|ENVID=).*|BODY=(?:7BIT|8BITMIME)", re.I)
RCPT_OPTIONS = re.compile(r"NOTIFY=.*|ORCPT=[^;]*;.*", re.I)

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_ATOM = r"[A-Za-z0-9!#$%&'*/?^`{|}~+\-=_]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*", re.ASCII)


def octets(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def valid_domain(name: str) -> bool:
    if name.startswith("[") and name.endswith("]"):
        literal = name[1:-1]
        try:
            if literal[:5].lower() == "ipv6:":
                ipaddress.IPv6Address(literal[5:])
            else:
                ipaddress.IPv4Address(literal)
        except ValueError:
            return False
        return True
    return len(name) <= ADDRESS_MAX and _DOMAIN.fullmatch(name) is not None


def valid_response(reply: bytes) -> bool:
    """A reply that smtpd passes on for a filter: `[45]NN text`."""
    return re.match(rb"[45][0-9][0-9] .", reply, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class Address:
    """An envelope address, completed as smtpd does it, and the options after it."""

    user: str
    domain: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.user}@{self.domain}" if self.user else ""


def address(argument: str, hostname: str, *, sender: bool) -> Address | None:
    """The address in the argument of MAIL FROM or RCPT TO; None if smtpd refuses it."""
    if not (match := re.match(r"<([^>]*)>(.*)", argument, re.DOTALL)):
        return None
    user, at, domain = match[1].rpartition("@")
    if not at:
        user, domain = match[1], ""
    if len(user) > ADDRESS_MAX or len(domain) > ADDRESS_MAX:
        return None
    user = user.partition(":")[2] or user  # a source route
    options = tuple(word for word in match[2].split(" ") if word)
    if sender and not user and not domain:
        return Address("", "", options)
    if not _LOCAL_PART.fullmatch(user):
        return None
    domain = domain or hostname
    return Address(user, domain, options) if valid_domain(domain) else None


def between_brackets(argument: str) -> str | None:
    """What a tx-mail or tx-rcpt report shows: not checked, not completed."""
    match = re.search(r"<([^>]*)>", argument)
    return match[1] if match and len(octets(match[1])) <= ADDRESS_MAX else None


def vis(raw: bytes) -> str:
    """strvis(3) with VIS_WHITE and VIS_SAFE, as in link-auth."""
    out = []
    for byte in raw:
        if byte in b" \t\n":
            out.append(f"\\{byte:03o}")
        elif byte == 0x5C:
            out.append("\\\\")
        elif 0x21 <= byte <= 0x7E or byte in b"\a\b\r":
            out.append(chr(byte))
        else:
            low, meta = byte & 0x7F, "\\M" if byte & 0x80 else "\\"
            control = low < 0x20 or low == 0x7F
            out.append(f"{meta}^{chr(low ^ 0x40)}" if control else f"{meta}-{chr(low)}")
    return "".join(out)


def unbase64(raw: bytes) -> bytes | None:
    try:
        return binascii.a2b_base64(raw, strict_mode=True)
    except binascii.Error:
        return None
