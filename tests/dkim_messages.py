"""Messages that are hard to sign, as a mail server would send them (CRLF), for the signer's tests."""

from __future__ import annotations

HEAD = (
    b"From: Al <al@example.org>\r\nTo: bob@example.net\r\nSubject: A test\r\n"
    b"Date: Mon, 01 Jan 2024 12:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n"
)

MESSAGES: dict[str, bytes] = {
    "plain": HEAD + b"\r\nHello Bob\r\n",
    "no body": HEAD + b"\r\n",
    "no blank line": HEAD,
    "empty lines only": HEAD + b"\r\n\r\n\r\n\r\n",
    "blanks only": HEAD + b"\r\n  \t \r\n \r\n",
    "trailing blank lines": HEAD + b"\r\nHello\r\n\r\n\r\n",
    "trailing blanks": HEAD + b"\r\nHello  \t\r\n \t  \r\nBob \r\n \r\n",
    "blanks in front and within": HEAD + b"\r\n  Hello \t  Bob\r\n\t.\r\n",
    "no line end at the end": HEAD + b"\r\nHello \t",
    "8-bit": HEAD + b"\r\nGr\xfc\xdfe, \xc2\xa0 \xa0\r\n\xff\x00\x80\r\n",
    "UTF-8": HEAD + "\r\nGrüße, Björn ☃\r\n".encode(),
    "dots": HEAD + b"\r\n.\r\n..\r\n.Hello\r\n",
    "a form feed": HEAD + b"\r\nHello\x0c\r\n\x0c\r\nBob \x0c \r\n\x0b\r\n\x0c\r\n",
    "a carriage return inside": HEAD + b"\r\nHello\rBob\r\r\n\r\r\n\r\r\n\r\n",
    "a long line": HEAD + b"\r\n" + b"Hello Bob " * 2000 + b"\r\n",
    "long lines without blanks": HEAD + (b"\r\n" + b"x" * 5000) * 3 + b"\r\n",
    "lines that look like a header": HEAD + b"\r\nFrom: x\r\n\r\nTo: y\r\n",
    "folded headers": HEAD.replace(b"A test", b"A\r\n  long\r\n\ttest ")
    + b"References: <1@a>\r\n\t<2@a>\r\n <3@a>\r\n\r\nHello\r\n",
    "a folded line of blanks": HEAD.replace(b"A test", b"A\r\n \t\r\n test") + b"\r\nHello\r\n",
    "blanks around the colon": HEAD.replace(b"Subject: ", b"SUBJECT \t:") + b"\r\nHello\r\n",
    "an empty subject": HEAD.replace(b"A test", b"") + b"\r\nHello\r\n",
    "no subject, date and the like": b"From: al@example.org\r\n\r\nHello\r\n",
    "a UTF-8 name": HEAD.replace(b"Al ", '"Björn Ø." '.encode()) + b"\r\nHello\r\n",
    "an encoded name": HEAD.replace(b"Al ", b"=?utf-8?q?Bj=C3=B6rn?= ") + b"\r\nHello\r\n",
    "bytes that are no UTF-8 in the subject": HEAD.replace(b"A test", b"\xa0 \xfc \x85")
    + b"\r\nHello\r\n",
    "From below": b"X-A: b\r\nReceived: by c;\r\n\tx\r\n" + HEAD + b"\r\nHello\r\n",
    "two Subject and three To": HEAD + b"Subject: 2\r\nTo: al\r\nto:  bob\r\n\r\nHello\r\n",
    "signed before": b"DKIM-Signature: v=1; a=rsa-sha256; b=AAAA\r\n" + HEAD + b"\r\nHello\r\n",
    "odd fields": HEAD + b"X:\r\n:nameless\r\nSome Thing: x\r\nW\xe4 : y\r\n\r\nHello\r\n",
    "a list": HEAD
    + b"Sender: list@example.org\r\nList-Id: <l.example.org>\r\n"
    + b"List-Unsubscribe: <https://example.org/u>\r\n\r\nHello\r\n",
    "a subdomain": HEAD.replace(b"al@", b"al@mail.") + b"\r\nHello\r\n",
    "many spaces": HEAD + b"\r\n" + b" " * 60_000 + b"x\r\n" + b" \t" * 30_000 + b"\r\n",
}
