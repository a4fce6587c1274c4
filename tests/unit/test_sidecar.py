"""Does the mail flow on while sidecars are killed, stopped, drained and replaced?  Real processes,
with a model of smtpd at one end and an application that holds messages back at the other.
"""

from __future__ import annotations

import itertools
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from bridge.testing.outcomes import Outcome
from tests.unit.sidecar import NO_SERVICES, Sidecar, begun, hold, judged_by, said, send, shim, up


def code(outcome: Outcome) -> int:
    assert outcome.reply is not None
    return outcome.reply.code


def test_with_several_sidecars_each_gets_mail(tmp_path: Path) -> None:
    with (
        Sidecar(tmp_path, name="a") as a,
        Sidecar(tmp_path, name="b") as b,
        shim(tmp_path, a.endpoint, b.endpoint) as smtpd,
    ):
        up(smtpd, a, b)
        assert [send(smtpd) for _ in range(12)] == [250] * 12
    assert set(judged_by(smtpd)) == {"a", "b"}
    assert smtpd.faults == []


def test_one_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    with (
        Sidecar(tmp_path, name="b") as b,
        shim(tmp_path, f"unix:{tmp_path}/a.sock", b.endpoint) as smtpd,
    ):
        assert send(smtpd) == 250
    assert judged_by(smtpd) == ["b"]
    assert said(smtpd, "bridge-unreachable") == 1


def test_the_open_requests_of_a_killed_one_go_to_the_other_and_it_is_used_again_when_it_returns(
    tmp_path: Path,
) -> None:
    release = tmp_path / "release"
    with (
        Sidecar(tmp_path, name="a") as a,
        Sidecar(tmp_path, name="b") as b,
        shim(tmp_path, a.endpoint, b.endpoint) as smtpd,
    ):
        up(smtpd, a, b)
        outcomes = [hold(smtpd, release) for _ in range(6)]
        smtpd.run(lambda: a.messages() + b.messages() == 6)
        assert min(a.messages(), b.messages()) > 0
        a.signal(signal.SIGKILL)
        smtpd.run(lambda: b.messages() == 6)
        release.touch()
        smtpd.run(lambda: all(outcome.done for outcome in outcomes))
        assert [code(outcome) for outcome in outcomes] == [250] * 6
        assert judged_by(smtpd) == ["b"] * 6
        a.wait()
        with a:  # anew, where a stale socket lies
            smtpd.run(lambda: said(smtpd, f"bridge-up bridge={a.endpoint}") == 2)
            before = a.messages()
            assert [send(smtpd) for _ in range(8)] == [250] * 8
            assert a.messages() > before
    assert smtpd.faults == []


def test_without_any_a_message_waits_for_one(tmp_path: Path) -> None:
    with shim(tmp_path, f"unix:{tmp_path}/bridge.sock") as smtpd:
        outcome = begun(smtpd).data_later(b"Subject: hi\n\nbody\n")
        smtpd.run(lambda: said(smtpd, "bridge-unreachable") > 0)
        assert not outcome.done
        with Sidecar(tmp_path):
            smtpd.run(lambda: outcome.done)
            assert code(outcome) == 250
    assert judged_by(smtpd) == ["bridge"]


@pytest.mark.parametrize(
    ("policy", "answer", "marked"),
    [
        ("", 451, []),
        ('unreachable = "accept-header"', 250, [True]),
        ('default = "accept"', 250, [False]),
    ],
    ids=["it is deferred", "it passes with a header", "it passes as it came"],
)
def test_without_any_for_too_long(
    tmp_path: Path, policy: str, answer: int, marked: list[bool]
) -> None:
    nowhere = f"unix:{tmp_path}/bridge.sock"
    config = f"{NO_SERVICES}[failure.bridge]\n{policy}\n"
    with shim(tmp_path, nowhere, config=config, patience="500ms") as smtpd:
        assert send(smtpd) == answer
    found = [b"X-Unscanned: bridge: no bridge" in mail.content for mail in smtpd.delivered]
    assert found == marked


def test_a_frozen_one_is_given_up_and_what_it_had_goes_to_the_other(tmp_path: Path) -> None:
    release = tmp_path / "release"
    config = NO_SERVICES + '[bridge]\nping_timeout = "1s"\n'
    with (
        Sidecar(tmp_path, name="a") as a,
        Sidecar(tmp_path, name="b") as b,
        shim(tmp_path, a.endpoint, b.endpoint, config=config) as smtpd,
    ):
        up(smtpd, a, b)
        outcomes = [hold(smtpd, release) for _ in range(4)]
        smtpd.run(lambda: a.messages() + b.messages() == 4)
        a.signal(signal.SIGSTOP)
        smtpd.run(lambda: said(smtpd, f'bridge={a.endpoint} why="no sign of life"') == 1)
        smtpd.run(lambda: b.messages() == 4)
        release.touch()
        smtpd.run(lambda: all(outcome.done for outcome in outcomes))
        assert [code(outcome) for outcome in outcomes] == [250] * 4
        a.signal(signal.SIGCONT)  # it finds its link closed, and serves a new one
        smtpd.run(lambda: said(smtpd, f"bridge-up bridge={a.endpoint}") == 2)
        before = a.messages()
        assert [send(smtpd) for _ in range(8)] == [250] * 8
        assert a.messages() > before
    assert len(smtpd.delivered) == 12
    assert smtpd.faults == []


