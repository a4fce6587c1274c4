"""How a message is changed: edits of its header and body as values, and the splices they make.

`apply` takes a message as smtpd sends it (LF, dot-stuffed, no final dot) and edits in order,
each counted in the numbering that those before it left, as a milter's commands are.  What no
edit names keeps its bytes.  Never decides what to change, and never runs Python per body line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from bridge.folding import written
from bridge.smtpd.decisions import Decision, Proceed
from bridge.smtpd.message import Splice, break_long
from bridge.smtpd.wire import LONGEST_LINE

MAX_NAME = 76  # RFC 5322 2.1.1: a line should stay within 78; the colon and a blank follow
MAX_VALUE = 64 * 1024  # smtpd refuses longer To, Cc and From fields; nobody reads longer ones
MAX_LINE = 998  # RFC 5322 2.1.1, without the line's end
# A header with more fields than this is no mail; what is below them can't be named by an edit.
MAX_FIELDS = 20_000

_NAME = re.compile(r"[!-9;-~]+")  # RFC 5322 3.6.8, ftext
_FOLD = re.compile(r"\r?\n(?=[ \t])")
_BLANK_LINE = re.compile(
    r"\r?\n[ \t]+(?=\r?\n|\Z)"
)  # a line of blanks may pass for the header's end
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte
# A field and its continuation lines.  Blanks before the colon are obsolete, not illegal
# (RFC 5322 4.5), and a forger's; a name may start with a dot, which the wire doubles, and a
# client may put one before any line, also one that goes on a field (RFC 5321 4.5.2).
_FIELD = re.compile(
    rb"^(?P<name>[!-9;-~]++)[ \t]*+:(?P<value>[^\n]*+(?:\n\.?+[ \t][^\n]*+)*)\n?", re.MULTILINE
)
_WIRE_FOLD = re.compile(rb"\r?\n\.?(?=[ \t])")


def clean_value(value: str, limit: int = 32 * 1024) -> str:
    """A value that a service or a client chose, made fit for a header field: folds stay, other
    line ends become a blank, control characters go, what is over `limit` characters is cut."""
    value = re.sub(r"\r?\n(?![ \t])|\r(?!\n)", " ", _BLANK_LINE.sub("", value[:limit]))
    value = _LONE.sub("\ufffd", "\n".join(_CONTROL.sub("", x) for x in _FOLD.split(value)))
    return _BLANK_LINE.sub("", value).rstrip(" \t\n")


def check_name(name: str) -> None:
    """ValueError unless `name` may be a field's name (RFC 5322 3.6.8)."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(
            f"header name {name[:80]!a}: expected 1 to {MAX_NAME} characters of printable ASCII "
            "without blank and colon"
        )


def _check_value(name: str, value: str) -> None:
    text = _FOLD.sub("", value)
    if re.search(r"[\r\n\x00]", text) or _BLANK_LINE.search(value) or _LONE.search(value):
        raise ValueError(
            f"value of {name}: expected text without NUL, with line ends only before a blank "
            "and more text; hint: clean_value()"
        )
    if len(value) > MAX_VALUE:
        raise ValueError(f"value of {name}: expected at most {MAX_VALUE} characters")


@dataclass(frozen=True, slots=True)
class Add:
    r"""Append a field at the end of the header.  value: str, with surrogateescape for bytes
    that are no UTF-8; it may hold folds (a line end before a blank or tab).

    >>> from bridge import Message
    >>> Message("1", b"A: 1\n\nhi\n").edited([Add("B", "2")]).content
    b'A: 1\nB: 2\n\nhi\n'
    """

    name: str
    value: str

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_value(self.name, self.value)


@dataclass(frozen=True, slots=True)
class Insert:
    r"""Put a field below the first `position` fields: 0 is above everything, beyond the last is
    the end.  A negative position counts from the end: -1 is above the last field.

    >>> from bridge import Message
    >>> Message("1", b"A: 1\n\nhi\n").edited([Insert(0, "B", "2")]).content
    b'B: 2\nA: 1\n\nhi\n'
    """

    position: int
    name: str
    value: str

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_value(self.name, self.value)


