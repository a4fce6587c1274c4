"""The shipped filter: which services are asked, in which order, and what it means together.

connect and rcpt-to: forward-confirmed reverse DNS.  The message: the same for whoever was
not refused then, rspamd, our own header fields, and the failure policy for what could not be
had.  How a service is asked and what its reply means is in services/.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bridge.completion import adds_dates, complete, smtpd_version
from bridge.config import Config, Profile
from bridge.config.values import Network
from bridge.edits import MAX_FIELDS, Add, Edit, Insert, Verdict, apply, header_fields
from bridge.failure import UNSCANNED, consequence
from bridge.filter import Filter, Message
from bridge.forged import AUTHENTICATION_RESULTS, forged
from bridge.registration import shipped
from bridge.services.build import OUTCOMES, Services
from bridge.services.dkim import Signer, Signing, on_top, signing_domain
from bridge.services.fcrdns import FcRdns, Result, from_smtpd, iprev_field
from bridge.services.rspamd import Request, Rspamd
from bridge.services.rspamd_verdict import ACTIONS, STAND_INS, Translation, translate
from bridge.services.upstream import KINDS, ServiceError
from bridge.smtpd import events
from bridge.smtpd.decisions import Disconnect, Proceed, Refusal, Reject
from bridge.smtpd.items import Registration
from bridge.smtpd.message import join
from bridge.smtpd.session import Session

SIGNATURE = "DKIM-Signature"
FCRDNS = "fcrdns"  # its result in a session's keep
TOO_MANY_FIELDS = Reject("5.6.0", "The message has too many header fields", 554)
# What stands for what OpenSMTPD can't do, as rspamd's actions.
INSTEAD = {
    "accept": "no action",
    "spam": "add header",
    "reject": "reject",
    "tempfail": "soft reject",
}
OTHER = "other"  # the action of a rule of somebody's own
SERVICES = ("rspamd", "dkim")
# What is counted here and of the services, and the values of each label (metrics.COUNTERS).
COUNTED: dict[str, tuple[Sequence[str], ...]] = {
    "service_requests_total": (SERVICES, OUTCOMES),
    "failures_total": (SERVICES, tuple(KINDS), ("tempfail", "accept", "accept-header")),
    "rspamd_actions_total": ((*sorted(ACTIONS | STAND_INS), OTHER),),
    "fcrdns_total": (tuple(Result),),
}

Log = Callable[..., None]
Count = Callable[..., None]


class Policy(Filter):
    """The shipped filter.  log: writes a line, (event, **fields); count: counts one of
    `COUNTED`, (metric, *labels)."""

    def __init__(
        self, config: Config, services: Services, log: Log, count: Count = lambda *_: None
    ) -> None:
        super().__init__()
        self._config = config
        self._services = services
        self._log = log
        self._count = count
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
        self._signer = {
            profile.name: Signer(services.dkim, max_size=profile.dkim.max_size)
            for profile in (config.main, *config.profiles)
            if services.dkim is not None
        }
        self._signing = {
            profile.name: _signing(profile) for profile in (config.main, *config.profiles)
        }
        self._translations = {
            profile.name: _translation(profile) for profile in (config.main, *config.profiles)
        }
        self.on(events.LinkConnect)(self._begin)
        self.on(events.Connect)(self._connect)
        self.on(events.RcptTo)(self._recipient)
        self.on(Message)(self._message)

    @property
    def own_registration(self) -> Registration:
        """Only what this configuration has a use for."""
        return shipped(self._config)

    def _profile(self, session: Session) -> Profile:
        return self._config.profile_for(session, session.profile or None)

    # Reverse DNS --------------------------------------------------------------------------

    async def _begin(self, event: events.LinkConnect, session: Session) -> None:
        """The lookup starts before anybody waits for it; its result is in the cache then."""
        await self._reverse(session, self._profile(session), counted=False)

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

    async def _reverse(
        self, session: Session, profile: Profile, *, again: bool = True, counted: bool = True
    ) -> FcRdns | None:
        """The result of the check, None for a client that is not checked.  again: ask once more
        after a temperror; a message does not, or a stranger's DNS would hold its slot.
        counted: not for a report, whose session keeps nothing."""
        address, policy = session.address, profile.fcrdns
        if address is None or not policy.enabled:
            return None
        if _within(session, policy.exempt_networks):
            return None
        kept = FcRdns.from_json(session.keep.get(FCRDNS))
        if policy.source == "smtpd" or self._services.fcrdns is None:
            found = from_smtpd(session.fcrdns, session.rdns)
        elif kept is None or (again and kept.result is Result.TEMPERROR):  # perhaps it is over
            found = await self._services.fcrdns.check(address)
        else:
            return kept
        if counted and (kept is None or kept.result is not found.result):
            self._count("fcrdns_total", found.result)
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
        found = await self._reverse(session, profile, again=False)
        recipients = session.transaction.recipients if session.transaction else []
        if (
            # Only of those whom the bridge could not be asked about earlier is any left here.
            found is not None
            and self._punishment(found, session, profile) in ("disconnect", "reject")
            and not self._is_exempt(recipients, session, profile)
        ):
            return _enforced(self._refusal(found, profile, Reject), profile)
        fields = header_fields(message.wire, message.start)
        if len(fields) == MAX_FIELDS:  # below them a forged field could hide
            return _enforced(Verdict(TOO_MANY_FIELDS, reason="bridge: header too long"), profile)
        authserv_id = profile.authserv_id or session.admd or session.hostname or "localhost"
        draft = _Draft(message)
        draft.add(*forged(fields, authserv_id))
        ours = session.authenticated or _within(session, profile.dkim.sign_networks)
        unstable = self._complete(draft, session, profile) if ours else ()
        verdict = await self._scan(draft, session, profile, found)
        if isinstance(verdict.decision, Refusal):
            return _enforced(verdict, profile)
        draft.add(*verdict.edits)
        address = session.address
        if found is not None and address is not None and not session.authenticated:
            action = self._punishment(found, session, profile)
            if action != "ignore":
                value = iprev_field(found, address, authserv_id)
                draft.add(Insert(1, AUTHENTICATION_RESULTS, value))
        signed = any(isinstance(e, Insert) and e.name == SIGNATURE for e in verdict.edits)
        if profile.dkim.enabled and not signed:  # rspamd can sign as well
            signature = await self._sign(draft, session, profile, unstable)
            if isinstance(signature.decision, Refusal):
                return _enforced(signature, profile)
            draft.add(*signature.edits)
            verdict = replace(verdict, reason=_both(verdict.reason, signature.reason))
        return _enforced(Verdict(Proceed(), tuple(draft.edits), verdict.reason), profile)

    async def _scan(
        self,
        draft: _Draft,
        session: Session,
        profile: Profile,
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
            return self._failed(profile, session, "rspamd", error)
        known = reply.action in ACTIONS or reply.action in STAND_INS
        self._count("rspamd_actions_total", reply.action if known else OTHER)
        verdict, notes = translate(reply, self._translations[profile.name])
        for note in notes:
            self._log("rspamd-note", session=session.id, note=note)
        if isinstance(verdict.decision, Refusal) or not profile.enforce:
            return verdict
        return replace(verdict, reason="")

    # Outgoing mail ------------------------------------------------------------------------

    def _complete(self, draft: _Draft, session: Session, profile: Profile) -> tuple[str, ...]:
        """Do what smtpd would do to outgoing mail after us, so that a signature, ours or
        rspamd's, still holds then; the fields that it will change all the same."""
        sender = (session.transaction.sender if session.transaction else "") or ""
        completion = complete(
            draft.wire,
            profile.dkim.hostname or session.hostname or "localhost",
            dates=adds_dates(session),
            now=time.time(),
            unique=os.urandom(8).hex(),
            smtpd=smtpd_version(session),
            sender=sender if profile.dkim.masquerade and not session.local else "",
            start=draft.start,
        )
        draft.add(*completion.edits)
        return completion.unstable

    async def _sign(
        self, draft: _Draft, session: Session, profile: Profile, unstable: Sequence[str]
    ) -> Verdict:
        """The signatures of the message as it will leave; its reason is empty where there is
        nothing to tell."""
        policy = profile.dkim
        choice = signing_domain(draft.wire, session, self._signing[profile.name], draft.start)
        if not choice.domain:
            if choice.reason:
                self._log("not-signed", session=session.id, why=choice.reason)
            return Verdict()
        if unstable:
            why = f"smtpd will change {', '.join(unstable)}"
            return Verdict(reason=f"dkim: not signed: {why}")
        now = asyncio.get_running_loop().time()
        try:
            fields = await self._signer[profile.name].sign(
                draft.wire[draft.start :],
                session,
                choice.domain,
                deadline=min(now + policy.deadline, session.deadline),
            )
        except ServiceError as error:
            return self._failed(profile, session, "dkim", error)
        if not fields:
            why = f"no key for {choice.domain}"
            if policy.domains:  # they have to be signed
                return self._failed(profile, session, "dkim", ServiceError("bad-reply", why))
            self._log("not-signed", session=session.id, why=why)
        return Verdict(edits=on_top(fields))

    def _failed(
        self, profile: Profile, session: Session, service: str, error: ServiceError
    ) -> Verdict:
        """The failure policy's verdict."""
        told = str(error).removeprefix(f"{service}: ")
        what = consequence(profile, session, service, error.kind)
        passed = "accept-header" if what.marked else "accept"
        outcome = "tempfail" if isinstance(what.decision, Refusal) else passed
        self._count("failures_total", service, error.kind, outcome)
        edits = (Add(UNSCANNED, f"{service}: {error.kind}"),) if what.marked else ()
        return Verdict(what.decision, edits, f"{service}: {error.kind}: {told}")


