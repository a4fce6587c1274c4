"""The command line: which command, with which arguments, and nothing of what they do.

Each command's code is imported when it runs, so that the shim stays small.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="filter-bridge",
        description="An OpenSMTPD filter that asks rspamd, a DKIM signer and the DNS.",
        epilog="Without a command it is the filter itself, to be started by smtpd: "
        'filter "bridge" proc-exec "filter-bridge -f FILE".',
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, call: object, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=call)
        sub.add_argument(
            "-f", dest="file", metavar="FILE", default=DEFAULT_FILE, help="the configuration"
        )
        return sub

    shim = command("shim", _shim, "the filter itself, under smtpd (the default)")
    shim.add_argument("--profile", metavar="NAME", help="serve all sessions by this profile")
    check = command("check", _check, "say what is wrong with a configuration, and try it out")
    check.add_argument("--user", metavar="NAME", help="who the filter will run as")
    check.add_argument("--offline", action="store_true", help="ask no service and no DNS")
    serve = command("serve", _serve, "the deciding process, started by the filter")
    serve.add_argument("--link-fd", type=int, required=True, help=argparse.SUPPRESS)
    return parser


def _shim(options: argparse.Namespace) -> int:
    from bridge.config import ConfigError, load
    from bridge.shim import Options, Shim

    try:
        config = load(options.file, profile=options.profile)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return BAD_CONFIGURATION
    if os.isatty(0):
        print("filter-bridge: to be started by smtpd; see filter-bridge --help", file=sys.stderr)
        return BAD_CONFIGURATION
    shim = Shim(config, Options(["serve", "-f", options.file], options.profile))
    for warning in config.warnings:
        shim.log("config-warning", text=warning)
    return shim.run()


def _serve(options: argparse.Namespace) -> int:
    from bridge.config import ConfigError, load
    from bridge.serve import as_child

    try:
        config = load(options.file)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return BAD_CONFIGURATION
    return as_child(config, options.link_fd)


def _check(options: argparse.Namespace) -> int:
    from bridge.check import check

    return check(options.file, user=options.user, offline=options.offline)