@dataclass(frozen=True, slots=True)
class Remove:
    r"""Remove the nth field of that name (any case) from the top, the -nth from the bottom, all
    for 0; several for a tuple, all counted before one goes.  Out of range is nothing.  The
    first `spare` fields of that name stay: `Remove("Received", spare=1)` keeps smtpd's own.

    >>> from bridge import Message
    >>> Message("1", b"A: 1\n\nhi\n").edited([Remove("a")]).content
    b'\nhi\n'
    """

    name: str
    nth: int | tuple[int, ...] = 0
    spare: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, slots=True)
class Replace:
    r"""Give the nth field of that name (from 1) a new value, however many lines it had; append
    it if there is none (milter's CHGHEADER).

    >>> from bridge import Message
    >>> Message("1", b"A: 1\n\nhi\n").edited([Replace("A", "3")]).content
    b'A: 3\n\nhi\n'
    """

    name: str
    value: str
    nth: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_value(self.name, self.value)
        if self.nth < 1:
            raise ValueError(f"nth {self.nth}: expected 1 or more")


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    r"""A new body: lines ended by LF or CRLF, not dot-stuffed.

    >>> from bridge import Message
    >>> Message("1", b"A: 1\n\nhi\n").edited([ReplaceBody(b"bye\r\n")]).content
    b'A: 1\n\nbye\n'
    """

    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReplaceMessage:
    r"""A new header and body, as in `ReplaceBody`; later edits are edits of this one.

    >>> from bridge import Message
    >>> Message("1", b"A: 1\n\nhi\n").edited([ReplaceMessage(b"B: 2\n\n.\n")]).content
    b'B: 2\n\n.\n'
    """

    message: bytes = field(repr=False)


Edit = Add | Insert | Remove | Replace | ReplaceBody | ReplaceMessage


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a message.  reason: for the log line.

    >>> Verdict(edits=(Add("X-Seen", "yes"),), reason="seen").decision
    Proceed()
    """

    decision: Decision = field(default_factory=Proceed)
    edits: tuple[Edit, ...] = ()
    reason: str = ""


class Field(NamedTuple):
    """A header field: name as written, value unfolded and stripped, its place in the message."""

    name: str
    value: bytes
    start: int
    end: int


def header_fields(message: bytes, start: int = 0) -> list[Field]:
    """The fields of a message in the wire's form, at most `MAX_FIELDS`.  Lines that belong to
    no field are left out."""
    return [
        Field(
            match["name"].removeprefix(b".").decode("ascii"),
            _WIRE_FOLD.sub(b"", match["value"]).strip(b" \t\r"),
            *match.span(),
        )
        for match, _ in zip(
            _FIELD.finditer(message, start, header_end(message, start)),
            range(MAX_FIELDS),
            strict=False,
        )
    ]


def header_end(message: bytes, start: int = 0) -> int:
    """Where the header ends: the offset of the blank line, or of the message's end."""
    if message.startswith(b"\n", start):
        return start
    end = message.find(b"\n\n", start)
    return len(message) if end < 0 else end + 1


def unstuff(message: bytes) -> bytes:
    """Take the dot off that the wire puts before each line that starts with one (RFC 5321
    4.5.2)."""
    if message.startswith(b"."):
        message = message[1:]
    return message.replace(b"\n.", b"\n") if b"\n." in message else message


def stuff(message: bytes) -> bytes:
    """Put a dot before each line that starts with one (RFC 5321 4.5.2)."""
    if b"\n." in message:
        message = message.replace(b"\n.", b"\n..")
    return b"." + message if message.startswith(b".") else message


def to_crlf(message: bytes) -> bytes:
    """Lines ended by CRLF instead of LF.  A CR that was there is content and stays."""
    return message.replace(b"\n", b"\r\n")


def apply(
    message: bytes,
    edits: Iterable[Edit],
    *,
    start: int = 0,
    max_line: int = MAX_LINE,
    longest: int = LONGEST_LINE,
) -> list[Splice]:
    """The splices that make `edits` of a message in the wire's form, as few as will do.

    start: where the message begins; what is before it (smtpd's own `X-Spam: Yes`) stays and
    does not count.  max_line: bytes that a line of a field of ours may have, at least 100;
    longest: that any line may have (wire.longest_line): those of a new body are broken there.
    """
    if max_line < 100:
        raise ValueError(f"max_line {max_line}: expected 100 or more")
    draft = _Draft.of(message, start)
    for edit in edits:
        draft.take(edit, max_line, longest)
    return draft.splices(message, start)


