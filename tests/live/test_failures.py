"""What becomes of mail when rspamd, or the bridge itself, gives no answer? On real servers.

Each choice of the failure policy is a profile of its own port; how the service misbehaves is
switched while the server runs. That nothing passes unsaid is the point: every message that was
not scanned has a line in the log, whatever became of it.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from bridge.testing.http import BEHAVIOURS, Reply, StandIn
from tests.live import addresses, places
from tests.live.bridged import bridged, connected, lines, message
from tests.live.mail import Delivered
from tests.live.rspamd import Rspamd, verdict
from tests.live.world import Listener, OpenSMTPD, eventually
from tests.unit.standing import standing_in

TEMPFAIL = "451 4.7.1 Message could not be checked, please try again later"
TOO_LARGE = "451 4.3.4 Message is too large to be checked"
DEADLINE = 10.0  # of a message; what asks longer is not seen below
PORTS = {"tempfail": 25, "accept": 2501, "accept-header": 2502, "submission": 587}
POLICIES = """
[failure.rspamd.authenticated]
default = "accept-header"
[[profile]]
name = "accept"
match.port = 2501
failure.rspamd.default = "accept"
failure.rspamd.too_large = "tempfail"
failure.bridge.default = "accept"
[[profile]]
name = "accept-header"
match.port = 2502
failure.rspamd.default = "accept-header"
failure.bridge.default = "accept-header"
"""
TOML = """
[shim]
message_deadline = "10s"
[fcrdns]
enabled = false
[rspamd]
servers = ["{rspamd}"]
timeout = "600ms"
deadline = "1200ms"
retries = 1
max_errors = 1000
max_size = "1M"
"""

# What each misbehaviour of bridge/testing/http.py is called.
KINDS = {
    "empty": "bad-reply",
    "garbage": "bad-reply",
    "500-json": "http-error",
    "500-html": "http-error",
    "502": "http-error",
    "503": "http-error",
    "504": "http-error",
    "401": "http-error",
    "redirect": "http-error",
    "slam": "unreachable",
    "deaf": "timeout",
    "hang": "timeout",
    "close": "unreachable",
    "reset": "unreachable",
    "slow-head": "timeout",
    "slow-body": "timeout",
    "cut-body": "unreachable",
    "huge": "bad-reply",
    "endless": "bad-reply|timeout",  # whichever comes first: 9 MB, or the time
    "endless-head": "bad-reply",
    "not-http": "bad-reply",
}


class Outcome(NamedTuple):
    """What a client was told, what arrived, and what the log says of it."""

    reply: str
    seconds: float
    mails: list[Delivered]
    logged: list[tuple[str, dict[str, str]]]  # event and values


def post(mta: OpenSMTPD, policy: str, text: bytes, name: str) -> Outcome:
    """One message under a policy, to a recipient of its own."""
    recipient = f"{name}@example.org"
    with connected(mta, policy) as client:
        start = time.monotonic()
        reply = client.deliver("sender@client.example", [recipient], text)
        seconds = time.monotonic() - start
        peer = client.local
        # The session is usable.
        assert client.cmd("NOOP").code == 250
        assert client.mail("sender@client.example").code == 250
    mails = arrived(mta, recipient, 1 if reply.ok else 0)
    log = mta.log()
    events = ("refused", "deferred", "disconnected", "passed")
    logged = [(e, line) for e in events for line in lines(log, e) if line["peer"] == peer]
    return Outcome(str(reply), seconds, mails, logged)


def arrived(mta: OpenSMTPD, recipient: str, number: int) -> list[Delivered]:
    """So many mails for a recipient."""

    def found() -> list[Delivered]:
        return [mail for mail in mta.mails() if mail.recipient == recipient]

    if number:
        eventually(f"mail for {recipient}", lambda: len(found()) >= number, 30)
    return found()


def unscanned(outcome: Outcome) -> list[bytes]:
    [mail] = outcome.mails
    return mail.header("X-Unscanned")


def check_deferred(outcome: Outcome, by: str, reply: str = TEMPFAIL) -> None:
    """Refused for a while, nothing delivered, and one line that tells all. by: a regular
    expression for what is said to have decided."""
    assert re.fullmatch(re.escape(reply) + r" \[[0-9a-f]{16}\]", outcome.reply)
    assert outcome.mails == []
    [(event, line)] = outcome.logged
    assert event == "deferred"
    assert re.fullmatch("[0-9a-f]{16}", line["session"])
    assert re.fullmatch("[0-9a-f]{8}", line["msgid"])
    assert (line["from"], line["rcpts"], line["phase"]) == (
        "<sender@client.example>",
        "1",
        "message",
    )
    assert re.match(by, line["by"])
    assert line["reply"] == reply
    assert outcome.reply.endswith(f"[{line['session']}]")


def check_passed(outcome: Outcome, by: str, *, marked: str = "") -> None:
    """Delivered, marked or not, and one line that tells why."""
    assert outcome.reply.startswith("250 ")
    values = unscanned(outcome)
    assert len(values) == bool(marked)
    assert all(re.fullmatch(marked, value.decode()) for value in values)
    [(event, line)] = outcome.logged
    assert event == "passed"
    assert line["msgid"] in outcome.reply
    assert re.match(by, line["by"])


@pytest.fixture(scope="module")
def service() -> Iterator[StandIn]:
    """In rspamd's place."""
    with standing_in("ok") as running:
        yield running


