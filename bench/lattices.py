"""Does a model that is told the lattice also draw crystals that it never saw? Samples of a finished run beside simulated frames of the same crystal.

    OMP_NUM_THREADS=1 python bench/lattices.py RUN [inference.WORD=VALUE …] [--frames 48]

RUN is the folder of a run on sim128 with model.condition_maps=[lattice], such as that of `make demo`. Writes bench/results/lattices.json and lattices.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

from index_rates import RESULTS, index

CRYSTALS = {
    "the training crystal": None,
    "cubic": ((30.0, 30.0, 30.0, 90.0, 90.0, 90.0), "P 2 3"),
    "orthorhombic, one long axis": ((25.0, 60.0, 41.0, 90.0, 90.0, 90.0), "P 21 21 21"),
    "monoclinic": ((40.0, 35.0, 55.0, 90.0, 105.0, 90.0), "P 1 21 1"),
}


def simulated(crystal: tuple | None, count: int):
    """Frames of sim128 with one crystal in each, of another kind if given; shots beyond those that anything was trained on."""
    from xrddiff.simulation.crystal import Crystal
    from xrddiff.simulation.experiments import EXPERIMENTS
    from xrddiff.simulation.simulate import simulate

    experiment = EXPERIMENTS["sim128"]
    sample = replace(experiment.sample, hits=(0.0, 1.0))
    if crystal is not None:
        sample = replace(sample, crystal=Crystal(*crystal, sample.crystal.factors))
    return simulate(replace(experiment, sample=sample), range(10**6, 10**6 + count))


def sampled(run: Path, cell: tuple, count: int, words: list[str]):
    """Samples that were asked for this crystal, with the settings of the run and these words."""
    import xrddiff as xd

    return xd.open_run(run).sample(count, *words, lattice={"cell": list(cell)})


def row(frames, cell: tuple) -> dict:
    """Index rate, and peaks on the lattice that was asked for (or simulated)."""
    from xrddiff.frames.frames import frame_count
    from xrddiff.frames.noise import draw_counts
    from xrddiff.metrics.asked_lattices import asked_and_found

    frames = frames.assign_attrs(unit_cell=cell)
    counted = draw_counts(frames, seed=0) if frames.attrs.get("samples_are") == "expected values" else frames
    table, _ = asked_and_found(counted)
    return index(frames, frame_count(frames)) | {
        "asked": table.loc["samples"].to_dict(),
        "exchanged": table.loc["lattices exchanged"].to_dict(),
    }


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# Crystals that were asked for", "",
        f"`{found['command']}`; {platform.machine()}, Python {platform.python_version()}, one thread. The run: {found['run']}.", "",
        "Each frame has one crystal. Samples were asked for the crystal of their row in random orientations; simulated frames are of the same crystal and were never seen. *On the asked lattice*: share of a frame's peaks, median; in brackets with the lattices exchanged among the frames. "
        "*Index*: share of the frames with six peaks that have a lattice, where chance does as well in fewer than one of a thousand.", "",
        "| crystal | frames | peaks | index | on the asked lattice | distance, px |", "| --- | --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, both in found["rows"].items():
        for what, r in both.items():
            asked, other = r["asked"], r["exchanged"]
            rate = r["rate"]
            lines.append(
                f"| {name} | {what} | {asked['peaks']:.0f} | {rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f}) "
                f"| {asked['on_lattice']:.2f} ({other['on_lattice']:.2f}) | {asked['distance_px']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("words", nargs="*", default=[], metavar="inference.WORD=VALUE")
    parser.add_argument("--frames", type=int, default=48)
    args = parser.parse_args()
    import torch

    from xrddiff.simulation.experiments import EXPERIMENTS
    from xrddiff.training.checkpoints import load_checkpoint

    torch.set_num_threads(1)
    parts = {"autoencoder": args.run / "autoencoder", "denoiser": args.run}
    steps = ", ".join(f"{name} {load_checkpoint(path, verify=False).step} steps" for name, path in parts.items())
    found = {
        "command": " ".join(["OMP_NUM_THREADS=1 python bench/lattices.py RUN", *args.words, f"--frames {args.frames}"]),
        "run": steps,
        "rows": {},
    }
    for name, crystal in CRYSTALS.items():
        cell = EXPERIMENTS["sim128"].sample.crystal.cell if crystal is None else crystal[0]
        found["rows"][name] = {
            "simulated": row(simulated(crystal, args.frames), cell),
            "samples": row(sampled(args.run, cell, args.frames, args.words), cell),
        }
        print(name, flush=True)
        (RESULTS / "lattices.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "lattices.md").write_text(page(found))


if __name__ == "__main__":
    main()
