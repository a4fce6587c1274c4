"""What the shipped policy wants to be asked and told, derived from its configuration.

The shim registers it before any bridge is up; the bridge says the same in its hello.
"""

from __future__ import annotations

from bridge.config import Config
from bridge.smtpd.protocol import Registration

# Results of the fcrdns check that a policy can be set for (schema.Fcrdns).
RESULTS = ("fail", "permerror", "temperror")


def shipped(config: Config) -> Registration:
    """The registration of policy.py: the message always, connect and rcpt-to where a profile
    may end a session or refuse a recipient for its reverse DNS."""
    punished = {
        getattr(profile.fcrdns, result)
        for profile in (config.main, *config.profiles)
        if profile.fcrdns.enabled
        for result in RESULTS
    }
    phases = {"data-line", "commit"}
    if "disconnect" in punished:
        phases.add("connect")
    if "reject" in punished:
        phases.add("rcpt-to")
    return Registration(phases=frozenset(phases))
