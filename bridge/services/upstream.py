"""Which server of a service is tried next, and when one is left alone for a while.

Pure: results and the clock are passed in; http.py has the connections.  Never waits,
never logs, knows nothing of HTTP.

A server that failed `max_errors` times in a row is *down*: skipped, until one request may
probe it (half-open).  When all are down, requests fail at once with "breaker-open", so that
a dead service costs a client no wait.  rspamd's own clients never mark the last server
down; they may wait for it, we have a mail server to answer.

    ServiceError    a service could not be had; `kind` is the failure policy's key
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# The kinds of failure, the words of the failure policy.
KINDS: dict[str, str] = {
    "unreachable": "no connection, or it was closed without a whole reply",
    "timeout": "no whole reply in time",
    "http-error": "a reply with an error status",
    "bad-reply": "a reply that can't be understood, or a too long one",
    "too-large": "the message is over the service's limit",
    "breaker-open": "all servers failed lately and are left alone for a while",
    "internal": "an error of our own",
}
# Kinds in which the server itself spoke: it lives, whatever it said.
SPOKE = frozenset({"http-error", "bad-reply", "too-large"})

STRATEGIES = ("failover", "round-robin")

# rspamd, src/libutil/upstream.c: revive_jitter 0.4
JITTER = 0.4
# Seconds before the same server is asked again within one request, last one for all more: a
# server that restarts refuses at once, and is back in about a second.
PAUSES = (0.1, 0.4, 1.0)
# A try shorter than half the timeout and than this says nothing about a server that did not
# answer: a plain scan takes rspamd about a second, its task_timeout is 8 s.
FAIR = 5.0
# Below this a try is not worth a connection.
MIN_TRY = 0.02
# The least that each of the Rules may be.
LEAST = {
    "timeout": MIN_TRY,
    "retries": 0,
    "max_errors": 1,
    "error_window": 0.0,
    "revive": 0.0,
    "max_revive": 0.0,
    "alone": 0.0,
}


class ServiceError(Exception):
    """A service gave no usable answer.

    kind: a key of `KINDS`; message: for an operator, says what, where and a hint, never
    holds content of a message; retry: another server may do better; blame: if so, this one
    counts as having failed.  An error that is not to be retried never counts against the
    server: it is an answer.
    """

    def __init__(self, kind: str, message: str, *, retry: bool = True, blame: bool = True) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
        super().__init__(message)
        self.kind = kind
        self.retry = retry
        self.blame = blame


@dataclass(frozen=True, slots=True)
class Rules:
    """How the servers of one service are used.  Times in seconds.

    timeout: for one try, connecting included; retries: tries after the first, over distinct
    servers as long as there are; max_errors: failures in a row until a server is down;
    an answer ends the row, and so does a pause of more than error_window; revive: until a
    server that is down may be probed, doubled with each failed probe up to max_revive; alone:
    the most while no server is up, when each probe that finds one back ends an outage.
    """

    strategy: str = "failover"
    timeout: float = 20.0  # rspamd's worst case is twice its task_timeout of 8 s
    retries: int = 2
    max_errors: int = 4  # rspamd, src/libutil/upstream.c
    # Its 10 s are for a rate of errors; ours are a row, which a small server fills slowly.
    error_window: float = 3600.0
    revive: float = 2.0  # a restart takes rspamd about a second
    max_revive: float = 60.0  # rspamd's revive_time
    alone: float = 10.0  # a hung service costs one client its patience each so often

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy {self.strategy!r}: expected one of {', '.join(STRATEGIES)}")
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected at least {least}")


@dataclass(frozen=True, slots=True)
class ServerState:
    """What is known of a server, for the log and metrics.  state: up, down or probing;
    errors: failures in a row; last_error: the last one's message, "" if none since it was
    last well; probe_in: seconds until a server that is down may be probed."""

    server: str
    state: str
    errors: int
    last_error: str
    probe_in: float


@dataclass(slots=True, eq=False)
class _Server:
    """One server's fortunes."""

    name: str
    down: bool = False
    probing: bool = False  # one request is out to see whether it is back
    errors: int = 0  # in a row
    last_failure: float = -math.inf  # when the last of them ended
    last_error: str = ""
    since: float = 0.0  # down since, or since the last failed probe
    wait: float = 0.0  # from then until the next probe, without jitter
    due: float = 0.0  # when that is, with jitter

    def state(self, now: float, due: float) -> ServerState:
        state = "probing" if self.probing else "down" if self.down else "up"
        probe_in = max(0.0, due - now) if state == "down" else 0.0
        return ServerState(self.name, state, self.errors, self.last_error, probe_in)


@dataclass(frozen=True, slots=True)
class Try:
    """One try.  index: the server's place in the list; pause: wait so long first; timeout:
    for the whole exchange; probe: it finds out whether the server is back."""

    index: int
    pause: float
    timeout: float
    started: float
    probe: bool
    fair: bool  # long enough that silence tells something


