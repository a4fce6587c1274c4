"""What do the options make of a reply of rspamd, and what is made of replies that no rspamd
sends? Nothing raises but a ServiceError.
"""

from __future__ import annotations

import json
from email.header import decode_header, make_header
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.edits import Add, Edit, Insert, Remove, ReplaceBody
from bridge.services.rspamd import Reply, Translation, parse_reply, translate
from bridge.services.rspamd_verdict import encode_words
from bridge.services.upstream import ServiceError
from bridge.smtpd.decisions import Refusal, Reject
from tests.unit.rspamd_replies import (
    DEFERRED,
    MARKED,
    NO_SCORE,
    SAMPLE,
    SPAM,
    accepted,
    fields,
    joined,
)

SCORED = Reply("add header", 12.3, 15.0, {"symbols": {"B": {}, "A": {}}})
SCORES: list[tuple[str, Reply, dict[str, str], list[Edit]]] = [
    ("spam has a score", SCORED, {}, [*MARKED, Add("X-Spam-Score", "12.30 / 15.00")]),
    ("ham has none", Reply("no action", 1.0, 15.0), {}, []),
    ("never", SCORED, {"score_header": "never"}, MARKED),
    (
        "always",
        Reply("no action", -1.0, None),
        {"score_header": "always"},
        [Add("X-Spam-Score", "-1.00")],
    ),
    (
        "a status too",
        SCORED,
        {"score_header": "never", "status_header": "spam"},
        [*MARKED, Add("X-Spam-Status", "Yes, score=12.30 required=15.00 tests=[A, B]")],
    ),
    (
        "rspamd's own score is not doubled",
        Reply("add header", data={"milter": {"add_headers": {"x-spam-score": "9"}}}),
        {},
        [Add("x-spam-score", "9"), *MARKED],
    ),
]


@pytest.mark.parametrize(("what", "reply", "options", "want"), SCORES, ids=[x[0] for x in SCORES])
def test_scores(what: str, reply: Reply, options: dict[str, Any], want: list[Edit]) -> None:
    verdict, _ = translate(reply, Translation(**options))
    forged = [
        Remove(name)
        for name, key in (("X-Spam-Score", "score_header"), ("X-Spam-Status", "status_header"))
        if options.get(key, "spam" if key == "score_header" else "never") != "never"
    ]
    assert list(verdict.edits) == [*forged, *want]


def test_a_forged_score_is_removed_from_ham() -> None:
    assert b"X-Spam-Score" not in joined(SAMPLE, translate(Reply("no action"))[0].edits)


def test_many_symbols_make_a_bounded_folded_field() -> None:
    options = Translation(status_header="always")
    got = next(x for x in fields(accepted("82-huge-symbols.json", options)) if "Status" in x)
    assert max(map(len, got.split("\n"))) <= 998
    assert len(got) < 32_000


NO, ADD, SIGN = "no action", {"milter": {"add_headers": {"A": "1"}}}, {"dkim-signature": "v=1"}
EMPTY, TEXT = ({"messages": {"smtp_message": text}} for text in ("\r\n", "Text"))
MINE = {"mine": "reject"}
JUNK: list[Edit] = [Remove("X-Junk"), Add("X-Junk", "Yes")]
OPTIONS: list[tuple[str, Reply, dict[str, Any], str | list[Edit]]] = [
    ("reject_reply", Reply("reject"), {"reject_reply": Reject("5.7.0", "No")}, "550 5.7.0 No"),
    (
        "soft_reject_reply",
        Reply("soft reject"),
        {"soft_reject_reply": Reject("4.2.1", "No", 450)},
        "450 4.2.1 No",
    ),
    ("a text of nothing printable", Reply("reject", data=EMPTY), {}, SPAM),
    ("discard as soft reject", Reply("discard"), {"discard": "soft reject"}, DEFERRED),
    ("discard as accept", Reply("discard"), {"discard": NO}, []),
    ("quarantine keeps its text", Reply("quarantine", data=TEXT), {"quarantine": "reject"}, SPAM),
    ("one's own action", Reply("mine", data=TEXT), {"actions": MINE}, "554 5.7.1 Text"),
    ("an action as discard", Reply("mine"), {"actions": {"mine": "discard"}}, SPAM),
    ("greylist by score", Reply("greylist"), {"actions": {"greylist": "soft reject"}}, DEFERRED),
    ("greylist", Reply("greylist"), {}, []),
    ("an unknown action", Reply("mine"), {}, []),
    ("spam_header", Reply("add header"), {"spam_header": "X-Junk"}, JUNK),
    ("no new subject", Reply("rewrite subject"), {"rewrite_subject": False}, MARKED),
    ("headers off", Reply(NO, data=ADD), {"headers": False}, []),
    ("dkim off", Reply(NO, data=SIGN), {"dkim": False}, []),
    ("a new body", Reply(NO, block=b"x"), {}, [ReplaceBody(b"x")]),
    ("a new body, off", Reply(NO, block=b"x"), {"body": False}, []),
]
NOT_FOLLOWED = {"an unknown action", "an action as discard"}


