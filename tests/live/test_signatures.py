"""Does OpenDKIM, which is nobody's code here, verify what the reference signer signs?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.testing.dns import DnsServer
from tests.dkim_messages import HEAD, MESSAGES, Case
from tests.live import addresses
from tests.live.verifiers import OpenDkim
from tests.signing import Made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def nameserver(made: Made) -> Iterator[DnsServer]:
    zone = "".join(f'{name} TXT "{text}"\n' for name, text in made.records.items())
    found = addresses.nameserver(zone)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def opendkim(nameserver: DnsServer, tmp_path_factory: pytest.TempPathFactory) -> OpenDkim:
    return OpenDkim(nameserver.hosts[0], tmp_path_factory.mktemp("opendkim"))


TAKEN = {name: case for name, case in MESSAGES.items() if case.opendkim}
TAKEN["10 MiB"] = Case(HEAD + b"\r\n" + b"Hello  Bob, a line of a long message.\r\n" * 280_000)


@pytest.mark.parametrize("number", [0, 1], ids=["RSA", "Ed25519"])
@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN.keys())
def test_opendkim_verifies(case: Case, number: int, made: Made, opendkim: OpenDkim) -> None:
    assert opendkim.verify(case.signed(made.sign(case.message)[number])) == ""


@pytest.mark.parametrize("number", [0, 1], ids=["RSA", "Ed25519"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"Hello", b"hello", id="of the body"),
        pytest.param(b"A test", b"A Test", id="of the subject"),
        pytest.param(b"Al <", b"Bl <", id="of the From"),
        pytest.param(b"To: bob", b"Cc: x\r\nTo: bob", id="a field added"),
    ],
)
def test_opendkim_sees_a_change(
    old: bytes, new: bytes, number: int, made: Made, opendkim: OpenDkim
) -> None:
    case = MESSAGES["plain"]
    message = case.signed(made.sign(case.message)[number])
    assert opendkim.verify(message) == ""
    assert message.count(old) == 1
    assert "Bad signature" in opendkim.verify(message.replace(old, new))


def test_opendkim_wants_a_signature(opendkim: OpenDkim) -> None:
    assert "No signature" in opendkim.verify(MESSAGES["plain"].message)


def test_opendkim_asked_our_nameserver(
    made: Made, opendkim: OpenDkim, nameserver: DnsServer
) -> None:
    assert opendkim.verify(MESSAGES["plain"].signed(made.sign(MESSAGES["plain"].message)[0])) == ""
    assert {query.name for query in nameserver.queries} <= set(made.records)
    assert nameserver.queries
