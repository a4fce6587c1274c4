"""What can be told without asking anybody: who the filter runs as, and what that user may read.

A filter that can't read its own program takes smtpd down at its start (smtpd.c ends with its
filters), and one whose bridge can't, defers all mail.  Changes nothing.
"""

from __future__ import annotations

import errno
import grp
import importlib.util
import os
import pwd
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import bridge
from bridge.check.findings import FAIL, OK, WARN, Finding
from bridge.check.smtpd_conf import OWN_USER, program_path
from bridge.config import Config
from bridge.config.permissions import permission_problems
from bridge.services import zstd

# Whom smtpd runs filters as by default (configure --with-user-smtpd): upstream and the BSDs,
# Debian, other Linux distributions.
SMTPD_USERS = ("_smtpd", "opensmtpd", "smtpd")
IMPORTED = ("httpx", "httpcore", "dns", "anyio")  # a sample of what we need to import
MAX_PROBLEMS = 8  # of one kind; the others are like them


class Need(NamedTuple):
    """What the filter's user must be able to do.  what: read, write, run or connect."""

    path: str
    what: str
    hint: str


class User(NamedTuple):
    """Who the filter runs as.  name: "" if nobody knows; why: it was chosen."""

    name: str
    why: str


def exists(name: str) -> bool:
    """Is there such an account?"""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def choose_user(given: str | None, there: Callable[[str], bool] = exists) -> User:
    """The user given, or whom the filter will most likely run as."""
    if given is not None:
        return User(given, "")
    if there(OWN_USER):
        return User(OWN_USER, "assumed; --user names another")
    for name in SMTPD_USERS:
        if there(name):
            return User(name, f"assumed: smtpd's own, there is no {OWN_USER}; --user names another")
    return User("", f"no {OWN_USER}, {', '.join(SMTPD_USERS)} here: nobody's permissions looked at")


def group_of(user: str) -> str:
    """The user's primary group; its own name if neither is there."""
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user


def local_findings(config: Config, user: User) -> list[Finding]:
    """All that is wrong here, or a line for each thing that is good."""
    return [*_warnings(config), *_user_findings(config, user), *_packages(config)]


def _warnings(config: Config) -> Iterator[Finding]:
    for warning in config.warnings:
        yield Finding(WARN, "configuration", warning)


def _packages(config: Config) -> Iterator[Finding]:
    if config.main.rspamd.compress:
        hint = "not installed; hint: pip install zstandard, or compress = false"
        found = (OK, "there, for compress = true") if zstd.HAVE_ZSTD else (FAIL, hint)
        yield Finding(found[0], "package zstandard", found[1])


def _user_findings(config: Config, user: User) -> list[Finding]:
    subject = f"user {user.name}".rstrip()
    if not user.name:
        return [Finding(WARN, subject, user.why)]
    if not exists(user.name):
        return [Finding(FAIL, subject, "no such user; hint: see below")]
    found = problems([*installation(), *of_configuration(config)], user.name)
    findings = [Finding(FAIL, subject, text) for text in found]
    if not found:
        why = f" ({user.why})" if user.why else ""
        findings.append(Finding(OK, subject, f"can read and run all it needs{why}"))
    elif user.why:
        findings.append(Finding(WARN, subject, user.why))
    for text in _bared(config, user.name):
        findings.append(Finding(WARN, subject, text))
    return findings


def problems(needs: Iterable[Need], user: str) -> list[str]:
    """Why the user can't do what it needs to, each reason once, at most MAX_PROBLEMS of a
    kind."""
    told: dict[str, str] = {}
    count: Counter[str] = Counter()
    for need in needs:
        for problem in _problems(need, user):
            if problem in told or count[need.hint] >= MAX_PROBLEMS:
                continue
            count[need.hint] += 1
            way = "" if problem.startswith(f"{need.path}:") else f", on the way to {need.path}"
            mine = problem.endswith(f": {os.strerror(errno.EACCES)}")  # we may not even look
            told[problem] = f"{problem}{way}; hint: {'run this as root' if mine else need.hint}"
    return list(told.values())


def _problems(need: Need, user: str) -> list[str]:
    path = need.path
    mine = f"{path}: user {user} can't search it"
    match need.what:
        case "run":
            found = permission_problems(path, user, need="search")
            return [problem.replace(mine, f"{path}: user {user} can't run it") for problem in found]
        case "connect":  # that is to write, and a socket is not searched
            found = permission_problems(path, user, need="write")
            return [problem for problem in found if not problem.startswith(mine)]
        case _:
            return permission_problems(path, user, need=need.what)


def installation() -> Iterator[Need]:
    """The files of this program and of Python itself, which pipx or a venv may have put where
    nobody else can read."""
    hint = "install it where all may read, such as python3 -m venv /opt/filter-bridge"
    if program := program_path():
        yield Need(program, "run", hint)
        yield Need(program, "read", hint)
    yield Need(sys.executable, "run", hint)
    yield Need(os.__file__, "read", hint)
    if (settings := Path(sys.prefix, "pyvenv.cfg")).exists():
        yield Need(str(settings), "read", hint)
    for name in IMPORTED:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            yield Need(spec.origin, "read", hint)
    for directory in bridge.__path__:
        for path in sorted(Path(directory).rglob("*.py")):
            yield Need(str(path), "read", hint)


def of_configuration(config: Config) -> Iterator[Need]:
    """The configuration, the files and directories it names, and the sockets."""
    readable = "chgrp it to the filter's group and chmod g+r"
    yield Need(config.file, "read", readable)
    for needed in config.files():
        hint = readable
        if needed.need == "write":
            hint = f"set {needed.key} to a directory that it may write to"
        yield Need(needed.path, needed.need, hint)
    for path in _sockets(config):
        if os.path.exists(path):  # if not, the probe tells more
            yield Need(path, "connect", "give the socket a mode or group that lets it in")


def _sockets(config: Config) -> Iterator[str]:
    for endpoint in config.shim.connect:
        if endpoint.path:
            yield endpoint.path
    if config.shim.connect:
        return  # then it is not this user who asks the services
    for name in ("rspamd", "dkim"):
        if any(getattr(profile, name).enabled for profile in (config.main, *config.profiles)):
            for server in getattr(config.main, name).servers:
                if server.startswith("unix:"):
                    yield server.removeprefix("unix:")


def _bared(config: Config, user: str) -> Iterator[str]:
    """Secrets that everyone can read, but for those that loading warned of."""
    for needed in config.files():
        if needed.secret and not any(needed.path in warning for warning in config.warnings):
            open_to_user = permission_problems(needed.path, user)
            for problem in permission_problems(needed.path, user, secret=True):
                if problem not in open_to_user:
                    yield problem
