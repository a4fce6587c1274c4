"""A configuration text with mistakes, and the exact lines about them."""

from __future__ import annotations

import pytest

from bridge import config

# Text -> all lines, in order, without "bridge.toml: " before each.
MISTAKES = {
    "a duration without a unit": (
        "[rspamd]\ntimeout = '20'",
        ['rspamd.timeout: found "20", expected a duration like "15s", "500ms" or "2m", '
         "from 100ms to 10m"],
    ),
    "a duration that is not a number": (
        "[rspamd]\ntimeout = nan",
        ['rspamd.timeout: found nan, expected a duration like "15s", "500ms" or "2m", '
         "from 100ms to 10m"],
    ),
    "true is not a number": (
        "[bridge]\nslots = true",
        ["bridge.slots: found true, expected a whole number from 1 to 10000"],
    ),
    "a number out of bounds": (
        "[bridge]\nslots = 0",
        ["bridge.slots: found 0, expected a whole number from 1 to 10000"],
    ),
    "a word is not a truth": (
        "enforce = 'no'",
        ['enforce: found "no", expected true or false'],
    ),
    "a size in decimal units": (
        "[rspamd]\nmax_size = '50MB'",
        ['rspamd.max_size: found "50MB", expected a size like "64K" or "256M", from 1K to 2G'],
    ),
    "a number beyond what a float holds": (
        f"[rspamd]\ntimeout = 1{'0' * 400}",
        [f"rspamd.timeout: found 1{'0' * 56}..., expected a duration like "
         '"15s", "500ms" or "2m", from 100ms to 10m'],
    ),
    "a choice nearly right": (
        "[fcrdns]\nfail = 'rejekt'",
        ['fcrdns.fail: found "rejekt", expected "disconnect", "reject", "mark" or "ignore"'
         ' (did you mean "reject"?)'],
    ),
    "a choice of another type": (
        "[fcrdns]\nfail = ['reject']",
        ['fcrdns.fail: found ["reject"], expected "disconnect", "reject", "mark" or "ignore"'],
    ),
    "a table where a key is expected": (
        "[log.level]",
        ['log.level: found a table, expected "debug", "info" or "warning"'],
    ),
    "a key where a table is expected": (
        "shim = 'yes'\n[failure]\nrspamd = 'tempfail'",
        ['shim: found "yes", expected a table, [shim]',
         'failure.rspamd: found "tempfail", expected a table, [failure.rspamd]'],
    ),
    "each bad item of a list": (
        "[rspamd]\nservers = ['http://[::1]:11333', 'localhost', 'http://u:p@h', 'http://h:0']",
        ['rspamd.servers[1]: found "localhost", '
         'expected "http://HOST:PORT", "https://HOST:PORT" or "unix:/PATH"',
         'rspamd.servers[2]: found "http://u:p@h", '
         'expected "http://HOST:PORT", "https://HOST:PORT" or "unix:/PATH"',
         'rspamd.servers[3]: found "http://h:0", '
         'expected "http://HOST:PORT", "https://HOST:PORT" or "unix:/PATH"'],
    ),
    "no list": (
        "[fcrdns]\nnameservers = '192.0.2.53'",
        ['fcrdns.nameservers: found "192.0.2.53", expected a list, '
         'each an address like "192.0.2.53" or "[::1]:5353"'],
    ),
    "a name is no nameserver": (
        "[fcrdns]\nnameservers = ['dns.example.org', '192.0.2.53:99999']",
        ['fcrdns.nameservers[0]: found "dns.example.org", '
         'expected an address like "192.0.2.53" or "[::1]:5353"',
         'fcrdns.nameservers[1]: found "192.0.2.53:99999", '
         'expected an address like "192.0.2.53" or "[::1]:5353"'],
    ),
    "a network with host bits": (
        "[fcrdns]\nexempt_networks = ['10.1.2.3/8', 'lan']",
        ['fcrdns.exempt_networks[0]: found "10.1.2.3/8", expected a network without host bits'
         ' (did you mean "10.0.0.0/8"?)',
         'fcrdns.exempt_networks[1]: found "lan", '
         'expected a network like "192.0.2.0/24" or "2001:db8::/32"'],
    ),
    "a reply without an enhanced code, and one for another occasion": (
        "[fcrdns]\nreply = '550 Go away'\ntemperror_reply = '550 5.7.25 Go away'",
        ['fcrdns.reply: found "550 Go away", expected a reply like "550 5.7.1 Text": '
         "code, enhanced code and up to 440 ASCII",
         'fcrdns.temperror_reply: found "550 5.7.25 Go away", expected a reply like '
         '"451 4.7.1 Text": code, enhanced code and up to 440 ASCII'],
    ),
    "a reply with a line end": (
        '[rspamd]\nreject_reply = "550 5.7.1 a\\r\\nb"',
        ['rspamd.reject_reply: found "550 5.7.1 a\\r\\nb", expected a reply like '
         '"550 5.7.1 Text": code, enhanced code and up to 440 ASCII'],
    ),
    "a relative path, since smtpd's working directory is anybody's guess": (
        "[shim]\nspill_dir = 'tmp'\nconnect = ['unix:x.sock', 'tcp:host', 'tcp:h:70000']",
        ['shim.spill_dir: found "tmp", expected an absolute path',
         'shim.connect[0]: found "unix:x.sock", expected "unix:/PATH" or "tcp:HOST:PORT"',
         'shim.connect[1]: found "tcp:host", expected "unix:/PATH" or "tcp:HOST:PORT"',
         'shim.connect[2]: found "tcp:h:70000", expected "unix:/PATH" or "tcp:HOST:PORT"'],
    ),
    "headers that are the bridge's, and one that can't be": (
        "[rspamd.headers]\nIP = '192.0.2.1'\nFile = '/etc/passwd'\n'A b' = 'x'\nX-A = \"a\\nb\"",
        ['rspamd.headers.IP: found "IP", '
         "expected the name of a header that the bridge does not set itself",
         'rspamd.headers.File: found "File", '
         "expected the name of a header that the bridge does not set itself",
         'rspamd.headers.A b: found "A b", expected the name of a header field',
         "rspamd.headers.X-A: found something else, expected a line of printable ASCII"],
    ),
    "an action that means nothing": (
        "[rspamd.actions]\n'custom tag' = 'ad header'",
        ['rspamd.actions.custom tag: found "ad header", expected "no action", "greylist", '
         '"add header", "rewrite subject", "soft reject", "reject", "discard" or "quarantine"'
         ' (did you mean "add header"?)'],
    ),
    "inherit from what?": (
        "[failure.dkim]\ndefault = 'inherit'",
        ['failure.dkim.default: found "inherit", expected "tempfail", "accept" or '
         '"accept-header"'],
    ),
    "a secret is not shown": (
        "[dkim]\ntoken = 12345678",
        ['dkim.token: found something else, expected a text, "env:NAME", or ""'],
    ),
    "two secrets": (
        "[dkim]\ntoken = 'a'\ntoken_file = '/b'",
        ["dkim.token: found token and token_file, expected one of them"],
    ),
    "an environment variable that is not set": (
        "[dkim]\ntoken = 'env:NONE'",
        ["dkim.token: found nothing in environment variable NONE, "
         "expected a line of printable ASCII"],
    ),
    "an environment variable that would break the request": (
        "[dkim]\ntoken = 'env:BROKEN'",
        ["dkim.token: found something else in environment variable BROKEN, "
         "expected a line of printable ASCII"],
    ),
    "a secret and a certificate that are not there": (
        "[rspamd]\ntoken_file = '/nonexistent/t'\nca_file = '/nonexistent/ca'",
        ['rspamd.token_file: found "/nonexistent/t" (No such file or directory), '
         "expected a file that can be read",
         'rspamd.ca_file: found "/nonexistent/ca", expected a file that can be read'],
    ),
    "a signer without a server": (
        "[dkim]\nenabled = true",
        ["dkim.servers: found none, expected one at least, or dkim.enabled = false"],
    ),
    "a signer without a server, wanted by a profile only": (
        "[[profile]]\nname = 'out'\ndkim.enabled = true",
        ["dkim.servers: found none, expected one at least, or dkim.enabled = false"],
    ),
    "a client key without a certificate": (
        "[rspamd]\nclient_key = '/dev/null'",
        ["rspamd.client_certificate: found none, expected one, since there is a client_key"],
    ),
    "a scan that may outlast the shim's patience": (
        "[rspamd]\ndeadline = '50s'",
        ["rspamd.deadline: found 50s, expected less than shim.message_deadline, 45s (default)"],
    ),
    "scan and signature that together may": (
        "[shim]\nmessage_deadline = 40\n[dkim]\nenabled = true\nservers = ['unix:/s']",
        ["rspamd.deadline and dkim.deadline: found 30s (default) and 10s (default), "
         "expected together less than shim.message_deadline, 40s"],
    ),
    "a lookup that may outlast a command": (
        "[fcrdns]\ntimeout = '20s'",
        ["fcrdns.timeout: found 20s, expected less than shim.command_deadline, 15s (default)"],
    ),
    "a try longer than all tries": (
        "[rspamd]\ntimeout = '40s'\nconnect_timeout = '1m'",
        ["rspamd.timeout: found 40s, expected at most rspamd.deadline, 30s (default)",
         "rspamd.connect_timeout: found 1m, expected at most rspamd.timeout, 40s"],
    ),
    "a message that the link would never take": (
        "[shim]\nmax_message_size = '100M'",
        ["shim.max_message_size: found 100M, expected at most bridge.bytes, 64M (default)"],
    ),
    "a value that is wrong is not compared": (
        "[rspamd]\ndeadline = 'never'",
        ['rspamd.deadline: found "never", expected a duration like "15s", "500ms" or "2m", '
         "from 100ms to 10m"],
    ),
    "a profile without a name": (
        "[[profile]]\nenforce = 1",
        ["profile[0].name: found nothing, expected a name",
         "profile[0].enforce: found 1, expected true or false"],
    ),
    "names of profiles": (
        "[[profile]]\nname = 'a b'\n[[profile]]\nname = 'x'\n[[profile]]\nname = 'x'\n"
        "[[profile]]\nname = 'default'",
        ['profile[0].name: found "a b", expected a name of letters, digits, - and _',
         'profile[2].name: found "x", expected a name that no other profile has',
         'profile[3].name: found "default", expected a name that no other profile has'],
    ),
    "a profile in single brackets": (
        "[profile]\nname = 'x'",
        ["profile: found a table, expected [[profile]], in double brackets"],
    ),
    "what is one for all profiles": (
        "[[profile]]\nname = 'x'\nrspamd.servers = []\nshim.long_lines = 'break'",
        ["profile.x.rspamd.servers: found a key of its own, "
         "expected rspamd.servers in the main part, for all",
         "profile.x.shim.long_lines: found a key of its own, "
         "expected shim.long_lines in the main part, for all"],
    ),
    "a bad match": (
        "[[profile]]\nname = 'x'\nmatch = { port = [25, 0], address = 'mx', local = 'no' }",
        ["profile[0].match.port[1]: found 0, expected a whole number from 1 to 65535",
         'profile[0].match.address: found "mx", '
         'expected a network like "192.0.2.0/24" or "2001:db8::/32"',
         'profile[0].match.local: found "no", expected true or false'],
    ),
    "everything at once": (
        "enforce = 0\n[rspamd]\nservers = []\n[log]\nlevel = 'all'\n[fcrdns]\ntimeout = '1m'",
        ["enforce: found 0, expected true or false",
         'log.level: found "all", expected "debug", "info" or "warning"',
         "fcrdns.timeout: found 1m, expected less than shim.command_deadline, 15s (default)",
         "rspamd.servers: found none, expected one at least, or rspamd.enabled = false"],
    ),
}  # fmt: skip

