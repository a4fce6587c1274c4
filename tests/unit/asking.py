"""To ask a stand-in over a real socket, and to see that nothing was left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from bridge.services.http import Upstreams
from bridge.services.upstream import ServiceError

GENEROUS = 10.0  # seconds; far above what is waited for, far below for ever


def parse_json(status: int, headers: Mapping[str, str], body: bytes) -> Any:
    """As the rspamd client does: 200 with an object is a reply."""
    if status != 200:
        raise ServiceError("http-error", f"status {status}", retry=False)
    try:
        return json.loads(body)
    except ValueError as error:
        raise ServiceError("bad-reply", "not JSON") from error


async def ask(
    upstreams: Upstreams, body: bytes = b"x: y\r\n\r\nz\r\n", *, patience: float = 8.0, **more: Any
) -> Any:
    deadline = asyncio.get_running_loop().time() + patience
    given: dict[str, Any] = {"headers": [], "parse": parse_json, **more}
    return await upstreams.request("/checkv2", body=body, deadline=deadline, **given)


async def failure(upstreams: Upstreams, *arguments: Any, **more: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await ask(upstreams, *arguments, **more)
    return caught.value


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs `test`, bounded, and then holds that it left no task and no file descriptor."""

    async def bounded() -> None:
        async with asyncio.timeout(GENEROUS * 3):
            await test()
        for _ in range(100):
            if len(asyncio.all_tasks()) == 1:
                return
            await asyncio.sleep(0.02)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    gc.collect()  # what others left
    before = open_files()
    asyncio.run(bounded())
    after = open_files()
    assert after == before, (after - before, before - after)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(int(GENEROUS * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def open_files() -> set[str]:
    links = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue  # the listing's own
    return links


def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
