"""What a key is: one row with its kind, default and meaning, as a field of a dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from bridge.config.kinds import Kind

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A key.  default: as TOML gives it; profile: may a profile have a value of its own?"""

    kind: Kind[Any]
    default: object
    meaning: str
    profile: bool


def key(kind: Kind[T], default: object, meaning: str, *, profile: bool = False) -> T:
    """A field that is a key of the file."""
    row = Row(kind, default, meaning, profile)
    value = None if default is None else kind.read(default)
    return cast(T, field(default_factory=lambda: value, metadata={"row": row}))


def own(kind: Kind[T], default: object, meaning: str) -> T:
    """A key that a profile may have a value of its own for."""
    return key(kind, default, meaning, profile=True)


def rows(section: type) -> dict[str, Row]:
    """The keys of a section."""
    return {f.name: f.metadata["row"] for f in fields(section)}
