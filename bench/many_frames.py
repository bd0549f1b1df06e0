"""How long a million frames take to start, how much memory they need, and how well they are shuffled.

    OMP_NUM_THREADS=1 python bench/many_frames.py [--frames 1000000] [--only zarr,virtual,folder,http] [--work FOLDER]

Small frames (32 × 32, uint16) in four kinds of sources: a sharded zarr store of ours, one virtual HDF5 data set over 100 files, a folder of HDF5 files of 100 frames, and the zarr store again, on a web server on this machine (aiohttp's; `--delay` seconds before each answer). Few frames are made; the files are copies of one that
holds them, so a source takes some 700 MB of disk and is deleted before the next one is made. A process of its own opens each as a run does (`prepare_planned`: opening, the split, the fit of the transform) and takes batches of 64 from the shuffled
loader. Imports are done before the clock starts. `again`: the same in a second process, for `http` with what the first one left in the cache. Writes bench/results/many_frames.json and many_frames.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from harness import make_parser, markdown, memory, read_results, write_results

SIDE, BATCH, BATCHES = 32, 64, 1000
GEOMETRY = {"wavelength": 1.3, "distance": 0.1, "pixel_size": 1e-4, "beam_center": (16.0, 16.0)}
SOURCES = {
    "zarr": "zarr, 8192 frames a shard",
    "virtual": "virtual HDF5 data set over 100 files",
    "folder": "folder of HDF5 files of 100 frames",
    "http": "zarr over http, 8192 frames a shard",
}


def pictures(n: int) -> np.ndarray:
    """`n` frames (frame, y, x) uint16 of a ring, spots and counting noise."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    ring = 1 + 6 * np.exp(-((np.hypot(x - SIDE / 2, y - SIDE / 2) - 9) ** 2) / 8)
    frames = rng.poisson(ring, (n, SIDE, SIDE))
    at = rng.integers(0, SIDE, (2, n, 6))
    frames[np.arange(n)[:, None], at[0], at[1]] += rng.poisson(200, (n, 6))
    return frames.astype(np.uint16)


def write_hdf5(path: Path, frames: np.ndarray) -> None:
    """A file of another program, in the layout of CXI."""
    with h5py.File(path, "w", libver=("v110", "v110")) as f:
        data = f.create_dataset(
            "entry_1/data_1/data", data=frames, chunks=(1, SIDE, SIDE), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        data.attrs["units"] = "photon"
        f["entry_1/instrument_1/source_1/wavelength"] = GEOMETRY["wavelength"] * 1e-10
        f["entry_1/instrument_1/source_1/wavelength"].attrs["units"] = "m"
        for name, value in (("distance", GEOMETRY["distance"]), ("x_pixel_size", GEOMETRY["pixel_size"])):
            f[f"entry_1/instrument_1/detector_1/{name}"] = value
            f[f"entry_1/instrument_1/detector_1/{name}"].attrs["units"] = "m"
        for axis, value in zip("xy", GEOMETRY["beam_center"], strict=True):
            f[f"entry_1/instrument_1/detector_1/beam_center_{axis}"] = value


def make_zarr(path: Path, n: int) -> None:
    """A store as `save_frames` writes it: its layout for n frames, one shard written, the others copies of it."""
    import zarr

    from xrddiff.data.formats.store import lay_out_zarr, seal_zarr, whole_chunks
    from xrddiff.data.frames.frames import make_frames
    from xrddiff.data.frames.rows import lazy_frames

    lazy = lazy_frames(lambda i: np.zeros((SIDE, SIDE), np.uint16), (n, SIDE, SIDE), np.uint16)
    lay_out_zarr(make_frames(lazy, **GEOMETRY), path)
    array = whole_chunks(zarr.open_group(str(path), mode="r+")["intensity"])
    step = array.shards[0]
    array[:step] = pictures(step)[: min(step, n)]
    first, *rest = (path / "intensity" / array.metadata.encode_chunk_key((k, 0, 0)) for k in range(math.ceil(n / step)))
    for other in rest:
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first, other)
    seal_zarr(path)


