"""Do rspamd's edits of header and body arrive where they belong? And its signatures hold?

Positions count as with rspamd's own milter: 0 is above everything, 1 below smtpd's Received.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import dkim  # type: ignore[import-untyped]
import pytest

from tests.live import places
from tests.live.letters import DATED, HEAD, LETTER, Post, ready
from tests.live.rspamd import Rspamd, verdict
from tests.live.world import Listener, OpenSMTPD, stored

CHECKED = "127.5.5.5"
LONG_NAME = ".".join(["a-long-label-of-a-host-name-that-goes-on-and-on"] * 4) + ".example"
ZONE = f"""
$PTR 127.5.5.5 good.example
good.example A 127.5.5.5
$PTR 127.5.5.6 {LONG_NAME}
{LONG_NAME} A 127.5.5.6
"""
CONFIGURATION = """
[fcrdns]
nameservers = ["{dns}"]
exempt_networks = ["127.0.0.1/32"]
[rspamd]
servers = ["RSPAMD"]
"""
FILTERS = {"bridge": "{bridge} -f {dir}/bridge.toml", "junk": "phase connect match rdns junk"}
LISTENERS = [
    Listener(filters=("bridge",)),
    Listener("junk", 2501, filters=("junk", "bridge")),
]
V = "X-Test-Verdict"
# What a letter has from top to bottom.
NAMES = ["Received", V, "From", "To", "Date", "Message-ID", "Subject"]


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[Post]:
    files = {"bridge.toml": CONFIGURATION.replace("RSPAMD", rspamd.url)}
    with OpenSMTPD(
        request.param, filters=FILTERS, files=files, listeners=LISTENERS, zone=ZONE
    ) as mta:
        yield ready(mta, "bridge")
        assert mta.alive
    assert not mta.leftovers


def at(index: int, *names: str) -> list[str]:
    """A letter's fields with these more from `index` on."""
    return [*NAMES[:index], *names, *NAMES[index:]]


