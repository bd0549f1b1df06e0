"""From stills to intensities: how near merged intensities are to the true ones, and whether their errors are honest.

    OMP_NUM_THREADS=1 python bench/merging.py [--seeds 5] [--frames 288]

Simulated stills of sim-422 are indexed, refined together, integrated and merged, as `xrddiff merge` does it, and compared to the |F|² that were simulated; the
crystals that the frames say they have are not looked at. The unmerged file is merged by gemmi too. Indexing ambiguity is resolved for made-up stills.
With measured frames of thaumatin in the folder XRDDIFF_DATA, those are merged too.
Writes bench/results/merging.json and merging.md.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from harness import machine, make_parser, markdown, measured_frames, same_terms, write_results

COUNTS = (48, 96, 192, 288)
AMBIGUOUS = (
    ("P 63", (60, 60, 80, 90, 90, 120)),
    ("P 43", (60, 60, 80, 90, 90, 90)),
    ("P 3", (60, 60, 80, 90, 90, 120)),
)


def true_intensities(name: str):
    """The space group of a simulated crystal, and its |F|², `f2`, in the asymmetric unit."""
    import gemmi
    import pandas as pd

    from xrddiff.physics.merging.symmetry import asymmetric_unit
    from xrddiff.physics.simulation.crystal import reflections
    from xrddiff.physics.simulation.experiments import find_experiment

    crystal = find_experiment(name).sample.crystal
    group, every = gemmi.SpaceGroup(crystal.space_group), reflections(crystal, 2.0)
    hkl = asymmetric_unit(every.hkl, group).hkl
    return group, pd.DataFrame(hkl, columns=list("hkl")).assign(f2=every.f2).drop_duplicates(list("hkl"))


def by_gemmi(path: Path, half) -> float:
    """CC1/2 of gemmi's merge of the halves of an unmerged file."""
    import gemmi
    import numpy as np

    mtz = gemmi.read_mtz_file(str(path))
    column = {
        name: np.array(mtz.column_with_label(name))
        for name in ("BATCH", "I", "SIGICORR", "SCALEUSED", "FRACTIONCALC", "FLAG")
    }
    factor, sides = column["FRACTIONCALC"] / column["SCALEUSED"], []
    for side in (0, 1):
        at = (column["FLAG"] == 0) & (half[column["BATCH"].astype(int) - 1] == side)
        merged = gemmi.Intensities()
        value, sigma = (column[name][at] / factor[at] for name in ("I", "SIGICORR"))
        merged.set_data(mtz.cell, mtz.spacegroup, mtz.make_miller_array()[at], value, sigma)
        merged.prepare_for_merging(gemmi.DataType.Mean)
        merged.merge_in_place(gemmi.DataType.Mean)
        sides.append(merged)
    return sides[0].calculate_correlation(sides[1]).coefficient()


def true_scale(value, sigma, f2, d):
    """k exp(-B/2d²) F² (n,), on the scale and falloff of intensities (n,), which no measurement tells."""
    import numpy as np
    from scipy.optimize import least_squares

    def scaled(at):
        return np.exp(at[0] + at[1] / d**2) * f2

    start = [np.log(value.mean() / f2.mean()), 0.0]
    return scaled(least_squares(lambda at: (value - scaled(at)) / sigma, start, loss="soft_l1").x)


def pull_of(table) -> float:
    """The robust spread of (I - k exp(-B/2d²) F²)/σ: 1 if the sigmas are right."""
    import numpy as np

    value, sigma, f2, d = (table[n].to_numpy(float) for n in ("intensity", "sigma", "f2", "d"))
    found = (value - true_scale(value, sigma, f2, d)) / sigma
    return float(1.4826 * np.median(np.abs(found - np.median(found))))


