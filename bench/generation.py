"""How far are samples from real frames? Trains each generative model on simulated stills, samples it, and compares with the floor that two sets of real frames set.

`python bench/generation.py` runs `xrddiff run model=M experiment_type=scratch` for every generative model, with the settings of the presets and about as many minutes each (1000 training frames of sim128, tiny sizes), and writes
bench/results/generation.md and .json, which the table of README.md is made from. `--only latent pixel autoregressive photons classes samplers` for some of it; `--folder` keeps the runs, and goes on with those that are there.
Ten to twenty minutes of one core for each model, and as much for `samplers`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import RESULTS, make_parser, markdown, read_results, timed, trained_run, turns, write_results

from xrddiff.config.plan import saved_plan
from xrddiff.config.saved_config import load_config
from xrddiff.config.words.data import AUTOMASK
from xrddiff.config.words.vocabulary import Config, get_word, vocabulary
from xrddiff.judge.metrics.distribution import DISTANCES
from xrddiff.judge.metrics.judgement import title_of

COMMON = [
    "experiment_type=scratch",
    "inference.guidance_scale=1",
    "inference.num_samples=250",
    "inference.batch_size=50",
]  # all else is as the presets have it
MODELS = {
    "latent": ["model=latent_diff", *COMMON],
    "pixel": ["model=ddpm", *COMMON, "model.diff_epochs=11"],  # a step of these costs more
    "autoregressive": ["model=diff", *COMMON, "model.diff_epochs=11"],
    "photons": ["model=photons", *COMMON],
    # a small latent, so that a thousand evaluations for each of 5 x 32 samples end on a laptop
    "samplers": [
        "model=latent_diff",
        *COMMON,
        "model.downsampling=8",
        "model.latent_channels=4",
        "model.network_options={patch: 1}",
        "model.diff_epochs=24",
    ],
}


def train(name: str, folder: Path) -> tuple[Path, float]:
    """The run folder of a model, trained unless it is there, and the seconds of CPU that training and sampling took."""
    run = trained_run(folder, name, MODELS[name])
    return run, float((run / "cpu_seconds.txt").read_text())


def settings(cfg: Config) -> dict[str, Any]:
    """The value of each word that decides what a run makes, by which a table is found to be older than its presets.

    The default rules of automask are left out: a named set has its own mask. So is where the training is followed,
    which changes nothing in it.
    """
    followed = {"training.trackers", "training.tracker_options", "training.project", "training.tags"}
    names = [n for n in sorted(vocabulary()) if n.partition(".")[0] in ("data", "model", "training", "inference")]
    names = [n for n in names if n != "data.automask" or list(cfg.data.automask) != list(AUTOMASK)]
    return {name: value for name in names if name not in followed and "/" not in (value := str(get_word(cfg, name)))}


def quality(name: str, folder: Path) -> dict:
    """Distances of the samples of a trained model, and of its floors, and the classifier that tells sets from real frames."""
    run, seconds = train(name, folder)
    found = json.loads((run / "metrics" / "generation.json").read_text())
    rows = {label: {d: row[d] for d in DISTANCES} for label, row in found["rows"].items()}
    told = {label: t["table"]["all"] for label, t in found["two_samples"].items()}
    return {
        "words": MODELS[name],
        "settings": settings(load_config(run / "config.yaml")),
        "minutes": seconds / 60,
        "n": found["rows"]["samples"]["n"],
        "rows": rows,
        "told": told,
        "verdict": found["verdict"],
        "copies": found["copies"],
    }


def picture(folder: Path, model: str = "latent", n: int = 9) -> None:
    """docs/pictures/samples.png: held-out frames beside samples of a trained model, drawn as measurements."""
    from xrddiff.data.formats.readers import open_frames
    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.judge.views.plots import png
    from xrddiff.judge.views.samples import show_samples
    from xrddiff.learn.loading.datasets import prepare_planned

    run, _ = train(model, folder)
    prepared = prepare_planned(saved_plan(run))
    samples = select_frames(open_frames(run / "samples" / "samples.zarr"), range(n)).load()
    if samples.attrs["samples_are"] == "expected values":
        samples = draw_counts(samples, seed=0)
    real = select_frames(prepared.frames, prepared.held_out[:n]).load()
    (RESULTS.parent.parent / "docs" / "pictures" / "samples.png").write_bytes(png(show_samples(real, samples, n)))


def classes(folder: Path, model: str = "latent", steps: int = 600) -> dict:
    """Does a classifier that was trained on real frames find the class that was asked for?"""
    import numpy as np
    import torch

    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.judge.inference.generators import open_generator
    from xrddiff.judge.inference.samplers import make_sampler
    from xrddiff.judge.metrics.diversity import class_recovery
    from xrddiff.learn.loading.datasets import prepare_planned
    from xrddiff.learn.models.generative import DrawSettings
    from xrddiff.learn.recipes.classifiers import fit_classifier

    run, _ = train(model, folder)
    plan, generator = saved_plan(run), open_generator(run)
    prepared = prepare_planned(plan, generator.transform)
    net = fit_classifier(prepared.loader(prepared.train, batch_size=16), "hit_class", 3, steps=steps)

    @torch.no_grad()
    def probabilities(x: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        parts = zip(x.split(50), mask.split(50), strict=True)
        return torch.cat([net(a, 0.0, m).softmax(1) for a, m in parts]).numpy()

    held_out = prepared.loader(prepared.held_out, batch_size=250, shuffle=False)
    batch = next(held_out.batches(0))
    real = probabilities(batch["x"], batch["mask"])
    sampler, made, asked = make_sampler(plan.sampling, clamp=generator.data_range), [], []
    for k in range(3):
        frames, _ = generator.sample(
            range(1000 * k, 1000 * k + 100), DrawSettings(sampler, batch_size=50, values={"hit_class": k})
        )
        if generator.expected:
            frames = draw_counts(frames, seed=0, first=1000 * k)
        x = torch.from_numpy(generator.transform.forward(frames["intensity"].values))[:, None]
        mask = torch.from_numpy(frames["mask"].values).expand_as(x)
        made.append(probabilities(torch.where(mask, x, 0.0), mask))
        asked += [k] * 100
    return class_recovery(real, batch["cond"]["hit_class"].numpy(), np.concatenate(made), asked)


def samplers(folder: Path, seeds: int = 5, n: int = 32) -> dict:
    """The default sampler beside DDIM-50 and DDPM-1000 on the same trained latent model: distances over seeds, and seconds of CPU for a sample."""
    import numpy as np

    from xrddiff.judge.inference.generators import open_generator
    from xrddiff.judge.inference.samplers import make_sampler
    from xrddiff.judge.metrics.judgement import judge_samples
    from xrddiff.learn.diffusion.keyed_sampling import Sampler
    from xrddiff.learn.loading.datasets import prepare_planned
    from xrddiff.learn.models.generative import DrawSettings

    run, _ = train("samplers", folder)
    plan, generator = saved_plan(run), open_generator(run)
    prepared = prepare_planned(plan, generator.transform)
    wanted = {
        "default": make_sampler(plan.sampling),
        "ddim50": Sampler("ddim", 50, "vp"),
        "ddpm1000": Sampler("ddpm", 1000, "vp"),
    }
    rows: dict[str, list] = {name: [] for name in wanted}
    seconds: dict[str, list] = {name: [] for name in wanted}
    for name in turns(wanted, seeds):
        seed = len(rows[name])
        settings = DrawSettings(wanted[name], seed=seed, batch_size=n)
        (frames, _), spent = timed(lambda settings=settings: generator.sample(range(n), settings))
        seconds[name].append(spent.cpu / n)
        judged = judge_samples(prepared.frames, prepared.train, prepared.held_out, frames, expected=True, seed=seed)
        rows[name].append([judged.rows["samples"][d] for d in DISTANCES])
        print(name, seed, [round(v, 3) for v in rows[name][-1]], file=sys.stderr, flush=True)
    return {
        name: {
            "evaluations": wanted[name].evaluations,
            "cpu_seconds_min": min(seconds[name]),
            "cpu_seconds_median": float(np.median(seconds[name])),
            "mean": dict(zip(DISTANCES, np.mean(rows[name], 0).tolist(), strict=True)),
            "spread": dict(zip(DISTANCES, np.std(rows[name], 0, ddof=1).tolist(), strict=True)),
        }
        for name in wanted
    }


def multiples(rows: dict, floor: str) -> dict:
    """Distances of the samples as multiples of a floor: "floor", of real frames, or "autoencoder"."""
    return {d: value / rows[floor][d] for d, value in rows["samples"].items()}


def cell(values: dict, name: str, form: str) -> str:
    """A number of the table; a dash where it was not measured."""
    return format(values[name], form) if name in values else "–"


def table(results: dict) -> str:
    """The results as Markdown."""
    measured = {d for r in results.values() if "rows" in r for d in r["rows"]["samples"]}
    names = {d: title_of(d) for d in DISTANCES if d in measured}  # results may be older than a distance
    lines = ["# Samples beside real frames", "", __doc__.split("\n\n")[0], ""]
    models = {k: v for k, v in results.items() if k in MODELS and "rows" in v}
    if models:
        n = next(iter(models.values()))["n"]
        lines += [f"Distances as multiples of a floor, sets of {n:.0f} frames: that of real frames and, for a latent model, that of its autoencoder.", ""]  # fmt: skip
        floors = {"floor": "real frames", "autoencoder": "autoencoder"}
        rows = [
            [
                label,
                title,
                *(cell(multiples(r["rows"], k), d, ".2f") for d in names),
                f"{r['told']['samples']['auc']:.2f}" if k == "floor" else "–",
                f"{r['minutes']:.0f}",
            ]
            for label, r in models.items()
            for k, title in floors.items()
            if k in r["rows"]
        ]
        lines += markdown(
            ["model", "floor of", *names.values(), "AUC of a classifier", "minutes of CPU, all told"], rows, "llr"
        )
        rows = [
            [label, row, *(cell(values, d, ".4g") for d in names)]
            for label, r in models.items()
            for row, values in r["rows"].items()
        ]
        lines += ["", "The distances themselves:", "", *markdown(["model", "set", *names.values()], rows, "llr")]
        lines += ["", "Settings:", ""] + [f"- {label}: `{' '.join(r['words'])}`" for label, r in models.items()]
    if c := results.get("classes"):
        lines += ["", "## Classes", "", f"A classifier trained on real frames finds the hit class of held-out frames in {c['accuracy_real']:.3f} of them (at the mixture asked for), and the class that was asked for in {c['accuracy_samples']:.3f} of the samples of the latent model: a recovery of {c['recovery']:.3f} ({c['recovery_low']:.3f} to {c['recovery_high']:.3f})."]  # fmt: skip
    if s := results.get("samplers"):
        lines += ["", "## Samplers", "", "One latent model, 32 samples for each of 5 seeds; mean ± spread over seeds of the distance from held-out frames, and CPU time of a sample.", ""]  # fmt: skip
        rows = []
        for label, r in s.items():
            cells = [f"{cell(r['mean'], d, '.3f')} ± {cell(r['spread'], d, '.3f')}" for d in names]
            ratio = s["ddpm1000"]["cpu_seconds_median"] / r["cpu_seconds_median"]
            seconds = f"{r['cpu_seconds_min']:.3f} ({r['cpu_seconds_median']:.3f})"
            rows.append([label, r["evaluations"], *cells, seconds, f"{ratio:.1f}"])
        head = ["sampler", "evaluations", *names.values(), "s, min (median)", "times as fast as ddpm1000"]
        lines += markdown(head, rows)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parts = [*(m for m in MODELS if m != "samplers"), "classes", "samplers"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for part in args.only:
            made = classes(folder) if part == "classes" else samplers(folder) if part == "samplers" else quality(part, folder)  # fmt: skip
            results = read_results("generation", {})
            results[part] = made
            if part == "latent":
                picture(folder)
            print(write_results("generation", table, {k: results[k] for k in parts if k in results}))


if __name__ == "__main__":
    main()
