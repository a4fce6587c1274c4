"""What happens to what is too much: long lines, big messages, and more than memory holds?

Each listener of one server has a filter of its own with other limits. All is sent with the real
bridge and rspamd, and smtpd has to be as well afterwards as before.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import pytest

from tests.live import places
from tests.live.letters import DATED, SENDER, Post, ready
from tests.live.rspamd import Rspamd, verdict
from tests.live.world import Client, Listener, OpenSMTPD, eventually, stored

TOO_LONG = {"6.8": 5000, "7.6": 65_500}

SERVICES = """
fcrdns.enabled = false
rspamd.servers = ["RSPAMD"]
rspamd.timeout = "10s"
"""
# Each a filter of its own, with what it has more.
FILTERS = {
    "break": "",
    "reject": 'shim.long_lines = "reject"',
    "small": """
        rspamd.max_size = "40K"
        shim.max_message_size = "80K"
        [[profile]]
        name = "accept"
        match.port = 2601
        failure.rspamd.too_large = "accept"
        failure.bridge.too_large = "accept"
        [[profile]]
        name = "defer"
        match.port = 2602
        failure.rspamd.too_large = "tempfail"
        failure.bridge.too_large = "tempfail"
        """,
    "spill": 'shim.max_memory = "4M"\nshim.spill_dir = "{dir}/spill"',
    "full": 'shim.max_memory = "1M"\nshim.max_spill = "3M"\nshim.spill_dir = "{dir}/spill"',
    "closed": 'shim.max_memory = "1M"\nshim.spill_dir = "{dir}/closed"',
}
LISTENERS = [
    Listener("break", 25, filters=("break",)),
    Listener("reject", 2501, filters=("reject",)),
    Listener("small", 2600, filters=("small",)),
    Listener("small accept", 2601, filters=("small",)),
    Listener("small defer", 2602, filters=("small",)),
    Listener("spill", 2700, filters=("spill",)),
    Listener("full", 2701, filters=("full",)),
    Listener("closed", 2702, filters=("closed",)),
]


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[Post]:
    services = SERVICES.replace("RSPAMD", rspamd.url)
    files = {f"{name}.toml": services + own for name, own in FILTERS.items()}
    mta = OpenSMTPD(
        request.param,
        filters={name: f"{{bridge}} -f {{dir}}/{name}.toml" for name in FILTERS},
        socket_filters=(),
        files=files,
        listeners=LISTENERS,
    )
    (mta.dir / "spill").mkdir(mode=0o777)
    (mta.dir / "spill").chmod(0o777)
    (mta.dir / "closed").mkdir()
    with mta:
        yield ready(mta, *FILTERS)
        assert mta.alive
        assert len(mta.pids().filters) == len(FILTERS)
    assert not mta.leftovers


@pytest.fixture(autouse=True)
def _swept(post: Post) -> Iterator[None]:
    yield
    post.clear()


def shim(mta: OpenSMTPD, name: str) -> int:
    """The process that smtpd runs for that filter."""
    [pid] = (
        p.pid
        for p in mta.processes()
        if p.pid in mta.pids().filters and f"{mta.dir}/{name}.toml" in p.argv
    )
    return pid


def broken(line: bytes, longest: int) -> bytes:
    """The line as it has to come back: LF and a blank wherever it would be too long."""
    pieces = [line[:longest]]
    pieces += [line[i : i + longest - 1] for i in range(longest, len(line), longest - 1)]
    return b"\n ".join(pieces) + b"\n"


def big(size: int, mark: bytes) -> bytes:
    """A letter of about that size whose lines can be told from those of any other."""
    lines = (b"%s %07d %s\r\n" % (mark, number, b"x" * 60) for number in range(size // 75))
    return DATED + b"\r\n" + b"".join(lines)


# Lines.


def test_a_line_too_long_to_go_back_is_broken_and_the_log_says_so(post: Post) -> None:
    longest, length = places.LONGEST[post.mta.version], TOO_LONG[post.mta.version]
    line = bytes(range(33, 127)) * (length // 94 + 1)
    just = b"y" * (longest + 1)
    message = DATED + b"\r\nbefore\r\n" + line[:length] + b"\r\n" + just + b"\r\n.after\r\n"
    mail = post.send(message)
    expected = broken(line[:length], longest) + broken(just, longest)
    assert mail.body == b"before\n" + expected + b".after\n"
    post.mta.wait_log(r"break: long-lines-broken session=\w{16} lines=[12]$")


def test_a_field_too_long_to_go_back_becomes_a_folded_one(post: Post) -> None:
    length = TOO_LONG[post.mta.version]
    mail = post.send(DATED + b"X-Long: " + b"x" * (length - 8) + b"\r\nX-Next: y\r\n\r\nz\r\n")
    [value] = mail.header("X-Long")
    assert value.replace(b"\n ", b"") == b"x" * (length - 8)
    assert mail.header("X-Next") == [b"y"]
    assert mail.body == b"z\n"


def test_a_line_too_long_to_go_back_is_refused_if_so_configured(post: Post) -> None:
    message = DATED + b"\r\nbefore\r\n" + b"x" * TOO_LONG[post.mta.version] + b"\r\nafter\r\n"
    with post.mta.client("reject") as client:
        reply = post.refused(client, message)
        assert str(reply).startswith("554 5.6.0 A line of the message is too long [")
        exact = DATED + b"\r\n" + b"x" * places.LONGEST[post.mta.version] + b"\r\n"
        assert post.sent(client, exact).body == stored(exact.partition(b"\r\n\r\n")[2])
    post.mta.wait_log(r'reject: refused session=\w+ .* phase=message by=shim reply="554 5\.6\.0 ')


# Messages that are too big to be scanned.

UNSCANNED = {
    "for rspamd": (60_000, b"rspamd: too-large"),
    "to be held at all": (150_000, b"bridge: message too large"),
}


@pytest.mark.parametrize(("size", "why"), UNSCANNED.values(), ids=UNSCANNED.keys())
def test_a_message_too_big_passes_and_says_why_it_was_not_scanned(
    post: Post, rspamd: Rspamd, size: int, why: bytes
) -> None:
    before = len(rspamd.seen())
    message = verdict(action="reject") + big(size, b"a") + b".\r\n"
    mail = post.send(message, listener="small")
    assert mail.header("X-Unscanned") == [why]
    assert mail.body == stored(message).partition(b"\n\n")[2]
    assert len(rspamd.seen()) == before
    post.mta.wait_log(r'small: passed session=\w+ .*by="(rspamd: too-large|bridge: message too)')


@pytest.mark.parametrize(("size", "why"), UNSCANNED.values(), ids=UNSCANNED.keys())
def test_a_message_too_big_passes_as_it_is_if_so_configured(
    post: Post, size: int, why: bytes
) -> None:
    message = big(size, b"b")
    assert post.send(message, listener="small accept").below_received == stored(message)


@pytest.mark.parametrize(("size", "why"), UNSCANNED.values(), ids=UNSCANNED.keys())
def test_a_message_too_big_is_deferred_if_so_configured(post: Post, size: int, why: bytes) -> None:
    with post.mta.client("small defer") as client:
        reply = post.refused(client, big(size, b"c"))
        assert (reply.code, reply.enhanced) == (451, "4.3.4")
        assert "too large" in reply.text


def test_a_message_that_is_not_too_big_is_scanned(post: Post) -> None:
    with post.mta.client("small") as client:
        message = verdict(action="reject", message="no") + big(35_000, b"d")
        assert str(post.refused(client, message)).startswith("554 5.7.1 no [")


# More than memory holds.


def sending(post: Post, listener: str, messages: list[bytes]) -> list[tuple[Client, str, bytes]]:
    """Sessions that have sent all of a message but the final dot, one after the other."""
    open_ones = []
    for message in messages:
        client = post.mta.client(listener)
        to = post.recipient()
        assert client.begin(SENDER, [to]).code == 354
        client.send(message)
        open_ones.append((client, to, message))
    return open_ones


def spilled(pid: int) -> int:
    """How many unlinked spill files the process has open."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed by now
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sum(bool(re.search(r"/spill/filter-bridge-\w+-\w+ \(deleted\)$", x)) for x in links)


