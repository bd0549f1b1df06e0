"""A stream of frames through a socket: CPU time of a frame, beside that of peakfinder8 alone on the same frames.

    OMP_NUM_THREADS=1 python bench/streams.py [--onda PYTHON] [--run RUN] [--frames 400] [--minutes 10] [--files 5000]

Frames are sent by another process as a detector sends them (DECTRIS stream, bslz4). This one takes them, unpacks them, finds peaks, counts hits, and writes table and page; in one row it also looks for lattices, and with `--run`
scores them. The row *on two cores* has two workers answer, and frames per second are by the clock there, on a machine with nothing else to do. Times are CPU time of this process with all its threads, from the first answer to the last, so that the search for the level of chance at the start does not count. `--onda`: the Python of another environment with `ondamonitor==23.8.3`, whose
peakfinder8 gets the same frames from memory. *Decoding* is that of the same messages in memory, without anything else. Then the sender keeps to a rate: at 80% of what one process answers, latencies and memory over `--minutes`; at 150%, with `--drop`, what is
dropped. `--files`: a folder of so many files, each with a frame of 128². Writes bench/results/streams.json and streams.md.
"""

from __future__ import annotations

import os
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
import psutil
import xarray as xr
from harness import make_parser, markdown, write_results
from peakfinder import peer

from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import frame_mask, make_frames
from xrddiff.data.frames.peaks import radius_map
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.streaming.answers import read_answers
from xrddiff.run.streaming.detector_messages import compress, decompress, encoding_of
from xrddiff.run.streaming.live_page import StreamStanding
from xrddiff.run.streaming.stream import Stream, StreamPlan


def large(frames: xr.Dataset, times: int) -> xr.Dataset:
    """Frames of `times` × `times` copies of others, in photons: the work of a detector of so many more pixels."""
    values = np.tile(frames["intensity"].values, (1, times, times))
    side, about = values.shape[1], {k: frames.attrs[k] for k in ("wavelength", "distance", "pixel_size")}
    words = {"units": frames["intensity"].attrs["units"], "gain": frames["intensity"].attrs.get("gain")}
    mask = np.tile(frame_mask(frames), (times, times))
    return make_frames(values, mask=mask, beam_center=(side / 2, side / 2), **about, **words)


SENDER = """
import sys
import xrddiff as xd
from xrddiff.run.streaming.detector_messages import send_frames
file, address, rate, times = sys.argv[1:]
frames = xd.open_frames(file).load()
for k in range(int(times)):
    send_frames(frames, address, series=1 + k, encoding="bslz4", rate=float(rate) or None)
"""


@contextmanager
def sender(frames: xr.Dataset, folder: Path, rate: float | None = None, times: int = 1) -> Iterator[str]:
    """Another process that sends the frames so many times, at a rate if one is given; yields its address."""
    file = folder / "frames.h5"
    save_frames(frames, file)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, "-c", SENDER, file, address, str(rate or 0), str(times)]
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


def decoding(frames: xr.Dataset, rounds: int) -> float:
    """CPU ms of unpacking the message of a frame."""
    images = frames["intensity"].values[:8]
    how = encoding_of("bslz4", images.dtype)
    blobs, taken = [compress(image, how) for image in images], []
    for _ in range(rounds):
        before = time.process_time()
        for blob, image in zip(blobs, images, strict=True):
            decompress(blob, image.shape, str(image.dtype), how)
        taken.append(time.process_time() - before)
    return 1e3 * min(taken) / len(blobs)


