"""An application for the tests of sidecars: it signs what it judged, notes that a message came,
and keeps one with `X-Hold: FILE` until that file is there.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from bridge import Add, Filter, Message, Session, Verdict

app = Filter()


@app.on(Message)
def judge(message: Message, session: Session) -> Verdict:
    with open(os.environ["HELD"], "a") as file:
        file.write(f"{session.id}\n")
    if found := re.search(rb"^X-Hold: (.*)$", message.content, re.M):
        until = Path(found[1].decode())
        while not until.exists():
            time.sleep(0.01)
    return Verdict(edits=(Add("X-Bridge", os.environ["BRIDGE"]),))
