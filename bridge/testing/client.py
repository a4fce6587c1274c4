"""What a client does in a session: a script of steps, and the same with waiting.

`Script` queues: each step begins when the one before it is answered, as a client without
pipelining does it.  `Client` waits for each reply.  Neither knows what a filter is.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.testing.grammar import octets
from bridge.testing.outcomes import NO_REPLY, Outcome, Reply
from bridge.testing.session import Session


@dataclass(slots=True)
class Step:
    """action: write, greeting (which is only awaited), handshake, abort, timeout.  needs: the
    code that the reply before must have had; else the step is skipped and shares that reply."""

    action: str
    outcome: Outcome
    data: bytes = b""
    needs: int = 0
    answered: bool = True  # a reply will come


@dataclass(slots=True, eq=False)
class Script:
    """One session's client.  Methods return an `Outcome` at once."""

    session: Session | None = None  # until smtpd has taken the connection
    greeting: Outcome = field(default_factory=Outcome)
    replies: list[Reply] = field(default_factory=list)  # all that were seen, in order
    closed: bool = False
    _steps: deque[Step] = field(default_factory=deque)
    _current: Step | None = None
    _lines: list[str] = field(default_factory=list)
    _gone: bool = False

    def __post_init__(self) -> None:
        self._current = Step("greeting", self.greeting)

    # What a client can do -------------------------------------------------------------------

    def command(self, line: str | bytes) -> Outcome:
        """Any command line, without its CRLF."""
        return self._write(octets(line) + b"\r\n")

    def send(self, data: bytes) -> Outcome:
        """Raw bytes, in one write: pipelining, overlong lines.  Answered by one reply."""
        return self._write(data)

    def helo(self, name: str) -> Outcome:
        return self.command(f"HELO {name}")

    def ehlo(self, name: str) -> Outcome:
        return self.command(f"EHLO {name}")

    def starttls(self) -> Outcome:
        """STARTTLS and, if it is accepted, the handshake; then comes another EHLO."""
        outcome = self.command("STARTTLS")
        self._steps.append(Step("handshake", Outcome(), needs=220, answered=False))
        return outcome

    def auth(self, user: str, password: str, method: str = "PLAIN") -> Outcome:
        """method: PLAIN with an initial response, or LOGIN in three steps."""
        if method == "PLAIN":
            return self.command(f"AUTH PLAIN {_base64(f'{chr(0)}{user}{chr(0)}{password}')}")
        self.command(f"AUTH {method}")
        self._write(octets(_base64(user)) + b"\r\n", needs=334)
        return self._write(octets(_base64(password)) + b"\r\n", needs=334)

    def mail(self, sender: str, options: str = "") -> Outcome:
        return self.command(f"MAIL FROM:<{sender}> {options}".rstrip())

    def rcpt(self, recipient: str, options: str = "") -> Outcome:
        return self.command(f"RCPT TO:<{recipient}> {options}".rstrip())

    def data(self, content: bytes, *, end: bool = True) -> Outcome:
        """DATA and, if it is accepted, the message: lines with LF or CRLF, stuffed here.  With
        end=False the dot is left out: more can follow with `body`, or an `abort`."""
        outcome = self.command("DATA")
        return self._body(content, end, 354, outcome)

    def body(self, content: bytes = b"", *, end: bool = True) -> Outcome:
        """More of the message after `data(..., end=False)`."""
        return self._body(content, end, 0, Outcome(NO_REPLY))

    def rset(self) -> Outcome:
        return self.command("RSET")

    def noop(self) -> Outcome:
        return self.command("NOOP")

    def quit(self) -> Outcome:
        return self.command("QUIT")

    def abort(self) -> Outcome:
        """Close the connection without a word, also while a reply is awaited.  smtpd notices
        only when it reads from the client again."""
        return self._add(Step("abort", Outcome(), answered=False))

    def timeout(self) -> Outcome:
        """Be silent until smtpd's session timeout (300 s, not waited for)."""
        return self._add(Step("timeout", Outcome(), answered=False))

    @property
    def idle(self) -> bool:
        """Nothing queued, nothing awaited."""
        return self._current is None and not self._steps

    # The machinery --------------------------------------------------------------------------

    def _add(self, step: Step) -> Outcome:
        if self.closed or self._gone:
            step.outcome.reply = NO_REPLY
        else:
            self._steps.append(step)
        return step.outcome

    def _write(self, data: bytes, needs: int = 0) -> Outcome:
        return self._add(Step("write", Outcome(), data, needs))

    def _body(self, content: bytes, end: bool, needs: int, before: Outcome) -> Outcome:
        data = stuffed(content) + (b".\r\n" if end else b"")
        if end:
            return self._write(data, needs)
        self._add(Step("write", Outcome(), data, needs, answered=False))
        return before

    def ready(self) -> bool:
        """Whether `advance` can do something now."""
        session = self.session
        if session is None or self.closed:
            return False
        if self._gone:
            return session.reading or session.state == "tls"
        head = self._steps[0] if self._steps else None
        if self._current:
            silent = head is not None and head.action == "timeout" and session.reading
            leaves = head is not None and head.action == "abort"
            return self._waits_for_tls(session) or silent or leaves
        if head is None:
            return False
        if head.action == "abort" or self._skipped(head):
            return True
        return session.state == "tls" if head.action == "handshake" else session.reading

    def _waits_for_tls(self, session: Session) -> bool:
        """A listener with TLS at once: there is no banner before the handshake."""
        step = self._current
        return bool(step and step.action == "greeting" and session.state == "tls")

    def advance(self) -> None:
        """Do the next step."""
        session = self.session
        assert session
        if self._gone:
            session.disconnect()
            return
        if self._waits_for_tls(session):
            session.handshake()
            return
        step = self._steps.popleft()
        if self._skipped(step):
            step.outcome.reply = self.replies[-1]
            return
        if step.action == "abort":
            self._gone = True
            self._finish()
        elif step.answered:
            self._current = step
        if step.action == "write":
            session.input(step.data)
        elif step.action == "handshake":
            session.handshake()
        elif step.action == "timeout":
            session.timeout()
        if not step.answered:
            step.outcome.reply = NO_REPLY

    def _skipped(self, step: Step) -> bool:
        return bool(step.needs and self.replies and self.replies[-1].code != step.needs)

    def on_line(self, line: str) -> None:
        """A line of a reply."""
        self._lines.append(line)
        if line[3:4] == "-":
            return
        reply, self._lines = Reply(tuple(self._lines)), []
        if self._gone:
            return
        self.replies.append(reply)
        if self._current:
            self._current.outcome.reply, self._current = reply, None

    def on_close(self) -> None:
        """The connection ended."""
        self.closed = True
        self._finish()

    def _finish(self) -> None:
        for step in (self._current, *self._steps):
            if step and step.outcome.reply is None:
                step.outcome.reply = NO_REPLY
        self._current = None
        self._steps.clear()


