"""Messages that are too large, too many for memory, or have lines too long: does the shim do
what its configuration says, and does everything else arrive byte for byte?
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import link
from bridge.smtpd.message import Splice
from bridge.testing.smtpd import Smtpd
from tests.unit.shim_world import MARKED, Act, Acting, Bridge, Straw, World, begun, send, survived

PLAIN = "[fcrdns]\nenabled = false"
LINES = b"".join(b"%05d %s\n" % (number, b"z" * 90) for number in range(20_000))


def of_size(size: int) -> bytes:
    return b"Subject: x\n\n" + LINES[:size].rpartition(b"\n")[0] + b"\n"


def never(straw: Straw, header: link.Header, body: bytes) -> None:
    pytest.fail("a bridge was asked about what nobody should ask about")


def silent(straw: Straw, header: link.Header, body: bytes) -> None:
    pass


def tagging(straw: Straw, header: link.Header, body: bytes) -> None:
    straw.answer(header["id"], "proceed", [Splice(0, 0, b"X-Seen: yes\n")])


# Too large --------------------------------------------------------------------------------

SIZES = {
    "in one chunk, with its end": 5_000,
    "in several chunks": 1_000_000,
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_a_message_that_is_too_large_passes_with_the_reason_and_nobody_is_asked(size: int) -> None:
    content = of_size(size)
    with World(Acting(never), "max_message_size = 2048") as world:
        assert send(world, content).code == 250
        (message,) = world.delivered
        top = b"X-Unscanned: bridge: message too large\nReceived: "
        assert message.content.startswith(top)
        assert message.content.endswith(content)
        assert "passed session=" in world.log
        survived(world)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_a_message_that_is_too_large_is_refused_where_that_is_wanted(size: int) -> None:
    config = '[failure.bridge]\ntoo_large = "tempfail"\n[shim]\nmax_message_size = 2048'
    with World(Acting(never), config) as world:
        assert str(send(world, of_size(size))).startswith("451 4.3.4 Message is too large")
        assert world.delivered == []
        survived(world)


def test_a_client_that_leaves_a_message_that_is_too_large() -> None:
    with World(Acting(never), "max_message_size = 2048") as world:
        client = world.connect()
        client.ehlo("client.example.net")
        client.mail("alice@example.net")
        client.rcpt("bob@example.org")
        client.later.data(of_size(500_000), end=False)
        client.abort()
        world.run()
        assert world.delivered == []
        survived(world)


# Too many for memory ----------------------------------------------------------------------


def spilling(folder: Path, max_spill: str = "1G") -> str:
    return f'max_memory = "1M"\nmax_spill = "{max_spill}"\nspill_dir = "{folder}"'


def test_messages_that_are_too_many_for_memory_wait_in_files_and_arrive_as_they_were(
    tmp_path: Path,
) -> None:
    contents = [of_size(size) for size in (400_000, 700_000, 50_000, 900_000)]
    with World(Acting(silent), spilling(tmp_path)) as world:
        outcomes = [begun(world, content)[1] for content in contents]
        spool = world.shim._spool
        assert spool.spilled > 900_000
        assert list(tmp_path.iterdir()) == []
        (straw,) = world.links
        asked = [(h, body) for h, body in straw.requests if h["phase"] == "message"]
        assert [body.endswith(c) for (_, body), c in zip(asked, contents, strict=True)] == [
            True
        ] * 4
        for header, body in reversed(asked):
            tagging(straw, header, body)
        for outcome in outcomes:
            assert world.wait(outcome).code == 250
        delivered = sorted(message.content for message in world.delivered)
        assert all(content.startswith(b"X-Seen: yes\nReceived: ") for content in delivered)
        tails = sorted(content.partition(b"(UTC)\n")[2] for content in delivered)
        assert tails == sorted(contents)
        assert spool.spilled == 0
        survived(world)


def test_a_message_that_has_no_place_left_is_refused_and_the_others_pass(tmp_path: Path) -> None:
    with World(Acting(silent), spilling(tmp_path, "600K")) as world:
        _, first = begun(world, of_size(500_000))
        _, second = begun(world, of_size(900_000))
        _, third = begun(world, of_size(450_000))
        world.run(lambda: second.done or third.done)
        world.become(Acting(tagging))
        (straw,) = world.links
        for header, body in straw.requests:
            if header["phase"] == "message":
                tagging(straw, header, body)
        replies = [str(world.wait(outcome)) for outcome in (first, second, third)]
        refused = [reply for reply in replies if reply.startswith("452 4.3.1 Insufficient")]
        assert 1 <= len(refused) <= 2
        assert len(world.delivered) == 3 - len(refused)
        assert "spill-failed" in world.log
        assert world.shim._spool.spilled == 0
        survived(world)


def test_a_directory_that_is_gone_refuses_what_does_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "spill"
    folder.mkdir()
    with World(Acting(silent), spilling(folder)) as world:
        folder.rmdir()
        _, outcome = begun(world, of_size(1_500_000))
        assert str(world.wait(outcome)).startswith("452 4.3.1 Insufficient system storage")
        assert 'error="No such file or directory"' in world.log
        survived(world)


# Lines that are too long ------------------------------------------------------------------

LONG = {"0.6": 1997, "0.7": 65_485}


@pytest.mark.parametrize("version", LONG)
def test_a_line_that_is_too_long_to_go_back_is_broken(version: str) -> None:
    line = b"x" * LONG[version]
    seen: list[bytes] = []

    def act(straw: Straw, header: link.Header, body: bytes) -> None:
        seen.append(body)
        straw.answer(header["id"])

    with World(Acting(act), MARKED, smtpd=Smtpd(version)) as world:
        assert send(world, b"Subject: x\n\n" + line + b"\n" + line + b"END\n").code == 250
        (message,) = world.delivered
        assert message.content.endswith(b"\n" + line + b"\n" + line + b"\n END\n")
        assert seen[0].endswith(b"\n" + line + b"\n" + line + b"\n END\n")  # the same is judged
        assert "long-lines-broken" in world.log
        survived(world)


@pytest.mark.parametrize("version", LONG)
def test_a_line_that_is_too_long_refuses_its_message_where_that_is_wanted(version: str) -> None:
    config = 'long_lines = "reject"'
    with World(Acting(never), config, smtpd=Smtpd(version)) as world:
        reply = send(world, b"Subject: x\n\n" + b"x" * (LONG[version] + 1) + b"\n")
        assert str(reply).startswith("554 5.6.0 A line of the message is too long [")
        assert world.delivered == []
        assert "refused session=" in world.log
        survived(world)


@pytest.mark.parametrize("version", LONG)
def test_new_lines_may_be_as_long_as_goes_back_and_no_longer(version: str) -> None:
    def adding(surplus: int) -> Act:
        line = b"X-Long: " + b"x" * (LONG[version] - 8 + surplus) + b"\n"
        return lambda straw, header, _: straw.answer(header["id"], "proceed", [Splice(0, 0, line)])

    with World(Acting(adding(0)), smtpd=Smtpd(version)) as world:
        assert send(world).code == 250
        world.become(Acting(adding(1)))
        assert str(send(world)).startswith("451 4.7.1")
        survived(world)


# Bytes ------------------------------------------------------------------------------------

ODD = {
    "no header and no body": b"\n",
    "only a header": b"Subject: x\n",
    "dots": b"Subject: x\n\n.\n..\n...\n.x\n. \n",
    "empty lines at the end": b"Subject: x\n\n\n\n\n",
    "bytes above ASCII": b"Subject: caf\xe9\n\n\xff\xfe\x80 \xf0\x9f\x90\xa1\n",
    "control characters": bytes(byte for byte in range(1, 32) if byte not in (10, 13)) + b": x\n",
    "carriage returns": b"Subject: x\n\na\rb\n\rc\n",
    "pipes and what looks like us": b"Subject: |\n\n|filter-dataline|1|2|.\nfilter-result|x\n",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_odd_messages_arrive_byte_for_byte(content: bytes) -> None:
    with World(Bridge()) as world:
        assert send(world, content).code == 250
        assert world.delivered[0].content.endswith(b"(UTC)\n" + content)
        assert world.faults == []


# Answers that wait for smtpd --------------------------------------------------------------


def test_many_answers_at_once_reach_an_smtpd_that_reads_slowly() -> None:
    content = b"Subject: x\n\n" + b"".join(b"%06d %s\n" % (n, b"z" * 60) for n in range(3000))
    with World(Acting(silent), PLAIN, send_buffer=4096) as world:
        outcomes = [begun(world, content)[1] for _ in range(5)]
        (straw,) = world.links
        for header, _ in straw.requests:
            straw.answer(header["id"], "proceed", [Splice(0, 0, b"X-Seen: yes\n")])
        for outcome in outcomes:
            assert world.wait(outcome).code == 250
        assert [d.content.endswith(content) for d in world.delivered] == [True] * 5
        assert world.faults == []
