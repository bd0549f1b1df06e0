"""Are frames with six to nine peaks indexed by the pixels of their other spots, and further crystals of a frame found one after the other?

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/sparse_frames.py [--stills 500] [--draws 100] [--crystals 150]

*Thinned*: each photon of a simulated still with one crystal is kept with the same probability, the largest one of a bisection for which the peak finder finds six (seven, eight, nine) peaks. *Turned*: each of these peaks is turned around the beam by a random angle, the pixels are as they are. *Blank*: frames without a crystal, with the six to nine strongest peaks of a finder that takes noise for peaks.
*Other cell*: the thinned stills, indexed with a cell that is not theirs. *Withheld*: of a measured frame, all peaks but six to nine are taken away, and the pixels within 5 px of them are masked. *Right*: within one degree of the truth, or of a lattice of all peaks; symmetry of the lattice allowed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from harness import machine, make_parser, markdown, measured_frames, read_results, same_terms, timed, write_results

from xrddiff.core.seeds import numpy_rng
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.frames import frame_mask
from xrddiff.data.frames.geometry import geometry_of
from xrddiff.data.frames.peaks import PEAKFINDER8, Finder, find_frame_peaks, make_finder, pixels_around
from xrddiff.learn.loading.catalog import load
from xrddiff.physics.indexing.cells import orientation_error
from xrddiff.physics.indexing.chance import shuffled
from xrddiff.physics.indexing.indexer import INDEXED, Indexer, index_frames, make_indexer
from xrddiff.physics.indexing.rays import as_panels, panel_numbers, scattering_vectors
from xrddiff.physics.indexing.series import index_series
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import simulate

COUNTS = (6, 7, 8, 9)
WAYS = {"peaks": False, "pixels": True}
OTHER_CELLS = {  # for stills of 36, 44, 52 Å
    "tetragonal, far": (79.1, 79.1, 37.9, 90, 90, 90),
    "cubic, far": (60, 60, 60, 90, 90, 90),
    "triclinic, edges 6 to 14% off": (34, 39.5, 45, 75, 83, 68),
    "monoclinic, edges 0 to 5% off": (52, 37, 46, 90, 104, 90),
    "one edge 5% off": (36, 46.2, 52, 90, 90, 90),
}
THAUMATIN = (57.8, 57.8, 150.2, 90, 90, 90)


def thinned(frame: xr.Dataset, count: int, finder: Finder, rng: np.random.Generator) -> xr.Dataset | None:
    """A frame of which so many peaks are left; None if no probability does that."""
    full, low, high = frame["intensity"].values.astype(np.int64), 0.0, 1.0
    for _ in range(12):
        kept = (low * high) ** 0.5 if low else high / 2
        frame = frame.assign(intensity=frame["intensity"].copy(data=rng.binomial(full, kept).astype(np.int32)))
        if (found := len(find_frame_peaks(frame, finder=finder))) == count:
            return frame
        low, high = (low, kept) if found > count else (kept, high)
    return None


def thinned_stills(name: str, stills: int) -> xr.Dataset:
    """So many thinned stills of an experiment, as many of each of `COUNTS`."""
    rng, out, first = numpy_rng("thinned stills", name), [], 0
    while len(out) < stills:
        frames = simulate(name, range(first, first + 100), seed=11).drop_dims("peak")
        finder, first = make_finder(frames), first + 100
        for i in np.flatnonzero(frames["crystals"] == 1):
            one = thinned(frames.isel(frame=[i]), COUNTS[len(out) % len(COUNTS)], finder, rng)
            out += [] if one is None else [one]
    return xr.concat(out[:stills], "frame", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override")  # fmt: skip


def turned(ds: xr.Dataset, peaks: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Each peak turned around the beam by a random angle at which there is a pixel."""
    geometry = as_panels(geometry_of(ds))
    s, rng = scattering_vectors(peaks, geometry), numpy_rng("turned peaks", seed)
    place = np.stack([panel_numbers(peaks), peaks["fs"], peaks["ss"]], axis=1)
    left = np.arange(len(peaks))
    for _ in range(50):
        found = np.stack(geometry.lab_to_panel(shuffled(s[left], rng) + [0, 0, 1 / geometry.wavelength]), axis=1)
        hit = found[:, 0] >= 0
        place[left[hit]] = found[hit]
        left = left[~hit]
    panel = {"panel": place[:, 0].astype(int)} if "panel" in peaks else {}
    return peaks.assign(fs=place[:, 1], ss=place[:, 2], **panel)


