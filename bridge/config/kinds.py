"""How one value of the configuration is read: a `Kind` for each sort of value.

A kind says what is expected, in words for the operator, and turns what TOML gave into a
value or raises `Wrong` with every mistake in it.  Pure; knows no key and opens no file.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from bridge.config.values import (
    BYTE,
    SECOND,
    Endpoint,
    Mistake,
    Network,
    Secret,
    Wrong,
    is_path,
    near_miss,
    show,
    show_duration,
    show_size,
)
from bridge.smtpd.decisions import Reject
from bridge.smtpd.session import split_address

T = TypeVar("T")
DAY = 24 * 3600.0

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h)", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})(?:([KMG])(?:iB)?)?", re.ASCII)
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?", re.ASCII)
_LOCAL_PART = re.compile(r"[!-?A-~]{1,64}", re.ASCII)  # RFC 5321 4.5.3.1.1; no "@", no blank
_URL = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?(?:/[A-Za-z0-9._~%/-]*)?",
    re.ASCII,
)
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)  # RFC 9110 5.6.2
_FIELD_VALUE = re.compile(r"[!-~](?:[ -~]{0,998}[!-~])?", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """expected: for the operator, after "expected"; convert: raises ValueError, or `Wrong`
    when it can be more exact; options: all values, when there are few; hidden: never shown."""

    expected: str
    convert: Callable[[Any], T]
    options: tuple[str, ...] = ()
    hidden: bool = False

    def read(self, raw: object) -> T:
        """The value; `Wrong` if it is not of this kind."""
        try:
            return self.convert(raw)
        except Wrong:
            raise
        except (ValueError, OverflowError):
            found = "something else" if self.hidden else show(raw)
            near = near_miss(raw, self.options) if isinstance(raw, str) else ""
            raise Wrong(Mistake("", found, self.expected, near)) from None


# From here on: what the kinds are made of.  Each takes TOML's value and raises ValueError.


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw.isprintable():
        raise ValueError
    return raw


def _full(pattern: re.Pattern[str], raw: object) -> re.Match[str]:
    if not (match := pattern.fullmatch(_text(raw))):
        raise ValueError
    return match


def _bool(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def _seconds(raw: object) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    match = _full(_DURATION, raw)
    return float(match[1]) * SECOND[match[2]]


def _bytes(raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    match = _full(_SIZE, raw)
    return int(match[1]) * BYTE[match[2] or ""]


def _path(raw: object) -> str:
    if (text := _text(raw)) and not is_path(text):
        raise ValueError
    return text


def _directory(raw: object) -> str:
    if not is_path(text := _text(raw)):
        raise ValueError
    return text


def _host(raw: object) -> str:
    return _full(_HOST, str(_text(raw)).lower().removesuffix("."))[0]


def _suffix(raw: object) -> str:
    text = _text(raw)
    return "." + _host(text[1:]) if text.startswith(".") else _host(text)


def _recipient(raw: object) -> str:
    local, at, domain = _text(raw).rpartition("@")
    if not at:
        local, domain = domain, ""
    _full(_LOCAL_PART, local)
    return f"{local}@{_host(domain)}".lower() if at else local.lower()


def _network(raw: object) -> Network:
    text = _text(raw)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        loose = str(ipaddress.ip_network(text, strict=False))
        raise Wrong(Mistake("", show(raw), "a network without host bits", loose)) from None


def _nameserver(raw: object) -> str:
    address, port = split_address(_text(raw))
    if address is None or not 0 <= port < 65536:
        raise ValueError
    return str(raw)


def _server(raw: object) -> str:
    text = _text(raw)
    if text.startswith("unix:") and is_path(text[5:]):
        return text
    port = _full(_URL, text)[1]
    if port and not 0 < int(port) < 65536:
        raise ValueError
    return text.rstrip("/")


def _line(raw: object) -> str:
    return _full(_FIELD_VALUE, raw)[0]


def _secret(raw: object) -> Secret:
    text = _text(raw)
    if text and not _FIELD_VALUE.fullmatch(text):
        raise ValueError
    return Secret(text, "literal" if text else "")


# From here on: the kinds.

BOOL = Kind("true or false", _bool)
PATH = Kind('an absolute path, or ""', _path)
DIRECTORY = Kind("an absolute path", _directory)
HOST = Kind('a host name, or ""', lambda raw: _host(raw) if raw != "" else "")
WORD = Kind("a name of letters, digits, - and _", lambda raw: _full(_WORD, raw)[0])
FIELD_NAME = Kind("the name of a header field", lambda raw: _full(_FIELD_NAME, raw)[0])
SECRET = Kind('a text, "env:NAME", or ""', _secret, hidden=True)
LINE = Kind("a line of printable ASCII", _line)
TEXT = Kind('a line of printable ASCII, or ""', lambda raw: _line(raw) if raw != "" else "")

NETWORK = Kind('a network like "192.0.2.0/24" or "2001:db8::/32"', _network)
_NAMESERVER = Kind('an address like "192.0.2.53" or "[::1]:5353"', _nameserver)
_SUFFIX = Kind('a host name, or ".example.org" for all names below it', _suffix)
_RECIPIENT = Kind('a local part like "postmaster", or a whole address', _recipient)
_SERVER = Kind('"http://HOST:PORT", "https://HOST:PORT" or "unix:/PATH"', _server)
_ENDPOINT = Kind('"unix:/PATH" or "tcp:HOST:PORT"', lambda raw: Endpoint.parse(_text(raw)))


def choice(*options: str) -> Kind[str]:
    """One of a few words."""

    def convert(raw: object) -> str:
        if raw not in options:
            raise ValueError
        return str(raw)

    *others, last = (f'"{option}"' for option in options)
    return Kind(f"{', '.join(others)} or {last}", convert, options)


def integer(low: int, high: int) -> Kind[int]:
    """A whole number from low to high."""

    def convert(raw: object) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise ValueError
        return raw

    return Kind(f"a whole number from {low} to {high}", convert)


def duration(low: float, high: float = DAY) -> Kind[float]:
    """Seconds, from "500ms", "15s", "2m", "1h" or a number."""

    def convert(raw: object) -> float:
        if not low <= (seconds := _seconds(raw)) <= high:
            raise ValueError
        return seconds

    bounds = f"from {show_duration(low)} to {show_duration(high)}"
    return Kind(f'a duration like "15s", "500ms" or "2m", {bounds}', convert)


def size(low: int, high: int = 1 << 40) -> Kind[int]:
    """Bytes, from "64K", "256M", "1G" (multiples of 1,024) or a number."""

    def convert(raw: object) -> int:
        if not low <= (number := _bytes(raw)) <= high:
            raise ValueError
        return number

    return Kind(f'a size like "64K" or "256M", from {show_size(low)} to {show_size(high)}', convert)


def reply(first: str) -> Kind[Reject]:
    """A reply to a client whose code begins with one of the digits `first`."""

    def convert(raw: object) -> Reject:
        refusal = Reject.parse(_text(raw))
        if str(refusal.code)[0] not in first:
            raise ValueError
        return refusal

    like = {"4": '"451 4.7.1 Text"', "5": '"550 5.7.1 Text"'}[first[-1]]
    return Kind(f"a reply like {like}: code, enhanced code and up to 440 ASCII", convert)


def many(kind: Kind[T], *, alone: bool = False) -> Kind[tuple[T, ...]]:
    """A list; alone: a single value stands for a list of one.  All bad items are reported."""

    def convert(raw: object) -> tuple[T, ...]:
        if alone and not isinstance(raw, list | tuple):
            return (kind.read(raw),)
        if not isinstance(raw, list | tuple):
            raise ValueError
        values, mistakes = [], []
        for number, item in enumerate(raw):
            try:
                values.append(kind.read(item))
            except Wrong as wrong:
                mistakes += [m._replace(at=f"[{number}]{m.at}") for m in wrong.mistakes]
        if mistakes:
            raise Wrong(*mistakes)
        return tuple(values)

    return Kind(f"a list, each {kind.expected}", convert, kind.options)


def mapping(name: Kind[str], value: Kind[str]) -> Kind[Mapping[str, str]]:
    """A table of free names.  All bad names and values are reported."""

    def convert(raw: object) -> Mapping[str, str]:
        if not isinstance(raw, dict):
            raise ValueError
        pairs, mistakes = {}, []
        for key, item in raw.items():
            try:
                pairs[name.read(key)] = value.read(item)
            except Wrong as wrong:
                mistakes += [m._replace(at=f".{key}{m.at}") for m in wrong.mistakes]
        if mistakes:
            raise Wrong(*mistakes)
        return MappingProxyType(pairs)

    return Kind("a table", convert, value.options)


NETWORKS = many(NETWORK)
NAMESERVERS = many(_NAMESERVER)
SUFFIXES = many(_SUFFIX)
RECIPIENTS = many(_RECIPIENT)
SERVERS = many(_SERVER)
ENDPOINTS = many(_ENDPOINT)

# What rspamd itself says (rspamd, src/libserver/cfg_file.h, enum rspamd_action_type).
STANDARD_ACTIONS = (
    "no action",
    "greylist",
    "add header",
    "rewrite subject",
    "soft reject",
    "reject",
    "discard",
    "quarantine",
)

# Set by the bridge, by HTTP, or by an option of its own; or, from another hand, a way to make
# rspamd read files or skip checks (rspamd, src/libserver/protocol.c).
_OWN_HEADERS = """
    accept accept-encoding authorization compression connection content-encoding content-length
    content-type deliver-to dictionary expect file flags from helo host hostname ip key mailer
    message-length milter mta-name password path queue-id raw rcpt settings-id shm shm-length
    shm-offset subject te tls-cipher tls-version trailer transfer-encoding upgrade user user-agent
"""
OWN_HEADERS = frozenset(_OWN_HEADERS.split())


def _header_name(raw: object) -> str:
    name = FIELD_NAME.read(raw)
    if name.lower() in OWN_HEADERS:
        raise ValueError
    return name


HEADERS = mapping(
    Kind("the name of a header that the bridge does not set itself", _header_name),
    Kind(LINE.expected, _line, hidden=True),
)
SIGN_AS = mapping(_SUFFIX, Kind("a host name", _host))
ACTIONS = mapping(
    Kind("the name of an action", lambda raw: _line(raw).lower().replace("_", " ")),
    choice(*STANDARD_ACTIONS),
)
