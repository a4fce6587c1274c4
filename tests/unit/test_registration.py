"""What may an application ask smtpd for, and over which links may the answer to that come?"""

from __future__ import annotations

import os

import pytest

from bridge.config import parse
from bridge.config.kinds import ENDPOINTS
from bridge.registration import exposed, from_hello
from bridge.shim import Options, Shim
from bridge.smtpd.items import Registration

AUTH = {"phases": ["auth", "mail-from"], "reports": ["link-auth"]}


@pytest.mark.parametrize(
    ("hello", "registration"),
    [
        (AUTH, Registration(frozenset({"auth", "mail-from"}), frozenset({"link-auth"}))),
        ({"reports_out": ["tx-mail"]}, Registration(reports_out=frozenset({"tx-mail"}))),
        ({"phases": [], "asks_commit": True}, Registration(asks_commit=True)),
        ({}, Registration()),
        ({"phases": ["mail from"]}, None),
        ({"reports": ["tx-nonsense"]}, None),
        ("everything", None),
    ],
    ids=[
        "phases and reports",
        "reports of smtp-out",
        "commit also when the message may proceed",
        "nothing at all",
        "an unknown phase, of which smtpd would die",
        "an unknown report, the same",
        "no table",
    ],
)
def test_what_an_application_wants(hello: object, registration: Registration | None) -> None:
    assert from_hello(hello) == registration


@pytest.mark.parametrize(
    ("connect", "phases", "why"),
    [
        ([], {"auth"}, ""),
        (["unix:/run/a", "unix:/run/b"], {"auth"}, ""),
        (["tcp:127.0.0.1:1"], {"mail-from", "commit"}, ""),
        (["unix:/run/a", "tcp:[::1]:4711"], {"auth"}, "tcp:[::1]:4711"),
    ],
    ids=[
        "a child has a socketpair",
        "unix sockets",
        "no passwords",
        "a password must not go over TCP, not even to one of several",
    ],
)
def test_where_passwords_may_go(connect: list[str], phases: set[str], why: str) -> None:
    said = exposed(Registration(frozenset(phases)), ENDPOINTS.read(connect))
    assert bool(said) == bool(why)
    assert why in said


@pytest.mark.parametrize("phases", [["auth"], ["mail-from"]])
def test_a_shim_whose_bridge_is_far_away_ends_before_it_registers_auth(phases: list[str]) -> None:
    theirs, stderr = os.pipe(), os.pipe()
    shim = Shim(
        parse('[shim]\nconnect = ["tcp:127.0.0.1:1"]\n'),
        Options(application=True),
        stdin=theirs[0],
        stdout=theirs[1],
        stderr=stderr[1],
    )
    try:
        shim.on_hello({"kind": "hello", "registration": {"phases": phases}})
        shim.log("end")
        told = os.read(stderr[0], 4096).decode()
        refused = phases == ["auth"]
        assert ("auth holds passwords" in told) == refused
        assert shim._smtpd.gone == refused
        assert (shim._wanted is None) == refused
    finally:
        for fd in (*theirs, *stderr):
            os.close(fd)
