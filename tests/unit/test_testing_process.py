"""The driver for real programs: it starts them as smtpd does and notices what smtpd would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bridge.testing.outcomes import SessionHung, SmtpdDied, SmtpdWedged
from bridge.testing.process import FilterProcess
from bridge.testing.smtpd import Smtpd

ECHO = str(Path(__file__).parent / "echo_filter.py")


def echo(misdeed: str = "", timeout: float = 10.0) -> FilterProcess:
    return FilterProcess([sys.executable, "-S", ECHO, misdeed], timeout=timeout)


def greet(program: FilterProcess) -> None:
    with program as smtpd:
        client = smtpd.connect()
        client.ehlo("x.example.net")
        client.noop()
        client.noop()


def test_a_program_that_echoes_delivers_what_the_client_sent() -> None:
    with echo() as smtpd:
        client = smtpd.connect()
        assert client.greeting.code == 220
        client.ehlo("client.example.net")
        client.mail("alice@example.net")
        client.rcpt("bob@example.org")
        reply = client.data(b"Subject: hi\n\n.a dot\n..\nlast\n")
        assert reply.code == 250
        assert client.quit().code == 221
    assert client.closed
    assert smtpd.delivered[0].sender == "alice@example.net"
    assert smtpd.delivered[0].recipients == ("bob@example.org",)
    assert smtpd.delivered[0].content.endswith(b"\nSubject: hi\n\n.a dot\n..\nlast\n")
    assert smtpd.faults == []
    assert smtpd.status == 0


def test_many_sessions_go_on_at_once() -> None:
    with echo() as smtpd:
        clients = [smtpd.connect_later(src=f"192.0.2.{n}:25") for n in range(1, 20)]
        for number, client in enumerate(clients):
            client.later.ehlo("x.example.net")
            client.later.mail("a@example.net")
            client.later.rcpt(f"{number}@example.org")
        outcomes = [client.data_later(b"\nbody\n" * 2000) for client in clients]
        smtpd.run()
    assert {outcome.reply.code for outcome in outcomes if outcome.reply} == {250}
    assert len(smtpd.delivered) == len(clients)
    assert smtpd.faults == []


def test_a_message_larger_than_every_socket_buffer_passes() -> None:
    with echo() as smtpd:
        client = smtpd.connect()
        client.ehlo("x.example.net")
        client.mail("a@example.net")
        client.rcpt("b@example.org")
        assert (
            client.data(b"A: b\n\n" + b"x" * 998 + b"\n" + (b"y" * 76 + b"\n") * 20_000).code == 250
        )
    assert len(smtpd.delivered[0].content) > 1_500_000


@pytest.mark.parametrize(
    "misdeed",
    ["exit0-after-ready", "exit1-in-session", "sigkill-in-session"],
)
def test_a_program_that_ends_takes_the_mail_server_down(misdeed: str) -> None:
    with pytest.raises(SmtpdDied, match="lost processor"):
        greet(echo(misdeed))


@pytest.mark.parametrize("command", [[sys.executable, ECHO, "exit0-at-start"], "/no/such/filter"])
def test_a_program_that_never_began_takes_it_down_too(command: list[str] | str) -> None:
    with pytest.raises(SmtpdDied, match="lost processor"), FilterProcess(command):
        pass


@pytest.mark.parametrize(
    "misdeed", ["io-shutdown-wr", "io-shutdown-rd", "io-stderr-nonewline-100k"]
)
def test_what_makes_smtpd_spin_is_told(misdeed: str) -> None:
    with pytest.raises(SmtpdWedged):
        greet(echo(misdeed))


@pytest.mark.parametrize("misdeed", ["silent", "io-close-stdout"])
def test_a_request_without_an_answer_hangs_its_session(misdeed: str) -> None:
    with echo(misdeed, timeout=0.5) as smtpd:
        client = smtpd.connect()
        with pytest.raises(SessionHung, match="has not answered: ehlo of"):
            client.ehlo("x.example.net")


@pytest.mark.parametrize(
    "misdeed", ["io-bytewise", "io-stderr-flood", "io-stderr-nonewline", "io-close-stderr"]
)
def test_what_is_odd_but_harmless_is_harmless(misdeed: str) -> None:
    with echo(misdeed) as smtpd:
        client = smtpd.connect()
        assert client.ehlo("x.example.net").code == 250
    assert smtpd.faults == []
    assert len(smtpd.stderr) == (5000 if misdeed == "io-stderr-flood" else 0)


def test_a_program_that_stays_after_end_of_file_is_a_fault_and_is_killed() -> None:
    with echo("ignores-eof") as smtpd:
        pid = smtpd.pid
    assert [fault.reason for fault in smtpd.faults] == [
        "the filter did not leave within 2.0 s of end-of-file"
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


DESCRIBE = """
import os, sys, socket
same = os.fstat(0).st_ino == os.fstat(1).st_ino != os.fstat(2).st_ino
kind = socket.socket(fileno=os.dup(0)).type
leader = os.getsid(0) == os.getpid()
beyond = [fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")]
print(same, kind, leader, beyond, os.environ["SEEN"], file=sys.stderr, flush=True)
print("register|ready", flush=True)
sys.stdin.read()
"""


def test_the_program_runs_as_under_smtpd() -> None:
    with FilterProcess([sys.executable, "-S", "-c", DESCRIBE], {"SEEN": "environment"}) as smtpd:
        pass
    assert smtpd.stderr == ["True 1 True [] environment"]


def test_a_command_is_a_shell_s_as_in_smtpd_conf() -> None:
    with FilterProcess("sh -c 'echo \"register|$WORD\"; cat >/dev/null'", {"WORD": "ready"}):
        pass


def test_clients_wait_without_a_banner_until_the_filter_is_ready() -> None:
    quiet = FilterProcess("cat >/dev/null", timeout=0.3, wait_ready=False, smtpd=Smtpd("0.6"))
    with quiet as smtpd, pytest.raises(SessionHung, match=r"register\|ready"):
        smtpd.connect()
