"""Is a set of frames that is wrong in one known way, or cheats, praised?

    OMP_NUM_THREADS=1 python bench/fooling.py [--frames 100 500 2000] [--only mirrored …] [--folder FOLDER]

Stills of `sim128` of 128 × 128 pixels, each of a shot group of its own: some to train on, as many that are held out, and fresh ones. Each cheat changes the fresh frames, or puts changed training frames in their place. Every set is judged as
`xrddiff evaluate` does, with indexing. The table has the first line of the verdict, and whether it is right: a wrong set is *found* ("Do not use …"), *suspected*, *too few* (the line says that so few frames do not show it), or *missed*; a fresh
set is *clear*, *too few*, or *accused*. Writes bench/results/fooling.json and fooling.md. Twenty minutes of one core for 500 frames, an hour for 2,000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import xarray as xr
from harness import RESULTS, machine, make_parser, markdown, read_results, same_terms, write_results
from scipy.ndimage import gaussian_filter

from xrddiff.core.seeds import numpy_rng
from xrddiff.data.frames.frames import frame_count
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.evaluation import SetLattices
from xrddiff.judge.metrics.corruptions import blur, drop_peaks, gaussian_noise, shuffle_spots
from xrddiff.judge.metrics.judgement import judge_summaries
from xrddiff.judge.metrics.set_summaries import Ruler, SetSummary
from xrddiff.judge.metrics.verdict import Verdict, verdict_of
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import simulate

SEED, GROUP, INDEXED = 7, 50, 60


def counts(ds: xr.Dataset) -> np.ndarray:
    return ds["intensity"].values.astype(np.float64)


def with_counts(ds: xr.Dataset, x: np.ndarray) -> xr.Dataset:
    return ds.assign(intensity=(ds["intensity"].dims, np.maximum(x, 0).astype(np.float32), ds["intensity"].attrs))


def drawn(ds: xr.Dataset, rng: np.random.Generator, mean: np.ndarray) -> xr.Dataset:
    return with_counts(ds, rng.poisson(np.maximum(mean, 0)))


def mirrored_at_beam(ds: xr.Dataset) -> xr.Dataset:
    x, centre = counts(ds), ds.attrs["beam_center"][0]
    there = np.rint(2 * centre - 1 - np.arange(x.shape[2])).astype(int)
    inside, out = (there >= 0) & (there < x.shape[2]), counts(ds)
    out[:, :, inside] = x[:, :, there[inside]]
    return with_counts(ds, out)


def again(ds: xr.Dataset, **changes: float) -> xr.Dataset:
    """The same shots of an experiment with another beam."""
    experiment = find_experiment("sim128")
    beam = replace(experiment.beam, **{k: getattr(experiment.beam, k) * v for k, v in changes.items()})
    return with_counts(ds, counts(simulate(replace(experiment, beam=beam), ds["shot"].values, SEED)))


def duller(ds: xr.Dataset, factor: float = 0.8) -> xr.Dataset:
    """The same shots, with brightness of beam and jet that varies less."""
    experiment = find_experiment("sim128")
    beam = replace(experiment.beam, spread=experiment.beam.spread * factor)
    old = experiment.background
    jet = replace(old, spread=old.spread * factor, group_spread=old.group_spread * factor)
    return with_counts(ds, counts(simulate(replace(experiment, beam=beam, background=jet), ds["shot"].values, SEED)))


def one_background(ds: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """The spots of each frame stand on the background of the first."""
    smooth = gaussian_filter(counts(ds), (0, 6, 6))
    spots = np.where(counts(ds) > smooth + 5 * np.sqrt(smooth + 1), counts(ds) - smooth, 0)
    return with_counts(ds, rng.poisson(np.broadcast_to(smooth[:1], spots.shape)) + np.rint(spots))


def mixed_in(ds: xr.Dataset, other: xr.Dataset, rng: np.random.Generator, share: float = 0.1) -> xr.Dataset:
    chosen = rng.random(frame_count(ds)) < share
    return with_counts(ds, np.where(chosen[:, None, None], counts(other), counts(ds)))


Cheat = Callable[[xr.Dataset, xr.Dataset, np.random.Generator], xr.Dataset]  # (fresh, training frames, rng) -> samples
WRONG: dict[str, Cheat] = {
    "training frames": lambda ds, train, rng: with_counts(ds, counts(train)),
    "training frames, half of their photons": lambda ds, train, rng: with_counts(ds, rng.binomial(counts(train).astype(int), 0.5)),
    "training frames, Poisson again": lambda ds, train, rng: drawn(ds, rng, counts(train)),
    "training frames, mirrored at the beam": lambda ds, train, rng: with_counts(ds, counts(mirrored_at_beam(train))),
    "training frames, flipped": lambda ds, train, rng: with_counts(ds, counts(train)[:, ::-1]),
    "training frames, turned by 90°": lambda ds, train, rng: with_counts(ds, np.rot90(counts(train), 1, (1, 2))),
    "training frames, shifted by (2, −3) px": lambda ds, train, rng: with_counts(ds, np.roll(counts(train), (2, -3), (1, 2))),
    "10% training frames mixed in": lambda ds, train, rng: mixed_in(ds, train, rng),
    "25 frames, again and again": lambda ds, train, rng: drawn(ds, rng, counts(ds)[np.arange(frame_count(ds)) % 25]),
    "5% of the spots moved": lambda ds, train, rng: shuffle_spots(ds, 0.05),
    "30% of the spots moved": lambda ds, train, rng: shuffle_spots(ds, 0.3),
    "1 of 5 peaks gone": lambda ds, train, rng: drop_peaks(ds, 0.2),
    "blurred by 0.3 px": lambda ds, train, rng: blur(ds, 0.3),
    "means instead of counts": lambda ds, train, rng: with_counts(ds, gaussian_filter(counts(ds), (0, 0.8, 0.8))),
    "Gaussian noise in 1 of 4 pixels": lambda ds, train, rng: gaussian_noise(ds, 0.25),
    "spread of brightness a fifth smaller": lambda ds, train, rng: duller(ds),
    "background of one frame on all": lambda ds, train, rng: one_background(ds, rng),
    "gain wrong by 3%": lambda ds, train, rng: with_counts(ds, np.rint(1.03 * counts(ds))),
    "spots clipped at 200 photons": lambda ds, train, rng: with_counts(ds, np.minimum(counts(ds), 200)),
    "polarisation absent": lambda ds, train, rng: again(ds, polarization=0.0),
    "wavelength + 1%": lambda ds, train, rng: again(ds, wavelength=1.01),
    "a photon more everywhere": lambda ds, train, rng: with_counts(ds, counts(ds) + 1),
    "turned by 180°": lambda ds, train, rng: with_counts(ds, counts(ds)[:, ::-1, ::-1]),
}  # fmt: skip


class Judge:
    """Judges sets in the place of samples, beside `n` training and `n` held-out frames."""

    def __init__(self, n: int):
        shots = GROUP * np.arange(3 * n) + 7
        self.train, self.held, self.fresh = (simulate("sim128", part, SEED).load() for part in np.array_split(shots, 3))
        self.ruler, self.n = Ruler(self.held), n
        self.seen: dict[str, SetSummary] = {
            "train": self.ruler.measure(self.train, numbers=range(n)),
            "held out": self.ruler.measure(self.held, numbers=range(n, 2 * n)),
        }
        self.lattices = {"held out": self.indexed(self.held)}

    def indexed(self, ds: xr.Dataset) -> list:
        one = SetLattices(None, INDEXED, SEED, lambda _, at: select_frames(ds, at))
        return [one.measure("frames", one.chosen({"frames": frame_count(ds)})["frames"], slice(None))]

    def __call__(self, samples: xr.Dataset) -> Verdict:
        why: dict[str, str] = {}
        seen = self.seen | {"samples": self.ruler.measure(samples, numbers=range(self.n))}
        tables = SetLattices(None, INDEXED, SEED, lambda *_: samples).tables(
            self.lattices | {"samples": self.indexed(samples)}, why
        )
        return verdict_of(judge_summaries(seen, self.ruler, splits=4, lattices=tables, why=why))


def outcome(verdict: Verdict, wrong: bool) -> str:
    """The one word that stands for a first line."""
    if verdict.line.startswith("Do not use"):
        return "found" if wrong else "accused"
    if verdict.uses("suspected"):
        return "suspected" if wrong else "accused"
    if verdict.uses("not seen"):
        return "missed" if wrong else "clear"
    return "too few"


def main() -> None:
    parser = make_parser(__doc__, out=RESULTS / "fooling.md")
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 500, 2000], help="of each set")
    parser.add_argument("--only", nargs="+", help="names of sets")
    args = parser.parse_args()
    same_terms()
    known = read_results("fooling", {})
    for n in args.frames:
        judge, rows = Judge(n), dict(known.get(str(n), {}))
        sets: dict[str, Cheat] = {"fresh frames": lambda ds, train, rng: ds} | WRONG
        for name in args.only or sets:
            verdict = judge(sets[name](judge.fresh, judge.train, numpy_rng("fooling", name)))
            auc = next((r for r in verdict.remarks if "AUC" in r), "")
            rows[name] = {"outcome": outcome(verdict, name in WRONG), "line": verdict.line, "remark": auc}
            print(n, name, rows[name]["outcome"], verdict.line[:160], sep=" | ", flush=True)
        known[str(n)] = rows
        write_results(args.out, page_of(known), known)


def page_of(known: dict) -> list[str]:
    """The page: outcomes by number of frames, and the first lines of the largest sets."""
    sizes = sorted(known, key=int)
    names = [name for name in ["fresh frames", *WRONG] if any(name in known[n] for n in sizes)]
    lines = ["# Sets that try to fool the judge", "", "`OMP_NUM_THREADS=1 python bench/fooling.py`", ""]
    lines += [machine("frames of 128 × 128 pixels; as many training and held-out frames as samples"), ""]
    for n in sizes:
        tally = [known[n][name]["outcome"] for name in WRONG if name in known[n]]
        parts = [f"{tally.count(word)} {word}" for word in ("found", "suspected", "too few", "missed") if word in tally]
        lines.append(f"- {n} frames: of {len(tally)} wrong sets {', '.join(parts)}.")
    lines += [
        "",
        *markdown(
            ["samples", *(f"{n} frames" for n in sizes)],
            [[name, *(known[n].get(name, {}).get("outcome", "") for n in sizes)] for name in names],
            "l" * (1 + len(sizes)),
        ),
    ]
    for n in sizes:
        lines += [
            "",
            f"## First lines, {n} frames",
            "",
            *markdown(
                ["samples", "first line"], [[name, known[n][name]["line"]] for name in names if name in known[n]], "ll"
            ),
        ]
    return lines


if __name__ == "__main__":
    main()
