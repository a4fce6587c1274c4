"""Does a filter that smtpd starts itself keep the promise, whatever its handlers do?"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bridge.testing import FilterProcess, SessionHung, Smtpd, SmtpdDied

ROOT = Path(__file__).parents[2]
FAILED = "451 4.3.0 Internal error, please try again later"
MESSAGE = b"Subject: hi\n\nhello\n.\n"


def awkward(*arguments: str, version: str = "0.7") -> FilterProcess:
    """The program, as most people run theirs: with buffered output."""
    command = [sys.executable, str(ROOT / "tests/unit/awkward.py"), *arguments]
    env = {"PYTHONPATH": str(ROOT), "PATH": os.defpath}
    return FilterProcess(command, env, smtpd=Smtpd(version))


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6", "0.7"])
def test_a_message_goes_through_and_the_end_is_the_end(version: str) -> None:
    with awkward(version=version) as smtpd:
        client = smtpd.connect()
        client.ehlo("client.example")
        assert client.mail("a@x").code == 250
        assert client.rcpt("b@y").code == 250
        assert client.data(MESSAGE).code == 250
        client.quit()
    [mail] = smtpd.delivered
    assert mail.content.startswith(b"X-Awkward: client.example\nReceived:")
    assert mail.content.endswith(MESSAGE)
    assert (smtpd.status, smtpd.faults) == (0, [])
    assert smtpd.stderr == [
        f"printed {at}" for at in ("while it was imported", "at start", "at stop")
    ]


MISDEEDS: dict[str, tuple[str, str]] = {
    "ok": ("250 2.0.0 Ok", "printed"),
    "print": ("250 2.0.0 Ok", "filter-result|"),
    "raise": (FAILED, "ValueError at awkward.py"),
    "number": (FAILED, "answered int"),
    "exit": (FAILED, "SystemExit at awkward.py"),
    "task-exits": ("250 2.0.0 Ok", "handler-failed error="),
    "loop-stops": ("250 2.0.0 Ok", "handler-failed error="),
    "thread-fails": ("250 2.0.0 Ok", "failed error="),
    "close": ("250 2.0.0 Ok", "printed"),
    "signal": ("250 2.0.0 Ok", "printed"),
}


@pytest.mark.parametrize("word", MISDEEDS)
def test_smtpd_and_other_sessions_live(word: str) -> None:
    reply, line = MISDEEDS[word]
    with awkward() as smtpd:
        other = smtpd.connect()
        other.ehlo("x")
        client = smtpd.connect()
        client.ehlo("x")
        assert str(client.mail(f"{word}@x")) == reply
        client.rset()
        for each in (client, other):
            assert each.mail("a@x").code == 250
    assert (smtpd.status, smtpd.faults) == (0, [])
    assert any(line in each for each in smtpd.stderr)
    assert not any("secret" in each or "Traceback" in each for each in smtpd.stderr)
    assert max(map(len, smtpd.stderr)) <= 1000


def test_the_end_comes_though_a_handler_holds_the_loop() -> None:
    with awkward() as smtpd:
        client = smtpd.connect()
        client.ehlo("x")
        client.later.mail("block@x")
        with pytest.raises(SessionHung):
            smtpd.run(timeout=0.2)
    assert (smtpd.status, smtpd.faults) == (0, [])


def test_the_end_comes_though_a_stop_hook_blocks() -> None:
    with awkward("stop-blocks") as smtpd:
        smtpd.connect()
    assert (smtpd.status, smtpd.faults) == (0, [])


@pytest.mark.parametrize("misdeed", ["start-fails", "start-exits"])
def test_a_start_that_fails_is_told_and_ends_it_before_smtpd_takes_mail(misdeed: str) -> None:
    smtpd = awkward(misdeed)
    with pytest.raises(SmtpdDied), smtpd:
        pass
    assert smtpd.status == 1
    [line] = [line for line in smtpd.stderr if "start-failed" in line]
    assert "awkward.py" in line
    assert "secret" not in line
