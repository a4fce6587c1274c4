"""Does the stack of docker-compose.yml do what it should?  Sends mail and looks at the outcome.

    stack_tester.py                             all cases; the exit status is 1 if any failed
    stack_tester.py expect CASE CODE [SECONDS]  one message gets that reply, after so long at most

CASES: ham, gtube, spammy, stranger (has no reverse name), submitted.  Runs in the stack only: the
names and addresses are those of its networks.
"""

from __future__ import annotations

import os
import re
import smtplib
import ssl
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path

import dkim  # type: ignore[import-untyped]

NET = os.environ.get("NET", "10.253")
NAMED, NAMELESS = f"{NET}.25", f"{NET}.26"  # networks: with reverse names and without
SERVER, CLIENT = 25, 100  # hosts in both
MAIL = Path("/var/vmail")
PASSWORD = Path("/var/lib/smtpd-users/dev.password")
DELIVERY = 30.0  # seconds
PATIENCE = 60.0  # seconds that the server may take for a reply
BIG = 10 * 1000 * 1000
# Written in pieces, for scanners that read source code.  The second is rspamd's own and means
# "add header" (options.inc, enable_test_patterns).
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*" + "C.34X"
SPAMMY = "YJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*" + "C.34X"


@dataclass(frozen=True, slots=True)
class Letter:
    """A message, where it comes from, and to whom it goes: a name of its own for each."""

    text: str = "Hello,\n\nthis is an ordinary message.\n"
    network: str = NAMED
    submitted: bool = False
    subject: str = "Ordinary"
    rcpt: str = field(default_factory=lambda: f"{uuid.uuid4().hex[:12]}@example.org")

    def message(self) -> bytes:
        domain = "example.org" if self.submitted else "good.example"
        message = EmailMessage()
        message["From"] = f"Dev Eloper <dev@{domain}>"
        message["To"] = self.rcpt
        message["Subject"] = self.subject
        message["Date"] = formatdate()
        message["Message-ID"] = f"<{uuid.uuid4()}@{domain}>"
        message.set_content(self.text)
        return message.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


CASES: dict[str, Callable[[], Letter]] = {
    "ham": Letter,
    "gtube": lambda: Letter(f"{GTUBE}\n"),
    "spammy": lambda: Letter(f"{SPAMMY}\n"),
    "stranger": lambda: Letter(network=NAMELESS),
    "submitted": lambda: Letter(submitted=True),
}


def send(letter: Letter, *, password: str | None = None) -> tuple[int, str]:
    """Send it; the reply that decided, code and text."""
    sender = f"dev@{'example.org' if letter.submitted else 'good.example'}"
    try:
        with smtplib.SMTP(
            f"{letter.network}.{SERVER}",
            587 if letter.submitted else 25,
            local_hostname="client.good.example",
            timeout=PATIENCE,
            source_address=(f"{letter.network}.{CLIENT}", 0),
        ) as client:
            if letter.submitted:
                context = ssl.create_default_context()
                # The certificate is the stack's own.
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                client.starttls(context=context)
                client.login("dev", password or PASSWORD.read_text().strip())
            client.ehlo_or_helo_if_needed()
            for code, text in (client.mail(sender), client.rcpt(letter.rcpt)):
                if code >= 400:
                    return code, text.decode("ascii", "replace")
            code, text = client.data(letter.message())
            return code, text.decode("ascii", "replace")
    except smtplib.SMTPResponseException as error:
        raw = error.smtp_error
        return error.smtp_code, raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw


def delivered(rcpt: str, *, wait: float = DELIVERY) -> tuple[bytes, bool]:
    """What came for a recipient, and whether it is in Junk; AssertionError if nothing comes."""
    until = time.monotonic() + wait
    while True:
        for folder in ("", ".Junk"):
            for path in (MAIL / rcpt / folder / "new").glob("*"):
                return path.read_bytes(), bool(folder)
        assert time.monotonic() < until, f"nothing was delivered to {rcpt}"
        time.sleep(0.2)


def head(raw: bytes) -> str:
    """The header, unfolded."""
    lines = raw.replace(b"\r\n", b"\n").partition(b"\n\n")[0].decode("ascii", "replace")
    return re.sub(r"\n[ \t]+", " ", lines)


