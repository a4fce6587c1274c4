"""The reference signer under test: where it is, keys to sign with, and dkimpy as the verifier."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import dkim  # type: ignore[import-untyped]

from bridge.keygen import keygen

SIGNER = Path(__file__).parents[1] / "contrib" / "dkim-signer"
sys.path.insert(0, str(SIGNER))

from dkim_signer import cli  # noqa: E402
from dkim_signer.app import App, Options  # noqa: E402
from dkim_signer.keys import Key, Keys, KeyTrouble, load  # noqa: E402
from dkim_signer.sign import MAX_SIGNED, Rules, Unsignable, relaxed, sign  # noqa: E402

__all__ = [
    "MAX_SIGNED", "NOW", "SIGNER", "App", "Key", "KeyTrouble", "Keys", "Made", "Options", "Rules",
    "Unsignable", "cli", "load", "relaxed", "sign", "tags",
]  # fmt: skip

NOW = 1700000000


class Made:
    """Keys of example.org, RSA and Ed25519: their directory, and their records by name."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        self.directory = directory
        made = keygen("example.org", "s1", "both", directory)
        self.records = {key.name: key.text for key in made}

    @property
    def keys(self) -> tuple[Key, ...]:
        return Keys(self.directory).of("example.org")

    def sign(self, message: bytes, rules: Rules | None = None) -> list[tuple[str, str]]:
        """The fields of both keys, RSA first."""
        return sign(message, "example.org", self.keys, rules or Rules(), NOW)

    def verify(self, message: bytes) -> bool:
        """Whether the topmost signature holds, says dkimpy."""

        def txt(name: bytes, timeout: float = 5) -> bytes | None:
            record = self.records.get(name.decode().rstrip("."))
            return record.encode() if record else None

        try:
            return dkim.DKIM(message).verify(dnsfunc=txt) is True
        except dkim.DKIMException:
            return False

    def copy(self, to: Path) -> Path:
        """The same keys, to play with."""
        shutil.copytree(self.directory, to)
        return to


def tags(field: tuple[str, str]) -> dict[str, str]:
    """The tags of a DKIM-Signature, blanks taken out."""
    text = re.sub(r"\s", "", field[1])
    return {name: value for name, _, value in (tag.partition("=") for tag in text.split(";"))}