class _Item(NamedTuple):
    """A piece of the header: a field of the message, lines of no field (name empty), or a field
    of ours (start -1) with its bytes."""

    name: str
    start: int
    end: int
    new: bytes = b""


@dataclass(slots=True)
class _Draft:
    """The message while it is edited."""

    items: list[_Item]
    end: int  # where the message's header ends
    pinned: (
        int  # 1 if the header starts with a blank: put a field above it, and it becomes its fold
    )
    body: bytes | None = None  # the new one, as the wire wants it

    @classmethod
    def of(cls, message: bytes, start: int) -> _Draft:
        items, at, end = [], start, header_end(message, start)
        for name, _, first, last in header_fields(message, start):
            if first > at:
                items.append(_Item("", at, first))
            items.append(_Item(name.lower(), first, last))
            at = last
        if at < end:
            items.append(_Item("", at, end))
        blank = message[start : start + 2].removeprefix(b".").startswith((b" ", b"\t"))
        return cls(items, end, int(blank))

    def take(self, edit: Edit, max_line: int, longest: int) -> None:
        """Make one edit."""
        match edit:
            case Add(name, value):
                self.items.append(_field(name, value, max_line))
            case Insert(position, name, value):
                self.items.insert(self._index(position), _field(name, value, max_line))
            case Remove(name, nth, spare):
                found = self._find(name)
                keep = set(found[:spare]) if spare > 0 else set()
                gone = set(found) if nth == 0 else _pick(found, nth)
                self.items = [x for i, x in enumerate(self.items) if i in keep or i not in gone]
            case Replace(name, value, nth):
                item, found = _field(name, value, max_line), self._find(name)
                if nth <= len(found):
                    self.items[found[nth - 1]] = item
                else:
                    self.items.append(item)
            case ReplaceBody(body):
                self.body = _wire(body, longest)
            case ReplaceMessage(new):
                new = _wire(new, longest)
                draft = _Draft.of(new, 0)
                self.items = [_Item(x.name, -1, -1, new[x.start : x.end]) for x in draft.items]
                self.pinned, self.body = draft.pinned, new[draft.end + 1 :]

    def _find(self, name: str) -> list[int]:
        name = name.lower()
        return [i for i, item in enumerate(self.items) if item.name == name]

    def _index(self, position: int) -> int:
        fields = [i for i, item in enumerate(self.items) if item.name]
        if position < 0:
            position = max(0, len(fields) + position)
        if position >= len(fields) and position > 0:
            return len(self.items)
        return fields[position - 1] + 1 if position else self.pinned

    def splices(self, message: bytes, start: int) -> list[Splice]:
        """What is different from the message."""
        found: list[Splice] = []
        new: list[bytes] = []
        at = start
        for item in [*self.items, _Item("", self.end, self.end)]:
            if item.start < 0:
                new.append(item.new)
                continue
            found.append(Splice(at, item.start, b"".join(new)))
            new, at = [], item.end
        if self.body is not None and self.end < len(message):
            found.append(Splice(self.end + 1, len(message), self.body))
        elif self.body is not None:
            found[-1] = found[-1]._replace(new=found[-1].new + b"\n" + self.body)
        return [_on_line(x, message) for x in found if x.new != message[x.start : x.end]]


def _on_line(splice: Splice, message: bytes) -> Splice:
    """Start on a line, also below a last line that has no end."""
    if splice.start < len(message) or message[-1:] in (b"", b"\n"):
        return splice
    line = message.rfind(b"\n") + 1
    return Splice(line, splice.end, message[line:] + b"\n" + splice.new)


def _pick(found: list[int], nth: int | tuple[int, ...]) -> set[int]:
    count, gone = len(found), set()
    for n in (nth,) if isinstance(nth, int) else nth:
        if n == 0:
            return set(found)
        if 1 <= abs(n) <= count:
            gone.add(found[n - 1 if n > 0 else n])
    return gone


def _wire(message: bytes, longest: int) -> bytes:
    """Foreign lines as the wire wants them: no NUL, no CR, none too long."""
    message = message.replace(b"\0", b"").replace(b"\r", b"")
    if message and not message.endswith(b"\n"):
        message += b"\n"
    return break_long(stuff(message), longest)[0]


def _field(name: str, value: str, max_line: int) -> _Item:
    return _Item(name.lower(), -1, -1, stuff(written(name, value, max_line)))