@pytest.fixture(scope="module", params=places.VERSIONS)
def mta(request: pytest.FixtureRequest, service: StandIn) -> Iterator[OpenSMTPD]:
    """A server of each version, asking the stand-in; on 7.6 with TLS and AUTH."""
    listeners = [Listener(name, port) for name, port in PORTS.items() if port != 587]
    if request.param == "7.6":
        listeners.append(Listener.submission())
    with bridged(
        request.param,
        TOML + POLICIES,
        values={"rspamd": service.url},
        listeners=listeners,
        users={"alice": "secret"},
    ) as running:
        running.wait_log("bridge-up", 30)
        pids = running.pids()
        yield running
        assert running.alive
        assert running.pids() == pids  # nor did the bridge have to be replaced
    assert not running.leftovers


@pytest.fixture(autouse=True)
def _well(request: pytest.FixtureRequest) -> None:
    """Each test begins with a service that is well."""
    if "mta" in request.fixturenames:
        request.getfixturevalue("service").behave("ok")


# What the service says -------------------------------------------------------------------------


def test_every_misbehaviour_is_here() -> None:
    assert set(KINDS) | {"ok"} == set(BEHAVIOURS)


@pytest.mark.parametrize(("behaviour", "kind"), KINDS.items(), ids=KINDS.keys())
def test_a_service_that_misbehaves(
    mta: OpenSMTPD, service: StandIn, behaviour: str, kind: str
) -> None:
    service.behave(behaviour)
    policies = ("tempfail", "accept", "accept-header")
    with ThreadPoolExecutor() as pool:
        # Whoever authenticates has a table of their own; so have local users.
        local = pool.submit(mta.sendmail, message(), [f"local-{behaviour}@example.org"])
        asked = {
            policy: pool.submit(post, mta, policy, message(behaviour), f"{policy}-{behaviour}")
            for policy in policies
        }
    outcome = {policy: future.result() for policy, future in asked.items()}
    assert all(each.seconds < DEADLINE for each in outcome.values())
    why = f"rspamd: ({kind})"
    check_deferred(outcome["tempfail"], rf"{why}: {re.escape(service.url)}: ")
    check_passed(outcome["accept"], f"{why}: ")
    check_passed(outcome["accept-header"], f"{why}: ", marked=why)
    assert local.result().returncode == 0
    [mail] = arrived(mta, f"local-{behaviour}@example.org", 1)
    assert re.fullmatch(why, mail.header("X-Unscanned")[0].decode())
    service.behave("ok")
    well = post(mta, "tempfail", message(behaviour), f"after-{behaviour}")
    assert (unscanned(well), well.logged) == ([], [])
    assert mta.alive


