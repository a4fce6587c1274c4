"""Which keys are there?  The key directory, read whole, checked, and read again when it changes.

    DIRECTORY/example.org/2026a.rsa.pem        selector 2026a, RSA, PKCS#8 or PKCS#1
    DIRECTORY/example.org/2026b.ed25519.pem    selector 2026b, Ed25519, PKCS#8

Every key of a domain signs.  Names that begin with a dot or end otherwise are not looked at.
Never writes, and never shows what is in a key.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from dkim.crypto import (  # type: ignore[import-untyped]
    UnparsableKeyError,
    parse_pem_private_key,
)

RSA, ED25519 = "rsa", "ed25519"
SUFFIXES = {".rsa.pem": RSA, ".ed25519.pem": ED25519}
# RFC 8301, 3.2: signers must use at least 1024 bits, should use 2048; verifiers need not take
# more than 4096.
LEAST_BITS, MOST_BITS = 1024, 4096
MAX_FILE = 16 * 1024  # a 4096-bit key takes 3,300 bytes
MAX_KEYS = 10_000
OTHERS = stat.S_IRWXG | stat.S_IRWXO

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}", re.ASCII)
_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----\s(.*?)-----END PRIVATE KEY-----", re.DOTALL)
# RFC 8410, 7: SEQUENCE, version 0, OID 1.3.101.112, and 32 bytes in two octet strings.
_ED25519 = bytes.fromhex("302e020100300506032b657004220420")


class KeyTrouble(Exception):
    """A key or the directory can't be used; says which file, what is wrong, and a hint."""


@dataclass(frozen=True, slots=True)
class Key:
    """A private key in the form that dkimpy takes: PEM for RSA, the seed for Ed25519."""

    selector: str
    kind: str
    private: bytes = field(repr=False)

    @property
    def algorithm(self) -> bytes:
        return b"rsa-sha256" if self.kind == RSA else b"ed25519-sha256"


KeySet = dict[str, tuple[Key, ...]]
_Seen = tuple[tuple[object, ...], ...]


def is_domain(name: str) -> bool:
    """A domain or selector in lower case, as the DNS has it (RFC 6376, 3.1 and 3.5)."""
    return len(name) <= 253 and _NAME.fullmatch(name) is not None


def load(directory: Path) -> KeySet:
    """All keys by domain; RSA goes first, since every verifier knows it.  KeyTrouble if one of
    them is not good: a selector that is silently missing is found out too late."""
    found: KeySet = {}
    count = 0
    _look(directory)
    for domain in _entries(directory):
        if not stat.S_ISDIR(_look(domain).st_mode):
            continue
        if not is_domain(domain.name):
            raise KeyTrouble(f"{domain}: no domain name; hint: lower case, xn-- for the rest")
        keys = [key for path in _entries(domain) if (key := _key(path))]
        count += len(keys)
        if keys:
            keys.sort(key=lambda key: (key.kind != RSA, key.selector))
            found[domain.name] = tuple(keys)
    if count > MAX_KEYS:
        raise KeyTrouble(f"{directory}: {count} keys, expected at most {MAX_KEYS}")
    return found


def fingerprint(directory: Path) -> _Seen:
    """Something that changes when a key does."""
    paths = [directory]
    for top in _entries(directory):
        paths += [top, *(_entries(top) if top.is_dir() else [])]
    seen = []
    for path in paths:
        info = path.stat()
        mark = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_mode)
        seen.append((str(path), *mark))
    return tuple(seen)


class Keys:
    """The keys in use.  `refresh` takes changes over, all or none: when one key is bad, those
    in use stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.trouble = ""  # why the directory's present state is not in use
        self._seen = fingerprint_or_none(directory)
        self._keys = load(directory)

    def of(self, domain: str) -> tuple[Key, ...]:
        """The keys of a domain, in the order in which their signatures go on top."""
        return self._keys.get(domain.lower(), ())

    @property
    def count(self) -> int:
        return sum(map(len, self._keys.values()))

    def refresh(self) -> bool:
        """Look for changes; True if the keys, or what is wrong with them, are others now."""
        seen = fingerprint_or_none(self.directory)
        if seen is not None and seen == self._seen:
            return False
        before = (self._keys, self.trouble)
        try:
            self._keys, self.trouble = load(self.directory), ""
        except KeyTrouble as trouble:
            self.trouble = str(trouble)
        self._seen = seen
        return (self._keys, self.trouble) != before


def fingerprint_or_none(directory: Path) -> _Seen | None:
    try:
        return fingerprint(directory)
    except (OSError, KeyTrouble):  # it changes while we look, or `load` will say what is wrong
        return None


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise KeyTrouble(f"{directory}: {error.strerror}; hint: who runs the signer?") from error


def _look(path: Path) -> os.stat_result:
    try:
        info = path.stat()
    except OSError as error:
        raise KeyTrouble(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(info.st_mode) and info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeyTrouble(f"{path}: others may put keys there; hint: chmod go-w")
    return info


def _key(path: Path) -> Key | None:
    """The key in a file, None for a file of another kind."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    if not suffix:
        return None
    kind = SUFFIXES[suffix]
    selector = path.name.removesuffix(suffix)
    if not is_domain(selector):
        raise KeyTrouble(f"{path}: no selector: expected lower case letters, digits, - and .")
    private = _read(path)
    try:
        private = _rsa(private) if kind == RSA else _ed25519(private)
    except (ValueError, IndexError, UnparsableKeyError) as error:  # no cause: it may quote the key
        hint = "hint: openssl pkey -in FILE -noout -text"
        raise KeyTrouble(f"{path}: no usable {kind} key; {hint}") from error
    return Key(selector, kind, private)


def _read(path: Path) -> bytes:
    """The file's bytes, with its mode looked at on the very file that is read."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise KeyTrouble(f"{path}: no regular file")
            if info.st_mode & OTHERS:
                mode = stat.S_IMODE(info.st_mode)
                raise KeyTrouble(f"{path}: mode {mode:04o} lets others in; hint: chmod 600")
            if info.st_uid not in (0, os.geteuid()):
                raise KeyTrouble(f"{path}: belongs to another user; hint: chown")
            return file.read(MAX_FILE)
    except OSError as error:
        raise KeyTrouble(f"{path}: {error.strerror}; hint: who runs the signer?") from error


def _rsa(pem: bytes) -> bytes:
    pem = pem.replace(b"\r\n", b"\n")
    key = parse_pem_private_key(pem)
    bits = key["modulus"].bit_length()
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"{bits} bits")
    if key["prime1"] * key["prime2"] != key["modulus"]:
        raise ValueError("damaged")
    return pem


def _ed25519(pem: bytes) -> bytes:
    match = _PEM.search(pem)
    try:
        der = base64.b64decode(match[1]) if match else b""
    except binascii.Error as error:
        raise ValueError("no base64") from error
    if len(der) != len(_ED25519) + 32 or not der.startswith(_ED25519):
        raise ValueError("no PKCS#8 of Ed25519")
    return der[len(_ED25519) :]
