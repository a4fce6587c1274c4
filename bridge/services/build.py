"""The services of one configuration: clients made from their tables, and put away together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bridge.config import Config
from bridge.config.schema import Upstream
from bridge.services.endpoints import Tls
from bridge.services.fcrdns import Cache, Checker, DnsResolver
from bridge.services.http import Header, Parse, Upstreams
from bridge.services.upstream import KINDS, Rules, ServerState, ServiceError

T = TypeVar("T")
Observe = Callable[[str, str, float], None]
OUTCOMES = ("ok", "given-up", *KINDS)  # of a request, as an observer is told


@dataclass(frozen=True, slots=True)
class Services:
    """Whom the shipped policy asks; None for what no profile uses."""

    fcrdns: Checker | None
    rspamd: Upstreams | None
    dkim: Upstreams | None

    @property
    def upstreams(self) -> tuple[Upstreams, ...]:
        """Those that are asked over HTTP."""
        return tuple(each for each in (self.rspamd, self.dkim) if each is not None)

    async def aclose(self) -> None:
        """Give up what is under way."""
        if self.fcrdns is not None:
            await self.fcrdns.aclose()


class Observed(Upstreams):
    """Servers of a service, with somebody who is told what came of each request."""

    observe: Observe | None = None

    async def request(
        self,
        path: str,
        headers: Sequence[Header],
        body: bytes,
        *,
        deadline: float,
        parse: Parse[T],
        method: str = "POST",
    ) -> T:
        """As that of Upstreams."""
        clock = asyncio.get_running_loop().time
        began, outcome = clock(), "given-up"  # by who asked: its client is gone
        try:
            reply = await super().request(
                path, headers, body, deadline=deadline, parse=parse, method=method
            )
            outcome = "ok"
            return reply
        except ServiceError as error:
            outcome = error.kind
            raise
        finally:
            if self.observe is not None:
                self.observe(self.name, outcome, clock() - began)


def build(
    config: Config,
    on_change: Callable[[str, ServerState], None],
    observe: Observe | None = None,
) -> Services:
    """The services that the profiles of a configuration use.  on_change: told the service and
    the state of a server that goes down or comes back; observe: the service, the outcome and
    the seconds of each request."""
    profiles = (config.main, *config.profiles)
    main = config.main
    checker = None
    if any(p.fcrdns.enabled and p.fcrdns.source == "dns" for p in profiles):
        resolver = DnsResolver(
            [str(server) for server in main.fcrdns.nameservers], timeout=main.fcrdns.timeout
        )
        checker = Checker(
            resolver,
            timeout=main.fcrdns.timeout,
            max_names=main.fcrdns.max_names,
            cache=Cache(main.fcrdns.cache_entries),
        )

    def upstreams(name: str, table: Upstream) -> Upstreams:
        made = Observed(
            name,
            table.servers,
            rules=Rules(
                strategy=table.strategy,
                timeout=table.timeout,
                retries=table.retries,
                max_errors=table.max_errors,
                error_window=table.error_window,
                revive=table.revive,
                max_revive=table.max_revive,
            ),
            tls=Tls(
                ca_file=table.ca_file or None,
                cert_file=table.client_certificate or None,
                key_file=table.client_key or None,
                server_name=table.server_name or None,
            ),
            token=table.token.value,
            connect_timeout=table.connect_timeout,
            max_reply=table.max_size + (8 << 20),
            on_change=lambda state: on_change(name, state),
        )
        made.observe = observe
        return made

    return Services(
        checker,
        upstreams("rspamd", main.rspamd) if any(p.rspamd.enabled for p in profiles) else None,
        upstreams("dkim", main.dkim) if any(p.dkim.enabled for p in profiles) else None,
    )
