"""Edits become splices: tables with the wire's bytes in sight, and a naive model as the judge."""

from __future__ import annotations

import re
from email import message_from_bytes, policy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import edits as e
from bridge.edits import Add, Edit, Insert, Remove, Replace, ReplaceBody, ReplaceMessage
from bridge.smtpd.message import Splice
from tests.unit.naive_edits import header_edits, messages, model

MAIL = b"""\
Received: from a
\tby b
X-Spam: 1
From: a@b.c
x-spam : 2
\tfolded
Subject: hello
X-Spam: 3

body
..dot
"""


def joined(message: bytes, splices: list[Splice]) -> bytes:
    """The message with the splices made, and each of them held to what the link asks of it."""
    out, at = [], 0
    for start, end, new in splices:
        assert at <= start <= end <= len(message), "ascending and in bounds"
        assert start == 0 or message[start - 1 : start] == b"\n", "on a line's start"
        assert end in (0, len(message)) or message[end - 1 : end] == b"\n", "on a line's start"
        assert new != message[start:end], "a change"
        assert not new or new.endswith(b"\n"), "whole lines"
        assert b"\0" not in new or b"\0" in message
        out += [message[at:start], new]
        at = end
    return b"".join([*out, message[at:]])


def edited(message: bytes, *edits: Edit, start: int = 0, max_line: int = 998) -> bytes:
    return joined(message, e.apply(message, edits, start=start, max_line=max_line))


TOP = b"Received: from a\n\tby b\n"
END = MAIL.index(b"\n\n") + 1

SPLICES: list[tuple[str, list[Edit], list[tuple[int, int, bytes]]]] = [
    ("no edit is no splice", [], []),
    ("an added field goes to the end", [Add("A", "1")], [(END, END, b"A: 1\n")]),
    ("two keep their order", [Add("A", "1"), Add("B", "2")], [(END, END, b"A: 1\nB: 2\n")]),
    ("inserted at 0, it is the first line", [Insert(0, "A", "1")], [(0, 0, b"A: 1\n")]),
    ("at 1 it is below Received", [Insert(1, "A", "1")], [(len(TOP), len(TOP), b"A: 1\n")]),
    (
        "two at the same place are in reverse",
        [Insert(0, "A", "1"), Insert(0, "B", "2")],
        [(0, 0, b"B: 2\nA: 1\n")],
    ),
    ("beyond the last is the end", [Insert(99, "A", "1")], [(END, END, b"A: 1\n")]),
    ("-1 is above the last", [Insert(-1, "A", "1")], [(END - 10, END - 10, b"A: 1\n")]),
    ("far below zero is the top", [Insert(-99, "A", "1")], [(0, 0, b"A: 1\n")]),
    (
        "all of a name go, with their folds and whatever the case",
        [Remove("X-SPAM")],
        [(23, 33, b""), (45, 64, b""), (79, 89, b"")],
    ),
    ("the second of a name", [Remove("X-Spam", 2)], [(45, 64, b"")]),
    ("the first from the bottom", [Remove("X-Spam", -1)], [(79, 89, b"")]),
    ("one after the other counts anew", [Remove("X-Spam", 1)] * 2, [(23, 33, b""), (45, 64, b"")]),
    ("together they count once", [Remove("X-Spam", (1, 3))], [(23, 33, b""), (79, 89, b"")]),
    ("the same twice is one", [Remove("X-Spam", (3, -1))], [(79, 89, b"")]),
    ("out of range is nothing", [Remove("X-Spam", 4), Remove("X-Spam", -4)], []),
    ("an unknown name is nothing", [Remove("Nope")], []),
    ("a spared one stays", [Remove("Received", spare=1)], []),
    ("a spared one still counts", [Remove("X-Spam", 2, spare=1)], [(45, 64, b"")]),
    (
        "replace takes the folds along",
        [Replace("X-Spam", "v", 2)],
        [(45, 64, b"X-Spam: v\n")],
    ),
    ("replaced if absent is appended", [Replace("A", "1")], [(END, END, b"A: 1\n")]),
    ("the same bytes again are no splice", [Replace("From", "a@b.c")], []),
    ("added and removed again is no splice", [Add("A", "1"), Remove("a")], []),
    (
        "neighbours are one splice",
        [Remove("From"), Remove("X-Spam", (1, 2)), Insert(1, "A", "1")],
        [(23, 64, b"A: 1\n")],
    ),
    (
        "a body is stuffed, ended and has no CR or NUL",
        [ReplaceBody(b"new\r\n.dot\r\ba\0re\r")],
        [(END + 1, len(MAIL), b"new\n..dot\bare\n")],
    ),
    ("the same body is no splice", [ReplaceBody(b"body\r\n.dot\r\n")], []),
    ("a body can go", [ReplaceBody(b"")], [(END + 1, len(MAIL), b"")]),
    (
        "header and body keep the blank line",
        [ReplaceBody(b"new"), Add("A", "1")],
        [(END, END, b"A: 1\n"), (END + 1, len(MAIL), b"new\n")],
    ),
    (
        "a whole message, edited",
        [ReplaceMessage(b"A: 1\r\n\r\n.new"), Insert(0, "B", "2"), Remove("From")],
        [(0, END, b"B: 2\nA: 1\n"), (END + 1, len(MAIL), b"..new\n")],
    ),
]


