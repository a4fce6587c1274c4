"""What README.md says of configuration and code is true: its examples load and run."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from bridge import config
from bridge.config import schema
from bridge.config.rows import rows
from bridge.smtpd.session import Session

ROOT = Path(__file__).parents[2]
TEXTS = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
README = TEXTS["README.md"]
KEYS = {f"{section}.{name}" for section, table in schema.SECTIONS.items() for name in rows(table)}


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"(?ms)^```{re.escape(language)}\n(.*?)^```$", text)


@pytest.mark.parametrize("text", blocks("toml"), ids=["the keys", "a profile"])
def test_configuration_is_good(text: str) -> None:
    assert config.parse(text, strict=True).warnings == ()


def test_the_profile_serves_submission() -> None:
    [_, text] = blocks("toml")
    parsed = config.parse(text)
    for port, expected in (("25", True), ("587", False), ("465", False)):
        session = Session("1", dest=f"192.0.2.1:{port}", src="192.0.2.9:4711")
        assert parsed.profile_for(session).fcrdns.enabled is expected


def test_the_two_examples_are_one_good_file() -> None:
    assert config.parse("\n".join(blocks("toml")), strict=True).warnings == ()


def test_the_filter_says_what_its_comment_says() -> None:
    [code] = blocks("python")
    expected = re.findall(r"(?m)^print\(.*?\)  # (.*)$", code)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert expected
    assert printed.getvalue().splitlines() == expected


def test_each_key_that_is_named_exists() -> None:
    sections = "|".join(re.escape(section) for section in schema.SECTIONS if section)
    named = set(re.findall(rf"`((?:{sections})\.[a-z_]+)`", README))
    assert len(named) > 10
    assert named - KEYS == set()


@pytest.mark.parametrize("name", TEXTS)
def test_each_file_that_is_named_exists(name: str) -> None:
    text = TEXTS[name]
    linked = set(re.findall(r"\]\((?!https?:)([^)#]+)\)", text))
    quoted = set(re.findall(r"(?<![\w/.-])((?:bridge|contrib|tests|\.ci)/[\w./-]*\w)", text))
    assert len(linked | quoted) > 5
    assert [path for path in sorted(linked | quoted) if not (ROOT / path).exists()] == []


def test_each_log_line_that_is_named_is_written() -> None:
    """The first word of a line stands in the code, or is made from a service's name."""
    table = README.partition("## The log")[2].partition("\n## ")[0]
    words = [
        word
        for row in re.findall(r"(?m)^\| (`.*?) \|", table)
        for word in re.findall("`(.+?)`", row)
    ]
    code = "".join(path.read_text() for path in (ROOT / "bridge").rglob("*.py"))
    made = {f"{service}-{state}" for service in ("rspamd", "dkim") for state in ("down", "up")}
    assert len(words) > 10
    assert [word for word in words if f'"{word}"' not in code and word not in made] == []
