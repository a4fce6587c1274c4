"""What contrib/docs/tutorial.md says is true: its files run, and its test passes."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bridge.testing import FilterTester
from tests.unit.standing import standing_in

TEXT = (Path(__file__).parents[2] / "contrib/docs/tutorial.md").read_text()
FILES = dict(re.findall(r"(?ms)^<!-- file: (\S+) -->\n```python\n(.*?)^```$", TEXT))
MESSAGE = b"From: a@good.example\nX-Size: 1\nSubject: hello\n\nHow are you?\n"


class Tutorial:
    """The files, to be imported by name."""

    def __init__(self, directory: Path) -> None:
        for name, code in FILES.items():
            (directory / name).write_text(code)

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tutorial]:
    monkeypatch.syspath_prepend(tmp_path)
    yield Tutorial(tmp_path)
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_all_code_is_in_files() -> None:
    assert TEXT.count("```python") == len(FILES) == 6


def test_its_test_passes(files: Tutorial) -> None:
    files.test_myfilter.test_only_spam_example_is_refused()


def test_the_whole_message(files: Tutorial) -> None:
    with FilterTester(files.tagged.app) as smtpd:
        assert str(smtpd.send(b"Subject: LOTTERY\n\n")) == "550 5.7.1 No luck today"
        smtpd.send(MESSAGE)
    assert re.match(rb"X-Size: \d{3}\nReceived: ", smtpd.delivered[0].content)
    assert smtpd.delivered[0].content.count(b"X-Size") == 1


def test_a_service_that_is_asked_and_one_that_is_down(files: Tutorial) -> None:
    with standing_in("ok") as service:
        with FilterTester(files.lookup.lookup(service.url)) as smtpd:
            assert smtpd.send(MESSAGE).code == 250
        assert b"address=rcpt%40example.org" in service.seen[0].path.encode()
    with FilterTester(files.lookup.lookup("http://127.0.0.1:1")) as smtpd:
        reply = smtpd.send(MESSAGE)
    assert str(reply).startswith("451 4.3.0 ")
    assert "recipient: ConnectError at" in smtpd.log[0]


def test_remembering(files: Tutorial) -> None:
    with FilterTester(files.twice.app) as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        client.mail("a@x")
        assert [client.rcpt("b@y").code for _ in range(3)] == [250, 250, 421]
        assert client.closed


def test_together(files: Tutorial) -> None:
    with FilterTester(files.together.app) as smtpd:
        assert smtpd.send(MESSAGE, "b@spam.example").code == 550
        assert smtpd.send(MESSAGE).code == 250
    assert smtpd.delivered[0].content.startswith(b"X-Size: ")
