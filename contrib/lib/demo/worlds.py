"""Where does the demo's mail go: real servers, or the embedded model of smtpd and stand-ins?

Both take the same messages and tell the same of them.  What should become of a message, and
whether it did, is not looked at here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

from bridge.keygen import keygen
from bridge.testing.dns import DnsServer
from bridge.testing.http import Reply, StandIn, Writer
from bridge.testing.outcomes import SmtpdError
from bridge.testing.process import FilterProcess
from bridge.testing.smtpd import Smtpd
from tests.live.mail import Delivered
from tests.live.rspamd import GTUBE, Rspamd
from tests.live.signer import Signer
from tests.live.verifiers import DkimPy, OpenDkim, Verifier
from tests.live.world import OpenSMTPD
from tests.signing import App, Keys, Options, cli

START_SECONDS = 30.0  # on a slow machine; half a second otherwise
DOMAIN = "good.example"
SENDER = f"sender@{DOMAIN}"
ACTIONS = ((15.0, "reject"), (6.0, "add header"), (0.0, "no action"))  # at which score


class World(Protocol):
    """about: what runs, and where; protocol: the filter protocol's version; configuration: the
    filter's; verifiers: of signatures, by name."""

    about: list[tuple[str, str]]
    protocol: str
    configuration: str
    verifiers: dict[str, Verifier]

    def send(self, source: str, recipient: str, message: bytes) -> str:
        """Send a message in a session of its own; the reply that decided it."""

    def delivered(self, number: int) -> list[Delivered]:
        """All that was delivered, once it is that many."""

    def log(self) -> list[str]:
        """What the filter logged so far."""

    def scans(self) -> int:
        """How many messages rspamd was asked about."""

    def bridge(self) -> int:
        """The pid of the bridge."""

    def stop_rspamd(self) -> None: ...

    def start_rspamd(self) -> None: ...

    def alive(self) -> bool:
        """Is smtpd what it was at the start?"""


class Real:
    """OpenSMTPD and rspamd as Debian has them, on loopback addresses of their own."""

    def __init__(self, mta: OpenSMTPD, rspamd: Rspamd, signer: Signer) -> None:
        self._mta, self._rspamd = mta, rspamd
        self._smtpd = mta.pids().smtpd
        self.protocol = mta.place.protocol
        self.configuration = (mta.dir / "bridge.toml").read_text()
        smtpd = mta.wait_log(r"info: (OpenSMTPD \S+) starting")[1]
        where = "this machine's own" if mta.place.chroot is None else f"in {mta.place.chroot}"
        self.about = [
            (smtpd, f"{mta.address}, port 25, {where}"),
            (_rspamd_version(), rspamd.url),
            ("contrib/dkim-signer", signer.url),
            ("DNS stand-in", f"{mta.dns.hosts[0]}, port 53"),
        ]
        where = mta.dns.hosts[0]
        self.verifiers: dict[str, Verifier] = {
            "dkimpy": DkimPy(where),
            "OpenDKIM": OpenDkim(where, mta.dir),
        }

    def send(self, source: str, recipient: str, message: bytes) -> str:
        return str(self._mta.send(message, SENDER, [recipient], source=source))

    def delivered(self, number: int) -> list[Delivered]:
        return self._mta.wait_delivered(number)

    def log(self) -> list[str]:
        return re.findall(r"(?m)^(?:warn: )?bridge: (.*)$", self._mta.log())

    def scans(self) -> int:
        return len(self._rspamd.seen())

    def bridge(self) -> int:
        return self._mta.pids().bridges[0]

    def stop_rspamd(self) -> None:
        self._rspamd.stop()

    def start_rspamd(self) -> None:
        self._rspamd.start()

    def alive(self) -> bool:
        return self._mta.alive and self._mta.pids().smtpd == self._smtpd


def _rspamd_version() -> str:
    done = subprocess.run(["rspamd", "--version"], capture_output=True, text=True, timeout=10)
    found = re.search(r"\d+\.\d\S*", done.stdout)
    return f"rspamd {found.group() if found else ''}".rstrip()


@contextlib.contextmanager
def real(version: str, configuration: str, zone: str) -> Iterator[World]:
    """Start the real servers; end all of them."""
    with Rspamd() as rspamd, Signer([DOMAIN]) as signer:
        toml = configuration.replace("{rspamd}", rspamd.url).replace("{signer}", signer.url)
        zone += signer.zone
        filters = {"bridge": "{bridge} -f {dir}/bridge.toml"}
        with OpenSMTPD(version, filters=filters, files={"bridge.toml": toml}, zone=zone) as mta:
            mta.wait_log("bridge-up", START_SECONDS)
            yield Real(mta, rspamd, signer)
        if mta.leftovers:
            raise RuntimeError(f"these did not leave by themselves: {', '.join(mta.leftovers)}")


