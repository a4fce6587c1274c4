"""Does a pattern of ours rely on what Python 3.11 gets wrong before 3.11.5: a possessive
quantifier of a group (the interpreter's change gh-106052)?  Debian 12 has 3.11.2.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("bridge/**/*.py"), *ROOT.glob("contrib/**/*.py")]
POSSESSIVE_GROUP = re.compile(r"(?<!\\)\)(?:[*+?]|\{[0-9,]+\})\+|\(\?>")


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        (r"(?:ab|c)*+d", True),
        (r"(a){1,3}+", True),
        (r"(?>a)", True),
        (r"[^\n]*+(?:\n[^\n]*+)*", False),
        (r"\)*+", False),
    ],
)
def test_a_group_is_told_from_a_class(pattern: str, wrong: bool) -> None:
    assert bool(POSSESSIVE_GROUP.search(pattern)) == wrong


@pytest.mark.parametrize("source", SOURCES, ids=[str(each.relative_to(ROOT)) for each in SOURCES])
def test_no_pattern_does(source: Path) -> None:
    lines = source.read_text().splitlines()
    assert [line for line in lines if "re.compile" in line and POSSESSIVE_GROUP.search(line)] == []
    assert [line for line in lines if 'rb"' in line and POSSESSIVE_GROUP.search(line)] == []
