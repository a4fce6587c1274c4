"""Messages that are hard to sign, as a mail server sends them (CRLF), for the signer's tests."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """message: what is signed; shown: what a verifier is given instead, when its parser takes
    less than a mail server does; opendkim: does OpenDKIM take it at all?  (It wants one Date
    and one Subject, and does its own with a lone CR.)"""

    message: bytes
    shown: bytes = b""
    opendkim: bool = True

    def signed(self, field: tuple[str, str]) -> bytes:
        """The message with that field on top, for a verifier."""
        return f"{field[0]}: {field[1]}\r\n".encode() + (self.shown or self.message)


HEAD = (
    b"From: Al <al@example.org>\r\nTo: bob@example.net\r\nSubject: A test\r\n"
    b"Date: Mon, 01 Jan 2024 12:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n"
)

MESSAGES: dict[str, Case] = {
    "plain": Case(HEAD + b"\r\nHello Bob\r\n"),
    "no body": Case(HEAD + b"\r\n"),
    "no blank line": Case(HEAD, shown=HEAD + b"\r\n"),
    "empty lines only": Case(HEAD + b"\r\n\r\n\r\n\r\n"),
    "blanks only": Case(HEAD + b"\r\n  \t \r\n \r\n"),
    "trailing blank lines": Case(HEAD + b"\r\nHello\r\n\r\n\r\n"),
    "trailing blanks": Case(HEAD + b"\r\nHello  \t\r\n \t  \r\nBob \r\n \r\n"),
    "blanks in front and within": Case(HEAD + b"\r\n  Hello \t  Bob\r\n\t.\r\n"),
    "no line end at the end": Case(HEAD + b"\r\nHello \t", shown=HEAD + b"\r\nHello \t\r\n"),
    "bare line feeds": Case(
        (HEAD + b"\r\nHello\r\n").replace(b"\r\n", b"\n"), shown=HEAD + b"\r\nHello\r\n"
    ),
    "8-bit": Case(HEAD + b"\r\nGr\xfc\xdfe, \xc2\xa0 \xa0\r\n\xff\x01\x80\r\n"),
    "UTF-8": Case(HEAD + "\r\nGrüße, Björn ☃\r\n".encode()),
    "dots": Case(HEAD + b"\r\n.\r\n..\r\n.Hello\r\n"),
    "a form feed": Case(HEAD + b"\r\nHello\x0c\r\n\x0c\r\nBob \x0c \r\n\x0b\r\n\x0c\r\n"),
    "a carriage return inside": Case(
        HEAD + b"\r\nHello\rBob\r\r\n\r\r\n\r\r\n\r\n", opendkim=False
    ),
    "a long line": Case(HEAD + b"\r\n" + b"Hello Bob " * 2000 + b"\r\n"),
    "long lines without blanks": Case(HEAD + (b"\r\n" + b"x" * 5000) * 3 + b"\r\n"),
    "lines that look like a header": Case(HEAD + b"\r\nFrom: x\r\n\r\nTo: y\r\n"),
    "folded headers": Case(
        HEAD.replace(b"A test", b"A\r\n  long\r\n\ttest ")
        + b"References: <1@a>\r\n\t<2@a>\r\n <3@a>\r\n\r\nHello\r\n"
    ),
    "a folded line of blanks": Case(
        HEAD.replace(b"A test", b"A\r\n \t\r\n test") + b"\r\nHello\r\n"
    ),
    "blanks before the colon": Case(
        HEAD.replace(b"Subject: ", b"SUBJECT \t:") + b"\r\nHello\r\n",
        shown=HEAD + b"\r\nHello\r\n",
    ),
    "an empty subject": Case(HEAD.replace(b"A test", b"") + b"\r\nHello\r\n"),
    "no subject, date and the like": Case(b"From: al@example.org\r\n\r\nHello\r\n", opendkim=False),
    "a UTF-8 name": Case(HEAD.replace(b"Al ", '"Björn Ø." '.encode()) + b"\r\nHello\r\n"),
    "an encoded name": Case(HEAD.replace(b"Al ", b"=?utf-8?q?Bj=C3=B6rn?= ") + b"\r\nHello\r\n"),
    "bytes that are no UTF-8 in the subject": Case(
        HEAD.replace(b"A test", b"\xa0 \xfc \x85") + b"\r\nHello\r\n"
    ),
    "From below": Case(b"X-A: b\r\nReceived: by c;\r\n\tx\r\n" + HEAD + b"\r\nHello\r\n"),
    "two Subject and three To": Case(
        HEAD + b"Subject: 2\r\nTo: al\r\nto:  bob\r\n\r\nHello\r\n", opendkim=False
    ),
    "signed before": Case(
        b"DKIM-Signature: v=1; a=rsa-sha256; b=AAAA\r\n" + HEAD + b"\r\nHello\r\n",
        opendkim=False,
    ),
    "odd fields": Case(
        HEAD + b":nameless\r\nSome Thing: x\r\nW\xe4: y\r\n\r\nHello\r\n",
        shown=HEAD + b"\r\nHello\r\n",
    ),
    "a list": Case(
        HEAD
        + b"Sender: list@example.org\r\nList-Id: <l.example.org>\r\n"
        + b"List-Unsubscribe: <https://example.org/u>\r\n\r\nHello\r\n"
    ),
    "a subdomain": Case(HEAD.replace(b"al@", b"al@mail.") + b"\r\nHello\r\n"),
    "many blanks": Case(HEAD + b"\r\n" + b" " * 6_000 + b"x\r\n" + b" \t" * 3_000 + b"\r\n"),
}
