"""What do the network of expected counts, and being told how bright a frame is, do for samples?

    OMP_NUM_THREADS=1 python bench/expected_counts.py [--seeds 5] [--samples 250] [--folder FOLDER]

Trains the model of `make demo` twice for each seed, told the hit class alone, and also the levels of background and spots. Each is sampled with its network of expected counts and without it. A classifier tells samples from held-out frames (AUC of the two-sample test);
beside it stand what a judge of brightness looks at. `--folder` keeps the runs and goes on with those that are there. Writes bench/results/expected_counts.md and .json.
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

from xrddiff.config.composition import inference_config
from xrddiff.data.frames.labels import background_level
from xrddiff.data.frames.noise import draw_counts
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.evaluation import SampleEvaluation
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.metrics.frame_statistics import FrameStatistics
from xrddiff.judge.metrics.set_summaries import SetSummary
from xrddiff.judge.metrics.two_sample import two_sample

TOLD = {"hit class": ["model.condition=[hit_class]"], "hit class and levels": []}
NUMBERS = {
    "auc": ("AUC, samples", ".2f"),
    "auc_autoencoder": ("AUC, reconstructions", ".2f"),
    "peaks_sd": ("peaks of single hits, sd", ".1f"),
    "background_sd": ("log background, sd", ".2f"),
    "fano": ("log of variance / mean", ".3f"),
}


def train(told: str, seed: int, folder: Path) -> Path:
    """The run of a variant, trained unless it is there."""
    words = ["experiment_type=demo", *TOLD[told], f"training.seed={seed}"]
    return trained_run(folder, f"{told.replace(' ', '_')}-{seed}", words)


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


def judged(run: Path, samples: int) -> dict[str, dict[str, float]]:
    """The numbers of held-out frames, and of samples with and without the network."""
    words = [f"inference.num_samples={samples}", "inference.batch_size=50"]
    evaluation = SampleEvaluation(run, inference_config(run, words), run / "samples" / "samples.zarr")
    train, real = (evaluation.measure(name, slice(None)) for name in ("train", "held out"))
    held = select_frames(evaluation.prepared.frames, evaluation.judged).load()
    out = {"held out": numbers_of(held, real)}
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
            "auc": two_sample(train, real, made).value,
            "auc_autoencoder": two_sample(train, real, again).value,
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
    rows = [row("held-out frames", [s["held out"] for s in found["hit class"]])]
    for told, seeds in found.items():
        for name in ("without", "with"):
            rows.append(row(f"told {told}, {name} the network", [s[name] for s in seeds]))
    return [
        "# Expected counts and levels",
        "",
        f"`OMP_NUM_THREADS=1 python bench/expected_counts.py --seeds {len(found['hit class'])} --samples {args.samples}`; {machine('one thread')}.",
        "",
        "The model of `make demo`, told the hit class alone or also the levels of background and spots, sampled with its network of expected counts and without it. AUC: a classifier trained on training frames and half of the samples, and tested on held-out frames and the other half; .5 is chance.",
        "",
        *markdown(["", *(title for title, _ in NUMBERS.values())], rows),
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=250)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    same_terms()
    with tempfile.TemporaryDirectory() as own:
        folder = args.folder or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {told: [] for told in TOLD}
        for seed in range(args.seeds):
            for told in TOLD:
                found[told].append(judged(train(told, seed, folder), args.samples))
            write_results("expected_counts", page(found, args), found)  # a bench that is stopped keeps its seeds


if __name__ == "__main__":
    main()
