"""What does each of rspamd's actions do to a message? Through the real bridge on real servers.

A message carries what rspamd is to say of it (tests/live/rspamd.py). Each listener has a port,
and thereby a profile or a chain of filters, of its own.
"""

from __future__ import annotations

import email.header
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import places
from tests.live.bridged import bridged
from tests.live.letters import HEAD, LETTER, Post, ready
from tests.live.rspamd import GTUBE, Rspamd, verdict
from tests.live.world import Listener, stored

CONFIGURATION = """
fcrdns.enabled = false
[rspamd]
servers = ["{rspamd}"]
actions = { "custom tag" = "add header" }

[[profile]]
name = "lenient"
match.port = 2501
rspamd.discard = "accept"
rspamd.quarantine = "accept"
rspamd.actions = {}

[[profile]]
name = "marking"
match.port = 2502
rspamd.discard = "spam"
rspamd.quarantine = "reject"
rspamd.actions = { "custom tag" = "soft reject", "add header" = "reject" }
rspamd.spam_header = "X-Junk"
rspamd.reject_reply = "554 5.7.1 We do not like it"
rspamd.soft_reject_reply = "451 4.7.1 Not now"

[[profile]]
name = "deferring"
match.port = 2503
rspamd.quarantine = "tempfail"
rspamd.score_header = "always"

[[profile]]
name = "watching"
match.port = 2504
enforce = false
"""
PORTS = {"lenient": 2501, "marking": 2502, "deferring": 2503, "watching": 2504}
VERDICT = "X-Test-Verdict"


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[Post]:
    with bridged(
        request.param,
        CONFIGURATION,
        values={"rspamd": rspamd.url},
        listeners=[Listener(), *(Listener(name, port) for name, port in PORTS.items())],
    ) as mta:
        yield ready(mta, "bridge")
        assert mta.alive
    assert not mta.leftovers


def said(**wanted: Any) -> bytes:
    """A letter of which rspamd says that."""
    return verdict(**wanted) + LETTER


# What the client is told, without the session in brackets.
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "GTUBE": ("smtp", LETTER + GTUBE + b"\r\n", "554 5.7.1 Gtube pattern"),
    "GTUBE in a last line without an end": ("smtp", LETTER + GTUBE, "554 5.7.1 Gtube pattern"),
    "reject with a text": ("smtp", said(action="reject", message="Go away"), "554 5.7.1 Go away"),
    "reject without a text": ("smtp", said(action="reject"), "554 5.7.1 Spam message rejected"),
    "reject by score": ("smtp", said(score=20), "554 5.7.1 Spam message rejected"),
    "reject without a text, another configured": (
        "marking",
        said(action="reject"),
        "554 5.7.1 We do not like it",
    ),
    "soft reject with a text": (
        "smtp",
        said(action="soft reject", message="Greylisted"),
        "451 4.7.1 Greylisted",
    ),
    "soft reject without a text": ("smtp", said(action="soft reject"), "451 4.7.1 Try again later"),
    "soft reject without a text, another configured": (
        "marking",
        said(action="soft reject"),
        "451 4.7.1 Not now",
    ),
    "discard": (
        "smtp",
        said(action="discard", message="for us only"),
        "554 5.7.1 Spam message rejected",
    ),
    "a custom action that discards": ("smtp", said(action="silent"), "554 5.7.1 Spam message"),
    "reject that a rule wants discarded": (
        "smtp",
        said(action="reject", message="x", milter={"reject": "discard"}),
        "554 5.7.1 Spam message rejected",
    ),
    "quarantine as reject": ("marking", said(action="quarantine"), "554 5.7.1 We do not like it"),
    "quarantine as tempfail": ("deferring", said(action="quarantine"), "451 4.7.1 Try again later"),
    "a custom action mapped to soft reject": (
        "marking",
        said(action="custom tag"),
        "451 4.7.1 Not now",
    ),
    "an action of rspamd's mapped to another": (
        "marking",
        said(action="add header", score=7),
        "554 5.7.1 We do not like it",
    ),
    "a text with line ends": (
        "smtp",
        said(action="reject", message="one\r\n250 two\nthree\rfour"),
        "554 5.7.1 one 250 two three four",
    ),
    "a text that is not ASCII": (
        "smtp",
        said(action="reject", message="Gr\u00f6\u00dfe \u2603 x"),
        "554 5.7.1 Gr e   x",
    ),
    "a text of nothing printable": (
        "smtp",
        said(action="reject", message="\r\n\u2603"),
        "554 5.7.1 Spam message rejected",
    ),
    "a text with a reply code of its own": (
        "smtp",
        said(action="reject", message="550 5.7.0 mine | with a bar"),
        "554 5.7.1 550 5.7.0 mine | with a bar",
    ),
}