def outcomes(
    ds: xr.Dataset, peaks: pd.DataFrame, indexer: Indexer, true: list[np.ndarray], pixels: bool
) -> pd.DataFrame:
    """A row for each frame: `peaks`, `right` (orientations of `true` (n, 3, 3) that were found), `wrong` (lattices that are none of
    them), `found`, and `ms` of CPU.
    """
    found, spent = timed(lambda: index_frames(ds, peaks=peaks, indexer=indexer, pixels=pixels))
    rows = []
    for i, U in zip(found.table.index, true, strict=True):
        sure = [x for x in found.of(i) if x.p < INDEXED]
        off = np.array([[float(orientation_error(x.U, u, indexer.cell)) for x in sure] for u in U]).reshape(
            len(U), len(sure)
        )
        right, wrong = (off < 1).any(1).sum(), (~(off < 1).any(0)).sum()
        rows.append(
            {"peaks": int(found.table.loc[i, "peaks"]), "right": int(right), "wrong": int(wrong), "found": len(sure)}
        )
    return pd.DataFrame(rows).assign(ms=1e3 * spent.cpu / len(true))


def shares(table: pd.DataFrame) -> dict[str, Any]:
    """Of some frames: how many, and the shares with a right lattice, with a wrong one, and with any."""
    return {
        "frames": len(table), "right": float((table["right"] > 0).mean()), "wrong": float((table["wrong"] > 0).mean()),
        "any": float((table["found"] > 0).mean()), "ms": float(table["ms"].mean()),
    }  # fmt: skip


def learnt(name: str, **words: Any) -> Indexer:
    """The indexer of ordinary frames of an experiment."""
    frames = simulate(name, range(60), seed=3)
    return make_indexer(frames, words.pop("cell", frames.attrs["unit_cell"]), controls=200, **words)


def thinned_rows(name: str, stills: int) -> dict[str, Any]:
    """Thinned stills by their number of peaks, with controls; of sim128 also with other cells."""
    ds, out = thinned_stills(name, stills), {}
    peaks, indexer = find_frame_peaks(ds), learnt(name)
    true, none = [U[:1] for U in ds["orientation"].values], [np.zeros((0, 3, 3))] * stills
    for way, pixels in WAYS.items():
        table = outcomes(ds, peaks, indexer, true, pixels)
        control = pd.concat([outcomes(ds, turned(ds, peaks, seed), indexer, none, pixels) for seed in range(2)])
        out[way] = {str(n): shares(table[table["peaks"] == n]) for n in COUNTS} | {"all": shares(table)}
        out[way] |= {
            "turned": {str(n): shares(control[control["peaks"] == n]) for n in COUNTS} | {"all": shares(control)}
        }
    if name == "sim128":
        few = ds.isel(frame=slice(0, 150))
        for label, cell in OTHER_CELLS.items():
            other = learnt(name, cell=cell)
            own = peaks[peaks["frame"] < 150]
            for way, pixels in WAYS.items():
                out[way].setdefault("other", {})[label] = shares(outcomes(few, own, other, none[:150], pixels))
    return out


def blank_rows(name: str, frames: int) -> dict[str, Any]:
    """Frames without a crystal, with peaks of noise."""
    experiment = find_experiment(name)
    ds = simulate(replace(experiment, sample=replace(experiment.sample, hits=(1.0,))), range(frames), seed=13)
    peaks = find_frame_peaks(ds, snr=2.5, pixel_snr=2.0, min_pixels=1)
    ranked = peaks.sort_values(["frame", "snr"], ascending=[True, False], kind="stable")
    peaks = ranked[ranked.groupby("frame").cumcount() < 6 + ranked["frame"] % 4]
    indexer, none = learnt(name), [np.zeros((0, 3, 3))] * frames
    out = {way: outcomes(ds, peaks, indexer, none, pixels) for way, pixels in WAYS.items()}
    return {way: shares(table[table["peaks"] >= 6]) for way, table in out.items()}


def withheld(ds: xr.Dataset, frame: int, peaks: pd.DataFrame, kept: np.ndarray) -> tuple[xr.Dataset, pd.DataFrame]:
    """A frame with the peaks at `kept` alone, without the pixels of all others."""
    mask, others = frame_mask(ds, frame).copy(), np.delete(np.arange(len(peaks)), kept)
    (height, width), gone = mask.shape[-2:], peaks.iloc[others]
    place = gone["fs"].to_numpy(), gone["ss"].to_numpy(), panel_numbers(gone) * height * width
    at, _, _, _, near = pixels_around(*place, (height, width), 5.0)
    mask.reshape(-1)[at[near]] = False
    one = ds.isel(frame=[frame]).drop_vars("mask", errors="ignore")
    return one.assign(mask=(ds["intensity"].dims[1:], mask)), peaks.iloc[np.sort(kept)].assign(frame=0)


