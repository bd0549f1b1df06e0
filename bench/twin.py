"""Is a twin as near to exposures that it has not seen as other exposures are?

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/twin.py [--seeds 5]

Measured: FOLDER has the thaumatin_grid_* frames of dials-data; without it this part stays as it was. The twin is learnt once from every
other exposure, and judged beside the others with as many seeds, each of which draws other frames, other windows and another classifier.

Simulated: 48 shots of `sim-522` for each seed; a twin of each half, beside the other half. Its shots differ by so much that two halves
do; with both in turn, each shot is learnt from once and held out once. `--part` takes one of the two.
Writes bench/results/twin.json and twin.md; of the measured part also twin_windows.png, twenty windows in random order, and twin_windows.md, the key.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from harness import (
    RESULTS,
    Spent,
    machine,
    make_parser,
    markdown,
    measured_frames,
    memory,
    same_terms,
    timed,
    write_results,
)

from xrddiff.data.frames.frames import above_pedestal, frame_count, frame_mask
from xrddiff.judge.inference.twins import (
    WAYS,
    TwinPlan,
    frames_found,
    halves,
    judge_twin,
    places_of_windows,
    twin_table,
    twin_words,
)
from xrddiff.judge.metrics.frame_statistics import FrameStatistics
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.judge.metrics.two_sample import CLASSIFIERS, GROUPS, auc, cross_fit
from xrddiff.judge.views.plots import SMALL, Picture, png
from xrddiff.physics.simulation.experiments import EXPERIMENTS
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.physics.twins.twin import KINDS, Twin, learn_twin, twin_frames

PLACE = ("beam_center", "distance", "pixel_size", "wavelength", "polarization")
CELL, GROUP = "57.8,57.8,150.2,90,90,90", "P 41 21 2"
SHOTS = 48


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± spread."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def cells(title: str, tables: list, columns: list[str]) -> list[str]:
    """A row: mean ± spread over the seeds of each column."""
    out = [title]
    for column in columns:
        values = [t[column][title] for t in tables if column in t and t[column].get(title) is not None]
        values = [v for v in values if np.isfinite(v)]
        if not values:
            out.append("–")
            continue
        form = ".2f" if max(map(abs, values)) < 10 else ".0f"
        apart = f" ± {np.std(values):{form}}" if np.std(values) > 0 else ""
        out.append(f"{np.mean(values):{form}}{apart}")
    return out


def measured(files: list, seeds: int) -> dict[str, Any]:
    """The thaumatin series."""
    plan, before = TwinPlan([str(f) for f in files], CELL, group=GROUP), memory()
    learnt, held = (half.load() for half in plan.halves(plan.open()))
    twin, spent = timed(lambda: plan.learn(learnt, None))
    _, drawn = timed(lambda: twin.frames(1)["intensity"].values)
    rows, judging = [], Spent(0, 0)
    for seed in range(seeds):
        judged, took = timed(lambda seed=seed: judge_twin(twin, held, seed=seed))
        table = twin_table(judged)
        rows.append(
            {"table": table.to_dict(), "rows": list(table.index), "best": judged.best, "words": twin_words(judged)}
        )
        judging = Spent(*(a + b for a, b in zip(judging, took, strict=True)))
        print(table.round(3).to_string(), *rows[-1]["words"], sep="\n", flush=True)
    key, used = windows_shown(twin, held), memory() - before
    whole = whole_exposures((twin, plan.learn(held, None)), (held, learnt))
    numbers = {"frames": len(files), "learnt": learnt.sizes["frame"], "held": held.sizes["frame"]}
    numbers |= {"learning": spent.cpu, "drawing": drawn.cpu, "judging": judging.cpu / seeds}
    numbers |= {"key": key, "whole": whole, "memory": used, "machine": machine("one thread")}
    return numbers | {"seeds": rows}


def whole_exposures(twins: tuple[Twin, Twin], others: tuple[xr.Dataset, xr.Dataset], n: int = 24) -> dict[str, Any]:
    """Classifiers of whole frames: `n` of a twin of each half beside the exposures of the other half, which it has not learnt from."""
    sets: dict[str, list[np.ndarray]] = {"measured": [], "twin": []}
    for k, (twin, other) in enumerate(zip(twins, others, strict=True)):
        made = twin.frames(n, seed=k)  # drawn one by one
        # each twin refines its detector; the other half is measured on the same one
        other = other.assign_attrs({name: made.attrs[name] for name in PLACE if name in made.attrs})
        ruler = Ruler(other)
        for name, frames in (("measured", other), ("twin", made)):
            sets[name].append(ruler.measure(frames).statistics)
    real, made = (np.concatenate(v) for v in sets.values())
    x, y = np.concatenate([real, made]), np.repeat([0, 1], [len(real), len(made)])
    groups, found = np.array([group for group, _ in FrameStatistics.names]), {}
    for name in (*GROUPS, *CLASSIFIERS):
        own, kinds = (x[:, groups == name], ("linear",)) if name in GROUPS else (x, (name,))
        found[name] = float(np.nanmean(cross_fit(own, y, np.arange(len(y)), kinds, repeats=8).aucs()))
    apart = [(float(auc(real[:, i], made[:, i])), ": ".join(FrameStatistics.names[i])) for i in np.flatnonzero(np.isfinite(x).all(0) & (real.std(0) > 0))]  # fmt: skip
    apart.sort(key=lambda row: -abs(row[0] - 0.5))
    return {"frames": n, "auc": found, "seen": apart[:8]}


def windows_shown(twin: Twin, held: xr.Dataset, seed: int = 0) -> dict[str, str]:
    """A picture of twenty windows, each from another place, half of held-out exposures and half of new frames; letter -> which it is."""
    kinds = [*["measured"] * 10, *["twin"] * 10]
    rng, sets = np.random.default_rng(seed), {"measured": held, "twin": twin_frames(twin, 10, seed=seed).load()}
    places, grid = places_of_windows(frame_mask(held, 0), 20, seed), Picture(9, 7.6)
    axes, key = grid.subplots(4, 5).ravel(), {}
    for ax, k, letter in zip(axes, rng.permutation(20), "ABCDEFGHIJKLMNOPQRST", strict=True):
        frames = sets[kinds[k]]
        number = int(k) % frame_count(frames)
        window, seen = above_pedestal(frames, number)[places[k]], frame_mask(frames, number)[places[k]]
        ax.imshow(np.where(seen, np.arcsinh(window), np.nan), vmin=0, vmax=5, cmap="inferno", interpolation="nearest")
        ax.set_title(letter, fontsize=SMALL)
        ax.set_axis_off()
        key[letter] = kinds[k]
    (RESULTS / "twin_windows.png").write_bytes(png(grid, dpi=90))
    measured = ", ".join(letter for letter, kind in key.items() if kind == "measured")
    write_results("twin_windows", ["# Which of the twenty windows are measured", "", f"{measured} of [the picture](twin_windows.png) are windows of exposures that the twin has not learnt from; the others are of its frames. `python bench/twin.py --part measured` draws them."])  # fmt: skip
    return key


def simulated(seeds: int) -> list[dict[str, Any]]:
    """For each seed: peaks, their brightness and lattices of shots, and of a twin of each half."""
    crystal, rows = EXPERIMENTS["sim-522"].sample.crystal, []
    for seed in range(seeds):
        still = simulate("sim-522", range(SHOTS), seed=100 + seed).load()
        found: dict[str, list] = {"shots": [frames_found(still, crystal.cell, 0.0)], "twins": []}
        for half in halves(SHOTS):
            twin = learn_twin(still.isel(frame=half), crystal.cell, group=crystal.space_group, distance_range=0.0)
            made = twin_frames(twin, 2 * len(half), seed=seed).load()
            found["twins"].append(
                frames_found(made, crystal.cell, 0.0, twin.by_chance) | {"crystals": made["crystals"].values.tolist()}
            )
        truth = still["crystals"].values.tolist()
        found["shots"][0]["crystals"] = truth
        row = {}
        for name, sets in found.items():
            peaks, kinds, crystals = (np.concatenate([s[key] for s in sets]) for key in ("peaks", "kinds", "crystals"))
            hit = crystals > 0
            row[name] = {
                "peaks a frame": float(peaks.mean()),
                "frames with a crystal that index": float((kinds == KINDS[1])[hit].mean()),
                "peaks on a lattice": float(np.mean([s["on a lattice"] for s in sets])),
                "frames without a crystal": float((crystals == 0).mean()),
            } | {k: float(np.mean([s[k] for s in sets])) for k in sets[0] if k.startswith("intensity")}
        rows.append(row)
        print(seed, row, flush=True)
    return rows


def page_of(record: dict[str, Any]) -> list[str]:
    """The page of both parts."""
    page = ["# A twin of a measured series, and of a simulated one", ""]
    page += ["`OMP_NUM_THREADS=1 XRDDIFF_DATA=… python bench/twin.py`", ""]
    if m := record.get("measured"):
        tables, columns = [s["table"] for s in m["seeds"]], ["learnt exposures", "held-out exposures", *WAYS.values()]
        page += ["## Measured", ""]
        page += [
            f"{m['frames']} exposures of thaumatin on a Pilatus 6M: learnt from {m['learnt']}, judged beside {m['held']}; {m['machine']}. Mean ± spread of {len(tables)} seeds. AUC: of a classifier that looks at windows of 128 px; in the column of held-out exposures, of these against the learnt ones. A distance is in floors, times that of the learnt exposures from the held-out ones. Spots in measured blanks are the simple way: the pixels between the spots are those of an exposure.",
            "",
        ]
        page += markdown(["", *columns], [cells(title, tables, columns) for title in m["seeds"][0]["rows"]])
        page += [
            "",
            f"Learning takes {m['learning']:.0f} s of CPU ({m['learnt']} frames), a new frame {m['drawing']:.1f} s, judging {m['judging']:.0f} s; {m['memory'] / 1e6:.0f} MB at most beyond what was there before, with all {m['frames']} frames in memory.",
            "",
        ]
        if whole := m.get("whole"):
            page += [
                f"Whole exposures: {whole['frames']} frames of a twin of each half beside the exposures of the other half, cross-fitted. AUC by group of statistics: {', '.join(f'{k} {v:.2f}' for k, v in whole['auc'].items())}. The single statistics that tell most: {', '.join(f'{name} {value:.2f}' for value, name in whole['seen'])}. So few exposures, of few crystals, do not say how much others would differ.",
                "",
            ]
        if "key" in m:
            page += ["Twenty windows, ten of exposures that it has not learnt from and ten of its frames, on one scale; [the key](twin_windows.md) is on another page:", "", "![Twenty windows](twin_windows.png)", ""]  # fmt: skip
    if rows := record.get("simulated"):
        page += ["## Simulated", ""]
        page += [
            f"{SHOTS} shots of `sim-522` (512²) for each of {len(rows)} seeds; a twin of each half, with as many frames as both halves have, beside all shots, of which each was learnt from once and held out once. Two halves differ more than twins and shots: crystals are of different sizes.",
            "",
        ]
        body = []
        for key in rows[0]["shots"]:
            digits = 0 if max(r["shots"][key] for r in rows) > 10 else 2
            ratio = [r["twins"][key] / r["shots"][key] if r["shots"][key] else np.nan for r in rows]
            shown = "–" if key == "frames without a crystal" else spread(ratio)
            body.append([key, *(spread([r[name][key] for r in rows], digits) for name in ("shots", "twins")), shown])
        page += markdown(["", "shots", "twins", "twins over shots"], body)
    return page


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=("measured", "simulated"), help="only this one; the other stays as it was")
    args = parser.parse_args()
    same_terms()
    former = RESULTS / "twin.json"
    record = json.loads(former.read_text()) if former.is_file() else {}
    record = record if isinstance(record, dict) else {}  # a record of before there were two parts
    files = sorted(measured_frames().glob("thaumatin_grid_*.cbf*"))
    if args.part != "measured":
        record["simulated"] = simulated(args.seeds)
    if args.part != "simulated":
        if files:
            record["measured"] = measured(files, args.seeds)
        else:
            print("measured part left as it was: XRDDIFF_DATA names no folder with thaumatin_grid_* frames")
    write_results("twin", page_of(record), record)


if __name__ == "__main__":
    main()