def make_virtual(path: Path, n: int, files: int = 100) -> None:
    parts = path.with_suffix(".parts")
    parts.mkdir()
    each = n // files
    write_hdf5(parts / "0.h5", pictures(each))
    layout = h5py.VirtualLayout((each * files, SIDE, SIDE), np.uint16)
    for k in range(files):
        if k:
            shutil.copyfile(parts / "0.h5", parts / f"{k}.h5")
        source = h5py.VirtualSource(f"{parts.name}/{k}.h5", "entry_1/data_1/data", (each, SIDE, SIDE))
        layout[k * each : (k + 1) * each] = source
    write_hdf5(path, pictures(1))
    with h5py.File(path, "r+") as f:
        del f["entry_1/data_1/data"]
        f["entry_1/data_1"].create_virtual_dataset("data", layout)
        f["entry_1/data_1/data"].attrs["units"] = "photon"


def make_folder(path: Path, n: int) -> None:
    path.mkdir()
    files = max(n // 100, 1)
    write_hdf5(path / "run_00000.h5", pictures(n // files))
    for k in range(1, files):
        shutil.copyfile(path / "run_00000.h5", path / f"run_{k:05d}.h5")


MAKERS = {"zarr": (make_zarr, "frames.zarr"), "virtual": (make_virtual, "frames.h5"), "folder": (make_folder, "frames")}
MAKERS["http"] = MAKERS["zarr"]


def serve(folder: str, delay: float) -> None:
    """A web server of the files in `folder`; prints its address."""
    import asyncio

    from aiohttp import web

    @web.middleware
    async def late(request: Any, handler: Any) -> Any:
        await asyncio.sleep(delay)
        return await handler(request)

    async def up() -> None:
        app = web.Application(middlewares=[late] if delay else [])
        app.router.add_static("/", folder)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(up())


@contextmanager
def served(path: Path, delay: float) -> Iterator[str]:
    """The address of `path` on a web server."""
    command = [sys.executable, __file__, "--serve", str(path.parent), "--delay", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"{server.stdout.readline().strip()}/{path.name}"
        finally:
            server.terminate()


def megabytes(field: str = "VmRSS") -> float:
    return memory(field) / 2**20


def start(path: str, batches: int, ahead: int | None = None) -> dict[str, Any]:
    """Open the frames as a run does, and take batches; `ahead`: `data.prefetch` and `data.threads`."""
    import aiohttp  # noqa: F401
    import dask.array  # noqa: F401  imported by xarray when the first variable is made
    import zarr  # noqa: F401

    from xrddiff.config.plan import compose_plan
    from xrddiff.data.formats import readers  # noqa: F401
    from xrddiff.learn.loading.datasets import open_planned, prepare_planned

    words = [f"data.data_path={path}", "model=vae_kl"]
    plan = compose_plan(words)
    before, begin = megabytes(), time.perf_counter()
    open_planned(plan.data)
    opened = time.perf_counter()
    prepared = prepare_planned(plan)
    ready = time.perf_counter()
    more = {} if ahead is None else {"prefetch": ahead, "threads": ahead}
    loader = prepared.loader(prepared.train, batch_size=BATCH, **more)
    order = loader.order(0)
    served = loader.batches(0)
    next(served)
    first = time.perf_counter()
    after, peak = megabytes(), megabytes("VmHWM")
    got = sum(1 for _ in islice(served, batches - 1))
    seconds = time.perf_counter() - first
    return {
        "open_s": opened - begin,
        "first_batch_s": first - opened,  # prepare_planned opens the frames once more
        "prepare_s": ready - opened,
        "before_mb": before,
        "after_mb": after,
        "peak_mb": peak,
        "later_mb": megabytes(),
        "batches": got + 1,
        "frames_per_s": got * BATCH / seconds,
        "frames": len(prepared.train) + len(prepared.held_out),
        **shuffled(order, loader.index),
    }


def shuffled(order: np.ndarray, index: np.ndarray) -> dict[str, float]:
    """How far an order of `index` is from that of the numbers, over what a uniform permutation gives.

    z: the correlation of place and frame, times the root of n - 1; normal with variance 1.
    neighbours: the mean distance of frames that follow each other, over (n + 1) / 3.
    blocks: of 100 equal parts of the set, how many a batch draws from, over 100 (1 - .99^64).
    """
    rank, n = np.searchsorted(index, order), len(order)
    z = np.corrcoef(np.arange(n), rank)[0, 1] * math.sqrt(n - 1)
    apart = np.abs(np.diff(rank)).mean() / ((n + 1) / 3)
    full = (rank * 100 // n)[: n // BATCH * BATCH].reshape(-1, BATCH)
    drawn = np.mean([len(np.unique(row)) for row in full[:2000]]) / (100 * (1 - 0.99**BATCH))
    return {"z": float(z), "neighbours": float(apart), "blocks": float(drawn)}


def child(path: Path | str, batches: int, cache: Path, readers: int | None) -> dict[str, Any]:
    env = os.environ | {"XRDDIFF_CACHE": str(cache)}
    command = [sys.executable, __file__, "--child", str(path), "--batches", str(batches)]
    command += [] if readers is None else ["--readers", str(readers)]
    out = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--only", default=",".join(SOURCES))
    parser.add_argument("--work", type=Path, help="folder for the files; None = a temporary one")
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--label", default="", help="what the rows are called, such as before")
    parser.add_argument("--delay", type=float, default=0.0, help="of http: seconds before each answer")
    parser.add_argument("--readers", type=int, help="threads that read, and batches read ahead; None = as a loader has")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(start(args.child, args.batches, args.readers)))
        return
    if args.serve:
        serve(args.serve, args.delay)
        return
    results = read_results("many_frames", {})
    for kind in args.only.split(","):
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            make, name = MAKERS[kind]
            path = Path(folder) / name
            make(path, args.frames)
            with served(path, args.delay) if kind == "http" else nullcontext(path) as place:
                for which in ("first", "again"):
                    row = child(place, args.batches, Path(folder) / "cache", args.readers)
                    results[" ".join(filter(None, (args.label, kind, which)))] = row
                    print(kind, which, row, flush=True)
    write_results("many_frames", page, dict(sorted(results.items())))


def page(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# A million frames",
        "",
        f"`OMP_NUM_THREADS=1 python bench/many_frames.py`, {os.cpu_count()} CPU cores that others use too, 32 × 32 pixels, uint16, one chunk per frame; batches of {BATCH} from the shuffled loader, one reader; the files were written just before, so the system has most of them in memory.",
        "`before`: the same with the code before sharded stores, virtual data sets and folders were mended. Seconds to open the frames, then to open them once more, split, fit the transform and get the first batch; memory is that of the process in MB,",
        f"with imports ({BATCHES} batches later in the next column); frames/s over those batches. The files of a folder are looked through once; what was found is kept, so `again` compares names, sizes and dates only. The rows of the folder were measured while trainings ran beside them.",
        "`http`: a web server on this machine, first with an empty cache and again with what it then holds; `20 ms` is what the server waits before each answer, `16 readers` are `data.prefetch=16 data.threads=16`. These rows were measured beside other work and with fewer batches: compare them with each other.",
        "",
    ]
    rows = []
    for name, r in results.items():
        kind = next(k for k in SOURCES if k in name.split())
        what = name.replace(kind, SOURCES[kind])
        if kind == "http":
            what = what.replace("first", "cold cache").replace("again", "warm cache")
        later = f"{r['later_mb']:.0f}" if r["batches"] >= BATCHES else f"({r['batches']} batches) {r['later_mb']:.0f}"
        cells = [f"{r['frames']:,}", what, f"{r['open_s']:.1f} s", f"{r['first_batch_s']:.1f} s"]
        rows.append([*cells, f"{r['before_mb']:.0f}, {r['after_mb']:.0f}", later, f"{r['frames_per_s']:.0f}"])
    head = ["frames", "source", "open", "to the first batch", "memory before, after", "after 1000 batches"]
    lines += markdown([*head, "frames/s"], rows, "l")
    r = next((r for name, r in results.items() if "before" not in name and r["frames"] == 1_000_000), None)
    if r is not None:
        lines += [
            "",
            "How well an epoch is shuffled, beside what a uniform permutation gives: correlation of place and frame, in standard deviations "
            f"{r['z']:.2f} (0 ± 1); mean distance of frames that follow each other, over (n + 1)/3, {r['neighbours']:.4f} (1); of 100 equal parts of the set, how many a batch draws from, over 100 (1 − .99⁶⁴), {r['blocks']:.4f} (1).",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
