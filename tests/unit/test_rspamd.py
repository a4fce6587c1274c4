"""What rspamd's replies mean: a table of recorded and made ones, each with its outcome."""

from __future__ import annotations

import json
import re
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import edits
from bridge.edits import Add, Edit, Insert, Remove, Replace, ReplaceBody, ReplaceMessage
from bridge.services import zstd
from bridge.services.rspamd import (
    Reply,
    Translation,
    parse_reply,
    translate,
)
from bridge.services.rspamd_verdict import encode_words
from bridge.services.upstream import ServiceError
from bridge.smtpd.decisions import Proceed, Refusal, Reject

FIXTURES = Path(__file__).parent.parent / "fixtures"
REPLIES = FIXTURES / "rspamd-replies"
NO_SCORE = Translation(score_header="never")
BIG = 10**7


def split(name: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a fixture, its compression undone."""
    raw = (REPLIES / name).read_bytes()
    if not name.endswith(".http"):
        return 200, {}, raw
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if "compression" in headers:
        body = zstd.decompress(body, BIG)
    return int(status.split()[1]), headers, body


# What each fixture leads to, from the rows of their README: a refusal, an error's kind and
# whether another server is asked, or the edits of an accepted message.
Outcome = str | tuple[str, bool] | list[Edit]

MARKED: list[Edit] = [Remove("X-Spam"), Add("X-Spam", "Yes")]
SPAM, DEFERRED = "554 5.7.1 Spam message rejected", "451 4.7.1 Try again later"
AGAIN = ("bad-reply", True)
IGNORED = "X-Spam-Status Authentication-Results X-Rspamd-Server X-Rspamd-Queue-Id X-Spamd-Bar"

OUTCOMES: dict[str, Outcome] = {
    "01-no-action-34.json": [],
    "02-no-action-415.json": [],
    "04-add-header-34.json": MARKED,
    "06-rewrite-subject-34.json": [Replace("Subject", "*** SPAM *** hello")],
    "07-rewrite-subject-mime-415.json": [
        Replace("Subject", "=?UTF-8?Q?=D0=A1=D0=BF=D0=B0=D0=BC?= hello 0.00")
    ],
    "09-soft-reject-greylist-34.json": DEFERRED,
    "10-soft-reject-nomsg-415.json": DEFERRED,
    "11-reject-msg-34.json": "554 5.7.1 Custom text from rule",
    "12-reject-score-415.json": SPAM,
    # OpenSMTPD can't discard: by default the sender learns of it.
    "14-discard-34.json": SPAM,
    # Nor quarantine: by default marked.
    "15-quarantine-415.json": MARKED,
    "17-custom-discard-34.json": SPAM,
    "18-custom-quarantine-415.json": MARKED,
    "19-reject-milter-discard-34.json": SPAM,
    "21-milter-reject-but-accept-34.json": MARKED,
    "22-no-action-flag-415.json": [Remove("X-Rspamd-Action"), Add("X-Rspamd-Action", "reject")],
    "23-spam-header-string-34.json": [Remove("X-Spam"), Add("X-Spam", "Suspicious")],
    "25-headers-all-shapes-415.json": [
        Remove("X-L", (1, 3)),
        Remove("X-All", (0,)),
        Remove("X-Spam", (-1,)),
        Remove("X-Old", (2,)),
        Insert(1, "X-A", "v1"),
        Add("X-A", "v2"),
        Add("X-C", "l1"),
        Add("X-C", "l2"),
        Insert(1, "O1", "1"),
        Insert(5, "O5", "5"),
        Add("Om1", "-1"),
        Insert(-1, "Om2", "-2"),
        Add("S", "plain"),
        Insert(-98, "Om99", "-99"),
        Insert(0, "O0", "0"),
    ],
    "26-merged-mixed-list-34.json": [Add("H", "v"), Add("H", "w"), Insert(1, "H", "third")],
    "29-from-rcpt-change-34.json": [],
    "32-arc-34.json": [
        Insert(1, "ARC-Authentication-Results", "i=1; mx.example;\n\tdkim=pass"),
        Insert(
            1,
            "ARC-Message-Signature",
            "i=1; a=rsa-sha256; c=relaxed/relaxed; d=b.c; s=s1;\n\tbh=AAAA=; h=from; b=BBBB",
        ),
        Insert(1, "ARC-Seal", "i=1; s=s1; d=b.c; t=1; a=rsa-sha256; cv=none;\n\tb=CCCC"),
    ],
    "34-dmarc-munging-415.json": [
        Remove("Reply-To", (1,)),
        Remove("From", (0,)),
        Insert(1, "From", '"a via list" <list@b.c>'),
        Insert(0, "X-Original-From", "a@b.c"),
        Insert(0, "Reply-To", "a@b.c"),
    ],
    "35-crlf-injection-34.json": [
        Add("X-Inj", "a X-Evil: yes  body"),
        Add("X-Dot", "v . quit"),
    ],
    "36-smtp-message-crlf-415.json": "554 5.7.1 line1 250 OK line2   %d %s",
    "38-nul-byte-415.json": [Add("X-U", "\u041f\u0440"), Add("X-Nul", "ab")],
    "39-wrong-types-415.json": [Remove("C", (2,)), Add("X-Good", "yes"), Add("L", "ok")],
    "40-negative-score-34.json": [],
    "42-empty-message-34.json": [],
    "43-empty-message-415.json": SPAM,
    "44-skipped-415.json": [],
    "45-groups-urls-emails-415.json": [],
    "46-legacy-check-v1-34.json": AGAIN,
    "47-error-invalid-command-34.http": ("http-error", False),
    "48-error-compression-34.http": ("http-error", False),
    "49-error-v3-no-boundary-415.http": ("http-error", False),
    "50-body-block-full-34.http": [
        ReplaceMessage(b"From: a@b.c\r\nSubject: new\r\n\r\nreplaced body\r\n")
    ],
    "52-zstd-reply-415.http": [],
    "60-soft-reject-timeout.json": "451 4.7.1 timeout processing message",
    "61-missing-action.json": AGAIN,
    "63-action-number.json": AGAIN,
    "64-action-empty.json": AGAIN,
    "65-action-underscore.json": DEFERRED,
    "66-action-case.json": SPAM,
    "68-action-invalid-max.json": AGAIN,
    "69-top-list.json": AGAIN,
    "70-empty-object.json": AGAIN,
    "71-empty-body.json": AGAIN,
    "72-truncated.json": AGAIN,
    "74-bom.json": [],
    "75-html-error.json": AGAIN,
    "76-error-object-200.json": AGAIN,
    "77-nan-literal.json": [],
    "79-score-string.json": [],
    "80-duplicate-keys.json": SPAM,
    "82-huge-symbols.json": [],
    "84-bad-header-names.json": [Add("X-Ok", "v")],
    "86-remove-extremes.json": [
        Remove("x-SPAM", (0,)),
        Remove("X-A", (99,)),
        Remove("X-B", (-99,)),
        Remove("X-C", (int(1e30),)),
        Remove("X-D", (1,)),
        Remove("Received", (0,), spare=1),
        Remove("X-E", (0, 1, -1)),
    ],
    "87-subject-crlf.json": [Replace("Subject", "*** SPAM *** Bcc: victim@example.com  body")],
    "88-subject-missing.json": [],
    "89-subject-utf8.json": [
        Replace("Subject", "*** =?UTF-8?B?0KHQn9CQ0Jw=?= *** =?UTF-8?B?0L/RgNC40LLQtdGC?=")
    ],
    "92-messages-list.json": SPAM,
    "93-messages-other-keys.json": SPAM,
    "94-smtp-message-code.json": "554 5.7.1 550 5.7.0 You are blocked",
    "96-smtp-message-types.json": SPAM,
    "97-milter-null.json": [],
    "99-milter-string.json": [],
    "100-symbols-list.json": [],
    "102-old-2x-minimal.json": [],
    "103-string-or-list-legacy-add.json": [
        Add("X-Multi", "v1"),
        Add("X-Multi", "v2"),
        Add("X-One", "v"),
    ],
    "105-discard-with-headers.json": SPAM,
    "106-quarantine-reject-combo.json": SPAM,
}
# Too long for the table; each has a test of its own below.
ELSEWHERE = {
    "03-no-action-default-headers-34.json",
    "05-add-header-415.json",
    "30-dkim-single-34.json",
    "31-dkim-multi-crlf-415.json",
}


def test_every_fixture_and_readme_row_has_its_outcome() -> None:
    rows = set(re.findall(r"^\| (\d+-\S+)", (REPLIES / "README.md").read_text("utf-8"), re.M))
    files = {file.name for file in REPLIES.iterdir()} - {"README.md", "manifest.json"}
    assert rows == files == {*OUTCOMES, *ELSEWHERE}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_recorded_reply_leads_to(name: str) -> None:
    want, options = OUTCOMES[name], NO_SCORE
    if name.startswith("50-"):  # recorded without the milter flag
        options = Translation(score_header="never", whole_message=True)
    if isinstance(want, tuple):
        with pytest.raises(ServiceError) as raised:
            parse_reply(*split(name))
        assert (raised.value.kind, raised.value.retry) == want
        return
    verdict, _ = translate(parse_reply(*split(name)), options)
    if isinstance(want, str):
        assert isinstance(verdict.decision, Refusal)
        assert verdict.decision.reply == want
        want = []
    else:
        assert verdict.decision == Proceed()
    assert list(verdict.edits) == want
    for extreme in (Translation(score_header="always", status_header="always"), Translation()):
        edits.apply(SAMPLE, translate(parse_reply(*split(name)), extreme)[0].edits)


NOTED = [
    ("29-from-rcpt-change-34.json", ["change_from not followed", "add_rcpt", "del_rcpt"]),
    ("15-quarantine-415.json", ["quarantine is done as add header, 'Custom text from rule'"]),
    ("84-bad-header-names.json", [r"add_headers: ''", "'X Bad'", "'X-Bad:'", r"'X-B\xe4d'"]),
    ("88-subject-missing.json", ["rewrite subject without a subject"]),
]


@pytest.mark.parametrize(("name", "words"), NOTED)
def test_what_is_not_followed_is_noted(name: str, words: list[str]) -> None:
    notes = "; ".join(translate(parse_reply(*split(name)))[1])
    assert [word for word in words if word not in notes] == []
    assert notes.isprintable()


SAMPLE = b"""\
Received: from client by us
\tfor d@e.f
X-Spam: 1
X-L: 1
From: a@b.c
Reply-To: r@b.c
X-L: 2
Subject: hello
 folded
X-Spam: 2
X-L: 3
X-Spam-Score: -100

..body
"""


def fields(message: bytes) -> list[str]:
    """The fields of a message as they stand, folds as \\n."""
    return [message[x.start : x.end - 1].decode() for x in edits.header_fields(message)]


def accepted(name: str, options: Translation | None = None) -> bytes:
    """The sample, edited as a fixture wants it."""
    verdict, _ = translate(parse_reply(*split(name)), options)
    assert verdict.decision == Proceed()
    return joined(SAMPLE, verdict.edits)


def joined(message: bytes, wanted: tuple[Edit, ...]) -> bytes:
    for start, end, new in reversed(edits.apply(message, wanted)):
        message = message[:start] + new + message[end:]
    return message


def test_default_headers_are_removed_then_added_where_they_belong() -> None:
    got = fields(accepted("03-no-action-default-headers-34.json"))
    assert got[1].startswith("Authentication-Results: vm;\n\tdkim=none;\n\tspf=temperror")
    assert [x.partition(":")[0] for x in got] == [
        "Received", "Authentication-Results", "X-L", "From", "Reply-To", "X-L", "Subject", "X-L",
        "X-Spam-Status", "X-Rspamd-Server", "X-Rspamd-Queue-Id", "X-Spamd-Bar", "X-Spam-Level",
        "X-Spamd-Result",
    ]  # fmt: skip


def test_spam_is_marked_below_extended_headers_with_its_score() -> None:
    got = fields(accepted("05-add-header-415.json"))
    assert [x for x in got if x.startswith("X-Spam")][-4:] == [
        "X-Spam-Level: ******",
        "X-Spam-Status: Yes, score=6.70",
        "X-Spam: Yes",
        "X-Spam-Score: 6.70 / 90.00",
    ]


def test_a_signature_is_below_our_received_and_its_folds_are_kept() -> None:
    value = json.loads((REPLIES / "30-dkim-single-34.json").read_bytes())["dkim-signature"]
    assert "\n\t" in value
    assert fields(accepted("30-dkim-single-34.json"))[1] == f"DKIM-Signature: {value}"


def test_two_signatures_keep_their_order_and_get_plain_line_ends() -> None:
    first, second = json.loads((REPLIES / "31-dkim-multi-crlf-415.json").read_bytes())[
        "dkim-signature"
    ]
    assert "\r\n\t" in first
    assert fields(accepted("31-dkim-multi-crlf-415.json"))[1:3] == [
        "DKIM-Signature: " + first.replace("\r", ""),
        "DKIM-Signature: " + second.replace("\r", ""),
    ]


def test_an_arc_set_has_its_seal_on_top() -> None:
    got = [x.partition(":")[0] for x in fields(accepted("32-arc-34.json"))]
    assert got[:4] == [
        "Received", "ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"
    ]  # fmt: skip


def test_an_appended_arc_set_has_its_seal_on_top_too() -> None:
    names = ["ARC-Message-Signature", "ARC-Seal", "ARC-Authentication-Results"]
    reply = Reply("no action", data={"milter": {"add_headers": dict.fromkeys(names, "i=1")}})
    assert fields(joined(b"", translate(reply)[0].edits)) == [
        "ARC-Seal: i=1", "ARC-Message-Signature: i=1", "ARC-Authentication-Results: i=1"
    ]  # fmt: skip


def test_munging_leaves_exactly_one_from() -> None:
    got = fields(accepted("34-dmarc-munging-415.json"))
    assert [x for x in got if x.startswith("From")] == ['From: "a via list" <list@b.c>']
    assert got[:2] == ["Reply-To: a@b.c", "X-Original-From: a@b.c"]


def test_a_rewritten_subject_takes_its_folds_along() -> None:
    got = fields(accepted("06-rewrite-subject-34.json"))
    assert [x for x in got if "ubject" in x] == ["Subject: *** SPAM *** hello"]


def test_injection_adds_no_field() -> None:
    before, got = fields(SAMPLE), fields(accepted("35-crlf-injection-34.json", NO_SCORE))
    assert got == [*before, "X-Inj: a X-Evil: yes  body", "X-Dot: v . quit"]


def test_a_whole_new_message_is_stuffed_and_replaces_all() -> None:
    options = Translation(whole_message=True)
    got = accepted("50-body-block-full-34.http", options)
    assert got == b"From: a@b.c\nSubject: new\n\nreplaced body\n"
    assert (
        accepted("50-body-block-full-34.http", Translation(body=False, score_header="never"))
        == SAMPLE
    )


def test_our_received_is_removed_only_if_allowed() -> None:
    name = "86-remove-extremes.json"
    assert fields(accepted(name))[0].startswith("Received: from client by us")
    assert not any(
        "Received" in x for x in fields(accepted(name, Translation(remove_received=True)))
    )


# Options ---------------------------------------------------------------------------------

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
