"""The crash matrix: what each misbehaviour did to a real server, and the same misbehaviour as
something that `EchoFilter` can do.  Helper of test_testing_smtpd.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.unit.echo_filter import PHASES, EchoFilter, answer

MATRIX = Path(__file__).parent.parent / "fixtures" / "crash-matrix-7.8.0p1.txt"

# Rows that test_testing_process.py runs with a real program under the same name.
PROCESS = {
    "exit0-at-start", "exit0-after-ready", "exit1-in-session", "sigkill-in-session",
    "exec-missing", "io-bytewise", "io-stderr-flood", "io-stderr-nonewline",
    "io-stderr-nonewline-100k", "io-close-stderr", "io-close-stdout", "io-shutdown-wr",
    "io-shutdown-rd",
}  # fmt: skip
# Rows whose cause is time or the kernel's buffers, or that cannot be told from their name.
NOT_EXPRESSED = {
    "reg-late-5s": "needs five seconds of waiting",
    "io-close-stdin": "a filter that is deaf by its own doing looks like one that is slow",
    "io-stdin-not-read": "needs more than the kernel buffers",
    "dl-zero-token": "what the filter did with the lines that came again is not recorded",
    "x-early-dot-continuous": "needs a client that writes without end",
    "x-one-filter-hangs-others": "a server with two filters",
}

ROW = re.compile(r"([a-z][\w.-]+): (DEAD|ALIVE)( SPIN)?[^|]*\| (.*?)(?: \| log: (.*)|$)")
READY = b"register|ready\n"
ALL = b"".join(b"register|filter|smtp-in|%s\n" % p.encode() for p in PHASES)


def registered(line: bytes, ready: bytes = READY) -> EchoFilter:
    return EchoFilter(registration=line + ready)


def at(phase: str, write: Callable[[list[bytes]], bytes], *more: str) -> EchoFilter:
    """A filter that is asked only at `phase` (and `more`), and writes that there."""

    def override(parts: list[bytes]) -> bytes | None:
        return write(parts) if parts[4] == phase.encode() else None

    return EchoFilter(override, (phase, *more))


def written(template: str, phase: str = "ehlo", *more: str) -> EchoFilter:
    """S and T in the template stand for the session and the token."""

    def write(parts: list[bytes]) -> bytes:
        values = {"S": parts[5], "T": parts[6], "t": parts[6].upper(), "s": parts[5].upper()}
        pieces = re.split(r"(\b[STst]\b)", template)
        return b"".join(values.get(piece, piece.encode("latin-1")) for piece in pieces) + b"\n"

    return at(phase, write, *more)


def decided(decision: str, phase: str = "ehlo") -> EchoFilter:
    return written(f"filter-result|S|T|{decision}", phase)


def on_line(change: Callable[[bytes, bytes], bytes], *, commit: bool = True) -> EchoFilter:
    """`change` gets a line and the prefix of its echo, and returns what is written."""

    def write(parts: list[bytes]) -> bytes:
        return change(parts[7], b"filter-dataline|%s|%s|" % (parts[5], parts[6]))

    return at("data-line", write, *(["commit"] if commit else []))


def twice(first: str, second: str) -> EchoFilter:
    return written(f"filter-result|S|T|{first}\nfilter-result|S|T|{second}")


def after_dot(line: bytes, *, commit: bool) -> EchoFilter:
    def change(content: bytes, prefix: bytes) -> bytes:
        return prefix + content + b"\n" + (prefix + line + b"\n" if content == b"." else b"")

    return on_line(change, commit=commit)


def echo(content: bytes, prefix: bytes) -> bytes:
    return prefix + content + b"\n"


def long_line(size: int) -> EchoFilter:
    return on_line(
        lambda c, p: (p + b"x" * size + b"\n" if c == b"." else b"") + echo(c, p), commit=False
    )


DATALINE = b"filter-dataline|%s|%s|x\n"
EXTRA = b"extra"

FILTERS: dict[str, Callable[[], EchoFilter]] = {
    "reg-unknown-verb": lambda: registered(b"register|bogus\n"),
    "reg-unknown-event": lambda: registered(b"register|report|smtp-in|bogus-event\n"),
    "reg-bad-direction": lambda: registered(b"register|report|smtp-sideways|link-connect\n"),
    "reg-unknown-phase": lambda: registered(b"register|filter|smtp-in|bogus\n"),
    "reg-filter-smtp-out": lambda: registered(b"register|filter|smtp-out|connect\n"),
    "reg-filter-star": lambda: registered(b"register|filter|smtp-in|*\n"),
    "reg-phase-case": lambda: registered(b"register|filter|smtp-in|Connect\n"),
    "reg-direction-case-filter": lambda: registered(b"register|filter|SMTP-IN|connect\n"),
    "reg-direction-case-report": lambda: registered(b"register|report|SMTP-IN|link-connect\n"),
    "reg-report-smtp-out": lambda: registered(b"register|report|smtp-out|link-connect\n"),
    "reg-crlf": lambda: registered(b"register|filter|smtp-in|connect\r\n"),
    "result-before-ready": lambda: registered(b"filter-result|1|2|proceed\n"),
    "garbage-before-ready": lambda: registered(b"hello\n"),
    "empty-line-before-ready": lambda: registered(b"\n"),
    "report-line-before-ready": lambda: registered(b"report|x\n"),
    "reg-ready-crlf": lambda: registered(b"", b"register|ready\r\n"),
    "reg-never": lambda: registered(ALL, b""),
    "reg-before-config": EchoFilter,
    "reg-dup": lambda: registered(ALL + ALL + b"register|report|smtp-in|*\n" * 2),
    "reg-ready-twice": lambda: registered(ALL + READY),
    "reg-after-ready": lambda: registered(READY + ALL, b"register|report|smtp-in|*\n"),
    "reg-nothing-but-ready": lambda: registered(b""),
    "rt-garbage": lambda: written("hello"),
    "rt-empty": lambda: written(""),
    "rt-config-line": lambda: written("config|x"),
    "rt-filter-line-echo": lambda: written("filter|0.7|1|smtp-in|connect|S|T|x"),
    "rt-result-noargs": lambda: written("filter-result|"),
    "rt-result-sid-nothex": lambda: written("filter-result|zzzz|T|proceed"),
    "rt-result-sid-empty": lambda: written("filter-result||T|proceed"),
    "rt-result-unknown-sid": lambda: written("filter-result|0123456789abcdef|T|proceed"),
    "rt-result-no-token": lambda: written("filter-result|S"),
    "rt-result-token-nothex": lambda: written("filter-result|S|zz|proceed"),
    "rt-result-token-empty": lambda: written("filter-result|S||proceed"),
    "rt-result-no-decision": lambda: written("filter-result|S|T"),
    "rt-result-empty-decision": lambda: written("filter-result|S|T|"),
    "rt-result-wrong-token": lambda: written("filter-result|S|0123456789abcdef|proceed"),
    "rt-reject-wrong-token": lambda: written("filter-result|S|01234567|reject|550 5.7.1 no"),
    "rt-result-zero-token": lambda: written("filter-result|S|0000000000000000|proceed"),
    "rt-result-swapped": lambda: written("filter-result|T|S|proceed"),
    "rt-proceed-param": lambda: decided("proceed|x"),
    "rt-proceed-trailing-pipe": lambda: decided("proceed|"),
    "rt-junk-param": lambda: decided("junk|x"),
    "rt-reject-noparam": lambda: decided("reject"),
    "rt-reject-empty-param": lambda: decided("reject|"),
    "rt-disconnect-noparam": lambda: decided("disconnect"),
    "rt-unknown-decision": lambda: decided("frobnicate"),
    "rt-unknown-decision-param": lambda: decided("frobnicate|x"),
    "rt-proceed-upper": lambda: decided("PROCEED"),
    "rt-proceed-space": lambda: decided("proceed "),
    "rt-proceed-crlf": lambda: decided("proceed\r"),
    "rt-sid-upper": lambda: written("filter-result|s|T|proceed"),
    "rt-sid-0x": lambda: at("ehlo", lambda p: answer([*p[:5], b"0x" + p[5], *p[6:]])),
    "rt-sid-space": lambda: at("ehlo", lambda p: answer([*p[:5], b"  " + p[5], *p[6:]])),
    "rt-token-upper": lambda: written("filter-result|S|t|proceed"),
    "rt-token-short": lambda: at("ehlo", lambda p: answer([*p[:6], p[6].lstrip(b"0"), p[7]])),
    "rt-nul-in-line": lambda: decided("proceed\0 and more"),
    "rt-nul-before": lambda: written("\0filter-result|S|T|proceed"),
    "rt-dataline-out-of-phase": lambda: written("filter-dataline|S|T|x"),
    "rt-dataline-no-third-pipe": lambda: written("filter-dataline|S|T"),
    "rt-twice-proceed": lambda: twice("proceed", "proceed"),
    "rt-reject-then-proceed": lambda: twice("reject|550 no no", "proceed"),
    "rt-twice-reject": lambda: twice("reject|550 no no", "reject|550 no no"),
    "rt-report-man-style": lambda: written("report|1795358210.904348|smtp-in|filter-report|S|x"),
    "rt-report-with-proto": lambda: written(
        "report|0.7|1795358210.904348|smtp-in|filter-report|S|x"
    ),
    "rt-reject-17k": lambda: decided("reject|550 5.7.1 " + "x" * 17_000),
    "rt-reject-16k": lambda: decided("reject|550 5.7.1 " + "x" * 16_000),
    "rt-rewrite-17k": lambda: decided("rewrite|" + "x" * 17_000),
    "ph-connect-junk": lambda: decided("junk", "connect"),
    "ph-connect-rewrite": lambda: decided("rewrite|x", "connect"),
    "ph-connect-report": lambda: decided("report|x", "connect"),
    "ph-mail-from-junk": lambda: decided("junk", "mail-from"),
    "ph-mail-from-rewrite": lambda: decided("rewrite|<new@example.net>", "mail-from"),
    "ph-mail-from-report": lambda: decided("report|x", "mail-from"),
    "ph-rcpt-to-junk": lambda: decided("junk", "rcpt-to"),
    "ph-rcpt-to-rewrite": lambda: decided("rewrite|<new@example.org>", "rcpt-to"),
    "ph-rcpt-to-report": lambda: decided("report|x", "rcpt-to"),
    "ph-data-junk": lambda: decided("junk", "data"),
    "ph-data-rewrite": lambda: decided("rewrite|x", "data"),
    "ph-data-report": lambda: decided("report|x", "data"),
    "ph-commit-junk": lambda: decided("junk", "commit"),
    "ph-commit-rewrite": lambda: decided("rewrite|x", "commit"),
    "ph-commit-report": lambda: decided("report|x", "commit"),
    "ph-quit-junk": lambda: decided("junk", "quit"),
    "ph-quit-rewrite": lambda: decided("rewrite|x", "quit"),
    "ph-quit-report": lambda: decided("report|x", "quit"),
    "ph-ehlo-report": lambda: decided("report|reported.example.net", "ehlo"),
    "dl-result-in-data": lambda: written("filter-result|S|T|proceed", "data-line"),
    "x-reject-in-data-line-phase": lambda: decided("reject|550 5.7.1 no", "data-line"),
    "dl-wrong-token": lambda: written("filter-dataline|S|0123456789abcdef|x", "data-line"),
    "dl-extra-after-dot": lambda: after_dot(EXTRA, commit=False),
    "dl-two-dots": lambda: after_dot(b".", commit=False),
    "dl-extra-after-dot-commit": lambda: after_dot(EXTRA, commit=True),
    "dl-no-dot": lambda: on_line(lambda c, p: b"" if c == b"." else echo(c, p)),
    "dl-swallow-all-but-dot": lambda: on_line(lambda c, p: echo(c, p) if c == b"." else b""),
    "dl-duplicate-lines-x1000": lambda: on_line(
        lambda c, p: echo(c, p) * (1 if c == b"." else 1000 if c.startswith(b"Body") else 1)
    ),
    "dl-lead-space-first-line": lambda: on_line(
        lambda c, p: echo(b" leading", p) + echo(c, p) if c[:8] == b"Received" else echo(c, p)
    ),
    "dl-cr-lines": lambda: on_line(lambda c, p: echo(c + b"\r", p)),
    "dl-nul": lambda: on_line(lambda c, p: echo(c + b"\0more", p)),
    "dl-unstuffed-dotline": lambda: on_line(
        lambda c, p: echo(b".unstuffed", p) + echo(c, p) if c == b"." else echo(c, p)
    ),
    **{
        f"dl-long-{size}": lambda size=size: long_line(size)  # type: ignore[misc]
        for size in (65_484, 65_485, 65_486, 65_500, 70_000, 200_000)
    },
    "x-zero-token-with-connect-filter": lambda: written(
        "filter-result|S|0000000000000000|proceed", "ehlo", "connect"
    ),
    "x-swapped-0.4-order-reject": lambda: written("filter-result|T|S|reject|550 5.7.1 no"),
}


def recorded() -> dict[str, tuple[str, str, str]]:
    """Row, its fate (DEAD, ALIVE, SPIN), what the client saw, what smtpd logged."""
    rows = {}
    for line in MATRIX.read_text(errors="replace").split("\n"):
        if match := ROW.match(line):
            fate = "SPIN" if match[3] else match[2]
            rows[match[1]] = (fate, match[4], match[5] or "")
    return rows


def codes(seen: str) -> list[str] | None:
    """The reply codes in a row, for one that has one plain session."""
    if not seen.startswith("[") or seen.startswith("[["):
        return None
    items = [re.match(r"(\d{3}) |TimeoutError|EOFError", item) for item in seen[1:-1].split(" ; ")]
    return [m[1] or m[0] for m in items if m] if all(items) else None
