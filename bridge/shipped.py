"""The shipped policy as a part of somebody's own filter."""

from __future__ import annotations

import os
import time

from bridge import log
from bridge.config import load
from bridge.policy import Policy
from bridge.services.build import build
from bridge.services.upstream import ServerState


def shipped_policy(file: str | os.PathLike[str] = "/etc/mail/bridge.toml") -> Policy:
    """The shipped filter with that configuration, to be put in a chain.  Raises ConfigError
    for what the file has wrong.  Its tables [shim] and [bridge] are not used.

    >>> from bridge import Filter, shipped_policy
    >>> def application(file: str) -> Filter:
    ...     mine = Filter()
    ...     return Filter.chain(mine, shipped_policy(file))
    """
    stderr = log.Stderr()

    def say(event: str, **values: object) -> None:
        stderr.write(log.record(event, **values), time.monotonic())

    def on_change(service: str, state: ServerState) -> None:
        say(f"{service}-{state.state}", server=state.server, error=state.last_error)

    config = load(file)
    services = build(config, on_change)
    policy = Policy(config, services, say)
    policy.on_stop(services.aclose)
    return policy
