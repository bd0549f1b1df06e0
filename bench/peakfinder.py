"""The peak finder against peakfinder8 (ondamonitor, compiled C++), on the built-in CSPAD still and on simulated frames.

    OMP_NUM_THREADS=1 python bench/peakfinder.py [--onda PYTHON] [--rounds 15] [--out bench/results/peakfinder.md]

`--onda`: the Python of another environment that holds `ondamonitor==23.8.3`, `h5py` and `numpy<2` (GPL; nothing of it is used elsewhere). Without it only our own
times are printed. Both get the same arrays, masks and radii, and the same settings (SNR 6, 2 to 30 pixels, ring of 4 pixels, threshold 80 ADU on the still). Rounds of the two alternate;
times are CPU time, minimum (median) per frame, on one thread. Agreement: peaks of the two lists matched one to one within 2 px.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pandas as pd
from harness import Spent, interleaved, machine, make_parser, markdown, min_median, ratio, same_terms, write_results

from xrddiff.data.frames.frames import frame_mask, make_frames, peaks_table
from xrddiff.data.frames.peak_matching import match_tables
from xrddiff.data.frames.peaks import PEAKFINDER8, PeakFinder, radial_bins, radius_map
from xrddiff.physics.simulation.simulate import simulate

# Reads one line per round, runs peakfinder8 over all frames of a case, answers with the time and the peaks: runs in the other environment.
PEER = """
import json, sys, time
import numpy as np
from om.algorithms._crystallography import peakfinder_8

