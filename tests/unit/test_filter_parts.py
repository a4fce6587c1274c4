"""Do the parts of a filter hold: threads for plain handlers, state with a bound, and the
shipped policy as one of several?
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from pathlib import Path

from bridge import Filter, Message, Reject, Session, TxCommit, Verdict, shipped_policy
from bridge.edits import Insert
from bridge.state import State
from bridge.testing import FilterTester
from bridge.testing.dns import DnsServer
from bridge.threads import Threads
from tests.unit.standing import standing_in

MESSAGE = b"From: a@x\nSubject: hi\n\nhello\n"


def test_threads_are_made_when_they_are_needed_and_no_more_than_allowed() -> None:
    threads, freed, used = Threads(limit=3), threading.Event(), set()
    started = threading.Semaphore(0)

    def work(wait: bool) -> None:
        used.add(threading.get_ident())
        started.release()
        if wait:
            assert freed.wait(10)

    async def go() -> None:
        await threads.run(work, False)
        assert len(used) == 1
        blocked = [asyncio.create_task(threads.run(work, True)) for _ in range(5)]
        assert await asyncio.to_thread(lambda: [started.acquire(timeout=5) for _ in range(4)])
        freed.set()
        await asyncio.gather(*blocked)

    asyncio.run(go())
    assert len(used) == 3


def test_a_call_that_nobody_waits_for_any_more_is_not_made() -> None:
    threads, freed = Threads(limit=1), threading.Event()
    calls: list[int] = []

    async def go() -> None:
        first = asyncio.create_task(threads.run(freed.wait, 10))
        second = asyncio.create_task(threads.run(calls.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        freed.set()
        await first
        await threads.run(calls.append, 2)

    asyncio.run(go())
    assert calls == [2]


def test_an_idle_thread_ends_and_another_takes_its_place() -> None:
    threads = Threads(limit=1, idle=0.01)

    async def go() -> set[int]:
        found = set()
        for _ in range(2):
            found.add(await threads.run(threading.get_native_id))
            until = time.monotonic() + 5
            while any(t.name == "handler" for t in threading.enumerate()):
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
        return found

    before = [t for t in threading.enumerate() if t.name == "handler"]
    for thread in before:  # of other tests, idle too
        thread.name = "other"
    assert len(asyncio.run(go())) == 2


def test_what_a_thread_gets_and_gives_is_the_caller_s() -> None:
    word: contextvars.ContextVar[str] = contextvars.ContextVar("word")

    async def go() -> str:
        word.set("here")
        return await Threads().run(word.get)

    assert asyncio.run(go()) == "here"


def test_of_too_many_states_the_one_that_was_not_used_for_longest_goes() -> None:
    state = State(list[int], limit=2)
    for name in ("1", "2", "1", "3"):
        state(Session(name)).append(int(name))
    assert [state(Session(name)) for name in ("1", "3")] == [[1, 1], [3]]
    assert len(state) == 2
    assert state(Session("2")) == []


TOML = """
[fcrdns]
nameservers = ["{dns}"]
exempt_networks = []
fail = "reject"
[rspamd]
servers = ["{rspamd}"]
"""


def test_the_shipped_policy_in_a_chain(tmp_path: Path) -> None:
    mine = Filter()
    seen: list[object] = []

    @mine.on(Message)
    async def judge(event: Message, session: Session) -> Reject | Verdict:
        seen.append(event.headers("Authentication-Results"))
        if b"lottery" in event.content:
            return Reject("5.7.1", "No luck today")
        return Verdict(edits=(Insert(0, "X-Mine", "yes"),))

    @mine.on(TxCommit)
    async def committed(event: TxCommit, session: Session) -> None:
        seen.append(event.msgid)

    zone = "$PTR 192.0.2.1 good.example\ngood.example A 192.0.2.1\n"
    file = tmp_path / "bridge.toml"
    with standing_in("ok") as rspamd, DnsServer(zone) as dns:
        file.write_text(
            TOML.replace("{dns}", f"{dns.hosts[0]}:{dns.port}").replace("{rspamd}", rspamd.url)
        )
        app = Filter.chain(shipped_policy(file), mine)
        assert app.registration.phases == {"data-line", "commit", "rcpt-to"}
        assert "tx-commit" in app.registration.reports
        with FilterTester(app) as smtpd:
            assert smtpd.send(MESSAGE).code == 250
            assert smtpd.send(MESSAGE + b"lottery\n").code == 550
            assert smtpd.send(MESSAGE, src="192.0.2.2:1").code == 550  # no reverse DNS
        assert len(rspamd.seen) == 2
    [mail] = smtpd.delivered
    assert mail.content.startswith(b"X-Mine: yes\nReceived:")
    assert [type(each) for each in seen] == [list, str, list]
    assert "iprev=pass" in str(seen[0])
    assert smtpd.faults == []