# Replies with status 200, of which none says what to do with the message.
NO_ACTION: dict[str, bytes] = {
    "no action at all": b'{"score":0.0,"required_score":15.0,"symbols":{}}',
    "an empty object": b"{}",
    "an empty action": b'{"action":""}',
    "an action that is null": b'{"action":null}',
    "an action that is a number": b'{"action":4}',
    "an action that is a list": b'{"action":["no action"]}',
    "a list": b'[{"action":"no action"}]',
    "a string": b'"no action"',
    "two objects": b'{"action":"no action"}{"action":"no action"}',
    "an action cut short": b'{"action":"no act',
    "an error and rspamd's word for none": b'{"error":"no","action":"unknown action"}',
}


@pytest.mark.parametrize("body", NO_ACTION.values(), ids=NO_ACTION.keys())
def test_a_reply_without_an_action_is_a_failure(
    mta: OpenSMTPD, service: StandIn, body: bytes, request: pytest.FixtureRequest
) -> None:
    service.behave(Reply(body=body))
    name = re.sub(r"\W+", "-", request.node.callspec.id)
    outcome = post(mta, "tempfail", message(), f"n-{name}"[:60])
    check_deferred(outcome, rf"rspamd: bad-reply: {re.escape(service.url)}: ")


def test_an_action_that_nobody_knows_is_told(mta: OpenSMTPD, service: StandIn) -> None:
    service.behave(Reply(body=b'{"action":"frobnicate","score":3}'))
    before = len(lines(mta.log(), "rspamd-note"))
    outcome = post(mta, "tempfail", message(), "frobnicate")
    assert outcome.reply.startswith("250 ")
    [note] = lines(mta.log(), "rspamd-note")[before:]
    assert "unknown action 'frobnicate'" in note["note"]
    assert re.search(rf"{note['session']} smtp message ", mta.log())


LARGE = message(body=b"x" * 70 + b"\r\n") + (b"y" * 70 + b"\r\n") * 16_000


def test_a_message_too_large_for_rspamd_has_an_answer_of_its_own(
    mta: OpenSMTPD, service: StandIn
) -> None:
    asked = service.count
    check_passed(
        post(mta, "tempfail", LARGE, "large"), "rspamd: too-large: ", marked="rspamd: too-large"
    )
    check_deferred(post(mta, "accept", LARGE, "large2"), "rspamd: too-large: ", TOO_LARGE)
    assert service.count == asked


def test_a_forged_word_that_it_was_not_scanned_is_taken_off(mta: OpenSMTPD) -> None:
    head = b"X-Unscanned: rspamd: timeout\r\n"
    assert unscanned(post(mta, "tempfail", message(head=head), "forged")) == []


@pytest.mark.parametrize("mta", ["7.6"], indirect=True)  # 6.8 can't do TLS as a server
def test_who_authenticates_has_a_table_of_their_own(mta: OpenSMTPD, service: StandIn) -> None:
    service.behave("hang")
    with mta.client("submission") as client:
        for reply in (client.ehlo(), client.starttls(), client.ehlo()):
            assert reply.ok
        assert client.auth_plain("alice", "secret").code == 235
        assert client.deliver("a@client.example", ["alice@example.org"], message()).code == 250
    [mail] = arrived(mta, "alice@example.org", 1)
    assert mail.header("X-Unscanned") == [b"rspamd: timeout"]
    check_deferred(post(mta, "tempfail", message(), "stranger"), "rspamd: timeout: ")


def test_local_users_may_have_to_wait_where_strangers_pass(version: str, service: StandIn) -> None:
    service.behave("503")
    policy = '[failure.rspamd]\ndefault = "accept"\nauthenticated.default = "tempfail"\n'
    with bridged(version, TOML + policy, values={"rspamd": service.url}) as mta:
        assert mta.send(message()).code == 250
        done = mta.sendmail(message())
        assert done.returncode != 0
        assert TEMPFAIL in done.stderr.decode()
        assert len(mta.wait_delivered(1)) == 1


