"""Where does each version of OpenSMTPD run, and what does its private namespace look like?

6.8 is this machine's own package; 7.6 is run by chroot in the trixie root. smtpd's spool and
socket have compiled-in paths, so each server gets mounts over them that nobody else sees.
A plan is a list of steps for the keeper; nothing is mounted here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.live.trixie import COMMAND, PROJECT, trixie

ROOT = Path(__file__).parents[2]
PARTS = ("bridge", "contrib", "tests")  # what of the project a filter may want
VERSIONS = ("6.8", "7.6")
# The longest line that each takes back from a filter; longer ones made other filters its end.
LONGEST = {"6.8": 1997, "7.6": 65_485}

TOOLS = (
    "smtpd", "rspamd", "opendkim-testmsg", "unshare", "nsenter", "setpriv", "mmdebstrap",
    "openssl", "apt-get",
)  # fmt: skip

Step = list[str]  # see keeper.mount


@dataclass(frozen=True, slots=True)
class Place:
    """How to run one version, and the words that stand in for paths in a filter's command."""

    version: str
    protocol: str  # the filter protocol that it speaks
    chroot: Path | None
    python: str  # has httpx and dnspython, and imports `bridge` of this project
    bridge: str  # the filter-bridge command
    project: str  # where this project's files are

    def enter(self, command: list[str]) -> list[str]:
        """The command, to be run inside the namespace."""
        return ["chroot", str(self.chroot), *command] if self.chroot else command

    def under(self, path: str) -> Path:
        """A path of the server as the namespace outside of the chroot sees it."""
        return self.chroot / path.lstrip("/") if self.chroot else Path(path)


def place(version: str) -> Place:
    if version == "6.8":
        bridge = str(Path(sys.executable).parent / "filter-bridge")
        return Place(version, "0.6", None, sys.executable, bridge, str(ROOT))
    if version == "7.6":
        return Place(version, "0.7", trixie(), "/usr/bin/python3", COMMAND, PROJECT)
    raise ValueError(f"version {version!r}: expected one of {', '.join(VERSIONS)}")


def missing(versions: Collection[str] = VERSIONS) -> str:
    """Why live servers of these versions can't run here, as one line; empty if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "live tests need Linux and root (mount namespaces, ports 25 and 53)"
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=path)]
    if absent:
        return f"live tests need {', '.join(absent)}; hint: contrib/test installs them"
    about = subprocess.run(["/usr/sbin/smtpd", "-h"], capture_output=True, text=True, timeout=10)
    if "6.8" in versions and "OpenSMTPD 6.8" not in about.stderr:
        return "live tests need OpenSMTPD 6.8 here, which is Debian 12's"
    return ""


def plan(at: Place, directory: Path) -> list[Step]:
    """The mounts of a server whose own files are in `directory`."""
    steps = _trixie(at.chroot) if at.chroot else readable(directory)
    steps += [
        ["bind", str(directory / "spool"), str(at.under("/var/spool"))],
        *_file(at, directory, "/etc/hosts"),
        *_file(at, directory, "/etc/resolv.conf"),
        *_file(at, directory, "/etc/mailname"),
        ["bind", str(directory / "run"), str(at.under("/run"))],
    ]
    return steps


def _file(at: Place, directory: Path, name: str) -> list[Step]:
    """Put our file in place of the server's; where it leads into /run, into our /run."""
    ours = directory / Path(name).name
    real = Path(os.path.realpath(name)) if not at.chroot else Path(name)
    if real.is_relative_to("/run"):
        target = directory / "run" / real.relative_to("/run")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ours, target)
        return []
    return [["bind", str(ours), str(at.under(str(real)))]] if at.under(str(real)).exists() else []


def _trixie(root: Path) -> list[Step]:
    return [
        *(["bind", f"/{name}", f"{root}/{name}"] for name in ("dev", "proc", "tmp")),
        ["tmpfs", f"{root}/srv"],
        *(["bind", str(ROOT / part), f"{root}{PROJECT}/{part}"] for part in PARTS),
    ]


def readable(directory: Path) -> list[Step]:
    """Let the filter's user reach this project and its Python where only root may now.

    A directory on the way that is closed to others is covered by an empty one, in which just
    these paths show up again; the files themselves stay the same.
    """
    wanted = {Path(os.path.realpath(p)) for p in (sys.prefix, sys.base_prefix, ROOT)}
    closed = {path: shut for path in wanted if (shut := _closed(path))}
    if not closed:
        return []
    before: list[Step] = []
    after: list[Step] = []
    for number, path in enumerate(sorted(closed)):
        stage = directory / "stage" / str(number)
        stage.mkdir(parents=True)
        before.append(["bind", str(path), str(stage)])
        if not path.stat().st_mode & 0o001:  # closed itself: show what is in it
            inside = [child for child in path.iterdir() if child.is_dir()]
            after += [["bind", str(stage / child.name), str(child)] for child in inside]
        else:
            after.append(["bind", str(stage), str(path)])
    covers = [["tmpfs", str(shut)] for shut in sorted(set(closed.values()))]
    return before + covers + after


def _closed(path: Path) -> Path | None:
    """The topmost directory on the way to `path` that others can't enter."""
    for step in [*reversed(path.parents), path]:
        if not step.stat().st_mode & 0o001:
            return step
    return None
