"""The command: options, what may listen where, and uvicorn around the application.

Refuses to start as root, with a bad key, or open to a network.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import os
import socket
import ssl
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from dkim_signer import __version__, sign
from dkim_signer.app import App, Options
from dkim_signer.keys import OTHERS, Keys, KeyTrouble

MAX_TOKEN = 4096
LEAST_TOKEN = 16
BACKLOG = 128


class Refusal(Exception):
    """Why we don't start: what is wrong, and a hint."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after a good --check, 2 when the start is refused; a signal ends it in order."""
    args = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        app = App(keys := Keys(args.keys), options(args), threads=os.cpu_count() or 1)
        check(args, os.geteuid())
        if args.check:
            print(f"{keys.count} keys")
            return 0
        listener = bind(args.listen, args.socket_mode)
    except (Refusal, KeyTrouble) as refusal:
        print(f"dkim-signer: {refusal}", file=sys.stderr)
        return 2
    logging.info("dkim-signer %s at %s, %d keys", __version__, args.listen, keys.count)
    with listener:
        server(app, args).run(sockets=[listener])
    return 0


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(prog="dkim-signer", description="A DKIM signing endpoint.")
    add = known.add_argument
    add("--keys", type=Path, required=True, metavar="DIR", help="the key directory")
    add("--listen", default="127.0.0.1:8893", metavar="WHERE", help="HOST:PORT or unix:/PATH")
    add("--socket-mode", type=lambda text: int(text, 8), default=0o660, metavar="MODE")
    add("--token-file", type=Path, metavar="FILE", help="clients must send what is in it")
    add("--tls-cert", type=Path, metavar="FILE", help="PEM; with it, HTTPS is spoken")
    add("--tls-key", type=Path, metavar="FILE", help="PEM; if not in --tls-cert")
    add("--client-ca", type=Path, metavar="FILE", help="clients must have a certificate of it")
    add("--oversign", default=",".join(sign.OVERSIGN), metavar="NAMES")
    add("--sign", default=",".join(sign.SIGN), metavar="NAMES", help="signed if there")
    add("--any-from", action="store_true", help="sign whatever the From domain is")
    add("--max-size", type=int, default=Options().max_size, metavar="BYTES")
    add("--max-requests", type=int, default=Options().max_requests, metavar="N")
    add("--check", action="store_true", help="look at keys and options, and leave")
    add("--version", action="version", version=__version__)
    return known


def options(args: argparse.Namespace) -> Options:
    """What the application is told; Refusal for a wrong value."""
    lists = [
        tuple(name.strip().lower() for name in names.split(",") if name.strip())
        for names in (args.oversign, args.sign)
    ]
    try:
        rules = sign.Rules(oversign=lists[0], sign=lists[1], any_from=args.any_from)
    except ValueError as error:
        raise Refusal(str(error)) from error
    return Options(
        token=read_token(args.token_file) if args.token_file else b"",
        max_size=args.max_size,
        max_requests=args.max_requests,
        rules=rules,
    )


def read_token(path: Path) -> bytes:
    """The token in a file that nobody else can read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(MAX_TOKEN + 1).strip()
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}") from error
    if mode & OTHERS:
        raise Refusal(f"{path}: mode {stat.S_IMODE(mode):04o} lets others in; hint: chmod 600")
    if not LEAST_TOKEN <= len(token) <= MAX_TOKEN or not token.isascii() or b" " in token:
        hint = "hint: openssl rand -hex 32"
        raise Refusal(f"{path}: expected a token of {LEAST_TOKEN} or more characters; {hint}")
    return token


def check(args: argparse.Namespace, euid: int) -> None:
    """Refusal unless it is safe to listen there."""
    if euid == 0:
        raise Refusal("runs as root; hint: a user of its own, User= in a systemd unit")
    if args.client_ca and not args.tls_cert:
        raise Refusal("--client-ca without --tls-cert: certificates need TLS")
    for path in (args.tls_cert, args.tls_key, args.client_ca):
        if path and not os.access(path, os.R_OK):
            raise Refusal(f"{path}: can't be read")
    if args.listen.startswith("unix:"):
        return
    host, _ = address(args.listen)
    if not loopback(host) and not args.token_file and not args.client_ca:
        raise Refusal(
            f"{args.listen}: whoever gets there has mail signed; "
            "hint: --token-file, --client-ca, a unix socket or 127.0.0.1"
        )
    if not loopback(host) and not args.tls_cert:
        logging.warning("%s: token and mail can be read on the way; hint: --tls-cert", args.listen)


def address(listen: str) -> tuple[str, int]:
    """Host and port; Refusal if that is not what it is."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise Refusal(f"--listen {listen}: expected HOST:PORT or unix:/PATH")
    return host.removeprefix("[").removesuffix("]"), int(port)


def loopback(host: str) -> bool:
    """Only by address: what a name means is not ours to know."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def bind(listen: str, mode: int) -> socket.socket:
    """A listening socket.  uvicorn would give a unix socket to everybody."""
    try:
        if listen.startswith("unix:"):
            return _unix(listen.removeprefix("unix:"), mode)
        found = socket.getaddrinfo(*address(listen), type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        return socket.create_server(where, family=family, backlog=BACKLOG)
    except OSError as error:
        raise Refusal(f"--listen {listen}: {error.strerror or error}") from error


def _unix(path: str, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: str) -> None:
    """Take away a socket that nobody listens on any more."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise Refusal(f"{path}: somebody listens there already")


def server(app: App, args: argparse.Namespace) -> uvicorn.Server:
    """uvicorn, with nothing that we did not ask for."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            ws="none",
            proxy_headers=False,
            server_header=False,
            # Beyond those that sign there may be some that ask for /healthz or are refused.
            limit_concurrency=4 * args.max_requests + 16,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=30,
            ssl_certfile=args.tls_cert,
            ssl_keyfile=args.tls_key,
            ssl_ca_certs=args.client_ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if args.client_ca else ssl.CERT_NONE,
        )
    )
