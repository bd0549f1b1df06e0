"""Can one model serve a detector that moves? Trained on frames from three distances, drawing at distances where it never was.

    OMP_NUM_THREADS=1 python bench/moved.py [--folder FOLDER] [--frames 48]

Stills of sim128 with the detector at three distances are joined (`concat_frames(moved=True)`), and the model of the demo, told lattice, intensities and q, is trained on them. It then draws on the detector at two other distances, beside simulated frames from there. A model that was trained at one distance is in
bench/results/lattices.md. Writes bench/results/moved.json and moved.md.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import index_rates
import lattices
import tiles
from harness import machine, make_parser, markdown, same_terms, write_results

TRAINED, DRAWN = (0.85, 1.0, 1.3), (0.92, 1.15)  # times the distance of sim128
WORDS = ["experiment_type=scratch", "model.condition_maps=[lattice,intensity,q]", "inference.num_samples=48", "inference.batch_size=16"]  # fmt: skip


def training_frames(path: Path, count: int = 480) -> Path:
    """So many frames at each distance, in one file."""
    from xrddiff.data.formats.store import save_frames
    from xrddiff.data.frames.selection import concat_frames
    from xrddiff.physics.simulation.experiments import EXPERIMENTS
    from xrddiff.physics.simulation.simulate import simulate

    if not path.exists():
        e, parts = EXPERIMENTS["sim128"], []
        for k, farther in enumerate(TRAINED):
            detector = replace(e.detector, distance=farther * e.detector.distance)
            parts.append(simulate(replace(e, detector=detector), range(k * count, (k + 1) * count)))
        save_frames(concat_frames(parts, moved=True), path)
    return path


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# A detector that moves", "",
        f"`{found['command']}`; {machine('python', 'one thread')}, {found['cpu'] / 60:.0f} CPU minutes of training.", "",
        f"A model trained on stills of sim128 from {len(TRAINED)} distances of the detector, {', '.join(map(str, TRAINED))} times that of sim128, drew frames at others. Columns as in [crystals that were asked for](lattices.md).", "",
    ]  # fmt: skip
    rows = [lattices.line(name, what, r) for name, both in found["rows"].items() for what, r in both.items()]
    head = ["distance", "frames", "peaks", "index", "on the asked lattice", "distance from it, px", "orientation, °"]
    lines += markdown([*head, "CC with F²"], rows, "rlr")
    return "\n".join([*lines, "", f"The run: `xrddiff run {' '.join(WORDS)}`, on the joined file."]) + "\n"


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--frames", type=int, default=48)
    args = parser.parse_args()

    import xrddiff as xd

    same_terms()
    folder = (args.folder or Path(tempfile.mkdtemp())).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = training_frames(folder / "moved.h5")
    index_rates.DATA = ["threads=1", "inference.index_frames=0"]
    index_rates.MODELS["moved"] = [*WORDS, f"data.data_path={path}", "data.name=null", "data.limit=null"]
    folder_of_run = index_rates.train("moved", folder)
    run, crystal, rows = xd.open_run(folder_of_run), lattices.crystal_of(None), {}
    asked = {"cell": list(crystal.cell), "reflections": str(lattices.write_reflections(crystal, folder / "f2.mtz"))}
    for farther in DRAWN:
        geometry = folder / f"farther-{farther}.geom"
        geometry.write_text(tiles.detector("sim128", farther=farther))
        frames = {
            "simulated": lattices.simulated(crystal, args.frames, farther),
            "samples": run.sample(args.frames, lattice=asked, detector=str(geometry)),
        }
        rows[f"{farther} times"] = {what: lattices.row(ds, crystal) for what, ds in frames.items()}
        found = {"command": f"OMP_NUM_THREADS=1 python bench/moved.py --frames {args.frames}", "rows": rows}
        found["cpu"] = float((folder_of_run / "cpu_seconds.txt").read_text())
        write_results("moved", page, found)
        print(farther, flush=True)


if __name__ == "__main__":
    main()
