"""What a frame, a step and a worker cost here, from which docs/scale.md computes what large experiments need.

    OMP_NUM_THREADS=1 python bench/scale.py [--rounds 3] [--only frames stream ranks workers] [--folder WORK]

frames: CPU time of decoding a frame of 512², 2048² and 4096² pixels (bslz4), of finding its peaks and of indexing it, and its bytes. stream: CPU time of a frame of the processes of `xrddiff stream` with its frames in one file: answered by one process, and with workers,
where the process that takes them is timed alone. ranks: three short trainings of one model on 1, 2 and 4 ranks (gloo, one thread each), compared by `xrddiff cluster scaling`. workers: samples by 1, 2 and 4 workers. With fewer cores than ranks the clock says what a crowded machine does; the CPU time of a frame says what the work costs.
Writes bench/results/scale.json and scale.md, and the figures of docs/scale.md (`python docs/scale_page.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import xarray as xr
from harness import (
    XRDDIFF,
    cpu_seconds,
    interleaved,
    machine,
    make_parser,
    markdown,
    min_median,
    read_results,
    same_terms,
    turns,
    write_results,
)
from peakfinder import sized
from streams import bare, repeated, stream
from workers import fill, make_run

from xrddiff.core.ranks.rates import serial_share
from xrddiff.core.ranks.scaling import read_speed
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.learn.training.checkpoints import trained_parameters
from xrddiff.physics.indexing.indexer import index_frames, make_indexer
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution.workers import Workers, open_workers
from xrddiff.run.streaming.answering import find_peaks_of
from xrddiff.run.streaming.detector_messages import compress, decompress, encoding_of

SIDES = {512: 8, 2048: 4, 4096: 3}  # different frames of each
RANKS = (1, 2, 4)


@cache
def frames_of(side: int) -> xr.Dataset:
    """Different frames of `side`² pixels: sim-522 with more pixels, as far away as has them see the same angles."""
    return simulate(sized(side), range(SIDES[side]))


def cpu_ms(call: Any, count: int, rounds: int) -> list[float]:
    """CPU ms of each of `count` things that a call does, of every round after the first."""
    return [1e3 * s / count for s in interleaved({"it": call}, rounds)["it"].cpu]


def of_frame(side: int, rounds: int) -> dict[str, Any]:
    """CPU ms of decoding a frame, finding its peaks and indexing it; its bytes as sent, and its peaks."""
    frames = frames_of(side)
    images = frames["intensity"].values.astype(np.uint16)  # as such detectors send them
    how, n = encoding_of("bslz4", images.dtype), len(images)
    blobs = [compress(image, how) for image in images]

    def decode() -> None:
        for blob, image in zip(blobs, images, strict=True):
            decompress(blob, image.shape, str(image.dtype), how)

    sent = bare(frames).assign(intensity=frames["intensity"].astype(np.uint16))
    table = find_frame_peaks(frames)
    indexer = make_indexer(frames, peaks=table)
    row = dict(pixels=side**2, bytes=float(np.mean([len(blob) for blob in blobs])), found=len(table) / n)
    row |= dict(decode=cpu_ms(decode, n, rounds), peaks=cpu_ms(lambda: find_peaks_of(sent, f"scale {side}"), n, rounds))
    row |= dict(index=cpu_ms(lambda: index_frames(frames, peaks=table, indexer=indexer), n, rounds))
    print(side, row, flush=True)
    return row


def of_streams(args: Namespace) -> dict[str, Any]:
    """CPU ms of a frame of the process that takes it: with the answer, and with workers that answer; and frames a second."""
    found = {}
    for side, count in {512: 256, 2048: 32, 4096: 16}.items():
        frames = repeated(bare(frames_of(side)), count)
        frames["intensity"] = frames["intensity"].astype(np.uint16)
        row: dict[str, Any] = {"answer": [], "clock": {}, "take": []}
        for workers in (None, *(RANKS if side == 512 else (2,))):
            took = [stream(frames, **({} if workers is None else {"workers": f"local:{workers}"})) for _ in range(args.rounds)]  # fmt: skip
            row["clock"][str(workers or 0)] = [t["clock"] for t in took]
            if workers in (None, 2):
                row["answer" if workers is None else "take"] = [t["cpu"] for t in took]
        found[str(side)] = row
        print(side, row, flush=True)
    return found


WORDS = "model=vae_kl size=tiny experiment_type=test data=sim128 data.limit=64 training.batch_size=8 training.max_steps=40 threads=1"


def of_ranks(args: Namespace, folder: Path) -> list[dict[str, Any]]:
    """What `xrddiff cluster scaling` says of runs that differ in their ranks, the fastest of each, and their CPU seconds."""
    runs: dict[int, list[tuple[float, float, Path]]] = {n: [] for n in RANKS}
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    for ranks in turns(RANKS, args.rounds):
        name = f"ranks-{ranks}-{len(runs[ranks])}"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--no-python"]  # fmt: skip
        before = cpu_seconds(own=False)
        subprocess.run([*launch, XRDDIFF, "run", *WORDS.split(), f"run_name={name}"], cwd=folder, env=env, check=True, stdout=sys.stderr)  # fmt: skip
        run = next(folder.glob(f"output/*/{name}"))
        runs[ranks].append((read_speed(run)[0]["frames_per_second"], cpu_seconds(own=False) - before, run))
    best = [max(runs[ranks]) for ranks in RANKS]
    said = subprocess.run([XRDDIFF, "scaling", *(run for _, _, run in best), "--json"], check=True, capture_output=True, text=True).stdout  # fmt: skip
    kept = ("ranks", "frames_per_second", "speed_up", "efficiency")
    rows = [{name: row[name] for name in kept} for row in json.loads(said)]
    for row in rows:
        own = runs[row["ranks"]]
        row |= {"cpu": min(cpu for _, cpu, _ in own), "all": sorted(rate for rate, _, _ in own)}
    print(rows, flush=True)
    return rows


def of_workers(args: Namespace, folder: Path) -> dict[str, list[float]]:
    """Frames of 128² a second by 1, 2 and 4 processes that draw samples, each round."""
    torch.manual_seed(0)
    it = Namespace(size="tiny", pixels=128, batch=4, steps=8)
    run, words, found = make_run(folder, it), ("inference.num_samples=32", "threads=1"), {}
    for count in RANKS:
        with open_workers(Workers(count), 1) as pool:
            fill(run, words, folder / f"warm-{count}", pool)
            found[str(count)] = [32 / fill(run, words, folder / f"{count}-{k}", pool) for k in range(args.rounds)]
        print(count, found[str(count)], flush=True)
    return found


def page(found: dict[str, Any]) -> list[str]:
    lines = ["# Scale", "", f"`OMP_NUM_THREADS=1 python bench/scale.py`; {found['machine']}. The constants of [docs/scale.md](../../docs/scale.md). Load average before each part, with the other work on the machine: {', '.join(f'{k} {v}' for k, v in found['loads'].items())}."]  # fmt: skip
    if frames := found.get("frames"):
        rows = [
            [f"{side}²", *(min_median(row[k]) if k in row else "–" for k in ("decode", "peaks", "index")), f"{row['bytes'] / 1e6:.2f}", f"{row['bytes'] / row['pixels']:.2f}", f"{row['found']:.0f}"]
            for side, row in frames.items()
        ]  # fmt: skip
        lines += ["", "## A frame", "", "CPU ms, minimum (median), one thread, uint16 as sent (bslz4). Frames of sim-522 with more pixels on the same angles, all with a crystal. Indexing takes as long as a frame has peaks, not pixels.", ""]  # fmt: skip
        lines += markdown(["frame", "decode", "peaks", "index", "MB sent", "bytes a pixel", "peaks found"], rows)
    if streams := found.get("stream"):
        rows = [
            [f"{side}²", min_median(row["answer"]), min_median(row["take"]), *(f"{1e3 / min(row['clock'][w]):.0f}" if w in row["clock"] else "–" for w in ("0", "1", "2", "4"))]
            for side, row in streams.items()
        ]  # fmt: skip
        lines += ["", "## A stream", "", "CPU ms of a frame: of one process that does everything, and of the process that takes frames for two workers. Then frames a second by the clock, sender and all on these cores: one process, and 1, 2 and 4 workers beside it.", ""]  # fmt: skip
        lines += markdown(["frame", "all in one", "taking", "one process", "1 worker", "2 workers", "4 workers"], rows)
    if ranks := found.get("ranks"):
        rows = [[r["ranks"], f"{r['frames_per_second']:.1f} ({median(r['all']):.1f})", f"{r['speed_up']:.2f}", f"{r['efficiency']:.0%}", f"{r['cpu']:.0f}"] for r in ranks]  # fmt: skip
        lines += ["", "## Ranks", "", f"`xrddiff cluster scaling` of the fastest run on each number of ranks, `{WORDS}`, on gloo; (median) of all rounds. CPU: least seconds of all processes, from start to report.", ""]  # fmt: skip
        lines += markdown(["ranks", "frames/s", "speed-up", "efficiency", "CPU s"], rows)
    if workers := found.get("workers"):
        one = max(workers["1"])
        rows = [[n, f"{max(v):.2f} ({median(v):.2f})", f"{max(v) / one:.2f}", f"{serial_share(int(n), max(v) / one):.2f}" if n != "1" else "–"] for n, v in workers.items()]  # fmt: skip
        lines += ["", "## Workers", "", "Samples of 128² by a tiny U-Net, 8 evaluations: frames a second, best (median), and the serial share of Karp and Flatt.", ""]  # fmt: skip
        lines += markdown(["workers", "frames/s", "speed-up", "serial share"], rows)
    return lines


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--only", nargs="+", choices=("frames", "stream", "ranks", "workers"), default=["frames", "stream", "ranks", "workers"])  # fmt: skip
    args = parser.parse_args()
    same_terms(keep_freed=True)
    found = read_results("scale", {})
    found["cores"] = os.cpu_count()
    found["machine"] = machine("cores", "python", "torch", "day")
    with tempfile.TemporaryDirectory() as place:
        ways = dict(frames=lambda: {str(side): of_frame(side, args.rounds) for side in SIDES}, stream=lambda: of_streams(args), ranks=lambda: of_ranks(args, Path(place)), workers=lambda: of_workers(args, Path(place)))  # fmt: skip
        for name in args.only:
            found.setdefault("loads", {})[name] = round(os.getloadavg()[0], 1)
            found[name] = ways[name]()
            if name == "ranks":
                found["parameters"] = trained_parameters(next(Path(place).glob("output/*/ranks-1-0")))
            write_results("scale", page, found)
    print(*page(found), sep="\n")


if __name__ == "__main__":
    main()
