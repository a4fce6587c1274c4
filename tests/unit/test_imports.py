"""Do imports go down only, and is the shim's half standard library alone?

The groups of the house stand below, each with those that it may use; a new module belongs
into one of them.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bridge

HOUSE = Path(bridge.__file__).parent

# A group: its modules and packages, and whom it may use besides itself.
GROUPS: dict[str, tuple[set[str], set[str]]] = {
    "smtpd": ({"smtpd"}, set()),
    "alone": ({"", "child", "log", "release"}, set()),
    "values": (
        {"config", "dispatch", "edits", "fair", "folding", "link", "spool", "smtpdend", "state"},
        {"smtpd"},
    ),
    "consequences": ({"failure", "registration"}, {"smtpd", "values"}),
    "shim": (
        {"bridges", "dial", "linkend", "shim"},
        {"smtpd", "alone", "values", "consequences"},
    ),
    "services": ({"services"}, {"smtpd", "values"}),
    "policy": (
        {"completion", "filter", "forged", "handlers", "policy", "shipped", "threads"},
        {"smtpd", "alone", "values", "consequences", "services"},
    ),
    "processes": (
        {
            *(
                "handlerloop",
                "control",
                "core",
                "exporter",
                "inprocess",
                "listen",
                "metrics",
                "notify",
            ),
            *("opensmtpd", "server"),
        },
        {"smtpd", "alone", "values", "consequences", "policy"},
    ),
    "testing": ({"testing"}, {"smtpd", "alone", "policy", "processes"}),
    "commands": (
        {"__main__", "check", "cli", "keygen", "serve"},
        {"smtpd", "alone", "values", "consequences", "shim", "services", "policy", "processes"},
    ),
}
GROUP_OF = {name: group for group, (names, _) in GROUPS.items() for name in names}
# Within a method, for whoever writes a filter: `Filter.run()`.
UPWARDS = {"filter": {"inprocess"}}
# What the process under smtpd is made of.
SHIM_HALF = ("smtpd", "alone", "values", "consequences", "shim")


def modules() -> dict[str, Path]:
    """Every module of the house, by its name without `bridge.`."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return found


MODULES = modules()


def group_of(name: str) -> str:
    """A module's group, "" for one that has no place yet."""
    return GROUP_OF.get(name.split(".")[0], "")


def imported(name: str, *, lazily: bool) -> set[str]:
    """The modules of the house that one imports; lazily: also within functions."""
    return set(_imports(ast.parse(MODULES[name].read_text()), lazily)) - {name}


def _imports(tree: ast.AST, lazily: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bridge":
            where = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = f"{where}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else where
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "bridge":
                    yield alias.name.partition(".")[2]
        elif lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(node, lazily)


def test_every_module_has_its_place() -> None:
    assert [name for name in MODULES if not group_of(name)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if group_of(name)])
def test_a_module_uses_only_what_is_below_it(name: str) -> None:
    group = group_of(name)
    allowed = GROUPS[group][1] | {group}
    used = imported(name, lazily=True)
    above = {other for other in used if group_of(other) not in allowed}
    assert above == UPWARDS.get(name, set())


def test_the_groups_are_in_an_order() -> None:
    tuple(graphlib.TopologicalSorter({g: uses for g, (_, uses) in GROUPS.items()}).static_order())


def test_no_modules_import_each_other() -> None:
    graph = {name: imported(name, lazily=False) for name in MODULES}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("testing.")])
def test_the_model_of_smtpd_does_not_share_our_mistakes(name: str) -> None:
    if name != "testing.tester":  # which runs our filter against the model
        used = imported(name, lazily=True)
        assert [other for other in used if not other.startswith("testing")] == []


# The real imports, in a Python that has nothing but its standard library -------------------

LOADED = """
import sys
before = set(sys.modules)
sys.path.insert(0, {root!r})
import {name}
print(*sorted(set(sys.modules) - before))
"""


def loaded(name: str) -> set[str]:
    """All modules that the import of one loads."""
    code = LOADED.format(root=str(HOUSE.parent), name=f"bridge.{name}".rstrip("."))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


HALF = {name for name in MODULES if group_of(name) in SHIM_HALF}
# Those that none of the others loads; together they load them all.
TOPS = sorted(HALF.difference(*(imported(name, lazily=False) for name in HALF)))


@pytest.mark.parametrize("name", TOPS)
def test_the_shim_s_half_is_standard_library_alone(name: str) -> None:
    found = loaded(name)
    assert "bridge" in found
    ours = {other.partition(".")[2] for other in found if other.split(".")[0] == "bridge"}
    assert {other for other in ours if group_of(other) not in SHIM_HALF} == set()
    assert {other.split(".")[0] for other in found} - {"bridge"} <= sys.stdlib_module_names


def test_the_shim_loads_nothing_that_is_large_or_waits() -> None:
    assert "shim" in TOPS
    unwanted = {"asyncio", "concurrent", "email", "http", "httpx", "dns", "ssl", "urllib"}
    assert {name.split(".")[0] for name in loaded("shim")} & unwanted == set()
