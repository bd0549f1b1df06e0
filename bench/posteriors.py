"""Do the intervals of posteriors of measured frames hold what was hidden? New stills of sim128 with hidden blocks, and with a hidden panel, by every method.

    OMP_NUM_THREADS=1 python bench/posteriors.py [--run RUN] [--folder FOLDER] [--frames 100] [--methods counts,…] [--sets blocks panel]

RUN is a run of `xrddiff run experiment_type=demo`; without it the bench trains one (10 CPU minutes) below FOLDER. The frames say nothing about their crystals: a model that takes the lattice is told what was indexed of the pixels that it may see.
Writes bench/results/posteriors.json and posteriors.md; rows of methods that are not asked for, or with other options, are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from harness import machine, make_parser, markdown, read_results, same_terms, timed, write_results

METHODS = ("latents", "counts", "replacement", "interpolation")  # latents: rows of an older commit
NEW = 200_000  # the first number of stills that no run was trained on
WORDS = ["inference.steps=8", "inference.guidance_scale=1", "threads=1"]
SETS = {"blocks": "a tenth of the pixels in blocks of 8 × 8", "panel": "a panel of 32 × 40"}


def trained(folder: Path) -> Path:
    """A demo run below this folder, trained if it is not there."""
    run = folder / "run"
    if not (run / "report.html").exists():
        words = ["experiment_type=demo", f"output_dir={folder}", "run_name=run", "threads=1"]
        subprocess.run([str(Path(sys.executable).parent / "xrddiff"), "run", *words], check=True)
        run = next(folder.glob("**/run"))
    return run


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "xrddiff-posteriors")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--draws", type=int, default=19)
    parser.add_argument("--methods", default=",".join(METHODS[1:]))
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--option", action="append", default=[], help="METHOD.NAME=VALUE")
    args = parser.parse_args()
    import yaml

    from xrddiff.data.formats.store import save_frames
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.judge.inference.posterior import open_posterior
    from xrddiff.judge.metrics.coverage import window_coverage
    from xrddiff.physics.simulation.simulate import simulate

    same_terms()
    args.folder.mkdir(parents=True, exist_ok=True)
    run = args.run or trained(args.folder)
    made = simulate("sim128", range(NEW, NEW + 3 * args.frames))
    single = np.flatnonzero(made["crystals"].values == 1)[: args.frames]
    real = select_frames(made, single).load()
    truth = {name: real[f"peak_{name}"].values for name in ("frame", "fs", "ss", "intensity")}
    path = args.folder / "frames.h5"
    told = [
        v for v in real.variables if "peak" in real[v].dims or v in ("cell", "orientation", "crystals", "hit_class")
    ]
    path.unlink(missing_ok=True)
    save_frames(real.drop_vars(told), path)
    panel = np.zeros(real["intensity"].shape[1:], bool)
    panel[16:48, 8:48] = True
    anywhere = spread_out(real["intensity"].shape)
    asked = [m for m in args.methods.split(",") if m]
    rows = read_results("posteriors", {"rows": []})["rows"]
    for method in asked:
        options = {
            o.partition(".")[2].partition("=")[0]: yaml.safe_load(o.partition("=")[2])
            for o in args.option
            if o.startswith(f"{method}.")
        }
        rows = [r for r in rows if (r["method"], r["options"]) != (method, options) or r["set"] not in args.sets]
        for where in args.sets:
            words = dict(frames=path, draws=args.draws, method=method, options=options)
            job = open_posterior(run, WORDS, **words, hold_out=0.1)
            if where == "panel":
                job.held_out = job.measured & panel
            found, spent = timed(job.make)
            row = dict(method=method, set=where, frames=len(single), draws=args.draws, options=options)
            row |= dict(seconds=spent.cpu / len(single))
            row |= dict(error=found.table["error"].tolist(), pixels=vars(found.coverage()))
            held = partial(window_coverage, [d.measured for d in found.found], job.whole.counts, job.held_out)
            strong = truth["intensity"] >= np.median(truth["intensity"])
            for name, at in {"reflections": np.ones(len(strong), bool), "strong reflections": strong}.items():
                row[name] = vars(held(truth["frame"][at], truth["fs"][at], truth["ss"][at]))
            row["windows"] = vars(held(*anywhere))
            rows.append(row)
            print(json.dumps(row), flush=True)
            write_results("posteriors", lambda kept: page(kept["rows"], args), {"rows": rows})


def spread_out(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of 5 x 5 side by side, wherever spots may be: (frame, x, y)."""
    frames, height, width = shape
    at = np.mgrid[:frames, 2 : height - 2 : 3, 2 : width - 2 : 3].reshape(3, -1)
    return at[0], at[2] + 0.5, at[1] + 0.5


def page(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """The results as a page."""
    lines = [
        "# Posteriors of measured frames", "",
        f"`OMP_NUM_THREADS=1 python bench/posteriors.py --frames {args.frames} --draws {args.draws}`; {machine('python', 'one thread')}, {time.strftime('%Y-%m-%d')}. The run is that of `make demo`.", "",
        "Stills of sim128 with one crystal that the run was not trained on, parts of which were hidden. *Error*: root mean square of (hidden pixel − mean of the draws) over the noise of counting; 1 is a perfect mean. *Pixels*, *windows*, *reflections*: share inside the 90% interval, with 95% limits from the scatter between frames; windows are 5 × 5 px anywhere, reflections those windows around the true spots, *strong* those "
        "above the median intensity. Spots are chosen by the truth, so a right posterior that cannot know where they are holds fewer than 90% of them. Counts and replacement use the diffusion model, which is told the lattice that was indexed from the pixels that are left; latents had a Gaussian prior, which knows no lattice and no isolated spots: that method was taken out for what its rows say, which are of an older commit, as are all rows of 8 frames. Counts takes one round of Fisher scoring at each noise level unless it is told otherwise. CPU seconds for a frame.", "",
    ]  # fmt: skip
    cells = []
    for where, about in SETS.items():
        for r in sorted(
            (r for r in rows if r["set"] == where), key=lambda r: (METHODS.index(r["method"]), str(r["options"]))
        ):
            share = [
                f"{r[n]['found']:.3f} ± {1.96 * r[n]['error']:.3f}"
                for n in ("pixels", "windows", "reflections", "strong reflections")
            ]
            options = "".join(f", {name} {value}" for name, value in r["options"].items())
            cells.append(
                [
                    about,
                    f"{r['method']}{options}",
                    str(r["frames"]),
                    f"{np.mean(r['error']):.2f}",
                    *share,
                    f"{r['seconds']:.1f}",
                ]
            )
    head = ["hidden", "method", "frames", "error", "pixels", "windows", "reflections", "strong", "CPU s"]
    return [*lines, *markdown(head, cells, "llrr")]


if __name__ == "__main__":
    main()
