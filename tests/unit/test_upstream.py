"""Which server is tried next: the pure half, told as short stories."""

from __future__ import annotations

import pytest

from bridge.services.upstream import FAIR, KINDS, Pool, Rules, ServerState, ServiceError

# What a try brings: the mark behind the server's letter.
ERRORS = {
    "-": ServiceError("unreachable", "refused"),
    "t": ServiceError("timeout", "slow"),
    "b": ServiceError("bad-reply", "not JSON"),
    "r": ServiceError("http-error", "status 500", retry=False),
    "i": ServiceError("internal", "a bug", retry=False),
    "l": ServiceError("unreachable", "reset on a large body", blame=False),
}


def tell(pool: Pool, story: str) -> str:
    """Plays `story`, and says it again with the servers that were really chosen.

    One request a word: `5:A-B+` at second 5 tries A, which fails, then B, which answers;
    `A?` marks a probe, `A~` an abandoned try; `!kind` is how a request without an answer ends.
    """
    return " ".join(_request(pool, word) for word in story.split())


def _request(pool: Pool, word: str) -> str:
    time, _, tries = word.partition(":")
    now = float(time)
    plan = pool.plan(now + 45.0)
    told = f"{time}:"
    outcomes = [c for c in tries.partition("!")[0] if c in "+~" or c in ERRORS]
    while attempt := plan.next(now):
        outcome = outcomes.pop(0) if outcomes else "-"
        told += "ABCDEFG"[attempt.index] + "?" * attempt.probe + outcome
        if outcome == "+":
            plan.succeeded(now)
        elif outcome == "~":
            plan.abandoned()
        else:
            plan.failed(ERRORS[outcome], now)
    if plan.error and not told.endswith("+"):
        told += f"!{plan.error.kind}"
    return told


