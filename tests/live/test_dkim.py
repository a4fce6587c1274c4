"""Is outgoing mail signed, and does what arrives verify? Real smtpd, rspamd and signer.

Verified is the delivered file, by dkimpy and by OpenDKIM, with keys from the DNS stand-in. Each
listener has a port, and thereby a profile or a filter of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.testing.dns import DnsServer
from tests.dkim_messages import HEAD, MESSAGES, Case
from tests.live import addresses, places
from tests.live.letters import Post, ready, submit
from tests.live.mail import Delivered
from tests.live.rspamd import Rspamd, verdict
from tests.live.signer import KINDS, Signer, seed
from tests.live.verifiers import DkimPy, OpenDkim, Verifiers, on_the_wire, one_by_one
from tests.live.world import HOSTNAME, Client, Listener, OpenSMTPD

TOKEN = "correct-horse-battery-staple"
LISTED = "127.9.9.9"  # whose mail is signed without a login
USERS = {"al@example.org": "secret", "eve@example.net": "secret", "al": "secret"}
FILTERS = {
    "bridge": f"""
        fcrdns.enabled = false
        rspamd.servers = ["RSPAMD"]
        dkim.enabled = true
        dkim.servers = ["SIGNER"]
        dkim.sign_networks = ["{LISTED}"]
        dkim.sign_as = {{ "mail.example.org" = "example.org" }}
        # Sixteen times what it takes here; others use this machine too.
        rspamd.timeout = "15s"
        rspamd.deadline = "20s"
        dkim.timeout = "20s"
        dkim.deadline = "20s"
        [[profile]]
        name = "rspamd-signs"
        match.port = 2501
        dkim.enabled = false
        """,
    "token": f"""
        fcrdns.enabled = false
        rspamd.enabled = false
        dkim.enabled = true
        dkim.servers = ["TOKEN"]
        dkim.token = "{TOKEN}"
        dkim.sign_networks = ["{LISTED}"]
        """,
}
LISTENERS = [
    Listener(filters=("bridge",)),
    Listener("rspamd", 2501, filters=("bridge",)),
    Listener("token", 2502, filters=("token",)),
]
SUBMISSION = Listener.submission(filters=("bridge",))
# A recipient there is refused after the message was taken, which makes a bounce.
BOUNCING = """
action "refuse" mda "exit 67" virtual <anybody>
match from any for domain "bounce.example" action "refuse"
"""


@pytest.fixture(scope="module")
def signer() -> Iterator[Signer]:
    with Signer(["example.org", HOSTNAME]) as server:
        yield server


@pytest.fixture(scope="module")
def behind_tcp() -> Iterator[Signer]:
    with Signer(["example.com"], token=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def nameserver(signer: Signer, behind_tcp: Signer) -> Iterator[DnsServer]:
    found = addresses.nameserver(signer.zone + behind_tcp.zone)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def verifiers(nameserver: DnsServer, tmp_path_factory: pytest.TempPathFactory) -> Verifiers:
    where = nameserver.hosts[0]
    return Verifiers(DkimPy(where), OpenDkim(where, tmp_path_factory.mktemp("opendkim")))


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(
    request: pytest.FixtureRequest, rspamd: Rspamd, signer: Signer, behind_tcp: Signer
) -> Iterator[Post]:
    words = {"RSPAMD": rspamd.url, "SIGNER": signer.url, "TOKEN": behind_tcp.url}
    files = {
        f"{name}.toml": re.sub(r'(?<=")[A-Z]{2,}(?=")', lambda word: words[word[0]], toml)
        for name, toml in FILTERS.items()
    }
    with OpenSMTPD(
        request.param,
        filters={name: f"{{bridge}} -f {{dir}}/{name}.toml" for name in FILTERS},
        socket_filters=("bridge",),
        files=files,
        listeners=[*LISTENERS, *([SUBMISSION] if request.param == "7.6" else [])],
        users=USERS,
        conf=BOUNCING,
    ) as mta:
        yield ready(mta, *FILTERS)
        assert mta.alive
    assert not mta.leftovers


def ours(post: Post, user: str = "al@example.org") -> Client:
    """A client whose mail is signed: one that authenticated, or on 6.8, whose STARTTLS is
    broken in Debian 12, one in a listed network."""
    if post.mta.version == "6.8":
        return post.mta.client(source=LISTED)
    return submit(post.mta, user, USERS[user])


# Header fields that no verifier takes.
TAKEN = {
    name: case
    for name, case in MESSAGES.items()
    if name not in ("odd fields", "blanks before the colon")
}
TAKEN["10 MiB"] = Case(HEAD + b"\r\n" + b"Hello  Bob, a line of a long message.\r\n" * 280_000)
PLAIN = MESSAGES["plain"].message


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_delivered_verifies(case: Case, post: Post, verifiers: Verifiers) -> None:
    with ours(post) as client:
        mail = post.sent(client, case.message)
    assert verifiers.wrong(mail, opendkim=case.opendkim) == ""
    assert mail.headers[2][0] == "Received"  # the signatures are on top


def test_a_signer_behind_tcp_and_a_token(post: Post, verifiers: Verifiers) -> None:
    message = PLAIN.replace(b"al@example.org", b"al@example.com")
    mail = post.send(message, listener="token", source=LISTED)
    assert verifiers.wrong(mail, domain="example.com") == ""


def test_opendkim_takes_both_signatures_at_once(post: Post, verifiers: Verifiers) -> None:
    with ours(post) as client:
        mail = post.sent(client, PLAIN)
    assert verifiers.opendkim.verify(on_the_wire(mail.message)) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"Hello", b"hello", id="of the body"),
        pytest.param(b"A test", b"A Test", id="of the subject"),
        pytest.param(b"Al <", b"Bl <", id="of the From"),
        pytest.param(b"\nTo: bob", b"\nCc: x\nTo: bob", id="a field added"),
    ],
)
def test_a_change_is_seen(old: bytes, new: bytes, post: Post, verifiers: Verifiers) -> None:
    with ours(post) as client:
        message = post.sent(client, PLAIN).message
    assert message.count(old) == 1
    for each in one_by_one(on_the_wire(message.replace(old, new))):
        assert verifiers.dkimpy.verify(each) != ""
        assert "Bad signature" in verifiers.opendkim.verify(each)


# The local socket. sendmail(8) itself changes what it is given, before filters see it.
LOCAL = {
    "plain": b"To: bob@example.net\nSubject: x\n\nHello\n",
    "8-bit": b"To: bob@example.net\nSubject: x\n\nGr\xfc\xdfe\n\xa0\n",
    "UTF-8 names": "To: Björn <b@example.net>\nFrom: Ø. <al@example.org>\n\nHi\n".encode(),
    "long lines": b"To: bob@example.net\n\n" + b"Hello Bob " * 3000 + b"\n",
    "no body": b"To: bob@example.net\nSubject: x\n\n",
    "trailing blank lines": b"To: bob@example.net\n\nHello\n\n\n\n",
    "dots": b"To: bob@example.net\n\n.\n..\n.x\n",
    "a form feed": b"To: bob@example.net\n\n\x0c\nHello \x0c\n",
    "folded headers": b"To: bob@example.net,\n\tcarl@example.net\nSubject: a\n b\n\nHello\n",
    "Bcc": b"To: bob@example.net\nBcc: carl@example.net\n\nHello\n",
}


def locally(post: Post, message: bytes, sender: str = "al@example.org") -> Delivered:
    """A message sent by sendmail, as it arrived."""
    done = post.mta.sendmail(message, [to := post.recipient()], sender)
    assert done.returncode == 0, done.stderr
    return post.arrived(to)


@pytest.mark.parametrize("message", LOCAL.values(), ids=LOCAL.keys())
def test_local_mail_verifies(message: bytes, post: Post, verifiers: Verifiers) -> None:
    head = b"" if b"From:" in message else b"From: al@example.org\n"
    mail = locally(post, head + message)
    assert verifiers.wrong(mail) == ""
    assert mail.header("Bcc") == []


def test_local_mail_of_a_user_of_the_machine(post: Post, verifiers: Verifiers) -> None:
    mail = locally(post, b"From: root (Cron)\nTo: root\nSubject: cron\n\nHello\n", "root")
    assert verifiers.wrong(mail, domain=HOSTNAME) == ""
    assert mail.header("To") == [f"root@{HOSTNAME}".encode()]


# What smtpd does to mail after the filters: what is sent, the signing domain, what arrives.
DATED = b"Date: Mon, 01 Jan 2024 12:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n"
EDITED = {
    "no Date and no Message-ID": (
        b"From: al@example.org\r\nTo: bob@example.net\r\nSubject: x\r\n",
        "example.org",
        {"To": b"bob@example.net"},
    ),
    "Bcc": (
        DATED + b"From: al@example.org\r\nBcc: a@example.net,\r\n b@example.net\r\nbcc: c\r\n",
        "example.org",
        {},
    ),
    "From, To and Cc without a domain": (
        DATED + b'From: Al <al>\r\nTo: bob, "Carl, C." <carl>\r\nCc: dora (D)\r\n',
        HOSTNAME,
        {
            "From": b"Al <al@mx.example.org>",
            "To": b'bob@mx.example.org, "Carl, C." <carl@mx.example.org>',
            "Cc": b"dora@mx.example.org (D)",
        },
    ),
    "all of it": (
        b"FROM: al\r\nTo: bob,\r\n\tcarl@example.net\r\nCc: G: a, b@example.net;\r\nBCC: x\r\n",
        HOSTNAME,
        {"From": b"al@mx.example.org"},
    ),
    "8-bit names": (
        DATED + "From: Björn Ø. <al@example.org>\r\nTo: Jürgen <bob>\r\n".encode(),
        "example.org",
        {"To": "Jürgen <bob@mx.example.org>".encode()},
    ),
}


@pytest.mark.parametrize(("head", "domain", "fields"), EDITED.values(), ids=EDITED.keys())
def test_what_smtpd_would_change_is_changed_before(
    head: bytes, domain: str, fields: dict[str, bytes], post: Post, verifiers: Verifiers
) -> None:
    with ours(post) as client:
        mail = post.sent(client, head + b"\r\nHello\r\n")
    assert verifiers.wrong(mail, domain=domain) == ""
    assert {name: mail.header(name) for name in fields} == {n: [v] for n, v in fields.items()}
    assert [len(mail.header(name)) for name in ("Date", "Message-ID", "Bcc")] == [1, 1, 0]


# Whose mail is signed.


def unsigned(post: Post, mail: Delivered, why: str) -> None:
    """The mail is as it was sent, and the log says why."""
    assert mail.header("DKIM-Signature") == []
    post.mta.wait_log(rf'^bridge: not-signed session=\w+ why="{re.escape(why)}"')


def test_a_stranger_gets_no_signature(post: Post, signer: Signer) -> None:
    before = signer.log()
    with post.mta.client() as client:
        mail = post.sent(client, PLAIN, "al@example.org")
    assert mail.headers[0][0] == "Received"
    assert mail.below_received == PLAIN.replace(b"\r\n", b"\n")
    assert signer.log() == before


def test_a_from_domain_without_a_key_gets_no_signature(post: Post) -> None:
    mail = locally(post, b"From: al@other.example\nTo: bob@example.net\n\nHello\n")
    unsigned(post, mail, "no key for other.example")


@pytest.mark.parametrize("post", ["7.6"], indirect=True)
def test_a_login_of_another_domain_gets_no_signature(post: Post) -> None:
    with ours(post, "eve@example.net") as client:
        mail = post.sent(client, PLAIN, "eve@example.net")
    unsigned(post, mail, "From domain not that of the login")


@pytest.mark.parametrize("post", ["7.6"], indirect=True)
def test_a_login_without_a_domain_gets_one(post: Post, verifiers: Verifiers) -> None:
    with ours(post, "al") as client:
        assert verifiers.wrong(post.sent(client, PLAIN)) == ""


def test_a_bounce_is_signed_for_the_server(post: Post, verifiers: Verifiers) -> None:
    sender = post.recipient()
    done = post.mta.sendmail(
        b"From: al@example.org\nTo: x@bounce.example\n\nHello\n", ["x@bounce.example"], sender
    )
    assert done.returncode == 0, done.stderr
    mail = post.arrived(sender)
    assert mail.header("Return-Path") == []
    assert mail.header("From") == [f"Mailer Daemon <MAILER-DAEMON@{HOSTNAME}>".encode()]
    assert verifiers.wrong(mail, domain=HOSTNAME) == ""


def test_all_recipients_get_what_was_signed_once(
    post: Post, verifiers: Verifiers, signer: Signer
) -> None:
    before = signer.log().count("POST /sign")
    recipients = [post.recipient() for _ in range(3)]
    with ours(post) as client:
        assert client.deliver("al@example.org", recipients, PLAIN).code == 250
    mails = [post.arrived(recipient) for recipient in recipients]
    assert {mail.message for mail in mails} == {mails[0].message}
    assert verifiers.wrong(mails[0]) == ""
    assert signer.log().count("POST /sign") == before + 1


# With rspamd.


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"score": 7}, id="X-Spam and its like"),
        pytest.param({"action": "rewrite subject", "subject": "Spam: %s"}, id="a new subject"),
        pytest.param({"milter": {"add_headers": {"Reply-To": "x@y.example"}}}, id="a new field"),
        pytest.param({"milter": {"remove_headers": {"To": 0}}}, id="a field removed"),
        pytest.param({"body": "Subject: x\r\n\r\nAnother body\r\n"}, id="a new body"),
    ],
)
def test_what_rspamd_changes_is_signed(
    wanted: dict[str, Any], post: Post, verifiers: Verifiers
) -> None:
    with ours(post) as client:
        mail = post.sent(client, verdict(**wanted) + PLAIN)
    assert verifiers.wrong(mail) == ""
    sent = Delivered((verdict(**wanted) + PLAIN).replace(b"\r\n", b"\n"), junk=False)
    changed = [field for field in mail.headers[2:] if field[0] != "Received"] != sent.headers
    assert changed or mail.body != sent.body


def by_rspamd(signer: Signer) -> bytes:
    """What makes rspamd sign with the signer's keys; of Ed25519 it wants the bare seed."""
    keys = [signer.key("example.org", kind) for kind in KINDS]
    raw = (keys[0].path.read_text(), seed(keys[1]))
    return verdict(
        dkim=[
            {"domain": key.domain, "selector": key.selector, "rawkey": each, "alg": key.kind}
            for key, each in zip(keys, raw, strict=True)
        ]
    )


@pytest.mark.parametrize("listener", ["smtp", "rspamd"], ids=["beside a signer", "alone"])
def test_rspamd_signs_and_nobody_signs_twice(
    listener: str, post: Post, verifiers: Verifiers, signer: Signer
) -> None:
    before = signer.log()
    head = PLAIN.replace(b"To: bob@example.net", b"To: bob\r\nBcc: carl")
    mail = post.send(by_rspamd(signer) + head, listener=listener, source=LISTED)
    assert mail.header("To") == [f"bob@{HOSTNAME}".encode()]
    assert len(mail.header("DKIM-Signature")) == 2
    for each in one_by_one(on_the_wire(mail.message)):
        assert verifiers.dkimpy.verify(each) == ""
        assert verifiers.opendkim.verify(each) == ""
    assert signer.log() == before
