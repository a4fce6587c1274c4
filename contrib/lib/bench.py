"""Measures the filter between a stand-in of smtpd and one of rspamd; run by contrib/bench.

The filter is run as smtpd runs it, on one socket, by someone who only counts bytes.  It is
compared with the least that a filter in Python can do, and with the bare request to the service.
"""

from __future__ import annotations

import http.client
import http.server
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAIT = 30.0
PROMISED = 20.0  # MiB of an idle shim
LARGE, LARGE_COUNT = 1 << 20, 20
SMALL, SMALL_COUNT = 2000, 300
LINE = 76  # characters, as base64 has them
SESSION, TOKEN, MSGID = b"9dff8ae429905337", b"2e24fb038b3740c5", b"2cb6e4d4"
HEAD = b"0.7|1795358500.446794|smtp-in|"

# Reads lines, and writes each back as it has to be: what every filter in Python does at least.
ECHO = """
import sys
out = sys.stdout.buffer
out.write(b"register|filter|smtp-in|data-line\\nregister|filter|smtp-in|commit\\nregister|ready\\n")
out.flush()
for line in sys.stdin.buffer:
    if line.startswith(b"filter|"):
        _, _, _, _, phase, session, token, *rest = line.split(b"|", 7)
        if phase == b"data-line":
            out.write(b"filter-dataline|%s|%s|%s" % (session, token, rest[0]))
        else:
            out.write(b"filter-result|%s|%s|proceed\\n" % (session, token))
            out.flush()
        if rest[0] == b".\\n":
            out.flush()
"""


class Rspamd(http.server.BaseHTTPRequestHandler):
    """Finds nothing, at once."""

    ANSWER = json.dumps({"action": "no action", "score": 0.0, "required_score": 15.0}).encode()

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.ANSWER)}\r\nConnection: close\r\n\r\n"
        self.wfile.write(head.encode() + self.ANSWER)  # in one piece, or TCP would wait between

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def rspamd() -> Iterator[int]:
    """A service in a process of its own; its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rspamd)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever)
    process.start()
    server.server_close()
    yield server.server_port
    process.kill()
    process.join()


class Smtpd:
    """smtpd's end of one filter, with one session in it."""

    def __init__(self, *command: str) -> None:
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(WAIT)
        self.process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())
        theirs.close()
        self._until(b"register|ready\n")

    def __enter__(self) -> Smtpd:
        self._sock.sendall(b"config|admd|mx.example.org\nconfig|ready\n")
        self._report(b"link-connect", b"client.example|pass|192.0.2.1:4711|203.0.113.1:25")
        self._report(b"link-identify", b"EHLO|client.example")
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(WAIT)
        self.process.kill()

    def deliver(self, wire: bytes) -> None:
        """Have a message judged."""
        for event, rest in (
            (b"tx-begin", MSGID),
            (b"tx-mail", MSGID + b"|ok|a@example.net"),
            (b"tx-rcpt", MSGID + b"|ok|b@example.org"),
        ):
            self._report(event, rest)
        writing = threading.Thread(target=self._sock.sendall, args=(wire,))  # smtpd never waits
        writing.start()
        self._until(b"filter-dataline|%s|%s|.\n" % (SESSION, TOKEN))
        writing.join()
        self._sock.sendall(b"filter|%scommit|%s|%s|\n" % (HEAD, SESSION, TOKEN))
        self._until(b"|proceed\n")
        self._report(b"tx-commit", MSGID + b"|1000")
        self._report(b"tx-reset", MSGID)

    def _report(self, event: bytes, rest: bytes) -> None:
        self._sock.sendall(b"report|%s%s|%s|%s\n" % (HEAD, event, SESSION, rest))

    def _until(self, end: bytes) -> None:
        tail = b""
        while not tail.endswith(end):
            data = self._sock.recv(1 << 20)
            if not data:
                raise EOFError("the filter ended")
            tail = (tail + data)[-len(end) :]