def measure(seed: int, frames: int, truth) -> list[dict]:
    """Rows of one seed: each method at each number of frames."""
    import numpy as np

    from xrddiff.judge.inference.merges import MergePlan, gather_reflections
    from xrddiff.physics.merging.files import write_unmerged_mtz
    from xrddiff.physics.merging.merged import merge_reflections
    from xrddiff.physics.merging.statistics import half_set_agreement
    from xrddiff.physics.simulation.simulate import simulate

    start = time.process_time()
    gathered, rows = gather_reflections(MergePlan("sim-422"), simulate("sim-422", range(frames), seed=seed)), []
    spent = time.process_time() - start
    for count in [n for n in COUNTS if n <= frames]:
        for method in ("mean", "partial"):
            start = time.process_time()
            merged = merge_reflections(gathered.table[gathered.table["frame"] < count], method, seed=seed)
            seconds = time.process_time() - start
            known = merged.table[merged.table["count"] >= 2].merge(truth, on=list("hkl"))
            chi, agreement = merged.chi_squared(), half_set_agreement(merged.table)
            with tempfile.TemporaryDirectory() as folder:
                file = write_unmerged_mtz(merged, Path(folder) / "u.mtz", gathered.cell.parameters, gathered.group)
                theirs = by_gemmi(file, merged.half)
            rows.append(
                dict(
                    seed=seed, count=count, method=method, crystals=len(merged.half), reflections=len(known),
                    cc_true=float(np.corrcoef(known["intensity"], known["f2"])[0, 1]), cc_half=agreement["cc_half"],
                    r_split=agreement["r_split"], cc_gemmi=theirs, chi=[float(v) for v in chi], pull=pull_of(known),
                    seconds=seconds, before=spent / frames,
                )
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def ambiguity(seeds: int) -> dict[str, list[float]]:
    """Share of 300 stills that are indexed alike, for each group and seed."""
    from xrddiff.physics.merging.ambiguity import made_up_stills, resolve_ambiguity, same_way
    from xrddiff.physics.merging.symmetry import space_group, twin_laws

    found = {}
    for name, cell in AMBIGUOUS:
        group = space_group(name)
        laws = twin_laws(cell, group)
        for seed in range(seeds):
            table, truth = made_up_stills(cell, group, laws, 300, seed=seed)
            way = resolve_ambiguity(table, laws, group).way["way"].to_numpy()
            found.setdefault(f"{name}, {len(laws) + 1} ways", []).append(same_way(way, truth, len(laws) + 1))
    return found


def thaumatin() -> dict | str:
    """The frames of thaumatin, merged; or why not."""
    from xrddiff.data.formats.readers import open_frames
    from xrddiff.judge.inference.merges import MergePlan, merge_data

    files = sorted(measured_frames().glob("thaumatin_grid_*.cbf.bz2"))
    if not files:
        return "no thaumatin_grid_*.cbf.bz2 in XRDDIFF_DATA"
    found = {}
    for method in ("mean", "partial", "posterior"):
        plan = MergePlan("thaumatin", "57.8,57.8,150.2,90,90,90", "P 41 21 2", method, distance_range=0.03, draws=30)
        result = merge_data(plan, open_frames([str(f) for f in files]))
        found[method] = result.summary | {"notes": list(result.notes)}
    table = result.merged.posterior.table
    found["shared"] = {"reflections": len(table), "known": int((table["f2"] > 3 * table["sigma_f2"]).sum())}
    return found


def spread(values: list[float], form: str = ".3f") -> str:
    """The median, and the range if there are several."""
    text = f"{median(values):{form}}"
    return text if len(values) < 2 else f"{text} ({min(values):{form}}–{max(values):{form}})"


def page(found: dict) -> str:
    lines = ["# Merged intensities", "", f"`{found['command']}`; {found['where']}.", ""]
    lines += [
        f"Stills of sim-422, {found['seeds']} seeds: medians, and ranges in brackets. CC with the true |F|², of reflections measured twice or more; CC1/2 of random halves of the crystals, "
        "the same by gemmi from the unmerged file; χ² of observations in five bins of intensity, the lowest and the highest; "
        "spread of (I − true)/σ of merged intensities, up to scale and falloff, which is 1 if sigmas are right. ",
        "",
    ]
    cells = []
    for count in COUNTS:
        for method in ("mean", "partial"):
            own = [r for r in found["rows"] if r["count"] == count and r["method"] == method]
            if not own:
                continue
            column = {
                k: [r[k] for r in own]
                for k in ("crystals", "cc_true", "cc_half", "cc_gemmi", "r_split", "pull", "seconds")
            }
            chi = f"{min(min(r['chi']) for r in own):.2f}–{max(max(r['chi']) for r in own):.2f}"
            cells.append(
                [
                    f"{count}, {method}",
                    spread(column["crystals"], ".0f"),
                    *(spread(column[k]) for k in ("cc_true", "cc_half", "cc_gemmi", "r_split")),
                    chi,
                    spread(column["pull"], ".2f"),
                    spread(column["seconds"], ".1f"),
                ]
            )
    head = [
        "frames, method",
        "crystals",
        "CC with true |F|²",
        "CC1/2",
        "CC1/2, gemmi",
        "R_split",
        "χ²",
        "spread of pulls",
        "s of CPU to merge",
    ]
    lines += markdown(head, cells)
    before = median(r["before"] for r in found["rows"])
    lines += ["", f"Indexing, refinement and integration took {before:.2f} s of CPU for each frame."]
    lines += [
        "",
        "An unweighted mean of what is in discs, each frame scaled to it, which is what merging was before, had CC .950, .968, .980 and .984 with the true |F|² (seed 0).",
    ]
    lines += [
        "",
        "## Indexing ambiguity",
        "",
        "Made-up stills, 300 of each group, each indexed in a random way: the share that is indexed alike afterwards.",
        "",
    ]
    lines += markdown(["group", "indexed alike"], [[name, spread(v)] for name, v in found["ambiguity"].items()])
    lines += ["", "## Thaumatin", ""]
    if isinstance(found["thaumatin"], str):
        return "\n".join([*lines, f"Left out: {found['thaumatin']}."]) + "\n"
    names = (
        "crystals",
        "observations",
        "reflections",
        "d_min",
        "completeness",
        "multiplicity",
        "i_over_sigma",
        "cc_half",
        "r_split",
        "chi_squared_lowest",
        "chi_squared_highest",
    )
    lines += ["Twelve neighbouring exposures of a grid scan, on other places of a crystal each; P 41 21 2.", ""]
    rows = [
        [name.replace("_", " "), *(f"{found['thaumatin'][m][name]:.4g}" for m in ("mean", "partial"))] for name in names
    ]
    lines += markdown(["", "mean", "partial"], rows)
    shared = found["thaumatin"]["shared"]
    said = f"The posterior has {shared['reflections']} reflections, {shared['known']} of them to better than a third of their intensity."
    return "\n".join([*lines, "", said, "", *(f"- {note}" for note in found["thaumatin"]["partial"]["notes"])]) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=288)
    args = parser.parse_args()

    same_terms()
    _, truth = true_intensities("sim-422")
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/merging.py --seeds {args.seeds} --frames {args.frames}",
        "where": machine("python", "one thread"), "seeds": args.seeds,
        "rows": [row for seed in range(args.seeds) for row in measure(seed, args.frames, truth)],
        "ambiguity": ambiguity(args.seeds), "thaumatin": thaumatin(),
    }  # fmt: skip
    write_results("merging", page, found)
    print(page(found))


if __name__ == "__main__":
    main()
