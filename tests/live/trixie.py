"""Where is a root directory of Debian trixie, with OpenSMTPD 7.6 and a Python for our filter?

Made once by mmdebstrap from this machine's own Debian mirror and kept in the cache directory
(FILTER_BRIDGE_CACHE, by default /var/tmp/filter-bridge-cache); servers mount what they need over
it in namespaces of their own and never write to it. Standard library only, and a command:
`python3 -m tests.live.trixie` makes it if need be and prints its path.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SUITE = "trixie"
PACKAGES = (
    "opensmtpd",
    "ca-certificates",
    "python3",
    "python3-dnspython",
    "python3-httpx",
    "python3-zstandard",
)
# Where the tested code is mounted, and what makes Python and smtpd find it there.
PROJECT = "/srv/filter-bridge"
COMMAND = "/usr/local/bin/filter-bridge"
FILES = {
    "usr/lib/python3/dist-packages/filter-bridge.pth": f"{PROJECT}\n",
    COMMAND.lstrip("/"): (
        "#!/usr/bin/python3\nimport sys\n\nfrom bridge.cli import main\n\nsys.exit(main())\n"
    ),
    # Mount points for files of each server's own.
    "etc/resolv.conf": "",
    "etc/hosts": "",
    "etc/mailname": "",
}
RECIPE = hashlib.sha256(repr((SUITE, PACKAGES, FILES)).encode()).hexdigest()
STAMP = "filter-bridge-recipe"
# 30 s here; a slow mirror may take many times that.
BUILD_SECONDS = 900
PROBE = "import httpx, dns.resolver, zstandard"


def cache_directory() -> Path:
    """The cache directory, made if need be; refused when it belongs to somebody else."""
    named = os.environ.get("FILTER_BRIDGE_CACHE") or "/var/tmp/filter-bridge-cache"
    directory = Path(named).absolute()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    state = directory.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PermissionError(f"{directory}: not ours alone; hint: set FILTER_BRIDGE_CACHE")
    return directory


def mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    for site in sites:
        if "security" not in site:
            return site
    raise LookupError("apt knows no Debian mirror; hint: apt-get update, sources.list")


def usable(root: Path) -> bool:
    """Whether the root was made by this recipe, and smtpd and Python start in it."""
    try:
        if (root / STAMP).read_text() != RECIPE:
            return False
        python = subprocess.run(
            ["chroot", root, "/usr/bin/python3", "-c", PROBE], capture_output=True, timeout=60
        )
        return python.returncode == 0 and (root / "usr/sbin/smtpd").is_file()
    except (OSError, subprocess.SubprocessError):
        return False


def build(root: Path) -> None:
    """Make the root under a name of its own, then move it into place."""
    new = Path(tempfile.mkdtemp(prefix=f"{SUITE}.new.", dir=root.parent))
    try:
        with (root.parent / f"{SUITE}.log").open("wb") as log:
            subprocess.run(
                ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}",
                 SUITE, new, f"deb {mirror()} {SUITE} main"],
                check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=BUILD_SECONDS,
            )  # fmt: skip
        new.chmod(0o755)
        for name, text in FILES.items():
            (new / name).write_text(text)
        (new / COMMAND.lstrip("/")).chmod(0o755)
        (new / STAMP).write_text(RECIPE)
        if not usable(new):
            raise RuntimeError(f"{new}: httpx or dnspython cannot be loaded there")
        if root.exists():
            root.rename(new.with_name(new.name + ".old"))
        new.rename(root)
    except subprocess.SubprocessError as error:
        raise RuntimeError(f"no trixie root; hint: {root.parent / f'{SUITE}.log'}") from error
    finally:
        for rest in root.parent.glob(f"{new.name}*"):
            shutil.rmtree(rest, ignore_errors=True)


@functools.cache
def trixie() -> Path:
    """The root directory, made if it is missing, broken or of an older recipe.

    Runs at the same time wait for each other.
    """
    directory = cache_directory()
    root = directory / SUITE
    with (directory / f"{SUITE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not usable(root):
            build(root)
    return root


if __name__ == "__main__":
    try:
        print(trixie())
    except (OSError, LookupError, RuntimeError) as error:
        sys.exit(f"trixie: {error}")