def test_what_memory_does_not_hold_is_spilled_and_arrives(post: Post) -> None:
    pid = shim(post.mta, "spill")
    messages = [big(5 << 20, b"%d" % number) for number in range(4)]
    messages[2] = verdict(action="reject", message="no") + messages[2]
    open_ones = sending(post, "spill", messages)
    eventually("spilled messages", lambda: spilled(pid) >= 3)
    assert not list((post.mta.dir / "spill").iterdir())
    for client, _, _ in open_ones:
        client.send(b".\r\n")
    replies = [client.read() for client, _, _ in open_ones]
    assert [reply.code for reply in replies] == [250, 250, 554, 250]
    for number in (0, 1, 3):
        client, to, message = open_ones[number]
        assert post.arrived(to).below_received == stored(message)
        post.sent(client)
        client.close()
    eventually("no open file", lambda: spilled(pid) == 0)


def test_a_client_that_leaves_gives_its_space_back(post: Post) -> None:
    pid = shim(post.mta, "spill")
    [(client, _, _)] = sending(post, "spill", [big(6 << 20, b"e")])
    eventually("a spilled message", lambda: spilled(pid) == 1)
    client.abort()
    eventually("no open file", lambda: spilled(pid) == 0)


def test_with_no_space_left_messages_are_deferred_and_nothing_is_lost(post: Post) -> None:
    open_ones = sending(post, "full", [big(2 << 20, b"%d" % number) for number in range(5)])
    for client, _, _ in open_ones:
        client.send(b".\r\n")
    replies = [client.read() for client, _, _ in open_ones]
    assert {reply.code for reply in replies} == {250, 452}
    for reply, (client, to, message) in zip(replies, open_ones, strict=True):
        post.sent(client)
        client.close()
        if reply.ok:
            assert post.arrived(to).below_received == stored(message)
        else:
            assert reply.enhanced == "4.3.1"
            assert post.found(to) == []
    post.mta.wait_log(r'full: deferred session=\w+ .*reply="452 4\.3\.1 ')


def test_a_spill_dir_that_is_closed_defers_what_does_not_fit(post: Post) -> None:
    with post.mta.client("closed") as client:
        for size in (2 << 20, 6 << 20):
            reply = post.refused(client, big(size, b"f"))
            assert (reply.code, reply.enhanced) == (452, "4.3.1")
        post.sent(client, big(500_000, b"g"))
    post.mta.wait_log(r'closed: spill-failed session=\w+ error="Permission denied"')
