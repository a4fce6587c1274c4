"""Do smtpd and the other sessions live while handlers of somebody's filter misbehave?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live import places
from tests.live.bridged import message
from tests.live.world import OpenSMTPD, Reply

WAYS = {
    "in process": "{python} {dir}/misdeeds.py",
    "under the shim": (
        "/usr/bin/env PYTHONPATH={dir} {bridge} run misdeeds:app -f {dir}/bridge.toml"
    ),
}
TOML = """
[shim]
command_deadline = "3s"
[fcrdns]
timeout = "1s"
"""
BAD = [
    f"{kind}-{word}"
    for kind in ("async", "plain")
    for word in ("raise", "number", "exit", "minute")
]
FAILED = "Internal error, please try again later"


@pytest.fixture(
    scope="module",
    params=[(version, way) for version in places.VERSIONS for way in WAYS],
    ids=lambda param: ", ".join(param),
)
def mta(request: pytest.FixtureRequest) -> Iterator[OpenSMTPD]:
    version, way = request.param
    code = (Path(__file__).parent / "misdeeds.py").read_text()
    files = {"misdeeds.py": code, "bridge.toml": TOML}
    with OpenSMTPD(version, filters={"mine": WAYS[way]}, files=files) as server:
        yield server
        assert server.alive
    assert server.leftovers == []


CONNECT = threading.Lock()  # smtpd's backlog is 5: more at once would wait for TCP


def send(mta: OpenSMTPD, local_part: str) -> tuple[Reply, float]:
    """The reply, and how long it took."""
    with CONNECT:
        client = mta.client()
    with client:
        began = time.monotonic()
        reply = client.deliver(f"{local_part}@client.example", ["rcpt@example.org"], message())
        return reply, time.monotonic() - began


def test_under_load_only_those_who_are_asked_for_are_deferred(mta: OpenSMTPD) -> None:
    assert send(mta, "good")[0].code == 250  # the filter is up
    mta.wait_delivered(1)
    with ThreadPoolExecutor(48) as pool:
        bad = {name: [pool.submit(send, mta, name) for _ in range(4)] for name in BAD}
        good = [pool.submit(send, mta, "good") for _ in range(100)]
        replies = [each.result() for each in good]
        assert [reply.code for reply, _ in replies] == [250] * 100
        for name, sent in bad.items():
            for each in sent:
                reply, seconds = each.result()
                assert (reply.code, FAILED in reply.lines[0]) == (451, True), name
                assert seconds < 10
    assert len([m for m in mta.wait_delivered(101) if b"\nX-Seen: yes\n" in m.raw]) == 101
    assert send(mta, "good")[0].code == 250
    assert "secret" not in mta.log()


def test_a_handler_that_holds_the_event_loop_ends_neither_smtpd_nor_mail(mta: OpenSMTPD) -> None:
    with ThreadPoolExecutor(8) as pool:
        held = pool.submit(send, mta, "async-hold")
        time.sleep(0.5)
        others = [pool.submit(send, mta, "good") for _ in range(4)]
        assert held.result()[0].code == 451
        assert {each.result()[0].code for each in others} <= {250, 451}
    until = time.monotonic() + 20
    while send(mta, "good")[0].code != 250:
        assert time.monotonic() < until
        time.sleep(0.5)
