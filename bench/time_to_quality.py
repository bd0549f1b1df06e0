"""How many seconds of training until a classifier hardly tells samples from frames? Models of ours beside diffusers' recipe, on the same core and frames.

    OMP_NUM_THREADS=1 python bench/time_to_quality.py [--folder FOLDER] [--only photons latent] [--seconds 400]

Every contestant is trained on 1000 stills of sim128 in a process of one thread. After 100, 200 and 400 seconds of CPU its averaged weights draw 512 samples, which are judged beside 1,000 fresh frames that no training has seen: the AUC of the two-sample test, and how many index.
Judging is not in the seconds; the autoencoder of a latent model and the statistics of its latent are. Learning rates are constant, so that any moment may be the last.

- photons, latent: `photons` and `latent_diff` of size tiny, from nothing.
- diffusers: `UNet2DModel` in a latent, of the widths of ours, maps beside the latent as channels, labels as class embeddings, DDPM's noise levels and loss, prediction of noise or velocity. It is sampled with 20 evaluations where our latent model has 4. Frames, transform, latent (an autoencoder with the recipe's loss: squared error and
  a small KL term), averaging and sampler are ours, which is in its favour.

Writes bench/results/time_to_quality.json, .md and .png; `--folder` keeps autoencoders. Processes with different `--only` may run side by side.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import index_rates
import numpy as np
import torch
from harness import RESULTS, machine, make_parser, markdown, read_results, same_terms, timed, write_results
from torch import Tensor, nn

from xrddiff.config.plan import compose_plan
from xrddiff.core.registry import register
from xrddiff.judge.inference.model_from_plan import build_generative, open_space
from xrddiff.judge.inference.sample_jobs import SampleJob
from xrddiff.judge.inference.samplers import ready_sampler
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.judge.metrics.two_sample import two_sample
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.models.conditioning import Conditions, Pictures
from xrddiff.learn.recipes.autoencoders import autoencoder_objective, build_autoencoder, measure_run
from xrddiff.learn.recipes.setup import run_accelerator, run_loaders, run_trainer
from xrddiff.learn.training.callbacks import Callback, Training
from xrddiff.physics.simulation.simulate import simulate

SAMPLES, LOOKS = 512, (100, 200, 400)  # seconds
FRESH, INDEXED = range(500_000, 501_000), 48
COMMON = [
    "experiment_type=scratch", "data.limit=1250", "threads=1", "training.ema_decay=0.99",
    f"inference.num_samples={SAMPLES}", "inference.batch_size=32", "training.health=[]",
]  # fmt: skip
CODEC = ["training.num_epochs=4"]
STEADY = ["training.lr_schedule=constant", "model.diff_epochs=1000", "training.checkpoint_every=100000"]
RECIPE = ["training.recons_loss=mse", "training.beta_recons=1", "training.kl_weight=1e-6", "training.annealing_shape=null"]  # fmt: skip
DDPM = ["model.weighting=simple", "model.training_noise=discrete", "model.noise_schedule=linear", "network=unet2d", "inference.steps=20"]  # fmt: skip
PEER = "diffusers"
ROWS = {
    "photons": ["model=photons", "model.network_options={}", "model.condition_maps=[lattice,intensity,q,scattering]", "inference.guidance_scale=1"],
    "latent": ["model=latent_diff"],
    f"{PEER}, noise, 1e-3": ["model=latent_diff", *DDPM, "model.parameterisation=eps", "model.diff_lr=1e-3"],
    f"{PEER}, velocity, 1e-3": ["model=latent_diff", *DDPM, "model.parameterisation=v", "model.diff_lr=1e-3"],
}  # fmt: skip


@register("network", "unet2d", help="diffusers' UNet2DModel, with condition maps beside its input")
class UNet2D(nn.Module):
    """UNet2DModel of given `widths`, as the network of a denoiser."""

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, *, mask_channel: bool = False, conditions: Any = None,
        maps: Mapping[str, int] | None = None,
    ):  # fmt: skip
        from diffusers import UNet2DModel

        super().__init__()
        widths, self.pictures = (32, 64, 96), Pictures(mask_channel, maps)
        self.downsampling = 2 ** (len(widths) - 1)
        self.labels = Conditions(conditions or {}, 4 * widths[0])
        self.net = UNet2DModel(
            in_channels=in_channels + self.pictures.channels, out_channels=out_channels, block_out_channels=widths,
            layers_per_block=1, norm_num_groups=8, attention_head_dim=32, class_embed_type="identity",
            down_block_types=["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        )  # fmt: skip
        self.config = dict(
            in_channels=in_channels, out_channels=out_channels, maps=dict(self.pictures.maps),
            conditions=dict(self.labels.fields),
        )  # fmt: skip

    def forward(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        labels = self.labels(cond, x.new_zeros(len(x), self.labels.width))
        return self.net(self.pictures(x, cond), noise_label.expand(len(x)), class_labels=labels).sample


class Judge:
    """(samples) -> what the ruler says of them beside fresh frames."""

    def __init__(self) -> None:
        fresh = simulate("sim128", np.array(FRESH), seed=1).load()
        self.ruler = Ruler(fresh.isel(frame=slice(0, 300)))
        self.real = self.ruler.measure(fresh).statistics
        self.units = fresh["shot_group"].values.astype(str).tolist()

    def __call__(self, samples: Any) -> dict[str, Any]:
        expected = samples.attrs["samples_are"] == "expected values"
        made = self.ruler.measure(samples, draw=0 if expected else None).statistics
        test = two_sample(self.real, made, units=(self.units, [f"sample {i}" for i in range(len(made))]))
        rate = index_rates.index(samples, INDEXED).get("rate", {}).get("value")
        return {
            "auc": test.value,
            "interval": list(test.interval),
            "groups": test.table["auc"].to_dict(),
            "index": 0.0 if rate is None or not np.isfinite(rate) else rate,
        }


class Watch(Callback):
    """Looks at a model after so many seconds of its training, and stops it after the last look."""

    def __init__(self, judge: Judge, job: SampleJob, spent: float, looks: list[int]):
        self.judge, self.job, self.spent = judge, job, spent
        self.looks, self.seen = [t for t in looks if t > spent], []
        self.began: float | None = None

    def on_step(self, training: Training, record: Any) -> None:
        now = time.process_time()
        self.began = now if self.began is None else self.began
        at = self.spent + now - self.began
        if at < self.looks[0]:
            return
        with training.evaluating():
            (samples, _), drawing = timed(lambda: self.job.make(slice(None)))
            found = self.judge(samples.assign_attrs(self.job.about()))
        self.seen.append({"seconds": at, "step": record.step, "a sample": drawing.cpu / SAMPLES, **found})
        self.looks = [t for t in self.looks if t > at]
        print(json.dumps(self.seen[-1]), file=sys.stderr, flush=True)
        self.began += time.process_time() - now
        if not self.looks:
            training.request_stop("all looks are taken")


def words_of(name: str) -> list[str]:
    return [*COMMON, *(RECIPE if name.startswith(PEER) else []), *ROWS[name]]


def trained_autoencoder(words: list[str], folder: Path) -> float:
    """Train the autoencoder of a run in `folder`, unless it is there; the seconds of CPU that it took."""
    told = folder / "seconds.json"
    if not told.exists():
        plan = compose_plan([*words, *CODEC])
        prepared, accelerator = prepare_planned(plan), run_accelerator(plan.training)
        net = build_autoencoder(plan.model.autoencoder)
        loaders = run_loaders(prepared, plan, accelerator, net.downsampling)
        objective = autoencoder_objective(net, prepared, plan.model.autoencoder, steps_per_epoch=len(loaders[0]))
        state = {**prepared.state(), "model": net.config}
        trainer = run_trainer(objective, loaders, folder / "autoencoder", plan, accelerator, state)
        _, training = timed(lambda: trainer.fit(resume=True))
        _, statistics = timed(
            lambda: measure_run(folder / "autoencoder", prepared, plan.sampling.batch_size, accelerator)
        )
        told.write_text(json.dumps({"training": training.cpu, "statistics": statistics.cpu}))
    return sum(json.loads(told.read_text()).values())


def contest(name: str, folder: Path, looks: list[int]) -> dict[str, Any]:
    """Train one contestant and look at it on the way."""
    words, scratch = [*words_of(name), *STEADY], folder / "runs" / name.replace(", ", "-")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    plan, spent = compose_plan(words), 0.0
    accelerator = run_accelerator(plan.training)
    latent = "model=latent_diff" in words
    home = folder / ("peer" if name.startswith(PEER) else "ours") if latent else scratch
    if latent:
        spent = trained_autoencoder(words_of(name), home)
    space, transform = open_space(plan.model, home, accelerator.device)
    prepared = prepare_planned(plan, transform)
    training = build_generative(plan, prepared, accelerator, space)
    job = SampleJob(training.generator, ready_sampler(training.generator, plan.sampling), plan)
    watch = Watch(Judge(), job, spent, looks)
    trainer_words = dict(diffusion=True, callbacks=[watch])
    run_trainer(
        training.objective, training.loaders, scratch, plan, accelerator, training.state(), **trainer_words
    ).fit()
    size = sum(p.numel() for p in training.network.parameters())
    given = [w for w in words if w not in (*COMMON, *STEADY)]
    return {"looks": watch.seen, "before": spent, "parameters": size, "words": given, "evaluations": job.sampler.evaluations}  # fmt: skip


def page(found: dict) -> str:
    """The results as a page."""
    rows = {name: found["rows"][name] for name in ROWS if name in found["rows"]}
    seconds = [round(t) for t in LOOKS]
    lines = [
        "# Time to quality", "",
        f"`OMP_NUM_THREADS=1 python bench/time_to_quality.py`; {machine('python', 'torch', 'one thread')}.", "",
        f"AUC of the two-sample test with {SAMPLES} samples beside {len(FRESH)} fresh frames of `sim128` after so many seconds of CPU in training, with the interval at the last look, and the share of {INDEXED} samples that index. The autoencoder of a latent model is in the seconds. diffusers' models have frames, maps, labels, averages, sampler and the architecture of their autoencoder from us; network, prediction, noise levels and loss are theirs.", "",
    ]  # fmt: skip
    table = []
    for name, row in rows.items():
        looks, last = row["looks"], row["looks"][-1]
        at = {min(seconds, key=lambda t: abs(t - look["seconds"])): look for look in looks}
        told = [f"{at[t]['auc']:.2f}" if t in at else "–" for t in seconds]
        told[-1] += f" ({last['interval'][0]:.2f} to {last['interval'][1]:.2f})"
        about = [name, f"{row['parameters'] / 1e6:.2f} M", f"{row['before']:.0f}", last["step"]]
        table.append([*about, *told, f"{last['index']:.2f}", row["evaluations"], f"{last['a sample']:.2f}"])
    head = ["trained", "parameters", "first phase, s", "steps", *(f"AUC, {t} s" for t in seconds)]
    lines += markdown([*head, "index", "evaluations", "a sample, s"], table)
    groups = list(next(iter(rows.values()))["looks"][-1]["groups"])
    lines += ["", "What the classifier sees at the last look:", ""]
    parts = [[name, *(f"{row['looks'][-1]['groups'][g]:.2f}" for g in groups)] for name, row in rows.items()]
    lines += markdown(["trained", *groups], parts)
    lines += ["", "![AUC over seconds of training](time_to_quality.png)", "", "Words of the rows, beside `" + " ".join([*COMMON, *STEADY]) + "`:", ""]  # fmt: skip
    lines += [f"- {name}: `{' '.join(row['words'])}`" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def picture(found: dict, path: Path) -> None:
    """AUC and index rate over seconds of training."""
    from xrddiff.judge.views.plots import SMALL, Picture, png

    figure = Picture(7.2, 2.8)
    for ax, (key, title) in zip(figure.subplots(1, 2), {"auc": "AUC", "index": "share that indexes"}.items(), strict=True):  # fmt: skip
        for name in [n for n in ROWS if n in found["rows"]]:
            looks = found["rows"][name]["looks"]
            style = "--" if name.startswith(PEER) else "-"
            ax.plot([at["seconds"] for at in looks], [at[key] for at in looks], style, marker=".", label=name)
        ax.set_title(title, fontsize=SMALL)
        ax.tick_params(labelsize=SMALL)
        ax.set_xlim(left=0)
        ax.set_ylim(*((0.5, 1.02) if key == "auc" else (-0.02, 1.02)))
    figure.axes[0].legend(fontsize=SMALL - 1)
    figure.supxlabel("seconds of CPU in training", fontsize=SMALL)
    path.write_bytes(png(figure, dpi=90))


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--seconds", type=float, default=LOOKS[-1], help="of the last look, at most")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    same_terms()
    torch.set_flush_denormal(True)
    if args.one:
        print(json.dumps(contest(args.one, args.folder, [t for t in LOOKS if t <= args.seconds])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        for name in args.only:
            command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--seconds", str(args.seconds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = read_results("time_to_quality", {"rows": {}})
            found["rows"][name] = json.loads(done.stdout.splitlines()[-1])
            write_results("time_to_quality", page, found)
            picture(found, (RESULTS / "time_to_quality").with_suffix(".png"))
            print(name, found["rows"][name]["looks"][-1], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
