"""How far beyond the training frames do real frames go, and what is drawn; and does it cost anything to cut it?

    OMP_NUM_THREADS=1 python bench/ranges.py [--runs FOLDER] [--samples 120] [--cases digits sim128]

First, real frames alone: over many splits, the largest held-out pixel over the largest training pixel. So the headroom of `xrddiff.data.transforms.values` was chosen.
Then two models are trained with the words below (a run that is in FOLDER already is taken as it is), and the same samples come back in four ways: as the inverse gives them without limits, within the limits, cut at the largest
training pixel, and drawn with `inference.clamp=true`. A classifier that the run trains on its real frames says how many are what was asked for.
Writes bench/results/ranges.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from harness import make_parser, markdown, same_terms, write_results

from xrddiff.app.verbs.main import main as command
from xrddiff.config.plan import inference_plan
from xrddiff.data.frames.frames import frame_count, frame_image, frame_mask
from xrddiff.data.frames.selection import select_frames
from xrddiff.data.transforms.values import HEADROOM, drawn_range
from xrddiff.judge.inference.judges import ConditionJudges
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.metrics.diversity import wilson_interval
from xrddiff.learn.loading.datasets import open_data, prepare_planned
from xrddiff.physics.simulation.simulate import simulate

TRAIN = ["training.batch_size=16", "inference.num_samples=64", "inference.index_frames=0", "training.sample_every=null"]
CASES = {
    "digits": ["model=ddpm", "model.condition=[digit]", "training.max_steps=640"],
    "sim128": ["model=ddpm", "data=sim128", "model.condition=[hit_class]", "data.limit=256", "data.crop=[64,64]", "training.max_steps=150"],
}  # fmt: skip


def write_digits(path: Path) -> Path:
    """scikit-learn's handwritten digits (UCI, 8 x 8, values 0 to 16) at 32 x 32 pixels, with their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.nn.functional.interpolate(torch.from_numpy(data.images).float()[:, None], 32, mode="bilinear")[:, 0]
    with h5py.File(path, "w") as f:
        f["/entry/data/data"], f["/entry/data/digit"] = x.numpy(), data.target
    return path


def largest(frames: object) -> np.ndarray:
    """The largest valid pixel of each frame."""
    n = frame_count(frames)
    return np.array([np.asarray(frame_image(frames, i))[frame_mask(frames, i)].max() for i in range(n)], float)


def real_rows(splits: int = 2000) -> Iterator[list[str]]:
    """Rows of the first table."""
    from sklearn.datasets import load_digits

    panels = open_data("cspad-lysozyme")
    x, mask = panels["intensity"].values[0].astype(float), frame_mask(panels, 0)
    sets = {
        "sim128": (largest(simulate("sim128", range(1500))), (64, 256, 1000)),
        "digits": (load_digits().images.max((1, 2)), (64, 256, 1000)),
        "panels of a CSPAD still": (np.where(mask, x, -np.inf).max((1, 2)), (64,)),
    }
    for name, (top, sizes) in sets.items():
        for n in sizes:
            rng, ratio, cut = np.random.default_rng(0), [], []
            for _ in range(splits):
                own = top[rng.choice(len(top), n, replace=False)]
                train, held = own[n // 5 :], own[: n // 5]
                ratio.append(held.max() / train.max())
                cut.append((held > HEADROOM * train.max()).mean())
            cells = [*np.quantile(ratio, [0.5, 0.9, 0.99]), (np.array(ratio) > HEADROOM).mean(), np.mean(cut)]
            yield [name, str(n), *(f"{v:.2f}" for v in cells[:3]), *(f"{v:.2%}" for v in cells[3:])]


def trained(name: str, folder: Path) -> Path:
    """The run of a case, trained if it is not there."""
    run = folder / "ddpm" / name
    if not (run / "report.html").is_file():
        words = [*CASES[name], *TRAIN]
        if name == "digits":
            words.append(f"data.data_path={write_digits(folder / 'digits.h5')}")
        assert command(["run", *words, f"output_dir={folder}", f"run_name={name}"]) == 0
    return run


def drawn_rows(name: str, run: Path, samples: int) -> Iterator[list[str]]:
    """Rows of the second table."""
    words = [f"inference.num_samples={samples}", "inference.batch_size=20"]
    plan, prepared = inference_plan(run, words), None
    for label, more in (("as drawn", []), ("within the limits", []), ("cut at the largest training pixel", []), ("inference.clamp=true", ["inference.clamp=true"])):  # fmt: skip
        job = open_sample_job(run, [*words, *more], device="cpu")
        g = job.generator
        if prepared is None:
            prepared = prepare_planned(plan, g.transform, g.classes)
            top = max(float(largest(select_frames(prepared.frames, prepared.train)).max()), 1e-9)
            judges = ConditionJudges(run, plan, prepared, g.fields)
            judges.fit()
        if label == "as drawn":
            g.__dict__["limits"] = None
        elif label.startswith("cut"):
            g.__dict__["limits"] = (min(0.0, g.limits[0]), top)
        frames, _ = g.sample(range(samples), job.settings)
        found, (asked,) = drawn_range(frames), judges.names
        right = judges.measure(frames, frames)
        hit = float((right.asked[asked] == right.got[asked]).mean())
        low, high = wilson_interval(hit, samples, 0.95)
        x = frames["intensity"].values[:, frame_mask(frames, 0)]
        yield [
            name, label, f"{x.max() / top:.3g}", f"{(x > top * (1 + 1e-5)).mean():.2%}",
            "" if found is None else f"{found['beyond'] / found['frames']:.0%}", "" if found is None else f"{found['pixels']:.2%}", f"{hit:.2f} ({low:.2f}–{high:.2f})",
        ]  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=Path, help="where the runs are kept; a temporary folder without it")
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    same_terms()
    real, rows = list(real_rows()), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.runs or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.cases:
            rows += drawn_rows(name, trained(name, folder), args.samples)
    words = "\n".join(f"- {name}: `{' '.join([*CASES[name], *TRAIN])}`" for name in args.cases)
    lines = [
        "# What is drawn beyond the data", "",
        "`OMP_NUM_THREADS=1 python bench/ranges.py`", "",
        f"Real frames: the largest held-out pixel over the largest training pixel, over 2000 splits of so many frames, a fifth of them held out: median, 90% and 99% quantile; the share of splits in which it is above {HEADROOM:g}; and the share of held-out frames with a pixel above {HEADROOM:g} times the largest of the training.", "",
        *markdown(["frames", "of them", "median", "90%", "99%", f"splits above {HEADROOM:g}", "frames cut"], real, "l"), "",
        f"Drawn frames, {args.samples} of each model: their largest pixel over the largest training pixel, the share of their pixels above that one, the share of samples and of pixels that the limits cut, and the share of samples in which a classifier, trained on real training frames, sees what was asked for (95%, Wilson).", "",
        *markdown(["model", "samples", "largest", "pixels above", "samples cut", "pixels cut", "right class"], rows, "l"), "",
        "The models were trained with", "", words, "",
    ]  # fmt: skip
    print(write_results("ranges", lines))


if __name__ == "__main__":
    main()
