"""The shipped filter: which services are asked, in which order, and what it means together.

connect and rcpt-to: forward-confirmed reverse DNS.  The message: the same for whoever was
not refused then, rspamd, our own header fields, and the failure policy for what could not be
had.  How a service is asked and what its reply means is in services/.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from bridge.config import Config, Profile
from bridge.edits import Add, Edit, Insert, Remove, Verdict, apply, header_fields
from bridge.failure import UNSCANNED, consequence
from bridge.filter import Filter, Message
from bridge.registration import shipped
from bridge.services.build import Services
from bridge.services.fcrdns import FcRdns, Result, from_smtpd, iprev_field
from bridge.services.rspamd import Request, Rspamd
from bridge.services.rspamd_verdict import Translation, translate
from bridge.services.upstream import ServiceError
from bridge.smtpd import events
from bridge.smtpd.decisions import Disconnect, Proceed, Refusal, Reject
from bridge.smtpd.message import join
from bridge.smtpd.protocol import Registration
from bridge.smtpd.session import Session

AUTHENTICATION_RESULTS = "Authentication-Results"
FCRDNS = "fcrdns"  # its result in a session's keep
# What stands for what OpenSMTPD can't do, as rspamd's actions.
INSTEAD = {
    "accept": "no action",
    "spam": "add header",
    "reject": "reject",
    "tempfail": "soft reject",
}
# The authserv-id at the beginning of an Authentication-Results field, after any comments
# (RFC 8601, 2.2).
_AUTHSERV_ID = re.compile(rb'\s*(?:\([^()]*\)\s*)*"?([^\s;"()]+)')

Log = Callable[..., None]


class Policy(Filter):
    """The shipped filter.  log: writes a line, (event, **fields)."""

    def __init__(self, config: Config, services: Services, log: Log) -> None:
        super().__init__()
        self._config = config
        self._services = services
        self._log = log
        self._rspamd = {
            profile.name: Rspamd(
                services.rspamd,
                _request(profile),
                compress=profile.rspamd.compress,
                max_size=profile.rspamd.max_size,
            )
            for profile in (config.main, *config.profiles)
            if services.rspamd is not None
        }
        self._translations = {
            profile.name: _translation(profile) for profile in (config.main, *config.profiles)
        }
        self.on(events.LinkConnect)(self._begin)
        self.on(events.Connect)(self._connect)
        self.on(events.RcptTo)(self._recipient)
        self.on(Message)(self._message)

    @property
    def registration(self) -> Registration:
        """Only what this configuration has a use for."""
        return shipped(self._config)

    def _profile(self, session: Session) -> Profile:
        return self._config.profile_for(session, session.profile or None)

    # Reverse DNS --------------------------------------------------------------------------

    async def _begin(self, event: events.LinkConnect, session: Session) -> None:
        """The lookup starts before anybody waits for it; its result is in the cache then."""
        await self._reverse(session, self._profile(session))

    async def _connect(self, event: events.Connect, session: Session) -> Verdict:
        profile = self._profile(session)
        found = await self._reverse(session, profile)
        if found is None or self._punishment(found, session, profile) != "disconnect":
            return Verdict()
        return _enforced(self._refusal(found, profile, Disconnect), profile)

    async def _recipient(self, event: events.RcptTo, session: Session) -> Verdict:
        profile = self._profile(session)
        found = await self._reverse(session, profile)
        if found is None or self._is_exempt([event.address], session, profile):
            return Verdict()
        if self._punishment(found, session, profile) not in ("disconnect", "reject"):
            return Verdict()
        return _enforced(self._refusal(found, profile, Reject), profile)

    async def _reverse(self, session: Session, profile: Profile) -> FcRdns | None:
        """The result of the check, None for a client that is not checked."""
        address, policy = session.address, profile.fcrdns
        if address is None or not policy.enabled:
            return None
        if any(address in network for network in policy.exempt_networks):
            return None
        if policy.source == "smtpd" or self._services.fcrdns is None:
            return from_smtpd(session.fcrdns, session.rdns)
        found = FcRdns.from_json(session.keep.get(FCRDNS))
        if found is None or found.result is Result.TEMPERROR:  # perhaps it is over
            found = await self._services.fcrdns.check(address)
            session.keep[FCRDNS] = found.to_json()
        return found

    def _punishment(self, found: FcRdns, session: Session, profile: Profile) -> str:
        """disconnect, reject, mark, ignore, or "" for a pass or an exempt name."""
        policy = profile.fcrdns
        if found.result is Result.PASS or _matches(found.names, policy.exempt_names):
            return ""
        return str(getattr(policy, found.result.value))

    def _is_exempt(self, recipients: Sequence[str], session: Session, profile: Profile) -> bool:
        policy = profile.fcrdns
        if session.authenticated and policy.exempt_authenticated:
            return True
        exempt = {each.lower() for each in policy.exempt_recipients}
        return bool(recipients) and all(
            {address.lower(), address.lower().rpartition("@")[0] or address.lower()} & exempt
            for address in recipients
        )

    def _refusal(
        self, found: FcRdns, profile: Profile, kind: type[Reject] | type[Disconnect]
    ) -> Verdict:
        policy = profile.fcrdns
        temporary = found.result is Result.TEMPERROR
        reply = policy.temperror_reply if temporary else policy.reply
        reason = f"fcrdns: {found.result} {found.reason}".strip()
        return Verdict(kind(reply.status, reply.text, reply.code), reason=reason)

    # The message --------------------------------------------------------------------------

    async def _message(self, message: Message, session: Session) -> Verdict:
        profile = self._profile(session)
        found = await self._reverse(session, profile)
        recipients = session.transaction.recipients if session.transaction else []
        if (
            # Only of those whom the bridge could not be asked about earlier is any left here.
            found is not None
            and self._punishment(found, session, profile) in ("disconnect", "reject")
            and not self._is_exempt(recipients, session, profile)
        ):
            return _enforced(self._refusal(found, profile, Reject), profile)
        authserv_id = profile.authserv_id or session.admd or session.hostname or "localhost"
        draft = _Draft(message)
        draft.add(*_forged(message, authserv_id))
        verdict = await self._scan(draft, session, profile, authserv_id, found)
        if isinstance(verdict.decision, Refusal):
            return _enforced(verdict, profile)
        draft.add(*verdict.edits)
        address = session.address
        if found is not None and address is not None and not session.authenticated:
            action = self._punishment(found, session, profile)
            if action != "ignore":
                value = iprev_field(found, address, authserv_id)
                draft.add(Insert(1, AUTHENTICATION_RESULTS, value))
        return _enforced(Verdict(Proceed(), tuple(draft.edits), verdict.reason), profile)

    async def _scan(
        self,
        draft: _Draft,
        session: Session,
        profile: Profile,
        authserv_id: str,
        found: FcRdns | None,
    ) -> Verdict:
        """rspamd's verdict; its reason is empty where there is nothing to tell."""
        policy = profile.rspamd
        wanted = policy.scan_local if session.local else policy.scan_authenticated
        if not policy.enabled or (session.authenticated and not wanted):
            return Verdict()
        confirmed = found.name if found is not None and found.result is Result.PASS else ""
        now = asyncio.get_running_loop().time()
        try:
            reply = await self._rspamd[profile.name].check(
                draft.wire[draft.start :],
                session,
                deadline=min(now + policy.deadline, session.deadline),
                hostname=confirmed,
            )
        except ServiceError as error:
            return _failed(profile, session, "rspamd", error)
        verdict, notes = translate(reply, self._translations[profile.name])
        for note in notes:
            self._log("rspamd-note", session=session.id, note=note)
        if isinstance(verdict.decision, Refusal) or not profile.enforce:
            return verdict
        return replace(verdict, reason="")


