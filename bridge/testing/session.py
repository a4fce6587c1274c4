"""One SMTP session as smtpd's dispatcher has it: commands, transaction, message, replies.

Follows smtp_session.c.  It talks to the model of the lookup process (smtpd.py) in messages
and in lines of the body, and to the client (client.py) in replies; it never sees the filter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge.testing import grammar
from bridge.testing.body import Peer, Transaction, received
from bridge.testing.commands import CHECKS, PHASE_OF, PROCEEDS, WITH_ARGUMENT, auth_step
from bridge.testing.dialect import RESPONSE_PHASE, ordered
from bridge.testing.grammar import octets, text

if TYPE_CHECKING:
    from bridge.testing.client import Script
    from bridge.testing.smtpd import Smtpd

TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384:256"


class Session:
    """Public for tests: id, state ("connected", "helo", "body", "closed", ...), peer."""

    def __init__(self, smtpd: Smtpd, ident: str, peer: Peer, client: Script) -> None:
        self.smtpd = smtpd
        self.id = ident
        self.peer = peer
        self.client = client
        self.server = smtpd.server
        self.dialect = smtpd.dialect
        self.state = "new"
        self.reading = False  # smtpd reads from the client
        self.waiting = False  # smtpd waits for the filter's decision (its wait_filters tree)
        self.buffer = bytearray()
        self.replied = False  # something was sent since the last flush
        self.greeted = self.secure = self.junk = self.extended = False
        self.authenticated = peer.local
        self.helo = self.username = ""
        self.last_command = self.command_line = ""
        self.phase = ""
        self.argument: str | None = None
        self.tx: Transaction | None = None

    # From the client ------------------------------------------------------------------------

    def start(self) -> None:
        self.state = "connected"
        peer = self.peer
        self.report("link-connect", peer.rdns, peer.fcrdns, peer.src, peer.dest)
        self._ask("connect", peer.addr)

    def input(self, data: bytes) -> None:
        self.buffer += data
        while self.reading and self.buffer and self._read_line():
            pass

    def handshake(self) -> None:
        """The client and smtpd have negotiated TLS."""
        self.report("link-tls", TLS)
        self.secure, self.helo, self.state = True, "", "helo"
        if self.peer.smtps:
            self.banner()
        else:
            self.reading = True

    def disconnect(self) -> None:
        self._free()

    def timeout(self) -> None:
        self.report("timeout")
        self._free()

    def _read_line(self) -> bool:
        end = self.buffer.find(b"\n")
        if end >= grammar.SMTP_LINE_MAX or (end < 0 and len(self.buffer) >= grammar.SMTP_LINE_MAX):
            self._bad_input(grammar.LINE_TOO_LONG)
            return False
        if end < 0:
            return False
        line = bytes(self.buffer[:end]).removesuffix(b"\r").partition(b"\0")[0]
        del self.buffer[: end + 1]
        last = False
        if self.state == "body" and self.tx:
            last = line == b"."
            self._body_line(self.tx, line)
            if not last:
                return True
        if self.buffer:
            self._bad_input(grammar.PIPELINING)
            return False
        self.reading = False
        if not last:
            if len(line) >= grammar.LINE_MAX:
                self._bad_input(grammar.COMMAND_TOO_LONG)
                return False
            self._command(text(line))
            self._flush()
        return False

    def _body_line(self, tx: Transaction, line: bytes) -> None:
        tx.ended = line == b"."
        if not tx.ended:
            tx.datain += len(line) + 1
            if tx.datain > self.server.max_message_size:
                tx.error = grammar.TOO_BIG
            if tx.error:
                return
        self.smtpd.body_from_client(self, line)

    def _bad_input(self, reply: str) -> None:
        self.reply(reply)
        self.state = "quit"
        self._flush()

    # Commands -------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        self.command_line = line
        if self.state.startswith("auth-"):
            self.report("protocol-client", "********")
            auth_step(self, line)
            return
        masked = self.state == "helo" and line[:11].upper() == "AUTH PLAIN "
        self.report("protocol-client", "AUTH PLAIN ********" if masked else line)
        head = line.upper()
        separator = ":" if head.startswith(("MAIL FROM:", "RCPT TO:")) else " "
        verb, present, rest = line.partition(separator)
        args = rest.lstrip(" \t\n\v\f\r") if present else None
        self.last_command = verb = verb.upper()
        if verb in ("HELP", "WIZ"):  # never asked
            if args is not None:
                self.reply(grammar.NO_ARGUMENTS)
                return
            for reply in grammar.HELP if verb == "HELP" else (grammar.WIZ,):
                self.reply(reply)
        elif verb not in PHASE_OF:
            self.reply(grammar.UNRECOGNIZED)
        elif refusal := CHECKS[PHASE_OF[verb]](self, args):
            self.reply(refusal)
        else:
            self._ask(PHASE_OF[verb], args if PHASE_OF[verb] in WITH_ARGUMENT else None)

    # The filter's decision ------------------------------------------------------------------

    def _ask(self, phase: str, argument: str | None) -> None:
        self.phase, self.argument, self.waiting = phase, argument, True
        self.smtpd.ask(self, phase, argument or "")

    def decided(self, decision: str, parameter: bytes) -> None:
        """The chain's answer.  The caller has checked that one was awaited."""
        self.waiting = False
        if decision in ("reject", "disconnect"):
            if not grammar.valid_response(parameter):
                self.smtpd.fault(f"{decision}: not a reply that smtpd passes on", self, parameter)
                parameter = grammar.INTERNAL.encode()
            if parameter.startswith(b"421"):
                decision = "disconnect"
            shown = text(parameter)
            self._response(decision, shown)
            self.reply(shown)
            if decision == "disconnect":
                self.state = "quit"
            elif self.phase == "commit":
                self.rollback()
                self.state = "helo"
        else:
            if decision == "junk":
                if self.tx:
                    self.tx.junk = True
                else:
                    self.junk = True
            changed = decision in ("rewrite", "report")
            argument = text(parameter) if changed else self.argument
            self._response(decision, argument if changed else None)
            refusal = ""
            if decision == "rewrite" and self.phase != "connect":
                refusal = CHECKS[self.phase](self, argument)
            if refusal:
                self.smtpd.fault(f"rewrite at {self.phase} is refused: {refusal}", self, parameter)
                self.reply(refusal)
            else:
                PROCEEDS[self.phase](self, argument or "")
        self._flush()

    def _response(self, decision: str, parameter: str | None) -> None:
        phase = RESPONSE_PHASE.get(self.phase, self.phase)
        more = () if parameter is None else (parameter,)
        self.report("filter-response", phase, decision, *more)

    def banner(self) -> None:
        self.reply(f"220 {self.server.hostname} ESMTP OpenSMTPD")
        self.greeted = True
        self.report("link-greeting", self.server.hostname)
        self._flush()

    # The message ----------------------------------------------------------------------------

    def begin_message(self) -> None:
        """The lookup process has made the channel for the body."""
        tx, server = self.tx, self.server
        if not tx:
            return
        self.reply(grammar.ENTER_MAIL)
        tx.filtered, self.state = True, "body"
        protocol = ("E" if self.extended else "") + "SMTP" + ("S" if self.secure else "")
        protocol += "A" if self.authenticated else ""
        tls = TLS if self.secure else ""
        now = self.smtpd.clock()
        lines = received(tx, self.peer, self.helo, server.hostname, protocol, tls, now)
        for line in [b"X-Spam: Yes"] * (self.junk or tx.junk) + lines:
            tx.size += len(line) + 1
            self.smtpd.body_from_client(self, line)
        self._flush()

    def line_from_filter(self, line: bytes) -> bool:
        """One line of the filtered body; true if it was the final dot."""
        if self.tx is None or not self.tx.filtered:
            return False
        if line != b".":
            self.tx.take(line)
            return False
        if not self.tx.ended:
            self.smtpd.fault("the dot was echoed before the client had sent it", self)
        self.report("protocol-client", ".")
        self._ask("commit", None)
        return True

    def rollback(self) -> None:
        if self.tx and self.tx.msgid:
            self.report("tx-rollback", self.tx.msgid)
            self.report("tx-reset", self.tx.msgid)
            if self.tx.filtered:
                self.smtpd.data_end(self)
        self.tx = None

    # Replies and reports --------------------------------------------------------------------

    def reply(self, reply: str) -> None:
        reply = text(octets(reply)[: grammar.REPLY_MAX])
        self.replied = True
        about = self._about(reply)
        if self.dialect.tx_before_reply:
            for event in about:
                self.report(*event)
        self.report("protocol-server", reply)
        if not self.dialect.tx_before_reply:
            for event in about:
                self.report(*event)
        self.client.on_line(reply)

    def _about(self, reply: str) -> list[tuple[str, ...]]:
        """The reports on the transaction that a reply entails (smtp_reply())."""
        tx, command, kind = self.tx, self.last_command, reply[:1]
        if not tx or kind not in "2345":
            return []
        msgid = tx.msgid or "00000000"
        result = {"4": "tempfail", "5": "permfail"}.get(kind, "ok")
        argument = self.command_line.partition(":")[2]
        if command == "MAIL FROM" and kind != "3":
            begin = [("tx-begin", msgid)] if kind == "2" else []
            return begin + self._address_report("tx-mail", msgid, argument, result)
        if command == "RCPT TO" and kind != "3":
            return self._address_report("tx-rcpt", msgid, argument, result)
        if command == "DATA" and kind != "2" and tx.recipients:
            return [("tx-data", msgid, result)]
        return []

    def _address_report(
        self, event: str, msgid: str, argument: str, result: str
    ) -> list[tuple[str, ...]]:
        shown = grammar.between_brackets(argument)
        if shown is None:
            return []
        if self.dialect.angle_brackets:
            shown = argument.lstrip()
        fields = ordered(self.dialect.address_fields, msgid=msgid, result=result, address=shown)
        return [(event, *fields)]

    def report(self, event: str, *fields: str) -> None:
        self.smtpd.report(self, event, fields)

    def _flush(self) -> None:
        """What was said has reached the client: smtpd goes on to what the state asks for."""
        if not self.replied:
            return
        self.replied = False
        if self.state == "quit":
            self._free()
        elif self.state != "tls":
            self.reading = True
            self.input(b"")

    def _free(self) -> None:
        if self.state == "closed":
            return
        self.reading = False
        self.rollback()
        self.report("link-disconnect")
        self.smtpd.session_end(self)
        self.state = "closed"
        self.client.on_close()


@dataclass(slots=True)
class Chain:
    """What the lookup process knows of a session (struct filter_session in lka_filter.c)."""

    session: Session
    phase: str = "connect"
    parameter: str = ""
    data_open: bool = False  # the channel for the body exists
    to_filter: deque[bytes] = field(default_factory=deque)  # body lines of the client
    from_filter: deque[bytes] = field(default_factory=deque)  # body lines that came back
    lines_written: bool = False  # a body line of this message is on its way to the filter
    lines_taken: bool = False  # ... and the filter could have read it
    dotted: bool = False  # the dot came back
