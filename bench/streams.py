"""A stream of frames through a socket: CPU time of a frame, beside that of peakfinder8 alone on the same frames.

    OMP_NUM_THREADS=1 python bench/streams.py [--onda PYTHON] [--run RUN] [--frames 400]

Frames are sent by another process as a detector sends them (DECTRIS stream, bslz4). This one takes them, unpacks them, finds peaks, counts hits, and writes table and page; in one row it also looks for lattices, and with `--run`
scores them. The row *on two cores* has two workers answer, and frames per second are by the clock there, on a machine with nothing else to do. Times are CPU time of this process with all its threads, from the first answer to the last, so that the search for the level of chance at the start does not count. `--onda`: the Python of another environment with `ondamonitor==23.8.3`, whose
peakfinder8 gets the same frames from memory. Writes bench/results/streams.json and streams.md.
"""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import xarray as xr
from harness import make_parser, markdown, write_results
from peakfinder import peer

from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import frame_mask, make_frames
from xrddiff.data.frames.peaks import radius_map
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.streaming.answers import read_answers
from xrddiff.run.streaming.live_page import StreamStanding
from xrddiff.run.streaming.stream import Stream, StreamPlan


def large(frames: xr.Dataset, times: int) -> xr.Dataset:
    """Frames of `times` × `times` copies of others, in photons: the work of a detector of so many more pixels."""
    values = np.tile(frames["intensity"].values, (1, times, times))
    side, about = values.shape[1], {k: frames.attrs[k] for k in ("wavelength", "distance", "pixel_size")}
    words = {"units": frames["intensity"].attrs["units"], "gain": frames["intensity"].attrs.get("gain")}
    mask = np.tile(frame_mask(frames), (times, times))
    return make_frames(values, mask=mask, beam_center=(side / 2, side / 2), **about, **words)


@contextmanager
def sender(frames: xr.Dataset, folder: Path) -> Iterator[str]:
    """Another process that sends the frames; yields its address."""
    file = folder / "frames.h5"
    save_frames(frames, file)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    command = [Path(sys.executable).with_name("xrddiff"), "replay", file, address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def stream(frames: xr.Dataset, **words: object) -> dict[str, float]:
    """CPU and clock ms of a frame, from the first answers to the last, and the share of hits."""
    seen: list[tuple[int, float, float]] = []

    def tell(standing: StreamStanding) -> None:
        if not seen or standing.frames > seen[-1][0]:
            seen.append((standing.frames, time.process_time(), time.monotonic()))

    with tempfile.TemporaryDirectory() as folder, sender(frames, Path(folder)) as address:
        n = frames.sizes["frame"]
        opened = Stream(StreamPlan(address, count=n, memory=64 << 20, **words), Path(folder) / "out")
        opened(tell)
        table = read_answers(Path(folder) / "out")
    first = next(s for s in seen if s[0] > 0)
    last = seen[-1]
    done = last[0] - first[0]
    out = dict(cpu=1e3 * (last[1] - first[1]) / done, clock=1e3 * (last[2] - first[2]) / done)
    return out | dict(hits=float(table["hit"].mean()), lattices=float((table["lattices"] > 0).mean()))


def peakfinder8(python: str, frames: xr.Dataset, rounds: int = 5) -> float:
    """CPU ms of a frame."""
    with tempfile.TemporaryDirectory() as folder:
        once = peer(python, Path(folder), frames["intensity"].values[:8], frame_mask(frames), radius_map(frames), 0.0)
        taken = [once().cpu for _ in range(rounds)]
        once.stop()
    return 1e3 * min(taken) / 8


def repeated(frames: xr.Dataset, n: int) -> xr.Dataset:
    """The frames again and again, n in all."""
    return frames.isel(frame=np.arange(n) % frames.sizes["frame"])


def bare(frames: xr.Dataset) -> xr.Dataset:
    """Frames without the truth of the simulation."""
    gone = [v for v in frames.variables if {"peak", "frame"} & set(frames[v].dims) and v != "intensity"]
    return frames.drop_vars(gone)


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--onda", help="Python of an environment with ondamonitor")
    parser.add_argument("--run", help="a run for frames of sim128")
    parser.add_argument("--frames", type=int, default=400)
    args = parser.parse_args()
    small, middle = bare(simulate("sim128", range(64))), bare(simulate("sim-522", range(8)))
    cell = ",".join(map(str, small.attrs["unit_cell"]))
    cases = {
        "128², sim128: peaks": (repeated(small, args.frames), {}),
        "128², sim128: peaks, lattices": (repeated(small, args.frames), {"cell": cell}),
        "512², sim-522: peaks": (repeated(middle, args.frames // 2), {}),
        "2048², sixteen of sim-522: peaks": (repeated(large(middle, 4), args.frames // 10), {}),
        "512², sim-522: peaks, on two cores": (repeated(middle, args.frames), {"workers": "local:2"}),
        "2048², sixteen of sim-522: peaks, on two cores": (repeated(large(middle, 4), args.frames // 10), {"workers": "local:2"}),
    }  # fmt: skip
    if args.run:
        cases["128², sim128: peaks, score and latent of a run"] = (repeated(small, args.frames // 4), {"run": args.run})
    rows = []
    for name, (frames, words) in cases.items():
        took = [stream(frames, **words) for _ in range(args.rounds)]
        row = dict(what=name, frames=frames.sizes["frame"], cpu=min(t["cpu"] for t in took))
        row |= dict(
            cpu_median=median(t["cpu"] for t in took), clock=min(t["clock"] for t in took), hits=took[0]["hits"]
        )
        row |= dict(lattices=took[0]["lattices"], workers=words.get("workers"))
        if args.onda and not words:
            row["peakfinder8"] = peakfinder8(args.onda, frames)
        rows.append(row)
        print(row, flush=True)
    about = dict(day=str(date.today()), machine=platform.machine(), python=platform.python_version())
    about["command"] = f"python bench/streams.py --frames {args.frames} --rounds {args.rounds}"
    write_results("streams", page, dict(about=about, rows=rows))


def page(found: dict[str, Any]) -> list[str]:
    about, rows = found["about"], found["rows"]
    lines = ["# Streams of frames", ""]
    lines.append(
        f"`OMP_NUM_THREADS=1 {about['command']}`; {about['machine']}, Python {about['python']}, one thread, {about['day']}."
    )
    lines += [
        "",
        "Frames are taken from a socket (DECTRIS stream, bslz4), unpacked, answered and written into the table; ms of a frame, minimum (median). *CPU*: of the process that answers, with its thread that listens and its page. *peakfinder8*: CPU time of that function alone, frames in memory. "
        "*On two cores*: two workers answer, one process takes the frames and another sends them, all on the same two cores.",
    ]
    cells = []
    for r in rows:
        peer_ms = f"{r['peakfinder8']:.1f}" if "peakfinder8" in r else "–"
        cpu = (f"{r['cpu']:.1f} ({r['cpu_median']:.1f})", f"{1e3 / r['cpu']:.0f}") if not r["workers"] else ("–", "–")
        cells.append([r["what"], f"{r['hits']:.2f}", f"{r['lattices']:.2f}", cpu[0], f"{r['clock']:.1f}", cpu[1]])
        cells[-1] += [f"{1e3 / r['clock']:.0f}", peer_ms]
    head = ["frames", "hits", "with a lattice", "CPU", "clock", "frames per CPU second", "frames/s by the clock"]
    return [*lines, "", *markdown([*head, "peakfinder8 alone"], cells)]


if __name__ == "__main__":
    main()
