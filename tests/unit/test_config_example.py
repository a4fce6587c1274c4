"""contrib/bridge.toml says of every key what it means and what it is when it is not set."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge import config
from bridge.config import schema
from bridge.config.rows import Row, rows

CONTRIB = Path(__file__).parents[2] / "contrib"
TEXT = (CONTRIB / "bridge.toml").read_text()
KEY_LINE = re.compile(r"^#(?=[a-z_.]+ = |\[\[)", re.MULTILINE)
ALL = KEY_LINE.sub("", TEXT)

KEYS: dict[str, Row] = {
    f"{section}.{name}".lstrip("."): row
    for section, table in schema.SECTIONS.items()
    for name, row in rows(table).items()
}
PROFILE_KEYS: dict[str, Row] = {
    f"{section}.{name}".lstrip("."): row
    for section, table in schema.PROFILE.items()
    for name, row in rows(table).items()
}


def flat(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and f"{path}{name}" not in KEYS:
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


TREE = tomllib.loads(ALL)
PROFILES = TREE.pop("profile")
SHOWN = dict(flat(TREE))


def words(text: str) -> str:
    """Running text, without comment signs and line ends."""
    return " ".join(re.sub(r"^#", "", text, flags=re.MULTILINE).split())


def line_of(path: str) -> int:
    """Where a key stands in the example."""
    section, _, name = path.rpartition(".")
    start = TEXT.index(f"\n[{section}]\n") if section else 0
    return TEXT.index(f"\n#{name} = ", start)


def test_every_key_is_shown_and_no_other() -> None:
    assert sorted(SHOWN) == sorted(KEYS)
    assert len(KEYS) > 100


@pytest.mark.parametrize("path", KEYS)
def test_the_default_shown_is_the_default(path: str) -> None:
    assert SHOWN[path] == KEYS[path].default
    assert type(SHOWN[path]) is type(KEYS[path].default)


@pytest.mark.parametrize("path", KEYS)
def test_the_meaning_and_the_choices_stand_above_the_key(path: str) -> None:
    row = KEYS[path]
    assert words(row.meaning) in words(TEXT[: line_of(path)])
    section = path.rpartition(".")[0]
    # The words of the failure policy are explained once, above its first table.
    start = "# What happens to mail" if section.startswith("failure.") else f"\n[{section}]\n"
    told = words(TEXT[TEXT.index(start) if section else 0 : line_of(path)])
    missing = [o for o in row.kind.options if not re.search(rf"(?<![\w-]){o}(?![\w-])", told)]
    assert missing == []


@pytest.mark.parametrize("path", PROFILE_KEYS)
def test_what_only_a_profile_has_is_shown_with_its_meaning(path: str) -> None:
    line = TEXT.index(f"\n#{path} = ", TEXT.index("#[[profile]]"))
    assert words(TEXT[:line]).endswith(words(PROFILE_KEYS[path].meaning))


def test_nothing_is_set() -> None:
    assert config.parse(TEXT, strict=True) == config.parse("", strict=True)


def test_with_all_keys_uncommented_all_is_as_without_a_file() -> None:
    whole = config.parse(ALL, strict=True)
    empty = config.parse("")
    assert whole.main == empty.main
    assert (whole.shim, whole.bridge, whole.log) == (empty.shim, empty.bridge, empty.log)
    assert whole.warnings == ()


def test_the_profile_of_the_example_is_one() -> None:
    (profile,) = config.parse(ALL, strict=True).profiles
    assert profile.name == "submission"
    assert len(profile.match.port) == len(profile.match.address) == 2
    assert profile.failure.choose("rspamd", "timeout", False) == "accept-header"


@pytest.mark.parametrize("table", schema.SECTIONS.values(), ids=lambda table: table.__name__)
def test_every_meaning_is_a_sentence(table: type) -> None:
    assert [row.meaning for row in rows(table).values() if row.meaning[-1] != "."] == []


def test_what_a_profile_may_set_is_what_needs_no_connection_of_its_own() -> None:
    own = {path.partition(".")[0] for path, row in KEYS.items() if row.profile}
    assert own == {"enforce", "authserv_id", "fcrdns", "rspamd", "dkim", "failure"}
    upstream = set(rows(schema.Upstream)) - {"enabled"}
    assert not any(KEYS[f"rspamd.{name}"].profile for name in upstream)
    assert not any(KEYS[f"dkim.{name}"].profile for name in upstream)


def test_the_drop_in_for_systemd_checks_and_restarts() -> None:
    text = (CONTRIB / "systemd/opensmtpd.service.d/filter-bridge.conf").read_text()
    settings = [line for line in text.splitlines() if line and line[0] not in "#["]
    assert settings == [
        "Wants=rspamd.service",
        "After=rspamd.service",
        "StartLimitIntervalSec=0",
        "ExecStartPre=-filter-bridge check --offline -f /etc/mail/bridge.toml",
        "Restart=always",
        "RestartSec=2",
    ]
