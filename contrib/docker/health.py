"""Is a service alive, that is, does it answer?  For health checks, without any other program.

health.py bridge DIRECTORY          a bridge, at its control socket there
health.py http HOST:PORT | PATH     GET /healthz has the status 200
health.py smtp HOST:PORT            a mail to postmaster would be taken, filters and all
"""

from __future__ import annotations

import http.client
import smtplib
import socket
import sys
from pathlib import Path

SECONDS = 4.0
PATIENCE = 20.0  # of the same, where a filter is asked


def connect(where: str) -> socket.socket:
    """A connection to HOST:PORT or to a unix socket."""
    if not where.startswith("/"):
        host, _, port = where.rpartition(":")
        return socket.create_connection((host, int(port)), SECONDS)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SECONDS)
    sock.connect(where)
    return sock


def http_is_well(where: str) -> bool:
    """The answer to GET /healthz is 200."""
    connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
    connection.sock = connect(where)
    connection.request("GET", "/healthz")
    return connection.getresponse().status == 200


def smtp_is_well(where: str) -> bool:
    """RCPT TO is answered well; the session ends there."""
    host, _, port = where.rpartition(":")
    with smtplib.SMTP(host, int(port), local_hostname="localhost", timeout=PATIENCE) as client:
        client.ehlo_or_helo_if_needed()
        client.mail("")
        return client.rcpt("postmaster@example.org")[0] == 250


def bridge_is_well(directory: str) -> bool:
    """The bridge of this container answers, if only that it does not know the command."""
    for path in Path(directory).glob("bridge-*.sock"):
        try:
            with connect(str(path)) as sock:
                sock.sendall(b"health\n")
                if sock.recv(1):
                    return True
        except ConnectionRefusedError:  # of one that was killed
            continue
    return False


if __name__ == "__main__":
    checks = {"bridge": bridge_is_well, "http": http_is_well, "smtp": smtp_is_well}
    if len(sys.argv) != 3 or sys.argv[1] not in checks:
        sys.exit(__doc__)
    sys.exit(not checks[sys.argv[1]](sys.argv[2]))
