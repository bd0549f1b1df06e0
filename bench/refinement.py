"""Detector, cell and crystals of a series, refined together: a simulated series with a known truth, and measured frames.

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/refinement.py [--out bench/results/refinement.md]

Simulated: eight stills on 2 × 2 panels whose header is wrong by 3 px, .5 % of the distance, .3° of tilt and half a pixel for each panel; five seeds, deviations from the truth in standard deviations as the refinement states them.
Measured: the thaumatin grid scan of dials-data (Pilatus 6M, stills) and its two CSPAD stills of thermolysin (through pycbf), from the folder XRDDIFF_DATA; without it these sections say so. The CSPAD still of lysozyme that the package ships.
"Alone" is each frame as it was indexed, with its own distance and cell; strong peaks are the stronger half of a frame's, by signal over noise.
Held out: a fifth of the peaks takes no part, and is compared with the nearest predicted spot, five times over; peaks that are on no lattice count too. Times are CPU time on one thread, finding the peaks not included.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from harness import RESULTS, machine, make_parser, markdown, measured_frames, same_terms, timed, write_results
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.geometry import PanelGeometry, geometry_of
from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks
from xrddiff.learn.loading.catalog import load
from xrddiff.physics.indexing.cells import Cell, orientation_error, read_cell
from xrddiff.physics.indexing.indexer import INDEXED, Indexing, index_frames
from xrddiff.physics.indexing.rays import as_panels, miller_sphere, predict_spots
from xrddiff.physics.indexing.series import detector_lines, index_series
from xrddiff.physics.indexing.series_refinement import SeriesRestraints, Start, predict_spread, refine_series
from xrddiff.physics.simulation.simulate import simulate

PX, SIDE, FAR = 172e-6, 500, 0.15
GIVEN, TRUE = Cell((79.1, 79.1, 37.9, 90, 90, 90)), Cell((79.3, 79.3, 38.0, 90, 90, 90))
THAUMATIN, THERMOLYSIN = "57.8,57.8,150.2,90,90,90", "92.9,92.9,130.5,90,90,120"
GOOD, SHARE, FOLDS = 0.7, 0.85, 5  # px, of the strong peaks, of the peaks that are held out


def header() -> PanelGeometry:
    edge = 1.01 * SIDE * PX
    corners = [[x * edge, y * edge, FAR] for y in (-1, 0) for x in (-1, 0)]
    return PanelGeometry(corners, [[PX, 0, 0]] * 4, [[0, PX, 0]] * 4, (4, SIDE, SIDE), 1.0)


def simulated(seed: int) -> list[str]:
    """A row of the table: one seed."""
    rng, flat, beam = np.random.default_rng(seed), header(), np.array([0, 0, FAR])
    way, about = rng.uniform(0, 2 * np.pi, 2)
    panels = rng.normal(0, 0.5 * PX, (4, 2))
    shift = np.array([3 * PX * np.cos(way), 3 * PX * np.sin(way), 0.005 * FAR * rng.choice([-1, 1])])
    tilt = np.radians(0.3) * np.array([np.cos(about), np.sin(about)])
    T = Rotation.from_rotvec([0, tilt[1], 0]).as_matrix() @ Rotation.from_rotvec([tilt[0], 0, 0]).as_matrix()
    moved = flat.origin + np.column_stack([panels, np.zeros(4)]) - beam
    true = replace(flat, origin=moved @ T.T + beam + shift, fs=flat.fs @ T.T, ss=flat.ss @ T.T)
    starts, tables = {}, {}
    for i in range(8):
        U = Rotation.random(random_state=100 * seed + i).as_matrix()
        spots = predict_spots(miller_sphere(TRUE, 1.7), TRUE.A @ U.T, true, 6e-4).sample(150, random_state=seed)
        spots[["fs", "ss"]] += rng.normal(0, 0.2, (150, 2))
        tables[i] = spots[["panel", "fs", "ss"]].reset_index(drop=True)
        tables[i].loc[:14, ["fs", "ss"]] = rng.uniform(0, SIDE, (15, 2))
        starts[i] = Start(Rotation.from_rotvec(rng.normal(0, 1e-3, 3)).as_matrix() @ U, GIVEN, np.zeros(3))
    known = SeriesRestraints(offset=0.05)
    found, spent = timed(lambda: refine_series(GIVEN, starts, tables, dict.fromkeys(starts, flat), known))
    common = shift + [*panels.mean(0), 0]
    off = [*(found.detector.shift - common) / found.sigma.shift, *(found.detector.tilt - tilt) / found.sigma.tilt]
    edges = (np.array(found.cell.parameters) - TRUE.parameters)[[0, 2]] / found.cell_sigma[[0, 2]]
    where = abs(found.geometry.origin - true.origin)[:, :2].max() / PX
    error = np.concatenate([frame.error for frame in found.frames.values()])
    return [
        seed, *(f"{v:+.1f}" for v in (*off, *edges)), f"{where:.2f}", f"{np.sqrt((error**2).mean()):.2f}",
        f"{spent.cpu / 8:.2f}",
    ]  # fmt: skip


def orientations(name: str) -> list[str]:
    """A row of the table: orientation errors of simulated stills, degrees, alone and together."""
    ds = simulate(name, range(40), seed=11)
    words = dict(peaks=find_frame_peaks(ds), controls=30)
    alone, found = (index(ds, ds.attrs["unit_cell"], **words) for index in (index_frames, index_series))
    own = [i for i in found.series.frames if alone.of(i)]
    cells = [name, len(own)]
    for of in (alone, found):
        off = []
        for i in own:
            true = ds["orientation"].values[i, : int(ds["crystals"][i])]
            off.append(float(orientation_error(of.of(i)[0].U, true, read_cell(ds.attrs["unit_cell"])).min()))
        cells += [f"{np.median(off):.3f}", f"{np.quantile(off, 0.9):.3f}"]
    said = found.series
    at = ds.attrs["distance"] + said.detector.shift[2]
    return [*cells, f"{1e3 * ds.attrs['distance']:.2f}", f"{1e3 * at:.2f} ± {1e3 * said.sigma.shift[2]:.2f}"]


def rms(values: np.ndarray) -> str:
    return f"{np.sqrt((values**2).mean()):.2f}" if len(values) else "–"


def held_out(indexing: Indexing, alone: Indexing, ds, restraints: SeriesRestraints, cell: Cell) -> pd.DataFrame:
    """`frame` and `off`, px from the nearest predicted spot, of strong peaks that took no part."""
    tables = {i: indexing.peaks[indexing.peaks["frame"] == i].reset_index(drop=True) for i in indexing.series.frames}
    starts = {i: Start(x.U, x.cell, alone.shift + x.shift) for i in tables for x in alone.of(i)[:1]}
    told, rows = {i: as_panels(geometry_of(ds, i)) for i in tables}, []
    for fold in range(FOLDS):
        out = {i: np.random.default_rng(i).integers(0, FOLDS, len(t)) == fold for i, t in tables.items()}
        found = refine_series(cell, starts, {i: t[~out[i]] for i, t in tables.items()}, told, restraints)
        for i, frame in found.frames.items():
            table = tables[i][out[i] & (tables[i]["snr"] >= tables[i]["snr"].median()).to_numpy()]
            d = 1 / np.linalg.norm(frame.hkl[frame.indexed] @ frame.cell.B.T, axis=1).max()
            spots = predict_spread(miller_sphere(found.cell, d), frame, told[i])
            places = [
                np.column_stack([t["fs"] + 1e5 * (t["panel"] if "panel" in t else 0), t["ss"]]) for t in (spots, table)
            ]
            rows.append(pd.DataFrame({"frame": i, "off": cKDTree(places[0]).query(places[1])[0]}))
    return pd.concat(rows)


def frame_rows(found: Indexing, alone: Indexing, outside: pd.DataFrame) -> list[list[str]]:
    """The rows of the table: each frame."""
    rows = []
    for i, table in found.peaks.groupby("frame"):
        strong = (table["snr"] >= table["snr"].median()).to_numpy()
        first = alone.of(i)[0] if alone.of(i) else None
        if i not in found.series.frames:
            p = f"no lattice (chance does as well with probability {first.p:.2f})" if first else "no lattice"
            rows.append([i, len(table), "–", "–", "–", "–", "–", "–", p])
            continue
        frame = found.series.frames[i]
        error, before = frame.error[strong[frame.indexed]], first.error[strong[first.indexed]]
        best = np.sort(error)[: int(np.ceil(SHARE * strong.sum()))]
        few = "" if len(best) >= SHARE * strong.sum() else f" (all {len(best)})"
        rows.append([
            i, len(table), f"{first.indexed.sum()} → {frame.indexed.sum()}", f"{len(error)} of {strong.sum()}",
            rms(before), rms(error), rms(best) + few, f"{(error < GOOD).mean():.0%}",
            f"{outside.loc[outside['frame'] == i, 'off'].median():.2f}",
        ])  # fmt: skip
    return rows


# from the tutorial graeme-winter/dials_tutorials, se-thaumatin, and from issue 386 of dials/dials
PUBLISHED = [
    ["thaumatin, rotation, DIALS, one crystal model for all images", "0.50, 0.70: together 0.86", "57.86 57.86 149.97"],
    ["the same, crystal varying from image to image", "0.32, 0.50: together 0.60", ""],
    ["thaumatin, three screening images, DIALS issue 386", "", "58.07 58.11 150.39"],
]

HEAD = [
    "frame", "peaks", "on the lattice, alone → together", "strong", "strong, rmsd alone, px", "together, px",
    f"best {SHARE:.0%} of all strong, px", f"strong within {GOOD} px", "strong, held out, median px",
]  # fmt: skip


def measured(title: str, ds, peaks: pd.DataFrame, cell: str) -> list[str]:
    """The section of one set."""
    words = dict(peaks=peaks, distance_range=0.03, controls=100)
    alone = index_frames(ds, cell, **words)
    found, spent = timed(lambda: index_series(ds, cell, **words))
    lines = [f"## {title}", ""]
    if found.series is None:
        return [*lines, found.note, ""]
    restraints = SeriesRestraints(distance=0.01)
    outside = held_out(found, alone, ds, restraints, read_cell(cell))
    lines += [f"- {line}" for line in detector_lines(found.series, geometry_of(ds))]
    cpu = f"- {spent.cpu / ds.sizes['frame']:.2f} s of CPU a frame: search of distance and orientations, chance level, refinement"
    hits = [x for x in found.table.index if alone.of(x) and alone.of(x)[0].p < INDEXED]
    lines += [cpu, f"- frames with a lattice: {len(hits)} of {len(found.table)}", ""]
    return [*lines, *markdown(HEAD, frame_rows(found, alone, outside), "r"), ""]


def thaumatin() -> list[str]:
    folder = measured_frames()
    files = sorted(folder.glob("thaumatin_grid_*.cbf*")) or sorted(folder.glob("thau_3_2_*.cbf*"))
    if not files:
        return ["## Thaumatin grid scan", "", "skipped: no thaumatin_grid_scan in the folder XRDDIFF_DATA", ""]
    ds = open_frames([str(f) for f in files])
    lines = measured(f"Thaumatin grid scan, {len(files)} stills", ds, find_frame_peaks(ds), THAUMATIN)
    said = "What DIALS publishes of other thaumatin crystals (of this set it publishes no residuals; its tests treat it as stills, as here):"
    return [*lines, said, "", *markdown(["data", "rmsd in x, y, px", "cell, Å"], PUBLISHED, "l"), ""]


def thermolysin() -> list[str]:
    files = sorted(measured_frames().glob("thermolysin_cspad_*.cbf"))
    title = f"Thermolysin on the CSPAD, {len(files) or 'two'} stills"
    if not files:
        return [f"## {title}", "", "skipped: no thermolysin_cspad in the folder XRDDIFF_DATA", ""]
    ds = open_frames([str(f) for f in files])
    return measured(title, ds, find_frame_peaks(ds, threshold=80, **PEAKFINDER8), THERMOLYSIN)


def main() -> None:
    parser = make_parser(__doc__, out=RESULTS / "refinement.md")
    args = parser.parse_args()
    same_terms()
    lines = [
        "# Refinement of a series", "",
        f"`OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/refinement.py`; {machine('python', 'torch', 'one thread')}.", "",
        "## Simulated, header wrong by 3 px, .5 %, .3°, half a pixel for each panel", "",
        "Deviations from the truth in stated standard deviations.", "",
    ]  # fmt: skip
    head = [
        "seed",
        "x",
        "y",
        "distance",
        "tilt x",
        "tilt y",
        "a",
        "c",
        "panels, largest px",
        "rmsd, px",
        "CPU s a frame",
    ]
    lines += [*markdown(head, [simulated(seed) for seed in range(5)], "r"), ""]
    lines += ["## Stills of the simulator, header right: orientation error in degrees", ""]
    head = ["set", "frames", "median, alone", "90%", "median, together", "90%", "distance, mm", "refined"]
    lines += [*markdown(head, [orientations(name) for name in ("sim-522", "sim128")], "l"), ""]
    lines += thaumatin() + thermolysin()
    ds = load("cspad-lysozyme")
    peaks = find_frame_peaks(ds, [0], threshold=80, **PEAKFINDER8)
    lines += measured("The CSPAD still of lysozyme", ds, peaks, "79.1,79.1,37.9,90,90,90")
    print(write_results(args.out, lines))


if __name__ == "__main__":
    main()
