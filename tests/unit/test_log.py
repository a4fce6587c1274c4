"""Is every record one short line that says what it says, and does stderr never hold anyone up?"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import log

# Records ----------------------------------------------------------------------------------

RECORDS: dict[str, tuple[dict[str, object], str]] = {
    "bare values": ({"session": "1ef1", "rcpts": 2}, "refused session=1ef1 rcpts=2"),
    "nothing to say is not said": ({"session": None, "by": ""}, "refused"),
    "zero and false are something": ({"lines": 0, "up": False}, "refused lines=0 up=False"),
    "an underscore is a hyphen": ({"real_time": 1.5}, "refused real-time=1.5"),
    "a blank": ({"reply": "550 No"}, 'refused reply="550 No"'),
    "a quote": ({"by": 'say "no"'}, 'refused by="say \\"no\\""'),
    "a backslash": ({"by": "a\\b"}, 'refused by="a\\\\b"'),
    "an equals sign": ({"by": "a=b"}, 'refused by="a=b"'),
    "a line end": ({"by": "a\r\nb"}, 'refused by="a\\x0d\\x0ab"'),
    "an escape and a NUL": ({"by": "\x1b[2J\0"}, 'refused by="\\x1b[2J\\x00"'),
    "a byte that is not UTF-8": ({"by": "caf\udce9"}, 'refused by="caf\\xdce9"'),
    "an address": ({"from": "<a|b@example.net>"}, "refused from=<a|b@example.net>"),
}


@pytest.mark.parametrize(("values", "line"), RECORDS.values(), ids=RECORDS.keys())
def test_a_record(values: dict[str, object], line: str) -> None:
    assert log.record("refused", **values) == line


@given(st.dictionaries(st.sampled_from(["session", "by", "reply", "error"]), st.text()))
def test_a_record_is_one_line_of_printable_ascii(values: dict[str, str]) -> None:
    line = log.record("refused", **values)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= log.MAX_LINE


@given(st.text(min_size=1, max_size=90))
def test_a_value_can_be_read_back(value: str) -> None:
    quoted = log.quote(value)
    if quoted == value:
        assert not set(value) & set(' "=\\')
        return
    assert quoted[0] == quoted[-1] == '"'
    assert '"' not in quoted[1:-1].replace("\\\\", "").replace('\\"', "")


def test_a_long_value_is_cut_and_says_so() -> None:
    assert log.quote("x" * 400) == "x" * 400
    assert log.quote("x" * 401) == "x" * 397 + "..."
    line = log.record("refused", a="\n" * 5000, b="y" * 5000, c="z" * 5000)
    assert len(line) == log.MAX_LINE


def test_an_exception_is_one_line_without_its_text() -> None:
    def deep() -> None:
        raise ValueError("hunter2\nof a client")

    try:
        deep()
    except ValueError as error:
        line = log.folded(error)
    assert line.startswith("ValueError at test_log.py:")
    assert line.count("test_log.py:") == 2
    assert "hunter2" not in line
    assert log.folded(ValueError("never raised")) == "ValueError at "


# stderr -----------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[log.Stderr, socket.socket]]:
    """A stderr as smtpd makes it, and smtpd's end."""
    theirs, ours = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        yield log.Stderr(theirs.fileno()), ours


def drained(stderr: log.Stderr, sock: socket.socket) -> bytes:
    """All that was written and still waits."""
    said = b""
    while chunk := read(sock):
        said += chunk
        stderr.flush()
    return said


def read(sock: socket.socket) -> bytes:
    found = []
    while True:
        try:
            found.append(sock.recv(65536))
        except BlockingIOError:
            return b"".join(found)
        if not found[-1]:
            return b"".join(found)


def test_a_line_is_written_at_once(pair: tuple[log.Stderr, socket.socket]) -> None:
    stderr, smtpd = pair
    stderr.write("one", 0.0)
    assert read(smtpd) == b"one\n"


