"""One session as the protocol sees it: its open request, and its message on the way.

State without rules: when what may be said is protocol.py's.  Memory may end at any step, so
what takes several is prepared first, then done by assignments, which can't fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.smtpd import events, wire
from bridge.smtpd.decisions import INTERNAL_ERROR, Decision, Refusal
from bridge.smtpd.items import MESSAGE, Slot
from bridge.smtpd.message import Message, Splice
from bridge.smtpd.session import Session


@dataclass(slots=True, eq=False)
class Live:
    """What the protocol knows of a session besides its facts."""

    session: Session
    counts: Counter[str]  # the protocol's
    slot: Slot | None = None  # the one open request
    message: Message | None = None  # being received, or waiting for its verdict
    line: events.DataLine | None = None  # version and token of its lines
    longest: int = wire.LONGEST_LINE
    streaming: bool = False  # lines go back as they come
    oversize: bool = False  # was reported as such
    verdict: Decision | None = None  # on the last message, for its commit
    withheld: bool = False  # the last message was not echoed

    def begin(self, line: events.DataLine) -> None:
        """A message begins."""
        message, longest = Message(), wire.longest_line(line.version)
        self.line, self.longest = line, longest
        self.streaming = self.oversize = self.withheld = False
        self.verdict = None
        self.message = message

    def withhold(self, decision: Refusal) -> None:
        """Refuse the message, and let go of it."""
        assert self.message is not None
        self.verdict, self.withheld = decision, True
        self.message.drop()

    def spoil(self, line: events.DataLine, *, final: bool) -> bytes:
        """Lines of the message were lost, perhaps the first or the last ones: it will be
        refused.  What is to be said at once."""
        if self.message is None:
            self.begin(line)
        self.withhold(INTERNAL_ERROR)
        if not final:
            return b""
        self.message = None
        return self.last_line

    def drop(self) -> None:
        """There is no message any more, and nobody waits for its verdict."""
        if self.message is not None:
            self.message.drop()
            self.message = None
        if self.slot is not None and self.slot.phase == MESSAGE:
            self.slot.open = False
            self.slot = None

    @property
    def prefix(self) -> bytes:
        """What stands before the content of each line that goes back."""
        assert self.line is not None
        return wire.dataline_prefix(self.line.version, self.line.session, self.line.token)

    @property
    def last_line(self) -> bytes:
        """The final dot."""
        return self.prefix + b".\n"

    def lines(self, content: bytes) -> bytes:
        """Whole lines as they go back."""
        prefix = self.prefix
        return prefix + content[:-1].replace(b"\n", b"\n" + prefix) + b"\n"

    def lines_back(
        self, message: Message, splices: Sequence[Splice]
    ) -> Iterator[bytes | memoryview]:
        """The whole message; if its store fails on the way, or memory, it ends there, on a
        line's end whatever happened, and is refused at commit."""
        line_start, torn = True, b"\n"
        try:
            prefix = self.prefix
            between = b"\n" + prefix
            for piece in filter(None, message.spliced(splices)):
                lines: bytes | memoryview = piece.replace(b"\n", between)
                if whole := piece.endswith(b"\n"):
                    lines = memoryview(lines)[: -len(prefix)]
                tail = (torn + piece[-2:])[-2:]
                if line_start:
                    yield prefix  # and nothing can fail before its line
                line_start, torn = whole, tail
                yield lines
        except Exception:  # noqa: BLE001 what follows would be taken for more of this line
            self.verdict, self.withheld = INTERNAL_ERROR, True
            if not line_start:  # what is torn behind its stuffing would end the message
                yield b".\n" if torn == b"\n." else b"\n"
            self.counts["store-failed"] += 1
        finally:
            message.drop()
