"""What has to hold after each attack, whatever it was?

The mail server lives and is quiet, an ordinary letter goes through it, and its log tells of no
error of ours and nothing that was said in confidence. Attacks are the tests' own.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.live import places
from tests.live.letters import LETTER, Post
from tests.live.waiting import eventually

# Stands in bodies, subjects and passwords; never in the log. In no case and no encoding that we
# would use for a log line does it look different.
SECRET = "Fizzlewick7281"
# Of the filter's log: what it says of errors of its own, and of smtpd's lines that it can't read.
OWN_ERRORS = re.compile(
    r"^bridge: (internal-error|handler-failed|report-failed|bad-answer|bad-line-from-smtpd|"
    r"bridge-lost|link-error|spill-failed|Traceback|Exception|Task).*$",
    re.MULTILINE,
)
# A process that spins takes all of these; one that waits, none.
TICKS, WITHIN = 12, 0.2


class Attacked:
    """A server under attack and its letters."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.mta = post.mta
        self.longest = places.LONGEST[post.mta.version]  # what it takes back in one line
        self._began = {process.pid for process in self.mta.processes()}

    def unharmed(self) -> None:
        """See above. Takes a quarter of a second."""
        assert self.mta.alive, "smtpd has ended"
        assert self.post.send(LETTER).body == b"hello\n"
        eventually("quiet processes", lambda: not self._spinning(), 20)
        log = self.mta.log()
        assert not (errors := OWN_ERRORS.findall(log)), errors
        assert SECRET.lower() not in log.lower()
        now = {process.pid for process in self.mta.processes()}
        assert self._began <= now, "a process has ended"

    def _spinning(self) -> list[str]:
        before = {process.pid: ticks(process.pid) for process in self.mta.processes()}
        time.sleep(WITHIN)
        return [
            process.command
            for process in self.mta.processes()
            if ticks(process.pid) - before.get(process.pid, 0) > TICKS
        ]


def ticks(pid: int) -> int:
    """How much processor time a process has had, in hundredths of a second; 0 if it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def broken(line: bytes, longest: int) -> bytes:
    """What becomes of a line that is too long to go back: LF and a blank within it."""
    rest = line[longest:]
    parts = [rest[i : i + longest - 1] for i in range(0, len(rest), longest - 1)]
    return b"\n ".join((line[:longest], *parts))
