"""Which profile serves a session, and what the failure policy says."""

from __future__ import annotations

import pytest

from bridge import config
from bridge.smtpd.session import Session

PROFILES = """
enforce = false
[rspamd]
score_header = "never"
settings_id = "main"
[failure.rspamd]
timeout = "accept"

[[profile]]
name = "forced-only"

[[profile]]
name = "local"
match.local = true

[[profile]]
name = "submission"
match = { port = [465, 587], authenticated = true }
enforce = true
authserv_id = "mx.example.org"
rspamd.settings_id = "outgoing"
[profile.failure.rspamd]
default = "accept-header"
[profile.failure.rspamd.authenticated]
unreachable = "accept"

[[profile]]
name = "second-address"
match.address = ["192.0.2.2", "2001:db8:2::/48"]

[[profile]]
name = "strangers-at-submission"
match = { port = 587, authenticated = false }
"""
CONFIG = config.parse(PROFILES, strict=True)

# Session's dest, src and user -> the profile's name.
SESSIONS = {
    "a stranger at port 25": ("192.0.2.1:25", "203.0.113.9:4711", "", "default"),
    "an authenticated one at port 25": ("192.0.2.1:25", "203.0.113.9:4711", "alice", "default"),
    "a stranger at port 587": (
        "192.0.2.1:587", "203.0.113.9:4711", "", "strangers-at-submission"),
    "an authenticated one at port 587": (
        "192.0.2.1:587", "203.0.113.9:4711", "alice", "submission"),
    "an authenticated one at port 465, by IPv6": (
        "[2001:db8::1]:465", "[2001:db8::9]:4711", "alice", "submission"),
    "the second address": ("192.0.2.2:25", "203.0.113.9:4711", "", "second-address"),
    "the first that fits wins": ("192.0.2.2:587", "203.0.113.9:4711", "alice", "submission"),
    "an address in a network": (
        "[2001:db8:2::25]:25", "[2001:db8::9]:4711", "", "second-address"),
    "an IPv4 address as IPv6": (
        "[::ffff:192.0.2.2]:25", "203.0.113.9:4711", "", "second-address"),
    "a local user": ("unix:/run/smtpd.sock", "unix:/run/smtpd.sock", "", "local"),
    "a session that nothing is known of": ("", "", "", "default"),
}  # fmt: skip

# Service, kind, authenticated -> answer; text of the failure tables.
TABLES = """
[failure.rspamd]
default = "accept-header"
timeout = "accept"
too_large = "inherit"
[failure.rspamd.authenticated]
unreachable = "tempfail"
[failure.dkim]
timeout = "accept"
[failure.dkim.authenticated]
default = "accept-header"
internal = "accept"
"""
ANSWERS = {
    "the kind's own": (TABLES, "rspamd", "timeout", False, "accept"),
    "the default": (TABLES, "rspamd", "http_error", False, "accept-header"),
    "the default where the code's own was taken away": (
        TABLES, "rspamd", "too_large", False, "accept-header"),
    "a kind as the services spell it": ("", "rspamd", "too-large", False, "accept-header"),
    "authenticated: the kind's own": (TABLES, "rspamd", "unreachable", True, "tempfail"),
    "not authenticated: not theirs": (TABLES, "rspamd", "unreachable", False, "accept-header"),
    "authenticated: the kind's own for all": (TABLES, "rspamd", "timeout", True, "accept"),
    "authenticated: the default for all": (TABLES, "rspamd", "http_error", True, "accept-header"),
    "authenticated: their default before a kind of all": (
        TABLES, "dkim", "timeout", True, "accept-header"),
    "authenticated: their kind before their default": (
        TABLES, "dkim", "internal", True, "accept"),
    "nothing is set": ("", "rspamd", "unreachable", False, "tempfail"),
    "nothing is set for the bridge": ("", "bridge", "timeout", True, "tempfail"),
    "a message too large for the shim": ("", "bridge", "too-large", True, "accept-header"),
    "an unsigned message": ("", "dkim", "too-large", False, "tempfail"),
    "a kind without a row": (TABLES, "rspamd", "new-kind", False, "accept-header"),
    "a service without a table": (TABLES, "clamav", "timeout", True, "tempfail"),
}  # fmt: skip