@pytest.mark.parametrize(("listener", "message", "reply"), REFUSED.values(), ids=REFUSED.keys())
def test_the_client_is_refused_and_nothing_is_delivered(
    post: Post, listener: str, message: bytes, reply: str
) -> None:
    with post.mta.client("" if listener == "smtp" else listener) as client:
        told = post.refused(client, message)
        assert len(told.lines) == 1
        assert str(told).startswith(reply)
        session = post.mta.wait_log(rf"(?:refused|deferred) session=(\w+) peer={client.local} ")[1]
        assert str(told).endswith(f" [{session}]")
        assert client.quit().code == 221


def test_a_text_that_is_too_long_is_cut_to_a_legal_reply(post: Post) -> None:
    with post.mta.client() as client:
        told = post.refused(client, said(action="reject", message="x" * 5000))
    assert 400 < len(f"{told}\r\n") <= 512  # RFC 5321, 4.5.3.1.5
    assert told.text.endswith("]")


def test_refused_and_accepted_messages_in_turn(post: Post) -> None:
    with post.mta.client() as client:
        for action, code in (("reject", 554), ("soft reject", 451), ("discard", 554)) * 2:
            assert post.refused(client, said(action=action)).code == code
            assert post.sent(client, said(action="no action")).body == b"hello\n"


def spam(score: str, *tests: str) -> list[tuple[str, bytes]]:
    """The fields that spam gets."""
    status = f"Yes, score={score} required=104.00 tests=[{', '.join(tests)}]"
    return [
        ("X-Spam", b"Yes"),
        ("X-Spam-Score", f"{score} / 104.00".encode()),
        ("X-Spam-Status", status.encode()),
    ]


# What passes, and which fields it gets at the end of its header.
PASSED: dict[str, tuple[str, dict[str, Any], list[tuple[str, bytes]]]] = {
    "no action": ("smtp", {"score": 1}, []),
    "greylist": ("smtp", {"action": "greylist"}, []),
    "greylist by score": ("smtp", {"score": 4.5}, []),
    "no action, score wanted": (
        "deferring",
        {"score": 1.5},
        [("X-Spam-Score", b"1.50 / 104.00"),
         ("X-Spam-Status", b"No, score=1.50 required=104.00 tests=[TEST_SCORE]")],
    ),
    "add header": (
        "smtp",
        {"action": "add header", "score": 7},
        spam("7.00"),
    ),
    "add header by score": (
        "smtp",
        {"score": 6.25},
        spam("6.25", "TEST_SCORE"),
    ),
    "a custom action mapped to add header": (
        "smtp",
        {"action": "custom tag", "score": 50},
        spam("50.00"),
    ),
    "a custom action that nobody mapped": ("lenient", {"action": "custom tag"}, []),
    "quarantine": (
        "smtp",
        {"action": "quarantine", "score": 9},
        spam("9.00"),
    ),
    "a custom action that quarantines": (
        "smtp",
        {"action": "hold", "score": 9},
        spam("9.00"),
    ),
    "reject that a rule wants in quarantine": (
        "smtp",
        {"action": "reject", "score": 9, "milter": {"reject": "quarantine"}},
        spam("9.00"),
    ),
    "quarantine as accept": ("lenient", {"action": "quarantine"}, []),
    "discard as accept": ("lenient", {"action": "discard"}, []),
    "discard as spam": (
        "marking",
        {"action": "discard", "score": 9},
        [("X-Junk", b"Yes"), *spam("9.00")[1:]],
    ),
    "no_action beside reject": (
        "smtp",
        {"action": "reject", "milter": {"no_action": True}},
        [("X-Rspamd-Action", b"reject")],
    ),
    "no_action beside soft reject": (
        "smtp",
        {"action": "soft reject", "milter": {"no_action": True}},
        [("X-Rspamd-Action", b"soft reject")],
    ),
    "a spam_header's value": (
        "smtp",
        {"action": "add header", "score": 7, "milter": {"spam_header": "very"}},
        [("X-Spam", b"very"), *spam("7.00")[1:]],
    ),
    "spam_header with a name": (
        "smtp",
        {"action": "add header", "score": 7, "milter": {"spam_header": {"X-Bulk": "1"}}},
        [("X-Bulk", b"1"), *spam("7.00")[1:]],
    ),
    "spam_header with another action": ("smtp", {"score": 1, "milter": {"spam_header": "v"}}, []),
}  # fmt: skip


