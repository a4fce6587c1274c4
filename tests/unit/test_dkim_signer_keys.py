"""Which keys does the reference signer take, and what when they change?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bridge.keygen import keygen
from tests.dkim_messages import HEAD, Case
from tests.signing import NOW, Keys, KeyTrouble, Made, Rules, load, sign


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("keys"))


def test_loads_the_keys_rsa_first(made: Made) -> None:
    keys = made.keys
    assert [(key.selector, key.kind) for key in keys] == [
        ("s1-rsa", "rsa"),
        ("s1-ed25519", "ed25519"),
    ]
    assert Keys(made.directory).of("EXAMPLE.org") == keys
    assert Keys(made.directory).of("example.net") == ()
    assert Keys(made.directory).of("..") == ()


def test_a_key_shows_nothing_of_itself(made: Made) -> None:
    for key in made.keys:
        assert repr(key) == f"Key(selector={key.selector!r}, kind={key.kind!r})"


def test_pkcs1_is_taken_too(made: Made, tmp_path: Path) -> None:
    keys = made.copy(tmp_path / "keys")
    path = keys / "example.org" / "s1-rsa.rsa.pem"
    old = subprocess.run(
        ["openssl", "rsa", "-traditional", "-in", path], check=True, capture_output=True
    ).stdout
    assert b"BEGIN RSA PRIVATE KEY" in old
    path.write_bytes(old)
    field = sign(HEAD + b"\r\n", "example.org", Keys(keys).of("example.org"), Rules(), NOW)[0]
    assert made.verify(Case(HEAD + b"\r\n").signed(field))


def short_rsa() -> bytes:
    return subprocess.run(["openssl", "genrsa", "512"], check=True, capture_output=True).stdout


BAD = {
    "readable by the group": lambda path: path.chmod(0o640),
    "readable by all": lambda path: path.chmod(0o604),
    "no key": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_text(""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "a key of the other kind": lambda path: path.write_bytes(
        next(x for x in path.parent.iterdir() if x != path).read_bytes()
    ),
    "damaged": lambda path: path.write_bytes(path.read_bytes().replace(b"A", b"*")),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "in a directory that others may write": lambda path: path.parent.chmod(0o777),
    "in a tree that others may write": lambda path: path.parent.parent.chmod(0o770),
    "a selector in capitals": lambda path: path.rename(path.with_name("S1" + path.name[2:])),
    "a domain in capitals": lambda path: path.parent.rename(path.parent.with_name("Example.org")),
}


@pytest.mark.parametrize("name", ["s1-rsa.rsa.pem", "s1-ed25519.ed25519.pem"])
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD.keys())
def test_a_bad_key_leaves_the_old_ones_in_use(
    spoil: object, name: str, made: Made, tmp_path: Path
) -> None:
    directory = made.copy(tmp_path / "keys")
    path = directory / "example.org" / name
    secret = path.read_text().splitlines()[1]
    keys = Keys(directory)
    before = keys.of("example.org")
    assert callable(spoil)
    spoil(path)
    with pytest.raises(KeyTrouble):
        load(directory)
    assert keys.refresh()
    assert str(directory) in keys.trouble
    assert secret not in keys.trouble
    assert keys.of("example.org") == before
    assert not keys.refresh()


def test_a_short_rsa_key_is_refused(made: Made, tmp_path: Path) -> None:
    directory = made.copy(tmp_path / "keys")
    (directory / "example.org" / "s1-rsa.rsa.pem").write_bytes(short_rsa())
    with pytest.raises(KeyTrouble, match="no usable rsa key"):
        load(directory)


def test_keys_come_go_and_come_back(made: Made, tmp_path: Path) -> None:
    directory = made.copy(tmp_path / "keys")
    keys = Keys(directory)
    path = directory / "example.org" / "s1-rsa.rsa.pem"
    content = path.read_bytes()
    assert not keys.refresh()

    path.unlink()
    assert keys.refresh()
    assert [key.kind for key in keys.of("example.org")] == ["ed25519"]

    path.write_bytes(b"half of a")
    path.chmod(0o600)
    assert keys.refresh()
    assert keys.trouble
    path.write_bytes(content)
    assert keys.refresh()
    assert (keys.trouble, keys.count) == ("", 2)

    keygen("example.net", "s2", "ed25519", directory)
    assert keys.refresh()
    assert keys.count == 3

    shutil.rmtree(directory)
    assert keys.refresh()
    assert keys.count == 3
    assert "No such file or directory" in keys.trouble


def test_other_files_are_not_looked_at(made: Made, tmp_path: Path) -> None:
    directory = made.copy(tmp_path / "keys")
    (directory / "README").write_text("x")
    (directory / ".git").mkdir()
    (directory / "example.org" / "notes.txt").write_text("x")
    (directory / "example.org" / ".s2.rsa.pem.new").write_text("x")
    assert Keys(directory).count == 2
