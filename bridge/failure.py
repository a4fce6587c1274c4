"""What the failure policy means: the answer to a request when someone could not be asked; and
what the log says of an answer.

The choice (tempfail, accept, accept-header) is the configuration's; shim and policy share
what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.config import Profile
from bridge.smtpd.decisions import Decision, Disconnect, Proceed, Refusal, Reject
from bridge.smtpd.session import Session, Transaction
from bridge.smtpd.wire import raw

# The field of a message that passes although somebody could not be asked, with the reason.
UNSCANNED = "X-Unscanned"

UNCHECKED = Reject("4.7.1", "Message could not be checked, please try again later")
TOO_LARGE = Reject("4.3.4", "Message is too large to be checked")

# What happened when the bridge gave no answer, by kind of failure (schema.BridgeFailure).
REASONS = {
    "unreachable": "no bridge",
    "timeout": "no answer in time",
    "bad-reply": "an answer that made no sense",
    "internal": "it failed",
    "too-large": "message too large",
}


@dataclass(frozen=True, slots=True)
class Consequence:
    """decision: Proceed or a refusal with 4xx; marked: does the message get UNSCANNED?"""

    decision: Decision
    marked: bool = False


def consequence(profile: Profile, session: Session, service: str, kind: str) -> Consequence:
    """What follows from a failure of a kind (upstream.KINDS) of a service or the bridge."""
    choice = profile.failure.choose(service, kind, session.authenticated)
    if not profile.enforce or choice == "accept":
        return Consequence(Proceed())
    if choice == "accept-header":
        return Consequence(Proceed(), marked=True)
    return Consequence(TOO_LARGE if kind == "too-large" else UNCHECKED)


def unscanned(reason: str) -> bytes:
    """The field of such a message, as a line."""
    return raw(f"{UNSCANNED}: {reason}\n")


def about(session: Session, transaction: Transaction | None) -> dict[str, object]:
    """What a log line says of whose request it was."""
    said: dict[str, object] = {"session": session.id, "peer": session.src}
    if transaction is not None:
        said |= {"msgid": transaction.msgid, "from": f"<{transaction.sender or ''}>"}
        said["rcpts"] = len(transaction.recipients)
    return said


def outcome(decision: Decision | None) -> str:
    """The log's word for what became of a request."""
    if isinstance(decision, Disconnect):
        return "disconnected"
    if isinstance(decision, Refusal):
        return "deferred" if decision.code < 500 else "refused"
    return "passed"
