"""Does a peak network that is trained on a twin find more in measured frames than the classical finders?

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/peak_nets_measured.py [--seeds 5] [--steps 800] [--frames 24]

FOLDER has the thaumatin_grid_* frames of dials-data, and perhaps its CSPAD stills of thermolysin; without it nothing is measured. A twin is learnt from every other exposure of thaumatin, networks are trained on its
frames and on simulated ones, and all finders are tested on the other exposures, and on CSPAD stills of other crystals. Nothing was chosen by the tested frames: inputs, augmentations and steps were tried on the exposures
that the twin is learnt from. Writes bench/results/peak_nets_measured.md and .json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from harness import machine, make_parser, markdown, measured_frames, same_terms, timed, write_results
from scipy.spatial import cKDTree

import xrddiff as xd
from xrddiff.core.errors import XrddiffError
from xrddiff.data.frames.frames import frame_count, frame_image, frame_mask
from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks, make_finder, peaks_of_places
from xrddiff.judge.inference.twins import TwinPlan
from xrddiff.judge.metrics.reconstruction import average_precision, precision_recall
from xrddiff.learn.models.peak_net import make_network_finder
from xrddiff.learn.recipes.peak_nets import LEAST, simulated_peaks
from xrddiff.learn.recipes.saved_peak_nets import LOWEST, TrainedPeakNet, train_on_known, train_peak_net
from xrddiff.physics.indexing.integration import integrate_spots
from xrddiff.physics.indexing.series import index_series
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.physics.twins.indexed_exposures import IndexedExposures

THAUMATIN = "57.8,57.8,150.2,90,90,90", "P 41 21 2"
STILLS = {
    "CSPAD, lysozyme": ("79.1,79.1,37.9,90,90,90", "P 43 21 2"),
    "CSPAD, thermolysin": ("92.9,92.9,130.5,90,90,120", "P 61 2 2"),
}
RADIUS, DISC = 3.0, 3.0  # px: of a match, and of the disc that says whether a spot is there
FINDERS = {
    "classical": {},
    "classical, lower thresholds": {"snr": 2.0, "pixel_snr": 2.0, "min_pixels": 1},
    "peakfinder8's settings": PEAKFINDER8,
}
ADU = {
    "classical, lower thresholds": {"snr": 3.0, "pixel_snr": 4.0},
    "peakfinder8's settings": {"threshold": 80},
}  # where no gain is known
TWIN, SIMULATED = "network, twin", "network, simulated"


class Truth(NamedTuple):
    """Peaks that are there, and all places where the lattices have a spot."""

    peaks: pd.DataFrame
    places: pd.DataFrame
    frames: list[int]


def truth_of(ds: Any, cell: str, group: str, peaks: pd.DataFrame) -> Truth:
    """Predicted spots of the lattices that the indexer finds with `peaks`; those of at least 5σ are peaks."""
    e = IndexedExposures(ds, index_series(ds, cell, peaks=peaks, distance_range=0.03), group)
    gain = ds["intensity"].attrs.get("gain", 1.0 if ds["intensity"].attrs["units"] == "photon" else 0.0)
    rows = []
    for f in range(frame_count(ds)):
        own = [e.predicted(c) for c in e.crystals_in(f)]
        if not own:
            continue
        spots = pd.concat(own, ignore_index=True).assign(frame=f)
        image = frame_image(ds, f) - np.float32(ds.attrs.get("pedestal", 0.0))
        photons = integrate_spots(image, spots, frame_mask(ds, f), radius=DISC)["intensity"]
        panel = spots["panel"].to_numpy() if image.ndim == 3 else None
        sigma = peaks_of_places(make_finder(ds, f), image, spots["fs"], spots["ss"], panel)["sigma"]
        noise = np.sqrt(np.pi * DISC**2 * sigma**2 + gain * photons.clip(lower=0))
        rows.append(spots.assign(there=photons >= LEAST * noise))
    columns = ["frame", *(["panel"] if ds["intensity"].ndim == 4 else []), "fs", "ss"]
    if not rows:
        return Truth(pd.DataFrame(columns=columns), pd.DataFrame(columns=columns), [])
    every = pd.concat(rows, ignore_index=True)
    return Truth(every.loc[every["there"], columns], every[columns], sorted(map(int, every["frame"].unique())))


def pooled(found: dict[str, tuple[pd.DataFrame, str]]) -> pd.DataFrame:
    """The best peaks of all finders together, each place once: of each in every exposure as many as the classical finder has."""
    count = found["classical"][0]["frame"].value_counts()
    out: list[pd.DataFrame] = []
    for table, by in found.values():
        ranked = table.sort_values(by, ascending=False)
        out.append(ranked[ranked.groupby("frame").cumcount() < ranked["frame"].map(count).fillna(0)])
    every = pd.concat(out, ignore_index=True)[[c for c in out[0] if c in find_columns(out)]]
    scale = np.array([1.0, 1.0, 1e4, *([1e6] if "panel" in every else [])])
    points = every[["fs", "ss", "frame", *(["panel"] if "panel" in every else [])]].to_numpy(float) * scale
    first = np.ones(len(points), bool)
    for i, j in sorted(cKDTree(points).query_pairs(2.0)):
        first[j] &= not first[i]
    return every[first].sort_values("frame", kind="stable", ignore_index=True)


def find_columns(tables: list[pd.DataFrame]) -> set[str]:
    """The columns that all tables have."""
    return set.intersection(*(set(t) for t in tables))


def classical(ds: Any) -> tuple[dict[str, tuple[pd.DataFrame, str]], dict[str, float]]:
    """The peaks of the classical finders with the column that ranks them, and seconds a frame."""
    found, seconds = {}, {}
    in_adu = ds["intensity"].attrs["units"] == "ADU"
    for name, words in FINDERS.items():
        way = partial(find_frame_peaks, ds, **words | (ADU.get(name, {}) if in_adu else {}))
        table, spent = timed(way)
        found[name], seconds[name] = (table, "snr"), spent.cpu / frame_count(ds)
    return found, seconds


def by_network(trained: TrainedPeakNet, ds: Any) -> tuple[pd.DataFrame, float]:
    """Peaks of a network, also improbable ones, and seconds a frame."""
    table, spent = timed(lambda: find_frame_peaks(ds, make=make_network_finder(trained.net, threshold=2 * LOWEST)))
    return table, spent.cpu / frame_count(ds)


def score(truth: Truth, table: pd.DataFrame, by: str, frames: list[int] | None = None) -> dict[str, float]:
    """Average precision; precision and recall of as many peaks as are true."""
    frames = truth.frames if frames is None else frames
    peaks, places, found = (t[t["frame"].isin(frames)] for t in (truth.peaks, truth.places, table))
    curve = precision_recall(peaks, found, by, radius=RADIUS, ignore=places)
    high = np.maximum.accumulate(curve["precision"].to_numpy()[::-1])[::-1] if len(curve) else np.zeros(0)
    at = [
        float(high[np.searchsorted(curve["recall"], r)]) if curve["recall"].max() >= r else np.nan for r in (0.8, 0.9)
    ]
    return {"ap": average_precision(curve), "recall": float(curve["recall"].max()), "p80": at[0], "p90": at[1]}


class Test(NamedTuple):
    """Frames, with what the classical finders find there."""

    frames: Any
    cell: tuple[str, str]
    found: dict[str, tuple[pd.DataFrame, str]]
    seconds: dict[str, float]


def tests(held: Any) -> tuple[dict[str, Test], list[str]]:
    """The tests, and what could not be tested."""
    sets, missing = {"thaumatin, Pilatus 6M": (held, THAUMATIN)}, []
    sets["CSPAD, lysozyme"] = xd.load("cspad-lysozyme"), STILLS["CSPAD, lysozyme"]
    files = sorted(map(str, measured_frames().glob("thermolysin_cspad_*.cbf")))
    try:
        if not files:
            raise XrddiffError("there are no frames")
        sets["CSPAD, thermolysin"] = xd.open_frames(files).load(), STILLS["CSPAD, thermolysin"]
    except XrddiffError as error:
        missing.append(f"CSPAD, thermolysin: not tested here ({error})")
    out = {}
    for name, (ds, cell) in sets.items():
        out[name] = Test(ds, cell, *classical(ds))
        if name == "CSPAD, lysozyme":
            table = Path(__file__).parents[1] / "tests/peakfinder8_cspad.csv"
            own = pd.read_csv(table, comment="#").assign(frame=0)
            out[name].found["peakfinder8 itself"] = own, "snr"
    return out, missing


def interval(values: list[float]) -> str:
    """Mean ± half of the 95% interval of it, by Student's t."""
    from scipy.stats import t

    v = np.array(values, float)
    half = t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan
    return f"{v.mean():.3f} ± {half:.3f}" if len(v) > 1 and half >= 5e-4 else f"{v.mean():.3f}"


