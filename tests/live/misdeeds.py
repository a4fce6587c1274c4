"""A filter whose handlers do what the sender's address says; its program waits 3 s for them."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from bridge import Filter, Insert, MailFrom, Message, RcptTo, Session, Verdict

app = Filter()


def misdeed(word: str) -> Any:
    """What both kinds of handlers can do."""
    if word == "raise":
        raise ValueError("secret")
    if word == "exit":
        sys.exit(0)
    return 42 if word == "number" else None


@app.on(MailFrom)
async def sender(event: MailFrom, session: Session) -> Any:
    kind, _, word = event.address.partition("@")[0].partition("-")
    if kind != "async":
        return None
    if word == "minute":
        await asyncio.sleep(60)
    if word == "hold":
        time.sleep(6)  # noqa: ASYNC251 the whole event loop
    return misdeed(word)


@app.on(RcptTo)
def recipient(event: RcptTo, session: Session) -> Any:
    assert session.transaction is not None
    kind, _, word = (session.transaction.sender or "").partition("@")[0].partition("-")
    if kind != "plain":
        return None
    if word == "minute":
        time.sleep(60)
    return misdeed(word)


@app.on(Message)
async def message(event: Message, session: Session) -> Verdict:
    return Verdict(edits=(Insert(0, "X-Seen", "yes"),))


if __name__ == "__main__":
    from bridge.core import Limits

    app.run(Limits(command=3.0))