@pytest.mark.parametrize(("what", "edits", "splices"), SPLICES, ids=[x[0] for x in SPLICES])
def test_edits_become(what: str, edits: list[Edit], splices: list[tuple[int, int, bytes]]) -> None:
    assert e.apply(MAIL, edits) == splices
    joined(MAIL, e.apply(MAIL, edits))


SHAPES: list[tuple[str, bytes, list[Edit], bytes]] = [
    ("an empty message", b"", [Add("A", "1"), Insert(0, "B", "2")], b"B: 2\nA: 1\n"),
    ("no header", b"\nbody\n", [Add("A", "1")], b"A: 1\n\nbody\n"),
    ("no blank line", b"A: 1\n", [Add("B", "2")], b"A: 1\nB: 2\n"),
    ("no blank line, a new body", b"A: 1\n", [ReplaceBody(b"x")], b"A: 1\n\nx\n"),
    ("nothing, a new body", b"", [ReplaceBody(b".x")], b"\n..x\n"),
    ("no end of the last line", b"A: 1\nB: 2", [Add("C", "3")], b"A: 1\nB: 2\nC: 3\n"),
    ("no end, a new body", b"A: 1", [ReplaceBody(b"x")], b"A: 1\n\nx\n"),
    (
        "a line without colon counts as nothing and stays",
        b"A: 1\nno colon\n more\nB: 2\nnone\n\n",
        [Insert(1, "X", "1"), Insert(-1, "Y", "2"), Add("Z", "3")],
        b"A: 1\nX: 1\nY: 2\nno colon\n more\nB: 2\nnone\nZ: 3\n\n",
    ),
    (
        "a first line that starts with a blank does not become our fold",
        b" blank\n\tmore\nA: 1\n\n",
        [Insert(0, "X", "1")],
        b" blank\n\tmore\nX: 1\nA: 1\n\n",
    ),
    ("a name with a dot is stuffed", b"..A: 1\n\n", [Remove(".a"), Add(".B", "2")], b"..B: 2\n\n"),
    ("a needless dot is not of the name", b".A: 1\n\n", [Remove("A")], b"\n"),
    ("a name with a blank in it is no name", b"A b: 1\n\n", [Remove("A")], b"A b: 1\n\n"),
    ("a name of raw bytes is no name", b"\xff: 1\n\n", [Insert(0, "X", "1")], b"X: 1\n\xff: 1\n\n"),
    ("a CR is content", b"A: 1\r\nB: 2\r\n\n", [Remove("A")], b"B: 2\r\n\n"),
    ("a line of CR does not end the header", b"A: 1\n\r\nB: 2\n\n", [Remove("B")], b"A: 1\n\r\n\n"),
    ("a body that looks like a header stays", b"A: 1\n\nA: 2\n", [Remove("A")], b"\nA: 2\n"),
]


@pytest.mark.parametrize(("what", "message", "edits", "want"), SHAPES, ids=[x[0] for x in SHAPES])
def test_odd_messages(what: str, message: bytes, edits: list[Edit], want: bytes) -> None:
    assert edited(message, *edits) == want


