"""What becomes of mail while its bridges are killed, stopped and replaced?  One smtpd with two
filters, each a shim that knows the same two sidecars; clients at both; somebody who does the
sidecars harm; and the books of who was told what.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bridge.testing.http import BEHAVIOURS, Reply, Writer
from tests.live import addresses
from tests.live.bridged import connected, message
from tests.live.world import Closed, Listener, OpenSMTPD, eventually
from tests.unit.sidecar import Sidecar
from tests.unit.standing import standing_in

DEADLINE = 20.0  # of a message, in the shim
SLACK = 10.0  # of a busy machine, and of smtpd
PORTS = {"one": 25, "two": 2525}
SHIM = f"""
[shim]
message_deadline = "{DEADLINE:g}s"
patience = "10s"
[bridge]
ping_timeout = "2s"
[fcrdns]
enabled = false
[rspamd]
enabled = false
"""
BRIDGE = """[bridge]
group = "{group}"
drain = "5s"
[shim]
message_deadline = "20s"
[fcrdns]
enabled = false
[rspamd]
servers = ["{rspamd}"]
deadline = "10s"
"""


@dataclass(slots=True)
class Books:
    """What each message's client was told, and after how long."""

    told: dict[str, int] = field(default_factory=dict)  # the code, by message
    wrong: dict[str, str] = field(default_factory=dict)  # what should never be
    longest: float = 0.0  # from the final dot to the reply

    def note(self, ident: str, code: int, seconds: float, reply: str) -> None:
        self.longest = max(self.longest, seconds)
        self.told[ident] = code
        if code != 250 and not 400 <= code < 500:
            self.wrong[ident] = reply

    @property
    def codes(self) -> dict[int, int]:
        """How many were told what."""
        return dict(Counter(self.told.values()))


class Harm:
    """One who starts a sidecar and does it harm, again and again."""

    def __init__(self, sidecar: Sidecar, deeds: list[str], seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._sidecar = sidecar
        self._deeds = deeds
        self._random = random.Random(seed)

    def run(self) -> None:
        """All deeds; the sidecar is left running."""
        self._random.shuffle(self._deeds)
        self._sidecar.begin()
        for deed in self._deeds:
            # Now and then before it listens, mostly while it has requests.
            time.sleep(self._random.choice((0.1, 1.0, 2.0, 3.0)) * self._random.random() + 0.1)
            getattr(self, deed)()
            self.done[deed] += 1

    def kill(self) -> None:
        self._sidecar.signal(signal.SIGKILL)
        self._sidecar.wait()
        self._sidecar.begin()

    def stop(self) -> None:
        """For less and for more than the shim waits for a sign of life."""
        self._sidecar.signal(signal.SIGSTOP)
        time.sleep(self._random.choice((0.2, 1.0, 4.0)))
        self._sidecar.signal(signal.SIGCONT)

    def replace(self) -> None:
        """Drain it, while a new one already takes its place."""
        old, said = self._sidecar.process, self._drained()
        assert old is not None
        old.send_signal(signal.SIGTERM)  # which just ends one that has not begun to listen
        eventually(
            "it listens no more", lambda: self._drained() > said or old.poll() is not None, 30.0
        )
        self._sidecar.begin()
        old.wait(30.0)

    def _drained(self) -> int:
        return self._sidecar.log.count("draining links=")


async def slow_rspamd(writer: Writer) -> None:
    """A good reply after a while, so that requests are open most of the time."""
    await asyncio.sleep(random.random())
    good = BEHAVIOURS["ok"]
    assert isinstance(good, Reply)
    writer.write(good.head() + good.body)


class Storm:
    """All of it.  sidecars: the two; mta: the server."""

    def __init__(self, mta: OpenSMTPD, sidecars: list[Sidecar]) -> None:
        self.mta = mta
        self.sidecars = sidecars
        self.books = Books()
        self._numbers = itertools.count(1)
        self._ending = threading.Event()

    def rage(self, deeds: dict[str, int], sessions: int, clients: int, seed: int) -> list[Harm]:
        """Do each sidecar that harm while at least so many sessions go on."""
        words = [deed for deed, number in deeds.items() for _ in range(number)]
        harms = [Harm(each, list(words), seed + n) for n, each in enumerate(self.sidecars)]
        with ThreadPoolExecutor(clients + len(harms)) as pool:
            doing = [pool.submit(harm.run) for harm in harms]
            sending = [pool.submit(self._client, n, sessions) for n in range(clients)]
            try:
                for each in doing:
                    each.result()
            finally:
                self._ending.set()
            for each in sending:
                each.result()
        return harms

    def _client(self, client: int, sessions: int) -> None:
        chance = random.Random(client)
        while (number := next(self._numbers)) <= sessions or not self._ending.is_set():
            listener = ("one", "two")[number % 2]
            self._session(f"m{number}", listener, chance)

    def _session(self, ident: str, listener: str, chance: random.Random) -> None:
        size = chance.choice((1, 1, 1, 20, 2000))  # lines: 80 B to 160 KB
        whole = message(ident, body=(b"x" * 78 + b"\r\n") * size)
        try:
            with connected(self.mta, listener, timeout=DEADLINE + SLACK) as client:
                reply = client.begin("sender@client.example", [f"{ident}@example.org"])
                before = time.monotonic()
                if reply.code == 354:
                    reply = client.message(whole)
                self.books.note(ident, reply.code, time.monotonic() - before, str(reply))
        except (OSError, Closed, ValueError) as error:
            self.books.wrong[ident] = f"at {listener}: {error!r}"

    def reasons(self) -> dict[str, int]:
        """Why the shims deferred what they did."""
        return dict(Counter(re.findall(r'(?m)^\w+: deferred .* by="([^"]*)"', self.mta.log())))

    def settle(self) -> dict[str, int]:
        """Wait for the queue to be empty; how often each message was delivered."""
        eventually("an empty queue", lambda: self.mta.queued() == 0, 120.0)
        found = Counter(mail.recipient.partition("@")[0] for mail in self.mta.mails())
        return dict(found)


@contextmanager
def storm(version: str, directory: Path) -> Iterator[Storm]:
    """A server, its two sidecars not yet started, and a rspamd that takes its time."""
    with ExitStack() as stack:
        rspamd = stack.enter_context(standing_in(slow_rspamd))
        address, held = addresses.claim()
        stack.enter_context(held)
        port = addresses.free_port(address)
        places = ["unix:{dir}/run/one.sock", f"tcp:{address}:{port}"]
        command = "{bridge} -f {dir}/shim.toml " + " ".join(f"--connect {at}" for at in places)
        mta = OpenSMTPD(
            version,
            filters={"one": command, "two": command},
            listeners=[Listener(name, at, filters=(name,)) for name, at in PORTS.items()],
            files={"shim.toml": SHIM},
        )
        stack.enter_context(mta)
        config = BRIDGE.format(group=_group(mta), rspamd=rspamd.url)
        sidecars = [
            Sidecar(directory, mta.fill(at), name=f"{n}", config=config, app="")
            for n, at in enumerate(places)
        ]
        try:
            yield Storm(mta, sidecars)
        finally:
            for each in sidecars:
                if each.process is not None:
                    each.signal(signal.SIGCONT)
                    each.__exit__(None, None, None)


def _group(mta: OpenSMTPD) -> int:
    """The group that the filters run with."""
    first = eventually("the shims", lambda: mta.pids().filters)[0]
    status = Path(f"/proc/{first}/status").read_text()
    return int(status.partition("\nGid:\t")[2].split()[0])
