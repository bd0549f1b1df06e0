"""The peak finder against peakfinder8 (ondamonitor, compiled C++) in both of its modes, on simulated frames of 512² to 4096², on the built-in CSPAD still and on measured frames.

    OMP_NUM_THREADS=1 python bench/peakfinder.py [--onda PYTHON] [--rounds 9] [--out bench/results/peakfinder.md]

`--onda`: the Python of another environment: python -m venv ONDA && ONDA/bin/pip install -r bench/requirements-peakfinder8.txt (GPL; nothing of it is used elsewhere). Without it only our own
times are printed. XRDDIFF_DATA: the folder with measured frames (`xrddiff data fetch thaumatin_grid_scan thermolysin_cspad`); without it they are left out.
Both get the same arrays, masks and radii, and the same settings (SNR 6, 2 to 30 pixels, ring of 4 pixels, threshold 80 ADU on the still): peakfinder8 as float32, which it needs, ours as they are recorded, and as float32, too. peakfinder8's fast mode takes the statistics of a radius from 100 of its pixels, as OM chooses them.
Rounds of all take turns; times are CPU time, minimum (median) per frame, on one thread. Peaks are matched one to one within 2 px.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pandas as pd
from harness import (
    Spent,
    interleaved,
    machine,
    make_parser,
    markdown,
    measured_frames,
    min_median,
    ratio,
    same_terms,
    write_results,
)

import xrddiff as xd
from xrddiff.data.frames.frames import frame_mask, make_frames, peaks_table
from xrddiff.data.frames.peak_matching import match_tables
from xrddiff.data.frames.peaks import PEAKFINDER8, PeakFinder, background_bins, radius_map
from xrddiff.physics.simulation.experiments import Experiment, find_experiment
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
sample = (0, None, None, 0)
if sys.argv[5] == "fast":
    ring, rng = np.rint(radius).astype(int).ravel(), np.random.default_rng(0)
    rings = np.split(np.argsort(ring, kind="stable"), np.cumsum(np.bincount(ring))[:-1])
    at = np.concatenate([r if len(r) < 100 else rng.choice(r, 100, replace=False) for r in rings])
    sample = (len(at), at.astype(np.int32), ring[at].astype(np.int32), 1)
for line in sys.stdin:
    start = time.process_time()
    found = [peakfinder_8(20000, f, mask, radius, *sample, width, height, 1, panels, threshold, 6.0, 2, 30, 4) for f in flat]
    seconds = time.process_time() - start
    rows = [[i, int(at) // (height * width), x + 0.5, y - height * (int(at) // (height * width)) + 0.5, v]
            for i, p in enumerate(found) for x, y, v, at in zip(p[0], p[1], p[2], p[3])]
    print(json.dumps([seconds, rows]), flush=True)
"""
SIZES = {512: 8, 1024: 4, 2048: 3, 4096: 2}  # frames of each


class Case(NamedTuple):
    """Frames with a mask and radii, how they are to be searched, and the true peaks of simulated ones."""

    frames: np.ndarray
    mask: np.ndarray
    radius: np.ndarray
    threshold: float = 0.0
    words: dict = {}
    truth: pd.DataFrame | None = None


def cspad() -> Case:
    """The built-in still: (1, panel, ss, fs)."""
    with h5py.File(files("xrddiff") / "data" / "samples/cspad_lysozyme_r0015.h5") as file:
        detector = file["entry_1/instrument_1/detector_1"]
        panels = {name: detector[f"panel_{name}"][:] for name in ("origin", "fs", "ss")}
        still = make_frames(file["entry_1/data_1/data"][:], units="ADU", panels=panels)
    return Case(still["intensity"].values, frame_mask(still), radius_map(still), 80.0, {"gain": 25.0, "noise": 8.0})


