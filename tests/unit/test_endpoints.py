"""Where a server may be, and TLS both ways with real certificates."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.services.endpoints import Server, Tls
from bridge.services.http import Upstreams
from bridge.services.upstream import Rules
from bridge.testing.http import StandIn
from tests.unit.asking import (
    GENEROUS,
    ask,
    failure,
    open_files,
    run,
    until,
)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files: an authority, a server's for localhost, a client's, and a stranger's authority."""

    directory: Path

    def file(self, name: str) -> str:
        return str(self.directory / name)

    def serving(self, *, client_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.file("server.pem"), self.file("server.key"))
        if client_certificate:
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the authority is a plain one
            context.load_verify_locations(self.file("ca.pem"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=made.directory, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2")
    for name in ("ca", "stranger"):
        openssl(*new, "-noenc", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.pem")  # fmt: skip
    for name in ("server", "client"):
        openssl(*new, "-noenc", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.pem", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-addext", "subjectAltName=DNS:rspamd.example.org,DNS:localhost",
                "-addext", "basicConstraints=CA:FALSE")  # fmt: skip
    openssl("pkey", "-in", "client.key", "-aes128", "-passout", "pass:x", "-out", "locked.key")
    return made


OURS = {"cert_file": "client.pem", "key_file": "client.key"}
NAMED = {"ca_file": "ca.pem", "server_name": "rspamd.example.org"}
TLS_CASES: dict[str, tuple[dict[str, Any], bool, str]] = {
    "the authority and the name are right": (NAMED, False, "ok"),
    "our certificate is wanted and shown": (NAMED | OURS, True, "ok"),
    "our certificate is wanted and missing": (NAMED, True, "client certificate?"),
    "the authority is unknown": (NAMED | {"ca_file": "stranger.pem"}, False, "see ca_file"),
    "the name is another one": ({"ca_file": "ca.pem"}, False, "see ca_file and server_name"),
    "the system's authorities do not know ours": ({}, False, "see ca_file"),
    "nothing is verified": ({"verify": False}, False, "ok"),
}


@pytest.mark.parametrize(("tls", "client", "says"), TLS_CASES.values(), ids=TLS_CASES)
def test_tls(certificates: Certificates, tls: dict[str, Any], client: bool, says: str) -> None:
    files: dict[str, Any] = {
        k: certificates.file(v) if k.endswith("_file") else v for k, v in tls.items()
    }

    async def test() -> None:
        context = certificates.serving(client_certificate=client)
        async with StandIn(tls=context) as server:
            rules = Rules(timeout=GENEROUS, retries=0)
            upstreams = Upstreams("rspamd", [server.url], rules=rules, tls=Tls(**files))
            if says != "ok":
                error = await failure(upstreams)
                assert error.kind == "unreachable"
                assert says in str(error)
                return
            await ask(upstreams, os.urandom(3 * 2**20))
            host = tls.get("server_name", "").encode()
            assert server.seen[0].values("host") == [host or server.url[8:].encode()]
            server.behave("hang")
            task = asyncio.create_task(ask(upstreams))
            await until(lambda: server.count >= 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(test)


def test_https_to_a_plain_server_and_the_other_way(certificates: Certificates) -> None:
    async def test() -> None:
        rules = Rules(timeout=0.5, retries=0)
        async with StandIn() as plain, StandIn(tls=certificates.serving()) as secret:
            wrong = plain.url.replace("http:", "https:")
            error = await failure(Upstreams("rspamd", [wrong], rules=rules))
            assert error.kind in ("unreachable", "timeout")
            wrong = secret.url.replace("https:", "http:")
            error = await failure(Upstreams("rspamd", [wrong], rules=rules))
            assert error.kind in ("unreachable", "bad-reply")

    run(test)


def test_a_cancelled_handshake_frees_everything() -> None:
    async def test() -> None:
        async with StandIn() as plain:  # it waits for the end of a head, we for its hello
            upstreams = Upstreams("rspamd", [plain.url.replace("http:", "https:")])
            task = asyncio.create_task(ask(upstreams))
            await until(lambda: plain.connections == 1)
            await asyncio.sleep(0.05)
            before = len(open_files())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: plain.connections == 0)
            assert len(open_files()) == before - 2

    run(test)


@pytest.mark.parametrize(
    ("tls", "says"),
    [
        ({"ca_file": "none.pem"}, "ca_file .*none.pem: No such file"),
        ({"ca_file": "ca.key"}, "ca_file .*ca.key"),
        ({"cert_file": "none.pem"}, "cert_file .*none.pem.*No such file"),
        ({"cert_file": "client.pem", "key_file": "server.key"}, "key_file .*server.key"),
        ({"cert_file": "client.pem", "key_file": "locked.key"}, "the key is encrypted; hint"),
    ],
    ids=str,
)
def test_wrong_files_are_named(certificates: Certificates, tls: dict[str, str], says: str) -> None:
    files = {key: certificates.file(name) for key, name in tls.items()}
    with pytest.raises(ValueError, match=says):
        Upstreams("rspamd", ["https://localhost:1"], tls=Tls(**files))  # type: ignore[arg-type]


# Values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "base", "uds"),
    [
        ("http://127.0.0.1:11333", "http://127.0.0.1:11333", ""),
        ("http://[::1]:11333/", "http://[::1]:11333", ""),
        ("https://rspamd.example.org/scan/", "https://rspamd.example.org/scan", ""),
        ("unix:/run/rspamd/normal.sock", "http://localhost", "/run/rspamd/normal.sock"),
        ("unix:///run/rspamd.sock", "http://localhost", "/run/rspamd.sock"),
    ],
)
def test_servers(text: str, base: str, uds: str) -> None:
    assert Server.parse(text) == Server(text, base, uds)


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost:11333", "127.0.0.1:11333", "ftp://localhost", "http://", "unix:rspamd.sock",
        "http://localhost:0", "http://localhost:99999", "http://localhost:x", "http://[::1",
        "http://localhost/?a=b", "http://localhost/#a", "http://bad host/", "unix:",
    ],
)  # fmt: skip
def test_wrong_servers(text: str) -> None:
    with pytest.raises(ValueError, match="expected http://host:port"):
        Server.parse(text)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="use `token`") as caught:
        Server.parse("http://user:hunter2@localhost:11333")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", ["two words", "line\r\nInjected: x", "\u00fc"])
def test_wrong_tokens_are_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="token: expected") as caught:
        Upstreams("signer", ["http://localhost:1"], token=token)
    assert token not in str(caught.value)
