"""What rspamd's reply means: its action, milter block, subject and signatures as one verdict.

The model is rspamd's own milter (src/libserver/milter.c); where this differs, a comment says
why.  What a reply holds is foreign: each member is checked by itself, and what is wrong is
left out, with a note.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bridge.edits import (
    Add,
    Edit,
    Insert,
    Remove,
    Replace,
    ReplaceBody,
    ReplaceMessage,
    Verdict,
    check_name,
    clean_value,
)
from bridge.services.rspamd_reply import Reply, members
from bridge.smtpd.decisions import Reject

# rspamd's actions (cfg_file.h), and what each is here.
ACTIONS = frozenset(
    {"no action", "greylist", "add header", "rewrite subject", "soft reject", "reject"}
)
# OpenSMTPD can't do these: options say what stands for them.
STAND_INS = frozenset({"discard", "quarantine"})
# What may be configured to stand for another action.
CHOICES = ACTIONS - {"greylist"}
WHEN = frozenset({"never", "spam", "always"})
SPAM = frozenset({"add header", "rewrite subject"})
REFUSALS = frozenset({"reject", "soft reject"})
# The replies of rspamd's own milter (milter.c).
SPAM_REJECTED = Reject("5.7.1", "Spam message rejected", 554)
TRY_AGAIN = Reject("4.7.1", "Try again later", 451)

SCORE_HEADER = "X-Spam-Score"
STATUS_HEADER = "X-Spam-Status"
ACTION_HEADER = "X-Rspamd-Action"  # milter.c
# From below to above: verifiers want the seal on top (RFC 8617 4.1; rspamd's own order, 4.1).
ARC = ("arc-authentication-results", "arc-message-signature", "arc-seal")

MAX_EDITS = 500  # of one reply; a rule that wants more is broken
MAX_NOTES = 20  # on one reply
MAX_TESTS = 100  # symbols named in one header field
_RFC2047_CHUNK = 45  # bytes in an encoded word of at most 75 characters (RFC 2047 2)


@dataclass(frozen=True, slots=True)
class Translation:
    """How a reply is translated.  ValueError for a wrong value.

    discard, quarantine: the action that stands for these; actions: for actions of one's own
    (or others), by name; rewrite_subject, headers, dkim, body: whether such wishes are
    followed, where a subject that is not is marked by spam_header; score_header,
    status_header: never, spam or always; remove_received: whether a rule may remove the
    first Received, our own; whole_message: the request's Flags had body_block without milter.
    """

    spam_header: str = "X-Spam"
    reject_reply: Reject = SPAM_REJECTED
    soft_reject_reply: Reject = TRY_AGAIN
    discard: str = "reject"
    quarantine: str = "add header"
    actions: Mapping[str, str] = field(default_factory=dict)
    rewrite_subject: bool = True
    headers: bool = True
    dkim: bool = True
    body: bool = True
    score_header: str = "spam"
    status_header: str = "never"
    remove_received: bool = False
    whole_message: bool = False

    def __post_init__(self) -> None:
        check_name(self.spam_header)
        for key, value, choices in [
            ("discard", self.discard, CHOICES),
            ("quarantine", self.quarantine, CHOICES),
            ("score_header", self.score_header, WHEN),
            ("status_header", self.status_header, WHEN),
            *((f"actions.{k}", v, CHOICES | STAND_INS) for k, v in self.actions.items()),
        ]:
            if value not in choices:
                raise ValueError(f"{key} {value!r}: expected one of {', '.join(sorted(choices))}")


def translate(reply: Reply, options: Translation | None = None) -> tuple[Verdict, list[str]]:
    """The verdict, and notes for the log on what was not followed.

    Edits count positions in the message as it was sent to rspamd, whose first field is
    smtpd's own Received: order 1 is below it, as with a milter.
    """
    options = options or Translation()
    notes = list(reply.notes)
    action, text = _outcome(reply, options, notes)
    required = "" if reply.required_score is None else f"/{reply.required_score:.2f}"
    reason = f"rspamd: {reply.action[:60]} {reply.score:.2f}{required}"
    for key in ("change_from", "add_rcpt", "del_rcpt"):
        if reply.milter.get(key):
            notes.append(f"{key} not followed: OpenSMTPD's envelope can't be changed by now")
    marks = _spam_headers(reply, options, notes) if action == "add header" else []
    if reply.milter.get("no_action") is True and not marks:
        action, marks = "no action", [(ACTION_HEADER, clean_value(reply.action))]
    elif action == "add header":
        marks = marks or [(options.spam_header, "Yes")]
    if action in REFUSALS:
        own = options.reject_reply if action == "reject" else options.soft_reject_reply
        said = Reject.clean(own.status, text or own.text, own.code, own.text)
        return Verdict(said, (), reason), notes
    edits = [
        *_body(reply, options, notes),
        *_forged(options),
        *_some(_milter_headers(reply, options, notes), notes),
        *(edit for mark in marks for edit in (Remove(mark[0]), Add(*mark))),
        *_subject(action, reply, options, notes),
    ]
    edits += _scores(action in SPAM, reply, options, edits)
    edits += _some(_signatures(reply, options, notes), notes)
    return Verdict(edits=tuple(edits), reason=reason), notes


def _some(edits: Iterable[Edit], notes: list[str]) -> list[Edit]:
    found = list(itertools.islice(edits, MAX_EDITS + 1))
    if len(found) > MAX_EDITS:
        notes.append(f"more than {MAX_EDITS} header fields to change: the rest not followed")
    return found[:MAX_EDITS]


def _outcome(reply: Reply, options: Translation, notes: list[str]) -> tuple[str, str]:
    """The action that is done, one of `CHOICES`, and a rule's text for the sender."""
    own = reply.data.get("reject")  # of a custom action declared with one (protocol.c)
    action, text = reply.action, reply.smtp_message
    if action in options.actions:
        action = options.actions[action]
    elif action not in ACTIONS | STAND_INS:
        if own not in ("discard", "quarantine"):
            notes.append(f"unknown action {action[:60]!a}: accepted; hint: map it in `actions`")
            return "no action", ""
        action = str(own)
    if action == "reject":
        # In this order (milter.c).
        wishes = (own, reply.milter.get("reject"))
        action = next((x for x in ("discard", "quarantine") if x in wishes), action)
    if action in STAND_INS:
        stand_in = options.discard if action == "discard" else options.quarantine
        # The text is for whoever keeps the quarantine: with a milter the sender never sees it.
        notes.append(f"{action} is done as {stand_in}" + (text and f", {text[:200]!a}"))
        return stand_in, ""
    if action == "rewrite subject" and not options.rewrite_subject:
        action = "add header"
    return "no action" if action == "greylist" else action, text