def sized(n: int) -> Experiment:
    """`sim-522` with n² of its pixels, as far away as has them see the same angles."""
    experiment = find_experiment("sim-522")
    k, d = n / 512, experiment.detector
    d = replace(d, shape=(n, n), distance=k * d.distance, beam_center=tuple(k * c for c in d.beam_center))
    return replace(experiment, detector=d, beam=replace(experiment.beam, fluence=k * experiment.beam.fluence))


def simulated(experiment: Experiment | str, shots: int) -> Case:
    ds = simulate(experiment, range(shots))
    return Case(ds["intensity"].values, frame_mask(ds), radius_map(ds), truth=peaks_table(ds))


def measured(pattern: str) -> Case | None:
    """All frames of XRDDIFF_DATA whose names match; negative pixels of photon counters are masked."""
    sets = [xd.open_frames(path) for path in sorted(measured_frames().glob(pattern))]
    if not sets:
        return None
    frames = np.concatenate([ds["intensity"].values for ds in sets])
    photons = sets[0]["intensity"].attrs["units"] == "photon"
    mask = (frames >= 0).all(0) if photons else np.ones(frames.shape[1:], bool)
    return Case(frames, mask, radius_map(sets[0]), words={"poisson_floor": photons})


def cases() -> Iterator[tuple[str, Case]]:
    """One after another, so that only one is in memory."""
    yield "CSPAD still, 64 × 185 × 194", cspad()
    yield "sim128, 128², 60 frames", simulated("sim128", 60)
    for n, shots in SIZES.items():
        yield f"sim-522, {n}², {shots} frames", simulated(sized(n), shots)
    for name, pattern in (
        ("thaumatin, Pilatus 6M", "thaumatin_grid_*.cbf.bz2"),
        ("thermolysin, CSPAD", "thermolysin_cspad_*.cbf"),
        ("thaumatin, Eiger 16M", "eiger16m_*.cbf.gz"),
    ):
        if case := measured(pattern):
            yield f"{name}, measured, {len(case.frames)} frames", case


