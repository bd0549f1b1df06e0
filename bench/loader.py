"""The loader against a bare h5py read of the same bitshuffle-LZ4 file with checksums, in bytes of stored pixels per second.

    OMP_NUM_THREADS=1 python bench/loader.py [--repeats 9] [--megabytes 256] [--out bench/results/loader.md]

The bare read is what h5py does best: one chunk after another into one buffer, and nothing is done with it. The loader
gives batches: float32 network values, mask, padding, conditions. Every repeat times all of them, one after another, and the ratio is
taken within the repeat, so that whatever else the machine does falls on both. CPU time is that of all threads: it says what the work costs; the
clock says how long one waits, and favours who has more threads. Both read from the page cache, and again after the system was asked to forget the file.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from functools import partial
from itertools import count
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from harness import Spent, Times, interleaved, machine, make_parser, markdown, timed, write_results

from xrddiff.core.seeds import numpy_rng
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.transforms.values import Asinh
from xrddiff.learn.loading.loader import FrameLoader

CASES = {"512² int32": (512, np.int32, 8), "2048² uint16": (2048, np.uint16, 4)}


def scene(size: int, dtype: type, kinds: int = 4) -> np.ndarray:
    """A few frames with a water ring, Bragg spots and counting noise; they compress as such frames do."""
    rng = numpy_rng("bench", "loader", size)
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    radius = np.hypot(x - size / 2, y - size / 2) / size
    mu = 0.5 + 12 * np.exp(-((radius - 0.25) ** 2) / 0.005) + 6 * np.exp(-radius / 0.1)
    frames = np.empty((kinds, size, size), dtype)
    for f in frames:
        counts = rng.poisson(mu)
        at = rng.integers(3, size - 3, (2, size // 3))
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                counts[at[0] + dy, at[1] + dx] += rng.poisson(rng.exponential(400, size // 3))
        f[...] = np.minimum(counts, np.iinfo(np.uint16).max)
    return frames


def write(path: Path, size: int, dtype: type, megabytes: int) -> None:
    kinds = scene(size, dtype)
    n = max(8, megabytes * 2**20 // kinds[0].nbytes)
    with h5py.File(path, "w") as f:
        data = f.create_dataset(
            "data",
            (n, size, size),
            dtype,
            chunks=(1, size, size),
            fletcher32=True,
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        for i in range(n):
            data[i] = kinds[i % len(kinds)]
        mask = np.ones((size, size), bool)
        mask[:: size // 8, :], mask[:, :: size // 4] = False, False
        f["mask"] = mask


def chill(path: Path) -> None:
    """Ask the system to forget the pages of a file, which are on disk."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare(data: h5py.Dataset) -> None:
    """A sequential read of everything into one buffer."""
    buffer = np.empty(data.shape[1:], data.dtype)
    for i in range(len(data)):
        data.read_direct(buffer, np.s_[i])


def loaded(loader: FrameLoader, epoch: int) -> None:
    """An epoch of batches."""
    assert sum(len(batch["index"]) for batch in loader.batches(epoch)) == len(loader.index)


def measure(path: Path, batch_size: int, repeats: int, cold: bool) -> tuple[int, dict[str, Times]]:
    """The bytes of pixels, and seconds of every way of loading them."""
    with h5py.File(path) as f:
        data = f["data"]
        ds = make_frames(data, mask=f["mask"][()], wavelength=1.3, source=path.name)
        transform = Asinh().fit(ds, np.arange(min(len(data), 16)))
        words = {"batch_size": batch_size, "multiple": 8}
        ways = {
            "bare h5py": None,
            "loader, in order": FrameLoader(ds, transform, shuffle=False, **words),
            "loader, shuffled": FrameLoader(ds, transform, **words),
            "loader, shuffled, no threads": FrameLoader(ds, transform, prefetch=0, **words),
        }
        epochs = {name: count() for name in ways}

        def once(name: str) -> Spent:
            if cold:
                chill(path)
            way = ways[name]
            return timed(lambda: bare(data) if way is None else loaded(way, next(epochs[name])))[1]

        # the first round warms the page cache and imports what is imported late
        return data.nbytes, interleaved({name: partial(once, name) for name in ways}, repeats)


def speeds(size: int, seconds: list[float], bare: list[float]) -> list[str]:
    """GB/s, and the ratio of speeds to the bare read: median (best or worst)."""
    rates, ratios = [size / s / 1e9 for s in seconds], [b / s for b, s in zip(bare, seconds, strict=True)]
    return [
        f"{statistics.median(rates):.2f} ({max(rates):.2f})",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f})",
    ]


def main() -> None:
    parser = make_parser(__doc__, out=None)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=256, help="size of each file before compression")
    args = parser.parse_args()
    lines = [
        "# Loader against a bare h5py read",
        "",
        f"`OMP_NUM_THREADS=1 python bench/loader.py --repeats {args.repeats} --megabytes {args.megabytes}`; {machine('cores', 'python')}, h5py {h5py.__version__}.",
        "Bitshuffle-LZ4 with Fletcher-32, which every read verifies, as a store of ours is written, one frame per chunk; *cold*: before each pass the system is asked to forget the file. "
        "GB/s of stored pixels per second of CPU (of all threads) and of the clock, median (best); ratios to the bare read, taken within each repeat, median (worst).",
        f"The loader reads with as many threads as there are cores, h5py with one. Load average before: {os.getloadavg()[0]:.1f}; where it is above 1, other work slowed the clock, and the columns by CPU are those to compare.",
        "",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, dtype, batch_size) in CASES.items():
            path = Path(folder) / f"{size}.h5"
            write(path, size, dtype, args.megabytes)
            for cold in (False, True):
                pixels, times = measure(path, batch_size, args.repeats, cold)
                bare_read = times["bare h5py"]
                for way, spent in times.items():
                    cells = speeds(pixels, spent.cpu, bare_read.cpu) + speeds(pixels, spent.clock, bare_read.clock)
                    rows.append([name, "cold" if cold else "warm", way, *cells])
            path.unlink()
    lines += markdown(["file", "cache", "way", "GB/s, CPU", "ratio, CPU", "GB/s, clock", "ratio, clock"], rows, "lllr")
    print(*lines, sep="\n")
    if args.out:
        write_results(args.out, lines)


if __name__ == "__main__":
    main()