# rspamd itself ---------------------------------------------------------------------------------

BREAKER = """
[shim]
message_deadline = "10s"
[fcrdns]
enabled = false
[rspamd]
servers = ["{rspamd}"]
timeout = "1s"
deadline = "3s"
retries = 0
max_errors = 2
revive = "300ms"
max_revive = "300ms"
"""


@pytest.mark.parametrize(
    ("how", "kind"), [("stop", "unreachable"), ("pause", "timeout")], ids=["stopped", "hung"]
)
def test_rspamd_goes_and_comes_back(version: str, how: str, kind: str) -> None:
    """After two failures nobody is kept waiting; a restart of smtpd is not needed."""
    listeners = [Listener(name, port) for name, port in PORTS.items() if port != 587]
    with (
        Rspamd() as rspamd,
        bridged(
            version, BREAKER + POLICIES, values={"rspamd": rspamd.url}, listeners=listeners
        ) as mta,
    ):
        assert post(mta, "tempfail", message(), "before").reply.startswith("250 ")
        pids = mta.pids()
        getattr(rspamd, how)()
        check_deferred(post(mta, "tempfail", message(), "first"), f"rspamd: {kind}: ")
        check_passed(
            post(mta, "accept-header", message(), "second"),
            f"rspamd: {kind}: ",
            marked=f"rspamd: {kind}",
        )
        mta.wait_log(rf"^bridge: rspamd-down server={re.escape(rspamd.url)} ")
        # One in a while finds out whether it is back; the others are told at once. Many at a
        # time, since that while is short here.
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(
                pool.map(lambda n: post(mta, "tempfail", message(), f"third{n}"), range(8))
            )
        told = [line["by"].split(": ")[1] for each in outcomes for _, line in each.logged]
        assert len(told) == 8
        assert set(told) <= {"breaker-open", kind}
        assert told.count("breaker-open") >= 4
        for outcome in outcomes:
            check_deferred(outcome, "rspamd: ")
        (rspamd.start if how == "stop" else rspamd.resume)()

        def back() -> bool:
            return mta.send(message(), recipients=["back@example.org"]).code == 250

        eventually("a scan", back, 20)
        mta.wait_log(rf"^bridge: rspamd-up server={re.escape(rspamd.url)}")
        [mail, *_] = arrived(mta, "back@example.org", 1)
        assert mail.header("X-Unscanned") == []
        assert mta.pids() == pids


FAILOVER = """
[fcrdns]
enabled = false
[rspamd]
servers = ["{first}", "{second}"]
timeout = "700ms"
connect_timeout = "500ms"
deadline = "5s"
max_errors = 1000
"""
# After a 500 with an error of rspamd's own, or a 401, no other server is asked.
SERVED_BY_ANOTHER = ("hang", "close", "reset", "slam", "502", "garbage", "huge", "not-http")


def test_another_server_is_asked(version: str, service: StandIn) -> None:
    with Rspamd() as rspamd:
        values = {"first": service.url, "second": rspamd.url}
        with bridged(version, FAILOVER, values=values) as mta:
            for behaviour in SERVED_BY_ANOTHER:
                service.behave(behaviour)
                asked = service.count
                text = verdict(milter={"add_headers": {"X-Scanned": "yes"}}) + message(behaviour)
                outcome = post(mta, "smtp", text, behaviour)
                assert (behaviour, service.count) == (behaviour, asked + 1)
                assert (unscanned(outcome), outcome.logged) == ([], [])
                assert outcome.mails[0].header("X-Scanned") == [b"yes"]


def test_a_server_that_is_not_there_costs_nothing_but_the_first_time(version: str) -> None:
    address, held = addresses.claim()
    with held, Rspamd() as rspamd:
        values = {"first": f"http://{address}:11333", "second": rspamd.url}
        toml = FAILOVER.replace("max_errors = 1000", "max_errors = 1\nrevive = '60s'")
        with bridged(version, toml, values=values) as mta:
            for number in range(3):
                outcome = post(mta, "smtp", message(), f"n{number}")
                assert (unscanned(outcome), outcome.logged) == ([], [])
            assert len(lines(mta.log(), "rspamd-down")) == 1


