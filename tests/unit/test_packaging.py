"""The sdist and the wheel hold what they should, and the wheel is enough for the command.

Built as pip would, from a copy of the tree; the wheel from the sdist.  Installed into an empty
virtual environment together with what it says it needs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAME = f"opensmtpd_bridge-{VERSION}"
TREE = ("bridge", "contrib", "tests", "pyproject.toml", "docker-compose.yml", ".dockerignore",
        ".gitignore", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
        "LICENSE")  # fmt: skip
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*cache")
BUILD = "import sys, hatchling.build as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


class Built(NamedTuple):
    """Where the two are."""

    sdist: Path
    wheel: Path


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """What a command prints; with its errors if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both, made from a copy of this tree."""
    top = tmp_path_factory.mktemp("dist")
    tree = top / "tree"
    tree.mkdir()
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=LEFT_OUT)
        else:
            shutil.copy(source, tree / name)
    sdist = top / run([sys.executable, "-c", BUILD, "build_sdist", top], tree).strip()
    with tarfile.open(sdist) as archive:
        archive.extractall(top)
    wheel = run([sys.executable, "-c", BUILD, "build_wheel", top], top / NAME).strip()
    return Built(sdist, top / wheel)


def files(directory: str) -> set[str]:
    """The files of the tree below a directory."""
    found = (ROOT / directory).rglob("*")
    return {
        str(path.relative_to(ROOT))
        for path in found
        if path.is_file() and not {"__pycache__", ".mypy_cache", ".ruff_cache"} & {*path.parts}
    }


def test_the_wheel_holds_the_package_its_manuals_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        found = set(archive.namelist())
    data, info = f"{NAME}.data/data/share/man", f"{NAME}.dist-info"
    manuals = {f"{data}/man8/filter-bridge.8", f"{data}/man5/bridge.toml.5"}
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert found == files("bridge") | manuals | about | {f"{info}/licenses/LICENSE"}


def test_the_wheel_is_typed(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        assert "bridge/py.typed" in archive.namelist()


def test_the_sdist_holds_all_that_tests_and_recipes_need(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        found = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    wanted = {name for name in TREE if (ROOT / name).is_file()}
    for directory in ("bridge", "contrib", "tests"):
        wanted |= files(directory)
    assert found == wanted | {"PKG-INFO"}


def test_the_wheel_works_in_an_empty_environment(built: Built, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", venv], tmp_path)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python")]
    install = [*pip, "install", "--quiet", "--disable-pip-version-check", str(built.wheel)]
    run(install, tmp_path)
    command = venv / "bin/filter-bridge"
    assert run([command, "--version"], tmp_path) == f"filter-bridge {VERSION}\n"
    assert (venv / "share/man/man8/filter-bridge.8").exists()
    shutil.copy(ROOT / "contrib/bridge.toml", tmp_path / "bridge.toml")
    done = subprocess.run(
        [command, "check", "--offline", "-f", "bridge.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # 1: somebody may not read this directory, as pytest makes it; 2 would be a mistake.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert 'proc-exec "' in done.stdout
    assert "package" not in done.stdout, done.stdout
