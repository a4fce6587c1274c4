"""What does a bridge count, and can Prometheus read it?"""

from __future__ import annotations

import re
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.metrics import BOUNDS, METRICS, PREFIX, LinkUse, Metrics
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
        '[rspamd]\nservers = ["http://127.0.0.1:1"]\nretries = 0\n'
    )
    with (
        Sidecar(tmp_path, config=config, app="") as bridge,
        shim(tmp_path, bridge.endpoint) as smtpd,
    ):
        eventually("metrics", lambda: served(port))
        assert send(smtpd) == 451
        found = read(port)
        assert bridge.command("reload").returncode == 0
    assert found["links{}"] == 1
    assert found["link_requests_total{shim}"] == 1
    assert found["link_requests_open{shim}"] == 0
    assert found['requests_total{phase="message",decision="reject"}'] == 1
    assert found['service_requests_total{service="rspamd",outcome="unreachable"}'] == 1
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
