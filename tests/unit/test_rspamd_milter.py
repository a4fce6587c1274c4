"""Our translation of a reply leaves the bytes that rspamd's own milter would leave.

The oracle is a transcript of what rspamd 3.4 and 4.1.5 sent their MTA in 29 situations, played
to a small model of such an MTA.  The replies behind it were not recorded; each is made here
from the situation's name and what the milter then did, in the shape of a recorded reply.  What
the tables of "arr-wrapped" held can't be known, and of "dkim" only what the milter passed on.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from bridge import edits
from bridge.services.rspamd import Translation, parse_reply, translate
from bridge.smtpd.decisions import Refusal

FIXTURES = Path(__file__).parent.parent / "fixtures"
Command = tuple[Any, ...]

RECEIVED = "Received: from client\n\tby us"
# The ten fields that the milter was shown; it never sees the MTA's own Received.
HEADER = [
    "X-Spam: one",
    "From: a@b.c",
    "X-L: 1",
    "To: d@e.f",
    "X-L: 2",
    "Subject: hello",
    "X-Spam: two\n\tfolded",
    "Date: Thu, 1 Jan 1970 00:00:00 +0000",
    "Message-ID: <1@b.c>",
    "X-L: 3",
]
MESSAGE = ("\n".join([RECEIVED, *HEADER]) + "\n\nbody\n").encode()


def situations() -> dict[tuple[str, str], list[Command]]:
    found: dict[tuple[str, str], list[Command]] = {}
    for line in (FIXTURES / "rspamd-milter-transcripts.txt").read_text("utf-8").splitlines():
        if line.startswith("## "):
            name, _, version = line[3:].rpartition(" ")
            commands = found[name, version] = []
        elif line.strip():
            commands.append(ast.literal_eval(line.strip()))
    return found


TRANSCRIPTS = situations()


def mta(commands: list[Command]) -> tuple[str, bytes]:
    """How an MTA ends (a reply, "discard" or "accept") and what it is left with; like Postfix,
    its index 0 is above its own Received, and a field that is gone does not count."""
    header, body, end = [RECEIVED, *HEADER], "body\n", ""
    for command in commands:
        match command:
            case ("h", name, value):
                header.append(f"{name}: {value}")
            case ("i", index, name, value):
                header.insert(index, f"{name}: {value}")
            case ("m", index, name, value):
                places = [
                    i for i, x in enumerate(header) if x.lower().startswith(f"{name.lower()}:")
                ]
                if index <= len(places) and value:
                    header[places[index - 1]] = f"{name}: {value}"
                elif index <= len(places):
                    del header[places[index - 1]]
                elif value:
                    header.append(f"{name}: {value}")
            case ("b", value):
                body = value.replace("\r\n", "\n")
            case ("y", value):
                end = value
            case ("d", _):
                end = "discard"
            case ("a", _):
                end = "accept"
            case ("q" | "e" | "+" | "-", _):  # what OpenSMTPD can't do
                pass
            case _:
                raise AssertionError(command)
    return end, ("\n".join(header) + "\n\n" + body).encode()


def ours(reply: dict[str, Any], block: bytes = b"") -> tuple[str, bytes]:
    """How we end and what we leave, with nothing standing for a quarantine."""
    text = json.dumps(reply).encode()
    headers = {"message-offset": str(len(text))} if block else {}
    options = Translation(score_header="never", quarantine="no action")
    verdict, _ = translate(parse_reply(200, headers, text + block), options)
    if isinstance(verdict.decision, Refusal):
        return verdict.decision.reply, MESSAGE
    message = MESSAGE
    for start, end, new in reversed(edits.apply(MESSAGE, verdict.edits)):
        message = message[:start] + new + message[end:]
    return "accept", message


AUTH = "postfix;\n\tdkim=none"


def reply(action: str, *, auth: str = AUTH, **more: Any) -> dict[str, Any]:
    """A reply with what milter_headers puts into every one: X-Spam removed, a result added."""
    add = {**more.pop("add", {}), "Authentication-Results": {"value": auth, "order": 1}}
    remove = {**more.pop("remove", {}), "X-Spam": 0}
    milter = {"remove_headers": remove, "add_headers": add, **more.pop("milter", {})}
    return {"action": action, "score": 0.0, "messages": {}, "milter": milter, **more}


def pre(action: str, message: str, told: Any = "", **more: Any) -> dict[str, Any]:
    """A reply with a rule's own verdict, which another rule tells in a field."""
    value = f"action={told or action};\n\tmodule=drv;\n\t{message}"
    add = {**more.pop("add", {}), "X-Rspamd-Pre-Result": {"value": value, "order": -1}}
    if message not in ("x", "unknown reason"):
        more.setdefault("messages", {"smtp_message": message})
    return reply(action, auth=more.pop("auth", "postfix;\n\tnone"), add=add, **more)


