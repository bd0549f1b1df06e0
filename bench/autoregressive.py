"""Sampling of autoregressive diffusion against lucidrains' autoregressive-diffusion-pytorch 0.4.0, at equal evaluations of the head and at equal measured quality.

    pip install --no-deps --target PEER -r bench/requirements-autoregressive.txt
    OMP_NUM_THREADS=1 PYTHONPATH=PEER python bench/autoregressive.py [--steps 400] [--frames 64] [--rounds 3] [--threads 1]

Both have transformers of the same width, depth and heads, heads of the same depth and width, and see the same batches of the same simulated frames, as often. Both are then sampled with
several numbers of steps. `--levels ours` gives the peer our noise levels, in training and in sampling, with sigma_data measured; otherwise it has its defaults (churn 80, levels 80 to 0.002). Quality is the sliced Wasserstein distance to held-out frames, of whole frames and of 8 x 8 crops, over that of training frames to held-out frames, which is 1 for a perfect model.
Each round times every setting once, in turn; minimum and (median) over the rounds are printed. The peer is timed without its progress bars, which it cannot switch off; it gets
frames in [0, 1], as it asks for. `--steps 0` leaves training away: the times do not depend on the weights.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xrddiff.data.catalog import load
from xrddiff.data.transforms import make_transform
from xrddiff.diffusion.objectives import AutoregressiveObjective
from xrddiff.models.autoregressive import AutoregressiveDiffusion, generate, measure_range

SIDE, PATCH, WIDTH, DEPTH, HEADS, DIM_HEAD, HELD_OUT = 64, 8, 128, 4, 2, 64, 400


def peer_module() -> ModuleType:
    """The peer, without its trainer (which wants torchvision) and its progress bars."""
    trainer = ModuleType("autoregressive_diffusion_pytorch.image_trainer")
    trainer.ImageDataset = trainer.ImageTrainer = None
    sys.modules[trainer.__name__] = trainer
    from autoregressive_diffusion_pytorch import autoregressive_diffusion as peer

    peer.tqdm = lambda steps, **_: steps
    return peer


def frames(count: int) -> Tensor:
    """Simulated frames, averaged over blocks of 2 x 2 pixels, as network values (count, 1, 64, 64)."""
    ds = load("sim128", limit=count, progress=False)
    x = np.asarray(ds["intensity"].values, np.float32).reshape(count, SIDE, 128 // SIDE, SIDE, 128 // SIDE).mean((2, 4))
    x = torch.from_numpy(np.asarray(make_transform("asinh", scale=1.0, standardise=False).forward(x)))[:, None]
    return (x - x[HELD_OUT:].mean()) / x[HELD_OUT:].std()


def sliced_distance(a: Tensor, b: Tensor, directions: int = 256) -> float:
    """Mean over random directions of the Wasserstein distance between the projections of `a` and of `b` (n, d)."""
    w = (
        F.normalize(torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(0)), dim=0)
        * a.shape[1] ** 0.5
    )
    q = (torch.arange(200) + 0.5) / 200
    return float((torch.quantile(a @ w, q, dim=0) - torch.quantile(b @ w, q, dim=0)).abs().mean())


def distances(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Of whole frames, and of their 8 x 8 crops."""
    crops = [F.unfold(x, 8, stride=8).transpose(1, 2).flatten(0, 1) for x in (a, b)]
    return sliced_distance(a.flatten(1), b.flatten(1)), sliced_distance(*crops)


