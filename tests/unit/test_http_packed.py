"""Compressed replies, as rspamd and proxies announce them, and hostile ones."""

from __future__ import annotations

import os

import pytest
import zstandard

from bridge.services import zstd
from bridge.services.http import Upstreams
from bridge.services.upstream import Rules
from bridge.testing.http import Reply, StandIn
from tests.unit.asking import (
    GENEROUS,
    ask,
    failure,
    run,
)

PLAIN = b'{"action":"no action"}' + b" " * 3000
PACKED = zstandard.ZstdCompressor(write_content_size=False).compress(PLAIN)
BOMB = zstandard.ZstdCompressor().compress(bytes(200 * 2**20))
COMPRESSION = (("Compression", "zstd"),)
ENCODING = (("Content-Encoding", "zstd"),)

PACKINGS = {
    "rspamd 3.4 announces Compression": (PACKED, COMPRESSION, "ok"),
    "a proxy announces Content-Encoding": (PACKED, ENCODING, "ok"),
    "rspamd 4 announces both and packs once": (PACKED, COMPRESSION + ENCODING, "ok"),
    "identity is none": (PLAIN, (("Content-Encoding", "identity"),), "ok"),
    "a bomb is not unpacked": (BOMB, ENCODING, "over 1048576 bytes when unpacked"),
    "a cut frame is broken": (PACKED[:-1], ENCODING, "not one whole frame"),
    "bytes behind the frame are broken": (PACKED + b"x", ENCODING, "broken zstd"),
    "a second frame is broken": (PACKED + PACKED, ENCODING, "not one whole frame"),
    "what is no zstd is broken": (PLAIN, ENCODING, "broken zstd"),
    "gzip was not asked for": (PLAIN, (("Content-Encoding", "gzip"),), "'gzip'"),
    "nor both": (PACKED, (("Content-Encoding", "zstd, gzip"),), "'zstd, gzip'"),
}


@pytest.mark.parametrize(("body", "headers", "says"), PACKINGS.values(), ids=PACKINGS)
def test_packed_replies(body: bytes, headers: tuple[tuple[str, str], ...], says: str) -> None:
    async def test() -> None:
        async with StandIn(Reply(200, body, headers)) as server:
            rules = Rules(timeout=GENEROUS, retries=0)
            upstreams = Upstreams("rspamd", [server.url], rules=rules, max_reply=2**20)
            if says == "ok":
                reply = await ask(upstreams, parse=lambda *reply: reply)
                assert reply[2] == PLAIN
                assert not {"compression", "content-encoding"} & set(reply[1])
            else:
                error = await failure(upstreams)
                assert error.kind == "bad-reply"
                assert says in str(error)

    run(test)


def test_without_the_package_a_packed_reply_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstd, "HAVE_ZSTD", False)
    with pytest.raises(ValueError, match="hint: install the zstandard package"):
        zstd.decompress(PACKED, 2**20)
    with pytest.raises(RuntimeError):
        zstd.compress(PLAIN)


@pytest.mark.parametrize("size", [0, 1, 10**6], ids=str)
def test_packing_comes_back(size: int) -> None:
    data = os.urandom(1000) * (size // 1000) if size > 1 else bytes(size)
    assert zstd.decompress(zstd.compress(data), max(size, 1)) == data
