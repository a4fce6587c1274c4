"""Does a message verify? Two verifiers that are nobody's code here, dkimpy and OpenDKIM.

Both look the keys up in a DNS stand-in. What they are given is the delivered file, its lines
ended by CRLF as the next server would get them.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import dkim  # type: ignore[import-untyped]
import dns.exception
import dns.resolver

from tests.live.mail import Delivered
from tests.live.signer import KINDS, SELECTOR
from tests.signing import tags as tags_of

_SIGNATURE = re.compile(rb"(?m)^DKIM-Signature:.*\r?\n(?:[ \t].*\r?\n)*")


def on_the_wire(delivered: bytes) -> bytes:
    """Lines ended by CRLF, also the empty one that a message without a body may lack."""
    message = delivered.replace(b"\n", b"\r\n")
    return message if b"\r\n\r\n" in message else message + b"\r\n"


def one_by_one(message: bytes) -> list[bytes]:
    """The message with each of its signatures alone, from top to bottom. No signature signs
    another one here, so that nothing else changes."""
    end = message.index(b"\r\n\r\n") + 2
    head, body = message[:end], message[end:]
    found, rest = _SIGNATURE.findall(head), _SIGNATURE.sub(b"", head) + body
    return [signature + rest for signature in found]


class DkimPy:
    """dkimpy, which looks keys up at that nameserver."""

    def __init__(self, nameserver: str, port: int = 53) -> None:
        self._resolver = dns.resolver.Resolver(configure=False)
        self._resolver.port = port
        self._resolver.nameservers = [nameserver]
        self._resolver.lifetime = 10.0

    def txt(self, name: bytes, timeout: float = 5) -> bytes | None:
        """The text of a record, for dkimpy."""
        try:
            found = self._resolver.resolve(name.decode(), "TXT")
        except dns.exception.DNSException:
            return None
        return b"".join(next(iter(found)).strings)

    def verify(self, message: bytes) -> str:
        """ "" if the topmost signature holds, else what is wrong with it."""
        try:
            holds = dkim.DKIM(message).verify(dnsfunc=self.txt)
        except dkim.DKIMException as error:
            return repr(error)
        return "" if holds is True else "does not hold"


class OpenDkim:
    """opendkim-testmsg(8), to which that nameserver is the only one."""

    def __init__(self, nameserver: str, directory: Path) -> None:
        self._resolv = directory / "resolv.conf"
        self._resolv.write_text(f"nameserver {nameserver}\n")
        self._resolv.chmod(0o644)

    def verify(self, message: bytes) -> str:
        """ "" if the signature holds, else what is wrong with it."""
        script = 'mount --bind "$1" /etc/resolv.conf && exec opendkim-testmsg'
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "-",
             str(self._resolv)],
            input=message, capture_output=True, timeout=60,
        )  # fmt: skip
        said = done.stderr.decode("utf-8", "replace").strip()
        return said or (f"status {done.returncode}" if done.returncode else "")


Verifier = DkimPy | OpenDkim


@dataclass
class Verifiers:
    """Both of them."""

    dkimpy: DkimPy
    opendkim: OpenDkim

    def wrong(self, mail: Delivered, *, domain: str = "example.org", opendkim: bool = True) -> str:
        """What is wrong with a mail that should have two signatures of ours, RSA and Ed25519;
        "" if each holds by itself. opendkim: may OpenDKIM be asked?"""
        message = on_the_wire(mail.message)
        signed = [
            (tags["a"], tags.get("d"), tags.get("s")) for tags in map(tags_of, signatures(mail))
        ]
        expected = [(f"{kind}-sha256", domain, f"{SELECTOR}-{kind}") for kind in KINDS]
        if signed[:2] != expected:
            return f"signatures: {signed}"
        verifiers = [self.dkimpy.verify, *([self.opendkim.verify] if opendkim else [])]
        said = [verify(each) for each in one_by_one(message)[:2] for verify in verifiers]
        return "; ".join(filter(None, said))


def signatures(mail: Delivered) -> list[tuple[str, str]]:
    """Its signatures as fields, from top to bottom."""
    return [("DKIM-Signature", x.decode()) for x in mail.header("DKIM-Signature")]
