"""Is a changed configuration taken up whole or not at all, by SIGHUP and by `filter-bridge reload`,
and is new code, without a request lost?
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.config import parse
from bridge.registration import changes
from bridge.testing.process import FilterProcess
from tests.unit.sidecar import (
    APPLICATION,
    COMMAND,
    NO_SERVICES,
    PROJECT,
    WAIT,
    Sidecar,
    begun,
    eventually,
    hold,
    run,
    said,
    send,
    shim,
)

# Nobody listens there, so the answer is the failure policy's.
POLICY = """[fcrdns]
enabled = false
[rspamd]
servers = ["http://127.0.0.1:1"]
retries = 0
[failure.rspamd]
default = "{}"
"""
DEFERS, ACCEPTS = POLICY.format("tempfail"), POLICY.format("accept")


def policy(path: Path) -> Sidecar:
    return Sidecar(path, config=DEFERS, app="")


def test_sighup_reads_the_file_again(tmp_path: Path) -> None:
    with policy(tmp_path) as bridge, shim(tmp_path, bridge.endpoint) as smtpd:
        assert send(smtpd) == 451
        bridge.configure(ACCEPTS)
        assert send(smtpd) == 451
        bridge.signal(signal.SIGHUP)
        eventually("reload", lambda: "reload said=reloaded" in bridge.log)
        assert send(smtpd) == 250
    assert said(smtpd, "bridge-up") == 1


def test_reload_does_too_and_says_so(tmp_path: Path) -> None:
    with policy(tmp_path) as bridge, shim(tmp_path, bridge.endpoint) as smtpd:
        bridge.configure(ACCEPTS)
        done = bridge.command("reload")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"bridge-\d+: reloaded\n", done.stdout)
        assert send(smtpd) == 250


BAD = {
    "not TOML": ("[rspamd", "not TOML"),
    "a mistake": (ACCEPTS + "[log]\nlevel = 3\n", "log.level: found 3, expected"),
    "two mistakes": (ACCEPTS + "[log]\nlevel = 3\n[dkim]\nretries = -1\n", "dkim.retries: found"),
    "a service that is nowhere": (ACCEPTS.replace("127.0.0.1:1", ""), "rspamd.servers"),
}


@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD)
def test_a_bad_file_changes_nothing_and_is_told(text: str, why: str, tmp_path: Path) -> None:
    with policy(tmp_path) as bridge, shim(tmp_path, bridge.endpoint) as smtpd:
        sound = bridge.file.read_text()
        bridge.file.write_text(sound.partition("[fcrdns]")[0] + text)
        bridge.signal(signal.SIGHUP)
        eventually("an answer", lambda: "the old configuration stays" in bridge.log)
        assert why in bridge.log.replace('\\"', '"')
        assert send(smtpd) == 451
        bridge.file.write_text(sound)
        assert bridge.command("reload").returncode == 0


def test_what_is_wrong_is_told_to_who_asked(tmp_path: Path) -> None:
    """`reload` reads the file for its run_dir itself, so a mistake ends it there already; what
    only the bridge can tell, like a file that it may not read, comes from the bridge."""
    with policy(tmp_path) as bridge:
        bridge.configure(ACCEPTS + "[log]\nlevel = 3\n")
        done = bridge.command("reload")
        assert (done.returncode, done.stdout) == (2, "")
        assert "log.level: found 3" in done.stderr
        bridge.configure(ACCEPTS + f'[dkim]\ntoken_file = "{tmp_path}/none"\n')
        done = bridge.command("reload")
        assert done.returncode == 1
        assert "dkim.token_file: found" in done.stdout
        assert done.stdout.endswith(": the old configuration stays\n")


def test_an_open_request_is_answered_as_it_was_asked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rspamd:
        rspamd.setblocking(False)
        slow = DEFERS.replace("127.0.0.1:1", f"127.0.0.1:{rspamd.getsockname()[1]}")
        with (
            Sidecar(tmp_path, config=slow, app="") as bridge,
            shim(tmp_path, bridge.endpoint) as smtpd,
        ):
            outcome = begun(smtpd).data_later(b"Subject: hi\n\nbody\n")
            asked: list[socket.socket] = []
            smtpd.run(lambda: _accepted(rspamd, asked))
            bridge.configure(ACCEPTS)
            assert bridge.command("reload").returncode == 0
            assert send(smtpd) == 250
            assert not outcome.done
            asked[0].close()  # a failure, of which the old configuration knows what to do
            smtpd.run(lambda: outcome.done)
            assert outcome.reply is not None
            assert outcome.reply.code == 451


def _accepted(server: socket.socket, asked: list[socket.socket]) -> bool:
    with suppress(BlockingIOError):
        asked.append(server.accept()[0])
    return bool(asked)


# What a reload can't change ---------------------------------------------------------------

BASE = NO_SERVICES
MORE = {
    "nothing": ("[rspamd]\nenabled = false\n[fcrdns]\nenabled = false\n", []),
    "what the bridge reads": (BASE + '[log]\nlevel = "debug"\n', []),
    "a key of [shim]": (BASE + '[shim]\npatience = "1s"\n', ["shim.patience"]),
    "two": (
        BASE + '[shim]\npatience = "1s"\nmax_spill = 0\n', ["shim.patience", "shim.max_spill"],
    ),
    "the time for a ping": (BASE + '[bridge]\nping_timeout = "1s"\n', ["bridge.ping_timeout"]),
    "a first refusal at RCPT TO": (
        '[fcrdns]\nsource = "smtpd"\n[rspamd]\nenabled = false\n', ["fcrdns (a first reject)"],
    ),
    "a first one at connect": (
        '[fcrdns]\nfail = "disconnect"\npermerror = "mark"\n[rspamd]\nenabled = false\n',
        ["fcrdns (a first disconnect)"],
    ),
    "what stands for a missing answer": (
        BASE + '[failure.bridge]\ndefault = "accept"\n',
        ["failure.bridge, enforce or a profile's match"],
    ),
    "a socket's group": (BASE + '[bridge]\ngroup = "mail"\n', ["bridge.group"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "keys"), MORE.values(), ids=MORE)
def test_what_takes_more_than_a_reload_is_named(text: str, keys: list[str]) -> None:
    assert [key for key, _ in changes(parse(BASE), parse(text))] == keys


def test_reload_tells_it(tmp_path: Path) -> None:
    with policy(tmp_path) as bridge:
        bridge.configure(DEFERS + '[shim]\npatience = "1s"\n')
        done = bridge.command("reload")
    assert done.returncode == 0
    assert "shim.patience: takes a restart of smtpd\n" in done.stdout


# The control socket -----------------------------------------------------------------------


def test_the_control_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    with policy(tmp_path) as bridge:
        assert bridge.process
        (path,) = bridge.run_dir.iterdir()
        assert path.name == f"bridge-{bridge.process.pid}.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_directory_for_it_mail_goes_on(tmp_path: Path) -> None:
    bridge = policy(tmp_path)
    bridge.run_dir.rmdir()
    with bridge, shim(tmp_path, bridge.endpoint) as smtpd:
        assert send(smtpd) == 451
        assert "no-control-socket" not in bridge.log  # it is nothing unusual
        done = bridge.command("reload")
    assert done.returncode == 1
    assert "no bridge listens in" in done.stdout


def test_the_socket_of_one_that_was_killed_is_cleared_away(tmp_path: Path) -> None:
    with policy(tmp_path) as bridge:
        bridge.signal(signal.SIGKILL)
        bridge.wait()
    assert list(bridge.run_dir.iterdir())
    assert bridge.command("reload").returncode == 1
    assert list(bridge.run_dir.iterdir()) == []


def test_one_that_does_not_know_a_command_says_so(tmp_path: Path) -> None:
    with policy(tmp_path) as bridge, socket.socket(socket.AF_UNIX) as asking:
        (path,) = bridge.run_dir.iterdir()
        asking.settimeout(WAIT)
        asking.connect(str(path))
        asking.sendall(b"of tomorrow\n")
        assert asking.recv(1000) == b"failed\nan unknown command\n"


# New code ---------------------------------------------------------------------------------


def test_restart_of_a_sidecar_drains_it(tmp_path: Path) -> None:
    with Sidecar(tmp_path) as bridge:
        done = bridge.command("reload")
        assert done.returncode == 1
        assert "an application is reloaded by: filter-bridge reload --restart" in done.stdout
        assert bridge.command("reload", "--restart").returncode == 0
        assert bridge.wait() == 0


def test_restart_of_a_spawned_one_loses_no_open_request(tmp_path: Path) -> None:
    file, held, release = tmp_path / "bridge.toml", tmp_path / "held", tmp_path / "release"
    file.write_text(f'{NO_SERVICES}[bridge]\nrun_dir = "{tmp_path}"\n')
    env = os.environ | {"PYTHONPATH": str(PROJECT), "BRIDGE": "x", "HELD": str(held)}
    command = [*COMMAND, "run", "-f", str(file), APPLICATION]
    with FilterProcess(command, env, timeout=WAIT) as smtpd:
        outcome = hold(smtpd, release)
        smtpd.run(held.exists)
        done = run("reload", "--restart", "-f", str(file))
        assert done.returncode == 0, done.stdout
        smtpd.run(lambda: said(smtpd, "bridge-up") == 2)
        assert not outcome.done
        assert send(smtpd) == 250
        release.touch()
        smtpd.run(lambda: outcome.done)
        assert outcome.reply is not None
        assert outcome.reply.code == 250
        smtpd.run(lambda: said(smtpd, 'why="it left"') == 1)
        assert send(smtpd) == 250
    assert len(held.read_text().splitlines()) == 3
    assert smtpd.faults == []
    assert len(set(re.findall(r"bridge-started pid=(\d+)", "\n".join(smtpd.stderr)))) == 2