ADDED: dict[str, tuple[Any, list[str]]] = {
    "without an order": ({"X-A": "v"}, at(7, "X-A")),
    "at 0": ({"X-A": {"value": "v", "order": 0}}, at(0, "X-A")),
    "at 1": ({"X-A": {"value": "v", "order": 1}}, at(1, "X-A")),
    "at 5": ({"X-A": {"value": "v", "order": 5}}, at(5, "X-A")),
    "at the end by its number": ({"X-A": {"value": "v", "order": 7}}, at(7, "X-A")),
    "beyond the end": ({"X-A": {"value": "v", "order": 99}}, at(7, "X-A")),
    "at -1": ({"X-A": {"value": "v", "order": -1}}, at(7, "X-A")),
    "at -2": ({"X-A": {"value": "v", "order": -2}}, at(6, "X-A")),
    "at -3": ({"X-A": {"value": "v", "order": -3}}, at(5, "X-A")),
    "by index instead of order": ({"X-A": {"value": "v", "index": 2}}, at(2, "X-A")),
    "several of a name": ({"X-A": ["v", "v"]}, at(7, "X-A", "X-A")),
    "a list of both shapes": ({"X-A": ["v", {"value": "v", "order": 1}]},
                              ["Received", "X-A", *NAMES[1:], "X-A"]),
    "a name that the letter has": ({"subject": {"value": "v", "order": 1}}, at(1, "subject")),
    "a name with a dot in front": ({".x": {"value": "v", "order": 1}}, at(1, ".x")),
    "an ARC set": (
        {name: {"value": "v", "order": 1}
         for name in ("ARC-Seal", "ARC-Authentication-Results", "ARC-Message-Signature")},
        at(1, "ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wish", "names"), ADDED.values(), ids=ADDED.keys())
def test_fields_are_added(post: Post, wish: Any, names: list[str]) -> None:
    mail = post.send(verdict(milter={"add_headers": wish}) + LETTER)
    assert [name for name, _ in mail.headers] == names
    for name in wish:
        assert b"v" in mail.header(name)
    assert mail.body == b"hello\n"


R = b"X-R: 1\r\nx-r: 2\r\nX-R:3\r\n folded\r\nX-Rest: 4\r\n"
REMOVED: dict[str, tuple[dict[str, Any], list[bytes]]] = {
    "the first": ({"X-R": 1}, [b"2", b"3\n folded"]),
    "the second": ({"X-R": 2}, [b"1", b"3\n folded"]),
    "the last, folded": ({"X-R": -1}, [b"1", b"2"]),
    "the third from below": ({"X-R": -3}, [b"2", b"3\n folded"]),
    "all": ({"X-R": 0}, []),
    "all, in another case": ({"x-R": 0}, []),
    "two by a list": ({"X-R": [1, 3]}, [b"2"]),
    "one that is not there": ({"X-R": 4}, [b"1", b"2", b"3\n folded"]),
    "a name that is not there": ({"X-Q": 0}, [b"1", b"2", b"3\n folded"]),
}


@pytest.mark.parametrize(("wish", "left"), REMOVED.values(), ids=REMOVED.keys())
def test_fields_are_removed(post: Post, wish: dict[str, Any], left: list[bytes]) -> None:
    mail = post.send(verdict(milter={"remove_headers": wish}) + R + LETTER)
    assert mail.header("X-R") == left
    assert mail.header("X-Rest") == [b"4"]
    assert mail.below_received.endswith(b"X-Rest: 4\n" + stored(LETTER))


def test_smtpds_own_received_can_not_be_removed(post: Post) -> None:
    old = b"Received: from a\r\n\tby b; c\r\nReceived: from d\r\n"
    mail = post.send(verdict(milter={"remove_headers": {"Received": 0}}) + old + LETTER)
    [received] = mail.header("Received")
    assert b"by mx.example.org (OpenSMTPD)" in received


def test_removing_and_adding_by_lua_mime(post: Post) -> None:
    wish = {"remove": {"X-R": [1, 2, 3]}, "add": {"X-R": {"value": "new", "order": 1}}}
    mail = post.send(verdict(modify_headers=wish) + R + LETTER)
    assert mail.header("X-R") == [b"new"]
    assert [name for name, _ in mail.headers] == ["Received", "X-R", V, "X-Rest", *NAMES[2:]]


VALUES: dict[str, tuple[str, bytes]] = {
    "many words": ("word " * 100 + "end", b"word " * 100 + b"end"),
    "one long word": ("x" * 700, b"x" * 700),
    "UTF-8": ("Gr\u00f6\u00dfe \u2603", "Gr\u00f6\u00dfe \u2603".encode()),
    "a fold of its own": ("a;\n\tb=c", b"a;\tb=c"),
    "a fold with CRLF": ("a;\r\n b=c", b"a; b=c"),
    "an injected field": ("a\r\nX-Evil: b", b"a X-Evil: b"),
    "an injected body": ("a\n\nX-Evil: b", b"a  X-Evil: b"),
    "control characters, as rspamd spells them": ("a\x01\x7f\tb", "a\ufffd\ufffd\tb".encode()),
    "dots": (".\n .\n .x", b". . .x"),
}


@pytest.mark.parametrize("order", [0, 1, 3, -1], ids="at {}".format)
@pytest.mark.parametrize(("value", "arrives"), VALUES.values(), ids=VALUES.keys())
def test_values_are_folded_and_legal(post: Post, value: str, arrives: bytes, order: int) -> None:
    mail = post.send(
        verdict(milter={"add_headers": {"X-A": {"value": value, "order": order}}}) + LETTER
    )
    [raw] = mail.header("X-A")
    assert raw.replace(b"\n", b"") == arrives
    lines = (b"X-A: " + raw).split(b"\n")
    assert [line for line in lines if len(line) > 78 and b" " in line.strip(b" ")[5:]] == []
    assert mail.header("X-Evil") == []
    assert [name for name, _ in mail.headers if name != "X-A"] == NAMES


def test_a_value_without_a_blank_is_broken_at_998_at_the_latest(post: Post) -> None:
    mail = post.send(verdict(milter={"add_headers": {"X-A": "x" * 5000}}) + LETTER)
    [raw] = mail.header("X-A")
    assert raw.replace(b"\n ", b"").strip() == b"x" * 5000
    assert max(map(len, (b"X-A: " + raw).split(b"\n"))) <= 998


def test_our_own_field_is_folded_too(post: Post) -> None:
    mail = post.send(source="127.5.5.6")
    [value] = mail.header("Authentication-Results")
    unfolded = value.replace(b"\n", b"").decode()
    assert unfolded == f"mx.example.org; iprev=pass policy.iprev=127.5.5.6 ({LONG_NAME})"
    lines = (b"Authentication-Results: " + value).split(b"\n")
    assert [len(line) for line in lines][:-1] < [79] * len(lines)
    assert len(lines[-1].split()) == 1  # what has no blank can't be folded


# The body.
BODIES: dict[str, tuple[str, bytes]] = {
    "text": ("one\r\ntwo\r\n", b"one\ntwo\n"),
    "dots": (".\r\n..\r\n.x\r\n", b".\n..\n.x\n"),
    "LF only": ("one\ntwo\n", b"one\ntwo\n"),
    "8-bit": ("Gr\u00f6\u00dfe\r\n", "Gr\u00f6\u00dfe\n".encode()),
    "without an end": ("one", b"one\n"),
    "CRs that end no line": ("a\rb\r\nc\r\r\n.\r\r\n", b"ab\nc\n.\n"),
    "long": ("x" * 900 + "\r\n" + "line\r\n" * 5000, b"x" * 900 + b"\n" + b"line\n" * 5000),
}


def replaced(post: Post, body: str) -> bytes:
    """What arrives when rspamd gives a letter that body."""
    wish = {"add_headers": {"X-A": "b"}}
    new = "X-Other: header\r\n\r\n" + body
    wanted = verdict(body=new, milter=wish, action="add header", score=7)
    mail = post.send(wanted + LETTER + b".\r\n..old\r\n")
    assert [name for name, _ in mail.headers] == [
        *NAMES, "X-A", "X-Spam", "X-Spam-Score", "X-Spam-Status",
    ]  # fmt: skip
    return mail.body


@pytest.mark.parametrize(("body", "arrives"), BODIES.values(), ids=BODIES.keys())
def test_the_body_is_replaced(post: Post, body: str, arrives: bytes) -> None:
    assert replaced(post, body) == arrives


def test_lines_of_a_new_body_that_are_too_long_are_broken(post: Post) -> None:
    longest = places.LONGEST[post.mta.version]
    line = "x" * longest
    arrives = b"%s\n%s\n x\nend\n" % (line.encode(), line.encode())
    assert replaced(post, f"{line}\r\n{line}x\r\nend\r\n") == arrives


# Signatures.


@pytest.fixture(scope="module")
def key() -> str:
    command = ["openssl", "genrsa", "-traditional", "1024"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def record(key: str) -> bytes:
    """The key's DNS record."""
    command = ["openssl", "rsa", "-pubout"]
    done = subprocess.run(command, input=key, check=True, capture_output=True, text=True)
    return b"v=DKIM1; k=rsa; p=" + "".join(done.stdout.splitlines()[1:-1]).encode()


@pytest.mark.parametrize("source", [None, CHECKED], ids=["nothing else", "our own field above"])
@pytest.mark.parametrize("selectors", [["one"], ["one", "two"]], ids=["one key", "two keys"])
def test_rspamds_signatures_go_below_received_and_hold(
    post: Post, key: str, selectors: list[str], source: str | None
) -> None:
    keys = [{"domain": "client.example", "selector": s, "rawkey": key} for s in selectors]
    letter = HEAD + b"Subject: a\r\n folded one\r\n\r\n.dot\r\n..\r\n\xe9 \t\r\n\r\n\r\n"
    mail = post.send(verdict(dkim=keys, score=7) + letter, source=source)
    names = [name for name, _ in mail.headers]
    own = [] if source is None else ["Authentication-Results"]
    count = len(own) + len(keys)
    assert names[: 2 + count] == ["Received", *own, *["DKIM-Signature"] * len(keys), V]
    assert names[-3:] == ["X-Spam", "X-Spam-Score", "X-Spam-Status"]
    txt = record(key)
    for index, selector in enumerate(selectors):
        verifier = dkim.DKIM(mail.message.replace(b"\n", b"\r\n"))
        held = verifier.verify(idx=index, dnsfunc=lambda name, timeout=5: txt)
        assert (held, verifier.selector) == (True, selector.encode())


# What only we and smtpd may say.


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (0, ["X-Spam", "X-A", "Received", V, "X-Spam"]),
        (1, ["X-Spam", "Received", "X-A", V, "X-Spam"]),
    ],
    ids=["at 0", "at 1"],
)
def test_smtpds_junk_mark_stays_first_and_does_not_count(
    post: Post, order: int, expected: list[str]
) -> None:
    wish = {
        "remove_headers": {"X-Spam": 1},
        "add_headers": {"X-A": {"value": "a", "order": order}},
    }
    message = verdict(milter=wish) + b"X-Spam: forged\r\nX-Spam: other\r\n" + LETTER
    mail = post.send(message, listener="junk")
    assert mail.junk
    assert mail.header("X-Spam") == [b"Yes", b"other"]
    assert [name for name, _ in mail.headers] == [*expected, *NAMES[2:]]


