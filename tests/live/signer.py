"""The reference signer as it is run in production: a process of its own, not root, with keys.

    with Signer(["example.org"]) as signer:
        toml = f'[dkim]\nenabled = true\nservers = ["{signer.url}"]\n'
        OpenSMTPD(..., zone=signer.zone)

It listens on a unix socket, or with `token` on TCP. What it logged is in `log()`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bridge.keygen import Key, keygen
from tests.live import addresses, places
from tests.live.kept import START_SECONDS, Kept
from tests.signing import SIGNER

SELECTOR = "s1"  # and behind it the kind
KINDS = ("rsa", "ed25519")
USER = 64_086  # nobody's


class Signer:
    """One signer with an RSA and an Ed25519 key for each domain; it starts with `with`."""

    def __init__(self, domains: Sequence[str], *, token: str = "") -> None:
        self._closing = contextlib.ExitStack()
        self.dir = Path(tempfile.mkdtemp(prefix="filter-bridge-signer-", dir="/tmp"))
        self._closing.callback(shutil.rmtree, self.dir, ignore_errors=True)
        os.chown(self.dir, USER, USER)
        self.dir.chmod(0o755)
        directory = self.dir / "keys"
        directory.mkdir(mode=0o700)
        os.chown(directory, USER, USER)
        self.keys: list[Key] = [key for domain in domains for key in _keys(domain, directory)]
        options = ["--keys", str(directory)]
        if token:
            host, held = addresses.claim()
            self._closing.callback(held.close)
            self.url = f"http://{host}:8893"
            (self.dir / "token").write_text(token)
            (self.dir / "token").chmod(0o600)
            os.chown(self.dir / "token", USER, USER)
            options += ["--listen", f"{host}:8893", "--token-file", str(self.dir / "token")]
        else:
            self.url = f"unix:{self.dir}/sock"
            # Filters run as other users in each version's root; only tests get at `dir`.
            options += ["--listen", self.url, "--socket-mode", "666"]
        self._kept = Kept(
            self.dir,
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
             sys.executable, "-B", "-m", "dkim_signer", *options],
            name=f"signer at {self.url}",
            mounts=places.readable(self.dir),
            env={"PYTHONPATH": str(SIGNER)},
        )  # fmt: skip

    @property
    def zone(self) -> str:
        """The records of all keys, as bridge/testing/dns.py wants them."""
        return "".join(f'{key.name} TXT "{key.text}"\n' for key in self.keys)

    def key(self, domain: str, kind: str) -> Key:
        """One of the keys."""
        [found] = (key for key in self.keys if (key.domain, key.kind) == (domain, kind))
        return found

    def __enter__(self) -> Self:
        try:
            self._kept.start()
            # It says so once its socket is there.
            self._kept.wait_log(r"^INFO dkim-signer .* keys$", START_SECONDS)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, its keys included."""
        try:
            self._kept.stop()
        finally:
            self._closing.close()

    def log(self) -> str:
        return self._kept.log()


def _keys(domain: str, directory: Path) -> list[Key]:
    """Keys that rspamd takes as well: an Ed25519 seed that begins with "/", as one in 64 does, it
    takes for a path."""
    while True:
        keys = list(keygen(domain, SELECTOR, "both", directory))
        if not any(seed(key).startswith("/") for key in keys if key.kind == "ed25519"):
            return keys
        for key in keys:
            key.path.unlink()


def seed(key: Key) -> str:
    """The bare seed of an Ed25519 key, in base64 (RFC 8410 7: the last 32 bytes of its PEM)."""
    return base64.b64encode(base64.b64decode(key.path.read_text().split("-----")[2])[-32:]).decode()
