"""Can the live harness be trusted? Real servers with no filter of ours, seen from all sides."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.live import processes
from tests.live.addresses import free_port
from tests.live.client import Client, stuffed
from tests.live.world import HOSTNAME, Closed, Delivered, Listener, OpenSMTPD, Proc, eventually

ECHO = "{python} {project}/tests/live/echo_filter.py"
# Date and Message-ID are there because smtpd adds them where it listens on loopback.
HEAD = b"Date: Sun, 22 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n"
MESSAGE = HEAD + b"Subject: hello\r\n\r\nhello\r\n"

BYTES = {
    "dots at the start of lines": b"\r\n.\r\n..\r\n.a\r\nb.\r\n",
    "8-bit that is no UTF-8": b"\r\n\xe9\xff\x80\r\n",
    "a bare CR, a CR too many, a lone tab": b"\r\na\rb\r\nc\r\r\n\t\r\n",
    "empty lines at the end": b"\r\n\r\n\r\n\r\n",
    "no body": b"\r\n",
    "bars and a line of 990": b"\r\na|b|c\r\n" + b"x" * 990 + b"\r\n",
}


@pytest.mark.parametrize("tail", BYTES.values(), ids=BYTES.keys())
def test_a_message_arrives_byte_for_byte(version: str, tail: bytes) -> None:
    with OpenSMTPD(version, filters={"echo": ECHO}) as mta:
        reply = mta.send(HEAD + tail, "a@client.example", ["b@example.org"])
        [mail] = mta.wait_delivered(1)
        assert reply.code == 250
        assert mail.below_received == (HEAD + tail).replace(b"\r\n", b"\n")
        assert mail.recipient == "b@example.org"
        assert mta.delivered() == [mail.raw]
        assert mail.raw.startswith(b"Return-Path: <a@client.example>\n")
    assert not mta.leftovers


def test_the_filter_is_asked_in_its_protocol_as_an_unprivileged_user(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": f"{ECHO} log"}) as mta:
        assert mta.send(MESSAGE).ok
        said = mta.wait_log(r"report\|([\d.]+)\|[\d.]+\|smtp-in\|tx-mail\|")
        assert said[1] == mta.place.protocol
        [pid] = mta.pids().filters
        assert Path(f"/proc/{pid}").stat().st_uid != 0


def test_a_filter_may_have_a_user_of_its_own(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": Proc(ECHO, user="nobody", group="nogroup")}) as mta:
        assert mta.send(MESSAGE).ok
        [pid] = mta.pids().filters
        assert Path(f"/proc/{pid}").stat().st_uid == 65534


def test_the_project_can_be_imported_where_filters_run(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": Proc(ECHO, user="nobody")}) as mta:
        code = "import os; os.setuid(65534); import bridge.testing.dns, httpx; print(bridge)"
        done = mta.run([mta.place.python, "-c", code])
        assert done.returncode == 0, done.stderr
        assert mta.place.project in done.stdout.decode()


def test_the_dns_is_the_tests_own(version: str) -> None:
    zone = """
        $PTR 127.5.5.5 good.example
        good.example A 127.5.5.5
        $PTR 127.5.5.6 liar.example
        liar.example A 127.5.5.5
    """
    with OpenSMTPD(version, zone=textwrap.dedent(zone), filters={"echo": f"{ECHO} log"}) as mta:
        expected = {
            "127.5.5.5": r"link-connect\|\w+\|good.example\|pass\|127.5.5.5:",
            "127.5.5.6": r"link-connect\|\w+\|liar.example\|fail\|127.5.5.6:",
            "127.5.5.7": r"link-connect\|\w+\|<unknown>\|fail\|127.5.5.7:",
        }
        for source, report in expected.items():
            with mta.client(source=source) as client:
                assert client.local.startswith(source)
                assert client.ehlo().code == 250
            mta.wait_log(report)
        assert mta.dns.asked("127.5.5.7", "PTR")


def test_ipv6(version: str) -> None:
    six = Listener("six", free_port("::1"), "::1")
    with OpenSMTPD(version, listeners=[Listener(), six], filters={"echo": f"{ECHO} log"}) as mta:
        assert mta.send(MESSAGE, listener="six").ok
        mta.wait_log(r"link-connect\|\w+\|localhost\|pass\|\[::1\]:")


def test_local_mail_goes_through_the_socket(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": f"{ECHO} log"}) as mta:
        done = mta.sendmail(MESSAGE.replace(b"\r\n", b"\n"), ["b@example.org"])
        assert done.returncode == 0, done.stderr
        assert mta.wait_delivered(1)[0].body == b"hello\n"
        mta.wait_log(r"link-connect\|\w+\|[^|]+\|pass\|unix:")


def test_junk_goes_to_its_folder(version: str) -> None:
    with OpenSMTPD(version, filters={"junk": "phase connect match rdns junk"}) as mta:
        assert mta.send(MESSAGE).ok
        [mail] = mta.wait_delivered(1)
        assert mail.junk
        assert mail.header("x-spam") == [b"Yes"]


def test_several_recipients_and_messages_in_one_session(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": ECHO}) as mta:
        with mta.client() as client:
            for number in range(2):
                to = [f"{name}{number}@example.org" for name in "ab"]
                assert client.deliver("", to, MESSAGE).code == 250
            assert client.quit().code == 221
        mails = mta.wait_delivered(4)
        assert sorted(mail.recipient[:2] for mail in mails) == ["a0", "a1", "b0", "b1"]
        eventually("an empty queue", lambda: mta.queued() == 0)


def test_a_message_over_the_limit_is_refused_and_the_session_goes_on(version: str) -> None:
    with OpenSMTPD(version, max_message_size="10K") as mta, mta.client() as client:
        reply = client.deliver(
            "a@client.example", ["b@example.org"], MESSAGE + b"0123456789\r\n" * 5000
        )
        assert reply.code == 554
        assert client.deliver("a@client.example", ["b@example.org"], MESSAGE).ok
        assert len(mta.wait_delivered(1)) == 1


def test_starttls_and_auth_on_the_submission_port() -> None:
    users = {"alice": "secret"}
    listeners = [Listener(), Listener.submission()]
    with OpenSMTPD("7.6", listeners=listeners, users=users, filters={"echo": ECHO}) as mta:
        with Client(mta.address, mta.submission_port) as client:
            assert client.ehlo().code == 250
            assert client.mail("a@client.example").code == 530
            assert client.starttls(str(mta.dir / "cert.pem"), HOSTNAME).code == 220
            assert (client.tls or "").startswith("TLSv1")
            assert client.ehlo().code == 250
            assert client.auth_plain("alice", "wrong").code == 535
            assert client.auth_plain("alice", "secret").code == 235
            assert client.deliver("a@client.example", ["b@example.org"], MESSAGE).ok
        with mta.client("submission") as client:
            client.ehlo()
            client.starttls()
            client.ehlo()
            assert client.auth_login("alice", "secret").code == 235
        assert len(mta.wait_delivered(1)) == 1


def test_smtpd_ends_with_its_filter(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": f"{ECHO} child"}) as mta:
        assert mta.send(MESSAGE).ok
        pids = mta.pids()
        assert mta.alive
        assert (len(pids.wrappers), len(pids.filters), len(pids.bridges)) == (1, 1, 1)
        assert processes.look(pids.bridges[0]).argv == ("sleep", "600")  # type: ignore[union-attr]
        os.kill(pids.filters[0], signal.SIGKILL)
        assert mta.wait_exit() == 0
        assert not mta.alive
        assert "exited abnormally" in mta.log()
    assert mta.leftovers == ["sleep 600"]


def test_a_filter_that_stays_is_ended_and_named(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": f"{ECHO} stay"}) as mta:
        assert mta.send(MESSAGE).ok
        pids = mta.pids()
    assert mta.exit_code == 0
    assert any("echo_filter.py stay" in command for command in mta.leftovers)
    assert not any(processes.look(pid) for pid in (pids.smtpd, *pids.filters, *pids.wrappers))


def test_a_bad_configuration_is_an_error_with_its_text(version: str) -> None:
    with pytest.raises(RuntimeError, match="syntax error"):
        OpenSMTPD(version, conf="nonsense").start()


def test_two_servers_do_not_meet(version: str) -> None:
    with OpenSMTPD(version) as one, OpenSMTPD(version) as two:
        assert one.address != two.address
        assert one.send(MESSAGE).ok
        assert len(one.wait_delivered(1)) == 1
        assert two.mails() == []
        assert "smtp connected" not in two.log()


def test_files_and_commands_have_their_words_filled_in(version: str) -> None:
    files = {"a.toml": "x = '{dir}' # {dns} {other}\n"}
    with OpenSMTPD(version, files=files) as mta:
        text = mta.run(["cat", f"{mta.dir}/a.toml"]).stdout.decode()
        assert text == f"x = '{mta.dir}' # {mta.address}:53 {{other}}\n"


def test_nothing_is_left_behind(version: str) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with OpenSMTPD(version, filters={"echo": f"{ECHO} child"}) as mta:
        assert mta.send(MESSAGE).ok
        running = mta.processes()
    assert len(running) > 6
    assert not [process for process in running if process.alive]
    assert not mta.dir.exists()
    assert Path("/proc/self/mountinfo").read_text() == before
    assert "smtp connected" in mta.log()  # still told, for the report of a failure


def test_a_killed_test_leaves_no_process(version: str) -> None:
    code = f"""
        import os, signal
        from tests.live.world import OpenSMTPD
        mta = OpenSMTPD({version!r}, filters={{"echo": {ECHO + " stay child"!r}}}).start()
        mta.client().close()
        print(mta.dir, *(process.pid for process in mta.processes()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    directory, *pids = done.stdout.split()
    found = [process for pid in pids if (process := processes.look(int(pid)))]
    assert len(pids) > 6
    eventually("their end", lambda: not any(process.alive for process in found))
    eventually("the last note", (Path(directory) / "leftovers").exists)
    shutil.rmtree(directory)


# The client.


def test_the_client_aborts_in_the_middle_of_data(version: str) -> None:
    with OpenSMTPD(version, filters={"echo": f"{ECHO} log"}) as mta:
        client = mta.client()
        assert client.begin("a@client.example", ["b@example.org"]).code == 354
        client.send(b"Subject: half\r\n\r\nha")
        client.abort()
        mta.wait_log(r"tx-rollback\|")
        assert mta.send(MESSAGE).ok
        assert len(mta.wait_delivered(1)) == 1


def test_the_client_reads_replies_and_the_end(version: str) -> None:
    with OpenSMTPD(version) as mta, mta.client() as client:
        assert client.banner is not None
        assert (client.banner.code, client.banner.lines[0].split()[0]) == (220, HOSTNAME)
        assert "8BITMIME" in client.ehlo().lines
        unknown = client.cmd("WHAT")
        assert (unknown.code, unknown.enhanced, unknown.ok) == (500, "5.5.1", False)
        client.send(b"QUIT\r\n")
        assert client.read().code == 221
        with pytest.raises(Closed):
            client.read()
        assert client.closed_by_server(1)


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"", b".\r\n"),
        (b".\r\n.a\nb\r.c\r\n", b"..\r\n..a\nb\r.c\r\n.\r\n"),
    ],
    ids=["a line", "a line without end", "nothing", "dots after CRLF and LF, not after CR"],
)
def test_stuffing(message: bytes, sent: bytes) -> None:
    assert stuffed(message) == sent


def test_a_delivered_file_is_told_apart() -> None:
    mail = Delivered(
        b"Return-Path: <a@b>\nDelivered-To: c@d\nX-Spam: Yes\nReceived: from x\n\tby y;\n"
        b"Subject: one\n two\nsubject:three\n\nbody\n",
        junk=True,
    )
    assert mail.message.startswith(b"X-Spam: Yes\nReceived: ")
    assert mail.below_received == b"Subject: one\n two\nsubject:three\n\nbody\n"
    assert mail.header("SUBJECT") == [b"one\n two", b"three"]
    assert mail.body == b"body\n"
