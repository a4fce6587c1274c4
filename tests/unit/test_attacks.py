"""What attacks of a client, a service or the machine were found once, and stay without effect?

Each would be seen on a real server too (tests/live/test_hostile*.py); here it is said what
exactly must not happen. What took minutes when it took time by the square takes none here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import link
from bridge.completion import MAX_COMPLETED, complete
from bridge.config import parse
from bridge.dispatch import Dispatcher, Lane
from bridge.edits import MAX_FIELDS, Add, Remove, apply, header_fields
from bridge.filter import Message as WholeMessage
from bridge.forged import FAR, claims_to_be, forged
from bridge.policy import Policy
from bridge.services import dkim, rspamd_reply
from bridge.services.build import Services
from bridge.services.fcrdns import Answer, Checker, Unavailable
from bridge.services.rspamd_verdict import MAX_EDITS
from bridge.services.upstream import ServiceError
from bridge.shim import Options, Shim
from bridge.smtpd import events
from bridge.smtpd.decisions import Proceed, Refusal
from bridge.smtpd.items import MESSAGE, Slot
from bridge.smtpd.message import SMALL, Message, Splice, break_long, join
from bridge.smtpd.session import Address, Session, Transaction
from bridge.spool import LEAST, Spool
from tests.unit.dialogue import Dialogue, S, take_runs

OURS = "mx.example.org"

# Forged fields -------------------------------------------------------------------------------
# A client may put a dot before any line, also one that goes on a field; smtpd takes it off.

FOLDED = b"Authentication-Results:\n. mx.example.org; dkim=pass\n.\theader.d=x\nX-A: b\n\nhello\n"


def test_a_field_goes_on_behind_a_needless_dot() -> None:
    results, other = header_fields(FOLDED)
    assert results.name == "Authentication-Results"
    assert results.value == b"mx.example.org; dkim=pass\theader.d=x"
    assert other.name == "X-A"
    assert join(FOLDED, apply(FOLDED, forged([results, other], OURS))) == b"X-A: b\n\nhello\n"


def test_a_field_is_removed_whole() -> None:
    wire = b"X-A: 1\n. 2\n..not it\nX-B: 3\n\n"
    assert join(wire, apply(wire, [Remove("X-A")])) == b"..not it\nX-B: 3\n\n"


def test_an_address_behind_a_needless_dot_is_completed() -> None:
    wire = b"From: al,\n. bo\n\nhello\n"
    found = complete(wire, OURS, dates=False, now=0.0, unique="1")
    assert join(wire, apply(wire, found.edits)) == (
        b"From: al@mx.example.org,\n bo@mx.example.org\n\nhello\n"
    )


CLAIMS = {
    "plain": b"mx.example.org; x=pass",
    "in capitals": b"MX.Example.ORG;",
    "behind nested comments": b"(a (b (c) d)) (e) mx.example.org;",
    "behind a comment with a quoted pair": b"(\\)) mx.example.org;",
    "behind a comment with a quotation mark": b'(") mx.example.org;',
    "quoted": b'"mx.example.org";',
    "quoted, with quoted pairs": b'"m\\x.example\\.org";',
    "quoted without an end": b'"mx.example.org',
    "with a version": b"mx.example.org 1;",
    "with a version of its own spelling": b"mx.example.org/1;",
    "with a comment at once": b"mx.example.org(c);",
    "with a final dot": b"mx.example.org.;",
    "behind what is no ASCII": b"\xa0\xc2\xa0mx.example.org;",
    "behind a comment without an end": b"(a mx.example.org;",
    "behind a very long comment": b"(" + b"a" * FAR + b") mx.example.org;",
    "behind very many blanks": b" " * FAR * 2 + b"mx.example.org;",
}
NO_CLAIMS = {
    "another": b"other.example; x=pass",
    "another with ours in a comment": b"(mx.example.org) other.example;",
    "ours as a part": b"mx.example.org.other.example;",
    "below ours": b"a.mx.example.org;",
    "quoted, and more": b'"mx.example.org other";',
    "nothing": b"",
    "nothing but a semicolon": b"; mx.example.org",
}


@pytest.mark.parametrize("value", CLAIMS.values(), ids=CLAIMS.keys())
def test_what_somebody_may_take_for_ours(value: bytes) -> None:
    assert claims_to_be(value, OURS)


@pytest.mark.parametrize("value", NO_CLAIMS.values(), ids=NO_CLAIMS.keys())
def test_what_nobody_takes_for_ours(value: bytes) -> None:
    assert not claims_to_be(value, OURS)


@pytest.mark.parametrize("part", [b"()", b"(", b'"\\a', b'"', b"\\", b" ", b"\xff", b"a"])
def test_a_field_of_megabytes_is_not_looked_through(part: bytes) -> None:
    claims_to_be(part * 10_000_000, OURS)
    claims_to_be(b'"' + part * 10_000_000, OURS)


def test_whatever_a_client_forges_an_answer_can_take_it_off() -> None:
    """Or the failure policy would speak, which may let it pass unscanned."""
    forged_ones = (MAX_FIELDS - 2) // 2
    wire = b"Authentication-Results: mx.example.org; x=pass\nX: y\n" * forged_ones + b"\nhello\n"
    splices = apply(wire, [*forged(header_fields(wire), OURS), Add("X-A", "v")])
    assert len(splices) >= forged_ones
    rows, new = link.splices_to_json(splices)
    assert link.splices_from_json(rows, new) == splices
    assert len(rows) + MAX_EDITS < link.MAX_SPLICES


# Time by the square ----------------------------------------------------------------------------


def test_lines_that_are_all_too_long_are_broken_in_one_go() -> None:
    lines = (b"x" * 1998 + b"\n") * 30_000
    assert break_long(lines, 1997) == ((b"x" * 1997 + b"\n x\n") * 30_000, 30_000)


def test_splices_of_a_message_that_came_in_many_pieces() -> None:
    message, field = Message(), b"Authentication-Results: mx.example.org; a=pass\n"
    for _ in range(20_000):
        message.append(field + b"X" * SMALL + b"\n")
    step = len(field) + SMALL + 1
    splices = [Splice(n * step, n * step + len(field), b"") for n in range(20_000)]
    message.check(splices, 65_485)
    assert sum(map(len, message.spliced(splices))) == 20_000 * (SMALL + 1)


def test_a_message_that_came_byte_by_byte_is_not_held_so() -> None:
    message = Message()
    for _ in range(10 * SMALL):
        message.append(b"\n")
    assert len(list(message.pieces())) == 10
    assert b"".join(message.pieces(SMALL - 1, SMALL + 2)) == b"\n\n\n"


def test_recipients_are_not_copied_for_each_request() -> None:
    transaction = Transaction("1", "al@client.example", [f"{n}@example.org" for n in range(10)])
    known = link.session_to_json(Session("1", transaction=transaction))
    assert known["transaction"]["recipients"] is transaction.recipients
    assert link.session_from_json(known).transaction == transaction


MANY = {
    "20,000 To fields": b"To: al\n" * 20_000,
    "a To field of 10 MB": b"To:" + b" al," * 2_500_000 + b"bo\n",
    "10 MB of To fields": (b"To:" + b" al," * 15_000 + b"bo\n") * 160,
    "a From field of 10 MB": b"From: " + b"()" * 5_000_000 + b"al\n",
}


@pytest.mark.parametrize("header", MANY.values(), ids=MANY.keys())
def test_what_nobody_writes_is_left_to_smtpd_to_complete(header: bytes) -> None:
    found = complete(header + b"\nhello\n", OURS, dates=False, now=0.0, unique="1")
    assert len(found.edits) <= MAX_COMPLETED
    assert set(found.unstable) & {"To", "From"}  # so that it is not signed
    apply(header + b"\nhello\n", found.edits)
    assert dkim.from_domain(header) == ""


# Slots -------------------------------------------------------------------------------------------


def asked(dispatcher: Dispatcher, phase: str, name: str) -> None:
    session = Session(name)
    event = events.RcptTo(name, "bo@example.org")
    dispatcher.add(Slot(session, phase, event, Message() if phase == MESSAGE else None), 0.0, 15.0)


def test_commands_that_wait_for_a_stranger_s_dns_take_no_message_s_slot() -> None:
    dispatcher, lane = Dispatcher(), Lane(slots=2, commands=32, bytes=1000)
    for number in range(100):
        asked(dispatcher, "rcpt-to", f"stranger {number}")
    asked(dispatcher, MESSAGE, "customer")
    sent = []
    while (item := dispatcher.next_for(lane, 0.0)) is not None:
        dispatcher.send(item, lane)
        sent.append(item.slot.session.id)
    assert sent == [*(f"stranger {number}" for number in range(32)), "customer"]


class SilentDns:
    """Never answers; counts who was asked about."""

    def __init__(self) -> None:
        self.asked = 0

    async def ptr(self, address: Address) -> Answer:
        self.asked += 1
        raise Unavailable("timeout")

    async def addresses(self, name: str, version: int) -> Answer:
        raise AssertionError("nothing to ask about")


def test_a_message_does_not_wait_for_the_dns_again() -> None:
    dns, config = SilentDns(), parse("[rspamd]\nenabled = false")
    session = Session("1", src="192.0.2.1:25", dest="192.0.2.2:25")

    async def decide(event: events.Request | WholeMessage) -> int:
        # One that remembers nothing: what it knew is too old by now.
        checker = Checker(dns)
        policy = Policy(config, Services(checker, None, None), lambda event, **values: None)
        verdict = await policy.decide(event, session)
        assert isinstance(verdict.decision, Proceed)
        await checker.aclose()
        return dns.asked

    assert asyncio.run(decide(events.RcptTo("1", "bo@example.org"))) == 1
    assert asyncio.run(decide(events.RcptTo("1", "bo@example.org"))) == 2
    assert asyncio.run(decide(WholeMessage("1", b"Received: x\n\nhello\n"))) == 2


# Replies -----------------------------------------------------------------------------------------


def test_json_that_takes_too_long_to_read_is_not_read() -> None:
    body = b'{"action": "no action", "a": [' + b"[]," * 10_000_000 + b"[]]}"
    with pytest.raises(ServiceError, match="bytes of JSON"):
        rspamd_reply.parse_reply(200, {}, body)
    with pytest.raises(ServiceError, match="bytes"):
        dkim.parse_reply(200, {}, body)


def test_a_new_body_is_no_json() -> None:
    text = json.dumps({"action": "no action"}).encode()
    block = b"x\n" * rspamd_reply.MAX_JSON
    reply = rspamd_reply.parse_reply(200, {"Message-Offset": str(len(text))}, text + block)
    assert reply.block == block


# smtpd's side ------------------------------------------------------------------------------------


def test_a_session_s_id_may_come_again() -> None:
    dialogue = Dialogue()
    begin = dialogue.report("link-connect", "x.example", "pass", "192.0.2.1:1", "192.0.2.2:25")
    dialogue.feed(begin, dialogue.report("link-disconnect"), begin)
    slot = dialogue.ask("helo", "x.example")
    dialogue.protocol.answer(slot, Proceed())
    assert dialogue.output() == dialogue.result("helo", "proceed")


class TornStore:
    """A store that hands out a message in these pieces and then has no memory."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def read(self, offset: int, length: int) -> bytes:
        if not self.pieces:
            raise MemoryError
        return self.pieces.pop(0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("pieces", "goes_out"),
    [
        ([b"a\nb\n", b"c"], b"a\nb\nc\n.\n"),
        ([b"a\nb\n", b"."], b"a\nb\n..\n.\n"),
        ([b"."], b"..\n.\n"),
        ([b"a\n."], b"a\n..\n.\n"),
        ([b"a\n"], b"a\n.\n"),
        ([b"a", b"."], b"a.\n.\n"),
    ],
    ids=lambda value: repr(value),
)
def test_a_message_that_can_t_be_handed_on_ends_on_a_line_s_end_and_is_refused(
    pieces: list[bytes], goes_out: bytes
) -> None:
    dialogue = Dialogue()
    slot = dialogue.message(b"x" * 99 + b"\n")
    assert slot.message is not None
    take_runs(slot.message)
    slot.message.store, slot.message.stored = TornStore(*pieces), 100
    other = dialogue.ask("noop", session="0123456789abcdef")
    dialogue.protocol.answer(slot, Proceed())
    dialogue.protocol.answer(other, Proceed())
    proceed = dialogue.result("noop", "proceed", session="0123456789abcdef")
    assert dialogue.output() == dialogue.echo(goes_out) + proceed
    dialogue.feed(dialogue.request("commit"))
    assert dialogue.output().startswith(dialogue.result("commit", "reject|451 4.3.0").rstrip())


