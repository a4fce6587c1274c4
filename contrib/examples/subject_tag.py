#!/usr/bin/env python3
r"""Mail from outside gets a tag in front of its subject.

smtpd.conf:
    filter "tag" \
        proc-exec "/usr/bin/env SUBJECT_TAG=[external] /usr/local/bin/subject_tag.py"
"""

from __future__ import annotations

import os

from bridge import Filter, Message, Replace, Session, Verdict


def tagging(tag: str) -> Filter:
    """A filter that puts `tag` there once."""
    app = Filter()

    @app.on(Message)
    async def subject(event: Message, session: Session) -> Verdict | None:
        old = next(iter(event.headers("Subject")), "")
        if session.authenticated or tag in old:
            return None
        # What no edit names keeps its bytes; a message without a subject gets one.
        return Verdict(edits=(Replace("Subject", f"{tag} {old}".strip()),))

    return app


app = tagging(os.environ.get("SUBJECT_TAG", "[external]"))

if __name__ == "__main__":
    app.run()