@pytest.mark.parametrize(("dest", "src", "user", "name"), SESSIONS.values(), ids=SESSIONS)
def test_the_first_profile_that_fits_serves_a_session(
    dest: str, src: str, user: str, name: str
) -> None:
    session = Session("abcd", src=src, dest=dest, user=user)
    assert CONFIG.profile_for(session).name == name


def test_a_client_that_authenticates_changes_its_profile() -> None:
    session = Session("abcd", src="203.0.113.9:4711", dest="192.0.2.1:587")
    assert CONFIG.profile_for(session).name == "strangers-at-submission"
    session.user = "alice"
    assert CONFIG.profile_for(session).name == "submission"


@pytest.mark.parametrize("forced", ["forced-only", "submission", "default"])
def test_a_forced_profile_serves_every_session(forced: str) -> None:
    local = Session("abcd", src="unix:/run/smtpd.sock", dest="unix:/run/smtpd.sock")
    assert CONFIG.profile_for(local, forced).name == forced


def test_a_forced_profile_that_a_reload_took_away_forces_nothing() -> None:
    local = Session("abcd", src="unix:/run/smtpd.sock", dest="unix:/run/smtpd.sock")
    assert CONFIG.profile_for(local, "gone").name == "local"


def test_a_forced_profile_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.parse("[[profile]]\nname = 'x'", profile="y")
    assert caught.value.problems == [
        'bridge.toml: --profile: found "y", expected one of default, x'
    ]
    assert config.parse("[[profile]]\nname = 'x'", profile="x").named("x") is not None


def test_a_profile_is_the_main_part_but_for_what_it_sets() -> None:
    main, submission = CONFIG.main, CONFIG.named("submission")
    assert submission is not None
    assert (main.enforce, submission.enforce) == (False, True)
    assert (main.authserv_id, submission.authserv_id) == ("", "mx.example.org")
    assert (main.rspamd.settings_id, submission.rspamd.settings_id) == ("main", "outgoing")
    assert submission.rspamd.score_header == "never"
    assert submission.rspamd.servers == main.rspamd.servers
    assert submission.fcrdns == main.fcrdns
    forced_only = CONFIG.named("forced-only")
    assert forced_only is not None
    assert forced_only.enforce is False


def test_a_profile_overrides_the_failure_policy_key_by_key() -> None:
    submission = CONFIG.named("submission")
    assert submission is not None
    choose = submission.failure.choose
    assert choose("rspamd", "timeout", False) == "accept"  # of the main part
    assert choose("rspamd", "unreachable", False) == "accept-header"
    assert choose("rspamd", "unreachable", True) == "accept"
    assert CONFIG.main.failure.choose("rspamd", "unreachable", True) == "tempfail"


@pytest.mark.parametrize(
    ("text", "service", "kind", "authenticated", "answer"), ANSWERS.values(), ids=ANSWERS
)
def test_a_failure_has_an_answer(
    text: str, service: str, kind: str, authenticated: bool, answer: str
) -> None:
    failure = config.parse(text, strict=True).main.failure
    assert failure.choose(service, kind, authenticated) == answer


def test_the_files_that_a_configuration_names_are_listed() -> None:
    text = """
        [rspamd]
        ca_file = "/ca.pem"
        [dkim]
        client_certificate = "/cert.pem"
        client_key = "/key.pem"
        token_file = "/token"
    """
    assert [tuple(file) for file in config.parse(text, secrets=False).files()] == [
        ("rspamd.ca_file", "/ca.pem", "read", False),
        ("dkim.client_certificate", "/cert.pem", "read", False),
        ("dkim.client_key", "/key.pem", "read", True),
        ("dkim.token_file", "/token", "read", True),
        ("shim.spill_dir", "/var/tmp", "write", False),
    ]
