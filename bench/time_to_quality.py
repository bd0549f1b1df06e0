"""How many seconds of training until samples are good? Each model of ours beside diffusers' recipes, on the same core and frames.

    OMP_NUM_THREADS=1 python bench/time_to_quality.py [--folder FOLDER] [--only latent pixel] [--seconds 600]

Every contestant is trained on 1000 stills of sim128 in a process of one thread. After 90, 120, 160, … seconds of CPU its averaged weights draw 64 samples, which are judged as a report judges them: distances from held-out frames over the floor that two sets of real frames set, and, where the
model is told the lattice, the share that indexes. Judging is not in the seconds; the autoencoder of a latent model and the statistics of its latent are. Learning rates are constant, so that any moment may be the last.

- latent, pixel, tokens: `latent_diff`, `ddpm` and `diff` of size tiny with the learning rate of the demo.
- diffusers latent: `UNet2DModel` of the widths of ours, maps beside the latent as channels, DDPM's noise levels, noise prediction and loss. Its best learning rate, and prediction of noise or velocity, is what the picture compares with, and it is sampled with 20 evaluations where ours has 4. Frames, transform, latent (an autoencoder with the recipe's loss: squared error and
  a small KL term), averaging and sampler are ours, which is in its favour.
- diffusers example: the network, batch and optimiser of `train_unconditional.py` as they come, at 128 pixels on frames of 8 bits. It is sampled once, at the end.
- what helps: the latent model with one thing of its training changed, and its autoencoder.

Writes bench/results/time_to_quality.json, .md and .png; `--folder` keeps autoencoders.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ablations
import index_rates
import numpy as np
import torch
import torch.nn.functional as F
from harness import RESULTS, machine, make_parser, markdown, read_results, same_terms, write_results
from torch import Tensor, nn

from xrddiff.config.plan import compose_plan
from xrddiff.core.registry import register
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.model_from_plan import Building, build_generative, open_space
from xrddiff.judge.inference.sample_jobs import SampleJob
from xrddiff.judge.inference.samplers import ready_sampler
from xrddiff.judge.metrics.set_summaries import frame_features
from xrddiff.learn.diffusion.objectives import DenoisingObjective
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.models.conditioning import Pictures
from xrddiff.learn.recipes.autoencoders import autoencoder_objective, build_autoencoder, measure_run
from xrddiff.learn.recipes.setup import run_accelerator, run_loaders, run_trainer
from xrddiff.learn.training.batches import cut
from xrddiff.learn.training.callbacks import Callback, Training

SAMPLES, LOOKS = 64, (90, 120, 160, 210, 280, 360, 480, 600)  # seconds
GOOD = 1.5  # times the floor
COMMON = [
    "experiment_type=scratch", "data.limit=1250", "threads=1", "model.condition=[]", "training.ema_decay=0.99",
    f"inference.num_samples={SAMPLES}", "inference.batch_size=16", "training.health=[]",
]  # fmt: skip
CODEC = ["training.num_epochs=4"]
STEADY = ["training.lr_schedule=constant", "model.diff_epochs=1000", "training.checkpoint_every=100000"]
RECIPE = ["training.recons_loss=mse", "training.beta_recons=1", "training.kl_weight=1e-6", "training.annealing_shape=null"]  # fmt: skip
DDPM = ["model.parameterisation=eps", "model.weighting=simple", "model.training_noise=discrete", "model.noise_schedule=linear", "network=unet2d", "inference.steps=20"]  # fmt: skip
PEER = "diffusers latent, rate "
OURS = {
    "latent": ["model=latent_diff"],
    "pixel": ["model=ddpm"],
    "tokens": ["model=diff", "model.order=random"],
}
PEERS = {f"{PEER}{lr}": ["model=latent_diff", *DDPM, f"model.diff_lr={lr}"] for lr in ("5e-4", "1e-3", "2e-3")}
PEERS |= {f"{name}, velocity": [*words, "model.parameterisation=v"] for name, words in PEERS.items() if "1e-3" in name}
CHANGED = {
    "latent, min-SNR weight": ["model=latent_diff", "model.weighting=min_snr"],
    "latent, learned weight": ["model=latent_diff", "training.objective=learned_weight"],
    "latent, small batches first": ["model=latent_diff", "training.objective=small_batches_first"],
    "latent, noise of the spectrum": ["model=latent_diff"],
    "latent, finer noise label": ["model=latent_diff", "model.network_options={label_scale: 30}"],
    "latent, aligned features": ["model=latent_diff", "training.objective=aligned_features"],
    "latent, rate 1e-3": ["model=latent_diff", "model.diff_lr=1e-3"],
}
EXAMPLE = "diffusers example"
ROWS = {**OURS, **PEERS, EXAMPLE: [], **CHANGED}
LAST = {"tokens": 360, EXAMPLE: 360, f"{PEER}1e-3, velocity": 360} | dict.fromkeys(
    CHANGED, 210
)  # s, else the last look


# ------------------------------------------------------------------------------------- what is compared


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
        self.net = UNet2DModel(
            in_channels=in_channels + self.pictures.channels, out_channels=out_channels, block_out_channels=widths,
            layers_per_block=1, norm_num_groups=8, attention_head_dim=32,
            down_block_types=["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        )  # fmt: skip
        self.config = dict(in_channels=in_channels, out_channels=out_channels, maps=dict(self.pictures.maps))

    def forward(self, x: Tensor, noise_label: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.net(self.pictures(x, cond), noise_label.expand(len(x))).sample


@register("objective", "learned_weight", help="each noise level weighs as much as it is well predicted")
class LearnedWeight(DenoisingObjective):
    """The error over its running mean at about the same ln σ: what a learned weight tends to (arXiv 2312.02696)."""

    BINS = 24

    def __init__(self, *args: Any, **words: Any):
        super().__init__(*args, **words)
        self.level = torch.ones(self.BINS)

    def forward(self, batch: Mapping[str, Any], step: int = 0) -> dict[str, Tensor]:
        out = super().forward(batch, step)
        sigma = self.noise.sample(self.seed, step if self.training else 0, batch["index"], ())
        at = ((sigma.log() + 5) / 10 * self.BINS).long().clamp(0, self.BINS - 1)
        for i, loss in zip(at.tolist(), out["loss"].detach(), strict=True):
            self.level[i].lerp_(loss, 0.02)
        return {**out, "loss": out["loss"] / self.level[at]}


@register("objective", "small_batches_first", help="a quarter of the batch for the first 400 steps")
class SmallBatchesFirst(DenoisingObjective):
    """More steps where each helps: the first ones see a quarter of their frames."""

    def forward(self, batch: Mapping[str, Any], step: int = 0) -> dict[str, Tensor]:
        count = len(batch["index"])
        few = max(1, count // 4) if self.training and step < 400 else count
        out = super().forward(cut(batch, 0, few), step)
        return {k: torch.cat([count / few * v, v.new_zeros(count - few)]) for k, v in out.items()}


@register("objective", "aligned_features", help="the middle of the U-Net is led to features of the clean frame")
class AlignedFeatures(DenoisingObjective):
    """Representation alignment (arXiv 2410.06940): half of 1 − cos between a projection of the mean over the middle of the
    network and the features of the clean frame (`metrics.encoder`) is added to the loss.
    """

    features: Tensor  # (frame, feature), by number

    def align(self, features: np.ndarray) -> None:
        """Take the features of all frames, and give the network its projection."""
        self.features = F.normalize(torch.from_numpy(features - features.mean(0)).float(), dim=1)
        width = self.model.config["widths"][-1]
        self.model.project = nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, features.shape[1]))

    def forward(self, batch: Mapping[str, Any], step: int = 0) -> dict[str, Tensor]:
        seen: list[Tensor] = []
        hook = self.model.mid_block.register_forward_hook(lambda *args: seen.append(args[-1]))
        out = super().forward(batch, step)
        hook.remove()
        said = F.normalize(self.model.project(seen[0].mean((2, 3))), dim=1)
        apart = 1 - (said * self.features[batch["index"]]).sum(1)
        return {**out, "loss": out["loss"] + 0.5 * apart}


def spectrum_noise(training: Building) -> tuple[float, float]:
    """Mean and spread of ln σ where the modes of the data are about as strong as the noise.

    ln σ takes the place of the logarithm of a mode's standard deviation; one more e-fold to either side for the way from
    unknown to known.
    """
    loader = training.loaders[0]
    x = torch.cat([loader.batch(rows, 0)["x"] for rows in loader.order(0)[:256].reshape(-1, 32)])
    strength = torch.fft.fft2(x, norm="ortho").abs().square().mean((0, 1)).clamp_min(1e-12).log() / 2
    return float(strength.mean()), float((strength.var() + 1).sqrt())


# ------------------------------------------------------------------------------------------ how it is judged


class Watch(Callback):
    """Looks at a model after so many seconds of its training, and stops it after the last look.

    steps: look at these steps instead, step -> seconds that are known of it.
    """

    def __init__(
        self, judge: ablations.Judge, job: SampleJob, spent: float, looks: list[int], told: bool, steps: dict[int, float]
    ):  # fmt: skip
        self.judge, self.job, self.told, self.steps = judge, job, told, steps
        self.spent, self.looks, self.seen = spent, [t for t in looks if t > spent], []
        self.began: float | None = None

    def on_step(self, training: Training, record: Any) -> None:
        now = time.process_time()
        self.began = now if self.began is None else self.began
        if not self.looks:
            training.request_stop("all looks are taken")
            return
        at = self.steps.get(record.step, 0.0) if self.steps else self.spent + now - self.began
        if at < self.looks[0]:
            return
        with training.evaluating():
            samples, _ = self.job.make(slice(None))
            found = self.judge(samples.assign_attrs(self.job.about()), self.told)
            if self.told:
                index = found["index"]
                found |= {"index": rate_of(index), "peaks": index["peaks"], "asked": found["asked"].get("on_lattice")}
        self.seen.append({"seconds": at, "step": record.step, **found})
        self.looks = [t for t in self.looks if t > at]
        print(json.dumps(self.seen[-1]), file=sys.stderr, flush=True)
        self.began += time.process_time() - now
        if not self.looks:
            training.request_stop("all looks are taken")


def rate_of(index: dict[str, Any]) -> float:
    """The index rate, 0 where no frame has the peaks that it needs."""
    rate = index.get("rate", {}).get("value")
    return 0.0 if rate is None or not np.isfinite(rate) else rate


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    before = time.process_time()
    yield
    into[name] = time.process_time() - before


# --------------------------------------------------------------------------------------- how it is trained


def words_of(name: str) -> list[str]:
    return [*COMMON, *(RECIPE if name.startswith(PEER) else []), *ROWS[name]]


def trained_autoencoder(words: list[str], folder: Path) -> float:
    """Train the autoencoder of a run in `folder`, unless it is there; the seconds of CPU that it took."""
    told = folder / "seconds.json"
    if not told.exists():
        plan = compose_plan([*words, *CODEC])
        prepared, accelerator, spent = prepare_planned(plan), run_accelerator(plan.training), {}
        net = build_autoencoder(plan.model.autoencoder)
        loaders = run_loaders(prepared, plan, accelerator, net.downsampling)
        objective = autoencoder_objective(net, prepared, plan.model.autoencoder, steps_per_epoch=len(loaders[0]))
        state = {**prepared.state(), "model": net.config}
        with timed(spent, "training"):
            run_trainer(objective, loaders, folder / "autoencoder", plan, accelerator, state).fit(resume=True)
        with timed(spent, "statistics"):
            measure_run(folder / "autoencoder", prepared, plan.sampling.batch_size, accelerator)
        told.write_text(json.dumps(spent))
    return sum(json.loads(told.read_text()).values())


def contest(name: str, folder: Path, looks: list[int], steps: dict[int, float]) -> dict[str, Any]:
    """Train one contestant and look at it on the way; `steps`: see `Watch`."""
    words, scratch = [*words_of(name), *STEADY], folder / "runs" / name.replace(", ", "-").replace(" ", "-")
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
    if name.endswith("noise of the spectrum"):
        mean, spread = spectrum_noise(training)
        words += [f"model.training_noise_options={{P_mean: {mean:.3f}, P_std: {spread:.3f}}}"]
        plan = compose_plan(words)
        training = build_generative(plan, prepared, accelerator, space)
    if isinstance(training.objective, AlignedFeatures):
        own: dict[str, float] = {}
        with timed(own, "features"):
            training.objective.align(frame_features(prepared.frames))
        spent += own["features"]
    told = bool(plan.data.maps)
    job = SampleJob(training.generator, ready_sampler(training.generator, plan.sampling), plan)
    watch = Watch(ablations.Judge(prepared, 250, 48), job, spent, looks, told, steps)
    trainer_words = dict(diffusion=True, callbacks=[watch])
    run_trainer(
        training.objective, training.loaders, scratch, plan, accelerator, training.state(), **trainer_words
    ).fit()
    size = sum(p.numel() for p in training.network.parameters())
    given = [w for w in words if w not in (*COMMON, *STEADY)]
    return {"looks": watch.seen, "before": spent, "parameters": size, "words": given, "evaluations": job.sampler.evaluations}  # fmt: skip


def example(seconds: float) -> dict[str, Any]:
    """diffusers' example of unconditional training, as its defaults are."""
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    prepared = prepare_planned(compose_plan([*COMMON, "model=ddpm"]))
    judge = ablations.Judge(prepared, 250, 48)
    frames = select_frames(prepared.frames, prepared.train)["intensity"].values.astype(np.float32)
    most = frames.max((1, 2), keepdims=True).clip(1)
    images = torch.from_numpy(np.rint(255 * frames / most) / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    torch.manual_seed(0)
    kinds = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    net = UNet2DModel(
        sample_size=128, in_channels=3, out_channels=3, layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512), down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
    )  # fmt: skip
    noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimiser, num_warmup_steps=500, num_training_steps=100 * len(images) // 16)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    steps, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        x, eps, t = (
            images[torch.randperm(len(images))[:16]],
            torch.randn(16, 3, 128, 128),
            torch.randint(0, 1000, (16,)),
        )
        F.mse_loss(net(noise.add_noise(x, eps, t), t).sample, eps).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        average.step(net.parameters())
        steps += 1
        print(f"{EXAMPLE}: step {steps}, {time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
    spent = time.process_time() - began
    average.copy_to(net.parameters())
    solver, count = DPMSolverMultistepScheduler.from_config(noise.config), 16
    solver.set_timesteps(10)
    x = torch.randn(count, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in solver.timesteps:
            said = torch.cat([net(part, t).sample for part in x.split(4)])
            x = solver.step(said, t, x).prev_sample
    drawn = (x.mean(1).clamp(-1, 1) + 1).numpy() / 2 * float(np.median(most))
    like = select_frames(prepared.frames, prepared.held_out[:count]).load()
    samples = like.assign(intensity=like["intensity"].copy(data=drawn.astype(np.float32)))
    samples = samples.assign_attrs(samples_are="expected values")
    look = {"seconds": spent, "step": steps, **judge(samples, told=False)}
    size = sum(p.numel() for p in net.parameters())
    return {"looks": [look], "before": 0.0, "parameters": size, "words": [], "evaluations": 10}


# ------------------------------------------------------------------------------------------------ the page


def reached(row: dict, good: Any) -> float | None:
    """The seconds of the first look from which on the samples are `good`, at this and the next look if there is one."""
    looks = row["looks"]
    for i, look in enumerate(looks):
        if all(good(each) for each in looks[i : i + 2]):
            return look["seconds"]
    return None


def criteria(real: float) -> dict[str, Any]:
    """What is waited for: half the index rate of real frames, and each distance at 1.5 times the floor."""
    near = {d: (lambda look, d=d: look["ratio"].get(d, np.inf) <= GOOD) for d in ablations.DISTANCES}
    return {"index": lambda look: look.get("index", 0) >= real / 2, **near}


def page(found: dict) -> str:
    """The results as a page."""
    goals, rows = criteria(found["real"]), found["rows"]
    cell = lambda row, goal: f"{s:.0f}" if (s := reached(row, goal)) is not None else "–"  # noqa: E731
    last = lambda row: row["looks"][-1]  # noqa: E731
    lines = [
        "# Time to quality", "",
        f"`{found['command']}`; {machine('python', 'torch', 'one thread')}.", "",
        f"Seconds of CPU in training until {SAMPLES} samples index at half the rate of real frames ({found['real']:.2f}), and until each distance from held-out frames is at most {GOOD} times the floor, at two looks running; – : not by the last look, or not measured. The autoencoder of a latent model is in the seconds. "
        "`bench/time_to_quality.py` says what each row is. diffusers' latent models have their autoencoder's architecture, frames, maps, averages and sampler from us; what is theirs is network, prediction, noise levels and loss. The example has nothing from us.", "",
    ]  # fmt: skip
    table = []
    for name in ROWS:
        if row := rows.get(name):
            about = [name, f"{row['parameters'] / 1e6:.2f} M", f"{row['before']:.0f}", f"{last(row)['seconds']:.0f}", last(row)["step"]]  # fmt: skip
            table.append([*about, *(cell(row, goal) for goal in goals.values())])
    head = ["trained", "parameters", "first phase, s", "last look, s", "steps", "index at half the real rate"]
    lines += [*markdown([*head, *ablations.DISTANCES], table), "", "At the last look:", ""]
    table = []
    for name in ROWS:
        if row := rows.get(name):
            look = last(row)
            told = [f"{look[k]:.2f}" if look.get(k) is not None else "–" for k in ("index", "asked")]
            told += [f"{look['peaks']:.0f}" if "peaks" in look else "–"]
            told += [f"{look['ratio'][d]:.2f}" if d in look["ratio"] else "–" for d in ablations.DISTANCES]
            table.append([name, *told])
    lines += markdown(["trained", "index", "on the asked lattice", "peaks", *ablations.DISTANCES], table)
    lines += ["", "![Quality over seconds of training](time_to_quality.png)", "", "Words of the rows, beside `" + " ".join([*COMMON, *STEADY]) + "`:", ""]  # fmt: skip
    lines += [f"- {name}: `{' '.join(row['words'])}`" for name, row in rows.items() if row["words"]]
    return "\n".join(lines) + "\n"


def picture(found: dict, path: Path) -> None:
    """Index rate and distances over seconds of training: ours, and the best of the peer."""
    from xrddiff.judge.views.plots import SMALL, Picture, png

    shown = [n for n in OURS if n in found["rows"]] + ([b] if (b := best_peer(found)) else [])
    figure = Picture(7.6, 4.6)
    panels = {"index": lambda look: look.get("index"), "on the asked lattice": lambda look: look.get("asked")}
    panels |= {d: (lambda look, d=d: look["ratio"].get(d)) for d in ("radial profile", "peak count", "pairwise diversity", "encoder features (Fréchet)")}  # fmt: skip
    for ax, (title, value) in zip(figure.subplots(2, 3).ravel(), panels.items(), strict=True):
        for name in shown:
            looks = found["rows"][name]["looks"]
            label = "diffusers latent" if name.startswith(PEER) else name
            ax.plot([look["seconds"] for look in looks], [value(look) for look in looks], marker=".", label=label)
        if title in ablations.DISTANCES:
            ax.axhline(GOOD, color="0.6", linewidth=0.8, linestyle="--")
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
        elif title == "index":
            ax.axhline(found["real"] / 2, color="0.6", linewidth=0.8, linestyle="--")
        ax.set_title(title, fontsize=SMALL)
        ax.tick_params(labelsize=SMALL)
        ax.set_xlim(left=0)
    figure.axes[0].legend(fontsize=SMALL - 1)
    figure.supxlabel("seconds of CPU in training", fontsize=SMALL)
    path.write_bytes(png(figure, dpi=90))


def best_peer(found: dict) -> str | None:
    """The peer's rate that indexes first, or else gets furthest."""
    peers = {n: r for n, r in found["rows"].items() if n.startswith(PEER)}
    goal = criteria(found["real"])["index"]

    def order(name: str) -> tuple[float, float]:
        seconds, look = reached(peers[name], goal), peers[name]["looks"][-1]
        return (np.inf if seconds is None else seconds), -(look.get("asked") or 0.0)

    return min(peers, key=order, default=None)


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--seconds", type=float, default=600, help="of the last look, at most")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument(
        "--looks",
        nargs="+",
        type=int,
        help="at these seconds only, beside those that are there: it is the same training",
    )
    parser.add_argument("--again", action="store_true", help="judge the looks that are there once more: the same training up to the same steps, whose seconds stay")  # fmt: skip
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    same_terms()
    torch.set_flush_denormal(True)
    path = RESULTS / "time_to_quality.json"
    read = lambda: read_results("time_to_quality", {"rows": {}})  # noqa: E731
    if args.one:
        looks = args.looks or [t for t in LOOKS if t <= min(args.seconds, LAST.get(args.one, LOOKS[-1]))]
        known = read()["rows"][args.one]["looks"] if args.again else []
        looks, steps = [look["seconds"] for look in known] or looks, {look["step"]: look["seconds"] for look in known}
        row = example(looks[-1]) if args.one == EXAMPLE else contest(args.one, args.folder, looks, steps)
        print(json.dumps(row))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        real = read().get("real") or index_rates.real_frames(64)["real frames"]["rate"]["value"]
        for name in args.only:
            command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--seconds", str(args.seconds)]
            command += ["--looks", *map(str, args.looks)] if args.looks else ["--again"] if args.again else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = read() | {"real": real}
            found["command"] = f"OMP_NUM_THREADS=1 python bench/time_to_quality.py --seconds {args.seconds:g}"
            row = json.loads(done.stdout.splitlines()[-1])
            if args.looks and (old := found["rows"].get(name)):
                row["looks"] = sorted(row["looks"] + old["looks"], key=lambda look: look["seconds"])
            found["rows"][name] = row
            write_results("time_to_quality", page, found)
            picture(found, path.with_suffix(".png"))
            print(name, found["rows"][name]["looks"][-1], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
