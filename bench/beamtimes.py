"""How many more frames: forecasts from the first tenth of made-up beamtimes, beside what came.

    OMP_NUM_THREADS=1 python bench/beamtimes.py [--beamtimes 100] [--calibrate]

Each beamtime is a table of reflections of some hundred or thousand stills; form, resolution, noise, partiality, scales, wrongly indexed crystals and hit rate differ. At a
place between 60% and 100% of its frames, everything that came until then is merged: CC1/2 and ⟨I/σ⟩ there are what is asked for, and the number of frames is
the truth; of completeness, something between 85% and 98.5% is asked for. The forecast sees the first tenth of so many frames. Then some beamtimes get a drift, of which some are too small to matter.
With --calibrate, other seeds are used and what the laws miss is printed, for `LONGER` and `DISCREPANCY` in nbs/physics/merging/forecast.ipynb.
Writes bench/results/beamtimes.json and beamtimes.md.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
from harness import machine, make_parser, markdown, same_terms, write_results

from xrddiff.physics.merging.forecast import TITLES

FIRST = 0.1
METHOD, ROUNDS = "partial", 6
OTHERS = 10_000  # seeds from here on are those of the calibration
COMPLETE = (0.85, 0.985)  # what is asked for; beyond, a handful of reflections decides


def now_of(beamtime, seed: int):
    """The measures of a beamtime, by the code that forecasts."""
    from xrddiff.physics.merging.forecast import forecast
    from xrddiff.physics.merging.merged import merge_reflections

    merged = merge_reflections(beamtime.table, METHOD, rounds=ROUNDS, seed=seed)
    return forecast(merged, beamtime.crystals, beamtime.cell, beamtime.group, d_min=beamtime.d_min, draws=2), merged


def complete_at(beamtime, merged, target: float) -> int:
    """After how many frames a completeness is reached."""
    from xrddiff.physics.merging.forecast import possible_reflections

    possible = possible_reflections(beamtime.cell, beamtime.group, beamtime.d_min)
    frame, kept = merged.seen.crystals[merged.seen.crystal, 0], merged.weight > 0
    at = possible.find(merged.seen.hkl)[merged.seen.which]
    first = np.full(len(possible.d), np.inf)
    np.minimum.at(first, at[kept & (at >= 0)], frame[kept & (at >= 0)])
    return int(np.sort(first)[max(int(np.ceil(target * len(first))) - 1, 0)]) + 1


def one(seed: int) -> list[dict]:
    """Rows of a beamtime: each measure, forecast and true."""
    from xrddiff.physics.merging.forecast import FEWEST_CRYSTALS, forecast, made_up_beamtime
    from xrddiff.physics.merging.merged import merge_reflections

    rng = np.random.default_rng([5, seed])
    whole = made_up_beamtime(seed, crystals=int(rng.integers(1000, 3000)))
    frames = int(len(whole.crystals) * rng.uniform(0.6, 1))
    then = whole.first(frames)
    reached, merged = now_of(then, seed)
    complete = float(rng.uniform(*COMPLETE))
    asked = {name: (reached[name].now, frames) for name in ("cc_half", "i_over_sigma")}
    if reached["completeness"].now > complete:
        asked["completeness"] = complete, complete_at(then, merged, complete)
    rows, found, seconds = [], {}, {}
    for name, (target, truth) in asked.items():
        early = then.first(int(FIRST * truth))
        if early.crystals.sum() < FEWEST_CRYSTALS:
            continue
        if truth not in found:
            began = time.process_time()
            own = merge_reflections(early.table, METHOD, rounds=ROUNDS, seed=seed)
            if len(own.seen.crystals) < FEWEST_CRYSTALS:  # some were left out
                continue
            found[truth] = forecast(own, early.crystals, early.cell, early.group, d_min=early.d_min, seed=seed)
            seconds[truth] = time.process_time() - began
        now = found[truth][name].now
        low, middle, high = found[truth][name].frames_to(target)
        row = dict(
            seed=seed,
            measure=name,
            form=str(whole.group.hm),
            crystals=int(early.crystals.sum()),
            target=target,
            now=now,
        )
        if now < target:
            rows.append(
                row
                | dict(
                    early=len(early.crystals), truth=truth, low=low, middle=middle, high=high, seconds=seconds[truth]
                )
            )
    return rows


def drifting(seed: int) -> dict:
    """A beamtime of numbers of frames, some with a drift: what was noticed."""
    from xrddiff.physics.merging.forecast import LEAST, find_drifts

    rng = np.random.default_rng([6, seed])
    n, rate = int(rng.integers(400, 3000)), rng.uniform(0.05, 0.6)
    kind = ("none", "cell", "distance", "hit rate")[seed % 4]
    at, slow = int(n * rng.uniform(0.2, 0.8)), bool(rng.random() < 0.5)
    size = {
        "cell": rng.choice([-1, 1]) * rng.uniform(2e-3, 8e-3),
        "distance": rng.choice([-1, 1]) * rng.uniform(1e-3, 5e-3),
        "hit rate": -rng.uniform(0.4, 0.8),
    }
    course = np.clip((np.arange(n) - at) / (0.2 * n), 0, 1) if slow else (np.arange(n) >= at).astype(float)

    def factor(what: str) -> np.ndarray:
        return 1 + size[what] * course if kind == what else np.ones(n)

    hits = rng.random(n) < rate * factor("hit rate")
    edges = {
        e: rng.uniform(30, 120) * (1 + rng.uniform(1e-3, 4e-3) * rng.standard_t(3, n)) * factor("cell") for e in "abc"
    }
    distance = 100 * (1 + rng.uniform(0.5e-3, 2e-3) * rng.standard_t(3, n)) * factor("distance")
    values = {name: np.where(hits, own, np.nan) for name, own in (edges | {"distance": distance}).items()}
    said = {d.what for d in find_drifts(values | {"hit rate": hits.astype(float)})}
    names = {"none": set(), "cell": set("abc"), "distance": {"distance"}, "hit rate": {"hit rate"}}[kind]
    return dict(
        kind=kind, crystals=int(hits.sum()), noticed=bool(said & names), wrong=sorted(said - names), least=LEAST
    )


def page(found: dict) -> str:
    lines = ["# How many more frames", "", f"`{found['command']}`; {found['where']}.", ""]
    lines += [
        f"{found['beamtimes']} made-up beamtimes of 600 to 3000 crystals, in {len({r['form'] for r in found['rows']})} space groups; forecasts from the first tenth of the frames, beside the frame at which the "
        "measure was reached. *Held*: how many 90% intervals have the truth in them. *Error*: of the median. Left out: tenths of fewer than 32 crystals, which nothing is said from, and those that had luck and reached it already.",
        "",
    ]
    cells = []
    for name, label in (*TITLES.items(), ("", "all")):
        own = [r for r in found["rows"] if name in ("", r["measure"])]
        held = sum(r["low"] <= r["truth"] <= r["high"] for r in own)
        errors = [abs(r["middle"] / r["truth"] - 1) for r in own]
        width = [np.log(r["high"] / r["low"]) for r in own if np.isfinite(r["high"])]
        bias = median(r["middle"] / r["truth"] for r in own)
        cells.append(
            [
                label,
                len(own),
                f"{held / len(own):.0%}",
                f"{median(errors):.1%}",
                f"{bias:.2f}",
                f"{np.exp(median(width)):.2f}",
                f"{median(r['crystals'] for r in own):.0f}",
            ]
        )
    lines += markdown(
        [
            "asked for",
            "beamtimes",
            "held",
            "median error",
            "median of forecast/truth",
            "high/low end",
            "crystals in the tenth",
        ],
        cells,
    )
    seconds = median(r["seconds"] for r in found["rows"])
    lines += ["", f"A forecast, with the merge before it, takes {seconds:.1f} s of CPU (median)."]
    lines += [
        "",
        "## Drifts",
        "",
        "Numbers of 400 to 3000 frames each: edges, distance, hit or not. A cell drifts by .2–.8%, a distance by .1–.5%, a hit rate falls by 40–80%, half of them at once, half over a fifth of the beamtime.",
        "",
    ]
    rows = []
    for kind in ("none", "cell", "distance", "hit rate"):
        own = [d for d in found["drifts"] if d["kind"] == kind]
        noticed = "–" if kind == "none" else f"{sum(d['noticed'] for d in own)} of {len(own)}"
        rows.append([kind, noticed, f"{sum(bool(d['wrong']) for d in own)} of {len(own)}"])
    return "\n".join(lines + markdown(["what drifts", "noticed", "something else said"], rows)) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--beamtimes", type=int, default=100)
    parser.add_argument("--calibrate", action="store_true")
    args = parser.parse_args()

    same_terms()
    rows = []
    for seed in range(args.beamtimes):
        rows += one(seed + (OTHERS if args.calibrate else 0))
        for r in rows[-3:] if seed % 20 == 0 else ():
            print(r, flush=True)
    if args.calibrate:
        for name in TITLES:
            own = [r for r in rows if r["measure"] == name]
            miss = np.log([r["middle"] / r["truth"] for r in own])
            ahead = np.log([r["truth"] / r["early"] for r in own])
            inside = np.mean([r["low"] <= r["truth"] <= r["high"] for r in own])
            print(
                f"{name}: {len(own)} beamtimes, ln(forecast/truth) {np.median(miss):+.3f} ± {1.4826 * np.median(abs(miss - np.median(miss))):.3f} (sd {miss[np.isfinite(miss)].std():.3f}), ln ahead {np.median(ahead):.2f}, held {inside:.2f}"
            )
        return
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/beamtimes.py --beamtimes {args.beamtimes}", "where": machine("python", "one thread"),
        "beamtimes": args.beamtimes, "rows": rows, "drifts": [drifting(seed) for seed in range(2 * args.beamtimes)],
    }  # fmt: skip
    write_results("beamtimes", page, found)
    print(page(found))


if __name__ == "__main__":
    main()
