"""What `import bridge` gives, and what it costs: the shim is to stay small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bridge
from bridge.smtpd import events

HEAVY = ("asyncio", "httpx", "dns", "ssl", "typing", "bridge.smtpd", "bridge.filter")


def loaded_after(code: str, names: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of the modules a fresh Python has after running that code."""
    check = f"{code}; import sys; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_importing_bridge_loads_nothing() -> None:
    before = loaded_after("pass")  # what Python itself or its site loads
    assert loaded_after("import bridge") == before


def test_a_value_does_not_load_the_event_loop() -> None:
    before = loaded_after("pass", ("asyncio", "httpx", "dns"))
    assert (
        loaded_after("from bridge import Reject, MailFrom", ("asyncio", "httpx", "dns")) == before
    )


@pytest.mark.parametrize("name", bridge.__all__)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(bridge, name)
    assert value.__name__ == name
    assert value.__doc__


def test_all_events_of_smtpd_are_public() -> None:
    words = events.REPORTS | events.PHASES
    assert {event.__name__ for event in words.values()} <= set(bridge.__all__)


def test_what_is_no_public_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'import_modul'"):
        getattr(bridge, "import_modul")  # noqa: B009 not for a type checker to see
    assert set(bridge.__all__) <= set(dir(bridge))


def test_every_place_on_the_map_exists() -> None:
    """A word of the docstring that looks like a file or a directory of ours is one."""
    house = Path(bridge.__file__).parent
    places = re.findall(r"(?<![\w/])[a-z_]+(?:/[a-z_]+)*(?:/|\.py)(?![\w])", bridge.__doc__ or "")
    assert len(places) > 25
    missing = [place for place in places if not (house / place).exists()]
    assert missing == []


def test_every_file_of_the_top_is_on_the_map() -> None:
    house = Path(bridge.__file__).parent
    names = [path.name for path in house.glob("*.py") if not path.name.startswith("__")]
    names += [f"{path.parent.name}/" for path in house.glob("*/__init__.py")]
    assert len(names) > 25
    assert [name for name in sorted(names) if name not in (bridge.__doc__ or "")] == []