def _spam_headers(reply: Reply, options: Translation, notes: list[str]) -> list[tuple[str, str]]:
    """What marks spam: a string is a value for the usual field, an object has names too."""
    wish = reply.milter.get("spam_header")
    if not options.headers or wish is None:
        return []
    pairs = [(options.spam_header, wish)] if isinstance(wish, str) else members(wish)
    return [
        (name, clean_value(value))
        for name, value in pairs
        if _fits("spam_header", name, isinstance(value, str), notes)
    ]


def _body(reply: Reply, options: Translation, notes: list[str]) -> Iterator[Edit]:
    if reply.block is None:
        return
    if not options.body:
        notes.append("new body not followed: switched off")
    elif options.whole_message:
        yield ReplaceMessage(reply.block)
    else:
        yield ReplaceBody(reply.block)


def _milter_headers(reply: Reply, options: Translation, notes: list[str]) -> Iterator[Edit]:
    """First what is removed, then what is added, each in the order given (milter.c)."""
    removals, additions = reply.milter.get("remove_headers"), reply.milter.get("add_headers")
    if not options.headers:
        if removals or additions:
            notes.append("add_headers and remove_headers not followed: switched off")
        return
    for name, wish in members(removals):
        numbers = (_integer(x) for x in (wish if isinstance(wish, list) else [wish]))
        nth = tuple(x for x in numbers if x is not None)
        if _fits("remove_headers", name, bool(nth), notes):
            ours = name.lower() == "received" and not options.remove_received
            yield Remove(name, nth, spare=int(ours))
    for name, value, order in _arc_sorted(list(_additions(additions, notes))):
        if order is None or order == -1:
            yield Add(name, value)
        else:  # -2 is above the last field
            yield Insert(order if order >= 0 else order + 1, name, value)


_Addition = tuple[str, str, int | None]


def _additions(wishes: object, notes: list[str]) -> Iterator[_Addition]:
    """Name, value and order: a value may be a string, an object, or a list of these."""
    for name, wish in members(wishes):
        for item in wish if isinstance(wish, list) else [wish]:
            value, order = item, None
            if isinstance(item, dict):
                value, order = item.get("value"), _integer(item.get("order", item.get("index")))
            if _fits("add_headers", name, isinstance(value, str), notes):
                yield name, clean_value(value), order


