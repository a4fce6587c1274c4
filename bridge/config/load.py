"""The configuration file: read, checked as a whole, and handed out as values.

All mistakes of a file are reported at once, each with its key, what was found and what was
expected; an unknown key is a warning, or a mistake too when `strict`.  Standard library only,
since the shim reads it as well; opens the file and the secrets it names, nothing else.

    ConfigError     the file has mistakes; `problems` lists them
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.config import kinds, profiles, schema
from bridge.config import values as v
from bridge.config.profiles import Config, Profile
from bridge.config.rows import Row, rows

MAX_FILE = 1 << 20  # ours has 20 KiB with all its comments
MAX_SECRET = 16 << 10

_PLAIN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_AT = re.compile(r"(.*?)\s*\(at ([^()]*)\)", re.DOTALL)
_PRIVATE = re.compile(r"(https:|unix:).*|http://(127\.[\d.]+|\[::1\]|localhost)([:/].*)?")


class ConfigError(Exception):
    """The configuration has mistakes.  problems: a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    env: Mapping[str, str] = os.environ,
    secrets: bool = True,
    profile: str | None = None,
) -> Config:
    """The configuration in a file; raises ConfigError with all that is wrong with it.

    strict: unknown keys are mistakes, not warnings.  env: where "env:NAME" is looked up.
    secrets: False leaves tokens empty and opens no file but this (a shim with a bridge
    elsewhere has none).  profile: a name that must be there (--profile).
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from error
    if len(data) > MAX_FILE:
        raise ConfigError([f"{path}: found over {v.show_size(MAX_FILE)}, expected a TOML file"])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: line {line}: not TOML: not UTF-8"]) from error
    config = parse(text, str(path), strict=strict, env=env, secrets=secrets, profile=profile)
    literal = [
        f"{path}: {name}.token: a secret in a file that everyone may read: chmod o-r"
        for name in ("rspamd", "dkim")
        if mode & 0o004 and getattr(config.main, name).token.source == "literal"
    ]
    return replace(config, warnings=(*config.warnings, *literal))


def parse(
    text: str,
    file: str = "bridge.toml",
    *,
    strict: bool = False,
    env: Mapping[str, str] = os.environ,
    secrets: bool = True,
    profile: str | None = None,
) -> Config:
    """The same from text; `file` is its name in messages."""
    report = _Report(file, strict)
    tree = _toml(text, file)
    parts = tree.pop("profile", [])
    found = _walk(report, tree)
    base = {path: cls(**found.get(path, {})) for path, cls in schema.SECTIONS.items()}
    for service in ("rspamd", "dkim"):
        if secrets:
            base[service] = _with_token(report, service, base[service], env)
            _look_for_files(report, service, base[service])
        else:
            base[service] = replace(base[service], token=v.Secret())
    main = profiles.build(profiles.MAIN, base, {})
    others = _profiles(report, parts, base)
    _check_across(report, base, found, (main, *others))
    if profile and profile not in (names := [main.name, *(p.name for p in others)]):
        report.mistake("--profile", v.show(profile), f"one of {', '.join(names)}")
    if report.problems:
        raise ConfigError(report.problems)
    return Config(
        file=file,
        shim=base["shim"],
        bridge=base["bridge"],
        log=base["log"],
        main=main,
        profiles=others,
        warnings=tuple(report.warnings),
    )


@dataclass(slots=True)
class _Report:
    """Collects what is wrong."""

    file: str
    strict: bool
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)  # keys with no value, which are not compared

    def mistake(self, key: str, found: str, expected: str, near: str = "") -> None:
        self.problems.append(self._line(key, found, expected, near))

    def unknown(self, key: str, expected: str, near: str) -> None:
        line = self._line(key, "an unknown key", expected, near)
        (self.problems if self.strict else self.warnings).append(line)

    def warn(self, key: str, text: str) -> None:
        self.warnings.append(f"{self.file}: {key}: {text}")

    def _line(self, key: str, found: str, expected: str, near: str) -> str:
        hint = f" (did you mean {near}?)" if near else ""
        return f"{self.file}: {key}: found {found}, expected {expected}{hint}"


def _toml(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _AT.fullmatch(str(error))
        what, where = (match[1], match[2]) if match else (str(error), "somewhere")
        raise ConfigError([f"{file}: {where}: not TOML: {what}"]) from error
    except (RecursionError, ValueError) as error:  # too deep; a number of thousands of digits
        raise ConfigError([f"{file}: not TOML: {error}"]) from error


Found = dict[str, dict[str, Any]]


def _walk(
    report: _Report,
    table: Mapping[str, Any],
    section: str = "",
    label: str = "",
    *,
    sections: Mapping[str, type] = schema.SECTIONS,
    profile: bool = False,
) -> Found:
    """The values of a table and of those in it, by section and key."""
    known = rows(sections[section])
    found: Found = {section: {}}
    for name, raw in table.items():
        path = _join(section, name)
        shown = _join(label, name if _PLAIN.fullmatch(name) else v.show(name))
        if row := known.get(name):
            if profile and not row.profile:
                report.mistake(shown, "a key of its own", f"{path} in the main part, for all")
            else:
                _read(report, shown, row, raw, found[section])
        elif path not in sections:
            _unknown(report, shown, section, name, sections)
        elif isinstance(raw, dict):
            found |= _walk(report, raw, path, shown, sections=sections, profile=profile)
        else:
            report.mistake(shown, v.show(raw), f"a table, [{shown}]")
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _read(report: _Report, shown: str, row: Row, raw: object, values: dict[str, Any]) -> None:
    try:
        values[shown.rpartition(".")[2]] = row.kind.read(raw)
    except v.Wrong as wrong:
        report.bad.add(shown)
        for m in wrong.mistakes:
            report.mistake(shown + m.at, m.found, m.expected, m.near and v.show(m.near))


def _unknown(
    report: _Report, shown: str, section: str, name: str, sections: Mapping[str, type]
) -> None:
    """Report an unknown key, with the same one elsewhere, or one like it here."""
    below = [path for path in sections if path and path.rpartition(".")[0] == section]
    near = v.near_miss(name, [*rows(sections[section]), *(p.split(".")[-1] for p in below)])
    elsewhere = [_join(path, name) for path, cls in sections.items() if name in rows(cls)]
    where = f"a key of [{section}]" if section else "a key or table of the main part"
    report.unknown(shown, where, elsewhere[0] if elsewhere else near)


def _profiles(report: _Report, parts: object, base: Mapping[str, Any]) -> tuple[Profile, ...]:
    """The profiles, in the file's order."""
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        report.mistake("profile", v.show(parts), "[[profile]], in double brackets")
        return ()
    known: dict[str, Profile] = {}
    for number, part in enumerate(parts):
        own = {name: part.pop(name) for name in ("name", "match") if name in part}
        label = f"profile[{number}]"
        about = _walk(report, own, label=label, sections=schema.PROFILE)
        name = about[""].get("name", "")
        if "name" not in own:
            report.mistake(f"{label}.name", "nothing", "a name")
        elif name in (profiles.MAIN, *known):
            report.mistake(f"{label}.name", v.show(name), "a name that no other profile has")
        found = _walk(report, part, label=f"profile.{name}" if name else label, profile=True)
        known[name] = profiles.build(name, base, found, schema.Match(**about.get("match", {})))
    return tuple(known.values())