@pytest.mark.parametrize(("listener", "wanted", "added"), PASSED.values(), ids=PASSED.keys())
def test_the_message_passes_with_these_fields_more(
    post: Post, listener: str, wanted: dict[str, Any], added: list[tuple[str, bytes]]
) -> None:
    mail = post.send(said(**wanted), listener="" if listener == "smtp" else listener)
    head, _, body = stored(said(**wanted)).partition(b"\n\n")
    lines = b"".join(b"%s: %s\n" % (name.encode(), value) for name, value in added)
    assert mail.below_received == head + b"\n" + lines + b"\n" + body
    assert mail.junk == (("X-Spam", b"Yes") in added)


@pytest.mark.parametrize(
    ("listener", "score", "left"),
    [("", 7, spam("7.00", "TEST_SCORE")), ("", 1, []), ("deferring", 1, None)],
    ids=["spam", "ham", "ham that gets its score"],
)
def test_forged_scores_go_and_forged_marks_make_room_for_ours(
    post: Post, listener: str, score: float, left: list[tuple[str, bytes]] | None
) -> None:
    forged = (("X-Spam", b"No"), ("x-spam", b"Yes"), ("X-SPAM-Score", b"-9"),
              ("X-Spam-Status", b"No"), ("x-spam-status", b"No\r\n folded"))  # fmt: skip
    fields = b"".join(b"%s: %s\r\n" % (name.encode(), value) for name, value in forged)
    mail = post.send(verdict(score=score) + fields + LETTER, listener=listener)
    found = [field for field in mail.headers if field[0].lower().startswith("x-spam")]
    if left is None:
        assert found[:2] == [*forged[:2]]
        assert [name for name, _ in found[2:]] == ["X-Spam-Score", "X-Spam-Status"]
        assert b"-9" not in found[2][1]
    elif left:
        assert found == left == mail.headers[-3:]
    else:
        # X-Spam is for rspamd's rules to remove, where they say something else of it.
        assert found == [*forged[:2]]


NOTES = {
    "an action that nobody mapped": (
        "lenient",
        {"action": "custom tag"},
        r"unknown action 'custom tag': accepted; hint: map it in `actions`",
    ),
    "discard": ("smtp", {"action": "discard", "message": "No"}, "discard is done as reject, 'No'"),
    "quarantine": ("lenient", {"action": "quarantine"}, r"quarantine is done as no action"),
    "change_from": ("smtp", {"milter": {"change_from": "x@y"}}, r"change_from not followed"),
    "add_rcpt": ("smtp", {"milter": {"add_rcpt": ["x@y"]}}, r"add_rcpt not followed"),
    "del_rcpt": ("smtp", {"milter": {"del_rcpt": ["x@y"]}}, r"del_rcpt not followed"),
    "a bad name": ("smtp", {"milter": {"add_headers": {"X Y": "z"}}}, r"add_headers: 'X Y' not"),
}  # fmt: skip


