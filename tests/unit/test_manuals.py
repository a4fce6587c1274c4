"""The manuals in contrib/man name every key with its default, every command and every option."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from bridge import cli
from bridge.config import schema
from bridge.config.rows import rows

ROOT = Path(__file__).parents[2]
MAN = ROOT / "contrib" / "man"
COMMAND = (MAN / "filter-bridge.8").read_text()
FILE = (MAN / "bridge.toml.5").read_text()
DEFAULT = re.compile(r"^#([a-z_.]+) = (.*)$", re.MULTILINE)


def commands() -> dict[str, argparse.ArgumentParser]:
    """The commands, by name."""
    [found] = [each for each in cli._parser()._actions if hasattr(each, "choices") and each.choices]
    assert isinstance(found.choices, dict)
    return found.choices


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The options that are to be known."""
    shown = [each for each in parser._actions if each.help != argparse.SUPPRESS]
    return {name for each in shown for name in each.option_strings} - {"-h"}


def part(text: str, start: str, end: str) -> str:
    """From one macro line to the next of that kind."""
    head = text.index(f"{start}\n") + len(start)
    return text[head : text.index(end, head)]


def tables() -> dict[str, dict[str, str]]:
    """The keys of the manual and their defaults, by table."""
    found: dict[str, dict[str, str]] = {}
    for line in part(FILE, ".Sh TABLES", ".Sh PROFILES").splitlines():
        if line.startswith(".Ss "):
            keys = found.setdefault(line.removeprefix(".Ss ").removeprefix("Table "), {})
        elif item := re.fullmatch(r"\.It Ic (\S+) No = (.*)", line):
            keys[item[1]] = item[2].replace(r"\(dq", '"')
    return found


def example() -> dict[str, dict[str, str]]:
    """The same of contrib/bridge.toml, which test_config_example.py holds to the code."""
    found: dict[str, dict[str, str]] = {}
    text = (ROOT / "contrib" / "bridge.toml").read_text().partition("\n#[[profile]]")[0]
    for piece in re.split(r"^(?=\[)", text, flags=re.MULTILINE):
        name = piece.partition("]")[0][1:] if piece.startswith("[") else "Above all tables"
        found[name] = dict(DEFAULT.findall(piece))
    return found


def test_every_table_is_there() -> None:
    named = [name or "Above all tables" for name, table in schema.SECTIONS.items() if rows(table)]
    assert list(tables()) == named


@pytest.mark.parametrize("name", [name for name, table in schema.SECTIONS.items() if rows(table)])
def test_every_key_is_there_with_its_default(name: str) -> None:
    title = name or "Above all tables"
    assert list(tables()[title]) == list(rows(schema.SECTIONS[name]))
    assert tables()[title] == example()[title]


def test_every_key_of_a_profile_is_there() -> None:
    keys = {
        f"{section}.{key}".lstrip(".")
        for section, table in schema.PROFILE.items()
        for key in rows(table)
    }
    profiles = part(FILE, ".Sh PROFILES", ".Sh FILES")
    assert set(re.findall(r"^\.It Ic (\S+)$", profiles, re.MULTILINE)) == keys


@pytest.mark.parametrize("name", commands())
def test_every_command_is_there_with_its_options(name: str) -> None:
    [body] = re.findall(
        rf"^\.It Cm {name}\b(.*?)(?=^\.It Cm (?:{'|'.join(commands())})\b|^\.Sh )",
        COMMAND,
        re.MULTILINE | re.DOTALL,
    )
    own = options(commands()[name]) - {"-f", "--help"}
    told = {f"-{option}" for option in re.findall(r"^\.It Fl (-\S+)", body, re.MULTILINE)}
    # `run` has those of `shim`, and the manual says so.
    assert told == (set() if name == "run" else own)
    if name == "run":
        assert own == options(commands()["shim"]) - {"-f", "--help"}


@pytest.mark.parametrize("name", commands())
def test_every_option_is_in_the_synopsis(name: str) -> None:
    blocks = part(COMMAND, ".Sh SYNOPSIS", ".Sh DESCRIPTION").split(".Nm\n")
    [block] = [each for each in blocks if re.search(rf"Cm {name}$", each, re.MULTILINE)]
    told = {f"-{option}" for option in re.findall(r"\bFl (\S+)", block)}
    assert told == options(commands()[name]) - {"--help"}