def at_a_rate(frames: xr.Dataset, times: int, rate: float, **words: object) -> dict[str, Any]:
    """Latencies (s) of frames that are sent at a rate (1/s), the share that was dropped, and resident memory (MB) each minute."""
    memory, process = [], psutil.Process()
    began = time.monotonic()

    def tell(standing: StreamStanding) -> None:
        if (time.monotonic() - began) / 60 >= len(memory):
            memory.append(process.memory_info().rss / 1e6)

    with tempfile.TemporaryDirectory() as folder, sender(frames, Path(folder), rate, times) as address:
        plan = StreamPlan(address, count=times * frames.sizes["frame"], memory=64 << 20, **words)
        Stream(plan, Path(folder) / "out")(tell)
        table = read_answers(Path(folder) / "out")
    dropped = table["why"].str.startswith("it was dropped")
    answered = table[~dropped][len(table) // 20 :]  # the first ones wait for the search for the level of chance
    return dict(
        rate=rate, frames=len(table), dropped=float(dropped.mean()), memory=memory,
        seconds=[float(answered["seconds"].quantile(q)) for q in (0.5, 0.99)],
    )  # fmt: skip


def folder_of_files(frames: xr.Dataset, count: int) -> dict[str, Any]:
    """CPU ms of a frame of a folder, a file each, of the first and of the last fifth of `count`."""
    with tempfile.TemporaryDirectory() as place:
        shots = Path(place) / "shots"
        shots.mkdir()
        for i in range(count):
            file = shots / f"shot_{i:05d}.h5"
            save_frames(frames.isel(frame=[i % frames.sizes["frame"]]), file)
            os.utime(file, (0, 0))
        seen: list[tuple[int, float]] = []
        Stream(StreamPlan(str(shots), count=count), Path(place) / "out")(
            lambda standing: seen.append((standing.frames, time.process_time()))
        )
    n, t = np.array(seen).T
    marks = np.interp([count * f for f in (0.1, 0.3, 0.8, 1.0)], n, t)
    return dict(
        files=count, first=1e3 * (marks[1] - marks[0]) / (0.2 * count), last=1e3 * (marks[3] - marks[2]) / (0.2 * count)
    )


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
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--files", type=int, default=5000)
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
        row |= dict(lattices=took[0]["lattices"], workers=words.get("workers"), decoding=decoding(frames, args.rounds))
        if args.onda and not words:
            row["peakfinder8"] = peakfinder8(args.onda, frames)
        rows.append(row)
        print(row, flush=True)
    alone = 1e3 / next(row["clock"] for row in rows if row["what"] == "512², sim-522: peaks")
    some = repeated(middle, args.frames)
    steady = at_a_rate(some, max(round(0.8 * alone * 60 * args.minutes / args.frames), 1), 0.8 * alone)
    flood = at_a_rate(some, 4, 1.5 * alone, drop=True)
    files = folder_of_files(small, args.files)
    about = dict(day=str(date.today()), machine=platform.machine(), python=platform.python_version())
    about["command"] = (
        f"python bench/streams.py --frames {args.frames} --rounds {args.rounds} --minutes {args.minutes:g} --files {args.files}"
    )
    found = dict(about=about, rows=rows, steady=steady, flood=flood, files=files)
    write_results("streams", page, found)


def page(found: dict[str, Any]) -> list[str]:
    about, rows, steady, flood, files = (found[name] for name in ("about", "rows", "steady", "flood", "files"))
    lines = ["# Streams of frames", ""]
    lines.append(
        f"`OMP_NUM_THREADS=1 {about['command']}`; {about['machine']}, Python {about['python']}, one thread, {about['day']}."
    )
    lines += [
        "",
        "Frames are taken from a socket (DECTRIS stream, bslz4), unpacked, answered and written into the table; ms of a frame, minimum (median). *CPU*: of the process that answers, with its thread that listens and its page. *Decoding*: CPU of unpacking the same messages, and nothing else. *peakfinder8*: CPU time of that function alone, frames in memory. "
        "*On two cores*: two workers answer, one process takes the frames and another sends them, all on the same two cores. Clocks change with what else a machine does; CPU times change less.",
    ]
    cells = []
    for r in rows:
        peer_ms = f"{r['peakfinder8']:.1f}" if "peakfinder8" in r else "–"
        cpu = (f"{r['cpu']:.1f} ({r['cpu_median']:.1f})", f"{1e3 / r['cpu']:.0f}") if not r["workers"] else ("–", "–")
        cells.append(
            [r["what"], f"{r['hits']:.2f}", f"{r['lattices']:.2f}", cpu[0], f"{r['decoding']:.1f}", f"{r['clock']:.1f}"]
        )
        cells[-1] += [cpu[1], f"{1e3 / r['clock']:.0f}", peer_ms]
    head = [
        "frames",
        "hits",
        "with a lattice",
        "CPU",
        "decoding",
        "clock",
        "frames per CPU second",
        "frames/s by the clock",
    ]
    lines += ["", *markdown([*head, "peakfinder8 alone"], cells)]
    minutes = len(steady["memory"]) - 1
    return [
        *lines,
        "",
        f"**At a rate.** Frames of 512², {steady['rate']:.0f} a second, 80% of what one process answers: {steady['frames']} frames, from arrival to answer {steady['seconds'][0]:.2f} s (median) and {steady['seconds'][1]:.2f} s (99%). Memory grew by {steady['memory'][-1] - steady['memory'][min(1, minutes)]:.0f} MB from the first minute to the end of minute {minutes}.",
        f"At {flood['rate']:.0f} a second, 150%, with `--drop`: {flood['dropped']:.0%} dropped, the others answered after {flood['seconds'][0]:.2f} s (median) and {flood['seconds'][1]:.2f} s (99%), of which most is waiting in 64 MB of memory.",
        "",
        f"**A folder** of {files['files']} files with a frame of 128² each: {files['first']:.1f} ms of CPU a frame in the second and third tenth, {files['last']:.1f} ms in the last fifth.",
    ]


if __name__ == "__main__":
    main()
