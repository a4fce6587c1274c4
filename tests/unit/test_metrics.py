"""What does a bridge count, and can Prometheus read it?"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bridge.config import parse
from bridge.edits import Verdict
from bridge.filter import Message
from bridge.metrics import BOUNDS, COUNTERS, METRICS, PREFIX, LinkUse, Metrics, ServerUse
from bridge.policy import COUNTED, Policy
from bridge.services.build import Services
from bridge.services.fcrdns import FcRdns, Result
from bridge.services.rspamd import parse_reply
from bridge.services.upstream import ServiceError
from bridge.smtpd import events
from bridge.smtpd.session import Session, Transaction
from tests.unit.sidecar import NO_SERVICES, WAIT, Sidecar, eventually, hold, said, send, shim
from tests.unit.test_listen import free_port

SAMPLE = re.compile(
    r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? ([0-9.e+-]+)', re.ASCII
)


def samples(text: str) -> dict[str, float]:
    """Each sample as it is spelled, without a "shim" label's value, and its number."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            key = f"{match[1].removeprefix(PREFIX)}{{{match[2] or ''}}}"
            assert key not in found, f"{key} twice"
            found[re.sub('shim="[^"]*"', "shim", key)] = float(match[3])
    return found


# How they are spelled ---------------------------------------------------------------------


def test_each_metric_has_its_type_and_meaning_once() -> None:
    text = Metrics("1.2.3").text([])
    for name, (kind, meaning) in METRICS.items():
        assert f"\n# TYPE {PREFIX}{name} {kind}\n" in text
        assert text.count(f"# HELP {PREFIX}{name} {meaning}\n") == 1
    assert f'\n{PREFIX}build_info{{version="1.2.3"}} 1\n' in text


def test_a_bucket_counts_those_below_it_too() -> None:
    metrics = Metrics("")
    for seconds in (0.001, 0.01, 0.02, 3.0, 100.0):
        metrics.answered("message", "proceed", seconds)
    found = samples(metrics.text([]))
    name = "request_duration_seconds"
    assert [found[f'{name}_bucket{{phase="message",le="{bound}"}}'] for bound in BOUNDS] == [
        1, 3, 3, 3, 3, 3, 4, 4, 4, 4,
    ]  # fmt: skip
    assert found[f'{name}_bucket{{phase="message",le="+Inf"}}'] == 5
    assert found[f'{name}_count{{phase="message"}}'] == 5
    assert found[f'{name}_sum{{phase="message"}}'] == pytest.approx(103.031)


def test_links_of_one_name_are_one() -> None:
    text = Metrics("").text([LinkUse("a", 3, 1, 10), LinkUse("a", 4, 0, 0), LinkUse("b", 5, 0, 0)])
    assert f'{PREFIX}link_requests_total{{shim="a"}} 7\n' in text
    assert f'{PREFIX}link_requests_total{{shim="b"}} 5\n' in text
    assert f"{PREFIX}links 3\n" in text


def test_a_name_cannot_end_its_label() -> None:
    text = Metrics("").text([LinkUse('x"} 1\n\\', 1, 0, 0)])
    assert r'link_requests_total{shim="x\"} 1\n\\"} 1' in text
    samples(text)


SERVERS = [
    ServerUse("rspamd", "http://127.0.0.1:11333", True),
    ServerUse("rspamd", "unix:/run/rspamd.sock", False),
]


@pytest.mark.parametrize("times", [1, 2], ids=["each once", "one that is configured twice"])
def test_a_server_is_up_or_down(times: int) -> None:
    text = Metrics("").text([], SERVERS * times)
    name = f"{PREFIX}server_up"
    assert [line for line in text.splitlines() if line.startswith(name)] == [
        f'{name}{{service="rspamd",server="http://127.0.0.1:11333"}} 1',
        f'{name}{{service="rspamd",server="unix:/run/rspamd.sock"}} 0',
    ]


def test_a_counter_that_has_begun_is_there_with_0() -> None:
    metrics = Metrics("")
    metrics.count("fcrdns_total", "fail")
    metrics.begin({"fcrdns_total": [["pass", "fail"]]})
    text = metrics.text([])
    assert f'{PREFIX}fcrdns_total{{result="pass"}} 0\n' in text
    assert f'{PREFIX}fcrdns_total{{result="fail"}} 1\n' in text


def test_what_is_counted_is_a_metric() -> None:
    assert {name for name, (kind, _) in METRICS.items() if kind == "counter"} == {
        *COUNTERS,
        "link_requests_total",
    }
    assert {name: len(values) for name, values in COUNTED.items()} == {
        name: len(COUNTERS[name]) for name in COUNTED
    }


