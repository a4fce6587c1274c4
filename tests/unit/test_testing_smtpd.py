"""The model of smtpd against what misbehaving filters did to a real one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bridge.testing.client import Client
from bridge.testing.outcomes import SessionHung, SmtpdDied, SmtpdError, SmtpdWedged
from bridge.testing.process import Driver
from bridge.testing.smtpd import Smtpd
from tests.unit import crash_matrix as matrix
from tests.unit.crash_matrix import echo, on_line
from tests.unit.echo_filter import EchoFilter, answer

MESSAGE = b"From: <a@example.net>\nSubject: test\n\nBody line\n"
FATES: dict[type[SmtpdError], str] = {SmtpdDied: "DEAD", SmtpdWedged: "SPIN", SessionHung: "ALIVE"}
EOF, HUNG = "EOFError", "TimeoutError"


def start(filter: EchoFilter, version: str = "0.7", **more: int) -> Driver:
    return Driver(filter, Smtpd(version, order=more.get("order")))


def begin(driver: Driver, local_part: str = "b") -> Client:
    """A client that has come to where it can send DATA."""
    client = driver.connect()
    client.ehlo("client.example.net")
    client.mail("a@example.net")
    client.rcpt(f"{local_part}@example.org")
    return client


def converse(driver: Driver, message: bytes = MESSAGE) -> tuple[str, list[str]]:
    """The session of the crash matrix: what became of smtpd, and the codes the client saw."""
    client = driver.connect_later()
    steps: list[Callable[[], object]] = [
        lambda: driver.wait(client.later.greeting),
        lambda: client.ehlo("client.example.net"),
        lambda: client.mail("a@example.net"),
        lambda: client.rcpt("b@example.org"),
        lambda: client.data(message),
        client.quit,
    ]
    fate, end = "ALIVE", []
    try:
        for step in steps:
            step()
            if client.replies[-1].code >= 400 and client.replies[-2].code != 354:
                break
    except SmtpdError as error:
        fate, end = FATES[type(error)], [EOF if isinstance(error, SmtpdDied) else HUNG]
    return fate, [str(reply.code) for reply in client.replies] + end


@pytest.mark.parametrize("row", matrix.FILTERS)
def test_the_model_s_fate_is_the_recorded_server_s(row: str) -> None:
    fate, seen, log = matrix.recorded()[row]
    driver = Driver(matrix.FILTERS[row](), Smtpd("0.7"))
    found, codes = converse(driver)
    assert found == fate
    recorded = matrix.codes(seen)
    if recorded and fate == "DEAD":  # a last reply may have died in smtpd's buffer
        assert codes[: len(recorded) - 1] == recorded[:-1]
    elif recorded:
        assert codes == recorded
    if isinstance(driver.smtpd.failed, SmtpdDied):
        assert driver.smtpd.failed.reason.partition(":")[0] in log


def test_every_row_of_the_matrix_is_accounted_for() -> None:
    here = {*matrix.FILTERS, *matrix.PROCESS, *matrix.NOT_EXPRESSED, *SCENARIOS}
    assert here == set(matrix.recorded())


# Rows with more than one session or moment -------------------------------------------------

SCENARIOS: dict[str, Callable[[], None]] = {}
Scenario = Callable[[], None]


def row(name: str) -> Callable[[Scenario], Scenario]:
    def add(scenario: Scenario) -> Scenario:
        SCENARIOS[name] = scenario
        return scenario

    return add


def late(driver: Driver, line: bytes) -> None:
    driver.smtpd.receive(line)
    driver.run()


def requests(driver: Driver, phase: str) -> list[list[bytes]]:
    assert isinstance(driver.filter, EchoFilter)
    found = [line.split(b"|", 7) for line in driver.filter.said]
    return [parts for parts in found if parts[0] == b"filter" and parts[4] == phase.encode()]


@row("dl-extra-late")
@row("dead-datalines-after-disconnect")
def extra_line_after_the_end() -> None:
    driver = start(EchoFilter())
    converse(driver)
    for _ in range(3):
        late(driver, answer(requests(driver, "data-line")[0]))
    assert converse(driver)[0] == "ALIVE"
    assert driver.faults == []


@row("x-dead-single-late-answer")
@row("x-late-after-real-disconnect")
def answers_after_the_end() -> None:
    driver = start(EchoFilter())
    converse(driver)
    late(driver, answer(requests(driver, "quit")[0]))
    assert converse(driver)[0] == "ALIVE"


@row("x-extra-dataline-idle-session")
def extra_line_in_an_idle_session() -> None:
    driver = start(EchoFilter())
    begin(driver).data(MESSAGE)
    with pytest.raises(SmtpdDied, match="filter-dataline out of dataline phase"):
        late(driver, answer(requests(driver, "data-line")[0]))


@row("x-extra-dataline-next-tx")
def extra_line_in_the_next_message() -> None:
    stale: list[bytes] = []

    def override(parts: list[bytes]) -> bytes | None:
        if parts[4] == b"data-line" and parts[7] == b"second":
            return b"".join(stale) + answer(parts)
        return None

    driver = start(EchoFilter(override))
    client = begin(driver)
    client.data(MESSAGE)
    stale += [answer([*requests(driver, "data-line")[0][:7], b"stale"])]
    client.mail("a@example.net")
    client.rcpt("b@example.org")
    assert client.data(b"A: b\n\nsecond\n").code == 250
    assert driver.delivered[1].content.endswith(b"\n\nstale\nsecond\n")


@row("late-second-answer-idle")
@row("dead-late-answer")
def second_answer_in_an_idle_session() -> None:
    driver = start(EchoFilter())
    begin(driver)
    with pytest.raises(SmtpdDied, match="tree_xpop"):
        late(driver, answer(requests(driver, "rcpt-to")[0]))


@row("unsolicited-reject")
def reject_that_nobody_asked_for() -> None:
    driver = start(EchoFilter())
    begin(driver)
    with pytest.raises(SmtpdDied, match="tree_xpop"):
        late(driver, answer(requests(driver, "ehlo")[0], b"reject|550 5.7.1 no"))


@row("late-second-answer-next-phase")
def second_answer_in_the_next_phase() -> None:
    held: list[bytes] = []

    def override(parts: list[bytes]) -> bytes | None:
        if parts[4] == b"ehlo":
            held.append(answer(parts))
        return held[0] + answer(parts) if parts[4] == b"mail-from" else None

    with pytest.raises(SmtpdDied, match="misbehaving filter"):
        begin(start(EchoFilter(override)))


@row("dl-early-dot")
def dot_before_the_client_s_all_at_once() -> None:
    driver = start(on_line(lambda c, p: echo(c, p) + (echo(b".", p) if not c else b"")))
    assert converse(driver)[0] == "ALIVE"
    assert driver.delivered[0].content.endswith(b"Subject: test\n\n")
    assert "a line after the dot is dropped" in [fault.reason for fault in driver.faults]


@row("x-early-dot-slow-client")
def dot_before_a_slow_client_s() -> None:
    driver = start(on_line(lambda c, p: echo(c, p) + (echo(b".", p) if not c else b"")))
    client = begin(driver)
    client.data(b"A: b\n\n", end=False)
    driver.run()
    assert [reply.code for reply in client.replies][-1] == 250
    assert client.command("RCPT TO:<b@example.org>").code == 503  # the body, taken as commands
    assert "the dot was echoed before" in driver.faults[0].reason


def client_line(size: int, *, filtered: bool) -> tuple[str, list[str]]:
    phases = ("data-line",) if filtered else ("commit",)
    return converse(Driver(EchoFilter(phases=phases), Smtpd("0.7")), b"A: b\n\n" + b"x" * size)


def client_row(name: str, size: int, filtered: bool, fate: str, last: str) -> None:
    @row(name)
    def scenario() -> None:
        found, codes = client_line(size, filtered=filtered)
        assert found == fate
        assert last in codes[-2:]


client_row("client-line-65485-echo", 65485, True, "ALIVE", "250")
client_row("client-line-65486-echo", 65486, True, "SPIN", HUNG)
client_row("client-line-65533-echo", 65533, True, "SPIN", HUNG)
client_row("client-line-65534-echo", 65534, True, "ALIVE", "500")
client_row("client-line-65485-nofilter-dataline", 65485, False, "ALIVE", "250")
client_row("client-line-65533-nofilter-dataline", 65533, False, "ALIVE", "250")


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_of_the_matrix_ends_as_recorded(name: str) -> None:
    SCENARIOS[name]()