class Client:
    """As `Script`, but each method waits and returns the `Reply`.  What is not to be waited
    for goes through `later`."""

    def __init__(self, later: Script, wait: Callable[[Outcome], Reply]) -> None:
        self.later = later
        self._wait = wait

    @property
    def session(self) -> Session | None:
        return self.later.session

    @property
    def greeting(self) -> Reply:
        return self.later.greeting.reply or NO_REPLY

    @property
    def replies(self) -> list[Reply]:
        return self.later.replies

    @property
    def closed(self) -> bool:
        """Whether smtpd has closed the connection, or noticed that the client has."""
        return self.later.closed

    def command(self, line: str | bytes) -> Reply:
        return self._wait(self.later.command(line))

    def send(self, data: bytes) -> Reply:
        return self._wait(self.later.send(data))

    def helo(self, name: str) -> Reply:
        return self._wait(self.later.helo(name))

    def ehlo(self, name: str) -> Reply:
        return self._wait(self.later.ehlo(name))

    def starttls(self) -> Reply:
        return self._wait(self.later.starttls())

    def auth(self, user: str, password: str, method: str = "PLAIN") -> Reply:
        return self._wait(self.later.auth(user, password, method))

    def mail(self, sender: str, options: str = "") -> Reply:
        return self._wait(self.later.mail(sender, options))

    def rcpt(self, recipient: str, options: str = "") -> Reply:
        return self._wait(self.later.rcpt(recipient, options))

    def data(self, content: bytes, *, end: bool = True) -> Reply:
        return self._wait(self.later.data(content, end=end))

    def data_later(self, content: bytes, *, end: bool = True) -> Outcome:
        return self.later.data(content, end=end)

    def body(self, content: bytes = b"", *, end: bool = True) -> Reply:
        return self._wait(self.later.body(content, end=end))

    def rset(self) -> Reply:
        return self._wait(self.later.rset())

    def noop(self) -> Reply:
        return self._wait(self.later.noop())

    def quit(self) -> Reply:
        return self._wait(self.later.quit())

    def abort(self) -> None:
        self._wait(self.later.abort())

    def timeout(self) -> None:
        self._wait(self.later.timeout())


def stuffed(content: bytes) -> bytes:
    """A message as a client writes it: CRLF, and a dot before each line that begins with one
    (RFC 5321, 4.5.2)."""
    if not content:
        return b""
    lines = content.removesuffix(b"\n").split(b"\n")
    return b"".join(
        (b"." if line.startswith(b".") else b"")
        + line
        + (b"\n" if line.endswith(b"\r") else b"\r\n")
        for line in lines
    )


def _base64(text: str) -> str:
    return base64.b64encode(octets(text)).decode()
