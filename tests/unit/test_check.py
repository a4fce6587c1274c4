"""`filter-bridge check` as an operator sees it: what is printed where, and the exit status."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge import cli, config
from bridge.check import check, local, smtpd_conf
from bridge.check.findings import FAIL, OK, Finding, lines
from bridge.check.local import Need, User, choose_user
from tests.unit.asking import closed_port
from tests.unit.standing import PAGE, PONG, standing_in

ME = pwd.getpwuid(os.getuid()).pw_name
STRANGER = "nobody"  # has no file here: the bits for others count
NO_DNS = "[fcrdns]\nenabled = false\n"

MISTAKES = """
enforc = true
[rspamd]
timeout = "20"
server = ["http://127.0.0.1:11333"]
[weather]
"""
ALL_OF_THEM = [
    "enforc: found an unknown key, expected a key or table of the main part"
    " (did you mean enforce?)",
    'rspamd.timeout: found "20", expected a duration like "15s", "500ms" or "2m", '
    "from 100ms to 10m",
    "rspamd.server: found an unknown key, expected a key of [rspamd] (did you mean servers?)",
    "weather: found an unknown key, expected a key or table of the main part",
]


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path


@pytest.fixture
def write(base: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = base / "bridge.toml"
        path.write_text(text)
        path.chmod(0o644)
        return str(path)

    return write


Write = Callable[[str], str]
Capture = pytest.CaptureFixture[str]


# The exit status --------------------------------------------------------------------------


def test_all_is_well(write: Write, capsys: Capture) -> None:
    with standing_in(PONG, "ok") as service:
        file = write(f"{NO_DNS}[rspamd]\nservers = ['{service.url}']")
        status = check(file, user=ME)
    out, err = capsys.readouterr()
    told = out.splitlines()
    subject = f"rspamd {service.url}"
    assert (status, err) == (0, "")
    assert told[0] == f"ok    {'configuration':<{len(subject)}}  {file}"
    assert told[1] == f"ok    {f'user {ME}':<{len(subject)}}  can read and run all it needs"
    assert told[2].startswith(f"ok    {subject}  rspamd/3.4, ")
    assert told[2].endswith(" for a scan: no action")
    assert told[3:5] == ["", "All is well."]
    assert f'-f {file}" user {ME} group ' in out


def test_a_service_that_does_not_answer_is_1(write: Write, capsys: Capture) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    assert check(write(f"{NO_DNS}[rspamd]\nservers = ['{url}']"), user=ME) == 1
    out, err = capsys.readouterr()
    assert f"\nFAIL  rspamd {url}  no connection (" in out
    assert "; hint: is it running?\n" in out
    assert "\n1 failed.\n" in out
    assert 'listen on socket filter "bridge"' in out
    assert err == ""


def test_what_is_no_rspamd_is_1(write: Write, capsys: Capture) -> None:
    with standing_in(PAGE) as service:
        assert check(write(f"{NO_DNS}[rspamd]\nservers = ['{service.url}']"), user=ME) == 1
    assert "hint: is this rspamd's normal worker?" in capsys.readouterr().out


def test_offline_nobody_is_asked(write: Write, capsys: Capture) -> None:
    with standing_in(PAGE) as service:
        file = write(
            f"[fcrdns]\nnameservers = ['127.0.0.1:{closed_port()}']\n"
            f"[rspamd]\nservers = ['{service.url}']"
        )
        assert check(file, user=ME, offline=True) == 0
        assert service.count == 0
    assert "\nAll is well.\n" in capsys.readouterr().out


def test_mail_in_clear_is_a_warning(write: Write, capsys: Capture) -> None:
    file = write(f"{NO_DNS}[shim]\nconnect = ['tcp:192.0.2.9:4711', 'tcp:[::1]:4711']")
    assert check(file, user=ME, offline=True) == 0
    out = capsys.readouterr().out
    assert "\nwarn  configuration  " in out
    assert "shim.connect: mail goes to tcp:192.0.2.9:4711 in clear: set shim.ca_file" in out
    assert "\n1 to be looked at.\n" in out


def test_all_mistakes_of_a_file_are_told_and_are_2(write: Write, capsys: Capture) -> None:
    file = write(MISTAKES)
    assert check(file, user=ME) == 2
    out, err = capsys.readouterr()
    assert sorted(err.splitlines()) == sorted(f"{file}: {line}" for line in ALL_OF_THEM)
    assert out == ""


def test_a_file_that_is_not_there_is_2(base: Path, capsys: Capture) -> None:
    assert check(f"{base}/none.toml", user=ME) == 2
    told = capsys.readouterr().err
    assert told == f"{base}/none.toml: can't be read: No such file or directory\n"


def test_a_certificate_that_is_none_is_2(base: Path, write: Write, capsys: Capture) -> None:
    (base / "ca.pem").write_text("Dear CA,\n")
    file = write(f"[rspamd]\nservers = ['https://127.0.0.1:1']\nca_file = '{base}/ca.pem'")
    assert check(file, user=ME, offline=True) == 2
    assert capsys.readouterr().err.startswith(f"{file}: ca_file {base}/ca.pem: ")


def test_a_file_that_the_filter_can_not_read_is_1(
    base: Path, write: Write, capsys: Capture
) -> None:
    file = write(NO_DNS)
    os.chmod(file, 0o600)
    assert check(file, user=STRANGER, offline=True) == 1
    [told] = [line for line in capsys.readouterr().out.splitlines() if f"{file}: user" in line]
    assert told.startswith(f"FAIL  user {STRANGER}")
    assert f"{file}: user {STRANGER} can't read it (-rw------- " in told
    assert told.endswith("; hint: chgrp it to the filter's group and chmod g+r")


def test_a_directory_that_the_filter_can_not_write_to_is_1(
    base: Path, write: Write, capsys: Capture
) -> None:
    (base / "spill").mkdir(mode=0o755)
    file = write(f"{NO_DNS}[shim]\nspill_dir = '{base}/spill'")
    assert check(file, user=STRANGER, offline=True) == 1
    out = capsys.readouterr().out
    assert f"{base}/spill: user {STRANGER} can't write it (drwxr-xr-x " in out
    assert "; hint: set shim.spill_dir to a directory that it may write to\n" in out


def test_a_user_that_is_not_there_is_1_and_is_made_first(write: Write, capsys: Capture) -> None:
    assert check(write(NO_DNS), user="no-such-user", offline=True) == 1
    out = capsys.readouterr().out
    assert "\nFAIL  user no-such-user  no such user; hint: see below\n" in out
    assert out.index("A user of the filter's own") < out.index("user no-such-user group no-such")


def test_compression_needs_its_package(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(f"{NO_DNS}[rspamd]\ncompress = true")
    assert check(file, user=ME, offline=True) == 0
    monkeypatch.setattr("bridge.services.zstd.HAVE_ZSTD", False)
    assert check(file, user=ME, offline=True) == 1
    assert "\nFAIL  package zstandard  not installed; hint: pip " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "state", "status"),
    [
        pytest.param("", "FAIL", 1, id="where the bridge is a child"),
        pytest.param("[shim]\nconnect = ['unix:/b']", "warn", 0, id="where it is elsewhere"),
    ],
)
def test_packages_that_are_not_installed_are_told(
    write: Write, text: str, state: str, status: int
) -> None:
    program = (
        "import sys; sys.modules['httpx'] = None; from bridge.check import check;"
        f"sys.exit(check({write(text)!r}, user={ME!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"\n{state}  package httpx " in done.stdout, done.stderr
    assert done.returncode == status


def test_the_command_line_passes_its_options_on(write: Write, capsys: Capture) -> None:
    file = write(NO_DNS + f"[rspamd]\nservers = ['http://127.0.0.1:{closed_port()}']")
    assert cli.main(["check", "-f", file, "--user", ME, "--offline"]) == 0
    assert cli.main(["check", "-f", file, "--user", ME]) == 1
    assert cli.main(["check", "-f", file, "--user", "no-such-user", "--offline"]) == 1
    capsys.readouterr()


# Who it is, and what that user can do -----------------------------------------------------

OWN = "smtpd's own, there is no _filterbridge; --user names another"
USERS = {
    "the one that was given": (
        "alice", {"_filterbridge"}, User("alice", "")),
    "the filter's own": (
        None, {"_filterbridge", "_smtpd"}, User("_filterbridge", "assumed; --user names another")),
    "OpenBSD's": (None, {"_smtpd", "_smtpq"}, User("_smtpd", f"assumed: {OWN}")),
    "Debian's": (None, {"opensmtpd", "opensmtpq"}, User("opensmtpd", f"assumed: {OWN}")),
    "nobody": (
        None, {"root"},
        User("", "no _filterbridge, _smtpd, opensmtpd, smtpd here: nobody's permissions looked "
                 "at")),
}  # fmt: skip


@pytest.mark.parametrize(("given", "there", "expected"), USERS.values(), ids=USERS)
def test_who_the_filter_runs_as(given: str | None, there: set[str], expected: User) -> None:
    assert choose_user(given, there.__contains__) == expected


# Mode of the file or socket, what is needed -> what stands in the way, "DIR" for its path.
NEEDS = {
    "a program for all": (0o755, "run", []),
    "a program for its owner": (0o744, "run", ["DIR/f: user nobody can't run it (-rwxr--r-- "]),
    "a file for its owner": (0o600, "read", ["DIR/f: user nobody can't read it (-rw------- "]),
    "a socket for all": (0o666, "connect", []),
    "a socket for its group": (
        0o660, "connect", ["DIR/f: user nobody can't write it (srw-rw---- "]),
}  # fmt: skip


@pytest.mark.parametrize(("mode", "what", "expected"), NEEDS.values(), ids=NEEDS)
def test_what_the_user_needs(base: Path, mode: int, what: str, expected: list[str]) -> None:
    path = base / "f"
    with socket.socket(socket.AF_UNIX) as listener:
        if what == "connect":
            listener.bind(str(path))
        else:
            path.touch()
        path.chmod(mode)
        found = local.problems([Need(str(path), what, "ask root")], STRANGER)
    ours = [line.replace(str(base), "DIR") for line in found if str(base) in line]
    assert [line.split("(")[0] + "(" + line.split("(")[1][:11] for line in ours] == expected
    assert all(line.endswith("; hint: ask root") for line in ours)


def test_a_closed_directory_is_told_once_with_what_is_behind_it(base: Path) -> None:
    home = base / "home"
    home.mkdir(mode=0o700)
    for name in "ab":
        (home / name).touch()
    found = local.problems([Need(str(home / name), "read", "move it") for name in "ab"], STRANGER)
    [told] = [line for line in found if str(base) in line]
    assert told.startswith(f"{home}: user {STRANGER} can't search it (drwx------ ")
    assert told.endswith(f", on the way to {home}/a; hint: move it")


def test_many_problems_of_one_kind_are_cut(base: Path) -> None:
    names = [base / str(number) for number in range(20)]
    for name in names:
        name.touch(mode=0o600)
    found = local.problems([Need(str(name), "read", "?") for name in names], STRANGER)
    assert len([line for line in found if str(base) in line]) == local.MAX_PROBLEMS


def test_the_running_program_is_looked_at() -> None:
    needs = {(need.path, need.what) for need in local.installation()}
    assert (sys.executable, "run") in needs
    assert (str(Path(local.__file__)), "read") in needs
    assert any(path.endswith("httpx/__init__.py") for path, _ in needs)


def test_what_the_configuration_names_is_looked_at(base: Path, write: Write) -> None:
    file = write(f"[rspamd]\nservers = ['unix:{base}/r']\ntoken_file = '{base}/t'")
    (base / "t").write_text("sesame")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{base}/r")
        needs = list(local.of_configuration(config.load(file, strict=True)))
    assert [(need.path, need.what) for need in needs] == [
        (file, "read"),
        (f"{base}/t", "read"),
        ("/var/tmp", "write"),
        (f"{base}/r", "connect"),
    ]


def test_a_key_that_everyone_can_read_is_a_warning(
    base: Path, write: Write, capsys: Capture
) -> None:
    for name in ("cert", "key"):
        (base / name).write_text("")
        (base / name).chmod(0o644)
    files = f"client_certificate = '{base}/cert'\nclient_key = '{base}/key'"
    assert check(write(f"{NO_DNS}[rspamd]\n{files}"), user=ME, offline=True) == 0
    told = f"{base}/key: a secret that everyone can read: chmod o-r\n"
    assert told in capsys.readouterr().out


# What it looks like -----------------------------------------------------------------------


def test_lines_are_aligned_and_safe_on_a_terminal() -> None:
    found = [
        Finding(OK, "dns ::1", "answers"),
        Finding(FAIL, "rspamd http://a", "\x1b[31mred\r\n"),
        Finding(OK, "x" * 60, "far out"),
        Finding(OK, "dns ::2", "y" * 9000),
    ]
    assert lines(found) == [
        "ok    dns ::1          answers",
        "FAIL  rspamd http://a  ?[31mred??",
        f"ok    {'x' * 60}  far out",
        f"ok    dns ::2          {'y' * 497}...",
    ]


def test_the_lines_for_smtpd_conf() -> None:
    told = smtpd_conf.snippet(
        "/opt/fb/bin/filter-bridge -f /etc/mail/bridge.toml",
        user="_filterbridge",
        group="_filterbridge",
        useradd="useradd _filterbridge",
        link=("/opt/fb/bin/filter-bridge", "/usr/libexec/opensmtpd/filter-bridge"),
    )
    assert (
        told
        == """\
A user of the filter's own, made by root:

    useradd _filterbridge

For smtpd.conf, to be tested by smtpd -n (without `user` smtpd runs filters as its own,
which faces the network):

    filter "bridge" proc-exec "/opt/fb/bin/filter-bridge -f /etc/mail/bridge.toml" \
user _filterbridge group _filterbridge
    listen on 0.0.0.0 filter "bridge"
    listen on socket filter "bridge"

After `ln -s /opt/fb/bin/filter-bridge /usr/libexec/opensmtpd/filter-bridge` the command can be \
"filter-bridge -f /etc/mail/bridge.toml".
"""
    )


def test_a_user_that_is_there_need_not_be_made(write: Write) -> None:
    told = smtpd_conf.here(write(""), ME, local.group_of(ME), is_there=True)
    assert told.startswith("For smtpd.conf")


def test_a_path_with_blanks_and_quotes_reaches_the_shell_whole() -> None:
    told = smtpd_conf.here('/etc/my mail/"x".toml', "u", "g", is_there=True)
    assert """-f '/etc/my mail/\\"x\\".toml'" user u group g""" in told
