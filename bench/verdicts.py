"""Does the first line of a verdict flag samples that are wrong, and leave good ones alone?

    OMP_NUM_THREADS=1 python bench/verdicts.py [--frames 200] [--good 20] [--out bench/results/verdicts.md]

One run of a conditional model on sim128 is trained for a few steps. Its samples are then replaced: by fresh frames of the same simulation, which are as good as samples can be, and by frames that are wrong in one known way. Each set is
judged as `xrddiff evaluate` does, with its conditions, its lattices and the two-sample test. A set is flagged if the first line says "Do not use". Where it was asked for, the line shows the uses that it warns of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from harness import RESULTS, machine, make_parser, markdown, same_terms, write_results
from scipy.ndimage import gaussian_filter
from two_sample import other_wavelength, turned

from xrddiff.core.files import remove
from xrddiff.core.seeds import numpy_rng
from xrddiff.data.formats.store import read_store, save_frames
from xrddiff.data.frames.selection import select_frames
from xrddiff.data.transforms.values import DRAWN
from xrddiff.judge.inference.evaluation import blocks_of, open_evaluation
from xrddiff.judge.metrics.corruptions import blur, drop_peaks, gaussian_noise, shuffle_spots
from xrddiff.judge.metrics.verdict import Verdict, verdict_of
from xrddiff.physics.simulation.simulate import simulate

SEED, GROUP = 11, 50
WORDS = [
    "model=ddpm", "size=tiny", "data=sim128", "data.limit=1250", "model.condition=[hit_class]", "training.max_steps=4",
    "inference.num_samples=8", "inference.steps=2", "threads=1",
]  # fmt: skip


def values(ds: xr.Dataset) -> np.ndarray:
    return ds["intensity"].values.astype(np.float64)


def with_values(ds: xr.Dataset, x: np.ndarray) -> xr.Dataset:
    return ds.assign(intensity=(ds["intensity"].dims, x.astype(np.float32), ds["intensity"].attrs))


def drawn(ds: xr.Dataset, mean: np.ndarray) -> xr.Dataset:
    """Frames with other counts, of this mean."""
    return with_values(ds, numpy_rng("bench of verdicts").poisson(np.maximum(mean, 0)))


def overshoot(ds: xr.Dataset) -> xr.Dataset:
    """A fifth of the frames has pixels that were drawn far beyond the limits."""
    n = ds.sizes["frame"]
    beyond = np.where(np.arange(n) % 5 == 0, 300, 0)
    highest = np.where(beyond > 0, 1e6, ds["drawn_highest"].values)
    return ds.assign(dict(zip(DRAWN, (("frame", v) for v in (beyond, np.zeros(n), highest)), strict=True)))


def alike(ds: xr.Dataset) -> xr.Dataset:
    """The same brightness in every frame."""
    level = gaussian_filter(values(ds), (0, 8, 8)).mean((1, 2), keepdims=True)
    return drawn(ds, values(ds) * level.mean() / level)


def repeated(ds: xr.Dataset) -> xr.Dataset:
    """Eight frames, again and again with new noise."""
    return drawn(ds, gaussian_filter(values(ds), (0, 0.6, 0.6))[np.arange(ds.sizes["frame"]) % 8])


def stale_mask(ds: xr.Dataset) -> xr.Dataset:
    """The gaps of another detector."""
    x = values(ds)
    x[:, 60:64] = 0
    x[:, :, 30:33] = 0
    return with_values(ds, x)


def spotless(ds: xr.Dataset) -> xr.Dataset:
    x = values(ds)
    return drawn(ds, np.minimum(gaussian_filter(x, (0, 5, 5)), np.median(x, (1, 2), keepdims=True) * 2 + 1))


Wrong = Callable[[xr.Dataset, xr.Dataset], xr.Dataset]  # (fresh frames, training frames) -> samples
WRONG: dict[str, Wrong] = {
    "drawn far beyond the range": lambda ds, _: overshoot(ds),
    "condition ignored": lambda ds, _: ds.assign(hit_class=("frame", np.roll(ds["hit_class"].values, 7), ds["hit_class"].attrs)),
    "no spots": lambda ds, _: spotless(ds),
    "inverse of asinh left out": lambda ds, _: with_values(ds, np.rint(np.arcsinh(values(ds)))),
    "one brightness": lambda ds, _: alike(ds),
    "copies of training frames": lambda ds, train: with_values(ds, values(train)),
    "copies with other noise": lambda ds, train: drawn(ds, gaussian_filter(values(train), (0, 0.5, 0.5))),
    "one copy in five": lambda ds, train: with_values(ds, np.where(np.arange(ds.sizes["frame"])[:, None, None] % 5 == 0, values(train), values(ds))),
    "stale mask": lambda ds, _: stale_mask(ds),
    "blurred by 0.45 px": lambda ds, _: blur(ds, 0.45),
    "means instead of counts": lambda ds, _: with_values(ds, gaussian_filter(values(ds), (0, 0.8, 0.8))),
    "turned by 90°": lambda ds, _: turned(ds, 1),
    "turned by 180°": lambda ds, _: turned(ds, 2),
    "turned by 270°": lambda ds, _: turned(ds, 3),
    "wavelength + 2%": lambda ds, _: with_values(ds, values(other_wavelength(ds, 0.02, SEED))),
    "wavelength − 2%": lambda ds, _: with_values(ds, values(other_wavelength(ds, -0.02, SEED))),
    "3 of 5 peaks gone": lambda ds, _: drop_peaks(ds, 0.6),
    "all spots at other azimuths": lambda ds, _: shuffle_spots(ds, 1.0),
    "Gaussian noise": lambda ds, _: gaussian_noise(ds, 0.5),
    "eight frames, again and again": lambda ds, _: repeated(ds),
    "half as bright again": lambda ds, _: drawn(ds, 1.5 * values(ds)),
    "a photon more everywhere": lambda ds, _: with_values(ds, values(ds) + 1),
}  # fmt: skip


class Judge:
    """Judges sets in the place of the samples of a run; what does not depend on the samples is measured once."""

    def __init__(self, run: Path, words: list[str]):
        self.run, self.words, self.seen = run, words, {}
        self.template = read_store(run / "samples" / "samples.zarr").isel(frame=0)

    def samples(self, ds: xr.Dataset) -> xr.Dataset:
        """Frames of the simulation as the samples of the run, with its labels and attributes."""
        n, t = ds.sizes["frame"], self.template
        out = ds[["intensity", "mask", "cell", "orientation", "wavelength", "shot"]].load()
        crystals = np.isfinite(out["cell"].values).all(-1).sum(-1)
        out["hit_class"] = "frame", np.minimum(crystals, 2), t["hit_class"].attrs  # blank, single, multiple
        out["intensity"].attrs, out.attrs = dict(t["intensity"].attrs), dict(t.attrs)
        out["sample"] = "frame", np.arange(n)
        return out.assign({name: ("frame", np.full(n, v)) for name, v in zip(DRAWN, (0, 0.0, 1.0), strict=True)})

    def __call__(self, samples: xr.Dataset) -> Verdict:
        folder = self.run / "samples" / "judged"
        remove(folder)
        save_frames(samples, folder / "samples.zarr")
        evaluation = open_evaluation(self.run, self.words, "judged")
        for name, n in evaluation.prepare().items():
            if name not in self.seen or name.endswith(("samples", "answers")):
                self.seen[name] = [evaluation.measure(name, rows) for rows in blocks_of(n)]
        return verdict_of(evaluation.merge(self.seen))


def trained(folder: Path) -> Path:
    from xrddiff.app.front_door.door import train

    return train(*WORDS, output_dir=str(folder)).path


def main() -> None:
    parser = make_parser(__doc__, out=RESULTS / "verdicts.md")
    parser.add_argument("--frames", type=int, default=200, help="of each set")
    parser.add_argument("--good", type=int, default=20, help="sets of fresh frames")
    args = parser.parse_args()
    same_terms()
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(trained(Path(folder)), ["inference.index_frames=24", "inference.limit=250"])
        evaluation = open_evaluation(judge.run)
        train = select_frames(evaluation.prepared.frames, evaluation.prepared.train[: args.frames])
        sets: dict[str, Callable[[], xr.Dataset]] = {}
        for k in range(args.good):  # a frame of each group, so that no set has a group of its own
            shots = GROUP * np.arange(100, 100 + args.frames) + k
            sets[f"fresh, set {k + 1}"] = lambda shots=shots: judge.samples(simulate("sim128", shots, SEED))
        fresh = judge.samples(simulate("sim128", GROUP * np.arange(100, 100 + args.frames) + GROUP - 1, SEED))
        for name, wrong in WRONG.items():
            sets[name] = lambda wrong=wrong: wrong(fresh, train)
        for name, make in sets.items():
            verdict = judge(make())
            flagged = verdict.line.startswith("Do not use")
            rows.append([name, "flagged" if flagged else "good", verdict.line])
            print(*rows[-1], sep=" | ", flush=True)
    good, bad = rows[: args.good], rows[args.good :]
    flagged = [sum(row[1] == "flagged" for row in part) for part in (good, bad)]
    lines = ["# Verdicts", "", machine(f"{args.frames} frames of 128 × 128 pixels in each set"), ""]
    lines += [f"Flagged: {flagged[1]} of {len(bad)} wrong sets, {flagged[0]} of {len(good)} good ones.", ""]
    lines += markdown(["samples", "", "first line"], [*bad, *good], "lll")
    write_results(
        args.out, lines, {"wrong": flagged[1], "of wrong": len(bad), "good": flagged[0], "of good": len(good)}
    )


if __name__ == "__main__":
    main()
