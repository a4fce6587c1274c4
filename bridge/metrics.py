"""What a bridge counts, and how Prometheus reads it (text format 0.0.4).

Names are filter_bridge_NOUN_UNIT, labels have few values: whoever counts sees to it, and says
with `begin` which there will be.  Counts and spells; who listens for readers is exporter.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

PREFIX = "filter_bridge_"
# Seconds: a command is answered in microseconds, a message by rspamd in up to 8 s (its own
# task_timeout), and 45 s is the shim's deadline.
BOUNDS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 45.0)
MAX_NAME = 64  # characters of a shim's name

# Each metric: its type and meaning.
METRICS = {
    "build_info": ("gauge", "The version of this bridge."),
    "links": ("gauge", "Shims that are connected, and strangers."),
    "link_requests_total": ("counter", "Requests that came over links that are still up."),
    "link_requests_open": ("gauge", "Requests that are being judged."),
    "link_bytes_open": ("gauge", "Bytes of messages that are being judged."),
    "requests_total": ("counter", "Requests that were answered."),
    "request_duration_seconds": ("histogram", "From a request to its answer."),
    "service_requests_total": ("counter", "What came of asking a service, retries included."),
    "service_request_duration_seconds": ("histogram", "How long that took."),
    "server_up": ("gauge", "1 for a server of a service that is asked, 0 for one that is down."),
    "failures_total": ("counter", "Failures of a service, and what the failure policy made of it."),
    "rspamd_actions_total": ("counter", "Messages that rspamd judged, by its action."),
    "fcrdns_total": ("counter", "Results of the reverse DNS check, each once for a session."),
    "config_reload_success_timestamp_seconds": ("gauge", "When the configuration was read."),
}
# What is only ever counted: its labels.
COUNTERS: dict[str, tuple[str, ...]] = {
    "requests_total": ("phase", "decision"),
    "service_requests_total": ("service", "outcome"),
    "failures_total": ("service", "kind", "outcome"),
    "rspamd_actions_total": ("action",),
    "fcrdns_total": ("result",),
}

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]  # the name's end, like "_sum"


@dataclass(slots=True)
class Histogram:
    """How many took how long."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        at = next((n for n, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))
        self.counts[at] += 1
        self.sum += seconds

    def samples(self, labels: Labels) -> Iterator[Sample]:
        """As Prometheus wants them: each bucket counts those below it too."""
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            yield "_bucket", {**labels, "le": bound}, total
        yield "_sum", labels, self.sum
        yield "_count", labels, total


@dataclass(frozen=True, slots=True)
class LinkUse:
    """One link, now.  name: what the shim calls itself."""

    name: str
    asked: int
    open: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ServerUse:
    """One server of a service, now.  server: as configured, which is without credentials."""

    service: str
    server: str
    up: bool


class Metrics:
    """The counters of one bridge."""

    def __init__(self, release: str) -> None:
        self.reloaded = 0.0  # seconds since the epoch
        self._release = release
        # By the values of the labels.
        self._counts: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in COUNTERS}
        self._durations: dict[str, Histogram] = {}
        self._service_durations: dict[str, Histogram] = {}

    def begin(self, known: Mapping[str, Iterable[Iterable[str]]]) -> None:
        """Let counters be there with 0, or rate() would not see their first step.  known: of
        some of COUNTERS the values of each label."""
        for metric, values in known.items():
            for labels in itertools.product(*values):
                self._counts[metric][labels] += 0

    def count(self, metric: str, *labels: str) -> None:
        """One more of one of COUNTERS."""
        self._counts[metric][labels] += 1

    def answered(self, phase: str, decision: str, seconds: float) -> None:
        """A request was answered."""
        self.count("requests_total", phase, decision)
        self._durations.setdefault(phase, Histogram()).add(seconds)

    def asked(self, service: str, outcome: str, seconds: float) -> None:
        """A service gave an answer, or none."""
        self.count("service_requests_total", service, outcome)
        self._service_durations.setdefault(service, Histogram()).add(seconds)

    def text(self, links: Iterable[LinkUse], servers: Iterable[ServerUse] = ()) -> str:
        """All of it."""
        found = self._samples(list(links), servers)
        lines = []
        for name, (kind, meaning) in METRICS.items():
            lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}"]
            for end, labels, value in found[name]:
                lines.append(_line(f"{PREFIX}{name}{end}", labels, value))
        return "\n".join(lines) + "\n"

    def _samples(
        self, links: list[LinkUse], servers: Iterable[ServerUse]
    ) -> dict[str, list[Sample]]:
        of_shims: dict[str, Counter[str]] = {}
        for link in links:
            use = of_shims.setdefault(link.name, Counter())
            use.update(requests_total=link.asked, requests_open=link.open, bytes_open=link.bytes)
        # A server may be configured twice, a sample must not be.
        up_or_down = {(each.service, each.server): int(each.up) for each in servers}
        return {
            "build_info": [("", {"version": self._release}, 1)],
            "links": [("", {}, len(links))],
            **{
                f"link_{key}": [("", {"shim": name}, use[key]) for name, use in of_shims.items()]
                for key in ("requests_total", "requests_open", "bytes_open")
            },
            **{
                name: [
                    ("", dict(zip(COUNTERS[name], labels, strict=True)), count)
                    for labels, count in counts.items()
                ]
                for name, counts in self._counts.items()
            },
            "request_duration_seconds": [
                sample
                for phase, durations in self._durations.items()
                for sample in durations.samples({"phase": phase})
            ],
            "server_up": [
                ("", {"service": service, "server": server}, up)
                for (service, server), up in up_or_down.items()
            ],
            "service_request_duration_seconds": [
                sample
                for service, durations in self._service_durations.items()
                for sample in durations.samples({"service": service})
            ],
            "config_reload_success_timestamp_seconds": [("", {}, self.reloaded)],
        }


def shim_name(given: object) -> str:
    """A name that a shim gave itself, as a label."""
    return given[:MAX_NAME] if isinstance(given, str) and given.isprintable() else ""


def _line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
