"""Where does a sidecar listen, who may connect there, and whom does it refuse to serve?"""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from bridge import Filter
from bridge.config import Endpoint, parse
from bridge.listen import Listener
from bridge.server import Server
from tests.unit.sidecar import NO_SERVICES, Sidecar, run, said, send, shim, up


def opened(config: str, *endpoints: str, insecure: bool = False) -> list[str]:
    """Listen there, in this process, and stop."""

    async def main() -> list[str]:
        server = Server(Filter(), slots=1, bytes=1, release="", log=lambda *a, **k: None)
        listener = Listener(server, parse(config), insecure=insecure)
        try:
            return listener.open([Endpoint.parse(each) for each in endpoints])
        finally:
            listener.close()

    return asyncio.run(main())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


# Unix sockets -----------------------------------------------------------------------------


# One that we may give a file to.
GROUP = [each for each in grp.getgrall() if os.getuid() == 0 or each.gr_gid in os.getgroups()][-1]


@pytest.mark.parametrize("group", [GROUP.gr_name, str(GROUP.gr_gid)], ids=["name", "number"])
def test_a_unix_socket_is_for_its_user_and_the_group_configured(group: str, tmp_path: Path) -> None:
    config = f'{NO_SERVICES}[bridge]\ngroup = "{group}"\n'
    with Sidecar(tmp_path, config=config) as bridge:
        found = os.stat(bridge.endpoint[5:])
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert (found.st_uid, found.st_gid) == (os.getuid(), GROUP.gr_gid)


def test_a_group_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bridge\.group: there is no group 'nobodies'"):
        opened('[bridge]\ngroup = "nobodies"\n', f"unix:{tmp_path}/s")


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert opened("", f"unix:{path}") == [f"unix:{path}"]
    assert not path.exists()


def test_a_socket_on_which_somebody_listens_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match=f"unix:{path}: somebody listens there"):
            opened("", f"unix:{path}")
        assert path.exists()


def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="something that is no socket"):
        opened("", f"unix:{path}")
    assert path.read_text() == "precious"


def test_a_service_that_cannot_listen_says_so_and_ends(tmp_path: Path) -> None:
    done = Sidecar(tmp_path, f"unix:{tmp_path}/none/s").refused()
    assert done.returncode == 1
    assert done.stderr == f"filter-bridge: unix:{tmp_path}/none/s: No such file or directory\n"


def test_a_service_that_listens_nowhere_says_so_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text(NO_SERVICES)
    done = run("serve", "-f", str(file))
    assert done.returncode == 1
    assert "nothing to listen on; hint: --listen unix:PATH or tcp:HOST:PORT" in done.stderr


# TCP in clear -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "mx.example.org"])
def test_tcp_beyond_loopback_wants_tls(host: str) -> None:
    with pytest.raises(ValueError, match=r"not beyond loopback without TLS; hint: .*--insecure"):
        opened("", f"tcp:{host}:1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost"])
def test_tcp_on_loopback_does_not(host: str) -> None:
    endpoint = f"tcp:{host}:{free_port()}"
    assert opened("", endpoint) == [endpoint]


def test_insecure_lets_it_try() -> None:
    with pytest.raises(OSError, match=r"tcp:192\.0\.2\.1:1: "):  # which is not ours to bind
        opened("", "tcp:192.0.2.1:1", insecure=True)


def test_mail_goes_over_tcp(tmp_path: Path) -> None:
    with (
        Sidecar(tmp_path, f"tcp:127.0.0.1:{free_port()}") as bridge,
        shim(tmp_path, bridge.endpoint) as smtpd,
    ):
        assert send(smtpd) == 250


# TLS --------------------------------------------------------------------------------------

NAME = "bridge.example.org"


