"""The configuration as a value: what serves a session, and what happens on failure.

Values and questions about them; how they come from a file is load.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bridge.config import processes, schema
from bridge.config.failure import Failures
from bridge.smtpd.session import Session

MAIN = "default"  # the name of the main part


@dataclass(frozen=True, slots=True)
class Profile:
    """All that a profile may decide, what it did not set taken from the main part."""

    name: str
    enforce: bool
    authserv_id: str
    fcrdns: schema.Fcrdns
    rspamd: schema.Rspamd
    dkim: schema.Dkim
    failure: Failures
    match: schema.Match


def fits(match: schema.Match, session: Session) -> bool:
    """Does all that is given fit?  Never when nothing is given."""
    if match == schema.Match():
        return False
    address, port = session.listener
    return (
        (not match.port or port in match.port)
        and (not match.address or any(address in net for net in match.address if address))
        and match.authenticated in (None, session.authenticated)
        and match.local in (None, session.local)
    )


def build(
    name: str,
    base: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any]],
    match: schema.Match | None = None,
) -> Profile:
    """A profile from the main part's tables and what it sets itself, by path and key."""
    tables = {path: replace(table, **found.get(path, {})) for path, table in base.items()}
    top: schema.Top = tables[""]
    failures = {
        path.removeprefix("failure."): table
        for path, table in tables.items()
        if path.startswith("failure.")
    }
    return Profile(
        name=name,
        enforce=top.enforce,
        authserv_id=top.authserv_id,
        fcrdns=tables["fcrdns"],
        rspamd=tables["rspamd"],
        dkim=tables["dkim"],
        failure=Failures(failures),
        match=match or schema.Match(),
    )


class Needed(NamedTuple):
    """A file to be read, or a directory to be written to, that a key names."""

    key: str
    path: str
    need: str
    secret: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole, checked configuration."""

    file: str
    shim: processes.Shim
    bridge: processes.Bridge
    log: processes.Log
    main: Profile  # for sessions that no profile fits
    profiles: tuple[Profile, ...]
    warnings: tuple[str, ...] = ()  # for the log, a line for each

    def named(self, name: str) -> Profile | None:
        """The profile of that name; "default" is the main part."""
        return next((p for p in (self.main, *self.profiles) if p.name == name), None)

    def profile_for(self, session: Session, forced: str | None = None) -> Profile:
        """What serves a session: the forced profile, the first that fits, or the main part.

        To be asked anew for each request, since a client authenticates on the way.
        """
        if forced and (profile := self.named(forced)):
            return profile
        fitting = (p for p in self.profiles if fits(p.match, session))
        return next(fitting, self.main)

    def files(self) -> Iterator[Needed]:
        """What it names in the file system, for permissions.py."""
        for service, upstream in (("rspamd", self.main.rspamd), ("dkim", self.main.dkim)):
            for name in ("ca_file", "client_certificate", "client_key", "token_file"):
                if path := getattr(upstream, name):
                    secret = name in ("client_key", "token_file")
                    yield Needed(f"{service}.{name}", path, "read", secret)
        yield Needed("shim.spill_dir", self.shim.spill_dir, "write", False)