@pytest.mark.parametrize(("what", "reply", "options", "want"), OPTIONS, ids=[x[0] for x in OPTIONS])
def test_option(what: str, reply: Reply, options: dict[str, Any], want: str | list[Edit]) -> None:
    verdict, notes = translate(reply, Translation(score_header="never", **options))
    got = verdict.decision.reply if isinstance(verdict.decision, Refusal) else list(verdict.edits)
    assert got == want
    stands_in = reply.action in ("discard", "quarantine")
    assert bool(notes) == (what.endswith("off") or stands_in or what in NOT_FOLLOWED)


BAD_OPTIONS: list[dict[str, Any]] = [
    {"spam_header": "X Spam"},
    {"discard": "discard"},
    {"quarantine": "hold"},
    {"score_header": "maybe"},
    {"actions": {"mine": "greylist"}},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Translation(**options)


def test_more_edits_than_sense_are_cut_with_a_note() -> None:
    reply = Reply("no action", data={"milter": {"add_headers": {"X": ["v"] * 5000}}})
    verdict, notes = translate(reply, NO_SCORE)
    assert len(verdict.edits) == 500
    assert "more than 500" in notes[0]


texts = st.sampled_from(["", "X", "a\nb", "\n \n", "value", "order", "\0", "\ud800", "\u041f"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3),
    max_leaves=8,
)
KEYS = ["milter", "messages", "subject", "symbols", "reject", "dkim-signature", "score"]
MILTER = ["add_headers", "remove_headers", "spam_header", "reject", "no_action", "change_from"]


@settings(deadline=None)
@given(
    st.sampled_from(["no action", "add header", "reject", "rewrite subject", "x"]),
    st.dictionaries(st.sampled_from(KEYS), json_values),
    st.dictionaries(st.sampled_from(MILTER), json_values),
)
def test_no_shape_of_a_reply_raises(action: str, data: dict[str, Any], milter: Any) -> None:
    body = json.dumps({"milter": milter, **data, "action": action}).encode()
    options = Translation(score_header="always", status_header="always")
    verdict, notes = translate(parse_reply(200, {}, body), options)
    assert joined(SAMPLE, verdict.edits).endswith(b"\n\n..body\n")
    assert all(note.isprintable() for note in [verdict.reason, *notes])


@settings(deadline=None)
@given(st.binary(), st.integers(100, 599), st.sampled_from(["", "3", "-1", "x", "99"]))
def test_no_bytes_of_a_reply_raise_but_a_service_error(body: bytes, status: int, at: str) -> None:
    with pytest.raises(ServiceError):
        parse_reply(status, {"Message-Offset": at} if at else {}, body)


NUMBERS = [("NaN", 0.0), ("1e999", 0.0), ("null", 0.0), ("true", 1.0), ('"7.5"', 7.5), ("-2", -2.0)]


@pytest.mark.parametrize(("score", "want"), NUMBERS)
def test_a_score_is_a_finite_number(score: str, want: float) -> None:
    reply = parse_reply(200, {}, b'{"action":"no action","score":%s}' % score.encode())
    assert reply.score == want


def test_index_is_another_word_for_order() -> None:
    data = {"milter": {"add_headers": {"A": {"value": "1", "index": 2}}}}  # milter.c
    assert translate(Reply("no action", data=data), NO_SCORE)[0].edits == (Insert(2, "A", "1"),)


def test_deep_json_is_a_bad_reply() -> None:
    with pytest.raises(ServiceError, match="no JSON object"):
        parse_reply(200, {}, b"[" * 1_000_000)


def test_bytes_that_are_no_utf8_come_through() -> None:
    reply = parse_reply(200, {}, b'{"action":"no action","milter":{"add_headers":{"X":"\xe9"}}}')
    assert joined(b"", translate(reply, NO_SCORE)[0].edits) == b"X: \xe9\n"


def test_the_block_is_split_at_the_offset() -> None:
    reply = parse_reply(200, {"Message-Offset": "22"}, b'{"action":"no action"}new\r\n.body')
    assert reply.block == b"new\r\n.body"
    assert joined(SAMPLE, translate(reply, NO_SCORE)[0].edits).endswith(b"-100\n\nnew\n..body\n")


SUBJECTS = [
    ("plain", "plain"),
    ("\u041f\u0440 x", "=?UTF-8?B?0J/RgA==?= x"),
    ("x \u041f \u0440 y \u041f", "x =?UTF-8?B?0J8g0YA=?= y =?UTF-8?B?0J8=?="),
    ("=?UTF-8?Q?a?= \u041f =?UTF-8?Q?b?=", "=?UTF-8?Q?a?= =?UTF-8?B?INCfIA==?= =?UTF-8?Q?b?="),
    ("\udce9", "=?UTF-8?B?77+9?="),
]


@pytest.mark.parametrize(("text", "want"), SUBJECTS, ids=lambda x: ascii(x))
def test_words_are_encoded(text: str, want: str) -> None:
    assert encode_words(text) == want


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \u041f\U0001f600"), max_size=200))
def test_encoded_words_are_short_and_read_as_before(text: str) -> None:
    text = " ".join(text.split())
    got = encode_words(text)
    assert got.isascii()
    assert all(len(word) <= 75 for word in got.split() if word.startswith("=?"))
    assert str(make_header(decode_header(got))) == text
