"""What do the recorded replies of rspamd lead to? A table with the outcome of each."""

from __future__ import annotations

import json
import re

import pytest

from bridge import edits
from bridge.edits import Add, Edit, Insert, Remove, Replace, ReplaceMessage
from bridge.services.rspamd import (
    Reply,
    Translation,
    translate,
)
from bridge.services.upstream import ServiceError
from bridge.smtpd.decisions import Proceed, Refusal
from tests.unit.rspamd_replies import (
    DEFERRED,
    MARKED,
    NO_SCORE,
    REPLIES,
    SAMPLE,
    SPAM,
    accepted,
    fields,
    joined,
    recorded,
)

# What each fixture leads to, from the rows of their README: a refusal, an error's kind and
# whether another server is asked, or the edits of an accepted message.
Outcome = str | tuple[str, bool] | list[Edit]

AGAIN = ("bad-reply", True)

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
            recorded(name)
        assert (raised.value.kind, raised.value.retry) == want
        return
    verdict, _ = translate(recorded(name), options)
    if isinstance(want, str):
        assert isinstance(verdict.decision, Refusal)
        assert verdict.decision.reply == want
        want = []
    else:
        assert verdict.decision == Proceed()
    assert list(verdict.edits) == want
    for extreme in (Translation(score_header="always", status_header="always"), Translation()):
        edits.apply(SAMPLE, translate(recorded(name), extreme)[0].edits)


NOTED = [
    ("29-from-rcpt-change-34.json", ["change_from not followed", "add_rcpt", "del_rcpt"]),
    ("15-quarantine-415.json", ["quarantine is done as add header, 'Custom text from rule'"]),
    ("84-bad-header-names.json", [r"add_headers: ''", "'X Bad'", "'X-Bad:'", r"'X-B\xe4d'"]),
    ("88-subject-missing.json", ["rewrite subject without a subject"]),
]


@pytest.mark.parametrize(("name", "words"), NOTED)
def test_what_is_not_followed_is_noted(name: str, words: list[str]) -> None:
    notes = "; ".join(translate(recorded(name))[1])
    assert [word for word in words if word not in notes] == []
    assert notes.isprintable()


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
