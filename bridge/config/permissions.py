"""What a user may not read or write, by owner, group and mode bits.

For `filter-bridge check`, which root runs: smtpd runs the filter as another user.  Looks at
modes only, not at access lists, and changes nothing.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

_BIT = {"read": 4, "write": 2, "search": 1}


def permission_problems(
    path: str | Path, user: str, *, need: str = "read", secret: bool = False
) -> list[str]:
    """Why `user` can't reach `path`, a line for each reason; empty if it can.

    need: "read" (a file) or "write" (a directory, to make files in).  secret: that others
    can read it is a reason as well.
    """
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return [f"user {user}: no such user"]
    # smtpd gives a filter its primary group and no other (smtpd.c, fork_filter_process).
    groups = {account.pw_gid}
    path = Path(os.path.abspath(path))
    # A link's own way and that of what it leads to must both be open.
    above = dict.fromkeys([*reversed(path.parents), *reversed(path.resolve().parents)])
    needs = [*((directory, "search") for directory in above), (path, need)]
    if need == "write":
        needs.append((path, "search"))
    problems: list[str] = []
    for where, what in needs:
        try:
            status = os.stat(where)
        except OSError as error:
            return [*problems, f"{where}: {error.strerror}"]
        if account.pw_uid != 0 and not _may(status, account.pw_uid, groups, _BIT[what]):
            problems.append(f"{where}: user {user} can't {what} it ({_shown(status)})")
        if secret and where == path and status.st_mode & stat.S_IROTH:
            problems.append(f"{where}: a secret that everyone can read: chmod o-r")
    return problems


def _may(status: os.stat_result, uid: int, groups: set[int], bit: int) -> bool:
    """The first class that fits decides, as the kernel does it (POSIX, 4.7, file access)."""
    if status.st_uid == uid:
        return bool(status.st_mode >> 6 & bit)
    if status.st_gid in groups:
        return bool(status.st_mode >> 3 & bit)
    return bool(status.st_mode & bit)


def _shown(status: os.stat_result) -> str:
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"{stat.filemode(status.st_mode)} {owner}:{group}"
