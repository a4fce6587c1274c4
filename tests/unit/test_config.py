"""What is read from a configuration: values, secrets, files."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

import pytest

from bridge import config
from bridge.config import kinds, values
from bridge.smtpd.decisions import Reject
from tests.unit.test_config_mistakes import ENV, lines

GOOD: dict[str, tuple[str, str, Any]] = {
    "a duration with a unit": ("[rspamd]\ntimeout = '1.5s'", "main.rspamd.timeout", 1.5),
    "milliseconds": ("[rspamd]\nconnect_timeout = '500ms'", "main.rspamd.connect_timeout", 0.5),
    "minutes": ("[bridge]\ndrain = '2m'", "bridge.drain", 120.0),
    "hours": ("[rspamd]\nmax_revive = '1h'", "main.rspamd.max_revive", 3600.0),
    "seconds as a number": ("[rspamd]\ntimeout = 7", "main.rspamd.timeout", 7.0),
    "kibibytes": ("[rspamd]\nmax_size = '64K'", "main.rspamd.max_size", 65536),
    "mebibytes, by their name": ("[shim]\nmax_memory = '1MiB'", "shim.max_memory", 1 << 20),
    "gibibytes": ("[shim]\nmax_spill = '1G'", "shim.max_spill", 1 << 30),
    "bytes": ("[shim]\nmax_spill = 0", "shim.max_spill", 0),
    "a unix endpoint": (
        "[shim]\nconnect = ['unix:/run/b.sock']",
        "shim.connect",
        (config.Endpoint(path="/run/b.sock"),),
    ),
    "tcp endpoints": (
        "[shim]\nconnect = ['tcp:bridge:7000', 'tcp:[::1]:7000']",
        "shim.connect",
        (config.Endpoint(host="bridge", port=7000), config.Endpoint(host="::1", port=7000)),
    ),
    "servers, one with a slash too much": (
        "[rspamd]\nservers = ['https://r:1/x/', 'unix:/run/r.sock', 'http://[::1]:11333']",
        "main.rspamd.servers",
        ("https://r:1/x", "unix:/run/r.sock", "http://[::1]:11333"),
    ),
    "a reply": (
        "[fcrdns]\nreply = '450 4.7.25 Later'",
        "main.fcrdns.reply",
        Reject("4.7.25", "Later", 450),
    ),
    "an address is a network": (
        "[dkim]\nsign_networks = ['192.0.2.1', '2001:db8::/32']",
        "main.dkim.sign_networks",
        (ipaddress.ip_network("192.0.2.1/32"), ipaddress.ip_network("2001:db8::/32")),
    ),
    "names in lower case": (
        "[fcrdns]\nexempt_names = ['.Example.ORG.', 'MX.example.net']",
        "main.fcrdns.exempt_names",
        (".example.org", "mx.example.net"),
    ),
    "recipients in lower case": (
        "[fcrdns]\nexempt_recipients = ['Postmaster', 'Abuse@Example.ORG']",
        "main.fcrdns.exempt_recipients",
        ("postmaster", "abuse@example.org"),
    ),
    "an action's name as rspamd sends it": (
        "[rspamd]\nactions = { Custom_Tag = 'add header' }",
        "main.rspamd.actions",
        {"custom tag": "add header"},
    ),
    "request headers": (
        "[rspamd]\nheaders = { MTA-Tag = 'mx 1' }",
        "main.rspamd.headers",
        {"MTA-Tag": "mx 1"},
    ),
    "a service that is off needs no server": (
        "[rspamd]\nenabled = false\nservers = []\ndeadline = '5m'",
        "main.rspamd.servers",
        (),
    ),
    "defaults give way to a short deadline": (
        "[rspamd]\ndeadline = '1s'",
        "main.rspamd.deadline",
        1.0,
    ),
}


@pytest.mark.parametrize(("text", "path", "expected"), GOOD.values(), ids=GOOD)
def test_a_value_is_read(text: str, path: str, expected: Any) -> None:
    value: Any = config.parse(text, strict=True)
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected


@pytest.mark.parametrize("text", ["unix:/run/b.sock", "tcp:bridge:7000", "tcp:[::1]:7000"])
def test_an_endpoint_is_shown_as_it_is_written(text: str) -> None:
    assert str(config.Endpoint.parse(text)) == text


@pytest.mark.parametrize("text", ["15s", "500ms", "2m", "1h", "90s", "0s", "1.5s"])
def test_a_duration_is_shown_as_it_is_written(text: str) -> None:
    assert values.show_duration(kinds.duration(0).read(text)) == text


@pytest.mark.parametrize("text", ["64K", "256M", "1G", "1000", "0"])
def test_a_size_is_shown_as_it_is_written(text: str) -> None:
    assert values.show_size(kinds.size(0).read(text)) == text


def test_a_token_comes_from_the_environment() -> None:
    token = config.parse("[dkim]\ntoken = 'env:TOKEN'", env=ENV).main.dkim.token
    assert token == config.Secret("s3cret", "env")


def test_a_token_comes_from_a_file_and_its_line_end_is_no_part_of_it(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    secret.chmod(0o640)
    parsed = config.parse(f"[dkim]\ntoken_file = '{secret}'")
    assert parsed.main.dkim.token == config.Secret("s3cret", "file")
    assert parsed.warnings == ()


def test_a_token_file_that_everyone_may_read_is_warned_of(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    secret.chmod(0o644)
    parsed = config.parse(f"[dkim]\ntoken_file = '{secret}'")
    assert lines(parsed.warnings) == [
        f"dkim.token_file: everyone may read {secret}: chmod o-r"
    ]  # fmt: skip


@pytest.mark.parametrize(("content", "found"), [("\n", "nothing"), ("a\nb\n", "something else")])
def test_a_token_file_of_anything_but_one_line_is_a_mistake(
    tmp_path: Path, content: str, found: str
) -> None:
    secret = tmp_path / "token"
    secret.write_text(content)
    with pytest.raises(config.ConfigError) as caught:
        config.parse(f"[dkim]\ntoken_file = '{secret}'")
    expected = f"dkim.token_file: found {found} in {secret}, expected a line of printable ASCII"
    assert lines(caught.value.problems) == [expected]


def test_a_shim_with_a_bridge_elsewhere_needs_no_secrets() -> None:
    text = "[dkim]\ntoken_file = '/nonexistent'\nca_file = '/nonexistent'\n"
    parsed = config.parse(text + "[rspamd]\ntoken = 'env:NONE'", secrets=False, env={})
    assert not parsed.main.dkim.token
    assert not parsed.main.rspamd.token


def test_no_secret_is_shown() -> None:
    text = "[dkim]\ntoken = 's3cret'\n[rspamd]\ntoken = 'env:TOKEN'"
    parsed = config.parse(text, env=ENV)
    assert parsed.main.dkim.token.value == "s3cret"
    for shown in (repr(parsed), f"{parsed.main.dkim.token}", str(parsed.main.rspamd)):
        assert "s3cret" not in shown


def test_a_token_in_clear_and_the_milter_port_are_warned_of() -> None:
    text = """[rspamd]
        token = "t"
        servers = ["http://127.0.0.1:1", "http://127.0.0.1.example.org:1", "https://r:1",
                   "http://localhost.example.org", "unix:/r", "http://[::1]:11332"]"""
    assert lines(config.parse(text).warnings) == [
        "rspamd.servers: the token goes to http://127.0.0.1.example.org:1 in clear: use https",
        "rspamd.servers: the token goes to http://localhost.example.org in clear: use https",
        "rspamd.servers: http://[::1]:11332 looks like rspamd's milter port: "
        "the scan port is 11333",
    ]  # fmt: skip


def test_a_file_is_loaded_under_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text("enforce = false\nenfore = false")
    loaded = config.load(file)
    assert loaded.main.enforce is False
    assert loaded.file == str(file)
    assert lines(loaded.warnings, str(file)) == [
        "enfore: found an unknown key, expected a key or table of the main part"
        " (did you mean enforce?)"
    ]


@pytest.mark.parametrize(("mode", "warned"), [(0o640, False), (0o644, True)])
def test_a_secret_in_a_file_for_everyone_is_warned_of(
    tmp_path: Path, mode: int, warned: bool
) -> None:
    file = tmp_path / "b.toml"
    file.write_text("[dkim]\ntoken = 's3cret'\n[rspamd]\ntoken = 'env:TOKEN'")
    file.chmod(mode)
    expected = "dkim.token: a secret in a file that everyone may read: chmod o-r"
    warnings = config.load(file, env=ENV).warnings
    assert lines(warnings, str(file)) == ([expected] if warned else [])


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"
    with pytest.raises(config.ConfigError) as caught:
        config.load(file)
    assert caught.value.problems == [f"{file}: can't be read: No such file or directory"]


def test_a_directory_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.load(tmp_path)
    assert caught.value.problems == [f"{tmp_path}: can't be read: Is a directory"]


def test_a_file_that_is_not_utf8_says_where(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_bytes(b"enforce = true\n# \xe9\n")
    with pytest.raises(config.ConfigError) as caught:
        config.load(file)
    assert caught.value.problems == [f"{file}: line 2: not TOML: not UTF-8"]


def test_a_file_without_end_is_a_mistake() -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.load("/dev/zero")
    assert caught.value.problems == ["/dev/zero: found over 1M, expected a TOML file"]


def test_an_environment_is_looked_at_when_loading_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "FILTER_BRIDGE_TEST_TOKEN", "later")
    parsed = config.parse("[dkim]\ntoken = 'env:FILTER_BRIDGE_TEST_TOKEN'")
    assert parsed.main.dkim.token.value == "later"
