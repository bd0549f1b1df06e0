"""Messages of a detector that were tampered with, to try who listens to them: `fuzzed(100_000)`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

import xrddiff as xd
from xrddiff.run.streaming.detector_messages import end_message, header_message, image_message

SERIES = 7  # of the messages that are tampered with; no single change makes it 1
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2.5, 1e308, -1e308, 10**30, 1 << 62, "", "x", "\ud800", "\udcff", "\x00", "\x1b[31m", "<script>", "$_$", "[/red]",
    [], [0, 0], [-1, 5], [1 << 14, 1 << 14], [1 << 40, 1 << 40], [64], [64, 64, 64], [True, True], ["64", 64], {}, {"a": {"b": [1]}},
    "dimage-1.0", "dheader-1.0", "dpixelmask-1.0", "uint8", "object", "float64", "lz4<", "bs8-lz4<", "bs64-lz4<", "none", float("nan"), float("inf"),
)  # fmt: skip


def frames(n: int, size: int = 64) -> xr.Dataset:
    """Frames of Poisson background, every third one with twelve spots."""
    rng = np.random.default_rng(0)
    values = rng.poisson(2.0, (n, size, size)).astype(np.uint16)
    for i in range(0, n, 3):
        y, x = np.divmod(rng.choice((size // 8) ** 2, 12, replace=False), size // 8)
        for dy, dx in ((0, 0), (0, 1), (1, 0)):
            values[i, 8 * y + 4 + dy, 8 * x + 4 + dx] += 60
    about = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(size / 2, size / 2))
    return xd.make_frames(values, **about)


def good(n: int, series: int = 1, size: int = 64) -> Iterator[list[bytes]]:
    """The messages of a series of n frames: its header, its frames, its end."""
    ds = frames(n, size)
    yield header_message(ds, series)
    for i, image in enumerate(ds["intensity"].values):
        yield image_message(image, series, i, ("none", "lz4", "bslz4")[i % 3])
    yield end_message(series)


def _flipped(part: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(part or b"\0")
    for at in rng.integers(0, 8 * len(out), rng.integers(1, 4)):
        out[at // 8] ^= 1 << (at % 8)
    return bytes(out)


def _changed(part: bytes, rng: np.random.Generator) -> bytes:
    """A part that is JSON, with one value or name replaced; any other part with a few bytes replaced."""
    try:
        said = dict(json.loads(part))
        name = str(rng.choice(list(said)))
    except (ValueError, TypeError, RecursionError):
        return part[: rng.integers(0, len(part) + 1)] + rng.bytes(int(rng.integers(0, 40)))
    value = ODD[rng.integers(len(ODD))]
    if rng.random() < 0.1:
        said["\ud800" if value is None else str(value)] = said.pop(name)
    else:
        said[name] = value
    return json.dumps(said).encode()


def _deep(rng: np.random.Generator) -> bytes:
    """A part that is costly to read as JSON."""
    n = int(rng.integers(10, 100_000))
    return (b"[" * n, b'{"a":' * n, b'{"series":' + b"9" * n + b"}", b'{"htype":"' + b"x" * n + b'"}')[rng.integers(4)]


def fuzzed(count: int, seed: int = 0) -> Iterator[list[bytes]]:
    """So many messages, each a good one of series `SERIES` that was tampered with; the same for a seed."""
    whole, rng = list(good(6, SERIES, 32)), np.random.default_rng(seed)
    for _ in range(count):
        parts = list(whole[rng.integers(len(whole))])
        for _ in range(rng.integers(1, 4)):
            at, how = int(rng.integers(len(parts))), rng.random()
            if how < 0.35:
                parts[at] = _changed(parts[at], rng)
            elif how < 0.6:
                parts[at] = _flipped(parts[at], rng)
            elif how < 0.7:
                parts[at] = parts[at][: rng.integers(len(parts[at]) + 1)]
            elif how < 0.78:
                parts[at] = rng.bytes(int(rng.integers(0, 200)))
            elif how < 0.84:
                parts.insert(at, parts[rng.integers(len(parts))])
            elif how < 0.9 and len(parts) > 1:
                del parts[at]
            elif how < 0.95:
                parts = [parts[i] for i in rng.permutation(len(parts))]
            elif how < 0.97:
                parts += [b"{}"] * int(rng.integers(0, 200))
            elif how < 0.98:
                parts[at] = _deep(rng)
            else:
                parts = [rng.bytes(int(rng.integers(0, 60))) for _ in range(rng.integers(1, 5))]
        yield parts