def test_a_line_stays_one_line(pair: tuple[log.Stderr, socket.socket]) -> None:
    stderr, smtpd = pair
    stderr.write("one\ntwo caf\xe9 \udce9" + "x" * 5000, 0.0)
    (line,) = read(smtpd).split(b"\n")[:-1]
    assert line.startswith(b"one two caf\\xe9 \\udce9xxx")
    assert len(line) == log.MAX_LINE


def test_lines_that_nobody_reads_wait_in_a_bounded_buffer_and_come_whole(
    pair: tuple[log.Stderr, socket.socket],
) -> None:
    stderr, smtpd = pair
    for number in range(400):
        stderr.write(f"{number:03d} " + "x" * 900, 0.0)  # returns, although nobody reads
    said = drained(stderr, smtpd)
    lines = said.split(b"\n")
    assert lines.pop() == b""
    assert all(len(line) == 904 for line in lines)
    assert [int(line[:3]) for line in lines] == list(range(len(lines)))
    assert len(lines) < 400
    assert stderr.suppressed == 400 - len(lines)
    assert len(said) < log.MAX_BUFFER + 64 * 1024


def test_lines_beyond_the_rate_are_counted_and_the_count_is_told(
    pair: tuple[log.Stderr, socket.socket],
) -> None:
    stderr, smtpd = pair
    for _ in range(int(log.BURST) + 30):
        stderr.write("x", 0.0)
    assert drained(stderr, smtpd) == b"x\n" * int(log.BURST)
    assert stderr.suppressed == 30
    stderr.write("still", 0.01)
    assert read(smtpd) == b""
    stderr.write("later", 1.0)
    assert read(smtpd) == b"later\nlog-suppressed lines=31\n"
    stderr.write("again", 1.0)
    assert read(smtpd) == b"again\n"


def test_a_rate_that_is_kept_suppresses_nothing(pair: tuple[log.Stderr, socket.socket]) -> None:
    stderr, smtpd = pair
    for number in range(2000):
        stderr.write("x", number / log.RATE)
        assert read(smtpd) == b"x\n"
    assert stderr.suppressed == 0


def test_a_log_that_nobody_reads_any_more_is_no_error(
    pair: tuple[log.Stderr, socket.socket],
) -> None:
    stderr, smtpd = pair
    smtpd.close()
    stderr.write("one", 0.0)
    stderr.flush()


def test_a_stderr_that_is_a_pipe() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stderr = log.Stderr(writer)
    for _ in range(200):
        stderr.write("x" * 999, 0.0)
    assert os.read(reader, 1 << 20).startswith(b"x" * 999 + b"\n")
    os.close(reader)
    stderr.flush()
    os.close(writer)


# What a child writes ----------------------------------------------------------------------

PIECES: dict[str, tuple[list[bytes], list[str], bytes]] = {
    "a line": ([b"one\n"], ["one"], b""),
    "lines in pieces": ([b"on", b"e\ntw", b"o\n"], ["one", "two"], b""),
    "what has no end yet": ([b"one\ntwo"], ["one"], b"two"),
    "empty lines": ([b"\n\n \none\n"], ["one"], b""),
    "a line that is too long": ([b"x" * 2500 + b"\ny\n"], ["x" * 1000] * 2 + ["x" * 500, "y"], b""),
    "a line of just the length": ([b"x" * 1000 + b"\ny\n"], ["x" * 1000, "y"], b""),
    "a line without an end": ([b"x" * 2500], ["x" * 1000] * 2, b"x" * 500),
    "bytes that are not UTF-8": ([b"caf\xe9\n"], ["caf\\xe9"], b""),
}


@pytest.mark.parametrize(("pieces", "lines", "rest"), PIECES.values(), ids=PIECES.keys())
def test_what_a_child_writes_is_cut_into_lines(
    pieces: list[bytes], lines: list[str], rest: bytes
) -> None:
    pending = bytearray()
    assert [line for piece in pieces for line in log.cut_lines(pending, piece)] == lines
    assert pending == rest
