"""Where does the reference signer refuse to listen, and what else does it refuse?"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.signing import SIGNER, Made, Options, Rules, cli

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def parsed(*arguments: object) -> argparse.Namespace:
    return cli.parser().parse_args(["--keys", "keys", *map(str, arguments)])


@pytest.mark.parametrize(
    ("listen", "protected", "allowed"),
    [
        pytest.param("127.0.0.1:8893", False, True, id="loopback"),
        pytest.param("[::1]:8893", False, True, id="IPv6 loopback"),
        pytest.param("localhost:8893", False, True, id="localhost"),
        pytest.param("unix:/run/s", False, True, id="a unix socket"),
        pytest.param("0.0.0.0:8893", False, False, id="all addresses"),
        pytest.param("[::]:8893", False, False, id="all IPv6 addresses"),
        pytest.param("192.0.2.1:8893", False, False, id="an address"),
        pytest.param("signer:8893", False, False, id="a name"),
        pytest.param("0.0.0.0:8893", True, True, id="all addresses, with a token"),
    ],
)
def test_listens_only_where_it_is_safe(
    listen: str, protected: bool, allowed: bool, token_file: Path
) -> None:
    token = ["--token-file", token_file] if protected else []
    args = parsed("--listen", listen, *token)
    if allowed:
        cli.check(args, 1000)
    else:
        with pytest.raises(cli.Refusal, match="whoever gets there has mail signed"):
            cli.check(args, 1000)


def test_client_certificates_are_a_protection(tmp_path: Path) -> None:
    path = tmp_path / "pem"
    path.write_text("x")
    cli.check(parsed("--listen", "0.0.0.0:1", "--tls-cert", path, "--client-ca", path), 1000)
    with pytest.raises(cli.Refusal, match="certificates need TLS"):
        cli.check(parsed("--listen", "0.0.0.0:1", "--client-ca", path), 1000)


def test_does_not_run_as_root() -> None:
    with pytest.raises(cli.Refusal, match="runs as root"):
        cli.check(parsed(), 0)


@pytest.mark.parametrize("listen", ["8893", ":8893", "127.0.0.1:", "127.0.0.1:x", "h:65536"])
def test_refuses_an_address(listen: str) -> None:
    with pytest.raises(cli.Refusal, match="expected HOST:PORT or unix:/PATH"):
        cli.check(parsed("--listen", listen), 1000)


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        pytest.param(TOKEN, 0o640, "mode 0640 lets others in", id="readable by the group"),
        pytest.param("", 0o600, "16 or more characters", id="empty"),
        pytest.param("short", 0o600, "16 or more characters", id="short"),
        pytest.param("x" * 5000, 0o600, "16 or more characters", id="no token at all"),
        pytest.param("two words in this file", 0o600, "16 or more", id="with blanks"),
    ],
)
def test_refuses_a_token(content: str, mode: int, why: str, token_file: Path) -> None:
    token_file.write_text(content)
    token_file.chmod(mode)
    with pytest.raises(cli.Refusal, match=why):
        cli.options(parsed("--token-file", token_file))


def test_the_options_reach_the_application(token_file: Path) -> None:
    args = parsed("--token-file", token_file, "--sign", "X-A, x-b", "--oversign", "from",
                  "--any-from", "--max-size", 7, "--max-requests", 3)  # fmt: skip
    assert cli.options(args) == Options(
        token=TOKEN.encode(),
        max_size=7,
        max_requests=3,
        rules=Rules(oversign=("from",), sign=("x-a", "x-b"), any_from=True),
    )
    assert TOKEN not in repr(cli.options(args))


def test_a_unix_socket_is_for_its_group(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with cli.bind(f"unix:{path}", 0o660):
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(cli.Refusal, match="somebody listens there already"):
            cli.bind(f"unix:{path}", 0o660)
    with cli.bind(f"unix:{path}", 0o600):  # what is left of one that died is no obstacle
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_command_checks(made: Made, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "dkim_signer", *map(str, arguments)],
            cwd=SIGNER, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    as_root = "dkim-signer: runs as root; hint: a user of its own, User= in a systemd unit\n"
    good = (2, as_root) if os.geteuid() == 0 else (0, "2 keys\n")
    assert run("--keys", made.directory, "--check") == good
    code, said = run("--keys", tmp_path / "missing", "--check")
    assert code == 2
    assert said.startswith(f"dkim-signer: {tmp_path}/missing: No such file or directory")