def test_the_manual_names_each_metric_with_its_labels() -> None:
    manual = Path(__file__).parents[2] / "contrib" / "man" / "filter-bridge.8"
    named = dict(re.findall(r"Va ([a-z_]+)(?: Ns Brq ([a-z]+(?: , [a-z]+)*))?", manual.read_text()))
    assert named.keys() == METRICS.keys()
    assert {name: tuple(named[name].split(" , ")) for name in COUNTERS} == COUNTERS


# What the shipped policy counts -------------------------------------------------------------

UNREACHABLE = ServiceError("unreachable", "rspamd: gone")
WIRE = b"Received: by mx; now\nFrom: <a@example.org>\n\nhi\n"


class Stands:
    """A service that says always the same."""

    def __init__(self, said: Any) -> None:
        self.name = "rspamd"
        self.said = said

    async def request(self, *_: Any, **__: Any) -> Any:
        if isinstance(self.said, Exception):
            raise self.said
        return parse_reply(200, {}, json.dumps(self.said).encode())

    async def check(self, _address: object) -> FcRdns:
        found: FcRdns = self.said.pop(0)
        return found


def counted(toml: str, services: Any, *asked: object, who: Session | None = None) -> list[str]:
    """What is counted while these are decided, in one session."""
    found: list[str] = []

    def count(metric: str, *labels: str) -> None:
        assert all(label in known for label, known in zip(labels, COUNTED[metric], strict=True))
        found.append(" ".join((metric, *labels)))

    session = who or Session("1", src="198.51.100.7:4711", dest="192.0.2.1:25")
    session.transaction = Transaction("m1", "a@example.org", ["bob@example.net"])
    policy = Policy(parse(toml), services, lambda *_, **__: None, count)

    async def decide() -> None:
        for event in asked:
            if isinstance(event, events.Report):
                await policy.report(event, session)
            else:
                assert isinstance(await policy.decide(event, session), Verdict)  # type: ignore[arg-type]

    asyncio.run(decide())
    return found


SCAN = "fcrdns.enabled = false\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("reject", "reject"),
        ("add header", "add header"),
        ("no action", "no action"),
        ("greylist", "greylist"),
        ("discard", "discard"),
        ("my own", "other"),
        ('x"} 1\n', "other"),
    ],
)
def test_rspamd_s_actions_are_few(said: str, expected: str) -> None:
    services = Services(None, Stands({"action": said}), None)  # type: ignore[arg-type]
    assert counted(SCAN, services, Message("1", WIRE)) == [f"rspamd_actions_total {expected}"]


@pytest.mark.parametrize(
    ("toml", "user", "outcome"),
    [
        ("", "", "tempfail"),
        ("failure.rspamd.default = 'accept'", "", "accept"),
        ("failure.rspamd.unreachable = 'accept-header'", "", "accept-header"),
        ("failure.rspamd.authenticated.default = 'accept'", "al", "accept"),
        ("enforce = false", "", "accept"),
    ],
    ids=["by default", "accepted", "marked", "of a user", "nothing is enforced"],
)
def test_a_failure_is_counted_by_what_came_of_it(toml: str, user: str, outcome: str) -> None:
    who = Session("1", src="198.51.100.7:4711", dest="192.0.2.1:25", user=user)
    config = f"{SCAN}rspamd.scan_authenticated = true\n{toml}"
    services = Services(None, Stands(UNREACHABLE), None)  # type: ignore[arg-type]
    found = counted(config, services, Message("1", WIRE), who=who)
    assert found == [f"failures_total rspamd unreachable {outcome}"]


REJECTING = "rspamd.enabled = false\nfcrdns.fail = 'reject'\n"
BEGIN = events.LinkConnect("1", rdns="", fcrdns="error", src="198.51.100.7:4711", dest="")
CONNECT = events.Connect("1", rdns="", addr="198.51.100.7")
RCPT = events.RcptTo("1", address="bob@example.net")
MESSAGE = Message("1", WIRE)
BAD, GOOD = FcRdns(Result.TEMPERROR), FcRdns(Result.PASS)


@pytest.mark.parametrize(
    ("asked", "said", "expected"),
    [
        ([RCPT, RCPT, MESSAGE], [GOOD], ["pass"]),
        ([CONNECT, RCPT, RCPT, MESSAGE], [BAD, BAD, GOOD], ["temperror", "pass"]),
        ([BEGIN, RCPT], [GOOD, GOOD], ["pass"]),
        ([BEGIN], [GOOD], []),
    ],
    ids=["once a session", "another once more", "not of a report", "not of who left"],
)
def test_a_reverse_dns_result_is_counted(
    asked: list[object], said: list[FcRdns], expected: list[str]
) -> None:
    # smtpd reports with a session of which nothing is kept.
    reports = [event for event in asked if event is BEGIN]
    requests = [event for event in asked if event is not BEGIN]
    services = Services(Stands(list(said)), None, None)  # type: ignore[arg-type]
    found = counted(REJECTING, services, *reports) + counted(REJECTING, services, *requests)
    assert found == [f"fcrdns_total {result}" for result in expected]


