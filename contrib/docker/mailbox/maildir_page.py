"""A page that shows the mail below a directory of maildirs: a list, and each message with the
fields that the filter or rspamd added, the verdict and the source.

    maildir_page.py DIRECTORY ADDRESS PORT

For development.  Reads only; shows everything as text, runs no script, and answers only to
requests for this machine (so that no web page elsewhere can read the mail by a name of its own).
"""

from __future__ import annotations

import email
import email.message
import email.policy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

MAX_LISTED = 200
MAX_HEAD = 256 * 1024
MAX_SOURCE = 1024 * 1024  # bytes of a message that are shown
SECONDS = 10.0  # for a request to come
HOSTS = ("127.0.0.1", "localhost", "[::1]", "mailbox")
# The beginnings of names of fields that the filter, rspamd or the signer add.
ADDED = ("authentication-results", "dkim-signature", "x-spam", "x-rspamd", "x-unscanned")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3em .8em .3em 0;
         border-bottom: 1px solid #8884; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: 1em }
.spam { color: #b00 } .unscanned { color: #a60 } .clean { color: #070 }
@media (prefers-color-scheme: dark) {
  body { background: #111; color: #ddd } a { color: #9cf }
  .spam { color: #f88 } .unscanned { color: #fb5 } .clean { color: #8d8 } }
"""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of a maildir.  key: its path below the directory; junk: it is in the Junk folder."""

    key: str
    mailbox: str
    junk: bool
    time: float
    size: int


def stored(root: Path) -> list[Stored]:
    """The newest messages below a directory, the newest first."""
    found = sorted(_files(root), key=lambda each: (each.time, each.key), reverse=True)
    return found[:MAX_LISTED]


def _files(root: Path) -> Iterator[Stored]:
    for pattern in ("*/new/*", "*/cur/*", "*/.Junk/new/*", "*/.Junk/cur/*"):
        for path in root.glob(pattern):
            try:
                status = path.lstat()
            except OSError:  # moved while we looked
                continue
            if not path.is_symlink() and path.is_file():
                key = path.relative_to(root)
                junk = ".Junk" in key.parts
                yield Stored(str(key), key.parts[0], junk, status.st_mtime, status.st_size)


def head_of(raw: bytes) -> email.message.Message:
    """The header of a message, whatever is wrong with it."""
    return email.message_from_bytes(raw, policy=email.policy.compat32)


def text_of(value: object) -> str:
    """A field's value on one line."""
    return " ".join(str(value).split())


def verdict_of(head: email.message.Message, *, junk: bool) -> tuple[str, str]:
    """What became of a message: a word for the style sheet, and words for people."""
    if unscanned := head.get("X-Unscanned"):
        return "unscanned", f"not scanned ({text_of(unscanned)})"
    if junk or text_of(head.get("X-Spam", "")).lower() == "yes":
        score = text_of(head.get("X-Spam-Score", ""))
        return "spam", f"spam{f', {score}' if score else ''}{', in Junk' if junk else ''}"
    return "clean", "clean"


def page(title: str, body: str) -> str:
    """An HTML page; `body` is HTML, `title` is text."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<link rel="stylesheet" href="/style.css"><h1>{escape(title)}</h1>{body}</html>'
    )


def list_page(root: Path) -> str:
    """All messages in a table."""
    rows = []
    for each in stored(root):
        head = head_of(_read(root, each, MAX_HEAD))
        kind, verdict = verdict_of(head, junk=each.junk)
        subject = text_of(head.get("Subject", "")) or "(no subject)"
        cells = (each.mailbox, text_of(head.get("From", "")))
        rows.append(
            "<tr>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + f'<td><a href="/message/{quote(each.key)}">{escape(subject)}</a></td>'
            + f'<td class="{kind}">{escape(verdict)}</td><td>{each.size:,}</td></tr>'
        )
    if not rows:
        return page("Mailbox", "<p>Nothing yet.</p>")
    names = "".join(f"<th>{name}</th>" for name in ("to", "from", "subject", "verdict", "bytes"))
    return page("Mailbox", f"<table><tr>{names}</tr>{''.join(rows)}</table>")


def message_page(root: Path, key: str) -> str | None:
    """One message; None if it is not one of the list, whatever the key looks like."""
    found = next((each for each in stored(root) if each.key == key), None)
    if found is None:
        return None
    raw = _read(root, found, MAX_SOURCE)
    head = head_of(raw)
    kind, verdict = verdict_of(head, junk=found.junk)
    added = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text_of(value))}</td></tr>"
        for name, value in head.items()
        if name.lower().startswith(ADDED)
    )
    cut = f"<p>The first {MAX_SOURCE:,} bytes:</p>" if found.size > MAX_SOURCE else ""
    return page(
        text_of(head.get("Subject", "")) or "(no subject)",
        f'<p><a href="/">All messages</a></p><p>To {escape(found.mailbox)}: '
        f'<span class="{kind}">{escape(verdict)}</span></p>'
        f"<h2>Added fields</h2><table>{added or '<tr><td>none</td></tr>'}</table>"
        f"<h2>Source</h2>{cut}<pre>{escape(raw.decode('utf-8', 'replace'))}</pre>",
    )


def _read(root: Path, message: Stored, most: int) -> bytes:
    try:
        with (root / message.key).open("rb") as file:
            return file.read(most)
    except OSError:  # gone since it was listed
        return b""


def answer(root: Path, host: str, target: str) -> tuple[int, str, str]:
    """Status, content type and content for a GET request."""
    if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
        return 403, "text/plain", "not under this name\n"
    path = unquote(urlsplit(target).path)
    if path == "/style.css":
        return 200, "text/css", STYLE
    if path == "/healthz":
        return 200, "text/plain", "ok\n"
    html = list_page(root) if path == "/" else None
    if path.startswith("/message/"):
        html = message_page(root, path.removeprefix("/message/"))
    return (404, "text/plain", "no such page\n") if html is None else (200, "text/html", html)


def server(root: Path, host: str, port: int) -> ThreadingHTTPServer:
    """The server, listening."""

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS
        server_version = "mailbox"
        sys_version = ""

        def do_GET(self) -> None:
            status, kind, text = answer(root, self.headers.get("Host", ""), self.path)
            content = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: health checks would fill the log."""

    return ThreadingHTTPServer((host, port), Handler)


if __name__ == "__main__":
    server(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).serve_forever()
