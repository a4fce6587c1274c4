"""The lines of smtpd.conf that put the filter to work, and how its user is made.

`snippet` is pure; the rest looks at what this system has.  Changes nothing.
"""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import sys

OWN_USER = "_filterbridge"
NAME = "filter-bridge"

# A command that does not begin with "/" is looked up there (smtpd.c, PATH_LIBEXEC): OpenSMTPD
# portable installs to libexec/opensmtpd below its prefix, on Arch, older Alpine and older Debian
# below /usr/lib; OpenBSD has a directory for ports alone (smtpd-defines.h).
LIBEXEC = {
    "openbsd": ("/usr/local/libexec/smtpd",),
    "": (
        "/usr/libexec/opensmtpd",
        "/usr/local/libexec/opensmtpd",
        "/usr/local/libexec/smtpd",
        "/usr/lib/opensmtpd",
        "/usr/lib/*/opensmtpd",
    ),
}
# How an account without a home and a shell is made: useradd(8), pw(8), busybox adduser.
USERADD = {
    "openbsd": "useradd -g =uid -c 'OpenSMTPD filter' -d /var/empty -s /sbin/nologin {user}",
    "freebsd": "pw useradd {user} -c 'OpenSMTPD filter' -d /nonexistent -s /usr/sbin/nologin",
    "busybox": "addgroup -S {user}; adduser -S -D -H -h /var/empty -s /sbin/nologin"
    " -G {user} {user}",
    "": "useradd --system --user-group --no-create-home --home-dir /nonexistent"
    " --shell /usr/sbin/nologin {user}",
}


def snippet(
    command: str, *, user: str, group: str, useradd: str = "", link: tuple[str, str] | None = None
) -> str:
    """What to put into smtpd.conf(5), and what to do before.

    command: for the shell, as smtpd runs it; useradd: makes the user, "" if it is there;
    link: the executable and where a link to it would let the command begin with its name.
    """
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    parts = []
    if useradd:
        parts += [f"A user of the filter's own, made by root:\n\n    {useradd}\n"]
    parts += [
        "For smtpd.conf, to be tested by smtpd -n (without `user` smtpd runs filters as its own,\n"
        "which faces the network):\n\n"
        f'    filter "bridge" proc-exec "{quoted}" user {user} group {group}\n'
        '    listen on 0.0.0.0 filter "bridge"\n'
        '    listen on socket filter "bridge"\n'
    ]
    if link:
        program, path = map(shlex.quote, link)
        short = NAME + quoted.removeprefix(program)
        parts += [f'After `ln -s {program} {path}` the command can be "{short}".\n']
    return "\n".join(parts)


def here(file: str, user: str, group: str, *, is_there: bool) -> str:
    """The snippet for this installation and this configuration file."""
    program, arguments = program_path(), f"-f {shlex.quote(os.path.abspath(file))}"
    link = None
    if program and (directory := libexec()):
        path = os.path.join(directory, NAME)
        if not os.path.lexists(path):
            link = (program, path)
        elif os.path.exists(path) and os.path.samefile(path, program):
            program = NAME
    command = shlex.quote(program) if program else f"{shlex.quote(sys.executable)} -m bridge"
    return snippet(
        f"{command} {arguments}",
        user=user,
        group=group,
        useradd="" if is_there else useradd_command(user),
        link=link,
    )


def program_path() -> str:
    """The filter-bridge that is running, or the one of the same Python; "" if there is none."""
    given = shutil.which(sys.argv[0]) if os.path.basename(sys.argv[0]) == NAME else None
    beside = os.path.join(os.path.dirname(sys.executable), NAME)
    found = given or (beside if os.access(beside, os.X_OK) else "")
    return os.path.abspath(found) if found else ""


def libexec() -> str:
    """OpenSMTPD's directory of filters here; "" if there is none."""
    patterns = LIBEXEC.get(_system(), LIBEXEC[""])
    return next((path for each in patterns for path in sorted(glob.glob(each))), "")


def useradd_command(user: str) -> str:
    """What makes an account on this system."""
    system = _system()
    if system not in USERADD and not shutil.which("useradd", path=os.defpath + ":/usr/sbin"):
        system = "busybox"
    return USERADD.get(system, USERADD[""]).format(user=shlex.quote(user))


def _system() -> str:
    return sys.platform.rstrip("0123456789")
