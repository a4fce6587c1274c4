"""Does outgoing mail verify that rspamd's own dkim_signing module signed, as the README has it?

Strangers are not tested here: for rspamd all of 127.0.0.0/8 is local.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from bridge.keygen import Key, keygen
from tests.live import addresses, places
from tests.live.bridged import bridged
from tests.live.letters import Post, ready, submit
from tests.live.mail import Delivered
from tests.live.rspamd import USER, Rspamd
from tests.live.verifiers import DkimPy, OpenDkim, Verifier, on_the_wire, one_by_one
from tests.live.world import Listener

CONFIGURATION = """
fcrdns.enabled = false
[rspamd]
servers = ["{rspamd}"]
local_ip = true
"""
RECIPE = """
path = "{dir}/dkim/$domain.$selector.key";
selector = "202611";
"""
LETTER = b"To: bob@example.net\r\nBcc: carl\r\nSubject: x\r\n\r\nHello\r\n"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    [made] = keygen("example.org", "202611", "rsa", tmp_path_factory.mktemp("keys"))
    return made


@pytest.fixture(scope="module")
def rspamd(key: Key) -> Iterator[Rspamd]:
    server = Rspamd(signing=RECIPE)
    path = server.dir / "dkim" / f"{key.domain}.{key.selector}.key"
    path.parent.mkdir()
    shutil.copy(key.path, path)
    shutil.chown(path, USER, USER)
    with server:
        yield server


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[Post]:
    with bridged(
        request.param,
        CONFIGURATION,
        values={"rspamd": rspamd.url},
        listeners=[Listener(), *([Listener.submission()] if request.param == "7.6" else [])],
        users={"al@example.org": "secret", "eve@example.net": "secret"},
    ) as mta:
        yield ready(mta, "bridge")


@pytest.fixture(scope="module")
def verifiers(key: Key, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Verifier]]:
    nameserver = addresses.nameserver(f'{key.name} TXT "{key.text}"')
    where = nameserver.hosts[0]
    yield [DkimPy(where), OpenDkim(where, tmp_path_factory.mktemp("opendkim"))]
    nameserver.stop()


def wrong(mail: Delivered, verifiers: list[Verifier]) -> list[str]:
    """What is wrong with a mail that should have one signature."""
    [signed] = one_by_one(on_the_wire(mail.message))
    return [said for verifier in verifiers if (said := verifier.verify(signed))]


@pytest.mark.parametrize(
    "sender",
    [
        pytest.param("al@example.org", id="of the domain"),
        pytest.param("root@mx.example.org", id="of the machine, below the domain"),
        pytest.param("root", id="without a domain, which smtpd completes"),
    ],
)
def test_local_mail_verifies(sender: str, post: Post, verifiers: list[Verifier]) -> None:
    message = b"From: " + sender.encode() + b"\n" + LETTER.replace(b"\r\n", b"\n")
    done = post.mta.sendmail(message, [to := post.recipient()], sender)
    assert done.returncode == 0, done.stderr
    mail = post.arrived(to)
    assert wrong(mail, verifiers) == []
    assert mail.header("Bcc") == []


@pytest.mark.parametrize("post", ["7.6"], indirect=True)
def test_the_mail_of_a_login_verifies(post: Post, verifiers: list[Verifier]) -> None:
    with submit(post.mta, "al@example.org", "secret") as client:
        mail = post.sent(client, b"From: al@example.org\r\n" + LETTER, "al@example.org")
    assert wrong(mail, verifiers) == []
    assert len(mail.header("Date")) == len(mail.header("Message-ID")) == 1


@pytest.mark.parametrize("post", ["7.6"], indirect=True)
def test_a_login_of_another_domain_gets_no_signature(post: Post) -> None:
    with submit(post.mta, "eve@example.net", "secret") as client:
        mail = post.sent(client, b"From: al@example.org\r\n" + LETTER, "al@example.org")
    assert mail.header("DKIM-Signature") == []
