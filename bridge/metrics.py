"""What a bridge counts, and how Prometheus reads it (text format 0.0.4).

Names are filter_bridge_NOUN_UNIT, labels have few values: phase, decision, service, outcome,
and a shim's name.  Counts and spells; who listens for readers is exporter.py.
"""

from __future__ import annotations

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
    "config_reload_success_timestamp_seconds": ("gauge", "When the configuration was read."),
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


class Metrics:
    """The counters of one bridge."""

    def __init__(self, release: str) -> None:
        self.reloaded = 0.0  # seconds since the epoch
        self._release = release
        self._requests: Counter[tuple[str, str]] = Counter()
        self._durations: dict[str, Histogram] = {}
        self._services: Counter[tuple[str, str]] = Counter()
        self._service_durations: dict[str, Histogram] = {}

    def answered(self, phase: str, decision: str, seconds: float) -> None:
        """A request was answered."""
        self._requests[phase, decision] += 1
        self._durations.setdefault(phase, Histogram()).add(seconds)

    def asked(self, service: str, outcome: str, seconds: float) -> None:
        """A service gave an answer, or none."""
        self._services[service, outcome] += 1
        self._service_durations.setdefault(service, Histogram()).add(seconds)

    def text(self, links: Iterable[LinkUse]) -> str:
        """All of it."""
        found = self._samples(list(links))
        lines = []
        for name, (kind, meaning) in METRICS.items():
            lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}"]
            for end, labels, value in found[name]:
                lines.append(_line(f"{PREFIX}{name}{end}", labels, value))
        return "\n".join(lines) + "\n"

    def _samples(self, links: list[LinkUse]) -> dict[str, list[Sample]]:
        of_shims: dict[str, Counter[str]] = {}
        for link in links:
            use = of_shims.setdefault(link.name, Counter())
            use.update(requests_total=link.asked, requests_open=link.open, bytes_open=link.bytes)
        return {
            "build_info": [("", {"version": self._release}, 1)],
            "links": [("", {}, len(links))],
            **{
                f"link_{key}": [("", {"shim": name}, use[key]) for name, use in of_shims.items()]
                for key in ("requests_total", "requests_open", "bytes_open")
            },
            "requests_total": [
                ("", {"phase": phase, "decision": decision}, count)
                for (phase, decision), count in self._requests.items()
            ],
            "request_duration_seconds": [
                sample
                for phase, durations in self._durations.items()
                for sample in durations.samples({"phase": phase})
            ],
            "service_requests_total": [
                ("", {"service": service, "outcome": outcome}, count)
                for (service, outcome), count in self._services.items()
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
