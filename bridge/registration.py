"""What the shipped policy wants to be asked and told, derived from its configuration.

The shim registers it before any bridge is up; the bridge says the same in its hello.  What an
application wants, only its hello says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from bridge.config import Config, Endpoint, Profile
from bridge.smtpd import events
from bridge.smtpd.items import Registration

# Results of the fcrdns check that a policy can be set for (schema.Fcrdns).
RESULTS = ("fail", "permerror", "temperror")


# What needs another registration, by the phase that is not asked for yet.
FIRST = {"connect": "fcrdns (a first disconnect)", "rcpt-to": "fcrdns (a first reject)"}
OF_BRIDGE = ("run_dir", "group", "metrics")  # keys that a bridge reads once


def changes(old: Config, new: Config) -> Iterator[tuple[str, str]]:
    """The keys whose change a reload does not take up, and whose restart does: smtpd's for
    what the shim reads and for what is registered, which smtpd lets a filter do once."""
    for field in fields(old.shim):
        if getattr(old.shim, field.name) != getattr(new.shim, field.name):
            yield f"shim.{field.name}", "smtpd"
    if old.bridge.ping_timeout != new.bridge.ping_timeout:
        yield "bridge.ping_timeout", "smtpd"
    # What stands for a missing answer is the shim's.
    if [_of_shim(p) for p in _all(old)] != [_of_shim(p) for p in _all(new)]:
        yield "failure.bridge, enforce or a profile's match", "smtpd, for when no bridge answers"
    for phase in shipped(new).phases - shipped(old).phases:
        yield FIRST[phase], "smtpd"
    for name in OF_BRIDGE:
        if getattr(old.bridge, name) != getattr(new.bridge, name):
            yield f"bridge.{name}", "the bridge"
    if bool(old.bridge.certificate) != bool(new.bridge.certificate):
        yield "bridge.certificate (TLS at all)", "the bridge"


def _all(config: Config) -> tuple[Profile, ...]:
    return (config.main, *config.profiles)


def _of_shim(profile: Profile) -> tuple[object, ...]:
    tables = profile.failure.tables
    bridge = [tables.get(path) for path in ("bridge", "bridge.authenticated")]
    return profile.name, profile.match, profile.enforce, bridge


def shipped(config: Config) -> Registration:
    """The registration of policy.py: the message always, connect and rcpt-to where a profile
    may end a session or refuse a recipient for its reverse DNS, and link-connect where the
    DNS is asked, so that it is before anybody waits for it."""
    checks = [p.fcrdns for p in _all(config) if p.fcrdns.enabled]
    punished = {getattr(check, result) for check in checks for result in RESULTS}
    phases = {"data-line", "commit"}
    if "disconnect" in punished:
        phases.add("connect")
    if "reject" in punished:
        phases.add("rcpt-to")
    reports = {"link-connect"} if any(check.source == "dns" for check in checks) else set()
    return Registration(phases=frozenset(phases), reports=frozenset(reports))


def from_hello(wanted: object) -> Registration | None:
    """What an application wants, from its hello; None for what makes no sense: registering an
    unknown word ends smtpd."""
    if not isinstance(wanted, dict):
        return None
    phases, reports, out = (
        frozenset(map(str, names if isinstance(names := wanted.get(key), list) else ()))
        for key in ("phases", "reports", "reports_out")
    )
    if not (phases <= events.PHASES.keys() and reports | out <= events.REPORTS.keys()):
        return None
    return Registration(phases, reports, out, bool(wanted.get("asks_commit")))


def exposed(wanted: Registration, connect: Sequence[Endpoint]) -> str:
    """What must not go to these bridges, and why; "" if all may.  A request of the phase auth
    holds the password in clear."""
    far = next((each for each in connect if not each.path), None)
    if far is None or "auth" not in wanted.phases:
        return ""
    return f"auth holds passwords and can't go to {far}; hint: connect to a unix socket"
