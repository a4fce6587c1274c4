"""`filter-bridge keygen DOMAIN`: makes DKIM keys and says what to put into the DNS.

The key files lie as contrib/dkim-signer wants them.  openssl(1) makes the keys, OpenSSL 1.1.1
or LibreSSL 3.7 and newer for Ed25519.  Never overwrites a key, never shows a private one.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

KINDS = ("rsa", "ed25519", "both")
SECONDS = 60  # RSA of 2048 bits takes a tenth of one, on a slow machine a few
# RFC 8301, 3.2: at least 1024 bits, should be 2048; longer ones do not fit into one answer
# of the DNS over UDP, and Ed25519 is there for those who want more.
MAKE = {
    "rsa": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "ed25519": ("-algorithm", "ed25519"),
}
# RFC 8410, 4: what goes before the 32 bytes of a public key; RFC 8463, 4.2 wants only them.
ED25519_HEAD = bytes.fromhex("302a300506032b6570032100")
STRING = 255  # bytes of a string in a TXT record, RFC 1035, 3.3

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}", re.ASCII)

Openssl = Callable[[tuple[str, ...], bytes], bytes]


class KeygenError(Exception):
    """Why there is no key: what, where, and a hint."""


@dataclass(frozen=True, slots=True)
class Key:
    """A new key.  kind: rsa or ed25519; path: the private key's file; text: the content of
    its TXT record, "v=DKIM1; k=rsa; p=..."."""

    domain: str
    selector: str
    kind: str
    path: Path
    text: str

    @property
    def name(self) -> str:
        """The record's name, without a final dot."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The record for a zone file, its text cut into strings of at most 255 bytes
        (RFC 1035, 5.1; RFC 6376, 3.6.2.2)."""
        parts = [self.text[at : at + STRING] for at in range(0, len(self.text), STRING)]
        strings = "\n".join(f'\t"{part}"' for part in parts)
        return f"{self.name}. IN TXT (\n{strings} )"


def run(domain: str, selector: str | None, kind: str, directory: Path) -> int:
    """The command: records to stdout, the rest to stderr; 0, or 1 if there is no key."""
    try:
        keys = keygen(domain, selector, kind, directory)
    except KeygenError as error:
        print(f"filter-bridge: keygen: {error}", file=sys.stderr)
        return 1
    for key in keys:
        print(f"wrote {key.path}", file=sys.stderr)
        print(key.record)
    print(
        f"Publish {'this' if len(keys) == 1 else 'these'} before the signer uses the key; "
        f"look with: dig +short TXT {keys[-1].name}",
        file=sys.stderr,
    )
    return 0


def keygen(
    domain: str,
    selector: str | None,
    kind: str,
    directory: Path,
    *,
    today: date | None = None,
    openssl: Openssl | None = None,
) -> list[Key]:
    """New keys below `directory`, none if one of them can't be made.

    selector: without one, and for both kinds, the kind is put behind it: a selector can have
    only one key (RFC 6376, 3.1).  Files belong to the directory's owner, with mode 0600.
    """
    if kind not in KINDS:
        raise KeygenError(f"type {kind!r}: expected one of {', '.join(KINDS)}")
    domain = _checked("domain", domain.lower().removesuffix("."), 200)
    if "." not in domain:
        raise KeygenError(f"domain {domain!r}: expected one like example.org")
    day = today or date.today()
    base = (selector or f"{day.year}{day.month:02}").lower()
    kinds = ("rsa", "ed25519") if kind == "both" else (kind,)
    exact = selector is not None and kind != "both"
    names = {each: _checked("selector", base if exact else f"{base}-{each}", 63) for each in kinds}
    paths = {each: directory / domain / f"{names[each]}.{each}.pem" for each in kinds}
    for each in kinds:
        _expect_new(paths[each], names[each])
    made = {each: _make(each, openssl or _openssl) for each in kinds}
    written: list[Path] = []
    try:
        _directory(directory, domain)
        for each in kinds:
            _write(paths[each], made[each][0], directory)
            written.append(paths[each])
    except OSError as error:
        for path in written:
            path.unlink()
        if isinstance(error, FileExistsError):
            raise KeygenError(f"{error.filename2 or paths[each]}: is there already") from error
        if isinstance(error, FileNotFoundError):
            raise KeygenError(f"{directory}: is not there; hint: make it first") from error
        where = error.filename or directory
        raise KeygenError(f"{where}: {error.strerror}; hint: --directory") from error
    return [Key(domain, names[each], each, paths[each], made[each][1]) for each in kinds]


def _checked(what: str, name: str, limit: int) -> str:
    if len(name) > limit or not _NAME.fullmatch(name):
        hint = "; hint: write it as xn--..." if not name.isascii() else ""
        raise KeygenError(
            f"{what} {name[:80]!a}: expected letters, digits, - and . as in the DNS{hint}"
        )
    return name


def _expect_new(path: Path, selector: str) -> None:
    """A selector whose key is replaced by another breaks all mail that is on its way."""
    for kind in MAKE:
        old = path.with_name(f"{selector}.{kind}.pem")
        if os.path.lexists(old):
            raise KeygenError(f"{old}: is there already; hint: another --selector")


def _make(kind: str, openssl: Openssl) -> tuple[bytes, str]:
    """A private key in PEM, and the text of its record."""
    private = openssl(("genpkey", *MAKE[kind]), b"")
    public = openssl(("pkey", "-pubout", "-outform", "DER"), private)
    if not private.startswith(b"-----BEGIN PRIVATE KEY-----"):
        raise KeygenError("openssl made no PKCS#8 key")
    if kind == "ed25519":
        if not public.startswith(ED25519_HEAD) or len(public) != len(ED25519_HEAD) + 32:
            raise KeygenError("openssl made no Ed25519 key; hint: --type rsa")
        public = public.removeprefix(ED25519_HEAD)
    return private, f"v=DKIM1; k={kind}; p={base64.b64encode(public).decode()}"


def _openssl(arguments: tuple[str, ...], stdin: bytes) -> bytes:
    try:
        done = subprocess.run(
            ["openssl", *arguments], input=stdin, capture_output=True, timeout=SECONDS
        )
    except FileNotFoundError as error:
        raise KeygenError("no openssl command; hint: install OpenSSL") from error
    except subprocess.TimeoutExpired as error:
        raise KeygenError(f"openssl took over {SECONDS} s") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [""]
        hint = "hint: is it too old for this --type?"
        raise KeygenError(f"openssl {arguments[0]} failed: {said[0][:200]}; {hint}")
    return done.stdout


def _directory(directory: Path, domain: str) -> None:
    """The domain's directory, closed to others."""
    with contextlib.suppress(FileExistsError):
        (directory / domain).mkdir(mode=0o700)
        _give(directory / domain, directory)


def _write(path: Path, content: bytes, directory: Path) -> None:
    """The whole file or none, and never in place of another one: a link fails then."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _give(draft, directory)
        os.link(draft, path)
    finally:
        draft.unlink()


def _give(path: Path, directory: Path) -> None:
    """To the directory's owner, who runs the signer; root may do that."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
