"""To try a filter without smtpd: sessions against the model, in a few lines.

The filter runs as `Filter.run()` would run it, on the same core, and the model errs wherever
real smtpd would die, hang or misunderstand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bridge import log
from bridge.core import Core, Limits
from bridge.filter import Filter
from bridge.handlerloop import Asked
from bridge.smtpd.decisions import Decision
from bridge.smtpd.message import Splice
from bridge.testing.outcomes import Reply, SessionHung
from bridge.testing.process import Driver
from bridge.testing.smtpd import Smtpd

POLL = 0.05  # s between looks at what has come


@dataclass(frozen=True, slots=True)
class Decided:
    """One answer.  phase: as in smtpd-filters(7), or "message"; reason: as in the log."""

    session: str
    phase: str
    decision: Decision
    reason: str = ""


class FilterTester(Driver):
    r"""A model of smtpd whose filter is `app`.

    >>> from bridge import Filter, MailFrom, Reject, Session
    >>> app = Filter()
    >>> @app.on(MailFrom)
    ... async def sender(event: MailFrom, session: Session) -> Reject | None:
    ...     return Reject("5.7.1", "Not you") if event.address == "a@example.org" else None
    >>> with FilterTester(app) as smtpd:
    ...     client = smtpd.connect("192.0.2.1:4711")
    ...     print(client.ehlo("client.example").code)
    ...     print(client.mail("a@example.org"))
    ...     print(smtpd.send(b"Subject: hi\n\nhello\n", "b@example.org").code)
    250
    550 5.7.1 Not you
    250
    >>> [mail] = smtpd.delivered
    >>> mail.content.endswith(b"Subject: hi\n\nhello\n")
    True

    smtpd: the model, to be someone else than protocol 0.7 (`Smtpd("0.6")`); limits: deadlines
    and bounds; timeout: seconds that a reply may take.  `SmtpdDied`, `SmtpdWedged` and
    `SessionHung` are raised wherever real smtpd would have done that.

    connect(...), a client with helo, ehlo, mail, rcpt, data, ... that return a `Reply`;
    delivered, what was accepted; decisions, the filter's answers; log, its lines; faults,
    what was wrong but survived.
    """

    def __init__(
        self,
        app: Filter,
        smtpd: Smtpd | None = None,
        *,
        limits: Limits | None = None,
        timeout: float = 10.0,
    ) -> None:
        super().__init__(None, smtpd, timeout)
        self.log: list[str] = []
        self.decisions: list[Decided] = []
        self._core = _Noting(app, self._note, limits=limits)
        self._core.decided = self.decisions
        self._loop = threading.Thread(target=self._core.handlers.serve, daemon=True)

    def _note(self, event: str, **values: object) -> None:
        self.log.append(log.record(event, **values))

    def __enter__(self) -> Self:
        self._core.handlers.start()
        self._loop.start()
        self._core.start()
        self.run(lambda: self.smtpd.ready)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        handlers = self._core.handlers
        if error is None:
            self.settle()
        handlers.leave()
        self._loop.join(self.timeout)
        if not self._loop.is_alive():  # else a handler blocks it: nothing can be done
            handlers.stop(self.timeout)

    def send(
        self,
        message: bytes,
        sender: str = "sender@client.example",
        recipients: Sequence[str] = ("rcpt@example.org",),
        *,
        src: str = "192.0.2.1:4711",
        helo: str = "client.example",
    ) -> Reply:
        """One message in a session of its own; the reply that decided it: of several refused
        recipients the last one's."""
        client = self.connect(src)
        reply = client.greeting
        if reply.code == 220:
            reply = client.ehlo(helo)
        if reply.code == 250:
            reply = client.mail(sender)
        if reply.code == 250:
            replies = [client.rcpt(recipient) for recipient in recipients]
            accepted = any(each.code == 250 for each in replies)
            reply = client.data(message) if accepted else replies[-1]
        if not client.closed:
            client.quit()
        return reply

    def settle(self) -> None:
        """Wait until the handlers of all reports so far are done, at most `timeout` seconds."""
        self._core.handlers.settle(self.timeout)

    def _run(self, condition: Callable[[], bool], deadline: float) -> None:
        core = self._core
        while True:
            core.receive(data := self.smtpd.output())
            core.settle()
            while core.protocol.output:
                self.smtpd.receive(core.protocol.output.next())
                data = b"more"
            if data:
                continue
            if condition():
                return
            if not core.open or time.monotonic() >= deadline:
                raise SessionHung(self._hung())
            core.settle(POLL)


class _Noting(Core):
    """Writes down what it answers."""

    decided: list[Decided]

    def _answer(
        self, asked: Asked, decision: Decision, splices: Sequence[Splice], reason: str
    ) -> None:
        self.decided.append(Decided(asked.session.id, asked.slot.phase, decision, reason))
        super()._answer(asked, decision, splices, reason)