def certificate(where: Path, name: str) -> None:
    """A self-signed certificate and its key, NAME.pem and NAME.key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{NAME}",
         "-out", f"{where}/{name}.pem", "-keyout", f"{where}/{name}.key"],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pems")
    for name in ("bridge", "shim", "stranger"):
        certificate(where, name)
    return where


def secure_bridge(pems: Path) -> str:
    return (
        f'{NO_SERVICES}[bridge]\ncertificate = "{pems}/bridge.pem"\n'
        f'certificate_key = "{pems}/bridge.key"\nclient_ca = "{pems}/shim.pem"\n'
    )


def secure_shim(pems: Path, own: str = "shim", ca: str = "bridge", name: str = NAME) -> str:
    text = f'{NO_SERVICES}[shim]\nca_file = "{pems}/{ca}.pem"\nserver_name = "{name}"\n'
    if own:
        text += f'client_certificate = "{pems}/{own}.pem"\nclient_key = "{pems}/{own}.key"\n'
    return text


def test_with_certificates_both_ways_mail_goes_over_tls(tmp_path: Path, pems: Path) -> None:
    with (
        Sidecar(tmp_path, f"tcp:127.0.0.1:{free_port()}", config=secure_bridge(pems)) as bridge,
        shim(tmp_path, bridge.endpoint, config=secure_shim(pems)) as smtpd,
    ):
        up(smtpd, bridge)
        assert send(smtpd) == 250
        assert send(smtpd, b"Subject: long\n\n" + (b"x" * 76 + b"\n") * 40_000) == 250
    assert smtpd.faults == []


REFUSED = {
    "no certificate": ({"own": ""}, "does it take our certificate", "did not return a certificate"),
    "a certificate of somebody else": (
        {"own": "stranger"},
        "does it take our certificate",
        "verify failed",
    ),
    "a bridge of somebody else": ({"ca": "stranger"}, "certificate verify failed", "unknown ca"),
    "a bridge of another name": ({"name": "other.example.org"}, "Hostname mismatch", ""),
}


@pytest.mark.parametrize(("changed", "shim_says", "bridge_says"), REFUSED.values(), ids=REFUSED)
def test_without_good_certificates_no_mail_does(
    changed: dict[str, str], shim_says: str, bridge_says: str, tmp_path: Path, pems: Path
) -> None:
    config = secure_shim(pems, **changed)
    with (
        Sidecar(tmp_path, f"tcp:127.0.0.1:{free_port()}", config=secure_bridge(pems)) as bridge,
        shim(tmp_path, bridge.endpoint, config=config, patience="300ms") as smtpd,
    ):
        assert send(smtpd) == 451
        assert bridge.messages() == 0
        assert any("bridge-unreachable" in line and shim_says in line for line in smtpd.stderr), (
            smtpd.stderr
        )
        assert bridge_says.lower().replace("_", " ") in bridge.log.lower().replace("_", " ")
        assert "link-refused peer=127.0.0.1 why=" in bridge.log


def test_a_shim_in_clear_gets_nowhere_with_a_bridge_that_wants_tls(
    tmp_path: Path, pems: Path
) -> None:
    with (
        Sidecar(tmp_path, f"tcp:127.0.0.1:{free_port()}", config=secure_bridge(pems)) as bridge,
        shim(tmp_path, bridge.endpoint, patience="300ms") as smtpd,
    ):
        assert send(smtpd) == 451
        assert bridge.messages() == 0
        assert "link-refused" in bridge.log


def test_certificates_that_are_not_there_are_named_and_mail_is_answered(
    tmp_path: Path, pems: Path
) -> None:
    config = secure_shim(tmp_path)
    with shim(tmp_path, "tcp:127.0.0.1:1", config=config, patience="300ms") as smtpd:
        assert send(smtpd) == 451
        assert said(smtpd, "shim.ca_file, client_certificate or client_key: No such file") == 1


def test_new_certificates_are_used_for_new_links_after_a_reload(tmp_path: Path, pems: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in ("bridge.pem", "bridge.key", "shim.pem"):
        (own / name).write_bytes((pems / name.replace("bridge", "stranger")).read_bytes())
    with (
        Sidecar(
            tmp_path, f"tcp:127.0.0.1:{free_port()}", config=secure_bridge(own), app=""
        ) as bridge,
        shim(tmp_path, bridge.endpoint, config=secure_shim(pems)) as smtpd,
    ):
        smtpd.run(lambda: said(smtpd, "certificate verify failed") > 0)
        for name in ("bridge.pem", "bridge.key"):
            (own / name).write_bytes((pems / name).read_bytes())
        assert bridge.command("reload").returncode == 0
        up(smtpd, bridge)
        (own / "bridge.pem").write_text("broken")
        done = bridge.command("reload")
        assert done.returncode == 1
        assert "bridge.certificate, certificate_key or client_ca: " in done.stdout
        assert "the old configuration stays" in done.stdout
        with shim(tmp_path, bridge.endpoint, config=secure_shim(pems)) as other:
            up(other, bridge)


def test_a_certificate_without_those_of_the_shims_is_a_mistake(tmp_path: Path, pems: Path) -> None:
    config = secure_bridge(pems).partition("client_ca")[0]
    done = Sidecar(tmp_path, f"tcp:127.0.0.1:{free_port()}", config=config).refused()
    assert done.returncode == 1
    assert "bridge.client_ca: nothing, expected who signs the shims' certificates" in done.stderr
