"""A filter of somebody's own, as a program, whose handlers do what the sender's address says.

The first argument says what is wrong with its start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any

from bridge import Filter, Insert, MailFrom, Message, Session, Verdict

app = Filter()
MISDEED = sys.argv[1] if len(sys.argv) > 1 else ""
print("printed while it was imported")


@app.on_start
async def start() -> None:
    print("printed at start")
    if MISDEED == "start-fails":
        raise ValueError("secret")
    if MISDEED == "start-exits":
        sys.exit(0)


@app.on_stop
def stop() -> None:
    print("printed at stop")
    if MISDEED == "stop-blocks":
        time.sleep(60)


def stray() -> None:
    """A thread of its own that fails."""
    raise ValueError("secret")


@app.on(MailFrom)
async def sender(event: MailFrom, session: Session) -> Any:
    word = event.address.partition("@")[0]
    match word:
        case "print":
            print("filter-result|", session.id, "|", event.token, "|proceed", sep="", flush=True)
            os.write(1, b"x" * 100_000)
            os.system("echo from a child; cat")  # noqa: ASYNC221
        case "raise":
            raise ValueError("secret")
        case "number":
            return 42
        case "exit":
            sys.exit(1)
        case "task-exits":
            asyncio.get_running_loop().call_soon(sys.exit, 1)
        case "loop-stops":
            asyncio.get_running_loop().stop()
        case "thread-fails":
            threading.Thread(target=stray).start()
        case "close":
            os.close(0)
            os.close(1)
        case "signal":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
        case "block":
            time.sleep(1.0)  # noqa: ASYNC251
    return None


@app.on(Message)
def message(event: Message, session: Session) -> Verdict:
    return Verdict(edits=(Insert(0, "X-Awkward", session.helo),))


if __name__ == "__main__":
    app.run()
