"""An smtp-out session: smtpd relays a message and reports it; nothing is asked.

Follows mta_session.c.  Odd as in reality: a refused recipient is reported after the rollback
of a transaction that goes on to its commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.testing.dialect import ordered, stamp
from bridge.testing.smtpd import Smtpd


def relay(
    smtpd: Smtpd,
    sender: str,
    recipients: Sequence[str],
    *,
    refused: Mapping[str, str] | None = None,
    rdns: str = "localhost",
    src: str = "127.0.0.1:35952",
    dest: str = "127.0.0.1:3626",
    host: str = "sink.example.org",
    size: int = 270,
) -> str:
    """Report one message relayed to `host`; returns the session's id.  refused: what the host
    says to a recipient, {"bad@example.org": "550 5.1.1 no such user"}."""
    session, msgid = smtpd.ids.session(), smtpd.ids.message()

    def say(event: str, *fields: str) -> None:
        now = stamp(smtpd.dialect, smtpd.clock())
        smtpd.broadcast("smtp-out", event, session, now, fields)

    def result(event: str, result: str, address: str) -> None:
        fields = smtpd.dialect.address_fields
        say(event, *ordered(fields, msgid=msgid, result=result, address=address))

    name = smtpd.server.hostname
    say("link-connect", rdns, "pass", src, dest)
    say("protocol-server", f"220 {host} ESMTP")
    say("link-greeting", host)
    say("protocol-client", f"EHLO {name}")
    say("link-identify", *ordered(smtpd.dialect.identify_fields, method="EHLO", name=name))
    for line in (f"250-{host}", "250 8BITMIME"):
        say("protocol-server", line)
    say("protocol-client", f"MAIL FROM:<{sender}>")
    say("protocol-server", "250 ok")
    say("tx-begin", msgid)
    result("tx-mail", "ok", sender)
    for recipient in recipients:
        say("protocol-client", f"RCPT TO:<{recipient}>")
        say("tx-envelope", msgid, smtpd.ids.envelope(msgid))
        reply = (refused or {}).get(recipient, "250 ok")
        say("protocol-server", reply)
        if reply[0] == "2":
            result("tx-rcpt", "ok", recipient)
            continue
        say("tx-rollback", msgid)
        say("tx-reset", msgid)
        result("tx-rcpt", "tempfail" if reply[0] == "4" else "permfail", recipient)
    say("protocol-client", "DATA")
    say("protocol-server", "354 go")
    say("tx-data", msgid, "ok")
    say("protocol-client", ".")
    say("protocol-server", "250 queued")
    say("tx-commit", msgid, str(size))
    say("tx-reset", msgid)
    say("protocol-client", "QUIT")
    say("protocol-server", "221 bye")
    say("link-disconnect")
    return session
