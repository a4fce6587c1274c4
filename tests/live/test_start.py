"""How does the filter start: with which mistakes in its configuration not, and on which profile?
On real servers.
"""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from bridge.testing.http import StandIn
from tests.live.bridged import COMMAND, bridged, lines, message
from tests.live.world import OpenSMTPD

TOML = """
[shim]
patience = "40s"
[fcrdns]
enabled = false
[rspamd]
servers = ["{rspamd}"]
"""
MISTAKES = """
authserv_id = 5
[shim]
message_deadline = "soon"
[rspamd]
servers = ["ftp://127.0.0.1"]
[fcrdns]
fail = "explode"
"""
TOLD = (
    "authserv_id: found 5, expected ",
    'shim.message_deadline: found "soon", expected ',
    'rspamd.servers[0]: found "ftp://127.0.0.1", expected ',
    'fcrdns.fail: found "explode", expected ',
)


def test_a_bad_configuration_ends_smtpd_at_its_start_and_says_all(version: str) -> None:
    mta = bridged(version, MISTAKES)
    with suppress(RuntimeError):  # when it ends before it is seen to listen
        mta.start()
    try:
        mta.wait_exit(20)
    finally:
        mta.stop()
    for told in TOLD:
        assert re.search(rf"^bridge: .*/bridge\.toml: {re.escape(told)}", mta.log(), re.M)
    assert re.search("lost processor: bridge exited abnormally", mta.log())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param("-f {dir}/bridge.toml", TOLD, id="mistakes"),
        pytest.param("-f {dir}/none.toml", ("none.toml: can't be read",), id="no file"),
        pytest.param(
            "-f {dir}/good.toml --profile other",
            ('--profile: found "other", expected one of default, strict',),
            id="no such profile",
        ),
    ],
)
def test_a_bad_configuration_is_status_2_and_not_a_word_to_smtpd(
    version: str, arguments: str, told: tuple[str, ...]
) -> None:
    files = {"bridge.toml": MISTAKES, "good.toml": '[[profile]]\nname = "strict"\n'}
    with OpenSMTPD(version, files=files) as mta:
        done = mta.run(mta.fill(COMMAND.split()[0] + " " + arguments).split(), b"config|ready\n")
    assert (done.returncode, done.stdout) == (2, b"")
    said = done.stderr.decode().splitlines()
    assert len(said) == len(told)
    for line, expected in zip(sorted(said), sorted(told), strict=True):
        assert expected in line


def test_an_unknown_key_is_only_a_warning(version: str, service: StandIn) -> None:
    service.behave("ok")
    toml = TOML + "sevrers = []\n[nonsense]\nx = 1\n"
    with bridged(version, toml, values={"rspamd": service.url}) as mta:
        assert mta.send(message("warned")).code == 250
        told = [line["text"] for line in lines(mta.log(), "config-warning")]
    assert len(told) == 2
    assert any("rspamd.sevrers: found an unknown key" in text for text in told)
    assert any("did you mean servers?" in text for text in told)
    assert any("nonsense: found an unknown key" in text for text in told)


@pytest.mark.parametrize(("arguments", "code"), [("", 451), ("--profile lenient", 250)])
def test_a_profile_can_be_forced(version: str, service: StandIn, arguments: str, code: int) -> None:
    """Also over one whose match fits."""
    service.behave("503")
    toml = (
        TOML
        + '[[profile]]\nname = "fits"\nmatch.port = 25\n'
        + '[[profile]]\nname = "lenient"\nfailure.rspamd.default = "accept-header"\n'
        + 'failure.bridge.default = "accept-header"\n'
    )
    values = {"rspamd": service.url}
    with bridged(version, toml, arguments=arguments, values=values) as mta:
        assert mta.send(message("forced")).code == code
        if code == 250:
            [mail] = mta.wait_delivered(1)
            assert mail.header("X-Unscanned") == [b"rspamd: http-error"]
