"""What does a filter do that changes nothing? It echoes; it is here to try the harness, not us.

With `child` among its arguments it has a child of its own, with `stay` it ignores the end of its
input (and its child with it), with `log` it says each report on stderr. Protocol 0.5 and later.
"""

from __future__ import annotations

import subprocess
import sys
import time

PHASES = ("connect", "mail-from", "data-line", "commit")


def main() -> None:
    say = sys.stdout.buffer.write
    child = subprocess.Popen(["sleep", "600"]) if "child" in sys.argv else None
    for raw in sys.stdin.buffer:
        line = raw.rstrip(b"\n")
        kind, _, rest = line.partition(b"|")
        if line == b"config|ready":
            say(b"register|report|smtp-in|*\n")
            for phase in PHASES:
                say(b"register|filter|smtp-in|" + phase.encode() + b"\n")
            say(b"register|ready\n")
        elif kind == b"filter":
            _, _, _, phase_name, session, token, parameter = rest.split(b"|", 6)
            where = session + b"|" + token + b"|"
            if phase_name == b"data-line":
                say(b"filter-dataline|" + where + parameter + b"\n")
            else:
                say(b"filter-result|" + where + b"proceed\n")
        elif kind == b"report" and "log" in sys.argv:
            print(line.decode("utf-8", "replace"), file=sys.stderr)
        sys.stdout.flush()
    if "stay" in sys.argv:
        time.sleep(600)
    elif child is not None:
        child.kill()


if __name__ == "__main__":
    main()