class _Draft:
    """A message while it is judged: the edits so far, and what they make of it."""

    def __init__(self, message: Message) -> None:
        self.start = message.start
        self.wire = message.wire
        self.edits: list[Edit] = []

    def add(self, *edits: Edit) -> None:
        """More edits, counted in the message as those before them left it."""
        if edits:
            self.edits += edits
            self.wire = join(self.wire, apply(self.wire, edits, start=self.start))


def _forged(message: Message, authserv_id: str) -> Iterator[Edit]:
    """Take off what only we may say (RFC 8601, section 5): nobody else is this authserv-id,
    or knows what was not scanned here."""
    names = [AUTHENTICATION_RESULTS.lower(), UNSCANNED.lower()]
    found: dict[str, list[bytes]] = {name: [] for name in names}
    for field in header_fields(message.wire, message.start):
        if field.name.lower() in found:
            found[field.name.lower()].append(field.value)
    ours = tuple(
        number
        for number, value in enumerate(found[names[0]], 1)
        if (match := _AUTHSERV_ID.match(value))
        and match[1].decode("ascii", "replace").lower() == authserv_id.lower()
    )
    if ours:
        yield Remove(AUTHENTICATION_RESULTS, ours)
    if found[names[1]]:
        yield Remove(UNSCANNED)


def _failed(profile: Profile, session: Session, service: str, error: ServiceError) -> Verdict:
    """The failure policy's verdict."""
    what = consequence(profile, session, service, error.kind)
    edits = (Add(UNSCANNED, f"{service}: {error.kind}"),) if what.marked else ()
    return Verdict(what.decision, edits, f"{service}: {error.kind}: {error}")


def _enforced(verdict: Verdict, profile: Profile) -> Verdict:
    """The verdict, or with `enforce = false` a note of it."""
    if profile.enforce:
        return verdict
    decision = verdict.decision
    would = f"refuse: {decision.reply}" if isinstance(decision, Refusal) else "let pass"
    if verdict.edits:
        would += f", {len(verdict.edits)} edits"
    return Verdict(reason=f"not enforced, would {would}; {verdict.reason}".rstrip("; "))


def _matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Is one of the names one of those wanted, or below one that begins with a dot?"""
    return any(
        name.lower() == each.lower().lstrip(".") or name.lower().endswith(each.lower())
        if each.startswith(".")
        else name.lower() == each.lower()
        for name in names
        for each in wanted
    )


def _request(profile: Profile) -> Request:
    table = profile.rspamd
    return Request(
        mta_name=profile.authserv_id,
        settings_id=table.settings_id,
        local_ip="127.0.0.1" if table.local_ip else "",
        extra=dict(table.headers),
    )


def _translation(profile: Profile) -> Translation:
    table = profile.rspamd
    return Translation(
        spam_header=table.spam_header,
        reject_message=table.reject_reply.text,
        soft_reject_message=table.soft_reject_reply.text,
        discard=INSTEAD[table.discard],
        quarantine=INSTEAD[table.quarantine],
        actions=table.actions,
        score_header=table.score_header,
        status_header=table.score_header,
    )