def _arc_sorted(additions: list[_Addition]) -> list[_Addition]:
    """With the fields of an ARC set in their order: before 4.1 they come in any (arc.lua)."""
    places = [i for i, x in enumerate(additions) if x[0].lower() in ARC]
    orders = {additions[i][2] for i in places}
    if len(orders) != 1:
        return additions
    arc = sorted((additions[i] for i in places), key=lambda x: ARC.index(x[0].lower()))
    if (order := orders.pop()) is None or order < 0:
        arc.reverse()  # appended, each is below the one before; inserted at one place, above
    for i, addition in zip(places, arc, strict=True):
        additions[i] = addition
    return additions


def _subject(action: str, reply: Reply, options: Translation, notes: list[str]) -> Iterator[Edit]:
    if action != "rewrite subject":
        return
    subject = reply.data.get("subject")
    if isinstance(subject, str):
        yield Replace("Subject", encode_words(clean_value(subject)))
    else:  # as milter.c
        notes.append("rewrite subject without a subject: kept")


def _forged(options: Translation) -> Iterator[Edit]:
    for name, when in (
        (SCORE_HEADER, options.score_header),
        (STATUS_HEADER, options.status_header),
    ):
        if when != "never":
            yield Remove(name)


def _scores(spam: bool, reply: Reply, options: Translation, edits: list[Edit]) -> Iterator[Edit]:
    """Our own fields, unless rspamd's milter_headers made them."""
    required = reply.required_score
    score = f"{reply.score:.2f}" + ("" if required is None else f" / {required:.2f}")
    status = f"{'Yes' if spam else 'No'}, score={reply.score:.2f}"
    status += "" if required is None else f" required={required:.2f}"
    status += f" tests=[{', '.join(reply.symbols[:MAX_TESTS])}]"
    given = {edit.name.lower() for edit in edits if isinstance(edit, Add | Insert)}
    for name, when, value in (
        (SCORE_HEADER, options.score_header, score),
        (STATUS_HEADER, options.status_header, status),
    ):
        if (when == "always" or (when == "spam" and spam)) and name.lower() not in given:
            yield Add(name, clean_value(value))


def _signatures(reply: Reply, options: Translation, notes: list[str]) -> Iterator[Edit]:
    """Below our own Received, in their order (milter.c)."""
    wish = reply.data.get("dkim-signature")
    values = [x for x in (wish if isinstance(wish, list) else [wish]) if isinstance(x, str) and x]
    if values and not options.dkim:
        notes.append("dkim-signature not followed: switched off")
    elif wish and not values:
        notes.append("dkim-signature not followed: neither text nor a list of it")
    elif values:
        for place, value in enumerate(values, 1):
            yield Insert(place, "DKIM-Signature", clean_value(value))


def encode_words(text: str) -> str:
    """`text` with its words that are not ASCII in RFC 2047's form (section 2); encoded words
    that it has stay as they are."""
    if text.isascii():
        return text

    def encode(match: re.Match[str]) -> str:
        # A blank between two encoded words is not shown: it goes into one of them.
        before = " " if match["before"] and text[: match.start()].endswith("?=") else ""
        after = " " if text[match.end() :].startswith(" =?") else ""
        raw = (before + match["words"] + after).encode("utf-8", "surrogateescape")
        chars, chunks = raw.decode("utf-8", "replace"), [b""]
        for char in chars:
            if len(chunks[-1]) + len(char.encode()) > _RFC2047_CHUNK:
                chunks.append(b"")
            chunks[-1] += char.encode()
        words = (f"=?UTF-8?B?{base64.b64encode(chunk).decode()}?=" for chunk in chunks)
        return match["before"] + " ".join(words)

    text = " ".join(text.split())
    word = r"[^ ]*[^ \x00-\x7f][^ ]*"
    return re.sub(f"(?P<before>(?:^| ))(?P<words>{word}(?: {word})*)", encode, text)


def _fits(what: str, name: str, sound: bool, notes: list[str]) -> bool:
    """Can it be followed?  A note if not."""
    try:
        check_name(name)
    except ValueError:
        sound = False
    if not sound and len(notes) < MAX_NOTES:
        notes.append(f"{what}: {name[:40]!a} not followed: bad name or value")
    return sound


def _integer(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():  # a number of Lua's
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
