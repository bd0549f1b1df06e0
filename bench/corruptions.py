"""What each metric sees of frames that are wrong in one known way, in four grades.

    OMP_NUM_THREADS=1 python bench/corruptions.py [--shots 100] [--out bench/results/corruptions.md]

Half of the simulated stills are the reference, the other half are corrupted (xrddiff.judge.metrics.corruptions). Distances of sets are multiples of the floor, the distance of the same half,
untouched. The others are numbers of the corrupted frames alone; beside them what the untouched frames have.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from harness import RESULTS, machine, make_parser, markdown, same_terms, write_results

from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.metrics.corruptions import CORRUPTIONS, NAMED
from xrddiff.judge.metrics.distribution import DISTANCES, compare_sets, set_distances
from xrddiff.judge.metrics.physics import physics_numbers
from xrddiff.judge.metrics.set_summaries import ENCODER, Ruler
from xrddiff.physics.indexing.indexer import make_indexer
from xrddiff.physics.simulation.simulate import simulate

COLUMNS = {
    "fano": "variance",
    "zeros": "zeros",
    "width": "width",
    "completeness": "found",
    "on_lattice": "on lattice",
    "rate": "indexed",
}
LEGEND = """- profile, histogram, peaks, diversity: distances of the set from the reference, as multiples of the distance of the untouched frames;
- Fréchet: the same, of the features of the encoder ({encoder}); kernel: kernel distance of these features, 0 on average for equal sets, with a spread of {spread:.3f} between halves of the untouched frames;
- variance, zeros: scatter and empty pixels of the background, relative to what photons give;
- width: of strong spots, px;
- found: share of the spots predicted by the lattice that have a peak; on lattice: share of a frame's peaks that the best lattice indexes; indexed: share of the frames that have a lattice.

The metric named for a corruption is bold. Spots that were shuffled to other azimuths are seen by the last three alone."""


def short(distance: str) -> str:
    """A distance's name as a heading of a wide table."""
    return {"peak_count": "peaks", "frechet": "Fréchet"}.get(distance, distance)


def main() -> None:
    parser = make_parser(__doc__, out=RESULTS / "corruptions.md")
    parser.add_argument("--shots", type=int, default=100)
    args = parser.parse_args()
    same_terms()
    frames = simulate("sim128", range(2 * args.shots), seed=7)
    reference, other = (select_frames(frames, part) for part in np.array_split(np.arange(2 * args.shots), 2))
    ruler = Ruler(reference)
    real = ruler.measure(reference, numbers=np.arange(args.shots))
    own = np.arange(args.shots)
    indexer = make_indexer(reference, frames.attrs["unit_cell"], controls=100, lattices=1)
    untouched = ruler.measure(other, numbers=own)
    floor, spread = set_distances(real, untouched), compare_sets(real, untouched)["kernel_spread"]

    def multiples(distances: dict[str, float]) -> dict[str, float]:
        return {short(d): distances[d] / floor[d] for d in DISTANCES} | {"kernel": distances["kernel"]}

    def numbers(ds: xr.Dataset) -> dict[str, float]:
        found = physics_numbers(ds, indexer)
        return {label: found[name] for name, label in COLUMNS.items()}

    rows = {("none", ""): multiples(floor) | numbers(other)}
    for name, (corrupt, grades) in CORRUPTIONS.items():
        for grade in grades:
            wrong = corrupt(other, grade)
            distances = set_distances(real, ruler.measure(wrong, numbers=own))
            rows[name, f"{grade:g}"] = multiples(distances) | numbers(wrong)
            print(name, grade, {k: round(v, 3) for k, v in rows[name, f"{grade:g}"].items()}, flush=True)
    table = pd.DataFrame(rows).T
    lines = [
        "# What the metrics see", "",
        f"`OMP_NUM_THREADS=1 python bench/corruptions.py --shots {args.shots}`; {machine('python')}.",
        f"Corrupted stills of sim128 against {args.shots} others:", "", LEGEND.format(encoder=ENCODER, spread=spread), "",
    ]  # fmt: skip
    shown = []
    for (name, grade), row in table.iterrows():
        cells = [f"**{v:.2f}**" if COLUMNS.get(NAMED.get(name)) == column else f"{v:.2f}" for column, v in row.items()]
        shown.append([name, grade, *cells])
    write_results(args.out, [*lines, *markdown(["corruption", "grade", *table.columns], shown, "l")])


if __name__ == "__main__":
    main()
