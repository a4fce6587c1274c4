"""What do edits make of a message, done the naive way? The judge of bridge/edits.py.

The message is a list of fields that is remade whole for each edit. Also what Hypothesis makes
messages and edits of. Knows nothing of splices, nor of folding.
"""

from __future__ import annotations

import itertools
import re

from hypothesis import strategies as st

from bridge.edits import Add, Edit, Insert, Remove, Replace, ReplaceBody

names = st.sampled_from(["A", "a", "B", "X-Spam"])
values = st.sampled_from(["1", "two words", "folded\n\tvalue", ""])
numbers = st.integers(-4, 5)
header_edits = st.one_of(
    st.builds(Add, names, values),
    st.builds(Insert, numbers, names, values),
    st.builds(Remove, names, numbers | st.tuples(numbers, numbers), st.integers(0, 2)),
    st.builds(Replace, names, values, st.integers(1, 3)),
    st.builds(ReplaceBody, st.sampled_from([b"", b"x", b".\r\n..x\r\n", b"\n\nA: 1\n"])),
)
messages = st.lists(
    st.sampled_from(
        b"A: 1|a : 2|B:|\tfold| |none|..x: 1|X-Spam: y\r||..|\r".split(b"|")
    ),
    max_size=12,
).map(lambda lines: b"".join(x + b"\n" for x in lines))  # fmt: skip


def model(message: bytes, edits: list[Edit]) -> bytes:
    """What sequential edits make of a message, one line after the other."""
    lines = message.split(b"\n")[:-1]
    header = list(itertools.takewhile(lambda x: x, lines))
    rest: list[bytes] | None = lines[len(header) + 1 :] if len(header) < len(lines) else None
    fields: list[tuple[str, list[bytes]]] = []
    for line in header:
        if line[:1] in (b" ", b"\t"):
            if fields:
                fields[-1][1].append(line)
            else:
                fields.append(("", [line]))
        else:
            match = re.match(rb"([!-9;-~]+)[ \t]*:", line)
            fields.append((match[1].removeprefix(b".").decode().lower() if match else "", [line]))
    pinned = 0
    if fields and fields[0][1][0][:1] in (b" ", b"\t"):
        pinned = next((i for i, x in enumerate(fields) if x[0]), len(fields))

    def named(name: str) -> list[int]:
        return [i for i, x in enumerate(fields) if x[0] == name.lower()]

    def made(name: str, value: str) -> tuple[str, list[bytes]]:
        return name.lower(), f"{name}:{' ' if value else ''}{value}".encode().split(b"\n")

    for edit in edits:
        match edit:
            case Add(name, value):
                fields.append(made(name, value))
            case Insert(position, name, value):
                real = [i for i, x in enumerate(fields) if x[0]]
                position = position if position >= 0 else max(0, len(real) + position)
                if position == 0:
                    fields.insert(pinned, made(name, value))
                elif position >= len(real):
                    fields.append(made(name, value))
                else:
                    fields.insert(real[position - 1] + 1, made(name, value))
            case Remove(name, nth, spare):
                at = named(name)
                for n in sorted(
                    {
                        i
                        for n in (nth if isinstance(nth, tuple) else (nth,))
                        for place, i in enumerate(at, 1)
                        if (n in (0, place) or n == place - len(at) - 1) and place > spare
                    },
                    reverse=True,
                ):
                    del fields[n]
            case Replace(name, value, nth):
                at = named(name)
                if nth > len(at):
                    fields.append(made(name, value))
                else:
                    fields[at[nth - 1]] = made(name, value)
            case ReplaceBody(body):
                text = body.replace(b"\r\n", b"\n").removesuffix(b"\n")
                rest = [b"." + x if x[:1] == b"." else x for x in text.split(b"\n")] if body else []
            case _:
                raise AssertionError(edit)
    out = [x for _, lines in fields for x in lines] + ([b"", *rest] if rest is not None else [])
    return b"".join(x + b"\n" for x in out)
