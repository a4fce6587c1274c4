"""Do held messages go to files when memory runs out, the largest first, and stay what they are?"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.smtpd.message import Message, Splice
from bridge.smtpd.session import Session
from bridge.spool import LEAST, QUIET, SpillFile, Spool

KIB = 1024
Held = list[tuple[Session, Message]]


def line(letter: str, size: int) -> bytes:
    return letter.encode() * (size - 1) + b"\n"


def held(**sizes: int) -> Held:
    """Messages of these sizes, in runs of 64 KiB."""
    messages = []
    for name, size in sizes.items():
        message = Message()
        for _ in range(size // (64 * KIB)):
            message.append(line(name, 64 * KIB))
        if size % (64 * KIB):
            message.append(line(name, size % (64 * KIB)))
        messages.append((Session(name), message))
    return messages


def content(message: Message) -> bytes:
    return b"".join(message.pieces())


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(max_memory=800 * KIB, max_spill=4096 * KIB, directory=str(tmp_path))


def test_it_is_time_to_look_when_more_has_come_in_than_may_be_held(spool: Spool) -> None:
    assert not spool.grew(700 * KIB)
    assert not spool.grew(100 * KIB)
    assert spool.grew(1)
    assert spool.balance(held(a=100 * KIB)) == []  # the rest was answered long ago
    assert not spool.grew(700 * KIB)
    assert spool.grew(1)


def test_nothing_goes_to_a_file_while_all_fits(spool: Spool) -> None:
    messages = held(a=300 * KIB, b=300 * KIB)
    assert spool.balance(messages) == []
    assert [message.store for _, message in messages] == [None, None]
    assert spool.spilled == 0


def test_the_largest_go_until_the_rest_fits_with_an_eighth_to_spare(spool: Spool) -> None:
    messages = held(a=100 * KIB, b=500 * KIB, c=350 * KIB, d=250 * KIB)
    assert spool.balance(messages) == []
    assert [message.stored for _, message in messages] == [0, 500 * KIB, 0, 0]
    # 701 KiB would fit, but not with an eighth of 800 to spare.
    messages = held(a=100 * KIB, b=500 * KIB, c=350 * KIB, d=251 * KIB)
    assert spool.balance(messages) == []
    assert [message.stored for _, message in messages] == [0, 500 * KIB, 350 * KIB, 0]


def test_a_message_is_the_same_in_a_file_and_grows_in_memory_and_file(spool: Spool) -> None:
    ((_, message),) = messages = held(a=900 * KIB)
    whole = content(message)
    for letter in "bcd":
        assert spool.balance(messages) == []
        assert message.in_memory == 0
        assert content(message) == whole
        message.append(line(letter, 801 * KIB))
        whole += line(letter, 801 * KIB)
        assert content(message) == whole
        assert message.size == len(whole)
    assert spool.spilled == message.stored == 2502 * KIB
    start = 900 * KIB
    splices = [Splice(0, 0, b"x: y\n"), Splice(start, start + 801 * KIB, b"")]
    message.check(splices, 1 << 30)
    spliced = b"x: y\n" + whole[:start] + whole[start + 801 * KIB :]
    assert b"".join(message.spliced(splices)) == spliced


def test_pieces_that_are_under_way_stay_whole_when_their_message_goes_to_a_file(
    spool: Spool,
) -> None:
    ((_, message),) = messages = held(a=900 * KIB)
    whole = content(message)
    under_way = message.pieces()
    parts = [bytes(next(under_way)), bytes(next(under_way))]
    spool.balance(messages)
    assert message.in_memory == 0
    assert b"".join(parts) + b"".join(under_way) == whole


def test_files_have_no_name_and_are_gone_with_their_message(spool: Spool, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    messages = held(a=900 * KIB, b=900 * KIB)
    spool.balance(messages)
    assert list(tmp_path.iterdir()) == []
    assert len(set(os.listdir("/proc/self/fd")) - before) == 2
    messages[0][1].drop()
    assert spool.spilled == 900 * KIB
    del messages  # also without a word
    assert spool.spilled == 0
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_does_not_fit_on_disk_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    spool = Spool(max_memory=100 * KIB, max_spill=1000 * KIB, directory=str(tmp_path))
    messages = held(a=900 * KIB, b=300 * KIB, c=90 * KIB)
    ((session, error),) = spool.balance(messages)
    assert session.id == "b"
    assert "max_spill" in str(error)
    assert [message.stored for _, message in messages] == [900 * KIB, 0, 90 * KIB]
    assert content(messages[0][1]) == content(held(a=900 * KIB)[0][1])
    messages[0][1].drop()
    messages[1][1].drop()  # as the shim does with what was named
    assert spool.spilled == 90 * KIB
    assert spool.balance(held(d=900 * KIB)) == []


def test_a_directory_that_is_not_there_names_every_message_that_had_to_go(tmp_path: Path) -> None:
    spool = Spool(100 * KIB, 1000 * KIB, str(tmp_path / "missing"))
    failed = spool.balance(held(a=900 * KIB, b=300 * KIB, c=10 * KIB))
    assert [(session.id, error.strerror) for session, error in failed] == [
        ("a", "No such file or directory"),
        ("b", "No such file or directory"),
    ]
    assert spool.spilled == 0


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond a size: the write that would is cut, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_in_the_middle_names_the_message_and_loses_no_count(
    spool: Spool,
) -> None:
    messages = held(a=900 * KIB)
    with largest_file(300 * KIB + 7):
        ((session, error),) = spool.balance(messages)
    assert session.id == "a"
    assert isinstance(error, OSError)
    assert spool.spilled == 0
    assert messages[0][1].in_memory == 900 * KIB  # nothing of it is lost
    messages[0][1].drop()
    assert spool.spilled == 0


@pytest.mark.parametrize("error", [OSError, MemoryError])
def test_a_message_that_could_not_be_spilled_is_whole_and_can_be_spilled_later(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    messages = held(a=900 * KIB)
    message = messages[0][1]
    before = b"".join(message.pieces())
    writes = iter(("a part", "fails"))

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        match next(writes, ""):
            case "a part":
                return real(fd, data[:1000], offset)
            case "fails":
                raise error
        return real(fd, data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert [session.id for session, _ in spool.balance(messages)] == ["a"]
    assert b"".join(message.pieces()) == before
    assert spool.balance(messages) == []
    assert (message.in_memory, spool.spilled) == (0, 900 * KIB)
    assert b"".join(message.pieces()) == before


def test_a_file_that_can_not_be_closed_is_closed_once(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []

    def close(fd: int) -> None:
        closed.append(fd)
        real(fd)
        raise OSError(errno.EIO, "Input/output error")

    real = os.close
    file = SpillFile(spool)
    file.append([b"one\n"])
    monkeypatch.setattr(os, "close", close)
    file.close()
    file.close()
    assert len(closed) == 1
    assert spool.spilled == 0


def test_what_memory_took_comes_back_in_quiet_times(tmp_path: Path) -> None:
    wanted = 8 * LEAST
    spool = Spool(wanted, 4 * wanted, str(tmp_path))
    spool.grew(wanted)
    spool.shrink([], 1000.0)
    shrunk = spool.max_memory
    assert shrunk < wanted
    spool.recover(1000.0 + QUIET - 1)
    assert spool.max_memory == shrunk
    now = 1000.0
    while spool.max_memory < wanted:
        now += QUIET
        assert now < 1000.0 + 30 * QUIET
        spool.recover(now)
    assert spool.max_memory == wanted


def test_a_file_that_is_closed_or_too_short_is_an_error(spool: Spool) -> None:
    file = SpillFile(spool)
    file.append([b"one\n", b"two\n"])
    assert file.read(4, 100) == b"two\n"
    with pytest.raises(OSError, match="too short"):
        file.read(8, 1)
    file.close()
    file.close()
    assert spool.spilled == 0
    with pytest.raises(OSError, match="closed"):
        file.read(0, 1)
