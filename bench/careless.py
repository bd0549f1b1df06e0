"""Intensities that all crystals share, beside careless: the same unmerged file of simulated stills, merged by `xrddiff merge` and by careless.

    OMP_NUM_THREADS=1 python bench/careless.py --careless PROGRAM [--seeds 3] [--frames 48 96] [--iterations 10000] [--folder FOLDER]

PROGRAM is the command `careless` of an environment of its own (`pip install careless==0.5.4`), and runs as its authors advise for stills: `mono`, with resolution and excitation
error as metadata, two layers for each image, a Student t likelihood and normalised intensities of a Wilson prior. Without it the bench says so and ends. Writes bench/results/careless.json and careless.md.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import HELP, machine, make_parser, markdown, same_terms, timed, write_results
from merging import spread, true_intensities, true_scale
from shared_intensities import observations

NAME = "sim-422"
WAYS = {"partial": "xrddiff, partial", "posterior": "xrddiff, posterior", "careless": "careless"}
OPTIONS = [
    "--disable-progress-bar", "--disable-gpu", "--intensity-key=I", "--uncertainty-key=SIGI", "--image-key=BATCH", "--mlp-width=10",
    "--image-layers=2", "--studentt-likelihood-dof=16", "--merge-half-datasets", "--half-dataset-repeats=1",
]  # fmt: skip


def by_careless(program: Path, unmerged: Path, folder: Path, iterations: int):
    """(table, CC1/2, seconds of CPU) of careless: `h`, `k`, `l`, `f2`, `sigma_f2`."""
    import gemmi
    import numpy as np
    import pandas as pd

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [program, "mono", *OPTIONS, f"--iterations={iterations}", "dHKL,EXCITATION", unmerged, folder / "c"]
    with open(folder / "careless.log", "w") as log:
        subprocess.run(list(map(str, command)), check=True, env=env, stdout=log, stderr=log)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = {"H": "h", "K": "k", "L": "l", "I": "f2", "SigI": "sigma_f2"}

    def read(name: str) -> pd.DataFrame:
        mtz = gemmi.read_mtz_file(str(folder / name))
        return pd.DataFrame(np.array(mtz.array, copy=True), columns=mtz.column_labels()).rename(columns=words)

    halves = read("c_xval_0.mtz")
    both = halves[halves["half"] == 0].merge(halves[halves["half"] == 1], on=list("hkl"))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return read("c_0.mtz"), float(np.corrcoef(both["f2_x"], both["f2_y"])[0, 1]), seconds


def measure(seed: int, frames: list[int], folder: Path, program: Path, iterations: int) -> list[dict]:
    """Rows of one seed: every way at each number of frames."""
    import numpy as np

    from xrddiff.physics.merging.files import write_unmerged_mtz
    from xrddiff.physics.merging.merged import merge_reflections, shared_intensities
    from xrddiff.physics.merging.statistics import half_set_agreement
    from xrddiff.physics.simulation.experiments import find_experiment

    (group, truth), every, rows = true_intensities(NAME), observations(NAME, seed, max(frames), str(folder)), []
    cell, own = find_experiment(NAME).sample.crystal.cell, {"intensity": "f2", "sigma": "sigma_f2"}
    for count in frames:
        place = folder / f"{seed}-{count}"
        place.mkdir(parents=True, exist_ok=True)
        partial, first = timed(lambda: merge_reflections(every[every["frame"] < count], "partial", seed=seed))  # noqa: B023
        shared, more = timed(lambda: shared_intensities(partial.seen, partial.scaling, group, seed=seed))  # noqa: B023
        unmerged = write_unmerged_mtz(partial, place / "unmerged.mtz", cell, group)
        theirs, half, seconds = by_careless(program, unmerged, place, iterations)
        found = {
            "partial": (partial.table.rename(columns=own), first.cpu, half_set_agreement(partial.table)["cc_half"]),
            "posterior": (shared.table, first.cpu + more.cpu, None),
            "careless": (theirs, seconds, half),
        }
        common = truth.rename(columns={"f2": "true"}).merge(partial.table[[*"hkl", "d"]], on=list("hkl"))
        for way, (table, _, _) in found.items():
            renamed = table[[*"hkl", "f2", "sigma_f2"]].rename(columns={"f2": way, "sigma_f2": f"sigma {way}"})
            common = common.merge(renamed.dropna(), on=list("hkl"))
        for way, (_, spent, half) in found.items():
            value, sigma, true, d = (common[n].to_numpy(float) for n in (way, f"sigma {way}", "true", "d"))
            scaled = true_scale(value, sigma, true, d)
            numbers = dict(cc=np.corrcoef(value, scaled)[0, 1], inside=(np.abs(value - scaled) < 1.645 * sigma).mean())
            about = dict(seed=seed, count=count, way=way, crystals=len(partial.half), reflections=len(common))
            rows.append(about | {k: float(v) for k, v in numbers.items()} | dict(seconds=spent, cc_half=half))
            print(rows[-1], flush=True)
    return rows


def page(found: dict) -> str:
    about = (
        f"Stills of {NAME}, indexed, refined together and integrated by xrddiff, {found['seeds']} seeds: medians, and ranges in brackets. Careless reads the unmerged file that `xrddiff merge` writes, with the metadata "
        "dHKL and EXCITATION, two layers for each image, 10 units wide, and Student t with 16 degrees of freedom, the options of its authors for stills. All are compared at the reflections that every way has. *CC*: with the true |F|² on the scale and falloff of "
        "the way itself. *In 90%*: true intensities within 1.645σ. CC1/2: of each program's own halves of the crystals; a posterior has none. CPU: one thread, careless with its halves."
    )
    lines = ["# Beside careless", "", f"`{found['command']}`; {found['where']}; careless 0.5.4.", "", about, ""]
    cells = []
    for count in sorted({r["count"] for r in found["rows"]}):
        for way, title in WAYS.items():
            own = [r for r in found["rows"] if (r["count"], r["way"]) == (count, way)]
            half = spread([r["cc_half"] for r in own], ".3f") if own[0]["cc_half"] is not None else "–"
            crystals, reflections = (f"{median(r[n] for r in own):.0f}" for n in ("crystals", "reflections"))
            cells.append(
                [count, crystals, reflections, title, spread([r["cc"] for r in own], ".4f"), half,
                 spread([r["inside"] for r in own], ".3f"), spread([r["seconds"] for r in own], ".1f")]
            )  # fmt: skip
    head = ["frames", "crystals", "reflections", "way", "CC", "CC1/2", "in 90%", "s of CPU"]
    return "\n".join([*lines, *markdown(head, cells, "rrrlrrrr")]) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--careless", type=Path, default=shutil.which("careless"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[48, 96])
    parser.add_argument("--iterations", type=int, default=10000)
    parser.add_argument("--folder", type=Path, help=HELP["folder"])
    args = parser.parse_args()
    if args.careless is None:
        sys.exit("careless is not here; expected --careless PROGRAM, or the command `careless`")
    same_terms()
    folder = args.folder or Path(tempfile.mkdtemp())
    rows = [
        row for seed in range(args.seeds) for row in measure(seed, args.frames, folder, args.careless, args.iterations)
    ]
    words = f"--seeds {args.seeds} --frames {' '.join(map(str, args.frames))} --iterations {args.iterations}"
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/careless.py {words}",
        "where": machine("python", "one thread"), "seeds": args.seeds, "rows": rows,
    }  # fmt: skip
    print(write_results("careless", page, found))


if __name__ == "__main__":
    main()
