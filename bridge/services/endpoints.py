"""Where the servers of a service are, and how they and we prove who we are.

Values only: reads certificate files, opens no connection.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

_HOST = re.compile(r"[\w.:%-]+").fullmatch  # a name, perhaps in Unicode, or an address


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is.  text: as configured; base: URL without a slash at the end; uds:
    path of a unix socket, or ""."""

    text: str
    base: str
    uds: str = ""

    @classmethod
    def parse(cls, text: str) -> Server:
        """From `http://host:port`, `https://host:port/prefix` or `unix:/path`; ValueError
        with a hint for anything else."""
        want = "expected http://host:port, https://host:port or unix:/path"
        if text.startswith("unix:"):
            path = re.sub("^//(?=/)", "", text[5:])
            if not path.startswith("/"):
                raise ValueError(f"server {text!r}: {want}")
            return cls(text, "http://localhost", path)
        try:
            url, port = urlsplit(text), urlsplit(text).port
            httpx.URL(text)
        except (ValueError, httpx.InvalidURL) as error:
            raise ValueError(f"server {text!r}: {error}; {want}") from error
        if url.username or url.password:  # not repeated here: it would end in a log
            raise ValueError("server with a user name or password in its URL: use `token`")
        if url.scheme not in ("http", "https") or port == 0 or not _HOST(url.hostname or ""):
            raise ValueError(f"server {text!r}: {want}")
        if url.query or url.fragment:
            raise ValueError(f"server {text!r}: {want}, without ? and #")
        return cls(text, text.rstrip("/"))


@dataclass(frozen=True, slots=True)
class Tls:
    """How https servers are known, and we to them.  ca_file: PEM, else the system's; cert,
    key: our certificate (key may be in cert); server_name: instead of the URL's host."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Takes some 20 ms: once per configuration.  ValueError names the file at fault."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"ca_file {self.ca_file}: {error.strerror or error}") from error
        # Python 3.13 began to refuse authorities without a key usage, which plain `openssl req
        # -x509` makes: an upgrade must not stop the mail.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_password)
            except (OSError, ValueError) as error:
                where = f"cert_file {self.cert_file}, key_file {self.key_file or '(same)'}"
                raise ValueError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
        return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; hint: openssl pkey -in KEY -out NEWKEY")
