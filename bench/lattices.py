"""Does a model that is told the lattice also draw crystals that it never saw, at distances where it never was? Samples of a finished run beside simulated frames of the same crystal.

    OMP_NUM_THREADS=1 python bench/lattices.py RUN [inference.WORD=VALUE …] [--frames 48]

RUN is the folder of a run on sim128 with model.condition_maps=[lattice, …], such as that of `make demo`. If it was told how bright reflections are, samples of a crystal are made with its |F|², and with others, drawn by Wilson's statistics.
Writes bench/results/lattices.json and lattices.md.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import tiles
from harness import RESULTS, machine, make_parser, markdown, same_terms, write_results
from index_rates import index

CRYSTALS = {
    "the training crystal": None,
    "cubic": ((30.0, 30.0, 30.0, 90.0, 90.0, 90.0), "P 2 3"),
    "orthorhombic, one long axis": ((25.0, 60.0, 41.0, 90.0, 90.0, 90.0), "P 21 21 21"),
    "monoclinic": ((40.0, 35.0, 55.0, 90.0, 105.0, 90.0), "P 1 21 1"),
}

FARTHER = (0.85, 1.15, 1.3)  # the detector, times its distance in training


def crystal_of(kind: tuple | None):
    """The `Crystal` of a row of `CRYSTALS`; None is that of sim128."""
    from xrddiff.physics.simulation.crystal import Crystal
    from xrddiff.physics.simulation.experiments import EXPERIMENTS

    own = EXPERIMENTS["sim128"].sample.crystal
    return own if kind is None else Crystal(*kind, own.factors)


def simulated(crystal, count: int, farther: float = 1.0):
    """Frames of sim128 with one such crystal in each, and the detector so many times as far away; shots beyond those that anything was trained on."""
    from xrddiff.physics.simulation.experiments import EXPERIMENTS
    from xrddiff.physics.simulation.simulate import simulate

    experiment = EXPERIMENTS["sim128"]
    sample = replace(experiment.sample, hits=(0.0, 1.0), crystal=crystal)
    detector = replace(experiment.detector, distance=farther * experiment.detector.distance)
    return simulate(replace(experiment, sample=sample, detector=detector), range(10**6, 10**6 + count))


def write_reflections(crystal, path: Path) -> Path:
    """|F|² of a crystal as an MTZ file."""
    from xrddiff.physics.indexing.cells import Cell
    from xrddiff.physics.indexing.expected_intensities import CrystalIntensities, save_intensities
    from xrddiff.physics.simulation.crystal import reflections

    known = reflections(crystal, 2.0)
    return save_intensities(CrystalIntensities(Cell(crystal.cell), crystal.space_group, known.hkl, known.f2), path)


def row(frames, crystal) -> dict:
    """Index rate, peaks on the lattice that was asked for (or simulated), its orientation found again, and how the merged
    intensities follow |F|².
    """
    import gemmi
    import numpy as np
    import pandas as pd
    from intensities import table

    from xrddiff.data.frames.frames import frame_count
    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.judge.metrics.physics import asked_and_found
    from xrddiff.physics.indexing.cells import Cell, orientation_error
    from xrddiff.physics.indexing.indexer import INDEXED, index_frames
    from xrddiff.physics.merging.merged import merge_reflections
    from xrddiff.physics.merging.symmetry import asymmetric_unit
    from xrddiff.physics.simulation.crystal import reflections

    frames = frames.assign_attrs(unit_cell=crystal.cell, space_group=crystal.space_group)
    counted = draw_counts(frames, seed=0) if frames.attrs.get("samples_are") == "expected values" else frames
    asked, _ = asked_and_found(counted)
    found, U = index_frames(counted, crystal.cell, lattices=1, controls=60), counted["orientation"].values[:, 0]
    best = {i: own[0].U for i, own in found.lattices.items() if own and own[0].p < INDEXED}
    errors = [float(orientation_error(V, U[i], Cell(crystal.cell))) for i, V in best.items()]
    group, every = gemmi.SpaceGroup(crystal.space_group), reflections(crystal, 2.0)
    truth = pd.DataFrame(asymmetric_unit(every.hkl, group).hkl, columns=["h", "k", "l"]).assign(f2=every.f2)
    merged = merge_reflections(table(counted)).table
    both = merged[merged["count"] >= 2].merge(truth.drop_duplicates(["h", "k", "l"]), on=["h", "k", "l"])
    return index(frames, frame_count(frames)) | {
        "asked": asked.loc["samples"].to_dict(),
        "exchanged": asked.loc["lattices exchanged"].to_dict(),
        "orientation": float(np.median(errors)) if errors else float("nan"),
        "cc": float(np.corrcoef(both["intensity"], both["f2"])[0, 1]),
    }


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# Crystals that were asked for", "",
        f"`{found['command']}`; {machine('python', 'one thread')}. The run: {found['run']}.", "",
        "Each frame has one crystal. Samples were asked for the crystal of their row in random orientations; simulated frames are of the same crystal and were never seen. *On the asked lattice*: share of a frame's peaks, median; in brackets with the lattices exchanged among the frames. "
        "*Index*: share of the frames with six peaks that have a lattice, where chance does as well in fewer than one of a thousand. *Orientation*: how far the orientation that indexing finds is from the one that was asked for (or simulated), median. "
        "*CC with F²*: correlation of the merged intensities with those of the crystal, of reflections that were recorded at least twice.", "",
    ]  # fmt: skip
    rows = [line(name, what, r) for name, both in found["rows"].items() for what, r in both.items()]
    head = [
        "crystal",
        "frames",
        "peaks",
        "index",
        "on the asked lattice",
        "distance, px",
        "orientation, °",
        "CC with F²",
    ]
    lines += markdown(head, rows, "llr")
    lines += ["", f"The run: `xrddiff run {' '.join(found['words'])}`."] if "words" in found else []
    lines += ["", "![The asked lattice over generated frames](../../docs/pictures/asked.png)"]
    return "\n".join(lines) + "\n"


def line(name: str, what: str, r: dict) -> list[str]:
    """A row of the table."""
    asked, other, rate = r["asked"], r["exchanged"], r["rate"]
    share = f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})"
    on_lattice = f"{asked['on_lattice']:.2f} ({other['on_lattice']:.2f})"
    cells = [name, what, f"{asked['peaks']:.0f}", share, on_lattice]
    return [*cells, *(f"{v:.2f}" for v in (asked["distance_px"], r["orientation"], r["cc"]))]


SHOWN = ("the training crystal", "monoclinic", "the training crystal, detector at 1.15 times its distance")


def picture(sets: dict) -> None:
    """The asked lattice over a generated frame of each set, docs/pictures/asked.png: the frame with most peaks of the first ten."""
    import matplotlib.pyplot as plt

    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.judge.views.indexing import show_indexing
    from xrddiff.physics.indexing.known_lattices import known_lattices

    fig, axes = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 5.0), dpi=75, layout="constrained")
    for ax, (name, frames) in zip(axes, sets.items(), strict=True):
        counted = draw_counts(frames, seed=0)
        found = known_lattices(counted, range(min(10, counted.sizes["frame"])))
        best = int(found.table["peaks"].idxmax())
        row = found.table.loc[best]
        show_indexing(counted, found, best, ax, title=f"{row['indexed']:.0f} of {row['peaks']:.0f} peaks on the requested lattice", rings=0, colorbar=False)  # fmt: skip
        ax.set(xlabel=name.replace(", ", ",\n"), ylabel="", xticks=[], yticks=[])
    fig.savefig(RESULTS.parent.parent / "docs" / "pictures" / "asked.png")
    plt.close(fig)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("words", nargs="*", default=[], metavar="inference.WORD=VALUE")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--picture", action="store_true", help="draw the picture and measure nothing")
    args = parser.parse_args()

    import xrddiff as xd
    from xrddiff.config.composition import reproducing_words
    from xrddiff.config.saved_config import load_config
    from xrddiff.learn.training.checkpoints import load_checkpoint

    same_terms()
    parts = {"autoencoder": args.run / "autoencoder", "denoiser": args.run}
    steps = ", ".join(f"{name} {load_checkpoint(path, verify=False).step} steps" for name, path in parts.items())
    found = {
        "command": " ".join(["OMP_NUM_THREADS=1 python bench/lattices.py RUN", *args.words, f"--frames {args.frames}"]),
        "run": steps,
        "words": reproducing_words(load_config(args.run / "config.yaml")),
        "rows": {},
    }
    run, scratch = xd.open_run(args.run), Path(tempfile.mkdtemp())
    bright = "intensity" in run.config.model.condition_maps

    shown = {}

    def keep(name: str, crystal, frames: dict) -> None:
        """Measure a crystal's frames, and write what there is."""
        if name in SHOWN:
            shown[name] = frames[what]
        if args.picture:
            return
        found["rows"][name] = {what: row(ds, crystal) for what, ds in frames.items()}
        print(name, flush=True)
        write_results("lattices", page, found)

    def told(crystal) -> dict:
        """`inference.lattice` for a crystal, with its |F|² if the model takes them."""
        path = scratch / "f2.mtz"
        return {"cell": list(crystal.cell)} | ({"reflections": str(write_reflections(crystal, path))} if bright else {})

    what = "samples, told F²" if bright else "samples"
    for name, kind in CRYSTALS.items():
        crystal = crystal_of(kind)
        frames = {"simulated": simulated(crystal, args.frames)}
        if bright and kind is not None:
            frames["samples, F² drawn"] = run.sample(args.frames, *args.words, lattice={"cell": list(crystal.cell)})
        frames[what] = run.sample(args.frames, *args.words, lattice=told(crystal))
        keep(name, crystal, frames)
    own = crystal_of(None)
    for farther in FARTHER:
        geometry = scratch / f"farther-{farther}.geom"
        geometry.write_text(tiles.detector("sim128", farther=farther))
        frames = {"simulated": simulated(own, args.frames, farther)}
        frames[what] = run.sample(args.frames, *args.words, lattice=told(own), detector=str(geometry))
        keep(f"the training crystal, detector at {farther} times its distance", own, frames)
    picture({name: shown[name] for name in SHOWN})


if __name__ == "__main__":
    main()