class Model:
    """The embedded model of smtpd, which runs the real filter, and the stand-ins."""

    def __init__(
        self, smtpd: FilterProcess, rspamd: StandInRspamd, dns: DnsServer, configuration: str
    ) -> None:
        self._smtpd, self._rspamd = smtpd, rspamd
        self.configuration = configuration
        self.protocol = smtpd.smtpd.dialect.version
        self.about = [
            ("model of smtpd", f"filter protocol {self.protocol}, in this process"),
            ("rspamd stand-in", rspamd.url),
            ("contrib/dkim-signer", "in this process"),
            ("DNS stand-in", f"{dns.hosts[0]}:{dns.port}"),
        ]
        self.verifiers: dict[str, Verifier] = {"dkimpy": DkimPy(dns.hosts[0], dns.port)}

    def send(self, source: str, recipient: str, message: bytes) -> str:
        client = self._smtpd.connect(f"{source}:4711", "127.0.0.1:25", "good.example")
        client.ehlo("client.example")
        reply = client.mail(SENDER)
        if reply.code == 250:
            reply = client.rcpt(recipient)
        if reply.code == 250:
            reply = client.data(message)
        client.abort()
        return str(reply)

    def delivered(self, number: int) -> list[Delivered]:
        mails = [Delivered(each.content, junk=False) for each in self._smtpd.delivered]
        # As mail.maildir(8) -j chooses the folder.
        return [Delivered(m.raw, junk=m.header("X-Spam")[:1] == [b"Yes"]) for m in mails]

    def log(self) -> list[str]:
        return list(self._smtpd.stderr)

    def scans(self) -> int:
        return self._rspamd.count

    def bridge(self) -> int:
        return int(re.findall(r"bridge-started pid=(\d+)", "\n".join(self.log()))[-1])

    def stop_rspamd(self) -> None:
        self._rspamd.stop()

    def start_rspamd(self) -> None:
        self._rspamd.start()

    def alive(self) -> bool:
        return self._smtpd.smtpd.failed is None and not self._smtpd.faults


class StandInRspamd:
    """Says what X-Test-Verdict asks for, as the rule of the real one does, in a thread."""

    def __init__(self) -> None:
        self.url = ""
        self.count = 0
        self._listen = "127.0.0.1:0"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._http: StandIn | None = None

    def start(self) -> None:
        self._http = StandIn(self._judge, listen=self._listen)
        asyncio.run_coroutine_threadsafe(self._http.__aenter__(), self._loop).result(10)
        self.url = self._http.url
        self._listen = self.url.removeprefix("http://")  # the same one the next time

    def stop(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            asyncio.run_coroutine_threadsafe(http.__aexit__(), self._loop).result(10)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _judge(self, writer: Writer) -> None:
        assert self._http is not None
        message = self._http.seen[-1].body  # noted right before we were called
        self.count += 1
        wanted = _wanted(message)
        await asyncio.sleep(wanted.get("delay", 0))
        score = wanted.get("score", 0.0)
        action = wanted.get("action") or next(name for least, name in ACTIONS if score >= least)
        said: dict[str, Any] = {"action": action, "score": score, "required_score": 15.0}
        if "message" in wanted:
            said["messages"] = {"smtp_message": wanted["message"]}
        reply = Reply(body=json.dumps({**said, "symbols": {}}).encode())
        writer.write(reply.head() + reply.body)
        await writer.drain()


def _wanted(message: bytes) -> dict[str, Any]:
    if GTUBE in message:
        return {"action": "reject", "score": 15.0, "message": "Gtube pattern"}
    found = re.search(rb"(?m)^X-Test-Verdict: ([\w+/=]+)", message)
    wanted: dict[str, Any] = json.loads(base64.b64decode(found[1])) if found else {}
    return wanted


class InnerSigner:
    """The reference signer, with keys in that directory, in a thread."""

    def __init__(self, directory: Path) -> None:
        self.url = f"unix:{directory}/signer"
        keys = directory / "keys"
        keys.mkdir(mode=0o700)
        self.zone = "".join(
            f'{key.name} TXT "{key.text}"\n' for key in keygen(DOMAIN, "s1", "both", keys)
        )
        options = cli.parser().parse_args(["--keys", str(keys), "--listen", self.url])
        self._listener = cli.bind(self.url, 0o600)
        self._server = cli.server(App(Keys(keys), Options()), options)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


PROTOCOLS = {"6.8": "0.6", "7.6": "0.7"}


@contextlib.contextmanager
def model(version: str, configuration: str, zone: str) -> Iterator[World]:
    """Start the stand-ins, and the filter under the model; end all of them."""
    with contextlib.ExitStack() as closing:
        directory = Path(tempfile.mkdtemp(prefix="filter-bridge-demo-"))
        closing.callback(shutil.rmtree, directory, ignore_errors=True)
        signer = closing.enter_context(InnerSigner(directory))
        dns = DnsServer(zone + signer.zone).start()
        closing.callback(dns.stop)
        rspamd = StandInRspamd()
        closing.callback(rspamd.close)
        rspamd.start()
        where = f"{dns.hosts[0]}:{dns.port}"
        toml = configuration.replace("{rspamd}", rspamd.url).replace("{dns}", where)
        toml = toml.replace("{signer}", signer.url)
        (directory / "bridge.toml").write_text(toml)
        command = [sys.executable, "-m", "bridge", "-f", str(directory / "bridge.toml")]
        smtpd = Smtpd(PROTOCOLS[version])
        process = FilterProcess(command, smtpd=smtpd, timeout=START_SECONDS)
        try:
            closing.enter_context(process)
            process.run(lambda: any("bridge-up" in line for line in process.stderr))
        except SmtpdError as error:
            raise RuntimeError("\n".join([str(error), *process.stderr[-20:]])) from error
        yield Model(process, rspamd, dns, toml)