def _with_token(
    report: _Report, service: str, upstream: schema.Upstream, env: Mapping[str, str]
) -> schema.Upstream:
    """The service with its token, from wherever that is."""
    key, token = f"{service}.token", upstream.token
    if token and upstream.token_file:
        report.mistake(key, "token and token_file", "one of them")
    elif token.value.startswith("env:"):
        name = token.value[4:]
        token = _checked(report, key, f"environment variable {name}", env.get(name, ""), "env")
    elif upstream.token_file:
        key += "_file"
        try:
            with open(upstream.token_file, encoding="ascii", errors="replace") as file:
                text = file.read(MAX_SECRET).strip("\r\n")
                if os.fstat(file.fileno()).st_mode & 0o004:
                    report.warn(key, f"everyone may read {upstream.token_file}: chmod o-r")
            token = _checked(report, key, upstream.token_file, text, "file")
        except OSError as error:
            found = f"{v.show(upstream.token_file)} ({error.strerror})"
            report.mistake(key, found, "a file that can be read")
    return replace(upstream, token=token)


def _checked(report: _Report, key: str, where: str, text: str, source: str) -> v.Secret:
    try:
        kinds.LINE.read(text)
    except v.Wrong:
        what = "something else" if text else "nothing"
        report.mistake(key, f"{what} in {where}", kinds.LINE.expected)
    return v.Secret(text, source)


