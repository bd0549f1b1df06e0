"""Are the reflections of generated stills as bright as those of the crystal? Samples of finished runs, merged, beside real frames.

    OMP_NUM_THREADS=1 python bench/intensities.py LABEL=RUN [LABEL=RUN …] [--frames 240]

Each RUN is the folder of a run on frames that say their crystals, with model.condition_maps=[lattice, …]. Every reflection is integrated where the crystal that a frame has, or was asked for, puts it; then both sets are scaled and merged.
Writes bench/results/intensities.json and intensities.md.
"""

from __future__ import annotations

from pathlib import Path

from harness import machine, make_parser, markdown, same_terms, write_results


def table(frames):
    """The integrated reflections of frames that say their crystals."""
    import numpy as np
    import pandas as pd

    from xrddiff.physics.indexing.known_lattices import known_lattices
    from xrddiff.physics.indexing.reflections import reflection_table

    none = pd.DataFrame({name: np.zeros(0) for name in ("frame", "fs", "ss")})
    return reflection_table(frames, known_lattices(frames, peaks=none))


def measure(run: Path, count: int) -> dict:
    """Merging numbers of a run: real frames that were held out, and samples, each beside the training frames."""
    import xrddiff as xd
    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.judge.metrics.merging import merging_numbers

    opened = xd.open_run(run)
    made = opened.sample(count)
    made = draw_counts(made, seed=0) if made.attrs.get("samples_are") == "expected values" else made
    train = table(opened.frames("train"))
    sets = {"held out": table(opened.frames("held_out", limit=count)), "samples": table(made)}
    return {name: merging_numbers({"reference": train, "frames": rows})["frames"] for name, rows in sets.items()}


def page(found: dict) -> str:
    lines = ["# Intensities of generated reflections", "", f"`{found['command']}`; {found['where']}.", ""]
    lines += [
        "Reflections of samples, integrated, scaled and merged, beside those of as many training frames; the row *held out* is the "
        "same for real frames that no model has seen, so it says what can be reached with so many frames. Which maps a model was "
        "told is in its name.",
        "",
    ]
    cells = []
    real = next(iter(found["runs"].values()))["held out"]
    rows = {"held out": real} | {f"samples, {label}": row["samples"] for label, row in found["runs"].items()}
    for label, r in rows.items():
        merged = [f"{r[k]:.3f}" for k in ("cc_reference", "cc_half", "r_split")]
        cells.append([label, f"{r['frames']:.0f}", *merged, f"{r['wilson_b']:.1f}", f"{r['wilson_scale']:.2f}"])
    head = ["frames", "number", "CC with training frames", "CC1/2", "R_split", "Wilson B, Å²", "Wilson scale"]
    return "\n".join([*lines, *markdown(head, cells)]) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    parser.add_argument("--frames", type=int, default=240)
    args = parser.parse_args()

    same_terms()
    labelled = dict(item.split("=", 1) for item in args.runs)
    named = " ".join(f'"{label}=RUN"' for label in labelled)
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/intensities.py {named} --frames {args.frames}",
        "where": machine("python", "one thread"),
        "runs": {label: measure(Path(run), args.frames) for label, run in labelled.items()},
    }
    write_results("intensities", page, found)
    print(page(found))


if __name__ == "__main__":
    main()