def networks(made: Callable[[], Any], seed: int, steps: int, folder: Path | None) -> dict[str, TrainedPeakNet]:
    """The networks of a seed; those that are in the folder are not trained again."""
    from xrddiff.learn.recipes.saved_peak_nets import open_peak_net, save_peak_net

    def simulated() -> TrainedPeakNet:
        return train_on_known(simulated_peaks(simulate("sim128", range(256), expected=True)), steps=steps, seed=seed)

    ways: dict[str, Callable[[], TrainedPeakNet]] = {
        TWIN: lambda: train_peak_net(made(), steps=steps, seed=seed),
        SIMULATED: simulated,
    }
    out = {}
    for name, way in ways.items():
        path = folder / f"{name.split()[-1]}-{steps}-{seed}.safetensors" if folder else None
        if path is not None and path.exists():
            out[name] = open_peak_net(path)
            continue
        out[name], spent = timed(way)
        print(
            f"{name}, seed {seed}: {spent.cpu:.0f} s, threshold {out[name].threshold:.2f}, {out[name].about}",
            flush=True,
        )
        if path is not None:
            save_peak_net(out[name], path)
    return out


def measured(args: Any) -> dict[str, Any]:
    """Everything, as numbers."""
    files = sorted(map(str, measured_frames().glob("thaumatin_grid_*.cbf*")))
    plan = TwinPlan(files, THAUMATIN[0], group=THAUMATIN[1])
    learnt, held = (half.load() for half in plan.halves(plan.open()))
    made = cache(lambda: plan.learn(learnt, None).frames(args.frames, seed=1).load())  # unless all networks are there
    done, missing = tests(held)
    print({title: test.seconds for title, test in done.items()}, missing, flush=True)
    nets = [networks(made, seed, args.steps, args.folder) for seed in range(args.seeds)]
    out: dict[str, Any] = {
        "missing": missing,
        "tests": {},
        "thresholds": [[n.threshold for n in e.values()] for e in nets],
    }
    for title, test in done.items():
        found = [{name: by_network(net, test.frames) for name, net in each.items()} for each in nets]
        first = {name: (table, "logit") for name, (table, _) in found[0].items()}
        pool = pooled(test.found | first)
        seconds = test.seconds | {name: float(np.mean([f[name][1] for f in found])) for name in found[0]}
        told = {"pooled": pool, "classical": test.found["classical"][0]}
        record: dict[str, Any] = {"seconds": seconds, "truths": {}}
        for which, peaks in told.items():
            truth = truth_of(test.frames, *test.cell, peaks)
            rows = {name: [score(truth, *own)] for name, own in test.found.items()} if truth.frames else {}
            for name in found[0] if truth.frames else ():
                rows[name] = [score(truth, f[name][0], "logit") for f in found]
            alone = {
                f: {name: score(truth, *own, [f])["ap"] for name, own in test.found.items()}
                | {
                    name: float(np.mean([score(truth, e[name][0], "logit", [f])["ap"] for e in found]))
                    for name in found[0]
                }
                for f in truth.frames
            }
            record["truths"][which] = {
                "peaks": len(truth.peaks), "places": len(truth.places), "frames": len(truth.frames), "rows": rows,
                "each": alone,
            }  # fmt: skip
            print(
                title, which, len(truth.peaks), {n: interval([r["ap"] for r in v]) for n, v in rows.items()}, flush=True
            )
        out["tests"][title] = record
    return out


