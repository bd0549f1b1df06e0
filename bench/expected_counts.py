"""What do the network of expected counts, and being told how bright a frame is, do for samples?

    OMP_NUM_THREADS=1 python bench/expected_counts.py [--seeds 5] [--long 1] [--samples 600] [--folder FOLDER]

Trains the model of `make demo` three times for each seed: told the hit class alone, also the levels of background and spots, and these without the maps of the crystals. Each is sampled with its network of expected counts and without it. For `--long` seeds it also
trains four times as many frames for eight times as many steps (half an hour on two cores). A classifier tells samples from held-out frames (AUC of the two-sample test); beside it stand what a judge of brightness looks at, and the best that a simulator does without a
model: its spots on measured blanks. `--folder` keeps the runs and goes on with those that are there. Writes bench/results/expected_counts.md and .json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from harness import machine, make_parser, markdown, same_terms, trained_run, write_results

from xrddiff.config.plan import inference_plan
from xrddiff.data.frames.labels import background_level, with_labels
from xrddiff.data.frames.noise import draw_counts
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.evaluation import SampleEvaluation, units_by_name
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.metrics.frame_statistics import FrameStatistics
from xrddiff.judge.metrics.set_summaries import SetSummary
from xrddiff.judge.metrics.two_sample import two_sample
from xrddiff.physics.simulation.experiments import EXPERIMENTS, Background
from xrddiff.physics.simulation.simulate import simulate

NO_MAPS = "hit class and levels, no maps"
TOLD = {"hit class": ["model.condition=[hit_class]"], "hit class and levels": [], NO_MAPS: ["model.condition_maps=[]"]}
LONG = "half an hour"
LONGER = "data.limit=5000 training.num_epochs=8 training.lr=2e-3 training.ema_decay=0.995 training.counts_steps=4000 model.diff_epochs=16 model.diff_lr=1e-3".split()
NUMBERS = {
    "auc": ("AUC, samples", ".2f"),
    "auc_autoencoder": ("AUC, reconstructions", ".2f"),
    "peaks_sd": ("peaks of single hits, sd", ".1f"),
    "background_sd": ("log background, sd", ".2f"),
    "fano": ("log of variance / mean", ".3f"),
}


def train(told: str, seed: int, folder: Path) -> Path:
    """The run of a variant, trained unless it is there."""
    words = ["experiment_type=demo", *(TOLD | {LONG: LONGER})[told], f"training.seed={seed}"]
    return trained_run(folder, f"{told.replace(',', '').replace(' ', '_')}-{seed}", words)


def spots_on_blanks(train: xr.Dataset, count: int, seed: int) -> xr.Dataset:
    """The simulator's spots of new shots on measured frames without any, drawn with replacement."""
    experiment = replace(EXPERIMENTS["sim128"], background=Background(water=0.0, air=0.0))
    frames = with_labels(simulate(experiment, range(count), seed=1000 + seed).load(), ["hit_class"])
    blank = np.flatnonzero(train["hit_class"].values == 0)
    rng = np.random.default_rng(seed)
    frames["intensity"].values += train["intensity"].values[rng.choice(blank, count)]
    return frames


def numbers_of(frames: xr.Dataset, summary: SetSummary) -> dict[str, float]:
    """What is said of counted frames: the spread of their peaks and backgrounds, and their noise."""
    single = frames["hit_class"].values == 1
    peaks = np.bincount(find_frame_peaks(frames)["frame"], minlength=len(single))
    fano = summary.statistics[:, [name for _, name in FrameStatistics.names].index("log of variance / mean")]
    return {
        "peaks_sd": float(peaks[single].std()),
        "background_sd": float(np.log(background_level(frames)).std()),
        "fano": float(np.nanmean(fano)),
    }