@pytest.mark.parametrize(("listener", "wanted", "note"), NOTES.values(), ids=NOTES.keys())
def test_what_is_not_followed_is_logged(
    post: Post, listener: str, wanted: dict[str, Any], note: str
) -> None:
    with post.mta.client("" if listener == "smtp" else listener) as client:
        reply = client.deliver("al@client.example", [to := post.recipient()], said(**wanted))
        session = post.mta.wait_log(rf"^(\w+) smtp envelope .*to=<{to}>")[1] if reply.ok else r"\w+"
    post.mta.wait_log(rf'^bridge: .*rspamd-note session={session} note="{note}')
    if reply.ok:
        mail = post.arrived(to)
        assert mail.below_received == stored(said(**wanted))
        assert mail.raw.startswith(b"Return-Path: <al@client.example>\n")


# The subject.
SUBJECTS: dict[str, tuple[bytes, list[str]]] = {
    "plain": (b"Subject: old one\r\n", ["new \u2603 one"]),
    "folded": (b"Subject: old\r\n one\r\n\tmore\r\n", ["new \u2603 one"]),
    "in odd spelling": (b"SUBJECT:old\r\n", ["new \u2603 one"]),
    "missing": (b"", ["new \u2603 one"]),
    "empty": (b"Subject:\r\n", ["new \u2603 one"]),
    "encoded": (b"Subject: =?UTF-8?B?w7Y=?=\r\n =?UTF-8?Q?=C3=B6?=\r\n", ["new \u2603 one"]),
    "twice": (b"Subject: a\r\nSubject: b\r\n", ["new \u2603 one", "b"]),
}


@pytest.mark.parametrize(("field", "subjects"), SUBJECTS.values(), ids=SUBJECTS.keys())
def test_rewrite_subject(post: Post, field: bytes, subjects: list[str]) -> None:
    wanted = verdict(action="rewrite subject", score=9, subject="new \u2603 one")
    mail = post.send(wanted + field + HEAD + b"\r\nhello\r\n")
    found = [
        str(email.header.make_header(email.header.decode_header(value.decode("ascii"))))
        for value in mail.header("Subject")
    ]
    assert found == subjects
    names = [name.lower() for name, _ in mail.headers]
    assert names.index("subject") == (2 if field else len(names) - 3)
    assert mail.header("X-Spam-Score") == [b"9.00 / 104.00"]
    assert mail.header("X-Spam") == []
    assert not mail.junk
    assert mail.body == b"hello\n"


NEW_SUBJECTS = {
    "as rspamd's configuration has it": ({"score": 9}, b"*** SPAM *** hello"),
    "with line ends, which rspamd writes out": (
        {"action": "rewrite subject", "subject": "a\r\nX-Evil: b\nc"},
        rb"a\r\nX-Evil: b\nc",
    ),
    "long": (
        {"action": "rewrite subject", "subject": "word " * 30 + "end"},
        b"word " * 30 + b"end",
    ),
}


@pytest.mark.parametrize(("wanted", "subject"), NEW_SUBJECTS.values(), ids=NEW_SUBJECTS.keys())
def test_the_new_subject(post: Post, wanted: dict[str, Any], subject: bytes) -> None:
    mail = post.send(said(**wanted))
    [value] = mail.header("Subject")
    assert value.replace(b"\n ", b" ") == subject
    assert max(map(len, value.split(b"\n"))) <= 78
    assert mail.header("X-Evil") == []


# Only watching.
WATCHED = {
    "reject": ({"action": "reject", "message": "no"}, "refuse: 554 5.7.1 no"),
    "soft reject": ({"action": "soft reject"}, "refuse: 451 4.7.1 Try again later"),
    "discard": ({"action": "discard"}, "refuse: 554 5.7.1 Spam message rejected"),
    "add header": ({"score": 7}, "let pass, "),
    "edits": ({"milter": {"add_headers": {"X-A": "b"}}}, "let pass, "),
}


@pytest.mark.parametrize(("wanted", "would"), WATCHED.values(), ids=WATCHED.keys())
def test_without_enforcement_all_passes_unaltered_and_is_logged(
    post: Post, wanted: dict[str, Any], would: str
) -> None:
    forged = b"X-Unscanned: a\r\nAuthentication-Results: mx.example.org; spf=pass\r\nX-Spam: No\r\n"
    message = verdict(**wanted) + forged + LETTER
    with post.mta.client("watching") as client:
        assert post.sent(client, message).below_received == stored(message)
        post.mta.wait_log(rf"passed session=\w+ peer={client.local} .*not enforced, would {would}")