def ordered(version: str) -> dict[str, Any]:
    """Headers of all orders: 3.4 writes an object's keys in the order of their hashes."""
    orders = {"A": 0, "B": 1, "C": 5, "D": -1, "E": -2, "G": -99}
    wishes: dict[str, Any] = {x: {"value": str(n), "order": n} for x, n in orders.items()}
    wishes["F"] = "plain"
    return {x: wishes[x] for x in {"3.4": "BGDFECA", "4.1.5": "BAGCDFE"}[version]}


SIGNED: list[str] = [x[3] for x in TRANSCRIPTS["dkim", "3.4"] if x[2:3] == ("DKIM-Signature",)]
SIGNER = "postfix;\n\tauth=pass smtp.auth=a@b.c smtp.mailfrom=a@b.c"
SPAM_OBJECT = {"spam_header": {"X-L": "z", "X-My-Spam": "YES"}}
LISTS = {
    "L2": [{"value": "x", "order": 1}, {"value": "y", "order": 1}],
    "L3": ["z"],
}
RCPT = {"change_from": "new@from", "add_rcpt": ["n@r"], "del_rcpt": ["d@e.f"]}
WRAPPED = {"add_headers": [{"X-W": "1"}], "remove_headers": [{"X-L": 0}]}

REPLIES: dict[str, Any] = {
    **{
        f"{action} msg": pre(action, "Msg here")
        for action in (
            "reject", "soft reject", "add header", "greylist", "no action", "discard", "quarantine",
        )
    },
    "rewrite subject msg": pre("rewrite subject", "Msg here", subject="*** SPAM *** hello"),
    "custom tag msg": pre("custom tag", "Msg here", "custom"),
    "silent msg": pre("silent", "Msg here", "discard", reject="discard"),
    "hold msg": pre("hold", "Msg here", "quarantine", reject="quarantine"),
    "reject no msg": pre("reject", "x"),
    "soft no msg": pre("soft reject", "x"),
    "reject with code in msg": pre("reject", "550 5.7.0 own code"),
    "reject msg with CRLF": pre("reject", "l1\r\nl2 %x"),
    "reject+milter discard": pre("reject", "m", milter={"reject": "discard"}),
    "reject+milter quarantine": pre("reject", "m", milter={"reject": "quarantine"}),
    "reject+no_action": pre("reject", "m", milter={"no_action": True}),
    "add header+spam_header str": pre(
        "add header", "unknown reason", milter={"spam_header": "VeryYes"}
    ),
    "add header+spam_header obj": pre("add header", "unknown reason", milter=SPAM_OBJECT),
    "remove list": reply("no action", remove={"X-L": [1, 3]}),
    "remove 0 / case": reply("no action", remove={"x-l": 0}),
    "list forms": reply("no action", add=LISTS),
    "arr-wrapped": {"action": "no action", "milter": WRAPPED},
    "from/rcpt": reply("no action", milter=RCPT),
    "body rewrite": reply("no action"),
    "dkim": reply("no action", auth=SIGNER, **{"dkim-signature": SIGNED}),
    "dkim+reject": pre("reject", "m", auth=SIGNER, **{"dkim-signature": SIGNED}),
}  # fmt: skip


def made(name: str, version: str) -> tuple[dict[str, Any], bytes]:
    if name == "rewrite subj + hdrs":
        subject = {"subject": "*** SPAM *** hello"}
        wish = pre("rewrite subject", "unknown reason", add=ordered(version), **subject)
        wish["milter"]["remove_headers"]["X-L"] = 2
        return wish, b""
    return REPLIES[name], b"replaced\r\n" if name == "body rewrite" else b""


# What we do otherwise, and on purpose.
INSTEAD: dict[str, list[Command]] = {
    # A list counts in the message as it was.  3.4 ignored lists; 4.1.5 sends 1, then 3, which
    # an MTA takes as the third of what is left.
    "remove list": [("m", 3, "X-L", ""), ("m", 1, "X-L", "")],
    # The milter loses what is in a list of one object.
    "arr-wrapped": [*(("m", i, "X-L", "") for i in (3, 2, 1)), ("h", "X-W", "1")],
}


def as_here(name: str, commands: list[Command]) -> tuple[str, bytes]:
    if name in INSTEAD:
        commands = INSTEAD[name] + [x for x in commands if x[2:3] != ("X-L",)]
    end, message = mta(commands)
    if end == "discard":  # what stands for it
        return "554 5.7.1 Spam message rejected", MESSAGE
    # A reply is one line, and then the message does not matter.
    return (end, message) if end == "accept" else (end.replace("\r\n", " "), MESSAGE)


@pytest.mark.parametrize(("name", "version"), TRANSCRIPTS, ids=[" ".join(x) for x in TRANSCRIPTS])
def test_the_message_is_left_as_by_rspamds_milter(name: str, version: str) -> None:
    assert ours(*made(name, version)) == as_here(name, TRANSCRIPTS[name, version])


def test_each_situation_is_there_for_both_versions() -> None:
    names = {name for name, _ in TRANSCRIPTS}
    assert names == {*REPLIES, "rewrite subj + hdrs"}
    assert {(name, version) for name in names for version in ("3.4", "4.1.5")} == set(TRANSCRIPTS)
