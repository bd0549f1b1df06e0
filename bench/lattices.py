"""Does a model that is told the lattice also draw crystals that it never saw? Samples of a finished run beside simulated frames of the same crystal.

    OMP_NUM_THREADS=1 python bench/lattices.py RUN [inference.WORD=VALUE …] [--frames 48]

RUN is the folder of a run on sim128 with model.condition_maps=[lattice, …], such as that of `make demo`. If it was told how bright reflections are, samples of a crystal are made with its |F|², and with others, drawn by Wilson's statistics.
Writes bench/results/lattices.json and lattices.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

from index_rates import RESULTS, index

CRYSTALS = {
    "the training crystal": None,
    "cubic": ((30.0, 30.0, 30.0, 90.0, 90.0, 90.0), "P 2 3"),
    "orthorhombic, one long axis": ((25.0, 60.0, 41.0, 90.0, 90.0, 90.0), "P 21 21 21"),
    "monoclinic": ((40.0, 35.0, 55.0, 90.0, 105.0, 90.0), "P 1 21 1"),
}


def crystal_of(kind: tuple | None):
    """The `Crystal` of a row of `CRYSTALS`; None is that of sim128."""
    from xrddiff.simulation.crystal import Crystal
    from xrddiff.simulation.experiments import EXPERIMENTS

    own = EXPERIMENTS["sim128"].sample.crystal
    return own if kind is None else Crystal(*kind, own.factors)


def simulated(crystal, count: int):
    """Frames of sim128 with one such crystal in each; shots beyond those that anything was trained on."""
    from xrddiff.simulation.experiments import EXPERIMENTS
    from xrddiff.simulation.simulate import simulate

    experiment = EXPERIMENTS["sim128"]
    sample = replace(experiment.sample, hits=(0.0, 1.0), crystal=crystal)
    return simulate(replace(experiment, sample=sample), range(10**6, 10**6 + count))


def write_reflections(crystal, path: Path) -> Path:
    """|F|² of a crystal as an MTZ file."""
    import gemmi
    import numpy as np

    from xrddiff.simulation.crystal import reflections

    known = reflections(crystal, 2.0)
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup, mtz.cell = gemmi.SpaceGroup(crystal.space_group), gemmi.UnitCell(*crystal.cell)
    mtz.add_dataset("simulation")
    mtz.add_column("IMEAN", "J")
    mtz.set_data(np.column_stack([known.hkl, known.f2]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def row(frames, crystal) -> dict:
    """Index rate, peaks on the lattice that was asked for (or simulated), its orientation found again, and how the merged
    intensities follow |F|².
    """
    import gemmi
    import numpy as np
    import pandas as pd
    from intensities import table

    from xrddiff.frames.frames import frame_count
    from xrddiff.frames.noise import draw_counts
    from xrddiff.indexing.cells import Cell, orientation_error
    from xrddiff.indexing.indexer import INDEXED, index_frames
    from xrddiff.indexing.reflections import merge_reflections, to_asymmetric_unit
    from xrddiff.metrics.asked_lattices import asked_and_found
    from xrddiff.simulation.crystal import reflections

    frames = frames.assign_attrs(unit_cell=crystal.cell, space_group=crystal.space_group)
    counted = draw_counts(frames, seed=0) if frames.attrs.get("samples_are") == "expected values" else frames
    asked, _ = asked_and_found(counted)
    found, U = index_frames(counted, crystal.cell, lattices=1, controls=60), counted["orientation"].values[:, 0]
    best = {i: own[0].U for i, own in found.lattices.items() if own and own[0].p < INDEXED}
    errors = [float(orientation_error(V, U[i], Cell(crystal.cell))) for i, V in best.items()]
    group, every = gemmi.SpaceGroup(crystal.space_group), reflections(crystal, 2.0)
    truth = pd.DataFrame(to_asymmetric_unit(every.hkl, group), columns=["h", "k", "l"]).assign(f2=every.f2)
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
        f"`{found['command']}`; {platform.machine()}, Python {platform.python_version()}, one thread. The run: {found['run']}.", "",
        "Each frame has one crystal. Samples were asked for the crystal of their row in random orientations; simulated frames are of the same crystal and were never seen. *On the asked lattice*: share of a frame's peaks, median; in brackets with the lattices exchanged among the frames. "
        "*Index*: share of the frames with six peaks that have a lattice, where chance does as well in fewer than one of a thousand. *Orientation*: how far the orientation that indexing finds is from the one that was asked for (or simulated), median. "
        "*CC with F²*: correlation of the merged intensities with those of the crystal, of reflections that were recorded at least twice.", "",
        "| crystal | frames | peaks | index | on the asked lattice | distance, px | orientation, ° | CC with F² |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, both in found["rows"].items():
        for what, r in both.items():
            asked, other = r["asked"], r["exchanged"]
            rate = r["rate"]
            lines.append(
                f"| {name} | {what} | {asked['peaks']:.0f} | {rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f}) "
                f"| {asked['on_lattice']:.2f} ({other['on_lattice']:.2f}) | {asked['distance_px']:.2f} | {r['orientation']:.2f} | {r['cc']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("words", nargs="*", default=[], metavar="inference.WORD=VALUE")
    parser.add_argument("--frames", type=int, default=48)
    args = parser.parse_args()
    import torch

    import xrddiff as xd
    from xrddiff.training.checkpoints import load_checkpoint

    torch.set_num_threads(1)
    parts = {"autoencoder": args.run / "autoencoder", "denoiser": args.run}
    steps = ", ".join(f"{name} {load_checkpoint(path, verify=False).step} steps" for name, path in parts.items())
    found = {
        "command": " ".join(["OMP_NUM_THREADS=1 python bench/lattices.py RUN", *args.words, f"--frames {args.frames}"]),
        "run": steps,
        "rows": {},
    }
    run = xd.open_run(args.run)
    bright = "intensity" in run.config.model.condition_maps
    for name, kind in CRYSTALS.items():
        crystal = crystal_of(kind)
        rows = {"simulated": simulated(crystal, args.frames)}
        asked: dict = {"cell": list(crystal.cell)}
        if kind is not None or not bright:
            what = "samples, F² drawn" if bright else "samples"
            rows[what] = run.sample(args.frames, *args.words, lattice=asked)
        if bright:
            with tempfile.TemporaryDirectory() as folder:
                asked["reflections"] = str(write_reflections(crystal, Path(folder) / "f2.mtz"))
                rows["samples, told F²"] = run.sample(args.frames, *args.words, lattice=asked)
        found["rows"][name] = {what: row(frames, crystal) for what, frames in rows.items()}
        print(name, flush=True)
        (RESULTS / "lattices.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "lattices.md").write_text(page(found))


if __name__ == "__main__":
    main()
