"""Can the two-sample test tell corrupted frames from simulated ones, does it leave fresh ones alone, and what does it cost?

    OMP_NUM_THREADS=1 python bench/two_sample.py [--frames 250] [--fresh 20] [--out bench/results/two_sample.md]

Simulated stills of 128 × 128 pixels: one set to train on, one that is held out, and others in the place of samples. Of these one half is trained on and the other tested. Fresh frames of the same simulation are as good
as samples can be, and the test should find none of them; corrupted ones (xrddiff.judge.metrics.corruptions, and frames that are turned or of another wavelength) should be found. AUC: in how many of the pairs of a real frame
and a sample the classifier finds the sample, with an interval of 95%.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import xarray as xr
from harness import RESULTS, cpu_seconds, machine, make_parser, markdown, same_terms, write_results

from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.metrics.corruptions import blur, drop_peaks, gaussian_noise, shuffle_spots
from xrddiff.judge.metrics.set_summaries import Ruler, SetSummary
from xrddiff.judge.metrics.two_sample import GROUPS, TwoSample, two_sample
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import simulate

SEED = 7


def turned(ds: xr.Dataset, quarters: int) -> xr.Dataset:
    """Frames that are turned by so many times 90°, about their middle."""
    x = ds["intensity"]
    return ds.assign(intensity=(x.dims, np.rot90(x.values, quarters, (1, 2)).copy(), x.attrs))


def other_wavelength(ds: xr.Dataset, share: float, seed: int = SEED) -> xr.Dataset:
    """The same shots at a wavelength longer by this share, with the labels of the frames `ds`."""
    experiment = find_experiment("sim128")
    beam = replace(experiment.beam, wavelength=experiment.beam.wavelength * (1 + share))
    return ds.assign(intensity=simulate(replace(experiment, beam=beam), ds["shot"].values, seed)["intensity"])


WRONG: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "blurred by 0.45 px": lambda ds: blur(ds, 0.45),
    "blurred by 0.6 px": lambda ds: blur(ds, 0.6),
    "Gaussian noise in 1 of 4 pixels": lambda ds: gaussian_noise(ds, 0.25),
    "1 of 5 peaks gone": lambda ds: drop_peaks(ds, 0.2),
    "2 of 5 peaks gone": lambda ds: drop_peaks(ds, 0.4),
    "turned by 90°": lambda ds: turned(ds, 1),
    "turned by 180°": lambda ds: turned(ds, 2),
    "turned by 270°": lambda ds: turned(ds, 3),
    "wavelength + 2%": lambda ds: other_wavelength(ds, 0.02),
    "wavelength − 2%": lambda ds: other_wavelength(ds, -0.02),
    "wavelength + 5%": lambda ds: other_wavelength(ds, 0.05),
    "all spots at other azimuths": lambda ds: shuffle_spots(ds, 1.0),
}


def main() -> None:
    parser = make_parser(__doc__, out=RESULTS / "two_sample.md")
    parser.add_argument("--frames", type=int, default=250, help="of each set")
    parser.add_argument("--fresh", type=int, default=20, help="sets of fresh frames")
    args = parser.parse_args()
    same_terms()
    n = args.frames
    frames = simulate("sim128", range((3 + args.fresh) * n), seed=SEED)
    sets = [np.arange(k * n, (k + 1) * n) for k in range(3 + args.fresh)]
    ruler = Ruler(select_frames(frames, sets[1]))
    train, real = (ruler.measure(select_frames(frames, at)) for at in sets[:2])
    spent: list[tuple[float, float]] = []

    def test(ds: xr.Dataset) -> TwoSample:
        start = cpu_seconds()
        made: SetSummary = ruler.measure(ds)
        measured = cpu_seconds()
        found = two_sample(train, real, made)
        spent.append((measured - start, cpu_seconds() - measured))
        return found

    head = ["samples", "AUC", "from", "to", *GROUPS, "all", "pictures", "looks most at"]
    rows = []

    def add(name: str, found: TwoSample) -> None:
        numbers = [
            found.value,
            *found.interval,
            *(found.table["auc"].get(k, np.nan) for k in (*GROUPS, "all", "pictures")),
        ]
        rows.append([name, *(f"{v:.2f}" for v in numbers), found.weights.loc[0, "name"]])

    fresh = [test(select_frames(frames, at)) for at in sets[3:]]
    add("fresh, the first of them", fresh[0])
    for name, change in WRONG.items():
        add(name, test(change(select_frames(frames, sets[2]))))
    values, above = np.array([f.value for f in fresh]), sum(f.interval[0] > 0.5 for f in fresh)
    measuring, testing = np.array(spent[1:]).T  # the first one also imports scikit-learn
    text = [
        "# Two-sample test",
        "",
        machine(f"{n} frames of 128 × 128 pixels in each set"),
        "",
        *markdown(head, rows),
        "",
        f"Fresh frames, {len(fresh)} sets: AUC {values.min():.2f} to {values.max():.2f}, mean {values.mean():.3f}; the interval lies above 0.5 in {above}.",
        "",
        f"CPU seconds of one core for a set: {np.median(measuring):.1f} to measure its frames with everything else that a judgement needs of them, {np.median(testing):.1f} to train and test the classifiers.",
    ]
    write_results(args.out, text)


if __name__ == "__main__":
    main()