# Where the parser gave up; its own words follow.
SYNTAX = {
    "no value": ("[rspamd]\ntimeout =\n", "bridge.toml: line 2, column 10: not TOML: "),
    "a string without an end": ("authserv_id = 'mx", "bridge.toml: end of document: not TOML: "),
    "a table twice": ("[rspamd]\n[rspamd]", "bridge.toml: line 2, column 8: not TOML: "),
}

UNKNOWN = {
    "nearly right": (
        "enfore = true",
        "enfore: found an unknown key, expected a key or table of the main part"
        " (did you mean enforce?)",
    ),
    "nearly right, in a table": (
        "[rspamd]\nconnect-timeout = '1s'",
        "rspamd.connect-timeout: found an unknown key, expected a key of [rspamd]"
        " (did you mean connect_timeout?)",
    ),
    "a table": (
        "[fcrnds]\nfail = 'mark'",
        "fcrnds: found an unknown key, expected a key or table of the main part"
        " (did you mean fcrdns?)",
    ),
    "right, in the wrong table": (
        "spill_dir = '/tmp'",
        "spill_dir: found an unknown key, expected a key or table of the main part"
        " (did you mean shim.spill_dir?)",
    ),
    "right, in the wrong table of a profile": (
        "[[profile]]\nname = 'x'\nfail = 'mark'",
        "profile.x.fail: found an unknown key, expected a key or table of the main part"
        " (did you mean fcrdns.fail?)",
    ),
    "far from everything, and with a line end": (
        '[log]\n"a\\nb" = 1',
        'log."a\\nb": found an unknown key, expected a key of [log]',
    ),
    "in a match": (
        "[[profile]]\nname = 'x'\nmatch.ports = [25]",
        "profile[0].match.ports: found an unknown key, expected a key of [match]"
        " (did you mean port?)",
    ),
}