def same(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """Of the peaks of a and of b, how many are matched."""
    matched = len(match_tables(a, b)[0])
    return f"{matched} of {len(a)} and {len(b)} ({2 * matched / max(len(a) + len(b), 1):.4f})"


def peer(python: str, folder: Path, case: Case, mode: str) -> Callable:
    """A function that runs one round of peakfinder8 in the other environment, and says its own seconds; its `peaks` are those of the last."""
    stack = case.radius if case.radius.ndim == 3 else case.radius[None]
    paths = [folder / f"{n}.npy" for n in ("frames", "mask", "radius")]
    for path, array in zip(paths, (case.frames, case.mask, stack), strict=True):
        np.save(path, array)
    process = subprocess.Popen(
        [python, "-c", PEER, *map(str, paths), str(case.threshold), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def once() -> Spent:
        process.stdin.write("go\n")
        process.stdin.flush()
        seconds, rows = json.loads(process.stdout.readline())
        table = pd.DataFrame(rows, columns=["frame", "panel", "fs", "ss", "intensity"])
        once.peaks = table if case.radius.ndim == 3 else table.drop(columns="panel")
        return Spent(seconds, math.nan)

    once.stop = process.stdin.close
    return once


def contestants(case: Case) -> dict[str, Callable]:
    """Our ways to search a case."""
    bins = background_bins(case.mask, case.radius)
    alike, small = PEAKFINDER8 | {"threshold": case.threshold}, case.frames.astype(np.float32)

    def ours(frames: np.ndarray, **words) -> Callable:
        return partial(PeakFinder(bins, case.mask, **words).columns_of, frames)

    return {
        "ours, exact": ours(case.frames, **alike, exact=True),
        "ours": ours(case.frames, **alike),
        "ours, float32": ours(small, **alike),
        "ours, default settings": ours(case.frames, **case.words),
        "ours, default settings, exact": ours(case.frames, **case.words, exact=True),
    }


def against_truth(name: str, truth: pd.DataFrame, lists: dict[str, pd.DataFrame]) -> list[str]:
    strong, real, out = truth[truth["intensity"] > 50], truth[truth["intensity"] > 10], []
    for way, found in lists.items():
        recall, precision = (len(match_tables(a, b)[0]) / max(len(a), 1) for a, b in ((strong, found), (found, real)))
        out.append(
            f"- {name}, {way}: {recall:.3f} of the true spots above 50 photons found, {precision:.3f} of what is found true"
        )
    return out


def main() -> None:
    parser = make_parser(__doc__, rounds=9, out=None)
    parser.add_argument("--onda", help="Python of an environment with ondamonitor")
    args = parser.parse_args()
    same_terms()
    times, equal, true = [], [], []
    ways = ["ours, exact", "ours", "ours, float32", "ours, default settings"]
    peers = ["peakfinder8, exact", "peakfinder8, fast"] if args.onda else []
    for name, case in cases():
        flat = case.radius is None  # peakfinder8 needs radii
        running = contestants(case)
        with tempfile.TemporaryDirectory() as folder:
            if args.onda and not flat:
                running |= {way: peer(args.onda, Path(folder), case, way.split()[-1]) for way in peers}
            lists = {way: pd.DataFrame(run()) for way, run in running.items() if way not in peers}  # warms up, too
            for way in peers if not flat else []:
                running[way]()
                lists[way] = running[way].peaks
            timed = {way: run for way, run in running.items() if way != "ours, default settings, exact"}
            spent = {way: t.cpu for way, t in interleaved(timed, args.rounds, warmup=0).items()}
            for way in peers if not flat else []:
                running[way].stop()
        cells = [min_median(spent[way], ".1f", 1e3 / len(case.frames)) if way in spent else "–" for way in ways + peers]
        both = ["ours", "ours, float32"] if peers else []
        rates = [ratio(spent[way], spent[peers[1]]) if peers[1] in spent else "–" for way in both]
        times.append([name, *cells, *rates])
        pairs = [("ours, exact", "ours"), ("ours, exact", "ours, float32")]
        pairs += [("ours, default settings, exact", "ours, default settings")]
        pairs += [(peers[0], peers[1]), (peers[0], "ours")] if peers and not flat else []
        equal.append([name, *(same(lists[a], lists[b]) for a, b in pairs), *["–"] * (2 * bool(peers and flat))])
        if case.truth is not None:
            true += against_truth(
                name,
                case.truth,
                {way: lists[way] for way in lists if way in ("ours", "ours, default settings", *peers)},
            )
        print(*times[-1], *equal[-1], sep=" | ", flush=True)

    rate = ["ours / fast", "float32 / fast"] if peers else []
    heads = ["frames", "exact, ours", "exact, ours as float32", "exact, ours: default settings"]
    heads += ["peakfinder8 exact, fast", "peakfinder8 exact, ours"] if peers else []
    lines = [
        "# Peak finder against peakfinder8",
        "",
        f"`OMP_NUM_THREADS=1 python bench/peakfinder.py --onda PYTHON --rounds {args.rounds}`; {machine('python')}, NumPy {np.__version__}, one thread, peakfinder8 of ondamonitor 23.8.3.",
        "CPU ms per frame, minimum (median); ratios: of the minima (median of the rounds' ratios). All have peakfinder8's settings, but for *default settings*. *exact*: every pixel is summed; *fast*: peakfinder8 with 100 pixels of each radius; *ours*: large frames by the histograms of their bins.",
        "",
        *markdown(["frames", *ways, *peers, *rate], times, "lr"),
        "",
        "The same peaks, matched one to one: how many, of how many of the first and of the second, and their share.",
        "",
        *markdown(heads, equal, "lr"),
        "",
        "Against the truth of the simulation:",
        "",
        *true,
    ]
    print(*lines, sep="\n")
    if args.out:
        write_results(args.out, lines)


if __name__ == "__main__":
    main()
