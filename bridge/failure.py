"""What the failure policy means: the answer to a request when someone could not be asked.

The choice (tempfail, accept, accept-header) is the configuration's; shim and policy share
what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.config import Profile
from bridge.smtpd.decisions import Decision, Proceed, Reject
from bridge.smtpd.session import Session

# The field of a message that passes although somebody could not be asked, with the reason.
UNSCANNED = "X-Unscanned"

UNCHECKED = Reject("4.7.1", "Message could not be checked, please try again later")
TOO_LARGE = Reject("4.3.4", "Message is too large to be checked")


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
