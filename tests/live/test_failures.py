"""What becomes of mail when rspamd answers badly, or not in time? On real servers.

How the service misbehaves is switched while the server runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridge.testing.http import BEHAVIOURS, Reply, StandIn
from tests.live import places
from tests.live.bridged import bridged, lines, message
from tests.live.outcomes import (
    DEADLINE,
    LISTENERS,
    POLICIES,
    TEMPFAIL,
    TOO_LARGE,
    arrived,
    check_deferred,
    check_passed,
    post,
    unscanned,
)
from tests.live.world import Listener, OpenSMTPD

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


@pytest.fixture(scope="module", params=places.VERSIONS)
def mta(request: pytest.FixtureRequest, service: StandIn) -> Iterator[OpenSMTPD]:
    """A server of each version, asking the stand-in; on 7.6 with TLS and AUTH."""
    listeners = [*LISTENERS]
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