def verdict(title: str, truth: dict[str, Any]) -> str:
    """Which finder wins, in words."""
    rows = {name: np.array([r["ap"] for r in own]) for name, own in truth["rows"].items()}
    best = max((n for n in rows if not n.startswith("network")), key=lambda n: rows[n].mean())
    said = []
    for name in (TWIN, SIMULATED):
        gain = rows[name] - rows[best].mean()
        half = float(interval(list(gain)).partition("± ")[2] or 0)
        sure = "wins" if gain.mean() > half else "loses" if gain.mean() < -half else "cannot be told from it"
        each = sum(e[name] > e[best] for e in truth["each"].values())
        said.append(f"the {name} {sure} ({gain.mean():+.3f} ± {half:.3f}; in {each} of {len(truth['each'])} exposures)")
    at = {c: [np.mean([r[c] for r in truth["rows"][n]]) for n in (TWIN, best)] for c in ("p80", "p90")}
    share = [f"{a:.3f} and {b:.3f} where {c[1]} of ten are found" for c, (a, b) in at.items() if a == a and b == b]
    precise = f" Precision of the {TWIN} and of *{best}*: {', '.join(share)}." if share else ""
    return f"- {title}: the best classical finder is *{best}*, AP {rows[best].mean():.3f}; against it {' and '.join(said)}.{precise}"


