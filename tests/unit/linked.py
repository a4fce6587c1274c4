"""The application of the link's transcript: one answer of each kind.  Frozen with it."""

from __future__ import annotations

from bridge import (
    Connect,
    Ehlo,
    Filter,
    Insert,
    LinkConnect,
    LinkDisconnect,
    MailFrom,
    Message,
    Quit,
    RcptTo,
    Reject,
    Rewrite,
    Session,
    Verdict,
)

app = Filter()


@app.on(LinkConnect, LinkDisconnect)
async def told(event: LinkConnect | LinkDisconnect, session: Session) -> None:
    pass


@app.on(Connect)
async def connect(event: Connect, session: Session) -> None:
    session.keep["seen"] = {"rdns": event.rdns, "times": 1}


@app.on(Ehlo)
async def ehlo(event: Ehlo, session: Session) -> None:
    session.keep["seen"]["times"] += 1


@app.on(MailFrom)
async def sender(event: MailFrom, session: Session) -> Rewrite | None:
    return Rewrite("<carol@example.net>") if event.address == "alice@example.net" else None


@app.on(RcptTo)
async def recipient(event: RcptTo, session: Session) -> Reject | None:
    unknown = event.address.startswith("nobody")
    return Reject("5.1.1", "No such user") if unknown else None


@app.on(Message)
async def message(message: Message, session: Session) -> Verdict | Reject:
    if b"Subject: fail" in message.content:
        raise ValueError("as told")
    if b"Subject: spam" in message.content:
        return Reject("5.7.1", "Spam")
    return Verdict(edits=(Insert(0, "X-First", "1"), Insert(2, "X-Third", "3")), reason="two more")


@app.on(Quit)
async def quit(event: Quit, session: Session) -> None:
    pass