# The bridge itself -----------------------------------------------------------------------------

HUNG = """
[shim]
message_deadline = "2s"
command_deadline = "2s"
patience = "1s"
[bridge]
ping_timeout = "60s"
slots = {slots}
[fcrdns]
enabled = false
[rspamd]
servers = ["{rspamd}"]
timeout = "1500ms"
deadline = "1900ms"
retries = 0
max_errors = 1000
"""


def test_a_bridge_that_hangs_is_answered_for(version: str, service: StandIn) -> None:
    values = {"rspamd": service.url, "slots": "32"}
    listeners = [Listener(name, port) for name, port in PORTS.items() if port != 587]
    service.behave("ok")
    with bridged(version, HUNG + POLICIES, values=values, listeners=listeners) as mta:
        mta.wait_log("bridge-up", 30)
        [bridge] = mta.pids().bridges
        os.kill(bridge, signal.SIGSTOP)
        with ThreadPoolExecutor() as pool:
            asked = {
                policy: pool.submit(post, mta, policy, message(), policy)
                for policy in ("tempfail", "accept", "accept-header")
            }
        why = "bridge: no answer in time"
        outcome = {policy: future.result() for policy, future in asked.items()}
        assert all(2.0 <= each.seconds < DEADLINE for each in outcome.values())
        check_deferred(outcome["tempfail"], why)
        check_passed(outcome["accept"], why)
        check_passed(outcome["accept-header"], why, marked=why)
        os.kill(bridge, signal.SIGCONT)
        # What it says now of those three is too late; the next one is served.
        well = post(mta, "tempfail", message(), "after")
        assert (unscanned(well), well.logged) == ([], [])
        assert mta.pids().bridges == (bridge,)


def test_who_waits_for_others_is_answered_in_time_too(version: str, service: StandIn) -> None:
    """One message at a time, and rspamd hangs: the later ones do not get so far."""
    values = {"rspamd": service.url, "slots": "1"}
    with bridged(version, HUNG, values=values) as mta:
        mta.wait_log("bridge-up", 30)
        service.behave("hang")
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda n: post(mta, "smtp", message(), f"n{n}"), range(8)))
        for outcome in outcomes:
            assert outcome.seconds < DEADLINE
            check_deferred(outcome, "")
        said = [line["by"] for outcome in outcomes for _, line in outcome.logged]
        assert any(by.startswith("rspamd: timeout") for by in said)
        assert "bridge: no answer in time" in said


def test_no_bridge_at_all(version: str, service: StandIn) -> None:
    """Its configuration is broken meanwhile, so that none comes up again; until it is mended."""
    values = {"rspamd": service.url, "slots": "32"}
    listeners = [Listener(name, port) for name, port in PORTS.items() if port != 587]
    service.behave("ok")
    with bridged(version, HUNG + POLICIES, values=values, listeners=listeners) as mta:
        mta.wait_log("bridge-up", 30)
        file = mta.dir / "bridge.toml"
        good = file.read_text()
        file.write_text("nonsense")
        os.kill(mta.pids().bridges[0], signal.SIGKILL)
        with ThreadPoolExecutor() as pool:
            asked = {
                policy: pool.submit(post, mta, policy, message(), policy)
                for policy in ("tempfail", "accept", "accept-header")
            }
        why = "bridge: no bridge"
        check_deferred(asked["tempfail"].result(), why)
        check_passed(asked["accept"].result(), why)
        check_passed(asked["accept-header"].result(), why, marked=why)
        mta.wait_log(r"^bridge: .*bridge\.toml: .*: not TOML", 30)
        file.write_text(good)

        def back() -> bool:
            return mta.send(message(), recipients=["back@example.org"]).code == 250

        eventually("a bridge", back, 20)
        [mail, *_] = arrived(mta, "back@example.org", 1)
        assert mail.header("X-Unscanned") == []
        assert mta.alive
