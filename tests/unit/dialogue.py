"""To speak smtpd's lines to a Protocol by hand, and to see what goes back."""

from __future__ import annotations

from bridge.smtpd import events
from bridge.smtpd.items import Item, Registration, Slot
from bridge.smtpd.message import Message
from bridge.smtpd.protocol import Protocol

S, OTHER = "7641df9771b4ed00", "0123456789abcdef"  # sessions
TOKENS = {phase: f"{number:016x}" for number, phase in enumerate(events.PHASES, 0xA0)}
EVERY_PHASE = Registration(phases=frozenset(events.PHASES) - {"help", "wiz"})


class Dialogue:
    """One Protocol, registered for every phase or not started, and the lines that pass."""

    def __init__(
        self,
        version: str = "0.7",
        registration: Registration | None = EVERY_PHASE,
        *,
        max_message_size: int = 64 << 20,
        break_long_lines: bool = True,
        session_in_reply: bool = False,
    ) -> None:
        self.version = version
        self.protocol = Protocol(
            max_message_size=max_message_size,
            break_long_lines=break_long_lines,
            session_in_reply=session_in_reply,
        )
        if registration:
            self.protocol.start(registration)
            self.output()

    def feed(self, *lines: bytes) -> list[Item]:
        """All lines in one chunk."""
        return self.protocol.receive(b"".join(line + b"\n" for line in lines))

    def report(self, event: str, *fields: str, session: str = S) -> bytes:
        more = "".join(f"|{field}" for field in fields)
        return f"report|{self.version}|1700000000.250000|smtp-in|{event}|{session}{more}".encode()

    def request(self, phase: str, argument: str = "", session: str = S) -> bytes:
        head = f"filter|{self.version}|1700000000.250000|smtp-in|{phase}|{session}|{TOKENS[phase]}"
        return f"{head}|{argument}".encode()

    def lines(self, content: bytes, session: str = S) -> list[bytes]:
        """Requests for these lines of a message."""
        head = self.request("data-line", session=session)
        return [head + line for line in content.split(b"\n")[:-1]]

    def ask(self, phase: str, argument: str = "", session: str = S) -> Slot:
        """A request's slot."""
        (slot,) = self.feed(self.request(phase, argument, session))
        assert isinstance(slot, Slot)
        return slot

    def message(self, content: bytes, session: str = S) -> Slot:
        """The slot of a message, of which only that comes."""
        (slot,) = self.feed(*self.lines(content + b".\n", session))
        assert isinstance(slot, Slot)
        return slot

    def output(self) -> bytes:
        """What goes to smtpd now."""
        chunks = []
        while self.protocol.output:
            chunks.append(self.protocol.output.next())
        return b"".join(chunks)

    def result(self, phase: str, said: str, session: str = S) -> bytes:
        """The answer to a request, as it is spelled since 0.5."""
        return f"filter-result|{session}|{TOKENS[phase]}|{said}\n".encode()

    def echo(self, content: bytes, session: str = S) -> bytes:
        """A message on its way back, as it is spelled since 0.5."""
        prefix = f"filter-dataline|{session}|{TOKENS['data-line']}|".encode()
        return b"".join(prefix + line + b"\n" for line in content.split(b"\n")[:-1])


class FailingStore:
    """A store that can be read up to some byte, as a disk that fails."""

    def __init__(self, data: bytes, fail_at: int) -> None:
        self.data, self.fail_at = data, fail_at
        self.closed = False

    def read(self, offset: int, length: int) -> bytes:
        if offset >= self.fail_at:
            raise OSError("Input/output error")
        return self.data[offset : min(offset + length, self.fail_at)]

    def close(self) -> None:
        self.closed = True


def take_runs(message: Message) -> list[bytes]:
    """Take what is in memory, for a store of the test's own."""
    taken: list[bytes] = []
    before = message.stored
    message.move(taken.extend)
    message.stored = before
    return taken
