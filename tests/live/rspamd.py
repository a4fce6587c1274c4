"""A real rspamd for tests: how is it started, told what to say, and made to fail?

    with Rspamd() as rspamd, OpenSMTPD(...) as mta:
        mta.send(verdict(action="reject", message="no") + message)
        rspamd.seen()[-1]["request"]["Queue-Id"]

It has an address and a directory of its own, no module and no network: its one rule says what
`verdict` or `always` told it. With `signing`, the text of local.d/dkim_signing.conf
({dir} is its directory), it signs too. GTUBE is rspamd's own and works without either.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.live import addresses
from tests.live.kept import START_SECONDS, Kept
from tests.live.processes import Process
from tests.live.waiting import eventually

RULE = Path(__file__).with_name("rspamd_rule.lua")
PORT = 11333
MILTER_PORT = 11332
USER = "_rspamd"

# rspamd rejects a message with this in a text part, as "Gtube pattern". Written in two pieces,
# for scanners that read source code.
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*" + b"C.34X"

CONFIGURATION = """
options {
  filters = "dkim";
  dns { nameserver = ["%(dns)s"]; timeout = 1s; retransmits = 1; }
  task_timeout = %(task_timeout)ss;
  tempdir = "%(dir)s/var"; hs_cache_dir = "%(dir)s/var"; dynamic_conf = "%(dir)s/var/dynamic";
  control_socket = "%(dir)s/var/control.sock mode=0600";
  url_tld = "%(dir)s/tld"; disable_hyperscan = true; explicit_modules = [];
  history_rows = 10;  # 0 crashes rspamd 3.4
}
logging { type = "console"; level = "info"; color = false; }
actions {
  greylist = 4; "add header" = 6; "rewrite subject" = 8; reject = 15;
  subject = "*** SPAM *** %%s";
  # Custom ones, and rspamd's two that no score reaches by default.
  "custom tag" { score = 50; }
  silent { score = 100; milter = "discard"; }
  hold { score = 101; milter = "quarantine"; }
  quarantine = 103; discard = 104;
}
worker "normal" {
  bind_socket = "%(address)s:%(port)d";
  bind_socket = "%(dir)s/rspamd.sock mode=0666 owner=%(user)s";
  count = 1; task_timeout = %(task_timeout)ss;
}
worker "rspamd_proxy" {
  bind_socket = "%(address)s:%(milter_port)d";
  milter = yes; count = 1; timeout = %(task_timeout)ss;
  upstream "local" { default = yes; self_scan = yes; }
}
lua = "%(dir)s/rule.lua";
"""
# As Debian's rspamd.conf loads it.
SIGNING = """
modules { path = "/usr/share/rspamd/plugins/dkim_signing.lua"; }
.include "/etc/rspamd/modules.d/dkim_signing.conf"
"""


def verdict(**wanted: Any) -> bytes:
    """A header that tells this rspamd what to say of the message it is put in front of.

    action: as rspamd spells it ("soft reject", "custom tag"); message: the smtp_message; score:
    with an action its score, without one the score that decides; subject: for "rewrite
    subject"; milter: for task:set_milter_reply; modify_headers: for lua_mime.modify_headers;
    body: a new message for task:set_message; dkim: a list of keys to sign with, {domain,
    selector, rawkey (PEM)}; delay: seconds
    during which this rspamd answers nobody.
    """
    text = base64.b64encode(json.dumps(wanted).encode())
    folded = b"\r\n ".join(text[i : i + 900] for i in range(0, len(text), 900))
    return b"X-Test-Verdict: " + folded + b"\r\n"


class Rspamd:
    """One rspamd; it starts with `with` or `start()` and may be stopped and started again."""

    def __init__(self, *, zone: str = "", task_timeout: float = 2.0, signing: str = "") -> None:
        self._closing = contextlib.ExitStack()
        self.dns = addresses.nameserver(zone)
        self._closing.callback(self.dns.stop)
        self.address = self.dns.hosts[0]
        self.dir = Path(tempfile.mkdtemp(prefix="filter-bridge-rspamd-", dir="/tmp"))
        self._closing.callback(shutil.rmtree, self.dir, ignore_errors=True)
        self.dir.chmod(0o755)
        self.socket = self.dir / "rspamd.sock"
        self._prepare(task_timeout, signing)
        self._kept = Kept(
            self.dir,
            ["rspamd", "-f", "-u", USER, "-g", USER, "-c", str(self.dir / "rspamd.conf"),
             f"--var=DBDIR={self.dir}/var", f"--var=RUNDIR={self.dir}/var",
             f"--var=LOCAL_CONFDIR={self.dir}/etc"],
            name=f"rspamd at {self.address}",
            # Some caches go to the compiled-in place whatever is configured.
            mounts=[["bind", str(self.dir / "var"), "/var/lib/rspamd"]],
        )  # fmt: skip

    def _prepare(self, task_timeout: float, signing: str) -> None:
        for name in ("var", "notes"):
            (self.dir / name).mkdir()
            shutil.chown(self.dir / name, USER, USER)
        shutil.chown(self.dir, USER, USER)  # its socket is made here
        values = {
            "dir": self.dir, "address": self.address, "port": PORT, "milter_port": MILTER_PORT,
            "dns": f"{self.address}:53", "task_timeout": task_timeout, "user": USER,
        }  # fmt: skip
        (self.dir / "rspamd.conf").write_text(CONFIGURATION % values + (SIGNING if signing else ""))
        local = self.dir / "etc/local.d"
        local.mkdir(parents=True)
        (local / "dkim_signing.conf").write_text(signing.replace("{dir}", str(self.dir)))
        # The whole public suffix list takes seconds to compile.
        (self.dir / "tld").write_text("com\nexample\nnet\norg\n")
        names = f'local SEEN, VERDICT = "{self.dir}/notes/seen", "{self.dir}/notes/verdict"\n'
        (self.dir / "rule.lua").write_text(names + RULE.read_text())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # Where it is.

    @property
    def url(self) -> str:
        return f"http://{self.address}:{PORT}"

    @property
    def milter_address(self) -> str:
        """Where it speaks milter: the port that people mistake for the other."""
        return f"{self.address}:{MILTER_PORT}"

    # What it does.

    def start(self) -> Self:
        """Start it, also again; returns when it answers."""
        self._kept.start()
        eventually("an answer of rspamd", self._answers, START_SECONDS)
        return self

    def _answers(self) -> bool:
        if not self._kept.alive:
            raise RuntimeError(f"rspamd ended at its start:\n{self.log()}")
        with contextlib.suppress(OSError), socket.create_connection((self.address, PORT), 1) as s:
            s.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
            return b"pong" in s.recv(4096)
        return False

    def stop(self) -> None:
        """End it; its port refuses connections from now on."""
        self.resume()
        self._kept.stop()

    def close(self) -> None:
        """End it for good, its address and files included."""
        try:
            self.stop()
        finally:
            self._closing.close()

    def pause(self) -> None:
        """Let it hang: connections are accepted (by the kernel) and nothing is answered."""
        for process in self._kept.processes():
            process.kill(signal.SIGSTOP)

    def resume(self) -> None:
        for process in self._kept.processes():
            process.kill(signal.SIGCONT)

    def always(self, **wanted: Any) -> None:
        """The verdict for every message that carries none of its own; nothing: "no action"."""
        new = self.dir / "notes/verdict.new"
        new.write_text(json.dumps(wanted))
        new.rename(self.dir / "notes/verdict")

    def seen(self) -> list[dict[str, Any]]:
        """What it was asked about, oldest first: from, rcpts, size, message_id, and `request`,
        the HTTP request's headers by name (a repeated header: its last value)."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.dir / "notes/seen").read_text("utf-8", "replace").splitlines()
            return [json.loads(line) for line in lines]
        return []

    def processes(self) -> list[Process]:
        """Main process and workers."""
        return self._kept.processes()

    def log(self) -> str:
        return self._kept.log()