STORIES = {
    "the first server serves as long as it answers": (
        "failover", 3, {}, "0:A+ 1:A+ 2:A+",
    ),
    "a failing server hands over to the next": (
        "failover", 3, {}, "0:A-B+ 1:A-B+",
    ),
    "retries go over distinct servers first": (
        "failover", 3, {"retries": 4}, "0:A-B-C-A-B-!unreachable",
    ),
    "no more tries than retries allow": (
        "failover", 3, {"retries": 1}, "0:A-B-!unreachable",
    ),
    "without retries one try is all": (
        "failover", 3, {"retries": 0}, "0:A-!unreachable",
    ),
    "a single server is asked again": (
        "failover", 1, {}, "0:A-A-A+ 1:A-A+",
    ),
    "round-robin begins each request at the next": (
        "round-robin", 3, {}, "0:A+ 0:B+ 0:C+ 0:A+",
    ),
    "round-robin retries at the one after": (
        "round-robin", 3, {}, "0:A+ 0:B-C-A+ 0:C+",
    ),
    "the fourth failure in a row takes a server down": (
        "failover", 2, {}, "0:A-B+ 0:A-B+ 0:A-B+ 0:A-B+ 0:B+ 1:B+",
    ),
    "an answer between ends the row": (
        "failover", 2, {}, "0:A-B+ 0:A-B+ 0:A-B+ 0:A+ 0:A-B+ 0:A-B+ 0:A-B+ 0:A-B+ 0:B+",
    ),
    "a long pause ends the row": (
        "failover", 2, {"error_window": 10}, "0:A-B+ 1:A-B+ 2:A-B+ 13:A-B+ 14:A-B+ 15:A-B+",
    ),
    "failures each within the window of the last are a row however long": (
        "failover", 2, {}, "0:A-B+ 3599:A-B+ 7198:A-B+ 10797:A-B+ 10798:B+",
    ),
    "a dead server is found out by a message each quarter of an hour": (
        "failover", 1, {}, "0:A-A-A-!unreachable 900:A-!unreachable 901:!breaker-open",
    ),
    "round-robin skips what is down": (
        "round-robin", 3, {"max_errors": 1}, "0:A-B+ 0:B+ 0:C+ 0:B+ 0:B+ 0:C+",
    ),
    "a refusal is an answer: neither retried nor held against the server": (
        "failover", 2, {"max_errors": 1}, "0:Ar!http-error 0:Ar!http-error 0:A+",
    ),
    "an error of our own says nothing about the server": (
        "failover", 2, {"max_errors": 2}, "0:A-B+ 0:Ai!internal 0:A-B+ 0:B+",
    ),
    "a bad reply is held against the server": (
        "failover", 2, {"max_errors": 1}, "0:AbB+ 0:B+",
    ),
    "a timeout is held against the server": (
        "failover", 2, {"max_errors": 1}, "0:AtB+ 0:B+",
    ),
    "a reset on a large body is tried elsewhere and held against no one": (
        "failover", 2, {"max_errors": 1, "retries": 5}, "0:AlBl!unreachable 0:A+",
    ),
    "with all servers down requests fail at once": (
        "failover", 2, {"max_errors": 1}, "0:A-B-!unreachable 0:!breaker-open 1.9:!breaker-open",
    ),
    "the breaker of a single server opens too": (
        "failover", 1, {}, "0:A-A-A-!unreachable 0:A-!unreachable 1:!breaker-open",
    ),
    "one request probes a server when its time has come": (
        "failover", 2, {"max_errors": 1}, "0:A-B+ 1:B+ 2:A?+ 2:A+",
    ),
    "a failed probe falls back to the next server and waits twice as long": (
        "failover", 2, {"max_errors": 1}, "0:A-B+ 2:A?-B+ 5:B+ 6:A?-B+ 13:B+ 14:A?+",
    ),
    "a failed probe counts by itself, however long after the last failure": (
        "failover", 2, {"max_errors": 2, "revive": 20}, "0:A-B+ 0:A-B+ 20:A?-B+ 21:B+ 60:A?+",
    ),
    "the wait grows to its bound": (
        "failover", 2, {"max_errors": 1, "max_revive": 5},
        "0:A-B+ 2:A?-B+ 6:A?-B+ 10:B+ 11:A?-B+ 15:B+ 16:A?+",
    ),
    "the wait starts anew after a recovery": (
        "failover", 2, {"max_errors": 1}, "0:A-B+ 2:A?-B+ 6:A?+ 6:A-B+ 8:A?+",
    ),
    "alone, the wait stays short": (
        "failover", 1, {"max_errors": 1, "alone": 3, "retries": 0},
        "0:A-!unreachable 2:A?-!unreachable 4:!breaker-open 5:A?-!unreachable 8:A?+",
    ),
    "an abandoned probe leaves the probe to the next request": (
        "failover", 2, {"max_errors": 1}, "0:A-B+ 2:A?~ 2:A?+ 2:A+",
    ),
    "a refused probe is a recovery": (
        "failover", 2, {"max_errors": 1}, "0:A-B+ 2:A?r!http-error 2:A+",
    ),
    "after an outage of all, all are probed": (
        "failover", 3, {"max_errors": 1}, "0:A+ 0:A-B-C+ 0:C-!unreachable 2:A?-B?-C?+",
    ),
    "a probe is no second chance within a request": (
        "failover", 1, {"max_errors": 1, "revive": 0}, "0:A-!unreachable 0:A?+",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("strategy", "servers", "rules", "story"), STORIES.values(), ids=STORIES)
def test_story(strategy: str, servers: int, rules: dict[str, float], story: str) -> None:
    chosen = Rules(strategy=strategy, **rules)  # type: ignore[arg-type]
    pool = Pool("rspamd", "ABCDEFG"[:servers], chosen, jitter=lambda: 0.5)
    assert tell(pool, story) == story


def test_a_retry_prefers_a_server_that_is_up_over_a_due_probe() -> None:
    pool = Pool("rspamd", "ABC", Rules(max_errors=2), jitter=lambda: 0.5)
    assert tell(pool, "0:A-B-C+ 0:A-B-C+ 0:C+") == "0:A-B-C+ 0:A-B-C+ 0:C+"
    assert tell(pool, "2:A-C-B+") == "2:A?-C-B?+"


def test_only_one_request_probes_at_a_time() -> None:
    pool = Pool("rspamd", "AB", Rules(max_errors=1), jitter=lambda: 0.5)
    tell(pool, "0:A-B+")
    first, second = pool.plan(50.0), pool.plan(50.0)
    probe, other = first.next(2.0), second.next(2.0)
    assert probe
    assert other
    assert (probe.index, probe.probe) == (0, True)
    assert (other.index, other.probe) == (1, False)
    assert [state.state for state in pool.states(2.0)] == ["probing", "up"]
    first.succeeded(3.0)
    assert [state.state for state in pool.states(3.0)] == ["up", "up"]


def test_failures_of_tries_that_began_before_it_went_down_change_nothing() -> None:
    pool = Pool("rspamd", "A", Rules(max_errors=1, retries=0), jitter=lambda: 0.5)
    plans = [pool.plan(50.0) for _ in range(3)]
    for plan in plans:
        assert plan.next(0.0)
    for plan, now in zip(plans, (1.0, 2.0, 2.9), strict=True):
        plan.failed(ERRORS["-"], now)
    assert pool.states(2.9)[0].probe_in == pytest.approx(0.1)


def test_a_late_answer_brings_a_server_back() -> None:
    pool = Pool("rspamd", "A", Rules(max_errors=1, retries=0))
    slow, quick, probe = (pool.plan(50.0) for _ in range(3))
    assert slow.next(0.0)
    assert quick.next(0.0)
    quick.failed(ERRORS["-"], 0.0)
    assert probe.next(4.0)
    assert pool.states(4.0) == [ServerState("A", "probing", 1, "refused", 0.0)]
    slow.succeeded(5.0)
    assert pool.states(5.0) == [ServerState("A", "up", 0, "", 0.0)]


def test_a_probe_that_is_due_is_due_now() -> None:
    pool = Pool("rspamd", "A", Rules(max_errors=1, retries=0))
    tell(pool, "0:A-")
    assert pool.states(60.0) == [ServerState("A", "down", 1, "refused", 0.0)]


@pytest.mark.parametrize(("jitter", "due"), [(0.0, 6.0), (0.5, 10.0), (1.0, 14.0)])
def test_probes_are_spread(jitter: float, due: float) -> None:
    rules = Rules(max_errors=1, revive=10.0)
    pool = Pool("rspamd", "AB", rules, jitter=lambda: jitter)
    tell(pool, "0:A-B+")
    assert pool.states(0.0)[0].probe_in == pytest.approx(due)


def test_changes_are_told_once_each_way() -> None:
    told: list[ServerState] = []
    pool = Pool("rspamd", "AB", Rules(max_errors=2), jitter=lambda: 0.5, on_change=told.append)
    tell(pool, "0:A-B+ 0:A-B+ 2:A-B+ 6:A+ 7:A+")
    assert told == [
        ServerState("A", "down", 2, "refused", 2.0),
        ServerState("A", "up", 0, "", 0.0),
    ]


def test_breaker_open_says_what_was_wrong() -> None:
    pool = Pool("rspamd", "AB", Rules(max_errors=1))
    tell(pool, "0:A-Bt")
    plan = pool.plan(45.0)
    assert plan.next(0.0) is None
    assert plan.error
    assert "rspamd" in str(plan.error)
    assert "refused; slow" in str(plan.error)


# Deadlines --------------------------------------------------------------------------------


@pytest.mark.parametrize(("deadline", "timeout"), [(45.0, 20.0), (12.0, 12.0), (0.5, 0.5)], ids=str)
def test_a_try_gets_what_is_left_but_no_more_than_the_timeout(
    deadline: float, timeout: float
) -> None:
    attempt = Pool("rspamd", "A", Rules(timeout=20.0)).plan(deadline).next(0.0)
    assert attempt
    assert attempt.timeout == timeout


@pytest.mark.parametrize("deadline", [-3.0, 0.0, 0.01])
def test_past_the_deadline_no_one_is_asked(deadline: float) -> None:
    plan = Pool("rspamd", "A", Rules()).plan(deadline)
    assert plan.next(0.0) is None
    assert plan.error
    assert plan.error.kind == "timeout"


def test_the_deadline_ends_the_retries_and_the_last_failure_is_told() -> None:
    plan = Pool("rspamd", "ABC", Rules(timeout=20.0)).plan(30.0)
    first = plan.next(0.0)
    plan.failed(ERRORS["b"], 20.0)
    second = plan.next(20.0)
    plan.failed(ERRORS["t"], 30.0)
    assert first
    assert second
    assert (first.timeout, second.timeout) == (20.0, 10.0)
    assert plan.next(30.0) is None
    assert plan.error is ERRORS["t"]


def test_the_same_server_is_asked_again_after_growing_pauses() -> None:
    plan = Pool("rspamd", "A", Rules(retries=4, max_errors=9)).plan(12.0)
    pauses = []
    while attempt := plan.next(0.0):
        pauses.append(attempt.pause)
        assert attempt.started == attempt.pause
        assert attempt.timeout == 12.0 - attempt.pause
        plan.failed(ERRORS["-"], 0.0)
    assert pauses == [0.0, 0.1, 0.4, 1.0, 1.0]


def test_the_same_server_is_not_asked_again_with_little_time_left() -> None:
    plan = Pool("rspamd", "A", Rules(timeout=20.0)).plan(24.0)
    assert plan.next(0.0)
    plan.failed(ERRORS["t"], 20.0)
    assert plan.next(20.0) is None


def test_another_server_is_asked_even_with_little_time_left() -> None:
    plan = Pool("rspamd", "AB", Rules(timeout=20.0)).plan(21.0)
    assert plan.next(0.0)
    plan.failed(ERRORS["t"], 20.0)
    attempt = plan.next(20.0)
    assert attempt
    assert (attempt.index, attempt.timeout) == (1, 1.0)


@pytest.mark.parametrize(
    ("left", "outcome", "state"),
    [
        pytest.param(FAIR - 0.1, "t", "up", id="a short try that brought nothing is not blamed"),
        pytest.param(FAIR, "t", "down", id="a fair one is"),
        pytest.param(FAIR - 0.1, "-", "down", id="a refused connection is, however short"),
    ],
)
def test_blame(left: float, outcome: str, state: str) -> None:
    pool = Pool("rspamd", "A", Rules(timeout=20.0, max_errors=1))
    plan = pool.plan(left)
    assert plan.next(0.0)
    plan.failed(ERRORS[outcome], left)
    assert pool.states(left)[0].state == state


def test_an_open_try_is_the_only_one_of_its_plan() -> None:
    plan = Pool("rspamd", "AB", Rules()).plan(45.0)
    assert plan.next(0.0)
    assert plan.next(0.0) is None
    plan.failed(ERRORS["-"], 0.0)
    assert plan.next(0.0)


# Wrong values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules",
    [
        {"strategy": "random"},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"retries": -1},
        {"max_errors": 0},
        {"revive": -1.0},
        {"alone": -1.0},
    ],
    ids=str,
)
def test_impossible_rules_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(rules))} .*expected"):
        Rules(**rules)  # type: ignore[arg-type]


def test_a_service_without_servers_is_refused() -> None:
    with pytest.raises(ValueError, match="rspamd: no servers"):
        Pool("rspamd", [], Rules())


def test_an_unknown_kind_is_refused() -> None:
    assert len(KINDS) == 7
    with pytest.raises(ValueError, match="kind 'down'"):
        ServiceError("down", "x")
