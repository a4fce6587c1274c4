"""Sidecars as real processes: `filter-bridge serve` in a directory of its own, shims connected to
it, and an application whose answers a test can hold back.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from bridge.testing.client import Client
from bridge.testing.outcomes import Outcome
from bridge.testing.process import FilterProcess
from bridge.testing.server import Ids
from bridge.testing.smtpd import Smtpd

PROJECT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "bridge")
WAIT = 20.0  # seconds; none of it passes when all is well
APPLICATION = "tests.unit.holding:app"  # see there
_seeds = itertools.count(1)  # no two servers have sessions of the same id
NO_SERVICES = "[fcrdns]\nenabled = false\n[rspamd]\nenabled = false\n"


def eventually(what: str, condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until, f"waited {WAIT} s for {what}"
        time.sleep(0.01)


class Sidecar:
    """One bridge process.  log: what it has written so far."""

    def __init__(
        self,
        directory: Path,
        *listen: str,
        name: str = "bridge",
        config: str = NO_SERVICES,
        app: str = APPLICATION,
        env: Mapping[str, str] | None = None,
        insecure: bool = False,
    ) -> None:
        self.endpoint = listen[0] if listen else f"unix:{directory}/{name}.sock"
        self.file = directory / f"{name}.toml"
        self.run_dir = directory / f"{name}.run"
        self.held = directory / f"{name}.held"  # a line for each message that came
        self._log = directory / f"{name}.log"
        self._arguments = ["serve", "-f", str(self.file)]
        for endpoint in listen or (self.endpoint,):
            self._arguments += ["--listen", endpoint]
        self._arguments += ["--app", app] if app else []
        self._arguments += ["--insecure"] if insecure else []
        self._env = os.environ | {
            "PYTHONPATH": str(PROJECT), "BRIDGE": name, "HELD": str(self.held), **(env or {})
        }  # fmt: skip
        self.run_dir.mkdir(exist_ok=True)
        self.configure(config)
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, text: str) -> None:
        """Write its configuration; keys of [bridge] go below the text's own table, if any."""
        bridge = f'[bridge]\nrun_dir = "{self.run_dir}"\n'
        has = "[bridge]\n" in text
        self.file.write_text(text.replace("[bridge]\n", bridge) if has else bridge + text)

    def __enter__(self) -> Self:
        self.begin()
        eventually("a listening bridge", lambda: "listening on=" in self.log or self.ended)
        assert not self.ended, self.log
        return self

    def begin(self) -> None:
        """Start it, without waiting."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )

    def __exit__(self, *_: object) -> None:
        assert self.process
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def ended(self) -> bool:
        assert self.process
        return self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it ends."""
        assert self.process
        return self.process.wait(WAIT)

    def messages(self) -> int:
        """How many messages it was given."""
        return len(self.held.read_text().splitlines()) if self.held.exists() else 0

    def refused(self) -> subprocess.CompletedProcess[str]:
        """Start it where it ends by itself."""
        return run(*self._arguments)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command with its configuration, like `reload`."""
        return run(*arguments, "-f", str(self.file))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Our command, to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )


def shim(directory: Path, *connect: str, config: str = "", patience: str = "20s") -> FilterProcess:
    """A filter, not yet started, that is connected to sidecars."""
    file = directory / "shim.toml"
    file.write_text(config or NO_SERVICES)
    arguments = [*COMMAND, "shim", "-f", str(file), "--patience", patience]
    for endpoint in connect:
        arguments += ["--connect", endpoint]
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    return FilterProcess(arguments, env, smtpd=Smtpd(ids=Ids(next(_seeds))), timeout=WAIT)


def up(smtpd: FilterProcess, *sidecars: Sidecar) -> None:
    """Run until the shim has a link to each of them."""
    smtpd.run(lambda: all(said(smtpd, f"bridge-up bridge={s.endpoint}") for s in sidecars))


def said(smtpd: FilterProcess, text: str) -> int:
    """How many of the shim's log lines have that in them."""
    return sum(text in line for line in smtpd.stderr)


def begun(smtpd: FilterProcess) -> Client:
    """A client that has said all but DATA."""
    client = smtpd.connect()
    client.ehlo("client.example.net")
    client.mail("alice@example.net")
    client.rcpt("bob@example.org")
    return client


def send(smtpd: FilterProcess, content: bytes = b"Subject: hi\n\nbody\n") -> int:
    """A message in a session of its own; the code of the reply."""
    client = begun(smtpd)
    code = client.data(content).code
    client.quit()
    return code


def hold(smtpd: FilterProcess, until: Path) -> Outcome:
    """A message that a bridge holds until that file is there."""
    return begun(smtpd).data_later(f"X-Hold: {until}\n\nbody\n".encode())


def judged_by(smtpd: FilterProcess) -> list[str]:
    """The bridges that judged what was delivered, in that order."""
    fields = [mail.content.partition(b"X-Bridge: ")[2] for mail in smtpd.delivered]
    return [field.partition(b"\n")[0].decode() for field in fields]