def ham() -> Iterator[str]:
    code, text = send(letter := Letter())
    assert code == 250, f"{code} {text}"
    raw, junk = delivered(letter.rcpt)
    assert not junk, "it is in Junk"
    assert "X-Spam:" not in head(raw), head(raw)
    assert re.search(r"^Authentication-Results: mx\.example\.org;.*iprev=pass", head(raw), re.M), (
        head(raw)
    )
    yield "delivered, iprev=pass, no X-Spam"


def gtube() -> Iterator[str]:
    code, text = send(letter := CASES["gtube"]())
    assert code == 554, f"{code} {text}"
    assert not (MAIL / letter.rcpt).exists(), "it was delivered"
    yield f"{code} {text}"


def spammy() -> Iterator[str]:
    code, text = send(letter := CASES["spammy"]())
    assert code == 250, f"{code} {text}"
    raw, junk = delivered(letter.rcpt)
    assert re.search(r"^X-Spam: Yes$", head(raw), re.M), head(raw)
    assert junk, "it is not in Junk"
    yield "X-Spam: Yes, in Junk"


def no_reverse_name() -> Iterator[str]:
    code, text = send(CASES["stranger"]())
    assert code == 550, f"{code} {text}"
    assert text.startswith("5.7.25"), text
    yield f"{code} {text}"
    code, text = send(letter := Letter(network=NAMELESS, rcpt="postmaster@example.org"))
    assert code == 250, f"to {letter.rcpt}: {code} {text}"
    yield "postmaster may be written to"


def submission() -> Iterator[str]:
    letter = Letter(submitted=True, network=NAMELESS, subject="Signed & <b>sent</b>")
    code, text = send(letter, password="wrong")
    assert code == 535, f"with a wrong password: {code} {text}"
    yield "a wrong password gets 535"
    code, text = send(letter)
    assert code == 250, f"{code} {text}"
    raw, _ = delivered(letter.rcpt)
    count = len(re.findall("^DKIM-Signature:", head(raw), re.M))
    assert count == 2, f"{count} signatures"
    crlf = raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    for number in range(count):
        assert dkim.DKIM(crlf).verify(idx=number), f"signature {number} does not verify"
    changed = crlf.replace(b"ordinary", b"changed!")
    assert not dkim.verify(changed), "a changed message verifies too"
    yield f"{count} signatures verify, by the records in the DNS"
    with urllib.request.urlopen("http://mailbox:8025/", timeout=PATIENCE) as page:
        text = page.read().decode()
    assert letter.rcpt in text, "the mailbox page does not show it"
    assert "Signed &amp; &lt;b&gt;sent&lt;/b&gt;" in text, "the subject is not escaped"
    yield "the mailbox page shows it"


def big() -> Iterator[str]:
    lines = "".join(f"{number:077}\n" for number in range(BIG // 78))
    code, text = send(letter := Letter(lines))
    assert code == 250, f"{code} {text}"
    raw, _ = delivered(letter.rcpt)
    body = raw.replace(b"\r\n", b"\n").partition(b"\n\n")[2]
    assert body == lines.encode(), f"{len(body)} bytes came, not those that were sent"
    yield f"{len(body):,} bytes came as they were sent"


ALL = (ham, gtube, spammy, no_reverse_name, submission, big)


def run_all() -> int:
    """All cases; the number of those that failed."""
    failed = 0
    for case in ALL:
        try:
            for told in case():
                print(f"ok    {case.__name__}: {told}", flush=True)
        except (AssertionError, OSError, smtplib.SMTPException) as error:
            print(f"FAIL  {case.__name__}: {error!r}", flush=True)
            failed += 1
    return failed


def expect(case: str, wanted: str, within: float) -> int:
    """0 as soon as a message of that case gets a reply that begins so (or "250 FIELD": it is
    delivered with that field), 1 after so many seconds."""
    until = time.monotonic() + within
    code, _, name = wanted.partition(" ")
    while True:
        letter = CASES[case]()
        try:
            reply = send(letter)
        except (OSError, smtplib.SMTPException) as error:
            reply = (0, repr(error))
        good = str(reply[0]) == code
        if good and name:
            good = re.search(name, head(delivered(letter.rcpt)[0]), re.M) is not None
        if good or time.monotonic() > until:
            print(f"{'ok   ' if good else 'FAIL '} {case}: wanted {wanted}, got {reply}")
            return not good
        time.sleep(1.0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["expect"]:
        seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
        sys.exit(expect(sys.argv[2], sys.argv[3], seconds))
    sys.exit(min(run_all(), 1))