def _look_for_files(report: _Report, service: str, upstream: schema.Upstream) -> None:
    for name in ("ca_file", "client_certificate", "client_key"):
        if (path := getattr(upstream, name)) and not os.access(path, os.R_OK):
            report.mistake(f"{service}.{name}", v.show(path), "a file that can be read")


# What must be less than what: keys whose sum is bounded, the key that bounds it, and whether
# equal is still good.  A service is left out where no profile enables it.
_BOUNDS: tuple[tuple[tuple[str, ...], str, bool], ...] = (
    (("rspamd.deadline", "dkim.deadline"), "shim.message_deadline", False),
    (("fcrdns.timeout",), "shim.command_deadline", False),
    (("shim.max_message_size",), "bridge.bytes", True),
)
# The same for keys that are simply cut to the bound, so that only one that is set is wrong.
_CUT = (("timeout", "deadline"), ("connect_timeout", "timeout"))


def _check_across(
    report: _Report, base: Mapping[str, Any], found: Found, all_profiles: tuple[Profile, ...]
) -> None:
    """What no key can say alone."""
    used = {
        name: any(getattr(profile, name).enabled for profile in all_profiles)
        for name in ("fcrdns", "rspamd", "dkim")
    }
    for all_keys, bound, equal in _BOUNDS:
        keys = tuple(key for key in all_keys if used.get(key.partition(".")[0], True))
        _check_bound(report, base, found, keys, bound, equal)
    for text in base["shim"].in_clear():
        report.warn("shim.connect", text)
    for service in ("rspamd", "dkim"):
        for name, bound in _CUT:
            if name in found.get(service, {}):
                _check_bound(
                    report, base, found, (f"{service}.{name}",), f"{service}.{bound}", True
                )
        if used[service]:
            _check_servers(report, service, base[service])


def _check_bound(
    report: _Report,
    base: Mapping[str, Any],
    found: Found,
    keys: tuple[str, ...],
    bound: str,
    equal: bool,
) -> None:
    def value(key: str) -> Any:
        section, _, name = key.partition(".")
        return getattr(base[section], name)

    def shown(key: str) -> str:
        section, _, name = key.partition(".")
        unit = v.show_size if isinstance(value(key), int) else v.show_duration
        default = "" if name in found.get(section, {}) else " (default)"
        return f"{unit(value(key))}{default}"

    total = sum(value(key) for key in keys)
    if report.bad & {*keys, bound} or total < value(bound) or (equal and total == value(bound)):
        return
    values = " and ".join(shown(key) for key in keys)
    together = "together " if len(keys) > 1 else ""
    less = "at most" if equal else "less than"
    report.mistake(" and ".join(keys), values, f"{together}{less} {bound}, {shown(bound)}")


def _check_servers(report: _Report, service: str, upstream: schema.Upstream) -> None:
    key = f"{service}.servers"
    if not upstream.servers and key not in report.bad:
        report.mistake(key, "none", f"one at least, or {service}.enabled = false")
    if upstream.client_key and not upstream.client_certificate:
        report.mistake(f"{service}.client_certificate", "none", "one, since there is a client_key")
    for server in upstream.servers:
        if upstream.token and not _PRIVATE.fullmatch(server):
            report.warn(key, f"the token goes to {server} in clear: use https")
        if service == "rspamd" and server.endswith(":11332"):
            report.warn(key, f"{server} looks like rspamd's milter port: the scan port is 11333")