def test_what_is_before_start_stays_and_does_not_count() -> None:
    junk = b"X-Spam: Yes\n"
    got = edited(junk + MAIL, Remove("X-Spam"), Insert(0, "A", "1"), start=len(junk))
    assert got == junk + edited(MAIL, Remove("X-Spam"), Insert(0, "A", "1"))
    assert [x.name for x in e.header_fields(junk + MAIL, len(junk))].count("X-Spam") == 2


W, P = "w" * 30, "\u041f"
FOLDED: list[tuple[str, str, str, bytes]] = [
    ("a short value is one line", "A", "1", b"A: 1"),
    ("an empty value", "A", "", b"A:"),
    ("UTF-8 and raw bytes", "A", "\u041f\udcff", b"A: \xd0\x9f\xff"),
    ("78 bytes are one line", "A", "b " + "x" * 73, b"A: b " + b"x" * 73),
    ("79 are folded at the blank", "A", "b " + "x" * 74, b"A: b\n " + b"x" * 74),
    (
        "a fold is before the last blank that fits",
        "A",
        f"{W} {W}  {W} {W}",
        f"A: {W} {W}\n  {W} {W}".encode(),
    ),
    ("a long word stays whole", "A", "x" * 200, b"A: " + b"x" * 200),
    ("and is followed by a fold", "A", "x" * 200 + " y", b"A: " + b"x" * 200 + b"\n y"),
    (
        "blanks at the end make no line of blanks",
        "A",
        "x " * 39 + " " * 9,
        b"A: " + b"x " * 37 + b"x\n x",
    ),
    ("998 are sent as they are", "A", "x" * 995, b"A: " + b"x" * 995),
    ("a word that fits a line gets one", "Ab", "x" * 995, b"Ab:\n " + b"x" * 995),
    (
        "a longer one is cut after ; or ,",
        "A",
        "x" * 500 + ";" + "y" * 600,
        b"A: " + b"x" * 500 + b";\n " + b"y" * 600,
    ),
    ("or anywhere", "A", " " + "x" * 1200, b"A: " + b"x" * 995 + b"\n " + b"x" * 205),
    ("but not in a character", "A", P * 600, f"A: {P * 497}\n {P * 103}".encode()),
    ("folds that are there stay", "A", "b;\n\tc\r\n  d", b"A: b;\n\tc\n  d"),
    ("also long ones", "A", "x " * 100 + "x\n y", b"A: " + b"x " * 100 + b"x\n y"),
    ("a fold at the start stays", "A", "\n\tb", b"A:\n\tb"),
    (
        "a signature on one line stays",
        "DKIM-Signature",
        "a; " * 50 + "b",
        b"DKIM-Signature: " + b"a; " * 50 + b"b",
    ),
    ("a long run of blanks shrinks", "A", "x" + " " * 2000 + "y", b"A: x y"),
]


@pytest.mark.parametrize(("what", "name", "value", "want"), FOLDED, ids=[x[0] for x in FOLDED])
def test_values_are_folded(what: str, name: str, value: str, want: bytes) -> None:
    assert edited(b"", Add(name, value)) == want + b"\n"