def wire(size: int) -> bytes:
    """A message of about that size, as smtpd sends it to a filter."""
    start = b"filter|%sdata-line|%s|%s|" % (HEAD, SESSION, TOKEN)
    lines = [b"Received: from client.example", b"From: a@example.net", b"Subject: x", b""]
    lines += [b"x" * LINE] * (size // (LINE + 1)) + [b"."]
    return b"".join(start + line + b"\n" for line in lines)


def seconds(pid: int) -> float:
    """Of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def child(pid: int) -> int:
    """The bridge of a shim."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def small(smtpd: Smtpd) -> float:
    """ms for the verdict on one small message."""
    message, times = wire(SMALL), []
    for _ in range(SMALL_COUNT):
        before = time.perf_counter()
        smtpd.deliver(message)
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1000


def large(smtpd: Smtpd, *pids: int) -> tuple[float, list[float]]:
    """ms for 1 MiB of a large message: on the clock, and of each process's own time."""
    message = wire(LARGE)
    smtpd.deliver(message)
    before, clock = [seconds(pid) for pid in pids], time.perf_counter()
    for _ in range(LARGE_COUNT):
        smtpd.deliver(message)
    clock = time.perf_counter() - clock
    used = [seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
    per_mib = 1000 / (LARGE * LARGE_COUNT / 2**20)
    return clock * per_mib, [each * per_mib for each in used]


def bare_request(port: int) -> float:
    """ms for asking the service without any filter."""
    times = []
    for _ in range(SMALL_COUNT):
        before = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/checkv2", b"x" * SMALL)
        connection.getresponse().read()
        connection.close()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1000


def lone_shim(directory: Path) -> float:
    """MiB of a shim that has a bridge elsewhere, from the standard library alone."""
    command = [str(ROOT / "contrib/filter-bridge"), "-f", str(directory / "bridge.toml")]
    nowhere = f"unix:{directory}/nowhere"
    with Smtpd(sys.executable, "-I", "-S", *command, "--connect", nowhere) as smtpd:
        time.sleep(1.0)
        return resident(smtpd.process.pid)


def main() -> int:
    with tempfile.TemporaryDirectory() as name, rspamd() as port:
        directory = Path(name)
        file = directory / "bridge.toml"
        file.write_text(
            f'[fcrdns]\nsource = "smtpd"\n[rspamd]\nservers = ["http://127.0.0.1:{port}"]\n'
        )
        alone = lone_shim(directory)
        with Smtpd(sys.executable, "-c", ECHO) as echo:
            echo_small = small(echo)
            echo_clock, (echo_used,) = large(echo, echo.process.pid)
        bare = bare_request(port)
        with Smtpd(sys.executable, "-m", "bridge", "-f", str(file)) as smtpd:
            smtpd.deliver(wire(SMALL))
            shim, bridge = smtpd.process.pid, child(smtpd.process.pid)
            idle = resident(shim), resident(bridge)
            our_small = small(smtpd)
            clock, used = large(smtpd, shim, bridge)
            after = resident(shim), resident(bridge)
    print(f"memory, MiB       shim alone, idle {alone:.1f} (promised: under {PROMISED:g})")
    print(f"                  shim {idle[0]:.1f}, bridge {idle[1]:.1f}; "
          f"after {LARGE_COUNT} MiB of mail {after[0]:.1f} and {after[1]:.1f}")  # fmt: skip
    print(f"large, ms a MiB   {clock:.1f}; a filter that only echoes {echo_clock:.1f}: "
          f"{clock / echo_clock:.2f} of it")  # fmt: skip
    print(f"  processor       shim {used[0]:.1f}, bridge {used[1]:.1f}; that one {echo_used:.1f}: "
          f"{sum(used) / echo_used:.2f} of it")  # fmt: skip
    print(f"small, ms         {our_small:.2f}; echoing {echo_small:.2f} and asking {bare:.2f}: "
          f"{our_small / (echo_small + bare):.2f} times both")  # fmt: skip
    return 0 if alone < PROMISED else 1


if __name__ == "__main__":
    sys.exit(main())
