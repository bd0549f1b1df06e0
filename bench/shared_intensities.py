"""Posteriors of intensities that all crystals share: how many stills they need beside averages, and whether their intervals hold the truth.

    OMP_NUM_THREADS=1 python bench/shared_intensities.py [--seeds 5] [--frames 288] [--folder FOLDER]

Simulated stills of sim-422 and sim128 are indexed, refined together and integrated, as `xrddiff merge` does it, and merged by each of its methods. All are
compared to the |F|² that were simulated; the crystals that the frames say they have are not looked at. In FOLDER the tables of observations are kept, and
taken from there the next time. Writes bench/results/shared_intensities.json and shared_intensities.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from harness import HELP, machine, make_parser, markdown, same_terms, write_results
from merging import spread, true_intensities, true_scale

COUNTS = (24, 48, 96, 192, 288)
SETS = ("sim-422", "sim128")
METHODS = ("mean", "partial", "posterior")


def observations(name: str, seed: int, frames: int, folder: str | None):
    """The table of observations of simulated stills."""
    import pandas as pd

    from xrddiff.judge.inference.merges import MergePlan, gather_reflections
    from xrddiff.physics.simulation.simulate import simulate

    kept = Path(folder) / f"{name}_{seed}_{frames}.csv" if folder else None
    if kept is not None and kept.exists():
        return pd.read_csv(kept)
    table = gather_reflections(MergePlan(name), simulate(name, range(frames), seed=seed)).table
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(kept, index=False)
    return table


def measure(name: str, seed: int, frames: int, folder: str | None) -> list[dict]:
    """Rows of one seed: all methods at each number of frames."""
    import numpy as np
    import pandas as pd

    from xrddiff.physics.merging.merged import merge_reflections, shared_intensities

    (group, truth), every, rows = true_intensities(name), observations(name, seed, frames, folder), []
    for count in [n for n in COUNTS if n <= frames]:
        table = every[every["frame"] < count]
        mean, partial = (merge_reflections(table, method, seed=seed) for method in ("mean", "partial"))
        start = time.process_time()
        shared = shared_intensities(partial.seen, partial.scaling, group, seed=seed)
        seconds = time.process_time() - start
        known = shared.table.merge(truth.rename(columns={"f2": "true"}), on=list("hkl"))
        scaled = true_scale(*(known[n].to_numpy(float) for n in ("f2", "sigma_f2", "true", "d")))
        inside = (known["low"] <= scaled) & (scaled <= known["high"])
        quarter, seldom = pd.qcut(scaled, 4, labels=False), known["observations"] <= 2
        both = known
        for label, merged in (("mean", mean), ("partial", partial)):
            own = merged.table[["h", "k", "l", "intensity", "count"]]
            both = both.merge(own.rename(columns={"intensity": label, "count": f"n_{label}"}), on=list("hkl"))
        twice = both[both["n_partial"] >= 2]
        row = dict(
            name=name, seed=seed, count=count, crystals=len(partial.half), reflections=len(known), compared=len(both),
            cc={m: float(np.corrcoef(both["f2" if m == "posterior" else m], both["true"])[0, 1]) for m in METHODS},
            cc_twice={m: float(np.corrcoef(twice["f2" if m == "posterior" else m], twice["true"])[0, 1]) for m in METHODS},
            inside=float(inside.mean()), quarters=[float(inside[quarter == q].mean()) for q in range(4)],
            seldom=float(inside[seldom].mean()) if seldom.any() else None, seldom_count=int(seldom.sum()), seconds=seconds,
        )  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def page(found: dict) -> str:
    lines = ["# Shared intensities", "", f"`{found['command']}`; {found['where']}.", ""]
    lines += [
        f"Stills of sim-422 and sim128, {found['seeds']} seeds: medians, and ranges in brackets. CC with the true |F|² of all reflections that every method has, and of those among them "
        "that *partial* merged from two observations or more; the share of the truth in 90% intervals of the posterior, of all reflections, of quarters of the true intensity from the weakest to the strongest, "
        "and of those with one or two observations, up to scale and falloff; and what the posterior took beside *partial*.",
    ]
    head = ["frames", *(f"CC, {m}" for m in METHODS), *(f"twice, {m}" for m in METHODS)]
    head += ["in 90%", "by quarters", "seen ≤ 2 times", "s of CPU", "ms a frame"]
    for name in SETS:
        lines += ["", f"## {name}", ""]
        cells = []
        for count in COUNTS:
            own = [r for r in found["rows"] if r["name"] == name and r["count"] == count]
            if not own:
                continue
            seldom = [r["seldom"] for r in own if r["seldom"] is not None]
            quarters = ", ".join(f"{median(r['quarters'][q] for r in own):.2f}" for q in range(4))
            cells.append(
                [
                    str(count),
                    *(spread([r[key][m] for r in own], ".4f") for key in ("cc", "cc_twice") for m in METHODS),
                    spread([r["inside"] for r in own], ".3f"),
                    quarters,
                    spread(seldom, ".2f") if seldom else "–",
                    spread([r["seconds"] for r in own], ".1f"),
                    f"{1000 * median(r['seconds'] for r in own) / count:.0f}",
                ]
            )
        lines += markdown(head, cells)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=288)
    parser.add_argument("--folder", help=HELP["folder"])
    args = parser.parse_args()

    same_terms()
    rows = [row for seed in range(args.seeds) for name in SETS for row in measure(name, seed, args.frames, args.folder)]
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/shared_intensities.py --seeds {args.seeds} --frames {args.frames}",
        "where": machine("python", "one thread"), "seeds": args.seeds, "rows": rows,
    }  # fmt: skip
    write_results("shared_intensities", page, found)
    print(page(found))


if __name__ == "__main__":
    main()
