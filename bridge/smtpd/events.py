"""What smtpd says: one frozen dataclass an event, with the words of smtpd-filters(7).

Reports are one-way; requests want exactly one answer.  Text is str with surrogateescape
(any byte round-trips), ids and tokens are opaque.  Never parses: that is wire.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

Version = tuple[int, int]
NEWEST: Version = (0, 7)


@dataclass(frozen=True, slots=True)
class Event:
    """One line from smtpd.  session: its id; time: seconds since the epoch by smtpd's clock
    (reports and requests carry different clocks: not monotonic across lines)."""

    keyword: ClassVar[str] = ""
    session: str
    time: float = field(default=0.0, kw_only=True)
    direction: str = field(default="smtp-in", kw_only=True)
    version: Version = field(default=NEWEST, kw_only=True)


@dataclass(frozen=True, slots=True)
class Report(Event):
    """A one-way event."""


@dataclass(frozen=True, slots=True)
class Request(Event):
    """A `filter` line, which wants exactly one answer.  token is smtpd's opaque echo value:
    one for each phase and filter, the same for all sessions."""

    token: str = field(default="", kw_only=True)


# Reports ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkConnect(Report):
    """A session begins.  rdns: smtpd's name for the client, `<unknown>` or empty if none;
    fcrdns: smtpd's own check, pass, fail or error; src and dest: `127.0.0.1:25`,
    `[::1]:25` or `unix:/path` (dest is the listener's address, perhaps 0.0.0.0)."""

    keyword: ClassVar[str] = "link-connect"
    rdns: str
    fcrdns: str
    src: str
    dest: str


@dataclass(frozen=True, slots=True)
class LinkGreeting(Report):
    """The banner was queued.  hostname: the name smtpd gave itself (since 0.2)."""

    keyword: ClassVar[str] = "link-greeting"
    hostname: str


@dataclass(frozen=True, slots=True)
class LinkIdentify(Report):
    """HELO or EHLO was accepted; comes again after STARTTLS.  method: HELO or EHLO."""

    keyword: ClassVar[str] = "link-identify"
    method: str
    name: str


@dataclass(frozen=True, slots=True)
class LinkTls(Report):
    """TLS is up.  tls: `TLSv1.3:TLS_AES_256_GCM_SHA384:256` (version, cipher, bits)."""

    keyword: ClassVar[str] = "link-tls"
    tls: str


@dataclass(frozen=True, slots=True)
class LinkAuth(Report):
    """The client tried to authenticate.  result: pass, fail or error; user: vis(3)-encoded,
    may contain `|`."""

    keyword: ClassVar[str] = "link-auth"
    result: str
    user: str


@dataclass(frozen=True, slots=True)
class LinkDisconnect(Report):
    """The session ended; nothing of it comes after this."""

    keyword: ClassVar[str] = "link-disconnect"


@dataclass(frozen=True, slots=True)
class TxReset(Report):
    """The transaction is gone, committed or not."""

    keyword: ClassVar[str] = "tx-reset"
    msgid: str = ""


@dataclass(frozen=True, slots=True)
class TxBegin(Report):
    """MAIL FROM was accepted and a transaction begins."""

    keyword: ClassVar[str] = "tx-begin"
    msgid: str


@dataclass(frozen=True, slots=True)
class TxMail(Report):
    """The sender.  result: ok, permfail or tempfail; address: as the client wrote it between
    the angle brackets, empty for `<>`."""

    keyword: ClassVar[str] = "tx-mail"
    msgid: str
    result: str
    address: str


@dataclass(frozen=True, slots=True)
class TxRcpt(Report):
    """A recipient; comes for refused ones too.  Fields as in `TxMail`."""

    keyword: ClassVar[str] = "tx-rcpt"
    msgid: str
    result: str
    address: str


@dataclass(frozen=True, slots=True)
class TxEnvelope(Report):
    """An envelope that a recipient expanded to; before its `TxRcpt`."""

    keyword: ClassVar[str] = "tx-envelope"
    msgid: str
    evpid: str


@dataclass(frozen=True, slots=True)
class TxData(Report):
    """DATA was answered; comes again with permfail or tempfail when the commit fails.  The
    first data lines may arrive before it."""

    keyword: ClassVar[str] = "tx-data"
    msgid: str
    result: str


@dataclass(frozen=True, slots=True)
class TxCommit(Report):
    """The message was accepted.  size: smtpd's count, which takes its own Received twice."""

    keyword: ClassVar[str] = "tx-commit"
    msgid: str
    size: str


@dataclass(frozen=True, slots=True)
class TxRollback(Report):
    """The transaction was given up."""

    keyword: ClassVar[str] = "tx-rollback"
    msgid: str


@dataclass(frozen=True, slots=True)
class ProtocolClient(Report):
    """A command line of the client, at most 2,047 bytes; most secrets are masked, the user
    of AUTH LOGIN is not."""

    keyword: ClassVar[str] = "protocol-client"
    command: str


@dataclass(frozen=True, slots=True)
class ProtocolServer(Report):
    """One line of smtpd's reply."""

    keyword: ClassVar[str] = "protocol-server"
    response: str


@dataclass(frozen=True, slots=True)
class FilterReport(Report):
    """A filter's `report` decision.  kind: builtin or proc; name: the filter's in smtpd.conf."""

    keyword: ClassVar[str] = "filter-report"
    kind: str
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class FilterResponse(Report):
    """What the chain answered at a phase (`connected` for connect, `tls` for starttls);
    param: of a reject, disconnect or rewrite."""

    keyword: ClassVar[str] = "filter-response"
    phase: str
    response: str
    param: str = ""


@dataclass(frozen=True, slots=True)
class Timeout(Report):
    """The client was silent for the session timeout; rollback and disconnect follow."""

    keyword: ClassVar[str] = "timeout"


# Requests ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect(Request):
    """A client connects.  rdns as in `LinkConnect`; addr: `127.0.0.1`, `[::1]` or `local`."""

    keyword: ClassVar[str] = "connect"
    rdns: str
    addr: str


@dataclass(frozen=True, slots=True)
class Helo(Request):
    """HELO name."""

    keyword: ClassVar[str] = "helo"
    name: str


@dataclass(frozen=True, slots=True)
class Ehlo(Request):
    """EHLO name; comes before the `LinkIdentify` of the same command."""

    keyword: ClassVar[str] = "ehlo"
    name: str


@dataclass(frozen=True, slots=True)
class StartTls(Request):
    """STARTTLS."""

    keyword: ClassVar[str] = "starttls"


@dataclass(frozen=True, slots=True)
class Auth(Request):
    """AUTH.  argument: `PLAIN ...` with the password in clear: never log it, hence no repr."""

    keyword: ClassVar[str] = "auth"
    argument: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class MailFrom(Request):
    """MAIL FROM; address without `<>` and ESMTP parameters, empty for `<>`."""

    keyword: ClassVar[str] = "mail-from"
    address: str


@dataclass(frozen=True, slots=True)
class RcptTo(Request):
    """RCPT TO; address as in `MailFrom`."""

    keyword: ClassVar[str] = "rcpt-to"
    address: str


@dataclass(frozen=True, slots=True)
class Data(Request):
    """DATA."""

    keyword: ClassVar[str] = "data"


@dataclass(frozen=True, slots=True)
class DataLine(Request):
    """One line of the message, dot-stuffed, without its LF; `.` ends the message.  Only for
    lines that come alone: protocol.py takes runs of them at once."""

    keyword: ClassVar[str] = "data-line"
    line: str


@dataclass(frozen=True, slots=True)
class Rset(Request):
    """RSET."""

    keyword: ClassVar[str] = "rset"


@dataclass(frozen=True, slots=True)
class Quit(Request):
    """QUIT."""

    keyword: ClassVar[str] = "quit"


@dataclass(frozen=True, slots=True)
class Noop(Request):
    """NOOP."""

    keyword: ClassVar[str] = "noop"


@dataclass(frozen=True, slots=True)
class Help(Request):
    """HELP; can be registered, is never asked."""

    keyword: ClassVar[str] = "help"


@dataclass(frozen=True, slots=True)
class Wiz(Request):
    """WIZ; can be registered, is never asked."""

    keyword: ClassVar[str] = "wiz"


@dataclass(frozen=True, slots=True)
class Commit(Request):
    """The message is complete; the last word on it."""

    keyword: ClassVar[str] = "commit"


REPORTS: dict[str, type[Report]] = {
    event.keyword: event
    for event in (
        LinkConnect, LinkGreeting, LinkIdentify, LinkTls, LinkAuth, LinkDisconnect,
        TxReset, TxBegin, TxMail, TxRcpt, TxEnvelope, TxData, TxCommit, TxRollback,
        ProtocolClient, ProtocolServer, FilterReport, FilterResponse, Timeout,
    )
}  # fmt: skip
PHASES: dict[str, type[Request]] = {
    event.keyword: event
    for event in (
        Connect, Helo, Ehlo, StartTls, Auth, MailFrom, RcptTo, Data, DataLine,
        Rset, Quit, Noop, Help, Wiz, Commit,
    )
}  # fmt: skip
