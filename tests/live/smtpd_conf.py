"""What stands in the smtpd.conf of a server under test? Text from values; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

HOSTNAME = "mx.example.org"

# How a listener does TLS, in the words of smtpd.conf(5).
Tls = Literal["", "tls", "tls-require", "smtps"]


@dataclass(frozen=True, slots=True)
class Listener:
    """One `listen on` line.

    `filters` None means every filter of the server, in the order given there, as one chain;
    an empty tuple means none. `options` is more text for the line, such as "mask-src".
    """

    name: str = "smtp"
    port: int = 25
    address: str = ""  # empty: the server's own loopback address
    tls: Tls = ""  # works on 7.6 only: the server side of Debian's 6.8 fails every handshake
    auth: Literal["", "auth", "auth-optional"] = ""  # for the server's `users`
    filters: tuple[str, ...] | None = None
    options: str = ""

    @classmethod
    def submission(cls, **changes: object) -> Listener:
        """Port 587 with STARTTLS and AUTH required."""
        base = cls(name="submission", port=587, tls="tls-require", auth="auth")
        return replace(base, **changes)  # type: ignore[arg-type]  # the fields' own types apply


@dataclass(frozen=True, slots=True)
class Proc:
    """A proc filter: its command for `proc-exec`, and the user it runs as (smtpd's own by
    default, which smtpd.conf(5) does not tell: `user NAME group NAME` after the command)."""

    command: str
    user: str = ""
    group: str = ""

    def text(self) -> str:
        # smtpd's parse.y, yylex: a backslash escapes the quote, and only that.
        command = self.command.replace('"', '\\"')
        user = f" user {self.user}" if self.user else ""
        group = f" group {self.group}" if self.group else ""
        return f'proc-exec "{command}"{user}{group}'


# A builtin filter or chain is given by the words after its name.
BUILTIN = ("phase ", "chain ", "proc ")


def filter_line(name: str, what: str | Proc) -> str:
    """`filter "name" ...` from a Proc, a command, or a builtin's own words."""
    if isinstance(what, str) and not what.startswith(BUILTIN):
        what = Proc(what)
    return f'filter "{name}" {what if isinstance(what, str) else what.text()}'


def use_of(names: Sequence[str]) -> str:
    """` filter "a"` or ` filter { "a", "b" }` for a listen line, or nothing."""
    quoted = [f'"{name}"' for name in names]
    if len(quoted) < 2:
        return "".join(f" filter {name}" for name in quoted)
    return f" filter {{ {', '.join(quoted)} }}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that an smtpd.conf for a test says."""

    directory: str  # where cert.pem, key.pem, users and mail/ are
    address: str
    listeners: Sequence[Listener] = (Listener(),)
    filters: Mapping[str, str | Proc] | None = None
    socket_filters: Sequence[str] | None = None  # None: all
    limits: Iterable[str] = ()  # `smtp max-message-size 1M` and the like, one line each
    extra: str = ""  # any lines, before the listeners

    def text(self) -> str:
        filters = dict(self.filters or {})
        tls = any(listener.tls for listener in self.listeners)
        lines = [
            *([f'pki "{HOSTNAME}" cert "{self.directory}/cert.pem"'] if tls else []),
            *([f'pki "{HOSTNAME}" key "{self.directory}/key.pem"'] if tls else []),
            f"table users file:{self.directory}/users",
            'table anybody { "@" = "nobody" }',
            *self.limits,
            *(filter_line(name, what) for name, what in filters.items()),
            *self.extra.splitlines(),
            "listen on socket" + use_of(self._chain(self.socket_filters, filters)),
            *(self._listen(listener, filters) for listener in self.listeners),
            # Every address is delivered, unaltered, by one unprivileged user to one maildir;
            # what is marked X-Spam goes to its Junk folder.
            f'action "store" maildir "{self.directory}/mail" junk virtual <anybody>',
            'match from any for any action "store"',
        ]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _chain(wanted: Sequence[str] | None, filters: Mapping[str, object]) -> Sequence[str]:
        return tuple(filters) if wanted is None else wanted

    def _listen(self, listener: Listener, filters: Mapping[str, object]) -> str:
        parts = [f"listen on {listener.address or self.address} port {listener.port}"]
        if listener.tls:
            parts.append(f'{listener.tls} pki "{HOSTNAME}"')
        if listener.auth:
            parts.append(f"{listener.auth} <users>")
        parts += [f'hostname "{HOSTNAME}"', listener.options]
        return " ".join(filter(None, parts)) + use_of(self._chain(listener.filters, filters))
