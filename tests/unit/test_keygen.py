"""Does `keygen` make keys that sign, records that verify, and never touch an old key?"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from datetime import date
from pathlib import Path

import dns.rdatatype
import dns.zone
import pytest

from bridge import keygen as module
from bridge.keygen import Key, KeygenError, keygen, run

TODAY = date(2026, 3, 9)
# RFC 8463, appendix A.2: the public key.
RFC8463_P = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


def pem(der: bytes) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\n%s-----END PRIVATE KEY-----\n" % base64.encodebytes(der)


def quick(arguments: tuple[str, ...], stdin: bytes) -> bytes:
    """An openssl that knows one key: what is tested with it is not the key."""
    if arguments[0] == "genpkey":
        return pem(b"a key " + arguments[2].encode())
    if b"ed25519" in base64.b64decode(stdin.split(b"-----")[2]):
        return module.ED25519_HEAD + base64.b64decode(RFC8463_P)
    return bytes(range(256)) + bytes(38)


def make(directory: Path, selector: str | None = None, kind: str = "rsa") -> list[Key]:
    return keygen("example.org", selector, kind, directory, today=TODAY, openssl=quick)


@pytest.mark.parametrize(
    ("selector", "kind", "files"),
    [
        pytest.param("s1", "rsa", ["s1.rsa.pem"], id="a selector for RSA is taken as it is"),
        pytest.param("s1", "ed25519", ["s1.ed25519.pem"], id="and for Ed25519"),
        pytest.param(
            "s1",
            "both",
            ["s1-rsa.rsa.pem", "s1-ed25519.ed25519.pem"],
            id="two keys need two selectors",
        ),
        pytest.param(None, "rsa", ["202603-rsa.rsa.pem"], id="the month stands for a selector"),
        pytest.param("A.B", "rsa", ["a.b.rsa.pem"], id="dots and capitals"),
    ],
)
def test_names_files(tmp_path: Path, selector: str | None, kind: str, files: list[str]) -> None:
    keys = make(tmp_path, selector, kind)
    assert [key.path for key in keys] == [tmp_path / "example.org" / name for name in files]
    assert sorted(os.listdir(tmp_path / "example.org")) == sorted(files)
    assert [key.name for key in keys] == [
        f"{re.sub(r'[.](rsa|ed25519)[.]pem$', '', name)}._domainkey.example.org" for name in files
    ]


def test_nobody_else_can_read_a_key(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        [key] = make(tmp_path)
    finally:
        os.umask(before)
    assert key.path.stat().st_mode & 0o7777 == 0o600
    assert key.path.parent.stat().st_mode & 0o7777 == 0o700


def test_a_key_belongs_to_the_directorys_owner(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # who else could give a file away?
        os.chown(tmp_path, 1234, 2345)
    owner = tmp_path.stat()
    [key] = make(tmp_path)
    for path in (key.path, key.path.parent):
        assert (path.stat().st_uid, path.stat().st_gid) == (owner.st_uid, owner.st_gid)


def test_a_record_in_strings_of_255_bytes(tmp_path: Path) -> None:
    [key] = make(tmp_path, "s1")
    lines = key.record.split("\n")
    assert lines[0] == "s1._domainkey.example.org. IN TXT ("
    assert re.fullmatch(r'\t"v=DKIM1; k=rsa; p=[A-Za-z0-9+/]{237}"', lines[1])
    assert lines[-1].endswith('" )')
    assert max(len(line.strip('\t" )')) for line in lines[1:]) == 255


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_zone_file_takes_the_record(tmp_path: Path, kind: str) -> None:
    [key] = make(tmp_path, "s1", kind)
    zone = dns.zone.from_text(f"$TTL 300\n{key.record}\n", "example.org.", check_origin=False)
    [rdata] = zone.find_rdataset("s1._domainkey", dns.rdatatype.TXT)
    assert b"".join(rdata.strings).decode() == key.text


def test_the_record_of_an_ed25519_key_holds_the_bare_key(tmp_path: Path) -> None:
    [key] = make(tmp_path, "brisbane", "ed25519")
    assert key.text == f"v=DKIM1; k=ed25519; p={RFC8463_P}"


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        pytest.param("rsa", r"v=DKIM1; k=rsa; p=[A-Za-z0-9+/]{390,}={0,2}", id="RSA"),
        pytest.param("ed25519", r"v=DKIM1; k=ed25519; p=[A-Za-z0-9+/]{43}=", id="Ed25519"),
    ],
)
def test_openssl_makes_the_key_of_the_record(tmp_path: Path, kind: str, form: str) -> None:
    [key] = keygen("example.org", "s1", kind, tmp_path)
    assert re.fullmatch(form, key.text)
    public = subprocess.run(
        ["openssl", "pkey", "-in", key.path, "-pubout", "-outform", "DER"],
        check=True,
        capture_output=True,
    ).stdout
    assert public.endswith(base64.b64decode(key.text.partition("p=")[2]))


def test_rsa_keys_have_2048_bits(tmp_path: Path) -> None:
    [key] = keygen("example.org", "s1", "rsa", tmp_path)
    text = subprocess.run(
        ["openssl", "pkey", "-in", key.path, "-noout", "-text"], check=True, capture_output=True
    ).stdout
    assert b"(2048 bit" in text


@pytest.mark.parametrize(
    ("old", "kind"),
    [
        pytest.param("s1.rsa.pem", "rsa", id="of the same kind"),
        pytest.param("s1.ed25519.pem", "rsa", id="of another kind, since the record is one"),
        pytest.param("s1-ed25519.ed25519.pem", "both", id="of the second of two"),
    ],
)
def test_never_replaces_a_key(tmp_path: Path, old: str, kind: str) -> None:
    (tmp_path / "example.org").mkdir()
    (tmp_path / "example.org" / old).write_text("old")
    with pytest.raises(KeygenError, match=r"is there already; hint: another --selector"):
        make(tmp_path, "s1", kind)
    assert os.listdir(tmp_path / "example.org") == [old]
    assert (tmp_path / "example.org" / old).read_text() == "old"


def test_a_key_that_appears_meanwhile_stays_too(tmp_path: Path) -> None:
    directory = tmp_path / "example.org"

    def slow(arguments: tuple[str, ...], stdin: bytes) -> bytes:
        directory.mkdir(exist_ok=True)
        (directory / "s1-ed25519.ed25519.pem").write_text("another's")
        return quick(arguments, stdin)

    with pytest.raises(KeygenError, match="is there already"):
        keygen("example.org", "s1", "both", tmp_path, openssl=slow)
    assert os.listdir(directory) == ["s1-ed25519.ed25519.pem"]
    assert (directory / "s1-ed25519.ed25519.pem").read_text() == "another's"


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "example.org").mkdir()
    (tmp_path / "example.org" / "s1.rsa.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeygenError, match="is there already"):
        make(tmp_path, "s1")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("domain", "selector", "kind", "message"),
    [
        pytest.param("../x.org", "s", "rsa", "domain '../x.org': expected", id="a path"),
        pytest.param("/etc", "s", "rsa", "domain '/etc'", id="an absolute path"),
        pytest.param("example", "s", "rsa", "expected one like example.org", id="no dot"),
        pytest.param("", "s", "rsa", "domain ''", id="no domain"),
        pytest.param("bücher.example", "s", "rsa", "write it as xn--", id="not ASCII"),
        pytest.param("a..b", "s", "rsa", "domain 'a..b'", id="an empty label"),
        pytest.param("example.org\n", "s", "rsa", "domain", id="a line end"),
        pytest.param("example.org", "../s", "rsa", "selector '../s'", id="a path as selector"),
        pytest.param("example.org", "s/1", "rsa", "selector 's/1'", id="a slash in the selector"),
        pytest.param("example.org", "x" * 64, "rsa", "selector", id="a long selector"),
        pytest.param("example.org", "s", "dsa", "type 'dsa': expected one of", id="a type"),
    ],
)
def test_refuses(tmp_path: Path, domain: str, selector: str, kind: str, message: str) -> None:
    with pytest.raises(KeygenError, match=re.escape(message)):
        keygen(domain, selector, kind, tmp_path, openssl=quick)
    assert os.listdir(tmp_path) == []


def test_an_openssl_without_ed25519(tmp_path: Path) -> None:
    def old(arguments: tuple[str, ...], stdin: bytes) -> bytes:
        return pem(b"rsa") if arguments[0] == "genpkey" else b"something else"

    with pytest.raises(KeygenError, match="hint: --type rsa"):
        keygen("example.org", "s", "ed25519", tmp_path, openssl=old)
    assert os.listdir(tmp_path) == []


def test_no_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KeygenError, match="hint: install OpenSSL"):
        keygen("example.org", "s", "rsa", tmp_path)


def test_the_command_prints_records_and_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("example.org", "s1", "both", tmp_path) == 0
    shown = capsys.readouterr()
    assert shown.out.count(" IN TXT (") == 2
    assert f"wrote {tmp_path}/example.org/s1-rsa.rsa.pem" in shown.err
    for path in (tmp_path / "example.org").iterdir():
        for line in path.read_text().splitlines():
            assert line not in shown.out + shown.err


def test_the_command_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("example.org", "s1", "rsa", tmp_path / "missing") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(
        r"filter-bridge: keygen: \S+/missing: is not there; hint: make it first\n",
        shown.err,
    )