def test_junk_of_smtpd_and_spam_of_rspamd_are_two_marks(post: Post) -> None:
    mail = post.send(verdict(score=7) + b"X-Spam: No\r\n" + LETTER, listener="junk")
    assert mail.header("X-Spam") == [b"Yes", b"Yes"]
    names = [name for name, _ in mail.headers]
    assert (names[0], names[-3]) == ("X-Spam", "X-Spam")


def test_junk_is_not_shown_to_rspamd_and_else_passes_as_it_is(post: Post, rspamd: Rspamd) -> None:
    mail = post.send(LETTER, listener="junk")
    assert mail.message.startswith(b"X-Spam: Yes\nReceived: ")
    assert mail.below_received == stored(LETTER)
    received = mail.message.removeprefix(b"X-Spam: Yes\n")
    assert rspamd.seen()[-1]["size"] == len(received.replace(b"\n", b"\r\n"))


OURS = [
    b"mx.example.org; spf=pass",
    b"MX.Example.ORG 1; spf=pass",
    b"\r\n mx.example.org;\r\n\tspf=pass",
    b'"mx.example.org"; spf=pass',
    b"(a comment) mx.example.org (another); spf=pass",
    b"mx.example.org",
    b'((nested) and \\) quoted) "mx\\.example.org"/1; spf=pass',
]
FOREIGN = [
    b"mx.example.org.evil.example; spf=pass",
    b"other.example; spf=pass",
    b"xmx.example.org; spf=pass",
    b"example.org; iprev=fail policy.iprev=192.0.2.1",
]


def field(name: bytes, *values: bytes) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for value in values)


@pytest.mark.parametrize("source", [None, CHECKED], ids=["exempt", "checked"])
def test_forged_results_of_ours_are_removed_and_others_kept(post: Post, source: str | None) -> None:
    name = b"Authentication-Results"
    forged = field(name, *OURS[:3], *FOREIGN[:2]) + field(name.upper(), *OURS[3:], *FOREIGN[2:])
    mail = post.send(forged + LETTER, source=source)
    ours = b"mx.example.org; iprev=pass policy.iprev=127.5.5.5\n (good.example)"
    assert mail.header(name.decode()) == [*([ours] if source else []), *FOREIGN]
    kept = field(name, *FOREIGN[:2]) + field(name.upper(), *FOREIGN[2:])
    assert mail.below_received.endswith(stored(kept + LETTER))


def test_a_forged_x_unscanned_is_removed(post: Post) -> None:
    forged = b"X-Unscanned: no\r\nx-unscanned: never\r\n ever\r\nX-Unscanned-Not: kept\r\n"
    mail = post.send(DATED + forged + b"\r\nhello\r\n")
    assert mail.below_received == stored(DATED + b"X-Unscanned-Not: kept\r\n\r\nhello\r\n")
