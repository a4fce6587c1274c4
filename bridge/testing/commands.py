"""What smtpd checks of a command and what it does once the filter lets it: one function each.

Follows smtp_session.c: `check_*` says the reply that refuses the arguments, "" if none;
`proceed_*` does the work.  Neither asks the filter: that is session.py, between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bridge.testing import grammar
from bridge.testing.body import Transaction, late_fields
from bridge.testing.dialect import ordered
from bridge.testing.grammar import Address, octets, text
from bridge.testing.outcomes import Delivery

if TYPE_CHECKING:
    from bridge.testing.session import Session


def check_helo(s: Session, args: str | None) -> str:
    if not s.greeted:
        return grammar.BAD_SEQUENCE
    if s.helo:
        return grammar.IDENTIFIED
    if args is None:
        return grammar.NEEDS_DOMAIN.format(s.last_command)
    return "" if grammar.valid_domain(args) else grammar.BAD_DOMAIN


def check_starttls(s: Session, args: str | None) -> str:
    if not s.helo or s.tx:
        return grammar.BAD_SEQUENCE
    if not s.server.starttls or s.peer.local:
        return grammar.NOT_SUPPORTED
    if s.secure:
        return grammar.SECURED
    return grammar.NO_PARAMETERS if args is not None else ""


def check_auth(s: Session, args: str | None) -> str:
    if not s.helo or s.tx:
        return grammar.BAD_SEQUENCE
    if s.authenticated:
        return grammar.AUTHENTICATED
    if not offers_auth(s):
        return grammar.NOT_SUPPORTED
    return grammar.NO_PARAMETERS_GIVEN if args is None else ""


def check_mail_from(s: Session, args: str | None) -> str:
    if not s.helo or s.tx:
        return grammar.BAD_SEQUENCE
    sender = grammar.address(args or "", s.server.hostname, sender=True)
    return "" if sender else grammar.BAD_SENDER


def check_rcpt_to(s: Session, args: str | None) -> str:
    if not s.tx:
        return grammar.BAD_SEQUENCE
    if len(s.tx.recipients) >= s.server.max_recipients:
        return grammar.TOO_MANY
    recipient = grammar.address(args or "", s.server.hostname, sender=False)
    return "" if recipient else grammar.BAD_RECIPIENT


def check_data(s: Session, args: str | None) -> str:
    if args is not None:
        return grammar.NO_ARGUMENTS
    if not s.tx:
        return grammar.BAD_SEQUENCE
    return "" if s.tx.recipients else grammar.NO_RECIPIENT


def check_rset(s: Session, args: str | None) -> str:
    if args is not None:
        return grammar.NO_ARGUMENTS
    return "" if s.helo else grammar.BAD_SEQUENCE


def check_noop(s: Session, args: str | None) -> str:
    refused = args is not None and not s.dialect.noop_arguments
    return grammar.NO_ARGUMENTS if refused else ""


def check_bare(s: Session, args: str | None) -> str:
    return "" if args is None else grammar.NO_ARGUMENTS


def offers_auth(s: Session) -> bool:
    return s.secure and not s.authenticated


def proceed_connect(s: Session, argument: str) -> None:
    if s.peer.smtps:
        s.state = "tls"
    else:
        s.banner()


def proceed_helo(s: Session, argument: str) -> None:
    s.helo, s.extended, s.state = argument, s.phase == "ehlo", "helo"
    method = "EHLO" if s.extended else "HELO"
    names = ordered(s.dialect.identify_fields, method=method, name=argument)
    s.report("link-identify", *names)
    host, peer = s.server.hostname, s.peer
    hello = f"{host} Hello {argument} {peer.bracketed}, pleased to meet you"
    if not s.extended:
        s.reply(f"250 {hello}")
        return
    offers = [hello, "8BITMIME", "ENHANCEDSTATUSCODES", f"SIZE {s.server.max_message_size}"]
    offers.append("DSN")
    if s.server.starttls and not s.secure and not peer.local and not peer.smtps:
        offers.append("STARTTLS")
    if offers_auth(s):
        offers.append("AUTH PLAIN LOGIN")
    for offer in offers:
        s.reply(f"250-{offer}")
    s.reply("250 HELP")


def proceed_starttls(s: Session, argument: str) -> None:
    s.reply(grammar.START_TLS)
    s.state = "tls"


def proceed_auth(s: Session, argument: str) -> None:
    method, _, initial = argument.partition(" ")
    if method.upper() == "PLAIN":
        s.state = "auth-plain"
        if not initial:
            s.reply("334 ")
        else:
            auth_step(s, initial)
    elif method.upper() == "LOGIN":
        s.state = "auth-user"
        if not initial:
            s.reply("334 VXNlcm5hbWU6")
        else:
            auth_step(s, initial)
    else:
        s.reply(grammar.BAD_METHOD.format(method))


def auth_step(s: Session, line: str) -> None:
    raw = grammar.unbase64(octets(line))
    if raw is None:
        s.reply(grammar.BAD_AUTH)
        s.state = "helo"
    elif s.state == "auth-user":
        s.username, s.state = text(raw), "auth-password"
        s.reply("334 UGFzc3dvcmQ6")
    elif s.state == "auth-password":
        authenticate(s, text(raw))
    else:
        parts = raw.split(b"\0")
        if len(parts) < 3 or not parts[1] or not parts[2]:
            s.reply(grammar.BAD_AUTH)
            s.state = "helo"
            return
        s.username = text(parts[1])
        authenticate(s, text(parts[2]))


def authenticate(s: Session, password: str) -> None:
    users = s.server.users
    known = bool(password) if users is None else users.get(s.username) == password
    s.authenticated, s.state = known, "helo"
    user = grammar.vis(octets(s.username))
    fields = s.dialect.auth_fields
    s.report("link-auth", *ordered(fields, result="pass" if known else "fail", user=user))
    s.reply(grammar.AUTH_OK if known else grammar.AUTH_FAILED)


def proceed_mail_from(s: Session, argument: str) -> None:
    sender = grammar.address(argument, s.server.hostname, sender=True)
    s.tx = Transaction(sender or Address("", "", ()))
    if not sender:
        s.reply(grammar.BAD_SENDER)
        s.tx = None
        return
    for option in sender.options:
        if not grammar.MAIL_OPTIONS.fullmatch(option):
            s.reply(grammar.BAD_OPTION.format(option))
            s.tx = None
            return
    s.tx.msgid = s.smtpd.ids.message()
    s.reply(grammar.OK)


def proceed_rcpt_to(s: Session, argument: str) -> None:
    assert s.tx
    recipient = grammar.address(argument, s.server.hostname, sender=False)
    if not recipient:
        s.reply(grammar.BAD_RECIPIENT)
        return
    for option in recipient.options:
        if not grammar.RCPT_OPTIONS.fullmatch(option):
            s.reply(grammar.BAD_RCPT_OPTION.format(option))
            return
    if refusal := s.server.refused.get(str(recipient)):
        s.reply(refusal)
        return
    msgid = s.tx.msgid
    s.report("tx-envelope", msgid, s.smtpd.ids.envelope(msgid))
    s.tx.recipients.append(recipient)
    s.reply(grammar.RECIPIENT_OK)


def proceed_data(s: Session, argument: str) -> None:
    s.smtpd.data_begin(s)


def proceed_rset(s: Session, argument: str) -> None:
    if s.dialect.tx_before_reply:
        s.rollback()
    s.reply(grammar.RESET)
    s.rollback()


def proceed_noop(s: Session, argument: str) -> None:
    s.reply(grammar.OK)


def proceed_quit(s: Session, argument: str) -> None:
    s.reply(grammar.BYE)
    s.state = "quit"


def proceed_commit(s: Session, argument: str) -> None:
    tx = s.tx
    assert tx
    if tx.error:
        s.reply(tx.error)
        s.rollback()
        s.state = "helo"
        return
    s.smtpd.data_end(s)
    if s.peer.completed:
        fields = late_fields(tx, s.server.hostname, s.smtpd.clock())
        tx.size += sum(len(field) + 1 for field in fields)
    accepted = grammar.ACCEPTED.format(tx.msgid)
    if not s.dialect.tx_before_reply:
        s.reply(accepted)
    s.report("tx-commit", tx.msgid, str(tx.size))
    s.report("tx-reset", tx.msgid)
    s.tx, s.state = None, "helo"
    if s.dialect.tx_before_reply:
        s.reply(accepted)
    content = b"".join(line + b"\n" for line in tx.lines)
    if not content:
        s.smtpd.fault("delivered an empty message: nothing was echoed but the dot", s)
    s.smtpd.delivered.append(
        Delivery(str(tx.sender), tuple(map(str, tx.recipients)), content, tx.msgid, s.id)
    )


PHASE_OF = {
    "HELO": "helo", "EHLO": "ehlo", "STARTTLS": "starttls", "AUTH": "auth",
    "MAIL FROM": "mail-from", "RCPT TO": "rcpt-to", "DATA": "data", "RSET": "rset",
    "QUIT": "quit", "NOOP": "noop",
}  # fmt: skip
WITH_ARGUMENT = {"helo", "ehlo", "auth", "mail-from", "rcpt-to"}
CHECKS: dict[str, Callable[[Session, str | None], str]] = {
    "helo": check_helo, "ehlo": check_helo,
    "starttls": check_starttls, "auth": check_auth,
    "mail-from": check_mail_from, "rcpt-to": check_rcpt_to,
    "data": check_data, "rset": check_rset, "noop": check_noop,
    "quit": check_bare, "commit": check_bare,
}  # fmt: skip
PROCEEDS: dict[str, Callable[[Session, str], None]] = {
    "connect": proceed_connect, "helo": proceed_helo,
    "ehlo": proceed_helo, "starttls": proceed_starttls,
    "auth": proceed_auth, "mail-from": proceed_mail_from,
    "rcpt-to": proceed_rcpt_to, "data": proceed_data,
    "rset": proceed_rset, "noop": proceed_noop,
    "quit": proceed_quit, "commit": proceed_commit,
}  # fmt: skip
