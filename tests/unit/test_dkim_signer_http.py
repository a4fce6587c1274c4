"""What does the reference signer answer over HTTP, and what does it log?"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bridge.services.dkim import parse_health
from tests.dkim_messages import HEAD, MESSAGES, Case
from tests.live.waiting import eventually
from tests.signing import App, Keys, Made, Options, cli, tags

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("keys"))


class Service:
    """The signer on a unix socket, in a thread, as `dkim-signer` runs it."""

    def __init__(self, where: Path, keys: Keys, options: Options, *tls: str) -> None:
        self.path = str(where / "s")
        args = cli.parser().parse_args(["--keys", "x", "--listen", f"unix:{self.path}", *tls])
        self._listener = cli.bind(args.listen, 0o600)
        self._server = cli.server(App(keys, options), args)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self._thread.start()
        transport = httpx.HTTPTransport(uds=self.path)
        self.client = httpx.Client(transport=transport, base_url="http://signer", timeout=20)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()
        assert not self._thread.is_alive()

    def sign(self, content: bytes = MESSAGES["plain"].message, **headers: str) -> httpx.Response:
        given = {
            "content-type": "message/rfc822",
            "authorization": f"Bearer {TOKEN}",
            "dkim-domain": "example.org",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        headers = {name: value for name, value in given.items() if value}
        return self.client.post("/sign", content=content, headers=headers)


@contextlib.contextmanager
def serving(where: Path, keys: Path, **changes: object) -> Iterator[Service]:
    options = Options(token=TOKEN.encode(), refresh=0.05, **changes)  # type: ignore[arg-type]
    found = Service(where, Keys(keys), options)
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def service(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("run"), made.directory, max_size=12 << 20) as found:
        yield found


def fields_of(reply: httpx.Response) -> list[tuple[str, str]]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json()) == ["fields"]
    return [(field["name"], field["value"]) for field in reply.json()["fields"]]


def reply_other_than(status: int, service: Service) -> httpx.Response:
    """Ask until the reply has another status."""
    replies: list[httpx.Response] = []

    def asked() -> bool:
        replies.append(service.sign())
        return replies[-1].status_code != status

    eventually(f"another status than {status}", asked)
    return replies[-1]


def health(service: Service, expected: dict[str, object]) -> None:
    """Wait until that is what /healthz says."""
    eventually(str(expected), lambda: service.client.get("/healthz").json() == expected)


def test_signs_over_http(service: Service, made: Made) -> None:
    fields = fields_of(service.sign())
    assert [tags(field)["a"] for field in fields] == ["rsa-sha256", "ed25519-sha256"]
    for field in fields:
        assert made.verify(MESSAGES["plain"].signed(field))


def test_signs_10_mib(service: Service, made: Made) -> None:
    case = Case(HEAD + b"\r\n" + b"Hello  Bob, this is a line of a long message.\r\n" * 230_000)
    assert len(case.message) > 10 << 20
    assert made.verify(case.signed(fields_of(service.sign(case.message))[0]))


def test_no_key_for_the_domain(service: Service) -> None:
    reply = service.sign(dkim_domain="example.net")
    assert (reply.status_code, reply.content) == (204, b"")


@pytest.mark.parametrize(
    ("headers", "status", "error"),
    [
        pytest.param({"authorization": ""}, 401, "unauthorized", id="no token"),
        pytest.param({"authorization": "Bearer wrong"}, 401, "unauthorized", id="a wrong token"),
        pytest.param({"authorization": f"Bearer {TOKEN}x"}, 401, "unauthorized", id="a longer one"),
        pytest.param({"authorization": "Bearer"}, 401, "unauthorized", id="an empty token"),
        pytest.param({"authorization": f"Basic {TOKEN}"}, 401, "unauthorized", id="Basic"),
        pytest.param({"content_type": "text/plain"}, 415, "content-type", id="another type"),
        pytest.param({"content_type": ""}, 415, "content-type", id="no type"),
        pytest.param({"dkim_domain": ""}, 400, "domain", id="no domain"),
        pytest.param({"dkim_domain": "../example.org"}, 400, "domain", id="a path as domain"),
        pytest.param({"dkim_domain": "a b"}, 400, "domain", id="no domain name"),
        pytest.param({"dkim_domain": "mail.example.org"}, 204, "", id="only the parent has a key"),
    ],
)
def test_refuses_requests(
    headers: dict[str, str], status: int, error: str, service: Service
) -> None:
    reply = service.sign(**headers)  # type: ignore[arg-type]  # none of them is `content`
    assert reply.status_code == status
    if error:
        assert reply.json()["error"] == error
        assert set(reply.json()) == {"error", "message"}


def test_refuses_a_message(service: Service) -> None:
    reply = service.sign(b"From: a@example.net\r\n\r\nHello\r\n")
    assert (reply.status_code, reply.json()["error"]) == (422, "from-mismatch")


def test_refuses_a_large_message(service: Service) -> None:
    reply = service.sign(b"From: a@example.org\r\n\r\n" + b"x" * (12 << 20))
    assert (reply.status_code, reply.json()["error"]) == (413, "too-large")


def test_refuses_a_large_message_that_does_not_say_so(service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(13):
            yield b"x" * (1 << 20)

    headers = {
        "content-type": "message/rfc822",
        "authorization": f"Bearer {TOKEN}",
        "dkim-domain": "example.org",
    }
    reply = service.client.post("/sign", content=chunks(), headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (413, "too-large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/sign", 405), ("POST", "/healthz", 405), ("GET", "/", 404), ("GET", "/x", 404)],
)
def test_other_requests(method: str, path: str, status: int, service: Service) -> None:
    reply = service.client.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "message"}


def test_health(service: Service) -> None:
    reply = service.client.get("/healthz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok", "keys": 2})
    parse_health(reply.status_code, {}, reply.content)


def test_logs_no_content_and_no_token(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service.sign(dkim_user="al@example.org\x01", dkim_queue_id="0a1b2c3d")
    service.sign(b"From: nobody@example.net\r\n\r\nHello\r\n")
    service.sign(authorization="Bearer wrong-token")
    lines = [record.getMessage() for record in caplog.records if record.name == "dkim_signer"]
    assert [re.sub(r"ms=\d+", "ms=N", line) for line in lines] == [
        "POST /sign domain=example.org user=al@example.org? queue-id=0a1b2c3d "
        f"size={len(MESSAGES['plain'].message)} status=200 ms=N fields=2",
        "POST /sign domain=example.org size=35 status=422 ms=N error=from-mismatch",
        f"POST /sign domain=example.org size={len(MESSAGES['plain'].message)} status=401 ms=N "
        "error=unauthorized",
    ]
    everything = caplog.text
    for word in ("Hello", "nobody", TOKEN, "wrong-token", "A test"):
        assert word not in everything


def test_a_bug_costs_one_reply(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> list[tuple[str, str]]:
        raise RuntimeError("Hello Bob")

    monkeypatch.setattr("dkim_signer.app.sign.sign", broken)
    reply = service.sign()
    assert (reply.status_code, reply.json()["error"]) == (500, "internal")
    assert "Hello Bob" not in caplog.text + reply.text
    monkeypatch.undo()
    assert service.sign().status_code == 200


def test_more_than_it_takes_at_once(made: Made, tmp_path: Path) -> None:
    with serving(tmp_path, made.directory, max_requests=1) as service:
        with socket.socket(socket.AF_UNIX) as slow:
            slow.connect(service.path)
            slow.sendall(
                b"POST /sign HTTP/1.1\r\nHost: x\r\nContent-Type: message/rfc822\r\n"
                b"DKIM-Domain: example.org\r\nContent-Length: 100\r\n"
                b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\nFrom:"
            )
            reply = reply_other_than(200, service)
            assert (reply.status_code, reply.json()["error"]) == (503, "busy")
            assert reply.headers["retry-after"] == "1"
            assert service.client.get("/healthz").status_code == 200
        assert reply_other_than(503, service).status_code == 200


def test_a_message_that_never_comes(made: Made, tmp_path: Path) -> None:
    with serving(tmp_path, made.directory, body_timeout=0.1) as service:

        def stuck() -> Iterator[bytes]:
            yield b"From: a@example.org\r\n"
            released.wait(20)
            yield b"\r\n"

        released = threading.Event()
        timer = threading.Timer(0.5, released.set)
        timer.start()
        headers = {
            "content-type": "message/rfc822",
            "authorization": f"Bearer {TOKEN}",
            "dkim-domain": "example.org",
        }
        reply = service.client.post("/sign", content=stuck(), headers=headers)
        timer.cancel()
        assert (reply.status_code, reply.json()["error"]) == (408, "timeout")


def test_takes_new_keys_over_and_keeps_the_old_ones_for_bad(made: Made, tmp_path: Path) -> None:
    directory = made.copy(tmp_path / "keys")
    with serving(tmp_path, directory) as service:
        path = directory / "example.org" / "s1-rsa.rsa.pem"
        path.chmod(0o644)
        health(service, {"status": "stale", "keys": 2})
        assert len(fields_of(service.sign())) == 2
        path.unlink()
        health(service, {"status": "ok", "keys": 1})
        assert [tags(field)["a"] for field in fields_of(service.sign())] == ["ed25519-sha256"]
        shutil.rmtree(directory / "example.org")
        health(service, {"status": "no keys"})
        assert service.sign().status_code == 204


def certificate(where: Path, name: str) -> tuple[str, str]:
    """A self-signed certificate and its key: paths of PEM files."""
    paths = str(where / f"{name}.pem"), str(where / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
         "-addext", "keyUsage=digitalSignature,keyCertSign", "-out", paths[0], "-keyout", paths[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


def test_client_certificates(made: Made, tmp_path: Path) -> None:
    server, client, other = (certificate(tmp_path, x) for x in ("signer", "bridge", "other"))
    tls = ("--tls-cert", server[0], "--tls-key", server[1], "--client-ca", client[0])
    service = Service(tmp_path, Keys(made.directory), Options(), *tls)

    def ask(pair: tuple[str, str] | None) -> httpx.Response:
        context = ssl.create_default_context(cafile=server[0])
        if pair:
            context.load_cert_chain(*pair)
        transport = httpx.HTTPTransport(uds=service.path, verify=context)
        with httpx.Client(transport=transport, base_url="https://signer", timeout=20) as asking:
            return asking.get("/healthz")

    try:
        assert ask(client).json() == {"status": "ok", "keys": 2}
        for pair in (None, other):
            with pytest.raises(httpx.TransportError):
                ask(pair)
    finally:
        service.stop()
