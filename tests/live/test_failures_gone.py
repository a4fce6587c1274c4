"""What becomes of mail while rspamd or the bridge itself is gone or hangs, and afterwards? On
real servers.
"""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridge.testing.http import StandIn
from tests.live import addresses
from tests.live.bridged import bridged, lines, message
from tests.live.outcomes import (
    DEADLINE,
    LISTENERS,
    POLICIES,
    Outcome,
    arrived,
    check_deferred,
    check_passed,
    post,
    unscanned,
)
from tests.live.rspamd import Rspamd, verdict
from tests.live.world import OpenSMTPD, eventually


def check_back(mta: OpenSMTPD) -> None:
    """All is well again, after a while: a message is accepted, and was scanned."""

    def accepted() -> bool:
        return mta.send(message(), recipients=["back@example.org"]).code == 250

    eventually("a scan", accepted, 20)
    [mail, *_] = arrived(mta, "back@example.org", 1)
    assert mail.header("X-Unscanned") == []


def under_each_policy(mta: OpenSMTPD) -> dict[str, Outcome]:
    """What becomes of a message under each, all at once."""
    with ThreadPoolExecutor() as pool:
        asked = {
            each.name: pool.submit(post, mta, each.name, message(), each.name) for each in LISTENERS
        }
    return {policy: future.result() for policy, future in asked.items()}


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
    with (
        Rspamd() as rspamd,
        bridged(
            version, BREAKER + POLICIES, values={"rspamd": rspamd.url}, listeners=LISTENERS
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
        check_back(mta)
        mta.wait_log(rf"^bridge: rspamd-up server={re.escape(rspamd.url)}")
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
    service.behave("ok")
    with bridged(version, HUNG + POLICIES, values=values, listeners=LISTENERS) as mta:
        mta.wait_log("bridge-up", 30)
        [bridge] = mta.pids().bridges
        os.kill(bridge, signal.SIGSTOP)
        outcome = under_each_policy(mta)
        why = "bridge: no answer in time"
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
    service.behave("ok")
    with bridged(version, HUNG + POLICIES, values=values, listeners=LISTENERS) as mta:
        mta.wait_log("bridge-up", 30)
        file = mta.dir / "bridge.toml"
        good = file.read_text()
        file.write_text("nonsense")
        os.kill(mta.pids().bridges[0], signal.SIGKILL)
        outcome = under_each_policy(mta)
        why = "bridge: no bridge"
        check_deferred(outcome["tempfail"], why)
        check_passed(outcome["accept"], why)
        check_passed(outcome["accept-header"], why, marked=why)
        mta.wait_log(r"^bridge: .*bridge\.toml: .*: not TOML", 30)
        file.write_text(good)
        check_back(mta)
        assert mta.alive
