"""Which keys say how the two processes run: the tables `shim`, `bridge` and `log`.

What the bridge asks of whom is schema.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bridge.config import kinds as k
from bridge.config.rows import key
from bridge.config.values import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Shim:
    """The process under smtpd.  A change needs a restart of smtpd."""

    connect: tuple[Endpoint, ...] = key(
        k.ENDPOINTS,
        [],
        "Bridges to use: whichever has the least to do, in turn among equals; with none the shim "
        "starts one of its own.",
    )
    ca_file: str = key(k.PATH, "", "For tcp: who signs the certificates of the bridges (PEM).")
    client_certificate: str = key(k.PATH, "", "The shim's own certificate (PEM).")
    client_key: str = key(k.PATH, "", "Its key, if it is in a file of its own.")
    server_name: str = key(k.HOST, "", "The name in the bridges' certificates, if another.")
    # Clients wait 5 minutes for the reply to a command and 10 for that to the final dot (RFC
    # 5321, 4.5.3.2), but many give up after one; what is accepted later is delivered twice.
    command_deadline: float = key(
        k.duration(0.1, 300),
        "15s",
        "How long smtpd waits at most for the answer to a connect or a command.",
    )
    message_deadline: float = key(
        k.duration(0.1, 600),
        "45s",
        "How long smtpd waits at most for the verdict on a message, from its final dot.",
    )
    patience: float = key(
        k.duration(0, 600),
        "10s",
        "How long a request waits at most for a bridge when there is none at all.",
    )
    # smtpd's own limit is 35M unless configured (smtpd.conf(5), smtp max-message-size).
    max_message_size: int = key(
        k.size(1024, 1 << 31),
        "64M",
        "A longer message is not held for a scan; see too_large in [failure.bridge].",
    )
    max_memory: int = key(
        k.size(1 << 20),
        "256M",
        "Memory for held messages; beyond it the largest ones go to files in spill_dir.",
    )
    max_spill: int = key(
        k.size(0),
        "2G",
        "Disk space for those files; beyond it messages are refused with 452 4.3.1.",
    )
    spill_dir: str = key(
        k.DIRECTORY,
        "/var/tmp",
        "Where those files are made; they have no name and vanish with the process.",
    )
    long_lines: str = key(
        k.choice("break", "reject"),
        "break",
        "What to do with a line that is too long for smtpd to take back: break it, or reject "
        "the message with 554 5.6.0.",
    )
    start_wait: float = key(
        k.duration(1, 300),
        "30s",
        "How long the application of `filter-bridge run` may take to start.",
    )

    def in_clear(self) -> Iterator[str]:
        """A warning for each bridge to which mail would go over a network without TLS."""
        for endpoint in () if self.ca_file else self.connect:
            if endpoint.far:
                yield f"mail goes to {endpoint} in clear: set shim.ca_file if others can get there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """The deciding process."""

    slots: int = key(
        k.integer(1, 10_000), 32, "Messages that the bridge takes at a time from each shim."
    )
    bytes: int = key(
        k.size(1 << 20, 1 << 31), "64M", "Bytes of messages that it takes at a time from each."
    )
    ping_timeout: float = key(
        k.duration(0.5, 300),
        "10s",
        "A bridge that does not answer for so long is taken for hung and replaced.",
    )
    drain: float = key(
        k.duration(0, 600),
        "30s",
        "How long a bridge that was told to leave may still work on open requests.",
    )
    run_dir: str = key(
        k.DIRECTORY,
        "/run/filter-bridge",
        "Where its control socket is made, for `filter-bridge reload`; without that directory "
        "there is none.",
    )
    metrics: tuple[Endpoint, ...] = key(
        k.ENDPOINTS, [], "Where its metrics can be read by HTTP, in the format of Prometheus."
    )
    group: str = key(
        k.TEXT,
        "",
        "The group that may use the unix sockets of `serve --listen`: its name or number.",
    )
    certificate: str = key(k.PATH, "", "For `serve --listen tcp:...`: its certificate (PEM).")
    certificate_key: str = key(k.PATH, "", "The certificate's key, if it is in a file of its own.")
    client_ca: str = key(k.PATH, "", "Who signs the certificates of the shims (PEM).")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is written to stderr, which smtpd logs."""

    level: str = key(
        k.choice("debug", "info", "warning"),
        "info",
        "info has a line for each refused, deferred or unscanned message.",
    )
