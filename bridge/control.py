"""The control socket: `filter-bridge reload` talks to the bridges of a run_dir.

A bridge listens at RUN_DIR/bridge-PID.sock, 0600, so only its own user and root may speak.
One line in (a command's name), lines out, of which the first says "done" or "failed".  Knows no
command's meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

Said = tuple[bool, list[str]]  # was it done, and what to tell
WAIT = 10.0  # seconds for one conversation
MAX_LINE = 100
DONE = "done"  # the first line of an answer, if it was


class Control:
    """The socket, while it is entered.  A directory that is not there, or not ours to write,
    is only told: mail goes on without."""

    def __init__(
        self,
        run_dir: str,
        commands: Mapping[str, Callable[[], Said]],
        log: Callable[..., None],
    ) -> None:
        self._path = Path(run_dir) / f"bridge-{os.getpid()}.sock"
        self._commands = commands
        self._log = log
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        old = os.umask(0o177)
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()  # of an earlier process with our number
            self._server = await asyncio.start_unix_server(self._talk, self._path)
        except FileNotFoundError:
            pass  # without the directory there is to be none: `reload` says so
        except OSError as error:
            why = error.strerror or str(error)
            self._log("no-control-socket", path=self._path, error=why)
        finally:
            os.umask(old)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(WAIT):
                line = await reader.readline()
                command = self._commands.get(line[:MAX_LINE].decode("ascii", "replace").strip())
                done, said = command() if command else (False, ["an unknown command"])
                lines = [DONE if done else "failed", *said]
                writer.write("".join(f"{each}\n" for each in lines).encode())
                await writer.drain()
        except (TimeoutError, ValueError, ConnectionError):
            pass
        finally:
            writer.close()


def tell(run_dir: str, command: str) -> int:
    """Say a command to all bridges of a directory and print what they say; the exit status:
    0, or 1 if one did not do it or there is none."""
    sockets = sorted(Path(run_dir).glob("bridge-*.sock"))
    good = bad = 0
    for path in sockets:
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                continue
            first, *said = _ask(path, command) or ["", "no answer"]
        except ConnectionRefusedError:  # its process is gone
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        except OSError as error:
            first, said = "", [error.strerror or str(error)]
        good += first == DONE
        bad += first != DONE
        for line in said:
            print(f"{path.stem}: {line}")
    if not good and not bad:
        print(f"no bridge listens in {run_dir}; hint: does bridge.run_dir exist, writable?")
    return 0 if good and not bad else 1


def _ask(path: Path, command: str) -> list[str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT)
        sock.connect(str(path))
        sock.sendall(f"{command}\n".encode())
        with sock.makefile("r", encoding="utf-8", errors="replace") as answer:
            return answer.read(65536).splitlines()