def draws(ds: xr.Dataset, frame: int, peaks: pd.DataFrame, among: np.ndarray, indexer: Indexer, true: np.ndarray, count: int) -> list[dict[str, Any]]:  # fmt: skip
    """Outcomes with six to nine peaks, drawn `count` times `among` rows, and of the same ones turned."""
    rng, rows, none = numpy_rng("withheld peaks", frame), [], np.zeros((0, 3, 3))
    for k in range(count):
        one, own = withheld(ds, frame, peaks, rng.choice(among, COUNTS[k % len(COUNTS)], replace=False))
        for kind, table, U in (("drawn", own, true), ("turned", turned(one, own, k), none)):
            for way, pixels in WAYS.items():
                rows += outcomes(one, table, indexer, [U], pixels).assign(kind=kind, way=way).to_dict("records")
    return rows


def drawn_shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`shares` of draws by kind and way."""
    return {kind: {way: shares(t) for way, t in own.groupby("way")} for kind, own in pd.DataFrame(rows).groupby("kind")}


def cspad_rows(count: int) -> dict[str, Any]:
    """The built-in still of lysozyme, six to nine of all its peaks."""
    ds = load("cspad-lysozyme")
    peaks = find_frame_peaks(ds, [0], threshold=80, **PEAKFINDER8)
    indexer = make_indexer(ds, ds.attrs["unit_cell"], peaks=peaks, distance_range=0.03, controls=200)
    all_peaks = index_frames(ds, peaks=peaks, indexer=indexer).of(0)[0]
    return drawn_shares(draws(ds, 0, peaks, np.arange(len(peaks)), indexer, all_peaks.U[None], count))


def thaumatin_rows(count: int) -> dict[str, Any] | None:
    """Twelve exposures of a grid, six to nine of the peaks of their first lattice, `count` in all; None without the frames."""
    paths = sorted(map(str, measured_frames().glob("thaumatin_grid_*.cbf*")))
    if not paths:
        return None
    ds = open_frames(paths)
    peaks = find_frame_peaks(ds)
    together = index_series(
        ds, THAUMATIN, peaks=peaks, distance_range=0.03, controls=20
    )  # the header's distance is 1.5% off
    indexer = make_indexer(ds, together.cell, peaks=peaks, controls=100, lattices=3)
    indexer.shift = together.shift
    rows, used, found = [], 0, index_frames(ds, peaks=peaks, indexer=indexer)
    for i in range(len(paths)):
        sure, own = [x for x in found.of(i) if x.p < INDEXED], peaks[peaks["frame"] == i]
        if not sure:
            continue
        one, used = ds.isel(frame=[i]).load(), used + 1
        among = np.flatnonzero(sure[0].indexed)
        rows += draws(
            one, 0, own.assign(frame=0), among, indexer, np.array([x.U for x in sure]), -(-count // len(paths))
        )
    return drawn_shares(rows) | {"frames": len(paths), "indexed": used}


def crystal_rows(name: str, frames: int) -> dict[str, Any]:
    """Frames with one, two and three crystals: how many have all of them found, and how many a lattice of none."""
    experiment, out = find_experiment(name), {}
    for crystals in (1, 2, 3):
        hits = tuple(float(n == crystals) for n in range(crystals + 1))
        count = 2 * frames if crystals == 1 else frames
        ds = simulate(
            replace(experiment, sample=replace(experiment.sample, hits=hits)), range(count), seed=20 + crystals
        )
        peaks, indexer = find_frame_peaks(ds), learnt(name, lattices=max(crystals, 2))
        for way, pixels in WAYS.items():
            table = outcomes(ds, peaks, indexer, list(ds["orientation"].values[:, :crystals]), pixels)
            mean = {"all": float((table["right"] == crystals).mean()), "right": float(table["right"].mean())}
            mean |= {"wrong": float((table["wrong"] > 0).mean()), "ms": float(table["ms"].mean()), "frames": count}
            out.setdefault(str(crystals), {})[way] = mean
    return out


def percent(value: float) -> str:
    """A share in per cent, with a decimal where it is small."""
    return f"{100 * value:.1f}%" if value < 0.05 else f"{100 * value:.0f}%"


def page(found: dict[str, Any]) -> str:
    """The results as a page."""
    about = " ".join((__doc__ or "").split("\n\n")[-1].split())
    lines = ["# Frames with few peaks, and several crystals", "", f"`{found['command']}`; {machine('python', 'one thread')}.", "", about, ""]  # fmt: skip
    for name, own in found["thinned"].items():
        rows = []
        for n in (*map(str, COUNTS), "all"):
            a, b = own["peaks"], own["pixels"]
            cells = [
                n,
                a[n]["frames"],
                percent(a[n]["right"]),
                percent(b[n]["right"]),
                percent(a[n]["wrong"]),
                percent(b[n]["wrong"]),
            ]
            rows.append([*cells, percent(a["turned"][n]["any"]), percent(b["turned"][n]["any"])])
        head = ["peaks", "frames", "right, peaks alone", "right, with pixels", "wrong, peaks alone", "wrong, with pixels", "turned, peaks alone", "turned, with pixels"]  # fmt: skip
        ms = own["peaks"]["all"]["ms"], own["pixels"]["all"]["ms"]
        lines += [f"## Thinned stills of {name}", "", *markdown(head, rows), ""]
        lines += [
            f"{ms[0]:.0f} ms a frame with peaks alone, {ms[1]:.0f} ms with pixels. Each still was turned twice.",
            "",
        ]
    other = found["thinned"]["sim128"]
    rows = [[label, percent(other["peaks"]["other"][label]["any"]), percent(other["pixels"]["other"][label]["any"])] for label in OTHER_CELLS]  # fmt: skip
    rows += [[f"blank frames of {k}, {v['pixels']['frames']}", percent(v["peaks"]["any"]), percent(v["pixels"]["any"])] for k, v in found["blank"].items()]  # fmt: skip
    lines += [
        "## What should not be indexed",
        "",
        "150 thinned stills of sim128 with other cells, and blank frames.",
        "",
    ]
    lines += [*markdown(["cell", "indexed, peaks alone", "indexed, with pixels"], rows), ""]
    rows = []
    for label, own in (("CSPAD, lysozyme", found["cspad"]), ("Pilatus 6M, thaumatin", found["thaumatin"])):
        for kind in ("drawn", "turned") if own else ():
            a, b = own[kind]["peaks"], own[kind]["pixels"]
            rows.append([label, kind, a["frames"], percent(a["right"]), percent(b["right"]), percent(a["wrong"]), percent(b["wrong"]), f"{b['ms']:.0f}"])  # fmt: skip
    head = ["frame", "peaks", "draws", "right, peaks alone", "right, with pixels", "wrong, peaks alone", "wrong, with pixels", "ms, with pixels"]  # fmt: skip
    lines += ["## Measured frames with peaks withheld", "", *markdown(head, rows, "llr"), ""]
    lines += ["Of the CSPAD still any peaks are drawn (one in eight is on no lattice), of the exposures of thaumatin those of the first lattice.", ""]  # fmt: skip
    rows = []
    for name, own in found["crystals"].items():
        for n, each in own.items():
            a, b = each["peaks"], each["pixels"]
            rows.append([name, n, a["frames"], percent(a["all"]), percent(b["all"]), f"{a['right']:.2f}", f"{b['right']:.2f}", percent(a["wrong"]), percent(b["wrong"]), f"{a['ms']:.0f}", f"{b['ms']:.0f}"])  # fmt: skip
    head = ["experiment", "crystals", "frames", "all found, peaks alone", "all found, with pixels", "found a frame, peaks alone", "found a frame, with pixels", "a wrong one, peaks alone", "a wrong one, with pixels", "ms, peaks alone", "ms, with pixels"]  # fmt: skip
    lines += ["## Several crystals", "", *markdown(head, rows, "lr"), ""]
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--stills", type=int, default=500)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--crystals", type=int, default=150)
    parser.add_argument(
        "--only", nargs="*", choices=["thinned", "blank", "cspad", "thaumatin", "crystals"], help="measure these again"
    )
    args = parser.parse_args()
    same_terms()
    some = args.stills * 7 // 10
    words = f"--stills {args.stills} --draws {args.draws} --crystals {args.crystals}"
    parts = {
        "thinned": lambda: {
            "sim128": thinned_rows("sim128", some),
            "sim-522": thinned_rows("sim-522", args.stills - some),
        },
        "blank": lambda: {"sim128": blank_rows("sim128", args.stills)},
        "cspad": lambda: cspad_rows(args.draws),
        "thaumatin": lambda: thaumatin_rows(args.draws),
        "crystals": lambda: {"sim128": crystal_rows("sim128", args.crystals)},
    }
    found: dict[str, Any] = read_results("sparse_frames", {}) if args.only else {}
    found["command"] = f"OMP_NUM_THREADS=1 python bench/sparse_frames.py {words}"
    found |= {name: parts[name]() for name in args.only or parts}
    print(write_results("sparse_frames", page, found))


if __name__ == "__main__":
    main()