def train(
    name: str, parameters: Any, loss: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, steps: int, batch: int = 16
) -> None:
    """AdamW with a warm-up and a cosine to zero, the same for both."""
    optimizer, start = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95)), time.process_time()
    order = torch.Generator().manual_seed(0)
    for step in range(steps):
        index = torch.randint(len(x), (batch,), generator=order)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps))
        value = loss(x[index], index, step)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if steps:
        print(
            f"{name}: {steps} steps of {batch} frames in {time.process_time() - start:.0f} s CPU, last loss {float(value.detach()):.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--levels", choices=["default", "ours"], default="default")
    parser.add_argument(
        "--ours", nargs="+", default=["heun:32", "dpmpp_2m:16", "dpmpp_2m:8", "dpmpp_2m:6", "dpmpp_2m:5"]
    )
    parser.add_argument("--peers", nargs="+", type=int, default=[32, 16, 8])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peer = peer_module()

    x = frames(1400)
    real, x = x[:HELD_OUT], x[HELD_OUT:]
    low, high = measure_range([{"x": x}])

    torch.manual_seed(0)
    ours = AutoregressiveDiffusion(
        size=(SIDE, SIDE), patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS, dim_head=DIM_HEAD, head_width=WIDTH,
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
    theirs = peer.ImageAutoregressiveDiffusion(image_size=SIDE, patch_size=PATCH, channels=1, model=words)
    objective = AutoregressiveObjective(ours)
    counts = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (ours, theirs)]
    print(
        f"{platform.machine()}, {args.threads} thread(s); torch {torch.__version__}; frames of {SIDE}², {ours.tokens} tokens of {ours.dim}"
    )
    print(
        f"parameters: ours {counts[0]:.2f} M, peer {counts[1]:.2f} M; batch of {args.frames} frames; levels of the peer: {args.levels}\n",
        flush=True,
    )

    train(
        "ours",
        list(ours.parameters()),
        lambda x, index, step: objective({"x": x, "index": index}, step)["loss"].mean(),
        x,
        args.steps,
    )
    train("peer", list(theirs.parameters()), lambda x, index, step: theirs((x - low) / (high - low)), x, args.steps)

    floor = distances(x, real)
    print(
        f"\nfloor (training frames against held-out ones): {floor[0]:.4f} whole frames, {floor[1]:.4f} crops\n",
        flush=True,
    )

    def draw_ours(name: str, steps: str) -> Tensor:
        return generate(ours, range(args.frames), sampler=ours.sampler(name, int(steps)))

    def draw_peer(steps: int) -> Tensor:
        torch.manual_seed(1)
        theirs.model.diffusion.num_sample_steps = steps
        return theirs.sample(batch_size=args.frames) * (high - low) + low

    settings: dict[str, tuple[int, Callable[[], Tensor]]] = {}
    for n in args.peers:
        settings[f"peer, {n} steps"] = (2 * n - 1, lambda n=n: draw_peer(n))
    for word in args.ours:
        name, n = word.split(":")
        settings[f"ours, {name}, {n} steps"] = (
            ours.sampler(name, int(n)).evaluations,
            lambda name=name, n=n: draw_ours(name, n),
        )

    drawn = {name: make().float() for name, (_, make) in settings.items()}  # the first call of each also warms up
    wall: dict[str, list[float]] = {name: [] for name in settings}
    cpu = dict.fromkeys(settings, 0.0)
    for _ in range(args.rounds):
        for name, (_, make) in settings.items():
            t, c = time.perf_counter(), time.process_time()
            make()
            wall[name].append(time.perf_counter() - t)
            cpu[name] += (time.process_time() - c) / args.rounds
    reference = next(iter(settings))
    print(
        f"| sampling | evaluations of a token | whole frames / floor | crops / floor | s per batch | faster than {reference} | by CPU time |"
    )
    print("| --- " * 7 + "|")
    for name, (evaluations, _) in settings.items():
        d = distances(drawn[name], real)
        print(
            f"| {name} | {evaluations} | {d[0] / floor[0]:.2f} | {d[1] / floor[1]:.2f} | {min(wall[name]):.2f} ({median(wall[name]):.2f}) "
            f"| {min(wall[reference]) / min(wall[name]):.1f} | {cpu[reference] / cpu[name]:.1f} |"
        )


if __name__ == "__main__":
    main()
