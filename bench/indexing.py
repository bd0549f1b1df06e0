"""How well and how fast stills are indexed: rate by number of peaks, orientation error, second crystals, chance, frames per second.

    OMP_NUM_THREADS=1 python bench/indexing.py [--shots 300] [--out bench/results/indexing.md]

Simulated stills, peaks from the peak finder, the cell known; the truth comes from the simulation. Shuffled: the same peaks, each turned around the beam by a random angle.
A frame counts as indexed if chance does as well in fewer than one of a thousand. Times are CPU time on one thread, refinement and prediction of spots included, peak finding not.
The real still is the built-in CSPAD one, with the peaks of our finder at the settings of peakfinder8, the distance searched within 3 %.
"""

from __future__ import annotations

import numpy as np
from harness import RESULTS, machine, make_parser, markdown, same_terms, timed, write_results

from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks
from xrddiff.judge.metrics.physics import turned_peaks
from xrddiff.learn.loading.catalog import load
from xrddiff.physics.indexing.cells import orientation_error
from xrddiff.physics.indexing.indexer import INDEXED, Indexing, index_frames
from xrddiff.physics.simulation.simulate import simulate

BINS = [0, 6, 10, 15, 25, 50, 100, 1000]


def errors(found: Indexing, frames) -> np.ndarray:
    """Orientation error of each lattice that is not chance, degrees."""
    out = []
    for i, lattices in found.lattices.items():
        true = frames["orientation"].values[i, : int(frames["crystals"][i])]
        out += [float(orientation_error(x.U, true, x.cell).min()) for x in lattices if x.p < INDEXED and len(true)]
    return np.array(out)


def one(name: str, shots: int) -> list[str]:
    """The lines of a simulated experiment."""
    frames = simulate(name, range(shots), seed=7)
    peaks, cell = find_frame_peaks(frames), frames.attrs["unit_cell"]
    crystals = frames["crystals"].values
    index_frames(frames, cell, frames=range(2), peaks=peaks, controls=2)  # what is computed once
    found, spent = timed(lambda: index_frames(frames, cell, peaks=peaks, controls=100))
    rate = (shots + 100) / spent.cpu
    shuffled = index_frames(frames, cell, peaks=turned_peaks(frames, peaks), controls=100)
    error = errors(found, frames)
    table = found.table.assign(
        hit=found.table["lattices"] > 0, chance=shuffled.table["lattices"] > 0, crystals=crystals
    )
    lines = [f"## {name}, {shots} shots", "", f"- {rate:.0f} frames/s on one thread, controls counted as frames"]
    lines.append(f"- orientation error: median {np.median(error):.3f}°, 95 % below {np.quantile(error, 0.95):.3f}°")
    two = table[table["crystals"] == 2]
    lines.append(f"- of {len(two)} frames with two crystals, both are found in {(two['lattices'] == 2).mean():.0%}")
    blank = table[table["crystals"] == 0]
    lines += [f"- of {len(blank)} blank frames, {int(blank['hit'].sum())} are indexed", ""]
    cells = []
    hits = table[table["crystals"] > 0]
    for low, high in zip(BINS, BINS[1:], strict=False):
        rows = hits[(hits["peaks"] >= low) & (hits["peaks"] < high)]
        if len(rows):
            label = f"{low} to {high - 1}" if high < BINS[-1] else f"{low} and more"
            share = f"{rows.loc[rows['hit'], 'share'].median():.2f}" if rows["hit"].any() else "–"
            cells.append([label, len(rows), f"{rows['hit'].mean():.2f}", f"{rows['chance'].mean():.3f}", share])
    head = ["peaks", "frames", "indexed", "shuffled, indexed", "peaks on the lattice"]
    return [*lines, *markdown(head, cells, "l"), ""]


def real_still() -> list[str]:
    """The lines of the CSPAD still."""
    ds = load("cspad-lysozyme")
    peaks = find_frame_peaks(ds, [0], threshold=80, **PEAKFINDER8)
    rows = []
    for label, cell, reach in (
        ("known", ds.attrs["unit_cell"], 0.03),
        ("unknown, at the header's distance", None, 0.0),
    ):
        found = index_frames(ds, cell, peaks=peaks, distance_range=reach, controls=50)
        row, lattice = found.table.loc[0], found.of(0)[0]
        fit = f"{row['distance_mm']:.2f}", f"{row['rmsd_px']:.2f}"
        rows.append([label, f"{row['indexed']} of {row['peaks']}", lattice.cell, *fit])
    head = ["cell", "peaks indexed", "refined cell", "distance, mm", "rmsd, px"]
    return ["## The CSPAD still of lysozyme", "", *markdown(head, rows, "l"), ""]


def main() -> None:
    parser = make_parser(__doc__, out=RESULTS / "indexing.md")
    parser.add_argument("--shots", type=int, default=300)
    args = parser.parse_args()
    same_terms()
    head = [
        "# Indexing", "",
        f"`OMP_NUM_THREADS=1 python bench/indexing.py --shots {args.shots}`; {machine('python', 'torch', 'one thread')}.", "",
    ]  # fmt: skip
    lines = head + one("sim128", args.shots) + one("sim-522", args.shots // 4) + real_still()
    print(write_results(args.out, lines))


if __name__ == "__main__":
    main()
