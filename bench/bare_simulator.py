"""What does a model add to a simulator? Generated stills beside those of a simulator that knows crystal, beam and geometry, and nothing else.

    OMP_NUM_THREADS=1 python bench/bare_simulator.py [--folder FOLDER] [--frames 24]

The frames are those of sim-422, which stands for a measured set: water, air, ice, an integrating detector with a point spread and read noise. A model is trained on random windows of them and told lattice, intensities, q and background level. It draws whole frames of other
crystals; the bare simulator draws as many with background, ice, point spread and read noise switched off. Both are compared with held-out frames as `xrddiff evaluate` does. Writes bench/results/bare_simulator.json and .md.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiles
from harness import machine, make_parser, markdown, same_terms, write_results

TRAINING = [*tiles.FEW, "model.condition_maps=[lattice,intensity,q]", "model.condition=[background_level]", "data.name=sim-422", "data.limit=400", "data.window=128", "training.num_epochs=12", "model.diff_epochs=40", "inference.num_samples=8", "inference.batch_size=4", "inference.steps=4"]  # fmt: skip
SAMPLING = ["inference.steps=8", "inference.overlap=32", "inference.batch_size=4"]
ROWS = [  # of a comparison, as its table calls them
    "frames with enough peaks", "peaks in a frame", "frames that index", "peaks on one lattice", "spot width, px", "background variance / expected",
    "CC with the reference", "distance: radial profile", "distance: intensity histogram", "distance: peak count", "distance: encoder features (Fréchet)",
]  # fmt: skip


def bare_frames(count: int, path: Path) -> Path:
    """Stills of sim-422 as crystal, beam and geometry alone would have them."""
    from xrddiff.data.formats.store import save_frames
    from xrddiff.physics.simulation.experiments import EXPERIMENTS, Background
    from xrddiff.physics.simulation.simulate import simulate

    if not path.exists():
        experiment = EXPERIMENTS["sim-422"]
        detector = replace(experiment.detector, psf=0.3, read_noise=0.0)
        bare = replace(experiment, background=Background(water=0.0, air=0.0), detector=detector)
        save_frames(simulate(bare, range(10**6, 10**6 + count)), path)
    return path


def held_out(run: Path, count: int, path: Path) -> Path:
    """Frames that the run has not seen."""
    from xrddiff.config.saved_config import load_config
    from xrddiff.data.formats.store import save_frames
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.learn.loading.datasets import prepare_words

    if not path.exists():
        prepared = prepare_words(load_config(run / "config.yaml"))
        save_frames(select_frames(prepared.frames, prepared.held_out[:count]).load(), path)
    return path


def counted(samples: Path, path: Path) -> Path:
    """Samples, which are expected values, as the detector would count them."""
    from xrddiff.data.formats.readers import open_frames
    from xrddiff.data.formats.store import save_frames
    from xrddiff.data.frames.noise import draw_counts

    if not path.exists():
        save_frames(draw_counts(open_frames(samples).load(), 0), path)
    return path


def compare(frames: Path, reference: Path) -> dict:
    """The table of a comparison, and what it says in words."""
    from xrddiff.judge.inference.comparison import ComparisonPlan
    from xrddiff.run.execution.comparing import compare_together

    found = compare_together(ComparisonPlan(str(frames), str(reference)))
    return {"table": found.table(), "words": found.words(), "why": found.why}


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# What a model adds to a simulator", "",
        f"`{found['command']}`; {machine('python', 'one thread')}.", "",
        f"Frames of sim-422 ({found['reference']} held out) beside {found['frames']} generated ones and as many of a *bare simulator*, which knows the crystal, the beam and the geometry, but no background, ice, point spread or read noise. "
        "In brackets: 95 % intervals, from resampling the frames. The held-out column of a distance is that between two halves of the held-out frames.", "",
    ]  # fmt: skip
    cells = []
    tables = {name: found[name]["table"] for name in ("generated", "bare simulator")}
    for row in [r for r in found["rows"] if r in tables["generated"] or r in tables["bare simulator"]]:
        real = next((t[row]["reference"] for t in tables.values() if row in t and "reference" in t[row]), np.nan)
        cells.append([row, number(real), *(cell(t.get(row)) for t in tables.values())])
    lines += markdown(["", "held out", *tables], cells)
    for name in tables:
        lines += ["", f"{name.capitalize()} beside held-out frames, in words:", "", *(f"- {w}" for w in found[name]["words"])]  # fmt: skip
    lines += ["", f"The model: `xrddiff run {' '.join(TRAINING)}`, {found['cpu']} CPU seconds; samples with `{' '.join(SAMPLING)}`."]  # fmt: skip
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.3g}"


def cell(row: dict | None) -> str:
    """A number with its interval."""
    if row is None:
        return "–"
    said = number(row.get("frames"))
    return (
        said if not np.isfinite(row.get("from", np.nan)) else f"{said} ({number(row['from'])} to {number(row['to'])})"
    )


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--frames", type=int, default=24)
    args = parser.parse_args()

    same_terms()
    folder = (args.folder or Path(tempfile.mkdtemp())).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tiles.MODELS["sim-422"] = TRAINING
    run = tiles.train("sim-422", folder, as_is=False)
    samples, _ = tiles.sample(run, "generated", *SAMPLING, f"inference.num_samples={args.frames}")
    samples = counted(samples, folder / f"counted-{args.frames}.zarr")
    bare = bare_frames(args.frames, folder / f"bare-{args.frames}.zarr")
    reference = held_out(run, 2 * args.frames, folder / f"held-out-{args.frames}.zarr")
    found = {"command": f"OMP_NUM_THREADS=1 python bench/bare_simulator.py --frames {args.frames}", "frames": args.frames, "reference": 2 * args.frames, "rows": ROWS}  # fmt: skip
    found |= {"cpu": (run / "cpu_seconds.txt").read_text().strip()}
    found |= {name: compare(path, reference) for name, path in (("generated", samples), ("bare simulator", bare))}
    write_results("bare_simulator", page, found)


if __name__ == "__main__":
    main()
