"""Do the examples do what they say, on the model of smtpd?"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from types import ModuleType
from typing import Any

import dns.asyncresolver
import dns.message
import dns.resolver
import pytest

from bridge import Filter
from bridge.testing import FilterProcess, FilterTester, Smtpd
from bridge.testing.dns import DnsServer
from bridge.testing.server import Server

EXAMPLES = Path(__file__).parents[2] / "contrib/examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
VERSIONS = pytest.mark.parametrize("version", ["0.6", "0.7"])
MESSAGE = b"From: a@x\nSubject: hi\n\nhello\n"


def example(name: str) -> Any:
    """The module of that name."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_a_program_and_importing_it_does_nothing(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    assert os.access(path, os.X_OK)
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, timeout=60,
        env={"PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parents[1]}", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr, list(tmp_path.iterdir())) == (
        0,
        b"",
        b"",
        [],
    )


def test_all_are_here() -> None:
    tested = {name for name in globals() if name.startswith("test_")}
    assert {f"test_{name}" for name in NAMES} <= tested


class Clock:
    """One that is set by hand."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@VERSIONS
def test_greylisting(version: str, tmp_path: Path) -> None:
    clock = Clock()
    app = example("greylisting").greylisting(str(tmp_path / "db"), 300, clock)
    with FilterTester(app, Smtpd(version)) as smtpd:
        assert smtpd.send(MESSAGE).code == 450
        clock.now += 299
        assert smtpd.send(MESSAGE).code == 450
        clock.now += 1
        assert smtpd.send(MESSAGE, src="192.0.2.99:1").code == 250  # the same network
        assert smtpd.send(MESSAGE, src="198.51.100.1:1").code == 450
        assert smtpd.send(MESSAGE, "other@x").code == 450
        clock.now += 40 * 86400
        assert smtpd.send(MESSAGE).code == 450  # forgotten
        local = smtpd.connect(local=True)
        local.ehlo("localhost")
        local.mail("root@x")
        assert local.rcpt("b@y").code == 250
    assert all("Greylisted" in line for line in smtpd.log)


ZONE = """
1.2.0.192.bl.example A 127.0.0.2
2.2.0.192.bl.example A 127.255.255.254
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.example A 127.0.0.4
$FAULT 4.2.0.192.bl.example servfail
"""


@VERSIONS
def test_dnsbl(version: str) -> None:
    with DnsServer(ZONE) as server:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = list(server.hosts), server.port
        app = example("dnsbl").dnsbl(["bl.example", "other.example"], resolver)
        with FilterTester(app, Smtpd(version)) as smtpd:
            listed = "554 5.7.1 192.0.2.1 is listed by bl.example"
            assert str(smtpd.connect("192.0.2.1:1").greeting) == listed
            assert smtpd.connect("[2001:db8::1]:1").greeting.code == 554
            for address in ("192.0.2.2", "192.0.2.3", "192.0.2.4"):
                assert smtpd.connect(f"{address}:1").greeting.code == 220
            assert smtpd.connect(local=True).greeting.code == 220


def attached(name: str, content: bytes = b"MZ") -> bytes:
    message = EmailMessage()
    message["Subject"] = "hi"
    message.set_content("hello")
    message.add_attachment(content, maintype="application", subtype="x", filename=name)
    return message.as_bytes()


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"MZ")
    return file.getvalue()


@VERSIONS
def test_attachments(version: str) -> None:
    with FilterTester(example("attachments").app, Smtpd(version)) as smtpd:
        refused = "554 5.7.1 Attachments of type .exe are not accepted here"
        assert str(smtpd.send(attached("a.EXE"))) == refused
        assert smtpd.send(attached("invoice.pdf.js. ")).code == 554
        assert smtpd.send(attached("déjà.scr")).code == 554
        assert smtpd.send(attached("a.zip", zipped("dir/b.vbs"))).code == 554
        good = (attached("a.pdf"), attached("a.zip", zipped("b.txt")), attached("a.zip"), MESSAGE)
        assert [smtpd.send(message).code for message in (*good, b"X: \xff\xfe\n\n")] == [250] * 5
    assert smtpd.delivered[0].content.endswith(good[0])


@VERSIONS
def test_subject_tag(version: str) -> None:
    subjects = {
        b"hi": b"[x] hi", b"Re: [x] hi": b"Re: [x] hi",
        b"=?utf-8?q?=C3=A4?=": b"[x] =?utf-8?q?=C3=A4?=",
        "ä".encode(): b"[x] " + "ä".encode(), b"\xe4": b"[x] \xe4", b"": b"[x]",
    }  # fmt: skip
    with FilterTester(example("subject_tag").tagging("[x]"), Smtpd(version)) as smtpd:
        for subject in subjects:
            smtpd.send(b"From: a@x\nSubject: " + subject + b"\n\nhello\n")
        smtpd.send(b"From: a@x\n\nhello\n")
    bodies = [b"Subject: " + new + b"\n\nhello\n" for new in (*subjects.values(), b"[x]")]
    for mail, body in zip(smtpd.delivered, bodies, strict=True):
        assert mail.content.endswith(b"From: a@x\n" + body)


@VERSIONS
def test_eventlog(version: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    model = Smtpd(version, server=Server(smtp_out=True))
    with FilterTester(example("eventlog").eventlog(str(path)), model) as smtpd:
        smtpd.send(MESSAGE, "a@x", ["b@y"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    words = [line["event"] for line in lines]
    assert words[0] == "link-connect"
    assert words[-1] == "link-disconnect"
    [mail] = [line for line in lines if line["event"] == "tx-mail"]
    assert (mail["address"], mail["result"], mail["direction"]) == ("a@x", "ok", "smtp-in")
    assert {line["peer"] for line in lines} == {"192.0.2.1:4711"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert ("smtp-out", "tx-mail") in model.registry.reports


@VERSIONS
def test_rate_limit(version: str) -> None:
    clock = Clock()
    app = example("rate_limit").rate_limit(3, clock)
    with FilterTester(app, Smtpd(version)) as smtpd:

        def send(user: str) -> list[int]:
            client = smtpd.connect()
            client.ehlo("x")
            if user:
                client.starttls()
                client.ehlo("x")
                client.auth(user, "secret")
            client.mail("a@x")
            return [client.rcpt(f"{number}@y").code for number in range(2)]

        assert (send("alice"), send("alice"), send("bob")) == ([250] * 2, [250, 450], [250] * 2)
        assert [send("") for _ in range(3)] == [[250] * 2] * 3
        clock.now += 3600
        assert send("alice") == [250] * 2


@VERSIONS
def test_spf_results(version: str) -> None:
    asked = []

    def check(address: str, sender: str, helo: str) -> str:
        asked.append((address, sender, helo))
        return "softfail"

    forged = b"Authentication-Results: mx.example.org; spf=pass\n"
    others = b"Authentication-Results: elsewhere.example; spf=pass\n"
    app = example("spf_results").spf_results(check)
    with FilterTester(app, Smtpd(version)) as smtpd:
        smtpd.send(forged + others + forged + MESSAGE, "a@x.example")
        smtpd.send(MESSAGE, "")
    head = b"Authentication-Results: mx.example.org; spf=softfail "
    first, second = (mail.content for mail in smtpd.delivered)
    assert first.startswith(head + b"smtp.mailfrom=x.example\nReceived:")
    assert first.endswith(b"\n" + others + MESSAGE)
    assert second.startswith(head + b"smtp.helo=client.example\n")
    assert asked == [("192.0.2.1", sender, "client.example") for sender in ("a@x.example", "")]


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6", "0.7"])
def test_callbacks_2018(version: str) -> None:
    command = [sys.executable, str(EXAMPLES / "callbacks_2018.py")]
    env = {"PYTHONPATH": str(EXAMPLES.parents[1])}
    with FilterProcess(command, env, smtpd=Smtpd(version)) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        client.mail("a@x")
        client.rcpt("b@y")
        client.data(MESSAGE)
        client.quit()
    [mail] = smtpd.delivered
    assert f"{mail.session} mail {mail.msgid} a@x ok" in smtpd.stderr
    assert f"{mail.session} rcpt {mail.msgid} b@y ok" in smtpd.stderr
    assert smtpd.stderr[-1] == f"{mail.session} disconnect 0"
    assert not any("failed" in line for line in smtpd.stderr)


def test_each_can_be_put_in_a_chain() -> None:
    def application(name: str) -> Filter:
        app = example(name).app
        assert isinstance(app, Filter)
        return app

    pick: list[Callable[[], Filter]] = [
        lambda: application("attachments"),
        lambda: application("subject_tag"),
        lambda: application("rate_limit"),
    ]
    with FilterTester(Filter.chain(*(make() for make in pick))) as smtpd:
        assert smtpd.send(attached("a.exe")).code == 554
        assert smtpd.send(MESSAGE).code == 250
    assert b"\nSubject: [external] hi\n" in smtpd.delivered[0].content