def judged(run: Path, samples: int, seed: int) -> dict[str, dict[str, float]]:
    """The numbers of held-out frames, of samples with and without the network, and of spots on blanks."""
    words = [f"inference.num_samples={samples}", "inference.batch_size=50"]
    evaluation = SampleEvaluation(run, inference_plan(run, words), run / "samples" / "samples.zarr")
    train, real = (evaluation.measure(name, slice(None)) for name in ("train", "held out"))
    named = units_by_name(evaluation.prepared.frames, evaluation.numbers)
    frames, units = np.concatenate([train.statistics, real.statistics]), [*named["train"], *named["held out"]]

    def auc(made: SetSummary, own: list[str]) -> float:
        return two_sample(frames, made.statistics, units=(units, own)).value

    drawn_alone = [f"sample {i}" for i in range(samples)]
    held, learnt = (
        select_frames(evaluation.prepared.frames, part).load()
        for part in (evaluation.judged, evaluation.prepared.train)
    )
    blanks = spots_on_blanks(learnt, samples, seed)
    shown = evaluation.ruler.measure(blanks)
    out = {"held out": numbers_of(held, real)}
    out["blanks"] = numbers_of(blanks, shown) | {"auc": auc(shown, drawn_alone)}
    for name in ("without", "with"):
        job = open_sample_job(run, words)
        if name == "without":
            job.generator = replace(job.generator, counts=None)
            evaluation.generator = replace(evaluation.generator, counts=None)
        else:
            evaluation.generator = job.generator
        drawn, _ = job.make(slice(None))
        made, counted = evaluation.ruler.measure(drawn, draw=0), draw_counts(drawn, 0)
        again = evaluation.measure("autoencoder", slice(None))
        out[name] = numbers_of(counted, made) | {
            "auc": auc(made, drawn_alone),
            "auc_autoencoder": auc(again, list(named["held out"])),
        }
    return out


def row(first: str, seeds: list[dict[str, float]]) -> list[str]:
    """Mean ± spread over the seeds."""

    def cell(name: str, form: str) -> str:
        values = [s[name] for s in seeds if name in s]
        if not values:
            return "–"
        return f"{np.mean(values):{form}}" + (f" ± {np.std(values):{form}}" if len(values) > 1 else "")

    return [first, *(cell(name, form) for name, (_, form) in NUMBERS.items())]


def page(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    first = found["hit class"]
    rows = [row("held-out frames", [s["held out"] for s in first])]
    rows.append(row("the simulator's spots on measured blanks", [s["blanks"] for s in first]))
    for told, seeds in found.items():
        if told == LONG:
            rows.append(row("held-out frames of the longer set", [s["held out"] for s in seeds]))
            rows.append(row("the simulator's spots on its measured blanks", [s["blanks"] for s in seeds]))
        for name in ("without", "with"):
            words = "told hit class and levels, half an hour" if told == LONG else f"told {told}"
            rows.append(row(f"{words}, {name} the network", [s[name] for s in seeds]))
    return [
        "# Expected counts and levels",
        "",
        f"`OMP_NUM_THREADS=1 python bench/expected_counts.py --seeds {len(first)} --long {len(found.get(LONG, []))} --samples {args.samples}`; {machine('one thread')}.",
        "",
        "The model of `make demo`, told the hit class alone or also the levels of background and spots, and these without the maps of the crystals, sampled with its network of expected counts and without it. Mean ± spread over the seeds. AUC: of the cross-fitted classifiers of the two-sample test; 0.5 is chance.",
        "",
        *markdown(["", *(title for title, _ in NUMBERS.values())], rows),
        "",
        f"Half an hour, on two cores: `xrddiff run experiment_type=demo {' '.join(LONGER)}`. The spots on blanks are drawn by the simulator that made the frames, which knows all of their spots: a baseline that is hard to beat.",
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--long", type=int, default=1)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    same_terms()
    with tempfile.TemporaryDirectory() as own:
        folder = args.folder or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {told: [] for told in TOLD} | ({LONG: []} if args.long else {})
        for seed in range(max(args.seeds, args.long)):
            for told in [*(TOLD if seed < args.seeds else ()), *([LONG] if seed < args.long else ())]:
                found[told].append(judged(train(told, seed, folder), args.samples, seed))
            write_results("expected_counts", page(found, args), found)  # a bench that is stopped keeps its seeds


if __name__ == "__main__":
    main()
