"""zstd, if the `zstandard` package is there, bounded both ways.

`HAVE_ZSTD` tells; without it a compressed reply can't be read and none may be asked for.
"""

from __future__ import annotations

try:
    import zstandard
except ImportError:
    HAVE_ZSTD = False
else:
    HAVE_ZSTD = True

LEVEL = 1  # mail goes over a local network: speed counts
# RFC 8878, 3.1.1.1.2: a decoder should take windows of 8 MiB at least.
MIN_WINDOW = 8 * 2**20
STEP = 2**20


def compress(data: bytes) -> bytes:
    """One zstd frame; RuntimeError without the package: check `HAVE_ZSTD` at start."""
    if not HAVE_ZSTD:
        raise RuntimeError("zstd needs the zstandard package")
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


def decompress(data: bytes, limit: int) -> bytes:
    """The one frame in `data`; ValueError if it is broken, not whole, or over `limit` bytes
    when unpacked, or if the package is not there."""
    if not HAVE_ZSTD:
        raise ValueError("reply in zstd; hint: install the zstandard package")
    unpacker = zstandard.ZstdDecompressor(max_window_size=max(limit, MIN_WINDOW))
    try:
        # A reader stops where it is told but takes a cut frame for a whole one, the object
        # tells the end of a frame but knows no limit: first the one, then the other.
        with unpacker.stream_reader(data) as reader:
            size = 0
            while (step := len(reader.read(STEP))) and (size := size + step) <= limit:
                pass
        if size > limit:
            raise ValueError(f"reply in zstd over {limit} bytes when unpacked")
        frame = unpacker.decompressobj()
        plain = frame.decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(f"broken zstd in the reply: {error}") from error
    if not frame.eof or frame.unused_data:
        raise ValueError("broken zstd in the reply: not one whole frame")
    return plain
