"""Do the intervals of posteriors of measured frames hold what was hidden? New stills of sim128, and stills drawn by the model itself, with hidden blocks, and with a hidden panel, by every method.

    OMP_NUM_THREADS=1 python bench/posteriors.py [--run RUN] [--folder FOLDER] [--frames 100] [--methods counts,…] [--sets blocks panel] [--of simulated drawn]

RUN is a run of `xrddiff run experiment_type=scratch`; without it the bench trains one (10 CPU minutes) below FOLDER. The frames say nothing about their crystals: a model that takes the lattice is told what was indexed of the pixels that it may see.
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
from typing import TYPE_CHECKING

import numpy as np
from harness import machine, make_parser, markdown, read_results, same_terms, timed, write_results

if TYPE_CHECKING:
    import xarray as xr

METHODS = ("latents", "counts", "replacement", "interpolation")  # latents: rows of an older commit
NEW = 200_000  # the first number of stills that no run was trained on
WORDS = ["inference.steps=8", "inference.guidance_scale=1", "threads=1"]
OF_A_DETECTOR = ("beam_center", "distance", "pixel_size", "polarization", "wavelength", "pedestal", "read_noise", "saturation", "unit_cell", "space_group", "detector")  # fmt: skip
SETS = {"blocks": "a tenth of the pixels in blocks of 8 × 8", "panel": "a panel of 32 × 40"}
KINDS = {"simulated": "simulated", "drawn": "drawn by the model"}


def trained(folder: Path) -> Path:
    """A demo run below this folder, trained if it is not there."""
    run = folder / "run"
    if not (run / "report.html").exists():
        words = ["experiment_type=scratch", f"output_dir={folder}", "run_name=run", "threads=1"]
        subprocess.run([str(Path(sys.executable).parent / "xrddiff"), "run", *words], check=True)
        run = next(folder.glob("**/run"))
    return run


def simulated(count: int) -> tuple[xr.Dataset, dict[str, np.ndarray]]:
    """So many new stills with one crystal, and their true spots: `frame`, `fs`, `ss`, `intensity`."""
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.physics.simulation.simulate import simulate

    made = simulate("sim128", range(NEW, NEW + 3 * count))
    real = select_frames(made, np.flatnonzero(made["crystals"].values == 1)[:count]).load()
    truth = {name: real[f"peak_{name}"].values for name in ("frame", "fs", "ss", "intensity")}
    told = [
        v for v in real.variables if "peak" in real[v].dims or v in ("cell", "orientation", "crystals", "hit_class")
    ]
    return real.drop_vars(told), truth


def drawn(run: Path, count: int) -> tuple[xr.Dataset, dict[str, np.ndarray]]:
    """So many stills with one crystal from the prior itself, noise of the start N(0, I) and photons of what is expected, and their spots."""
    import xrddiff as xd
    from xrddiff.core.seeds import numpy_rng
    from xrddiff.data.frames.geometry import geometry_of
    from xrddiff.physics.indexing.cells import Cell
    from xrddiff.physics.indexing.rays import miller_sphere, predict_spots

    made = xd.open_run(run).sample(2 * count, *WORDS, seed=NEW, judge=False, progress=False).load()
    made = made.isel(frame=np.flatnonzero(made["hit_class"].values == 1)[:count])
    expected, rows = made["intensity"].values.clip(0), []
    for i, image in enumerate(expected):
        cell = Cell(made["cell"].values[i, 0])
        basis, sphere = cell.A @ made["orientation"].values[i, 0].T, miller_sphere(cell, 2.3)  # Å, to the corners
        width = made.attrs["reflection_width"][0]
        spots = predict_spots(sphere, basis, geometry_of(made), width).assign(frame=i)
        inside = spots[["fs", "ss"]].ge(6).all(axis=1) & spots["fs"].le(122) & spots["ss"].le(122)
        for spot in spots[inside].itertuples():
            x, y = int(spot.fs), int(spot.ss)
            around = np.median(image[y - 5 : y + 6, x - 5 : x + 6])
            rows.append((i, spot.fs, spot.ss, (image[y - 2 : y + 3, x - 2 : x + 3] - around).sum()))
    frame, fs, ss, intensity = np.array([r for r in rows if r[3] >= 1]).T
    counts = numpy_rng("photons of drawn stills").poisson(expected).astype(np.int32)
    only = made[["mask"]].assign(intensity=made["intensity"].copy(data=counts))
    only.attrs = {k: v for k, v in made.attrs.items() if k in OF_A_DETECTOR}
    return only, dict(frame=frame.astype(int), fs=fs, ss=ss, intensity=intensity)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "xrddiff-posteriors")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--draws", type=int, default=19)
    parser.add_argument("--methods", default=",".join(METHODS[1:]))
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--of", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--option", action="append", default=[], help="METHOD.NAME=VALUE")
    args = parser.parse_args()
    same_terms()
    args.folder.mkdir(parents=True, exist_ok=True)
    run = args.run or trained(args.folder)
    for kind in args.of:
        frames, truth = simulated(args.frames) if kind == "simulated" else drawn(run, args.frames)
        for method in [m for m in args.methods.split(",") if m]:
            measure(run, kind, frames, truth, method, args)


def measure(run: Path, kind: str, frames: xr.Dataset, truth: dict[str, np.ndarray], method: str, args: argparse.Namespace) -> None:  # fmt: skip
    """Rows of a method for frames of a kind; those of the same method with the same options are replaced."""
    import yaml

    from xrddiff.data.formats.store import save_frames
    from xrddiff.judge.inference.posterior import open_posterior
    from xrddiff.judge.metrics.coverage import window_coverage

    words = [o.partition("=") for o in args.option if o.startswith(f"{method}.")]
    options = {name.partition(".")[2]: yaml.safe_load(value) for name, _, value in words}
    path = args.folder / f"{kind}.h5"
    path.unlink(missing_ok=True)
    save_frames(frames, path)
    panel = np.zeros(frames["intensity"].shape[1:], bool)
    panel[16:48, 8:48] = True
    anywhere, count = spread_out(frames["intensity"].shape), len(frames["intensity"])
    rows = read_results("posteriors", {"rows": []})["rows"]
    rows = [
        r for r in rows if (r["method"], r["options"], r["of"]) != (method, options, kind) or r["set"] not in args.sets
    ]
    for where in args.sets:
        job = open_posterior(run, WORDS, frames=path, draws=args.draws, method=method, options=options, hold_out=0.1)
        if where == "panel":
            job.held_out = job.measured & panel
        found, spent = timed(job.make)
        row = dict(method=method, set=where, of=kind, frames=count, draws=args.draws, options=options)
        row |= dict(seconds=spent.cpu / count)
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
        "Stills with one crystal, parts of which were hidden: *simulated*, of sim128, on which the run was not trained; and *drawn by the model* itself with steps and guidance of the posterior, from noise N(0, I), photons being Poisson: there the prior is right by construction, and what is missing from 90% is the method's own. *Error*: root mean square of (hidden pixel − mean of the draws) over the noise of counting; 1 is a perfect mean. *Pixels*, *windows*, *reflections*: share inside the 90% interval, with 95% limits from the scatter between frames; windows are 5 × 5 px anywhere, reflections those windows around the true spots, *strong* those "
        "above the median intensity. Spots are chosen by the truth, so a right posterior that cannot know where they are holds fewer than 90% of them. Counts and replacement use the diffusion model, which is told the lattice that was indexed from the pixels that are left; latents had a Gaussian prior, which knows no lattice and no isolated spots: that method was taken out for what its rows say, which are of an older commit, as are all rows of 8 frames. Counts takes one round of Fisher scoring at each noise level unless it is told otherwise. CPU seconds for a frame.", "",
    ]  # fmt: skip
    cells = []
    for where, about in SETS.items():
        for r in sorted(
            (r for r in rows if r["set"] == where),
            key=lambda r: (METHODS.index(r["method"]), str(r["options"]), list(KINDS).index(r["of"])),
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
                    KINDS[r["of"]],
                    str(r["frames"]),
                    f"{np.mean(r['error']):.2f}",
                    *share,
                    f"{r['seconds']:.1f}",
                ]
            )
    head = ["hidden", "method", "stills", "frames", "error", "pixels", "windows", "reflections", "strong", "CPU s"]
    return [*lines, *markdown(head, cells, "lllrr")]


if __name__ == "__main__":
    main()
