"""Is a smtpd.conf of our documentation good? As far as `smtpd -n` can tell.

What the documentation says is the tests' to find.
"""

from __future__ import annotations

from tests.live.world import Listener, OpenSMTPD

# What stands in for the reader's own files.
FILES = {
    "/etc/ssl/mx.example.org.crt": "{dir}/cert.pem",
    "/etc/ssl/private/mx.example.org.key": "{dir}/key.pem",
    "/etc/mail/virtual": "{dir}/virtual",
    "/etc/mail/credentials": "{dir}/credentials",
}
TABLES = {"virtual": "info@example.org: vmail\n", "credentials": "alice@example.org $6$salt$hash\n"}


def reader(version: str) -> OpenSMTPD:
    """A server in whose world smtpd can be run; its TLS listener makes a certificate."""
    return OpenSMTPD(version, listeners=[Listener(tls="tls")], files=TABLES)


def verdict_on(mta: OpenSMTPD, text: str) -> str:
    """What `smtpd -n` says of a configuration: its status and its words."""
    for theirs, ours in FILES.items():
        text = text.replace(theirs, ours)
    path = mta.write("example.conf", text)
    done = mta.run(["/usr/sbin/smtpd", "-n", "-f", str(path)])
    return f"{done.returncode} {(done.stdout + done.stderr).decode().strip()}"
