"""Sends the demo's mail, shows what became of each message, and says whether that was right.

Run by contrib/demo, which installs what this needs.  Exit status: 0 when all was as expected,
1 when something was not, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from cases import CONFIGURATION, ZONE, Case, cases, message_id
from worlds import World, model, real

from bridge.testing.outcomes import SmtpdError
from tests.live import kept, places
from tests.live.mail import Delivered, stored
from tests.live.verifiers import on_the_wire, one_by_one
from tests.live.waiting import eventually

COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ
WIDTH = min(shutil.get_terminal_size((100, 24)).columns, 120)
LABEL = 14


@dataclass
class Outcome:
    """What became of one message.  wrong: each thing that should have been otherwise."""

    reply: str
    added: list[str]  # header fields that it arrived with and was not sent with
    log: list[str]
    arrived: bool
    junk: bool
    lines: int
    wrong: list[str]
    verified: list[str] = field(default_factory=list)  # what verifiers said of its signatures


def main() -> int:
    parser = argparse.ArgumentParser(prog="contrib/demo")
    parser.add_argument("--version", choices=places.VERSIONS, default=places.VERSIONS[0])
    parser.add_argument("--model", metavar="WHY", help="no real servers, for that reason")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is ended
    began = time.monotonic()
    try:
        with _world(options.version, options.model) as world:
            _introduce(world, options.model)
            wrong = _run(world)
    except KeyboardInterrupt:
        print("\nEnded early.")
        return 130
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, EOFError, ValueError, RuntimeError, SmtpdError) as error:
        for server in kept.journal:
            print(f"\nThe end of the log of {server.name}:\n{server.log()[-2000:]}")
        print(f"\n{_coloured(31, 'The demo failed')}: {error}")
        return 1
    seconds = round(time.monotonic() - began)
    if wrong:
        print(f"\n{_coloured(31, f'{wrong} not as expected')}, in {seconds} s.")
        return 1
    print(f"\n{_coloured(32, 'All as expected')}, in {seconds} s; nothing is left running.")
    return 0


def _world(version: str, why_not: str | None) -> AbstractContextManager[World]:
    if why_not:
        return model(version, CONFIGURATION, ZONE)
    return real(version, CONFIGURATION, ZONE)


def _introduce(world: World, why_not: str | None) -> None:
    if why_not:
        print(_coloured(33, f"NO REAL SERVERS: {why_not}."))
        print("This is the embedded model of smtpd with stand-ins for rspamd and the DNS.")
        print("The filter is the real one.\n")
    for name, where in world.about:
        print(f"  {name:{2 * LABEL}}{where}")
    print(f"  {'filter-bridge':{2 * LABEL}}with this configuration:\n")
    print(textwrap.indent(world.configuration, " " * 6))


def _run(world: World) -> int:
    """Send everything; how much was wrong."""
    wrong = 0
    count = 0
    all_cases = cases(world.protocol)
    for number, case in enumerate(all_cases, 1):
        count += case.arrives
        outcome = _send(world, case, number, count)
        _show(number, case, outcome)
        wrong += bool(outcome.wrong)
    found = Counter(id for mail in world.delivered(count) for id in _ids(mail))
    expected = Counter(message_id(n) for n, case in enumerate(all_cases, 1) if case.arrives)
    if found != expected:
        print(f"\nWRONG: delivered were {dict(found)}, not {dict(expected)}")
        wrong += 1
    if not world.alive():
        print("\nWRONG: smtpd did not survive")
        wrong += 1
    if not wrong:
        print(f"\n{count} of {len(all_cases)} messages were accepted, and each arrived once;")
        print("smtpd and the filter are the processes that they were at the start.")
    return wrong


def _ids(mail: Delivered) -> list[str]:
    return [value.decode() for value in mail.header("Message-ID")]


def _send(world: World, case: Case, number: int, count: int) -> Outcome:
    """Send one message, and look at what became of it."""
    logged = len(world.log())
    message = case.message(number)
    if case.mishap == "stop rspamd":
        world.stop_rspamd()
    elif case.mishap == "start rspamd":
        world.start_rspamd()
    with ThreadPoolExecutor(1) as pool:
        scans = world.scans()
        reply = pool.submit(world.send, case.source, case.recipient, message)
        if case.mishap == "kill the bridge":
            eventually("a scan", lambda: world.scans() > scans)
            os.kill(world.bridge(), signal.SIGKILL)
    said = reply.result()
    outcome = Outcome(said, [], [], False, False, 0, [])
    if not said.startswith(case.reply):
        outcome.wrong.append(f"expected the reply {case.reply}")
    elif case.arrives:
        _look(outcome, case, message, number, world.delivered(count))
        if case.signed:
            _verify(outcome, world, number, world.delivered(count))
    _read_log(outcome, case, world, logged)
    return outcome


def _look(
    outcome: Outcome, case: Case, message: bytes, number: int, mails: Sequence[Delivered]
) -> None:
    """Look at what arrived."""
    found = [mail for mail in mails if message_id(number) in _ids(mail)]
    if len(found) != 1:
        outcome.wrong.append(f"it arrived {len(found)} times")
        return
    [mail] = found
    sent = Delivered(stored(message), junk=False)
    outcome.arrived, outcome.junk = True, mail.junk
    outcome.added = [
        f"{name}: {_unfolded(value)}"
        for name, value in mail.headers
        if (name, value) not in sent.headers and name != "Received"
    ]
    outcome.lines = mail.body.count(b"\n")
    body = mail.body.replace(b"\n ", b"") if case.broken else mail.body
    if body != sent.body:
        outcome.wrong.append("its body was changed")
    if mail.junk != case.junk:
        outcome.wrong.append("it arrived in the wrong folder")
    if len(outcome.added) != len(case.headers):
        outcome.wrong.append(f"expected {len(case.headers)} header fields more")
    for pattern in case.headers:
        if not any(re.match(pattern, field) for field in outcome.added):
            outcome.wrong.append(f"expected a header field {pattern}")


def _verify(outcome: Outcome, world: World, number: int, mails: Sequence[Delivered]) -> None:
    """Verify its signatures, and that they do not hold for anything else."""
    [mail] = (mail for mail in mails if message_id(number) in _ids(mail))
    message = on_the_wire(mail.message)
    for name, verifier in world.verifiers.items():
        good = [not verifier.verify(each) for each in one_by_one(message)]
        changed = [not verifier.verify(each + b"!\r\n") for each in one_by_one(message)]
        outcome.verified.append(
            f"{name}: {sum(good)} of {len(good)} hold; with a line more, {sum(changed)}"
        )
        if good != [True, True] or changed != [False, False]:
            outcome.wrong.append(f"{name}: expected that 2 hold, and with a line more none")


def _unfolded(value: bytes) -> str:
    return re.sub(rb"\n[ \t]+", b" ", value).decode("utf-8", "replace")


def _read_log(outcome: Outcome, case: Case, world: World, since: int) -> None:
    """Read what the filter logged meanwhile."""

    def new() -> list[str]:
        return world.log()[since:]

    for pattern in case.log:
        try:
            eventually("the line", lambda p=pattern: any(re.search(p, line) for line in new()), 5)  # type: ignore[misc]
        except TimeoutError:
            outcome.wrong.append(f"expected a log line {pattern}")
    outcome.log = new()


def _show(number: int, case: Case, outcome: Outcome) -> None:
    state = _coloured(31, "WRONG") if outcome.wrong else _coloured(32, "ok")
    print(f"{number:>3}  {case.what:{WIDTH - 12}}  {state}")
    _row("client told", [outcome.reply])
    if outcome.arrived:
        where = " in Junk" if outcome.junk else ""
        more = f", its long line as {outcome.lines:,} lines" if case.broken else ""
        _row("arrived", [f"once{where}, as sent{more}, with:" if outcome.added else "as sent"])
        _row("", outcome.added)
    else:
        _row("arrived", ["nothing"])
    _row("verified", outcome.verified)
    _row("log", outcome.log or ["nothing"])
    _row("WRONG", outcome.wrong)
    sys.stdout.flush()


def _row(label: str, texts: Sequence[str]) -> None:
    for text in texts:
        lines = textwrap.wrap(text, WIDTH - LABEL - 5, subsequent_indent="    ")
        for line in lines:
            print(f"     {label:{LABEL}}{line}")
            label = ""


def _coloured(number: int, text: str) -> str:
    return f"\x1b[{number}m{text}\x1b[0m" if COLOURS else text


if __name__ == "__main__":
    sys.exit(main())
