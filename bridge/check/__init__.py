"""`filter-bridge check`: what is wrong with a configuration, and does what it names work?

    findings    a line of the report
    local       who the filter runs as, and what that user may read
    probes      the services, asked
    smtpd_conf  what to put into smtpd.conf

Mistakes of the file go to stderr and end it; all else goes to stdout.
"""

from __future__ import annotations

import os
import sys

from bridge.check import findings, local, smtpd_conf
from bridge.check.findings import FAIL, OK, WARN, Finding
from bridge.config import Config, ConfigError, load

GOOD, FAILED, BAD_CONFIGURATION = 0, 1, 2


def check(file: str, *, user: str | None = None, offline: bool = False) -> int:
    """Report on a configuration; the exit status.

    0: good, 1: something does not answer or can't be read by the filter's user, 2: the file
    has mistakes.  user: who the filter will run as; offline: ask no service and no DNS.
    """
    try:
        config = load(file, strict=True)
        found = [_about(config), *local.local_findings(config, local.choose_user(user))]
        found += _services(config, offline)
    except ConfigError as error:
        print(*map(findings.shown, error.problems), sep="\n", file=sys.stderr)
        return BAD_CONFIGURATION
    print(*findings.lines(found), sep="\n")
    print(f"\n{_sum(found)}\n")
    own = user or smtpd_conf.OWN_USER
    is_there = local.exists(own)
    print(smtpd_conf.here(file, own, local.group_of(own), is_there=is_there), end="")
    return FAILED if any(each.state == FAIL for each in found) else GOOD


def _about(config: Config) -> Finding:
    names = ", ".join(profile.name for profile in config.profiles)
    profiles = f", profiles {names}" if names else ""
    return Finding(OK, "configuration", f"{os.path.abspath(config.file)}{profiles}")


def _services(config: Config, offline: bool) -> list[Finding]:
    """What came of asking the services.  ConfigError for what only their clients notice."""
    try:
        from bridge.check import probes
    except ModuleNotFoundError as error:  # a shim whose bridges run elsewhere needs none of it
        what = "not installed, so nothing was asked; hint: pip install . in a checkout"
        return [Finding(WARN if config.shim.connect else FAIL, f"package {error.name}", what)]
    try:
        wanted = list(probes.all_probes(config))
    except ValueError as error:  # a certificate that is none
        raise ConfigError([f"{config.file}: {error}"]) from error
    return [] if offline else probes.run(wanted)


def _sum(found: list[Finding]) -> str:
    counts = {state: sum(each.state == state for each in found) for state in (FAIL, WARN)}
    words = {FAIL: "failed", WARN: "to be looked at"}
    told = [f"{count} {words[state]}" for state, count in counts.items() if count]
    return f"{', '.join(told) if told else 'All is well'}."