def test_smtpd_s_own_result_is_counted_once() -> None:
    who = Session("1", src="198.51.100.7:4711", dest="192.0.2.1:25", fcrdns="pass", rdns="a.test")
    config = f"{REJECTING}fcrdns.source = 'smtpd'\n"
    found = counted(config, Services(None, None, None), RCPT, RCPT, MESSAGE, who=who)
    assert found == ["fcrdns_total pass"]


# How they are read ------------------------------------------------------------------------


def read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return samples(answer.read().decode())


def served(port: int) -> bool:
    try:
        return bool(read(port))
    except (urllib.error.URLError, ConnectionError):
        return False


def test_they_tell_of_shims_requests_and_services(tmp_path: Path) -> None:
    port = free_port()
    config = (
        f'[bridge]\nmetrics = ["tcp:127.0.0.1:{port}"]\n[fcrdns]\nenabled = false\n'
        '[rspamd]\nservers = ["http://127.0.0.1:1", "http://127.0.0.1:2"]\nretries = 0\n'
        "max_errors = 1\n"
    )
    with (
        Sidecar(tmp_path, config=config, app="") as bridge,
        shim(tmp_path, bridge.endpoint) as smtpd,
    ):
        eventually("metrics", lambda: served(port))
        before = read(port)
        assert send(smtpd) == 451
        found = read(port)
        assert bridge.command("reload").returncode == 0
    assert found["links{}"] == 1
    assert found["link_requests_total{shim}"] == 1
    assert found["link_requests_open{shim}"] == 0
    assert found['requests_total{phase="message",decision="reject"}'] == 1
    assert found['service_requests_total{service="rspamd",outcome="unreachable"}'] == 1
    failed = 'failures_total{service="rspamd",kind="unreachable",outcome="tempfail"}'
    assert (before[failed], found[failed]) == (0, 1)
    first, second = (f'server_up{{service="rspamd",server="http://127.0.0.1:{n}"}}' for n in (1, 2))
    assert (before[first], before[second]) == (1, 1)
    assert (found[first], found[second]) == (0, 1)
    for values in COUNTED["rspamd_actions_total"]:
        assert [before[f'rspamd_actions_total{{action="{value}"}}'] for value in values] == [0] * 9
    assert {f'fcrdns_total{{result="{result}"}}' for result in Result} <= before.keys()
    assert before['requests_total{phase="message",decision="failed"}'] == 0
    assert abs(found["config_reload_success_timestamp_seconds{}"] - time.time()) < 3600


def test_they_tell_what_is_open(tmp_path: Path) -> None:
    port, release = free_port(), tmp_path / "release"
    config = f'{NO_SERVICES}[bridge]\nmetrics = ["tcp:127.0.0.1:{port}"]\n'
    with Sidecar(tmp_path, config=config) as bridge, shim(tmp_path, bridge.endpoint) as smtpd:
        outcome = hold(smtpd, release)
        smtpd.run(lambda: bridge.messages() == 1)
        found = read(port)
        release.touch()
        smtpd.run(lambda: outcome.done)
        after = read(port)
    assert found["link_requests_open{shim}"] == 1
    assert found["link_bytes_open{shim}"] > 100
    assert after["link_requests_open{shim}"] == after["link_bytes_open{shim}"] == 0
    assert after['requests_total{phase="message",decision="proceed"}'] == 1


def test_a_port_that_is_taken_keeps_no_mail_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = f'{NO_SERVICES}[bridge]\nmetrics = ["tcp:127.0.0.1:{port}"]\n'
        with Sidecar(tmp_path, config=config) as bridge, shim(tmp_path, bridge.endpoint) as smtpd:
            assert send(smtpd) == 250
            eventually("a word of it", lambda: "no-metrics on=" in bridge.log)
            other.close()
            eventually("metrics after all", lambda: served(port))
    assert said(smtpd, "bridge-lost") == 0


@pytest.mark.parametrize(
    "request_", [b"x" * 100_000, b"GET / HTTP/1.1\r\n"], ids=["a head without end", "half a head"]
)
def test_a_reader_that_makes_no_sense_harms_nobody(request_: bytes, tmp_path: Path) -> None:
    port = free_port()
    config = f'{NO_SERVICES}[bridge]\nmetrics = ["tcp:127.0.0.1:{port}"]\n'
    with Sidecar(tmp_path, config=config) as bridge:
        eventually("metrics", lambda: served(port))
        with socket.create_connection(("127.0.0.1", port), WAIT) as bad:
            bad.sendall(request_)
            bad.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                assert bad.recv(1000) == b""
        assert read(port)["links{}"] == 0
        assert "Traceback" not in bridge.log
