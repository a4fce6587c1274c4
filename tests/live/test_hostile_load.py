"""Can many clients together harm the mail server, or keep others from it? On real servers.

After each of these the server has to be as it was; see hostile.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.live import addresses, places
from tests.live.bridged import bridged, connected
from tests.live.client import Client
from tests.live.hostile import Attacked
from tests.live.letters import HEAD, SENDER, ready
from tests.live.rspamd import Rspamd
from tests.live.world import eventually

CONFIGURATION = """
[shim]
max_memory = "4M"
[rspamd]
servers = ["{rspamd}"]
"""


@pytest.fixture(scope="module", params=places.VERSIONS)
def attacked(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[Attacked]:
    with bridged(request.param, CONFIGURATION, values={"rspamd": rspamd.url}) as mta:
        yield Attacked(ready(mta, "bridge"))
        assert mta.alive
    assert not mta.leftovers


@pytest.fixture
def clients(attacked: Attacked) -> Iterator[list[Client]]:
    """A place for clients, which are gone at the end; then the server has to be as it was."""
    found: list[Client] = []
    yield found
    for client in found:
        client.abort()
    attacked.unharmed()
    attacked.post.clear()


def gather(attacked: Attacked, clients: list[Client], number: int) -> None:
    for _ in range(number):
        clients.append(connected(attacked.mta))
        assert clients[-1].ehlo().ok


def test_200_who_say_nothing(attacked: Attacked, clients: list[Client]) -> None:
    gather(attacked, clients, 200)
    for _ in range(10):
        attacked.post.send()


def test_100_who_stop_within_their_message(attacked: Attacked, clients: list[Client]) -> None:
    gather(attacked, clients, 100)
    for client in clients:
        assert client.begin(SENDER, [attacked.post.recipient()]).code == 354
        client.send(HEAD + b"\r\nhel")
    for _ in range(10):
        attacked.post.send()


def test_100_who_send_64_kib_a_little_at_a_time(attacked: Attacked, clients: list[Client]) -> None:
    """More is held at once than may be in memory."""
    gather(attacked, clients, 100)
    to = [attacked.post.recipient() for _ in clients]
    lines = [b"%03d|.%s\r\n" % (n, b"x" * 57) * 128 for n in range(100)]  # 8 KiB
    for client, recipient in zip(clients, to, strict=True):
        assert client.begin(SENDER, [recipient]).code == 354
        client.send(HEAD + b"\r\n")
    for _ in range(8):
        for client, part in zip(clients, lines, strict=True):
            client.send(part)
    attacked.post.send()
    for client in clients:
        client.send(b".\r\n")
    for client in clients:
        assert client.read().code == 250
    mails = {mail.recipient: mail for mail in attacked.mta.wait_delivered(101, 60)}
    for recipient, part in zip(to, lines, strict=True):
        assert mails[recipient].body == part.replace(b"\r\n", b"\n") * 8


@pytest.mark.parametrize("end", ["close", "abort"])
def test_150_who_leave_at_once(attacked: Attacked, clients: list[Client], end: str) -> None:
    """Some while rspamd is asked about their message, some within it, some idle."""
    gather(attacked, clients, 150)
    for number, client in enumerate(clients):
        if number % 3 < 2:
            assert client.begin(SENDER, [attacked.post.recipient()]).code == 354
            client.send(HEAD + b"\r\nhello\r\n" + b".\r\n" * (number % 3))
    for client in clients:
        getattr(client, end)()


def test_a_client_who_sends_a_byte_at_a_time(attacked: Attacked, clients: list[Client]) -> None:
    gather(attacked, clients, 1)
    to = attacked.post.recipient()
    assert clients[0].begin(SENDER, [to]).code == 354
    wire = HEAD + b"\r\n" + b"\r\n.x\r\n" * 500 + b".\r\n"
    for at in range(len(wire)):
        clients[0].send(wire[at : at + 1])
    assert clients[0].read().code == 250
    assert attacked.post.arrived(to).body == b"\nx\n" * 500


# Strangers with a DNS of their own -----------------------------------------------------------

SLOW_DNS = """
[shim]
message_deadline = "8s"
[bridge]
slots = 4
[fcrdns]
nameservers = ["{silent}:53"]
exempt_networks = ["127.0.0.1/32"]
[rspamd]
servers = ["{rspamd}"]
deadline = "7s"
"""
STRANGERS = [f"127.66.0.{number}" for number in range(1, 41)]
# smtpd gets an answer about them at once, we never.
GOOD = "\n".join(f"$PTR {host} x.example\nx.example A {host}" for host in STRANGERS)
NEVER = "\n".join(f"$FAULT {number}.0.66.127.in-addr.arpa timeout" for number in range(1, 41))


@pytest.mark.parametrize("version", places.VERSIONS)
def test_whose_reverse_dns_is_slow_keeps_nobody_s_message_from_being_judged(
    version: str, rspamd: Rspamd
) -> None:
    """With each RCPT they wait for 5 s: they would have all slots, if messages shared them."""
    with contextlib.ExitStack() as stack:
        silent = addresses.nameserver(NEVER)
        stack.callback(silent.stop)
        values = {"silent": silent.hosts[0], "rspamd": rspamd.url}
        server = bridged(version, SLOW_DNS, values=values, zone=GOOD)
        attacked = Attacked(ready(stack.enter_context(server), "bridge"))
        over = threading.Event()

        def stranger(host: str) -> None:
            with connected(server, source=host, timeout=60) as client:
                client.ehlo()
                while not over.is_set():
                    client.mail(SENDER)
                    client.rcpt("x@example.org")
                    client.cmd("RSET")

        threads = [threading.Thread(target=stranger, args=(host,)) for host in STRANGERS]
        for thread in threads:
            thread.start()
        try:
            eventually("a question about each", lambda: all(map(silent.asked, STRANGERS)), 60)
            for _ in range(5):
                attacked.post.send()
        finally:
            over.set()
            for thread in threads:
                thread.join(90)
        attacked.unharmed()