frames, mask, radius, threshold = np.load(sys.argv[1]), np.load(sys.argv[2]), np.load(sys.argv[3]), float(sys.argv[4])
panels, height, width = radius.shape
flat = [np.ascontiguousarray(f.reshape(-1, width), np.float32) for f in frames]
mask = np.ascontiguousarray(mask.reshape(-1, width), np.int8)
radius = np.ascontiguousarray(radius.reshape(-1, width), np.float32)
for line in sys.stdin:
    start = time.process_time()
    found = [peakfinder_8(20000, f, mask, radius, 0, None, None, 0, width, height, 1, panels, threshold, 6.0, 2, 30, 4) for f in flat]
    seconds = time.process_time() - start
    rows = [[i, int(at) // (height * width), x + 0.5, y - height * (int(at) // (height * width)) + 0.5, v]
            for i, p in enumerate(found) for x, y, v, at in zip(p[0], p[1], p[2], p[3])]
    print(json.dumps([seconds, rows]), flush=True)
"""


def cspad() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The built-in still: frames (1, panel, ss, fs), mask, radii."""
    with h5py.File(files("xrddiff") / "data" / "samples/cspad_lysozyme_r0015.h5") as file:
        detector = file["entry_1/instrument_1/detector_1"]
        panels = {name: detector[f"panel_{name}"][:] for name in ("origin", "fs", "ss")}
        still = make_frames(file["entry_1/data_1/data"][:], units="ADU", panels=panels)
    return still["intensity"].values, frame_mask(still), radius_map(still)


def simulated(name: str, shots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """Frames, mask, radii and true peaks of simulated shots."""
    ds = simulate(name, range(shots))
    return ds["intensity"].values, frame_mask(ds), radius_map(ds), peaks_table(ds)


def ours(frames: np.ndarray, finder: PeakFinder) -> pd.DataFrame:
    return pd.DataFrame(finder.columns_of(frames))


def agreement(a: pd.DataFrame, b: pd.DataFrame) -> str:
    i, j = match_tables(a, b)
    d = np.hypot(*(a[c].to_numpy()[i] - b[c].to_numpy()[j] for c in ("fs", "ss")))
    ratio = np.median(b["intensity"].to_numpy()[j] / a["intensity"].to_numpy()[i])
    return f"{len(i) / len(a):.3f} of its {len(a)} found, {len(i) / len(b):.3f} of our {len(b)} among them; centroids {np.median(d):.3f} px apart (median), intensity ratio {ratio:.3f}"


def peer(
    python: str, folder: Path, frames: np.ndarray, mask: np.ndarray, radius: np.ndarray, threshold: float
) -> Callable:
    """A function that runs one round of peakfinder8 in the other environment, and says its own seconds; its `peaks` are those of the last."""
    stack = radius if radius.ndim == 3 else radius[None]
    paths = [folder / f"{n}.npy" for n in ("frames", "mask", "radius")]
    for path, array in zip(paths, (frames, mask, stack), strict=True):
        np.save(path, array)
    process = subprocess.Popen(
        [python, "-c", PEER, *map(str, paths), str(threshold)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def once() -> Spent:
        process.stdin.write("go\n")
        process.stdin.flush()
        seconds, rows = json.loads(process.stdout.readline())
        table = pd.DataFrame(rows, columns=["frame", "panel", "fs", "ss", "intensity"])
        once.peaks = table if radius.ndim == 3 else table.drop(columns="panel")
        return Spent(seconds, math.nan)

    once.stop = process.stdin.close
    return once


def main() -> None:
    parser = make_parser(__doc__, rounds=15, out=None)
    parser.add_argument("--onda", help="Python of an environment with ondamonitor")
    args = parser.parse_args()
    same_terms()

    cases = {"CSPAD still, 64 × 185 × 194": (*cspad(), None, 80.0)}
    for name, shots in (("sim-522", 8), ("sim128", 60)):
        frames, mask, radius, truth = simulated(name, shots)
        cases[f"{name}, {radius.shape[0]}², {shots} frames"] = (frames, mask, radius, truth, 0.0)

    times, agreements, true = [], [], []
    for name, (frames, mask, radius, truth, threshold) in cases.items():
        bins = radial_bins(radius, mask)
        sensitive = {} if truth is not None else {"gain": 25.0, "noise": 8.0}
        contestants: dict[str, Callable] = {
            "ours, its settings": partial(ours, frames, PeakFinder(bins, mask, **PEAKFINDER8, threshold=threshold)),
            "ours, default": partial(ours, frames, PeakFinder(bins, mask, **sensitive)),
        }
        with tempfile.TemporaryDirectory() as folder:
            if args.onda:
                contestants["peakfinder8"] = peer(args.onda, Path(folder), frames, mask, radius, threshold)
            lists = {c: run() for c, run in contestants.items()}  # warms up, too
            if args.onda:
                lists["peakfinder8"] = contestants["peakfinder8"].peaks
            spent = {c: t.cpu for c, t in interleaved(contestants, args.rounds, warmup=0).items()}
            if args.onda:
                contestants["peakfinder8"].stop()
        cell = {c: min_median(v, ".1f", 1e3 / len(frames)) for c, v in spent.items()}
        row = [name, cell["ours, its settings"], cell["ours, default"]]
        if args.onda:
            row += [cell["peakfinder8"], ratio(spent["ours, its settings"], spent["peakfinder8"])]
            agreements.append(f"- {name}: {agreement(lists['peakfinder8'], lists['ours, its settings'])}")
        times.append(row)
        if truth is not None:
            gain = 1.0
            strong = truth[truth["intensity"] > 50 * gain]
            for c in contestants:
                i, _ = match_tables(strong, lists[c])
                k, _ = match_tables(lists[c], truth[truth["intensity"] > 10 * gain])
                true.append(
                    f"- {name}, {c}: {len(i) / len(strong):.3f} of the true spots above 50 photons found, {len(k) / len(lists[c]):.3f} of what is found true"
                )

    head = ["frames", "ours, its settings", "ours, default"] + (["peakfinder8", "ratio"] if args.onda else [])
    lines = [
        "# Peak finder against peakfinder8",
        "",
        f"`python bench/peakfinder.py --onda PYTHON --rounds {args.rounds}`; {machine('python')}, NumPy {np.__version__}, one thread.",
        "CPU ms per frame, minimum (median); ratio: ours with its settings over peakfinder8, of the minima (median of the rounds' ratios).",
        "",
        *markdown(head, times, "l"),
        "",
        *(["Agreement with peakfinder8, same settings:", "", *agreements, ""] if agreements else []),
        "Against the truth of the simulation:",
        "",
        *true,
    ]
    print(*lines, sep="\n")
    if args.out:
        write_results(args.out, lines)


if __name__ == "__main__":
    main()
