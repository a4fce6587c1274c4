"""Each service is asked as the bridge asks it, and what is wrong is told in words."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import pytest

from bridge import config, link
from bridge.check import probes
from bridge.check.findings import FAIL, OK, WARN, Finding
from bridge.config import Config
from bridge.policy import Policy
from bridge.server import Server
from bridge.services import zstd
from bridge.services.build import build
from bridge.testing.dns import DnsServer
from bridge.testing.http import Behaviour, Reply
from tests.unit.asking import closed_port
from tests.unit.standing import MILTER_PONG, NOT_FOUND, PAGE, PONG, saying, standing_in

NO_DNS = "[fcrdns]\nenabled = false\n"
NO_RSPAMD = "[rspamd]\nenabled = false\n"
WORKER = "hint: is this the address of rspamd's normal worker, port 11333?"
SIGNER = "hint: is this the address of the signing endpoint?"

# What the server does, in turn -> what is told of it; N for a number.
RSPAMD: dict[str, tuple[tuple[str | Behaviour, ...], str, str]] = {
    "an rspamd that scans": ((PONG, "ok"), OK, "rspamd/3.4, N ms for a scan: no action"),
    "a milter port, by its name": (
        (MILTER_PONG, "close"), FAIL,
        "this is rspamd's milter port (11332); hint: the normal worker's is 11333"),
    "a milter port, by what it does": (
        (PONG, "close"), FAIL,
        "the connection was closed without a whole reply; hint: it answers /ping but scans "
        "nothing: is it the milter port, 11332?"),
    "a web server": (
        (PAGE,), FAIL, "no JSON object; hint: is this rspamd's normal worker?"),
    "a web server without the page": ((NOT_FOUND,), FAIL, f"status 404; {WORKER}"),
    "a proxy that passes scans only": (
        (NOT_FOUND, "ok"), OK,
        "rspamd of unknown version, N ms for a scan: no action; /ping is not answered"),
    "an rspamd without a verdict": (
        (PONG, Reply(body=b'{"action":"unknown action"}')), FAIL,
        "action 'unknown action'; hint: see rspamd's log"),
    "one that hangs": (("hang",), FAIL, f"no answer in 0.3 s; {WORKER}"),
}  # fmt: skip
WELL = Reply(body=b'{"status": "ok", "keys": 2}')
DKIM: dict[str, tuple[tuple[str | Behaviour, ...], str, str]] = {
    "a signer that is well": (
        (WELL, Reply(400, b'{"error": "domain"}')), OK, "healthy, N ms"),
    "a signer that does not know us": (
        (WELL, Reply(401, b'{"error": "unauthorized"}')), FAIL,
        "status 401 (unauthorized); hint: is the token right?"),
    "a signer that fails then": (
        (WELL, "502"), FAIL, f"status 502; {SIGNER}"),
    "a signer whose keys are not all in use": (
        (Reply(body=b'{"status": "stale", "keys": 2}'),), FAIL,
        "stale; hint: the signer's log says why"),
    "a signer without keys": (
        (Reply(503, b'{"status": "no keys"}'),), FAIL, "no keys; hint: the signer's log says why"),
    "another service that is well": (
        ("ok",), FAIL, "status 200; hint: is this a signing endpoint?"),
    "a proxy before a signer that is down": (
        ("503",), FAIL, "status 503; hint: is this a signing endpoint?"),
    "a signer that hangs": (("hang",), FAIL, f"no answer in 0.3 s; {SIGNER}"),
}  # fmt: skip
# A zone -> what is told of the server that has it.
DNS = {
    "a name": ("$PTR 127.0.0.1 localhost.example", OK, "answers, N ms"),
    "no name, which is an answer too": ("", OK, "answers, N ms"),
    "SERVFAIL": (
        "$FAULT * servfail", FAIL,
        "SERVFAIL; hint: does it run, and answer recursive queries of this machine?"),
    "silence": (
        "$FAULT * timeout", FAIL,
        "no answer in 0.3 s; hint: does it run, and answer recursive queries of this machine?"),
}  # fmt: skip
SERVE = "hint: is filter-bridge serve running there?"
# Configuration -> the subjects of its probes.
ASKED = {
    "rspamd alone": (NO_DNS, ["rspamd http://127.0.0.1:11333"]),
    "each server by itself": (
        NO_DNS + "[rspamd]\nservers = ['http://a:1', 'https://b:2', 'unix:/c']",
        ["rspamd http://a:1", "rspamd https://b:2", "rspamd unix:/c"]),
    "what is off is left alone": (NO_DNS + NO_RSPAMD, []),
    "what one profile wants is asked": (
        NO_DNS + NO_RSPAMD + "[[profile]]\nname = 'in'\nrspamd.enabled = true",
        ["rspamd http://127.0.0.1:11333"]),
    "each nameserver": (
        NO_RSPAMD + "[fcrdns]\nnameservers = ['192.0.2.53', '[::1]:5353']",
        ["dns 192.0.2.53", "dns [::1]:5353"]),
    "no nameserver when smtpd is believed": (NO_RSPAMD + "[fcrdns]\nsource = 'smtpd'", []),
    "signers": (
        NO_DNS + NO_RSPAMD + "[dkim]\nenabled = true\nservers = ['http://s:1']",
        ["dkim http://s:1"]),
    "bridges": (
        NO_DNS + NO_RSPAMD + "[shim]\nconnect = ['unix:/b', 'tcp:[::1]:7']",
        ["bridge unix:/b", "bridge tcp:[::1]:7"]),
}  # fmt: skip


def asked(text: str, limit: float = probes.LIMIT) -> list[Finding]:
    parsed = config.parse(text, strict=True)
    return probes.run(list(probes.all_probes(parsed)), limit)


def ask(text: str, limit: float = probes.LIMIT) -> tuple[str, str]:
    """What came of the only probe of a configuration."""
    [finding] = asked(text, limit)
    return finding.state, re.sub(r"under \d+ ms|\b\d+ ms", "N ms", finding.text)


def limit_for(text: str) -> float:
    """What never answers need not be waited for long."""
    return 0.3 if "0.3 s" in text else probes.LIMIT


@pytest.mark.parametrize(("behaviours", "state", "text"), RSPAMD.values(), ids=RSPAMD)
def test_rspamd(behaviours: tuple[str | Behaviour, ...], state: str, text: str) -> None:
    with standing_in(*behaviours) as service:
        told = ask(f"{NO_DNS}[rspamd]\nservers = ['{service.url}']", limit_for(text))
    assert told == (state, text)


@pytest.mark.parametrize(("behaviours", "state", "text"), DKIM.values(), ids=DKIM)
def test_a_signer(behaviours: tuple[str | Behaviour, ...], state: str, text: str) -> None:
    with standing_in(*behaviours) as service:
        table = f"[dkim]\nenabled = true\nservers = ['{service.url}']\ntoken = 'sesame'"
        told = ask(NO_DNS + NO_RSPAMD + table, limit_for(text))
        seen = list(service.seen)
    assert told == (state, text)
    asked = [("GET", "/healthz"), ("POST", "/sign")][: len(behaviours)]
    assert [(each.method, each.path) for each in seen] == asked
    assert [each.values("Authorization") for each in seen] == [[b"Bearer sesame"]] * len(seen)
    assert not any(each.values("DKIM-Domain") for each in seen)


@pytest.mark.parametrize(("zone", "state", "text"), DNS.values(), ids=DNS)
def test_a_nameserver(zone: str, state: str, text: str) -> None:
    with DnsServer(zone) as server:
        table = f"[fcrdns]\nnameservers = ['{server.address}']"
        told = ask(NO_RSPAMD + table, limit_for(text))
        first = server.queries[0]
    assert told == (state, text)
    assert (first.name, first.type) == ("1.0.0.127.in-addr.arpa", "PTR")


@pytest.mark.parametrize(("text", "subjects"), ASKED.values(), ids=ASKED)
def test_who_is_asked(text: str, subjects: list[str]) -> None:
    parsed = config.parse(text, strict=True)
    assert [probe.subject for probe in probes.all_probes(parsed)] == subjects


def test_the_scan_is_of_a_local_message_that_nothing_is_learned_from() -> None:
    with standing_in(PONG, "ok") as service:
        ask(f"{NO_DNS}[rspamd]\nservers = ['{service.url}']")
        ping, scan = service.seen
    assert (ping.method, ping.path) == ("GET", "/ping")
    assert (scan.method, scan.path) == ("POST", "/checkv2")
    assert scan.values("IP") == [b"127.0.0.1"]
    assert scan.values("Flags") == [b"milter,body_block,no_stat"]
    assert scan.body == probes.MESSAGE


def test_the_scan_is_compressed_as_configured() -> None:
    with standing_in(PONG, "ok") as service:
        table = f"[rspamd]\nservers = ['{service.url}']\ncompress = true"
        assert ask(NO_DNS + table)[0] == OK
        scan = service.seen[-1]
    assert scan.values("Compression") == [b"zstd"]
    assert zstd.decompress(scan.body, 10_000) == probes.MESSAGE


def test_a_milter_port_is_not_sent_a_message() -> None:
    with standing_in(MILTER_PONG, "close") as service:
        ask(f"{NO_DNS}[rspamd]\nservers = ['{service.url}']")
        assert [seen.path for seen in service.seen] == ["/ping"]


def test_a_refused_connection() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    state, text = ask(f"{NO_DNS}[rspamd]\nservers = ['{url}']")
    assert state == FAIL
    assert text.startswith("no connection (")
    assert text.endswith("; hint: is it running?")


def test_something_that_is_no_http() -> None:
    with standing_in("not-http") as service:
        state, text = ask(f"{NO_DNS}[rspamd]\nservers = ['{service.url}']")
    assert state == FAIL
    assert text.startswith("this is not HTTP; hint: is the port right?")


def test_no_server_hides_behind_another() -> None:
    with standing_in(PONG, "ok") as good:
        servers = f"['http://127.0.0.1:{closed_port()}', '{good.url}']"
        found = asked(f"{NO_DNS}[rspamd]\nservers = {servers}")
    assert [finding.state for finding in found] == [FAIL, OK]


# Bridges ----------------------------------------------------------------------------------


def hello(parsed: Config) -> bytes:
    """What a bridge of today says first."""
    services = build(parsed, lambda _service, _state: None)
    policy = Policy(parsed, services, lambda event, **values: None)
    server = Server(policy, slots=32, bytes=1 << 26, release="1.2.3", log=lambda event, **v: None)
    return link.encode(server.hello())


HELLO = hello(config.parse(""))
BRIDGES = {
    "a bridge": (HELLO, OK, "release 1.2.3, link version 1"),
    "a bridge with something new to say": (
        link.encode({"kind": "weather"}) + HELLO, OK, "release 1.2.3, link version 1"),
    "a web server": (
        b"HTTP/1.1 400 Bad Request\r\n\r\n", FAIL, f"no bridge: a frame of N bytes; {SERVE}"),
    "a mail server": (b"220 mx.example.org\r\n", FAIL, f"no bridge: a frame of N bytes; {SERVE}"),
    "silence": (b"", FAIL, f"no answer in 0.3 s; {SERVE}"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "state", "text"), BRIDGES.values(), ids=BRIDGES)
def test_a_bridge(words: bytes, state: str, text: str) -> None:
    with saying(words) as place:
        told = ask(f"{NO_DNS}{NO_RSPAMD}[shim]\nconnect = ['{place}']", limit_for(text))
    assert (told[0], re.sub(r"of \d+ bytes", "of N bytes", told[1])) == (state, text)


def test_a_bridge_at_a_unix_socket(tmp_path: Path) -> None:
    with saying(HELLO, path=str(tmp_path / "b.sock")) as place:
        told = ask(f"{NO_DNS}{NO_RSPAMD}[shim]\nconnect = ['{place}']")
    assert told == (OK, "release 1.2.3, link version 1")


def test_a_bridge_that_hangs_up() -> None:
    with saying(HELLO[:-1], close=True) as place:
        told = ask(f"{NO_DNS}{NO_RSPAMD}[shim]\nconnect = ['{place}']")
    assert told == (FAIL, f"closed without a hello; {SERVE}")


def test_a_bridge_that_is_not_there(tmp_path: Path) -> None:
    told = ask(f"{NO_DNS}{NO_RSPAMD}[shim]\nconnect = ['unix:{tmp_path}/none']")
    assert told == (FAIL, f"no connection (No such file or directory); {SERVE}")


def test_with_bridges_elsewhere_a_service_that_can_not_be_reached_is_but_a_warning() -> None:
    with saying(HELLO) as place:
        rspamd = f"[rspamd]\nservers = ['http://127.0.0.1:{closed_port()}']\n"
        found = asked(f"{NO_DNS}{rspamd}[shim]\nconnect = ['{place}']")
    assert [finding.state for finding in found] == [WARN, OK]
    assert found[0].text.endswith("(the bridges ask it, not this machine)")


# The frame --------------------------------------------------------------------------------


def test_a_call_that_can_not_be_cancelled_holds_nobody_up() -> None:
    let_go, finished = threading.Event(), threading.Event()

    def stuck() -> None:
        let_go.wait(30)
        finished.set()

    async def lookup() -> str:
        await asyncio.get_running_loop().run_in_executor(None, stuck)
        return "found"

    [finding] = probes.run([probes.Probe("a name", lookup, "is it right?")], 0.1)
    assert not finished.is_set()
    let_go.set()
    assert finding == Finding(FAIL, "a name", "no answer in 0.1 s; hint: is it right?")
    assert finished.wait(30)


def test_a_bug_in_one_probe_does_not_hide_the_others() -> None:
    async def broken() -> str:
        raise RuntimeError("oh")

    async def good() -> str:
        return "well"

    found = probes.run([probes.Probe("a", broken, "none"), probes.Probe("b", good, "")])
    assert found == [
        Finding(FAIL, "a", "internal error: RuntimeError('oh'); hint: none"),
        Finding(OK, "b", "well"),
    ]