def page(data: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Peak networks on measured frames", "",
        f"`{data['command']}`; {machine('python', 'torch', 'one thread')}.", "",
        f"A twin is learnt from six of twelve exposures of thaumatin on a Pilatus 6M, and networks are trained for {data['steps']} steps on windows of {data['frames']} of its frames, as `xrddiff export FRAMES --format peaks` does, and on simulated frames (sim128, measured anew with other "
        f"exposures, widths and noise). {data['seeds']} seeds of training each. The other six exposures of thaumatin, and the CSPAD stills, were seen by none of them, and nothing was chosen by them.", "",
        "The truth is the lattice: every spot that is predicted for a crystal that the indexer finds. A predicted spot is a peak if the photons in a disc of "
        f"{DISC:g} px around the predicted place are {LEAST:g}σ above the background; a weaker one counts neither way. A found peak that is more than {RADIUS:g} px from any predicted spot is wrong, also if it is a spot of a crystal that was not indexed; so no finder reaches 1. "
        "No finder says what is a peak. But what is indexed decides: the table has lattices that are indexed with the pooled peaks of all finders (the best of "
        "each, in every exposure as many as the classical finder has), which favours none of them much; with the peaks of the classical finder alone, which favours that one, numbers are in the second table.", "",
        "AP: average precision, mean ± half of the 95% interval over seeds. R: recall of everything that a finder gives, networks down to a probability of "
        f"{2 * LOWEST:g}. P80, P90: precision where four of five, and nine of ten, peaks are found (– where a finder never gets there).", "",
    ]  # fmt: skip
    for which in ("pooled", "classical"):
        lines += [
            f"## Indexed with {'the pooled peaks' if which == 'pooled' else 'the peaks of the classical finder'}",
            "",
        ]
        for title, test in data["tests"].items():
            truth = test["truths"][which]
            if not truth["rows"]:
                lines += [f"{title}: no lattice is found.", ""]
                continue
            rows = []
            for name, own in truth["rows"].items():
                numbers = [
                    interval([r[c] for r in own]) if not np.isnan([r[c] for r in own]).any() else "–"
                    for c in ("ap", "recall", "p80", "p90")
                ]
                ms = test["seconds"].get(name)
                rows.append([name, *numbers, f"{1e3 * ms:.0f}" if ms is not None else "–"])
            lines += [
                f"**{title}**: {truth['peaks']} peaks of {truth['places']} predicted spots in {truth['frames']} exposures with a lattice.", "",
                *markdown(["finder", "AP", "R", "P80", "P90", "ms of CPU a frame"], rows), "",
            ]  # fmt: skip
    lines += ["## Who wins", ""]
    for which in ("pooled", "classical"):
        lines += [
            verdict(f"{title}, indexed with {which} peaks", t["truths"][which])
            for title, t in data["tests"].items()
            if t["truths"][which]["rows"]
        ]
    lines += [*(["", *data["missing"]] if data["missing"] else []), ""]
    lines += [
        "What this does not show: the intervals are of training alone, for the exposures that were tested; twelve exposures are of one crystal and one detector. peakfinder8 itself was run on the CSPAD still of lysozyme only, by `bench/peakfinder.py`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--frames", type=int, default=24, help="of the twin, to train on")
    parser.add_argument("--folder", type=Path, help="keep the networks here, and go on with those that are there")
    args = parser.parse_args()
    if not list(measured_frames().glob("thaumatin_grid_*.cbf*")):
        return print("skipped: XRDDIFF_DATA names no folder with thaumatin_grid_* frames")
    same_terms()
    command = f"OMP_NUM_THREADS=1 XRDDIFF_DATA=… python bench/peak_nets_measured.py --seeds {args.seeds} --steps {args.steps} --frames {args.frames}"
    data = {"command": command, "seeds": args.seeds, "steps": args.steps, "frames": args.frames} | measured(args)
    write_results("peak_nets_measured", page, data)
    print(page(data))


if __name__ == "__main__":
    main()
