"""Does a message keep its bytes in whatever runs it comes, is each bad splice refused, and is
a line too long found and broken?  Each against a reference that is slow and plain.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.smtpd.message import (
    PIECE,
    Message,
    Splice,
    SpliceError,
    break_long,
    check_lines,
    first_too_long,
    join,
)
from tests.unit.dialogue import take_runs

LONGEST = 20


class Held:
    """A store in memory that counts how it is used."""

    def __init__(self, data: bytes, fail_at: int | None = None) -> None:
        self.data = data
        self.fail_at = fail_at
        self.closed = 0

    def read(self, offset: int, length: int) -> bytes:
        if self.fail_at is not None and offset + length > self.fail_at:
            raise OSError("no such luck")
        assert 0 < length <= PIECE
        return self.data[offset : offset + length]

    def close(self) -> None:
        self.closed += 1


def message_of(*runs: bytes, stored: int = 0) -> Message:
    """A message of these runs, the first `stored` of them in a store."""
    message = Message()
    for run in runs:
        message.append(run)
    if stored:
        held = take_runs(message)
        message.store = Held(b"".join(held[:stored]))
        message.stored = sum(map(len, held[:stored]))
        message.size = message.stored
        for run in held[stored:]:
            message.append(run)
    return message


# Lines as smtpd sends them: stuffed, of any bytes but LF and NUL.
content = st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").replace(b"\0", b""))
wire_lines = content.map(lambda raw: (b"." + raw if raw.startswith(b".") else raw) + b"\n")
# What may be new in a message: the same without CR.
new_lines = wire_lines.map(lambda line: line.replace(b"\r", b""))
runs_of_lines = st.lists(st.lists(wire_lines, min_size=1, max_size=4).map(b"".join), max_size=6)


@st.composite
def spliced_messages(draw: st.DrawFn) -> tuple[list[bytes], int, list[Splice]]:
    """Runs of lines, how many of them are stored, and splices that are good."""
    runs = draw(runs_of_lines)
    whole = b"".join(runs)
    starts = [0] + [at + 1 for at, byte in enumerate(whole) if byte == 10]
    picked = sorted(draw(st.lists(st.sampled_from(starts), max_size=8)))
    splices = [
        Splice(start, end, b"".join(draw(st.lists(new_lines, max_size=3))))
        for start, end in zip(picked[::2], picked[1::2], strict=False)
    ]
    return runs, draw(st.integers(0, len(runs))), splices


def reference(whole: bytes, splices: list[Splice]) -> bytes:
    """The splices made one by one, the last first."""
    for start, end, new in reversed(splices):
        whole = whole[:start] + new + whole[end:]
    return whole


@given(spliced_messages())
def test_a_message_with_its_splices(case: tuple[list[bytes], int, list[Splice]]) -> None:
    runs, stored, splices = case
    message = message_of(*runs, stored=stored)
    whole = b"".join(runs)
    message.check(splices, LONGEST)
    assert message.size == len(whole)
    assert b"".join(message.spliced(splices)) == reference(whole, splices)
    assert join(whole, splices) == reference(whole, splices)


@given(runs_of_lines, st.data())
def test_a_part_of_a_message(runs: list[bytes], data: st.DataObject) -> None:
    message = message_of(*runs, stored=data.draw(st.integers(0, len(runs))))
    whole = b"".join(runs)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    assert b"".join(message.pieces(start, end)) == whole[start:end]
    assert b"".join(message.pieces(start)) == whole[start:]


FIVE = b"a: b\n..\n\n..dots\nlast\n"  # line starts at 0, 5, 8, 9, 16 and 21

BAD = {
    "beyond the end": [Splice(0, 22, b"")],
    "before the beginning": [Splice(-1, 0, b"")],
    "its end before its start": [Splice(9, 5, b"")],
    "one inside another": [Splice(0, 16, b""), Splice(5, 9, b"")],
    "the later one first": [Splice(9, 9, b"x: y\n"), Splice(0, 0, b"x: y\n")],
    "from the middle of a line": [Splice(1, 5, b"")],
    "to the middle of a line": [Splice(0, 3, b"")],
    "new bytes without a line end": [Splice(0, 0, b"x: y")],
    "a CR": [Splice(0, 0, b"x: y\r\n")],
    "a CR inside a line": [Splice(0, 0, b"x\ry\n")],
    "a NUL": [Splice(0, 0, b"x\0y\n")],
    "the line that ends a message": [Splice(0, 0, b".\n")],
    "the line that ends a message, behind another": [Splice(0, 0, b"x: y\n.\n")],
    "the line that ends a message, before another": [Splice(0, 0, b".\nx: y\n")],
    "a line that lost its stuffing": [Splice(0, 0, b".hidden\n")],
    "a later line that lost its stuffing": [Splice(0, 0, b"x\n.hidden\ny\n")],
    "a line of a byte too much": [Splice(0, 0, b"x" * 21 + b"\n")],
    "a later line of a byte too much": [Splice(0, 0, b"x\n" + b"y" * 21 + b"\nz\n")],
    "a good one before a bad one": [Splice(0, 0, b"x: y\n"), Splice(22, 22, b"x: y\n")],
}


@pytest.mark.parametrize("stored", [0, 1])
@pytest.mark.parametrize("splices", BAD.values(), ids=BAD.keys())
def test_a_splice_that_would_break_the_message(splices: list[Splice], stored: int) -> None:
    with pytest.raises(SpliceError):
        message_of(FIVE[:9], FIVE[9:], stored=stored).check(splices, LONGEST)


GOOD = {
    "none": [],
    "nothing at the beginning": [Splice(0, 0, b"")],
    "a line at the beginning": [Splice(0, 0, b"x: y\n")],
    "a line at the end": [Splice(21, 21, b"x: y\n")],
    "everything gone": [Splice(0, 21, b"")],
    "everything replaced": [Splice(0, 21, b"\n")],
    "two at one place": [Splice(5, 5, b"x: y\n"), Splice(5, 5, b"z: y\n")],
    "one behind the other": [Splice(0, 5, b""), Splice(5, 8, b"..\n")],
    "a stuffed dot": [Splice(0, 0, b"..\n")],
    "a line of just the length": [Splice(0, 0, b"x" * 20 + b"\n")],
    "lines that are longer together": [Splice(0, 0, b"x" * 20 + b"\n" + b"y" * 20 + b"\n")],
    "bytes that are not ASCII": [Splice(0, 0, b"x: \xe9\x01\t\n")],
}


@pytest.mark.parametrize("splices", GOOD.values(), ids=GOOD.keys())
def test_a_splice_that_is_good(splices: list[Splice]) -> None:
    message = message_of(FIVE)
    message.check(splices, LONGEST)
    assert b"".join(message.spliced(splices)) == reference(FIVE, splices)


@given(st.binary(max_size=30) | st.lists(new_lines).map(b"".join))
def test_new_lines_are_taken_if_and_only_if_they_can_be_sent(lines: bytes) -> None:
    contents = lines.split(b"\n")
    good = not lines or (
        contents.pop() == b""
        and not any(b"\r" in line or b"\0" in line for line in contents)
        and not any(line.startswith(b".") and not line.startswith(b"..") for line in contents)
        and all(len(line) <= LONGEST for line in contents)
    )
    try:
        check_lines(lines, LONGEST)
    except SpliceError:
        assert not good
    else:
        assert good


# Stores -----------------------------------------------------------------------------------


def test_a_store_is_read_in_pieces_of_a_bounded_size() -> None:
    data = b"x" * (PIECE * 2) + b"\n"
    message = message_of(data, b"more\n", stored=1)
    assert [len(piece) for piece in message.pieces()] == [PIECE, PIECE, 1, 5]
    assert message.in_memory == 5


def test_a_store_that_can_not_be_read_is_an_error() -> None:
    message = message_of(b"one\n", b"two\n", stored=1)
    message.store = Held(b"one\n", fail_at=0)
    with pytest.raises(OSError, match="no such luck"):
        b"".join(message.pieces())
    with pytest.raises(OSError, match="no such luck"):
        message.check([Splice(4, 4, b"")], LONGEST)


def test_a_dropped_message_gives_its_store_back_once() -> None:
    message = message_of(b"one\n", b"two\n", stored=1)
    store = message.store
    assert isinstance(store, Held)
    message.drop()
    message.drop()
    assert store.closed == 1
    assert (message.size, message.in_memory, b"".join(message.pieces())) == (0, 0, b"")


def test_pieces_that_are_under_way_stay_whole_when_the_message_goes_to_a_store() -> None:
    message = message_of(b"one\n", b"two\n", b"three\n")
    under_way = message.pieces()
    first = bytes(next(under_way))
    runs = take_runs(message)
    message.store, message.stored = Held(b"".join(runs)), message.size
    assert first + b"".join(under_way) == b"one\ntwo\nthree\n"
    assert b"".join(message.pieces()) == b"one\ntwo\nthree\n"


# Long lines -------------------------------------------------------------------------------

any_lines = st.lists(
    st.binary(max_size=70).map(lambda raw: raw.replace(b"\n", b"-") + b"\n"), max_size=8
).map(b"".join)


@given(any_lines, st.integers(2, 30))
def test_the_first_line_that_is_too_long(lines: bytes, longest: int) -> None:
    at, expected = 0, None
    for line in lines.split(b"\n"):
        if len(line) > longest:
            expected = at
            break
        at += len(line) + 1
    assert first_too_long(lines, longest) == expected


@given(any_lines, st.integers(2, 30))
def test_long_lines_are_broken_and_nothing_is_lost(lines: bytes, longest: int) -> None:
    expected: list[bytes] = []
    count = 0
    for line in lines.split(b"\n"):
        first, rest = line[:longest], line[longest:]
        expected.append(first)
        count += bool(rest)
        while rest:
            expected.append(b" " + rest[: longest - 1])
            rest = rest[longest - 1 :]
    broken, how_many = break_long(lines, longest)
    assert (broken, how_many) == (b"\n".join(expected), count)
    assert first_too_long(broken, longest) is None


@pytest.mark.parametrize("longest", [1997, 65_485])
@pytest.mark.parametrize("surplus", [-1, 0, 1, 2, 1996, 1997, 65_484, 65_485])
def test_a_line_is_broken_at_exactly_the_length_that_goes_back(longest: int, surplus: int) -> None:
    line = bytes(97 + at % 26 for at in range(longest + surplus))
    broken, count = break_long(b"before\n" + line + b"\nafter\n", longest)
    assert count == (surplus > 0)
    before, first, *rest, after, end = broken.split(b"\n")
    assert (before, after, end) == (b"before", b"after", b"")
    assert len(first) == min(longest, len(line))
    assert all(part.startswith(b" ") and 1 < len(part) <= longest for part in rest)
    assert first + b"".join(part[1:] for part in rest) == line