ENV = {"TOKEN": "s3cret", "BROKEN": "a\nb"}


def lines(problems: list[str] | tuple[str, ...], file: str = "bridge.toml") -> list[str]:
    assert all(problem.startswith(f"{file}: ") for problem in problems)
    return [problem.removeprefix(f"{file}: ") for problem in problems]


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_all_mistakes_are_told_at_once(text: str, expected: list[str]) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, env=ENV)
    assert lines(caught.value.problems) == expected
    assert str(caught.value) == "\n".join(caught.value.problems)


@pytest.mark.parametrize(("text", "where"), SYNTAX.values(), ids=SYNTAX)
def test_a_text_that_is_not_toml_says_where(text: str, where: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text)
    (problem,) = caught.value.problems
    assert problem.startswith(where)
    assert "(at" not in problem


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "1" * 10_000], ids=["too deep", "too many digits"]
)
def test_a_text_that_breaks_the_parser_is_a_mistake(text: str) -> None:
    with pytest.raises(config.ConfigError, match="not TOML"):
        config.parse(text)


@pytest.mark.parametrize(("text", "expected"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_key_is_a_warning_or_when_strict_a_mistake(text: str, expected: str) -> None:
    assert lines(config.parse(text).warnings) == [expected]
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, strict=True)
    assert lines(caught.value.problems) == [expected]