class Pool:
    """The servers of one service and their fortunes; `plan` for each request.

    name: the service's; jitter: 0.0 to 1.0 at random; on_change: told when a server goes
    down or comes back.
    """

    def __init__(
        self,
        name: str,
        servers: Sequence[str],
        rules: Rules,
        *,
        jitter: Callable[[], float] = random.random,
        on_change: Callable[[ServerState], None] | None = None,
    ) -> None:
        if not servers:
            raise ValueError(f"{name}: no servers given")
        self.name = name
        self.rules = rules
        self.servers = [_Server(server) for server in servers]
        self._jitter = jitter
        self._on_change = on_change
        self._turn = 0

    def plan(self, deadline: float) -> Plan:
        """The tries of one request, which is given up at `deadline`."""
        first = 0
        if self.rules.strategy == "round-robin":
            first, self._turn = self._turn, (self._turn + 1) % len(self.servers)
        return Plan(self, deadline, self.servers[first:] + self.servers[:first])

    def states(self, now: float) -> list[ServerState]:
        """All servers, in the configured order."""
        return [server.state(now, self._due(server)) for server in self.servers]

    def available(self, server: _Server, now: float) -> bool:
        """Whether a request may go there: the server is up, or its probe is due."""
        return not server.down or (not server.probing and now >= self._due(server))

    def succeeded(self, server: _Server, now: float) -> None:
        """It answered."""
        came_back = server.down
        server.down = server.probing = False
        server.errors, server.last_error = 0, ""
        if came_back:
            self._changed(server, now)

    def failed(self, server: _Server, attempt: Try, now: float, why: str) -> None:
        """It did not answer, or not sensibly."""
        if server.down and not attempt.probe:
            return  # a try from before it went down: nothing new
        rules = self.rules
        if attempt.started - server.last_failure > rules.error_window:
            server.errors = 0
        server.errors += 1
        server.last_failure, server.last_error = now, why
        if not server.down and server.errors < rules.max_errors:
            return
        went_down = not server.down
        server.wait = min(rules.revive if went_down else 2 * server.wait, rules.max_revive)
        server.down, server.probing, server.since = True, False, now
        server.due = now + server.wait * (1 + JITTER * (2 * self._jitter() - 1))
        if went_down:
            self._changed(server, now)

    def _due(self, server: _Server) -> float:
        """When `server`, which is down, may be probed: growing waits are for when others
        serve meanwhile."""
        if all(other.down for other in self.servers):
            return min(server.due, server.since + self.rules.alone)
        return server.due

    def _changed(self, server: _Server, now: float) -> None:
        if self._on_change:
            self._on_change(server.state(now, self._due(server)))


@dataclass(slots=True)
class Plan:
    """The tries of one request: call `next`; make that try; tell `succeeded`, `failed` or
    `abandoned`; until `next` is None.  Then `error` says why there is no answer."""

    pool: Pool
    deadline: float
    order: list[_Server]
    tried: list[_Server] = field(default_factory=list)  # the last one last
    tries: int = 0
    error: ServiceError | None = None
    _open: Try | None = None
    _server: _Server | None = None  # of the open try
    _again: bool = True  # the same server may be asked twice
    _over: bool = False

    def next(self, now: float) -> Try | None:
        """The next try, or None if there is none."""
        if self._over or self._open or self.tries > self.pool.rules.retries:
            return None
        left = self.deadline - now
        if left < MIN_TRY:
            self._give_up("timeout", "no time left to ask")
            return None
        # The first try may be the probe; later ones rather go where it is known to be well.
        fresh = [s for s in self.order if s not in self.tried and self.pool.available(s, now)]
        if self.tried:
            fresh.sort(key=lambda server: server.down)
        if fresh:
            return self._begin(fresh[0], 0.0, now)
        pause = PAUSES[min(self.tries, len(PAUSES)) - 1] if self.tries else 0.0
        again = [s for s in self.tried if not s.down]
        if again and self._again and self._fair(left - pause):
            return self._begin(again[0], pause, now)
        self._give_up("breaker-open", self._all_down(now))
        return None

    def succeeded(self, now: float) -> None:
        """The open try brought an answer."""
        if server := self._end():
            self.pool.succeeded(server, now)
        self._over = True

    def failed(self, error: ServiceError, now: float) -> None:
        """The open try brought none, or one that refuses."""
        attempt = self._open
        if not attempt or not (server := self._end()):
            return
        self.error = error
        self._over = not error.retry
        self._again = self._again and error.blame
        if not error.retry:
            if error.kind in SPOKE:
                self.pool.succeeded(server, now)
        elif error.blame and (error.kind != "timeout" or attempt.fair):
            self.pool.failed(server, attempt, now, str(error))

    def abandoned(self) -> None:
        """The open try, if any, was given up from outside: nothing is known."""
        self._end()
        self._over = True

    def _fair(self, timeout: float) -> bool:
        return timeout >= min(self.pool.rules.timeout / 2, FAIR)

    def _begin(self, server: _Server, pause: float, now: float) -> Try:
        timeout = min(self.pool.rules.timeout, self.deadline - now - pause)
        attempt = Try(
            self.pool.servers.index(server),
            pause,
            timeout,
            now + pause,
            probe=server.down,
            fair=self._fair(timeout),
        )
        server.probing = server.down
        self.tried = [other for other in self.tried if other is not server] + [server]
        self.tries += 1
        self._open, self._server = attempt, server
        return attempt

    def _end(self) -> _Server | None:
        attempt, server = self._open, self._server
        self._open = self._server = None
        if server and attempt and attempt.probe:
            server.probing = False
        return server

    def _give_up(self, kind: str, why: str) -> None:
        self._over = True
        if not self.error:  # what a try brought says more
            self.error = ServiceError(kind, f"{self.pool.name}: {why}")

    def _all_down(self, now: float) -> str:
        states = self.pool.states(now)
        told = "; ".join(state.last_error for state in states[:3])
        return f"all {len(states)} servers failed lately, not asked again yet ({told})"
