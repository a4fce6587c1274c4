"""The command line: which command, with which arguments, and nothing of what they do.

Each command's code is imported when it runs, so that the shim stays small.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.config import Config

DEFAULT_FILE = "/etc/mail/bridge.toml"
BAD_CONFIGURATION = 2
OF_PROGRAM = ("-h", "--help", "--version")  # options that go before a command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or (
        arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")
    ):
        arguments = ["shim", *arguments]
    options = _parser().parse_args(arguments)
    result: int = options.command(options)
    return result


class _Version(argparse.Action):
    """Looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from bridge.release import release

        print(f"filter-bridge {release()}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="filter-bridge",
        description="An OpenSMTPD filter that asks rspamd, a DKIM signer and the DNS.",
        epilog="Without a command it is the filter itself, to be started by smtpd: "
        'filter "bridge" proc-exec "filter-bridge -f FILE".',
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, call: object, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=call)
        sub.add_argument(
            "-f", dest="file", metavar="FILE", default=DEFAULT_FILE, help="the configuration"
        )
        return sub

    shim = command("shim", _shim, "the filter itself, under smtpd (the default)")
    run = command("run", _shim, "a filter of your own, under smtpd")
    run.add_argument("application", metavar="MODULE:NAME", help="a bridge.Filter")
    for each in (shim, run):
        each.add_argument("--profile", metavar="NAME", help="serve all sessions by this profile")
        each.add_argument(
            "--connect",
            metavar="ENDPOINT",
            action="append",
            default=[],
            help="use this bridge (unix:PATH, tcp:HOST:PORT) instead of one of its own; again "
            "for more",
        )
        each.add_argument("--patience", metavar="TIME", help="see shim.patience")
    check = command("check", _check, "say what is wrong with a configuration, and try it out")
    check.epilog = "Exit status: 0 good, 1 something does not work, 2 the file has mistakes."
    check.add_argument("--user", metavar="NAME", help="who the filter will run as")
    check.add_argument("--offline", action="store_true", help="ask no service and no DNS")
    serve = command("serve", _serve, "a bridge, for filters that run with --connect")
    serve.add_argument(
        "--listen",
        metavar="ENDPOINT",
        action="append",
        default=[],
        help="unix:PATH or tcp:HOST:PORT; again for more",
    )
    serve.add_argument("--app", metavar="MODULE:NAME", help="a bridge.Filter, not the policy")
    serve.add_argument("--profile", metavar="NAME", help=argparse.SUPPRESS)
    serve.add_argument("--insecure", action="store_true", help="listen beyond loopback without TLS")
    serve.add_argument("--link-fd", type=int, help=argparse.SUPPRESS)
    reload = command("reload", _reload, "let the running bridges read their configuration again")
    reload.add_argument("--restart", action="store_true", help="run newly installed code as well")
    keygen = commands.add_parser("keygen", help="make DKIM keys", description="make DKIM keys")
    keygen.set_defaults(command=_keygen)
    keygen.add_argument("domain", metavar="DOMAIN")
    keygen.add_argument("--selector", metavar="S", help="by default from the date")
    keygen.add_argument("--type", choices=("rsa", "ed25519", "both"), default="rsa")
    keygen.add_argument("--directory", metavar="DIR", default="/etc/mail/dkim")
    return parser


def _load(
    file: str, *, profile: str | None = None, secrets: bool = True, needed: bool = True
) -> Config | None:
    """The configuration, or None after saying on stderr all that is wrong with it."""
    from bridge.config import ConfigError, load, parse

    try:
        if not needed and file == DEFAULT_FILE and not os.path.exists(file):
            return parse("", file)
        return load(file, profile=profile, secrets=secrets)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return None


def _shim(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from bridge.config import Endpoint
    from bridge.config.kinds import duration
    from bridge.shim import Options, Shim

    application = getattr(options, "application", None)
    config = _load(
        options.file,
        profile=options.profile,
        secrets=not options.connect,
        needed=application is None,
    )
    if config is None:
        return BAD_CONFIGURATION
    try:
        shim = config.shim
        warnings = list(config.warnings)
        if options.connect:
            shim = replace(shim, connect=tuple(map(Endpoint.parse, options.connect)))
            warnings += [f"--connect: {text}" for text in shim.in_clear()]
        if options.patience:
            shim = replace(shim, patience=duration(0, 600).read(options.patience))
    except ValueError as error:
        print(f"filter-bridge: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    if os.isatty(0):
        print("filter-bridge: to be started by smtpd; see filter-bridge --help", file=sys.stderr)
        return BAD_CONFIGURATION
    arguments = ["serve", "-f", options.file]
    if application is not None:
        arguments += ["--app", application]
    if options.profile:
        arguments += ["--profile", options.profile]
    running = Shim(
        replace(config, shim=shim), Options(arguments, options.profile, application is not None)
    )
    for warning in warnings:
        running.log("config-warning", text=warning)
    return running.run()


def _serve(options: argparse.Namespace) -> int:
    from bridge.config import Endpoint
    from bridge.serve import Process, as_child, as_service

    config = _load(options.file, profile=options.profile, needed=not options.app)
    if config is None:
        return BAD_CONFIGURATION
    process = Process(options.file, options.app or "", options.profile)
    if options.link_fd is not None:
        return as_child(process, config, options.link_fd)
    try:
        endpoints = [Endpoint.parse(each) for each in options.listen]
    except ValueError as error:
        print(f"filter-bridge: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    return as_service(process, config, endpoints, insecure=options.insecure)


def _reload(options: argparse.Namespace) -> int:
    from bridge.control import tell

    config = _load(options.file, secrets=False, needed=False)
    if config is None:
        return BAD_CONFIGURATION
    return tell(config.bridge.run_dir, "restart" if options.restart else "reload")


def _keygen(options: argparse.Namespace) -> int:
    from pathlib import Path

    from bridge.keygen import run

    return run(options.domain, options.selector, options.type, Path(options.directory))


def _check(options: argparse.Namespace) -> int:
    from bridge.check import check

    try:
        status = check(options.file, user=options.user, offline=options.offline)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as in `check | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return status
