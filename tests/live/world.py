"""A real OpenSMTPD, in a world of its own: how do tests start it, talk to it and look inside?

    with OpenSMTPD("7.6", filters={"bridge": "{bridge} -f {dir}/bridge.toml"},
                   files={"bridge.toml": toml}, zone="$PTR 127.5.5.5 good.example") as mta:
        with mta.client(source="127.5.5.5") as client:
            assert client.deliver("a@good.example", ["b@example.org"], message).code == 250
        [mail] = mta.wait_delivered(1)
        mta.wait_log(r"bridge: .* proceed")

Each server has a loopback address of its own with ports 25, 53 and 587, a mount namespace of
its own (spool, /run, resolv.conf, hosts), a DNS stand-in (`mta.dns`, NXDOMAIN for what it does
not know) and a directory (`mta.dir`, readable by the filter's user, the same path inside).
Everything it started is gone after the `with` block; what had to be killed is in `leftovers`.

`listeners=[Listener(), Listener.submission()], users={"alice": "secret"}` adds STARTTLS and
AUTH on 587 (7.6 only), `mta.sendmail` goes through the local socket, `mta.pids()` is for tests
that kill, `stored(message)` is what arrives of a message, and rspamd.py has a real rspamd.

In a filter's command, in `files` and in `conf` these words are replaced: {dir}, {address},
{dns} (address:53), {bridge} (our command), {python} (a Python that can import `bridge`),
{project} (this tree). Filters run as smtpd's user, so they cannot read a tmp_path of pytest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bridge.testing.dns import DnsServer
from tests.live import addresses, places
from tests.live.client import PATIENCE, Client, Closed, Reply
from tests.live.kept import START_SECONDS, Kept
from tests.live.mail import Delivered, maildir, stored
from tests.live.processes import Process
from tests.live.smtpd_conf import HOSTNAME, Configuration, Listener, Proc
from tests.live.waiting import eventually

__all__ = [
    "HOSTNAME", "Client", "Closed", "Delivered", "Listener", "OpenSMTPD", "Pids", "Proc",
    "Process", "Reply", "eventually", "stored",
]  # fmt: skip

NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Pids:
    """The processes of a server. smtpd runs each filter as the child of a wrapper of its own."""

    smtpd: int
    wrappers: tuple[int, ...]
    filters: tuple[int, ...]  # what smtpd executes: for us, the shims
    bridges: tuple[int, ...]  # their children and what comes below: for us, spawned bridges


class OpenSMTPD:
    """One server. Arguments are fixed once it is made; it starts with `with` or `start()`."""

    def __init__(
        self,
        version: str = "6.8",
        *,
        filters: Mapping[str, str | Proc] | None = None,  # name: command, Proc, or builtin words
        listeners: Sequence[Listener] = (Listener(),),
        socket_filters: Sequence[str] | None = None,  # None: all filters in order
        users: Mapping[str, str] | None = None,  # name: password, for listeners with auth
        files: Mapping[str, str | bytes] | None = None,  # written into `dir`
        zone: str = "",  # see bridge/testing/dns.py
        dns: DnsServer | None = None,  # on port 53; instead of one of its own
        hosts: str = "",  # more lines of /etc/hosts, which smtpd asks after the DNS
        max_message_size: str = "",
        limits: Sequence[str] = (),  # more `smtp ...` lines
        conf: str = "",
        env: Mapping[str, str] | None = None,  # beside PATH; filters inherit it
        verbose: bool = False,  # smtpd -v
    ) -> None:
        self.place = places.place(version)
        self.version = version
        self._closing = contextlib.ExitStack()
        self.dir = Path(tempfile.mkdtemp(prefix="filter-bridge-live-", dir="/tmp"))
        self._closing.callback(shutil.rmtree, self.dir, ignore_errors=True)
        if dns is None:
            self.dns = addresses.nameserver(zone)
            self.address = self.dns.hosts[0]
            self._closing.callback(self.dns.stop)
        else:
            self.dns = dns
            self.address, held = addresses.claim()
            self._closing.callback(held.close)
        self.listeners = {listener.name: listener for listener in listeners}
        self._argv = ["/usr/sbin/smtpd", "-d", *(["-v"] if verbose else []),
                      "-f", f"{self.dir}/smtpd.conf"]  # fmt: skip
        configuration = Configuration(
            str(self.dir),
            self.address,
            listeners,
            filters,
            socket_filters,
            [*limits, *([f"smtp max-message-size {max_message_size}"] if max_message_size else [])],
            conf,
        )
        self._prepare(configuration.text(), files or {}, users or {}, hosts)
        self._kept = Kept(
            self.dir,
            self.place.enter(self._argv),
            name=f"smtpd {version} at {self.address}",
            mounts=places.plan(self.place, self.dir),
            env=env,
            hostname=HOSTNAME,
        )

    # Life.

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it; returns once its ports listen, which is before slow filters are ready.

        RuntimeError, with the log, when it ends instead: smtpd's way to refuse a filter.
        """
        try:
            self._kept.start()
            # Only the listening sockets are looked for, so no session is made for this.
            eventually("a listening smtpd", self._listening, START_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def _listening(self) -> bool:
        if not self.alive:
            raise RuntimeError(f"smtpd ended at its start:\n{self.log()}")
        return all(
            addresses.listens(listener.address or self.address, listener.port)
            for listener in self.listeners.values()
        )

    def stop(self) -> None:
        """End it: SIGTERM, then a while for filters to leave, then SIGKILL for what is left."""
        try:
            self._kept.stop()
        finally:
            self._closing.close()

    @property
    def alive(self) -> bool:
        """Whether smtpd's parent process runs; it goes when any of its children or filters go."""
        return self._kept.alive

    @property
    def leftovers(self) -> list[str]:
        """After stop: the commands that did not leave by themselves and had to be killed."""
        return self._kept.leftovers

    @property
    def exit_code(self) -> int | None:
        """smtpd's, once it ended; negative for a signal."""
        return self._kept.exited()

    def wait_exit(self, within: float = 10.0) -> int:
        """Wait for smtpd to end by itself; its exit code, negative for a signal."""
        return self._kept.wait_exit(within)

    # Mail in.

    @property
    def port(self) -> int:
        """The port of the first listener."""
        return next(iter(self.listeners.values())).port

    @property
    def submission_port(self) -> int:
        return self.listeners["submission"].port

    def client(
        self,
        listener: str = "",
        *,
        source: str | None = None,
        helo: str = "client.example",
        timeout: float = PATIENCE,
        greet: bool = True,
    ) -> Client:
        """A client on that listener (by name; the first one by default)."""
        to = self.listeners[listener] if listener else next(iter(self.listeners.values()))
        return Client(
            to.address or self.address,
            to.port,
            source=source or ("::1" if ":" in to.address else "127.0.0.1"),
            helo=helo,
            timeout=timeout,
            greet=greet,
        )

    def send(
        self,
        message: bytes,
        sender: str = "sender@client.example",
        recipients: Sequence[str] = ("rcpt@example.org",),
        *,
        source: str | None = None,
        listener: str = "",
    ) -> Reply:
        """One message in a session of its own; the reply that decided it."""
        with self.client(listener, source=source) as client:
            return client.deliver(sender, recipients, message)

    def sendmail(
        self,
        message: bytes,
        recipients: Sequence[str] = ("rcpt@example.org",),
        sender: str = "sender@client.example",
    ) -> subprocess.CompletedProcess[bytes]:
        """Submit through the local socket, as a program on the server does (LF line ends)."""
        return self.run(["/usr/sbin/sendmail", "-i", "-f", sender, *recipients], message)

    def run(self, command: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """A command inside the server's namespace (and chroot), as root; at most 60 s."""
        return self._kept.run(self.place.enter(command), stdin)

    # What came of it.

    def mails(self) -> list[Delivered]:
        """What was delivered so far, oldest first; one file for each recipient."""
        return maildir(self.dir / "mail")

    def delivered(self) -> list[bytes]:
        """The files themselves, see `Delivered.raw`."""
        return [mail.raw for mail in self.mails()]

    def wait_delivered(self, number: int, within: float = 30.0) -> list[Delivered]:
        """Wait until at least that many files are there; all of them."""

        def enough() -> list[Delivered]:
            mails = self.mails()
            return mails if len(mails) >= number else []

        return eventually(f"{number} deliveries", enough, within) if number else self.mails()

    def queued(self) -> int:
        """How many envelopes are in smtpd's queue, that is accepted but not yet delivered."""
        queue = self.dir / "spool/smtpd/queue"
        return sum(re.fullmatch("[0-9a-f]{16}", path.name) is not None
                   for path in queue.glob("*/*/*"))  # fmt: skip

    def log(self) -> str:
        """All that smtpd and, through it, its filters wrote."""
        return self._kept.log()

    def wait_log(self, pattern: str, within: float = 10.0) -> re.Match[str]:
        """Wait until some line of the log matches (re.search, multi-line)."""
        return self._kept.wait_log(pattern, within)

    def processes(self) -> list[Process]:
        """Everything that runs in this world, smtpd's own processes included."""
        return self._kept.processes()

    def pids(self) -> Pids:
        """Who is who, for tests that kill; an empty tuple for what is not running."""
        server = self._kept.server
        assert server is not None
        found = self.processes()
        # A wrapper is a fork of smtpd, its arguments unchanged, in a session of its own, which
        # waits for its child; a delivery agent looks so too for a moment, but has no child.
        parents = {p.parent for p in found}
        wrappers = {
            p.pid
            for p in found
            if p.session == p.pid in parents and p.argv == tuple(self._argv) and p.pid != server.pid
        }
        filters = {p.pid for p in found if p.parent in wrappers}
        below: set[int] = set()
        while more := {p.pid for p in found if p.parent in filters | below} - below:
            below |= more
        return Pids(server.pid, *(tuple(sorted(x)) for x in (wrappers, filters, below)))

    # Preparation.

    def fill(self, text: str) -> str:
        """Replace {dir}, {address}, {dns}, {bridge}, {python} and {project} in a text."""
        words = {
            "dir": str(self.dir),
            "address": self.address,
            "dns": f"{self.dns.hosts[0]}:53",
            "bridge": self.place.bridge,
            "python": self.place.python,
            "project": self.place.project,
        }
        return re.sub(r"\{(\w+)\}", lambda found: words.get(found[1], found[0]), text)

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in `dir`, in which a text's {words} are replaced."""
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = self.fill(content).encode() if isinstance(content, str) else content
        path.write_bytes(raw)
        path.chmod(0o644)
        return path

    def _prepare(
        self, conf: str, files: Mapping[str, str | bytes], users: Mapping[str, str], hosts: str
    ) -> None:
        self.dir.chmod(0o755)
        for name in ("spool/smtpd", "run", "mail"):
            (self.dir / name).mkdir(parents=True)
        (self.dir / "spool/smtpd").chmod(0o711)
        os.chown(self.dir / "mail", NOBODY, NOBODY)
        self.write("smtpd.conf", conf)
        # localhost answers at once; every other address is the stand-in's to name.
        own = f"127.0.0.1 localhost\n::1 localhost\n{self.address} {HOSTNAME}\n"
        self.write("hosts", own + hosts)
        self.write("resolv.conf", f"nameserver {self.dns.hosts[0]}\n")
        self.write("mailname", f"{HOSTNAME}\n")
        self.write("users", "".join(f"{name} {_hashed(word)}\n" for name, word in users.items()))
        for name, content in files.items():
            self.write(name, content)
        if any(listener.tls for listener in self.listeners.values()):
            _certificate(self.dir)


def _hashed(password: str) -> str:
    """As crypt(3) wants it, SHA-512."""
    command = ["openssl", "passwd", "-6", "-stdin"]
    done = subprocess.run(command, input=password.encode(), capture_output=True, check=True)
    return done.stdout.decode().strip()


def _certificate(directory: Path) -> None:
    """A self-signed cert.pem and key.pem for the server's name."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={HOSTNAME}",
         "-addext", f"subjectAltName=DNS:{HOSTNAME}",
         "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (directory / "key.pem").chmod(0o600)
