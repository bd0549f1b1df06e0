"""Drawing samples: ours beside diffusers, the same sampler, network, weights, noise and terms.

    python -m venv PEERS && PEERS/bin/pip install -r bench/requirements.txt && PEERS/bin/pip install -e .
    OMP_NUM_THREADS=1 PEERS/bin/python bench/sampling.py [--sizes tiny small] [--terms plain bf16 compile compile+bf16] [--rounds 5] [--device cpu] [--trial]

Samples of 128² of the network of `model=ddpm size=S`, with random weights: arithmetic does not depend on them. Ours is `Sampler("dpmpp_2m", steps=16)` with a `Denoiser`; theirs diffusers' EDMDPMSolverMultistepScheduler around their
UNet2DModel with the same weights by name. `differ` is the largest difference of the samples, over the largest value, in float32.
Both have the allocator settings of a run and the same threads; in `bf16` the weights of both are bfloat16, in `compile` both networks are compiled. They take turns, in alternating order. Times are of CPU on a CPU and of the clock on a GPU,
minimum (median) of the rounds, ms a sample; `ratio` is theirs over ours of the minima (and the median of the rounds' ratios): above 1, ours is faster.

Rows are put into bench/results/sampling.json and .md, beside those of other devices; `--trial` only prints them.
"""

from __future__ import annotations

import copy
import platform
import shlex
import sys
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import EDMDPMSolverMultistepScheduler
from harness import interleaved, make_parser, markdown, min_median, ratio, read_results, same_terms, write_results
from steps import peer_of
from torch import Tensor, nn

from xrddiff.config.composition import compose_config
from xrddiff.judge.inference.building import build_network
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.diffusion.keyed_sampling import SampleNoise, Sampler

TERMS = ("plain", "bf16", "compile", "compile+bf16")
SIZES = {"tiny": 8, "small": 8, "medium": 4}  # samples at once on a CPU
ON_GPU = 8  # times as many on a GPU
PIXELS, STEPS, SIGMA_DATA = 128, 16, 0.5
SAMPLER = Sampler("dpmpp_2m", steps=STEPS, sigma_min=0.002)


def make_network(size: str) -> nn.Module:
    """The network of `model=ddpm size=S`, whose last layers are not zero, as after some training."""
    torch.manual_seed(0)
    net = build_network(compose_config(["model=ddpm", f"size={size}"]), 1, None, {}).requires_grad_(False).eval()
    for p in net.parameters():
        p.add_(0.02 * torch.randn_like(p))
    return net


def our_draw(net: nn.Module, batch: int, device: str, terms: list[str]) -> Callable[[], Tensor]:
    """Draws `batch` samples."""
    if "compile" in terms:
        net.forward = torch.compile(net.forward)
    denoiser = Denoiser(net, "edm", sigma_data=SIGMA_DATA)
    cond = {"mask": torch.ones(batch, 1, PIXELS, PIXELS, dtype=torch.bool, device=device)}
    words = dict(seed=0, cond=cond if net.config["mask_channel"] else None, device=device)
    return lambda: SAMPLER.sample(denoiser, (1, PIXELS, PIXELS), range(batch), **words)


def their_draw(net: nn.Module, peer: nn.Module, batch: int, device: str, terms: list[str]) -> Callable[[], Tensor]:
    """Draws the same samples with the peer, which has the weights of `net`."""
    config, label_scale = net.config, net.label_scale
    dtype = next(peer.parameters()).dtype
    if "compile" in terms:
        peer.forward = torch.compile(peer.forward)
    words = dict(sigma_min=0.002, sigma_max=80.0, sigma_data=SIGMA_DATA, lower_order_final=False)
    mask = torch.ones(batch, config["mask_channel"], PIXELS, PIXELS, device=device)

    @torch.no_grad()
    def draw() -> Tensor:
        scheduler = EDMDPMSolverMultistepScheduler(**words)
        scheduler.set_timesteps(STEPS, device=device)
        x = 80.0 * SampleNoise((1, PIXELS, PIXELS), range(batch), 0, device)()
        for t in scheduler.timesteps:
            seen = torch.cat([scheduler.scale_model_input(x, t), mask], 1)
            folded = F.pixel_unshuffle(seen, config["patch"]).to(dtype)
            out = peer(folded, (label_scale * t).expand(batch).to(dtype)).sample
            x = scheduler.step(F.pixel_shuffle(out, config["patch"]).float(), t, x).prev_sample
        return x

    return draw


def finished(draw: Callable[[], Tensor], gpu: bool) -> Callable[[], None]:
    """The draw, ended when it returns."""

    def run() -> None:
        draw()
        if gpu:
            torch.cuda.synchronize()

    return run


def race(size: str, terms: str, rounds: int, device: str) -> dict[str, Any]:
    """Times of both sides, ms a sample."""
    words, gpu = terms.split("+"), device.startswith("cuda")
    batch = SIZES[size] * (ON_GPU if gpu else 1)
    net = make_network(size).to(device)
    peer = copy.deepcopy(peer_of(net)).to(device).requires_grad_(False).eval()
    if "bf16" in words:
        net, peer = net.bfloat16(), peer.bfloat16()
    parameters = sum(p.numel() for p in net.parameters())
    draws = {"ours": our_draw(net, batch, device, words), "theirs": their_draw(net, peer, batch, device, words)}
    a, b = (draw() for draw in draws.values())
    times = interleaved({name: finished(draw, gpu) for name, draw in draws.items()}, rounds, warmup=1)
    ms = {name: [1e3 * s / batch for s in (t.clock if gpu else t.cpu)] for name, t in times.items()}
    return dict(size=size, terms=terms, parameters=parameters, batch=batch, differ=float((a - b).abs().max() / b.abs().max())) | ms  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    _, _, method, _ = __doc__.split("\n\n")  # without the commands
    lines = ["# Drawing samples beside diffusers", "", method, ""]
    head = ["network", "parameters", "at once", "terms", "ours, ms", "diffusers, ms", "ratio", "differ"]
    for found in results.values():
        rows = [
            [
                r["size"],
                f"{r['parameters'] / 1e6:.2f} M",
                r["batch"],
                r["terms"],
                min_median(r["ours"], ".2f"),
                min_median(r["theirs"], ".2f"),
                ratio(r["theirs"], r["ours"]),
                f"{r['differ']:.0e}",
            ]
            for r in found["rows"]
        ]
        lines += [f"## {found['about']}", "", f"`{found['command']}`", "", *markdown(head, rows, "lrrlr"), ""]
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__, rounds=5, threads=1, device="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=list(TERMS))
    parser.add_argument("--trial", action="store_true", help="write nothing")
    args = parser.parse_args()
    same_terms(args.threads, keep_freed=True)
    rows = []
    for size in args.sizes:
        for terms in args.terms:
            row = race(size, terms, args.rounds, args.device)
            print(size, terms, min_median(row["ours"]), min_median(row["theirs"]), ratio(row["theirs"], row["ours"]), row["differ"], flush=True)  # fmt: skip
            rows.append(row)
    if args.trial:
        return
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    about = f"{name}, {args.threads} thread(s); torch {torch.__version__}, diffusers {diffusers.__version__}"
    command = f"OMP_NUM_THREADS={args.threads} python bench/sampling.py {shlex.join(sys.argv[1:])}".strip()
    results = read_results("sampling", {}) | {args.device: dict(about=about, command=command, rows=rows)}
    write_results("sampling", table, results)


if __name__ == "__main__":
    main()