NAMES = ["", "X Bad", "X:", "X-\u00e4", "X-\a", "a" * 77, " X", "X\n", "X\r\nY: z"]
VALUES = [
    "a\nb",
    "a\rb",
    "a\r b",
    "a\0",
    "a\n",
    "a\n \nb",
    "a\n \n b",
    "a\n ",
    "\ud800",
    "x" * 70_000,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_bad_names_are_refused(name: str) -> None:
    for make in (lambda: Add(name, "v"), lambda: Insert(0, name, "v"), lambda: Replace(name, "v")):
        with pytest.raises(ValueError, match="header name"):
            make()
    with pytest.raises(ValueError, match="header name"):
        Remove(name)


@pytest.mark.parametrize("value", VALUES, ids=lambda x: ascii(x[:9]))
def test_bad_values_are_refused_and_cleaned(value: str) -> None:
    for make in (
        lambda: Add("A", value),
        lambda: Insert(0, "A", value),
        lambda: Replace("A", value),
    ):
        with pytest.raises(ValueError, match="value of A"):
            make()
    Add("A", e.clean_value(value))


CLEANED = [
    ("a\r\nX-Evil: yes\r\n\r\nbody", "a X-Evil: yes  body"),
    ("v\n.\nquit", "v . quit"),
    ("v;\n\tfold\r\n more", "v;\n\tfold\n more"),
    ("a\n \n\tb", "a\n\tb"),
    ("a\n \nb", "a b"),
    ("a\n \a\n b", "a\n b"),
    ("a\0b\x1b[1m\x7f\x85", "ab[1m"),
    ("\u041f\udcff\ud800", "\u041f\udcff\ufffd"),
    ("a \n", "a"),
]


@pytest.mark.parametrize(("value", "want"), CLEANED, ids=[ascii(x[0]) for x in CLEANED])
def test_foreign_values_are_cleaned(value: str, want: str) -> None:
    assert e.clean_value(value) == want


@settings(deadline=None)
@given(
    st.text(st.characters(codec=None, exclude_categories=[])) | st.text("\r\n\t a\0", max_size=30)
)
def test_a_cleaned_value_is_always_legal_and_stays_one_field(value: str) -> None:
    clean = e.clean_value(value, 500)
    assert e.clean_value(clean) == clean
    got = edited(b"A: 1\n\nbody\n", Insert(0, "X", clean))
    parsed = message_from_bytes(got, policy=policy.compat32)
    assert parsed.keys() == ["X", "A"]
    assert parsed.get_payload() == "body\n"


def test_the_bulk_forms() -> None:
    assert e.unstuff(b"..a\nb..\n...\n") == b".a\nb..\n..\n"
    assert e.stuff(b".a\nb..\n..\n") == b"..a\nb..\n...\n"
    assert e.to_crlf(b"a\nb\r\n\n") == b"a\r\nb\r\r\n\r\n"


@settings(deadline=None)
@given(st.text(".\na", max_size=30))
def test_unstuffing_undoes_stuffing(text: str) -> None:
    assert e.unstuff(e.stuff(text.encode())) == text.encode()


def test_header_fields_have_names_values_and_places() -> None:
    assert [(x.name, x.value) for x in e.header_fields(MAIL)] == [
        ("Received", b"from a\tby b"),
        ("X-Spam", b"1"),
        ("From", b"a@b.c"),
        ("x-spam", b"2\tfolded"),
        ("Subject", b"hello"),
        ("X-Spam", b"3"),
    ]
    assert b"".join(MAIL[x.start : x.end] for x in e.header_fields(MAIL)) == MAIL[:END]


def test_a_header_of_a_million_lines_is_bounded() -> None:
    message = b"a:\n" * 1_000_000 + b"\nbody\n"
    assert len(e.header_fields(message)) == e.MAX_FIELDS
    assert edited(message, Add("X", "1")) == message[:-6] + b"X: 1\n\nbody\n"


@settings(max_examples=500, deadline=None)
@given(messages, st.lists(header_edits, max_size=6))
def test_edits_do_what_the_naive_model_does(message: bytes, edits: list[Edit]) -> None:
    assert edited(message, *edits) == model(message, edits)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.lists(header_edits, max_size=4), st.booleans())
def test_random_bytes_never_raise_and_keep_what_is_not_named(
    message: bytes, edits: list[Edit], junk: bool
) -> None:
    prefix = b"X-Spam: Yes\n" if junk else b""
    got = edited(prefix + message, *edits, start=len(prefix))
    assert got.startswith(prefix)
    if not any(isinstance(x, ReplaceBody) for x in edits):
        assert message[e.header_end(message) :] in got
    assert edited(message) == message


@settings(deadline=None)
@given(st.text("ab ;,\t\u041f", max_size=3000), st.integers(100, 998))
def test_no_line_of_ours_is_too_long_or_blank(value: str, longest: int) -> None:
    got = edited(b"", Add("X-Name", value), max_line=longest)
    lines = got[:-1].split(b"\n")
    assert max(map(len, lines)) <= longest
    assert all(x.strip() for x in lines)
    assert all(x[:1] in (b" ", b"\t") for x in lines[1:])

    def bare(text: bytes) -> bytes:
        return re.sub(rb"[ \t\n]", b"", text)

    assert bare(got) == b"X-Name:" + bare(value.encode())
    got.decode()  # no character was cut
