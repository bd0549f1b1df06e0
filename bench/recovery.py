"""Does a twin predict what a peak finder finds of spots of known brightness, on a detector with artefacts that it was not told of?

    OMP_NUM_THREADS=1 python bench/recovery.py [--seeds 5] [--learnt 60] [--frames 200]

Each seed has a simulated detector of its own, with a shadow, a jet streak, steps between panels, and tails of the point spread. The twin learns from some of the shots, spread evenly; the truth
is counted in the others. Two programs: our finder, and peakfinder8's settings. With XRDDIFF_DATA, also the thaumatin series: recall by measured I/σ of exposures that the twin has not seen, and
of its frames. Writes bench/results/recovery.json and recovery.md.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import machine, make_parser, markdown, measured_frames, read_results, same_terms, write_results

from xrddiff.data.frames.frames import frame_mask, peaks_table
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.judge.inference.recoveries import (
    PROGRAMS,
    RecoveryPlan,
    known_frames,
    known_of_twin,
    measured_spots,
    on_measured,
)
from xrddiff.judge.metrics.recovery import by_bin, in_disc, match_found, with_snr
from xrddiff.learn.recipes.saved_peak_nets import peak_way
from xrddiff.physics.simulation.experiments import EXPERIMENTS, Artefacts
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.physics.twins.twin import learn_twin


def hidden(seed: int, learnt: int, frames: int) -> dict[str, dict[str, object]]:
    """For each program: the tables of the truth and of the twin, and their false peaks a frame."""
    experiment = replace(EXPERIMENTS["sim-522"], name="hidden", artefacts=Artefacts(key=seed))
    mine = np.unique(np.linspace(0, frames + learnt - 1, learnt).round().astype(int))
    others = np.setdiff1d(np.arange(frames + learnt), mine)
    crystal = experiment.sample.crystal
    exposures = simulate(experiment, mine.tolist(), seed=seed).load()
    twin = learn_twin(exposures, crystal.cell, group=crystal.space_group, distance_range=0.0)
    held = simulate(experiment, others.tolist(), seed=seed, expected=True).load()
    expected = held["expected"].values
    held = held.drop_vars("expected")
    true = in_disc(peaks_table(held), lambda f: expected[f], frame_mask(held, 0))
    made = known_of_twin(twin, frames, seed=1).load()
    told = with_snr(peaks_table(made), made)
    out = {}
    for program in PROGRAMS:
        way = peak_way(program)
        pair = (
            match_found(true, find_frame_peaks(held, make=way), frames),
            match_found(told, find_frame_peaks(made, make=way), frames),
        )
        out[program] = {"tables": [by_bin(r).to_dict("records") for r in pair], "false": [r.false_rate for r in pair]}
    return out


def row(tables: list[list[list[dict]]], k: int, name: str, form: str) -> list[str]:
    """Truth, prediction and their difference in bin `k`: means over the seeds ± spread."""
    true, told = (np.array([pair[i][k][name] for pair in tables], float) for i in (0, 1))
    apart = told - true
    return [
        f"{np.nanmean(true):{form}}",
        f"{np.nanmean(told):{form}}",
        f"{np.nanmean(apart):+{form}} ± {np.nanstd(apart):{form}}",
    ]


def section(program: str, seeds: list[dict]) -> list[str]:
    """The table of a program."""
    tables = [s[program]["tables"] for s in seeds]
    rows = []
    for k, first in enumerate(tables[0][0]):
        upper = "" if not np.isfinite(first["to"]) else f" to {first['to']:g}"
        spots = sum(pair[0][k]["spots"] for pair in tables)
        rows.append(
            [
                f"{first['from']:g}{upper}",
                str(spots),
                *row(tables, k, "recall", ".3f"),
                *row(tables, k, "off_px", ".3f"),
                *row(tables, k, "ratio", ".3f"),
            ]
        )
    false = [np.mean([s[program]["false"][i][0] for s in seeds]) for i in (0, 1)]
    columns = [
        "I/σ",
        "true spots",
        "recall, true",
        "predicted",
        "difference",
        "px off, true",
        "predicted",
        "difference",
        "photons, true",
        "predicted",
        "difference",
    ]
    return [
        f"## {program}",
        "",
        *markdown(columns, rows),
        "",
        f"False peaks a frame: {false[0]:.1f} in truth, {false[1]:.1f} predicted.",
        "",
    ]


def measured() -> dict[str, list[list[dict]]] | None:
    """For each program, recall by measured I/σ of thaumatin exposures and of their twin; None without them."""
    files = sorted(measured_frames().glob("thaumatin_grid_*.cbf*"))
    if not files:
        return None
    plan = RecoveryPlan([str(f) for f in files], "57.8,57.8,150.2,90,90,90", group="P 41 21 2", n=6)
    with tempfile.TemporaryDirectory() as folder:
        known = known_frames(plan, Path(folder))
        spots = measured_spots(known)
        return {p: [t.to_dict("records") for t in on_measured(p, known, spots)] for p in PROGRAMS}


def measured_section(found: dict[str, list[list[dict]]]) -> list[str]:
    """The tables of measured exposures."""
    out = [
        "## Measured exposures",
        "",
        "Thaumatin on a Pilatus 6M, learnt from six exposures. Recall by measured I/σ of the spots predicted in six other exposures, and of the spots of six frames of the twin.",
        "",
    ]
    for program, (real, made) in found.items():
        rows = []
        for a, b in zip(real, made, strict=True):
            upper = "" if not np.isfinite(a["to"]) else f" to {a['to']:g}"
            rows.append(
                [
                    f"{a['from']:g}{upper}",
                    f"{a['spots']}",
                    f"{a['recall']:.3f} ({a['low']:.3f} to {a['high']:.3f})",
                    f"{b['recall']:.3f} ({b['low']:.3f} to {b['high']:.3f})",
                ]
            )
        out += [f"### {program}", "", *markdown(["measured I/σ", "measured spots", "exposures", "twin"], rows), ""]
    return out


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learnt", type=int, default=60)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--part", choices=("measured",), help="only this one; the other stays as it was")
    args = parser.parse_args()
    same_terms()
    seeds = read_results("recovery", {}).get("hidden", []) if args.part else []
    for seed in range(len(seeds), args.seeds):
        seeds.append(hidden(seed, args.learnt, args.frames))
        print(*(line for p in PROGRAMS for line in section(p, seeds)), sep="\n", flush=True)
    real = measured()
    page = [
        "# Recovery, predicted and true",
        "",
        f"`OMP_NUM_THREADS=1 {'XRDDIFF_DATA=… ' if real else ''}python bench/recovery.py --seeds {args.seeds} --learnt {args.learnt} --frames {args.frames}`; {machine('one thread')}.",
        "",
        f"Simulated detectors (sim-522, 512²) with artefacts that no header tells of, another for each seed. A twin learns from {args.learnt} shots, and {args.frames} others have the truth. I/σ: of the expected photons in a disc of 2 px. Photons: of peaks over those of the spots, median. Differences: mean ± spread of {args.seeds} seeds.",
        "",
        *(line for program in PROGRAMS for line in section(program, seeds)),
        *(measured_section(real) if real else []),
    ]
    write_results("recovery", page, {"hidden": seeds, "measured": real})


if __name__ == "__main__":
    main()