def test_what_was_taken_out_is_not_lost_with_what_fails() -> None:
    dialogue = Dialogue()

    def failing() -> Iterator[bytes]:
        yield b"second\n"
        raise MemoryError

    dialogue.protocol.output.say(b"first\n")
    dialogue.protocol.output.stream(failing())
    dialogue.protocol.output.say(b"third\n")
    with pytest.raises(MemoryError):
        dialogue.protocol.output.next()
    assert dialogue.output() == b"first\nsecond\nthird\n"


def test_a_message_of_which_lines_were_lost_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogue = Dialogue()
    dialogue.feed(*dialogue.lines(b"Subject: x\n"))

    def failing(message: Message, run: bytes) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Message, "append", failing)
        with pytest.raises(MemoryError):
            dialogue.feed(*dialogue.lines(b"lost\n"))
    dialogue.feed(*dialogue.lines(b"\nhello\n.\n"), dialogue.request("commit"))
    assert dialogue.echo(b".\n") in dialogue.output()
    (live,) = dialogue.protocol.sessions.values()
    assert isinstance(live.verdict, Refusal)
    assert live.session.id == S


# The machine -------------------------------------------------------------------------------------


class Speechless(Shim):
    """A shim without the memory for a log line."""

    def log(self, event: str, **values: object) -> None:
        raise MemoryError


def test_an_error_that_can_t_be_told_ends_nothing(tmp_path: Path) -> None:
    shim = Speechless(parse(f'[shim]\nspill_dir = "{tmp_path}"'), Options())

    def failing() -> None:
        raise MemoryError

    assert not shim.guarded(failing)


def test_when_memory_ends_before_its_bound_half_of_it_has_to_do(tmp_path: Path) -> None:
    spool, message = Spool(256 << 20, 1 << 30, str(tmp_path)), Message()
    for _ in range(64):
        message.append(b"x" * 65_535 + b"\n")
        spool.grew(65_536)
    assert spool.shrink([(Session("1"), message)], 0.0) == []
    assert spool.max_memory == 2 << 20
    assert (message.in_memory, message.size) == (0, 4 << 20)
    assert b"".join(message.pieces()) == (b"x" * 65_535 + b"\n") * 64
    for _ in range(9):
        spool.shrink([], 0.0)
    assert spool.max_memory == LEAST
    message.drop()
    assert spool.spilled == 0
