"""What another user can't read is told, with the mode that stands in the way."""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.config.permissions import _may, permission_problems

STRANGER = "nobody"  # has no file here: the bits for others count

# Modes of a directory and of a file in it, need, secret -> what is wrong, "DIR" for its path.
MODES = {
    "all is open": (0o755, 0o644, "read", False, []),
    "a file for its owner": (
        0o755, 0o600, "read", False, ["DIR/f: user nobody can't read it (-rw------- OWNER)"]),
    "a directory for its owner": (
        0o700, 0o644, "read", False, ["DIR: user nobody can't search it (drwx------ OWNER)"]),
    "a directory that can be listed only": (
        0o744, 0o644, "read", False, ["DIR: user nobody can't search it (drwxr--r-- OWNER)"]),
    "both": (
        0o700, 0o600, "read", False,
        ["DIR: user nobody can't search it (drwx------ OWNER)",
         "DIR/f: user nobody can't read it (-rw------- OWNER)"]),
    "a secret for everyone": (
        0o755, 0o644, "read", True, ["DIR/f: a secret that everyone can read: chmod o-r"]),
    "a secret for nobody": (
        0o755, 0o640, "read", True, ["DIR/f: user nobody can't read it (-rw-r----- OWNER)"]),
}  # fmt: skip

# Owner, group and mode of a file; user 7 of groups 8 and 9 wants to read it.
CLASSES = {
    "the owner's bit": (7, 1, 0o400, True),
    "the owner's bit goes before the others'": (7, 8, 0o044, False),
    "the group's bit": (1, 8, 0o040, True),
    "a second group's bit": (1, 9, 0o040, True),
    "the group's bit goes before that for others": (1, 8, 0o004, False),
    "the bit for others": (1, 1, 0o004, True),
    "no bit for others": (1, 1, 0o440, False),
}


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve()


def of(base: Path, problems: list[str]) -> list[str]:
    """The problems below `base`, without what differs from machine to machine."""
    status = base.stat()
    owner = f"{pwd.getpwuid(status.st_uid).pw_name}:{grp.getgrgid(status.st_gid).gr_name}"
    ours = [problem for problem in problems if problem.startswith(str(base))]
    return [problem.replace(str(base), "DIR").replace(owner, "OWNER") for problem in ours]


@pytest.mark.parametrize(
    ("directory", "file", "need", "secret", "expected"), MODES.values(), ids=MODES
)
def test_what_stands_in_the_way_is_told(
    base: Path, directory: int, file: int, need: str, secret: bool, expected: list[str]
) -> None:
    path = base / "f"
    path.touch()
    path.chmod(file)
    base.chmod(directory)
    problems = permission_problems(path, STRANGER, need=need, secret=secret)
    assert of(base, problems) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0o777, []),
        (0o755, ["DIR: user nobody can't write it (drwxr-xr-x OWNER)"]),
        (0o776, ["DIR: user nobody can't search it (drwxrwxrw- OWNER)"]),
    ],
)
def test_a_directory_to_write_to_must_be_open_for_both(
    base: Path, mode: int, expected: list[str]
) -> None:
    base.chmod(mode)
    assert of(base, permission_problems(base, STRANGER, need="write")) == expected


def test_where_a_link_leads_counts_too(base: Path) -> None:
    base.chmod(0o755)
    (base / "closed").mkdir(mode=0o700)
    (base / "closed" / "f").touch(mode=0o644)
    (base / "link").symlink_to(base / "closed" / "f")
    assert of(base, permission_problems(base / "link", STRANGER)) == [
        "DIR/closed: user nobody can't search it (drwx------ OWNER)"
    ]


def test_a_file_that_is_not_there_is_told(base: Path) -> None:
    base.chmod(0o755)
    problems = permission_problems(base / "f", STRANGER)
    assert of(base, problems) == ["DIR/f: No such file or directory"]


def test_the_owner_can_read_what_is_closed_to_others(base: Path) -> None:
    (base / "f").touch(mode=0o600)
    assert of(base, permission_problems(base / "f", getpass.getuser())) == []


def test_a_user_that_is_not_there_is_told() -> None:
    assert permission_problems("/", "no-such-user") == ["user no-such-user: no such user"]


@pytest.mark.parametrize(("uid", "gid", "mode", "expected"), CLASSES.values(), ids=CLASSES)
def test_the_first_class_that_fits_decides(uid: int, gid: int, mode: int, expected: bool) -> None:
    status = os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
    assert _may(status, 7, {8, 9}, 4) is expected