class _Draft:
    """A message while it is judged: the edits so far, and what they make of it."""

    def __init__(self, message: Message) -> None:
        self.start = message.start
        self.edits: list[Edit] = []
        self._wire = message.wire
        self._done = 0  # how many of the edits are in it

    def add(self, *edits: Edit) -> None:
        """More edits, counted in the message as those before them left it."""
        self.edits += edits

    @property
    def wire(self) -> bytes:
        """The message as it is now; made when somebody wants it, since it may be long."""
        if self._done < len(self.edits):
            splices = apply(self._wire, self.edits[self._done :], start=self.start)
            self._wire, self._done = join(self._wire, splices), len(self.edits)
        return self._wire


def _both(first: str, second: str) -> str:
    return "; ".join(filter(None, (first, second)))


def _enforced(verdict: Verdict, profile: Profile) -> Verdict:
    """The verdict, or with `enforce = false` a note of it."""
    if profile.enforce:
        return verdict
    decision = verdict.decision
    would = f"refuse: {decision.reply}" if isinstance(decision, Refusal) else "let pass"
    if verdict.edits:
        would += f", {len(verdict.edits)} edits"
    return Verdict(reason=f"not enforced, would {would}; {verdict.reason}".rstrip("; "))


def _within(session: Session, networks: Sequence[Network]) -> bool:
    """Is the peer in one of the networks?"""
    address = session.address if networks else None
    return address is not None and any(address in network for network in networks)


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
        reject_reply=table.reject_reply,
        soft_reject_reply=table.soft_reject_reply,
        discard=INSTEAD[table.discard],
        quarantine=INSTEAD[table.quarantine],
        actions=table.actions,
        score_header=table.score_header,
        status_header=table.score_header,
    )


def _signing(profile: Profile) -> Signing:
    table = profile.dkim
    return Signing(
        authenticated=table.sign_authenticated,
        local=table.sign_local,
        networks=table.sign_networks,
        domains=table.domains,
        alignment=table.alignment,
        sign_as=table.sign_as,
    )