# Draining ---------------------------------------------------------------------------------


def test_sigterm_finishes_what_is_open_and_sends_the_rest_to_the_other(tmp_path: Path) -> None:
    release = tmp_path / "release"
    with (
        Sidecar(tmp_path, name="a") as a,
        shim(tmp_path, a.endpoint, f"unix:{tmp_path}/b.sock") as smtpd,
    ):
        held = [hold(smtpd, release) for _ in range(3)]
        smtpd.run(lambda: a.messages() == 3)
        with Sidecar(tmp_path, name="b") as b:
            up(smtpd, b)
            a.signal(signal.SIGTERM)
            smtpd.run(lambda: said(smtpd, f"bridge-drains bridge={a.endpoint}") == 1)
            assert [send(smtpd) for _ in range(4)] == [250] * 4
            assert (a.messages(), b.messages()) == (3, 4)
            assert not any(outcome.done for outcome in held)
            release.touch()
            smtpd.run(lambda: all(outcome.done for outcome in held))
            assert [code(outcome) for outcome in held] == [250] * 3
            assert a.wait() == 0
    assert judged_by(smtpd) == ["b"] * 4 + ["a"] * 3
    assert "drain-cut-short" not in a.log


def test_what_is_not_finished_in_the_drain_time_goes_to_the_other_as_if_never_tried(
    tmp_path: Path,
) -> None:
    """A request that three bridges died of is given up; what four were told to leave is not."""
    release = tmp_path / "release"
    config = NO_SERVICES + '[bridge]\ndrain = "300ms"\n'
    first, *others = [Sidecar(tmp_path, name=f"{number}", config=config) for number in range(5)]
    with ExitStack() as sidecars:
        sidecars.enter_context(first)
        with shim(tmp_path, first.endpoint, *(each.endpoint for each in others)) as smtpd:
            up(smtpd, first)
            held = hold(smtpd, release)
            for old, new in itertools.pairwise([first, *others]):
                smtpd.run(lambda judge=old: judge.messages() == 1)  # type: ignore[misc]
                sidecars.enter_context(new)
                up(smtpd, new)
                old.signal(signal.SIGTERM)
                assert old.wait() == 0
                assert "drain-cut-short open=1" in old.log
            smtpd.run(lambda: others[-1].messages() == 1)
            release.touch()
            smtpd.run(lambda: held.done)
    assert code(held) == 250
    assert judged_by(smtpd) == ["4"]


def test_a_new_one_may_take_the_place_of_one_that_drains(tmp_path: Path) -> None:
    release = tmp_path / "release"
    with Sidecar(tmp_path, name="same") as old, shim(tmp_path, old.endpoint) as smtpd:
        held = hold(smtpd, release)
        smtpd.run(lambda: old.messages() == 1)
        old.signal(signal.SIGTERM)
        smtpd.run(lambda: said(smtpd, "bridge-drains") == 1)
        with Sidecar(tmp_path, name="same") as new:
            assert send(smtpd) == 250
            release.touch()
            smtpd.run(lambda: held.done)
            assert old.wait() == 0
            assert Path(new.endpoint[5:]).exists(), "the old one removed the new one's socket"
            assert send(smtpd) == 250
    assert len(smtpd.delivered) == 3
    assert said(smtpd, "bridge-up") == 2


def test_a_sidecar_without_links_leaves_at_once(tmp_path: Path) -> None:
    with Sidecar(tmp_path) as bridge:
        bridge.signal(signal.SIGTERM)
        assert bridge.wait() == 0
        assert not Path(bridge.endpoint[5:]).exists()
        assert list(bridge.run_dir.iterdir()) == []


def test_one_sidecar_serves_many_shims(tmp_path: Path) -> None:
    release = tmp_path / "release"
    with (
        Sidecar(tmp_path) as bridge,
        shim(tmp_path, bridge.endpoint) as busy,
        shim(tmp_path, bridge.endpoint) as calm,
    ):
        held = [hold(busy, release) for _ in range(40)]  # more than it is granted
        busy.run(lambda: bridge.messages() == 32)
        assert send(calm) == 250
        release.touch()
        busy.run(lambda: all(outcome.done for outcome in held))
    assert (len(busy.delivered), len(calm.delivered)) == (40, 1)
