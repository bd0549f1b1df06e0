"""Sampling of autoregressive diffusion against lucidrains' autoregressive-diffusion-pytorch 0.4.0, at equal evaluations of the head and at equal measured quality.

    pip install --no-deps --target PEER -r bench/requirements-autoregressive.txt
    OMP_NUM_THREADS=1 PYTHONPATH=PEER python bench/autoregressive.py [--steps 400] [--frames 64] [--rounds 3] [--threads 1]

Both have transformers of the same width, depth and heads, and heads of the same depth and width. Ours is also tuned until one or two evaluations of the head make a token (`--tune` steps, rows `--tuned`). Both are trained for the same CPU time on the same simulated frames, tuning included; the peer with each learning
rate of `--peer-lr`, of which the best on frames of its own choosing set stays. A model of random order, which draws several tokens at a time (`--groups` of them), is trained as long as ours with its tuning. `--levels ours` gives the peer our noise levels, in training and in sampling, with sigma_data measured; otherwise it
has its defaults (churn 80, levels 80 to 0.002). Quality is measured against held-out frames, as multiples of what training frames differ from them by, which is 1 for a perfect model: the sliced
Wasserstein distance of 8 x 8 crops, and the Wasserstein distance between the numbers of Bragg peaks in a frame. Untrained models have rows too: a blank frame is near the average frame.
Each round times every setting once, in turn; minimum and (median) over the rounds are printed. The peer is timed without its progress bars, which it cannot switch off; it gets
frames in [0, 1], as it asks for. `--steps 0` leaves training away: the times do not depend on the weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import interleaved, machine, make_parser, markdown, min_median, same_terms, table_row
from torch import Tensor, nn

from xrddiff.data.frames.peaks import PeakFinder, radial_bins
from xrddiff.data.transforms.pipelines import make_transform
from xrddiff.judge.metrics.distribution import wasserstein
from xrddiff.learn.diffusion.consistency import AutoregressiveConsistency
from xrddiff.learn.diffusion.objectives import AutoregressiveObjective
from xrddiff.learn.loading.catalog import load
from xrddiff.learn.models.autoregressive import AutoregressiveDiffusion, generate, measure_range

SIDE, PATCH, WIDTH, DEPTH, HEADS, DIM_HEAD, HELD_OUT, CHOOSING = 64, 8, 128, 4, 2, 64, 400, 200
BINNING = 128 // SIDE


def peer_module() -> ModuleType:
    """The peer, without its trainer (which wants torchvision) and its progress bars."""
    trainer = ModuleType("autoregressive_diffusion_pytorch.image_trainer")
    trainer.ImageDataset = trainer.ImageTrainer = None
    sys.modules[trainer.__name__] = trainer
    from autoregressive_diffusion_pytorch import autoregressive_diffusion as peer

    peer.tqdm = lambda steps, **_: steps
    return peer


class Scale:
    """Simulated frames, averaged over blocks of 2 x 2 pixels, as network values (n, 1, 64, 64), and back to photons per pixel."""

    def __init__(self, count: int):
        ds = load("sim128", limit=count, progress=False)
        x = np.asarray(ds["intensity"].values, np.float32).reshape(count, SIDE, BINNING, SIDE, BINNING).mean((2, 4))
        self.curve = make_transform("asinh", scale=1.0, standardise=False)
        x = torch.from_numpy(np.asarray(self.curve.forward(x)))[:, None]
        self.mean, self.std = x[HELD_OUT:].mean(), x[HELD_OUT:].std()
        self.frames = (x - self.mean) / self.std
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        centre = np.asarray(ds.attrs["beam_center"]) / BINNING
        bins = radial_bins(np.hypot(x - centre[0], y - centre[1]))
        # the mean of four counts scatters by a fourth of its value
        self.finder = PeakFinder(bins, np.ones((SIDE, SIDE), bool), gain=1 / BINNING**2)

    def peaks(self, x: Tensor) -> np.ndarray:
        """Number of Bragg peaks in each frame of network values `x`."""
        photons = self.curve.inverse((x * self.std + self.mean).numpy())[:, 0]
        return np.array([len(self.finder(np.clip(image, 0, None))) for image in photons])


def sliced_distance(a: Tensor, b: Tensor, directions: int = 256) -> float:
    """Mean over random directions of the Wasserstein distance between the projections of `a` and of `b` (n, d)."""
    w = (
        F.normalize(torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(0)), dim=0)
        * a.shape[1] ** 0.5
    )
    q = (torch.arange(200) + 0.5) / 200
    return float((torch.quantile(a @ w, q, dim=0) - torch.quantile(b @ w, q, dim=0)).abs().mean())


def crop_distance(a: Tensor, b: Tensor) -> float:
    """Sliced distance between the 8 x 8 crops of `a` and of `b`."""
    return sliced_distance(*[F.unfold(x, 8, stride=8).transpose(1, 2).flatten(0, 1) for x in (a, b)])


def train(
    name: str,
    parameters: Any,
    loss: Callable[[Tensor, Tensor, int], Tensor],
    x: Tensor,
    steps: int,
    lr: float = 1e-3,
    batch: int = 16,
) -> float:
    """AdamW with a warm-up and a cosine to zero, the same for both; returns CPU seconds."""
    optimizer, start = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95)), time.process_time()
    order = torch.Generator().manual_seed(0)
    for step in range(steps):
        index = torch.randint(len(x), (batch,), generator=order)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps))
        value = loss(x[index], index, step)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - start
    if steps:
        last = float(value.detach())
        print(f"{name}: {steps} steps of {batch} frames, lr {lr:g}, in {seconds:.0f} s CPU, last loss {last:.3f}")
    return seconds


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = make_parser(__doc__, rounds=3, threads=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--levels", choices=["default", "ours"], default="default")
    parser.add_argument("--peer-lr", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument(
        "--ours", nargs="+", default=["heun:32", "dpmpp_2m:16", "dpmpp_2m:8", "dpmpp_2m:6", "dpmpp_2m:5"]
    )
    parser.add_argument("--tune", type=int, default=300)
    parser.add_argument("--tuned", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--groups", nargs="*", type=int, default=[32, 16, 8])
    parser.add_argument("--peers", nargs="+", type=int, default=[32, 16, 8])
    return parser.parse_args()


def main() -> None:
    args = parse()
    same_terms(args.threads)
    peer = peer_module()
    scale = Scale(1400)
    real, chosen_by, x = scale.frames.split([HELD_OUT, CHOOSING, 1400 - HELD_OUT - CHOOSING])
    low, high = measure_range([{"x": x}])

    def make_ours(order: str = "raster") -> AutoregressiveDiffusion:
        torch.manual_seed(0)
        return AutoregressiveDiffusion(
            size=(SIDE, SIDE), patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS, dim_head=DIM_HEAD, head_width=WIDTH, order=order,
            diffusion=dict(sigma_data=1.0, S_churn=80.0 if args.levels == "default" else 5.0, clamp=[low, high]),
        )  # fmt: skip

    unit = 2 / (high - low)  # the peer's frames go from -1 to 1: the length of our unit there
    levels = dict(
        sigma_data=float((unit * (x - low) - 1).square().mean().sqrt()), sigma_min=0.002 * unit, sigma_max=10 * unit,
        P_mean=-1.2 + float(np.log(unit)), P_std=0.8, S_tmin=0.05 * unit, S_tmax=50 * unit, S_churn=5,
    )  # fmt: skip
    words = dict(dim=WIDTH, depth=DEPTH, heads=HEADS, dim_head=DIM_HEAD, mlp_depth=3)
    if args.levels == "ours":
        words["diffusion_kwargs"] = levels

    def make_peer() -> nn.Module:
        torch.manual_seed(0)
        return peer.ImageAutoregressiveDiffusion(image_size=SIDE, patch_size=PATCH, channels=1, model=words)

    def draw_ours(model: AutoregressiveDiffusion, name: str, steps: str, n: int, groups: int | None = None) -> Tensor:
        words = {} if groups is None else {"steps": groups}
        return generate(model, range(n), sampler=model.sampler(name, int(steps)), **words)

    def draw_peer(model: nn.Module, steps: int, n: int) -> Tensor:
        torch.manual_seed(1)
        model.model.diffusion.num_sample_steps = steps
        return model.sample(batch_size=n).detach() * (high - low) + low

    ours, untrained = make_ours(), (make_ours(), make_peer())
    counts = [sum(p.numel() for p in m.parameters()) / 1e6 for m in untrained]
    print(
        f"{machine(f'{args.threads} thread(s)')}; torch {torch.__version__}; frames of {SIDE}², {ours.tokens} tokens of {ours.dim}"
    )
    print(
        f"parameters: ours {counts[0]:.2f} M, peer {counts[1]:.2f} M; batch of {args.frames} frames; levels of the peer: {args.levels}\n"
    )

    def train_ours(name: str, model: AutoregressiveDiffusion, steps: int) -> float:
        objective = AutoregressiveObjective(model)
        loss = lambda x, index, step: objective({"x": x, "index": index}, step)["loss"].mean()  # noqa: E731
        return train(name, list(model.parameters()), loss, x, steps)

    seconds = train_ours("ours", ours, args.steps)
    tuned = copy.deepcopy(ours)
    if args.tune:
        tuning = AutoregressiveConsistency(tuned, steps=args.tune)
        seconds += train(
            "ours, tuned",
            list(tuned.parameters()),
            lambda x, index, step: tuning({"x": x, "index": index}, step)["loss"].mean(),
            x,
            args.tune,
            lr=5e-4,
        )
    several = make_ours("random")
    if args.groups and args.steps:  # the same CPU time as ours with its tuning
        trial = train_ours("ours in random order, trial", make_ours("random"), 20)
        train_ours("ours in random order", several, int(20 * seconds / trial))
    theirs, best = untrained[1], np.inf
    if args.steps:
        step_of = lambda model: lambda x, index, step: model((x - low) / (high - low))  # noqa: E731
        trial = make_peer()
        steps = int(seconds / train("peer, trial", list(trial.parameters()), step_of(trial), x, 20) * 20)
        for lr in args.peer_lr:  # the same CPU time as ours for each
            model = make_peer()
            train("peer", list(model.parameters()), step_of(model), x, steps, lr)
            far = crop_distance(draw_peer(model, args.peers[0], args.frames).float(), chosen_by)
            print(f"peer, lr {lr:g}: crops {far:.3f} from the frames that it is chosen by", flush=True)
            theirs, best = (model, far) if far < best else (theirs, best)

    peaks = scale.peaks(real)
    rng = np.random.default_rng(0)
    halves = [wasserstein(scale.peaks(x[rng.permutation(len(x))[: args.frames]]), peaks) for _ in range(16)]
    floor = crop_distance(x, real), float(np.mean(halves))
    low_, middle, high_ = np.quantile(peaks, [0.05, 0.5, 0.95])
    print(
        f"\nfloor: crops {floor[0]:.4f}; peaks {floor[1]:.2f}. Held-out frames have {low_:.0f} / {middle:.0f} / {high_:.0f} peaks (5, 50, 95%)\n",
        flush=True,
    )

    first, last = args.peers[0], args.ours[0].split(":")
    settings: dict[str, tuple[int, Callable[[], Tensor]]] = {}
    for n in args.peers:
        settings[f"peer, {n} steps"] = (2 * n - 1, lambda n=n: draw_peer(theirs, n, args.frames))
    for word in args.ours:
        name, n = word.split(":")
        settings[f"ours, {name}, {n} steps"] = (
            ours.sampler(name, int(n)).evaluations,
            lambda name=name, n=n: draw_ours(ours, name, n, args.frames),
        )

    for n in args.groups:
        name, steps = args.ours[-1].split(":")
        settings[f"ours in random order, {n} groups of tokens, {name}, {steps} steps"] = (
            several.sampler(name, int(steps)).evaluations,
            lambda n=n, name=name, steps=steps: draw_ours(several, name, steps, args.frames, n),
        )

    for n in args.tuned if args.tune else ():
        chosen = tuned.sampler("consistency", n, schedule="few")
        settings[f"ours, tuned, {n} steps"] = (
            n,
            lambda chosen=chosen: generate(tuned, range(args.frames), sampler=chosen),
        )

    drawn = {name: make().float() for name, (_, make) in settings.items()}  # the first call of each also warms up
    times = interleaved({name: make for name, (_, make) in settings.items()}, args.rounds, warmup=0)
    reference = next(iter(settings))
    head = ["sampling", "evaluations of a token", "crops / floor", "peak count / floor", "peaks 5 / 50 / 95%"]
    print(*markdown([*head, "s per batch", f"faster than {reference}", "by CPU time"], [], "l"), sep="\n")

    def quality(frames: Tensor) -> list[str]:
        found = scale.peaks(frames)
        low, middle, high = np.quantile(found, [0.05, 0.5, 0.95])
        far = crop_distance(frames, real) / floor[0], wasserstein(found, peaks) / floor[1]
        return [f"{far[0]:.2f}", f"{far[1]:.1f}", f"{low:.0f} / {middle:.0f} / {high:.0f}"]

    for name, (evaluations, _) in settings.items():
        first_of, own = times[reference], times[name]
        faster = [f"{min(first_of.clock) / min(own.clock):.1f}", f"{sum(first_of.cpu) / sum(own.cpu):.1f}"]
        print(table_row([name, evaluations, *quality(drawn[name]), min_median(own.clock), *faster]))
    for name, frames in (
        ("peer, untrained", draw_peer(untrained[1] if theirs is not untrained[1] else make_peer(), first, args.frames)),
        ("ours, untrained", draw_ours(untrained[0], *last, args.frames)),
        ("zeros", torch.zeros_like(real[: args.frames])),
    ):
        print(table_row([name, "", *quality(frames.float()), "", "", ""]))


if __name__ == "__main__":
    main()
