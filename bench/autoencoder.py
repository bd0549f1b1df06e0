"""A training step of AutoencoderKL against diffusers' AutoencoderKL of the same architecture and the same weights.

    python -m venv PEERS && PEERS/bin/pip install -r bench/requirements.txt && PEERS/bin/pip install -e .
    OMP_NUM_THREADS=1 PEERS/bin/python bench/autoencoder.py [--cases tiny small] [--rounds 9] [--threads 1] [--device cpu]

Weights go from the peer to ours by name (strict), and the outputs (latent mean, and frame from the same latent) are compared before anything is timed, relative to the largest value. A step is forward with reparameterisation,
mean squared error, backward and AdamW. Each round times both, one after another, in alternating order; minimum and (median) over the rounds are printed, and
the ratio peer/ours of the minima and (the median of the rounds' ratios): above 1, ours is faster. `CPU` is the ratio of CPU time over all rounds, which other users of the machine move less.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from xrddiff.models.autoencoder import AutoencoderKL, make_autoencoder


@dataclass(frozen=True)
class Case:
    """An architecture, and the frames it is timed on."""

    widths: tuple[int, ...]
    layers: int
    groups: int
    attention: bool
    size: int
    batch: int


CASES = {
    "1.2 M": Case((32, 64, 64), 1, 32, False, 128, 4),
    "small": Case((32, 64, 128, 128), 1, 16, False, 128, 4),
    "attention": Case((32, 64, 128, 128), 1, 32, True, 128, 4),
    "large": Case((128, 256, 512, 512), 2, 32, True, 64, 1),
}


def make_pair(case: Case) -> tuple[AutoencoderKL, nn.Module]:
    """Ours and the peer, with equal weights."""
    from diffusers import AutoencoderKL as Peer

    torch.manual_seed(0)
    levels = len(case.widths)
    peer = Peer(
        in_channels=1, out_channels=1, latent_channels=4, block_out_channels=case.widths, layers_per_block=case.layers,
        norm_num_groups=case.groups, mid_block_add_attention=case.attention,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip
    ours = AutoencoderKL(
        widths=case.widths, layers_per_block=case.layers, norm_groups=case.groups, mid_attention=case.attention, mask_channel=False
    )  # fmt: skip
    ours.load_state_dict(peer.state_dict(), strict=True)
    return ours, peer


def ours_step(model: nn.Module, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return (model(x, None, noise).frame - x).square().mean()


def peer_step(model: nn.Module, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    posterior = model.encode(x).latent_dist
    return (model.decode(posterior.mean + posterior.std * noise).sample - x).square().mean()


def stepper(
    model: nn.Module, loss: Callable[..., torch.Tensor], x: torch.Tensor, noise: torch.Tensor
) -> Callable[[], None]:
    """One optimiser step, finished when it returns."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss(model, x, noise).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def race(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[list[float], list[float], float]:
    """Wall times of both and the ratio of their CPU times (second/first)."""
    wall, cpu = ([], []), [0.0, 0.0]
    for step in (first, second):
        step()
    for r in range(rounds):
        for i in (0, 1) if r % 2 == 0 else (1, 0):
            t, c = time.perf_counter(), time.process_time()
            (first, second)[i]()
            wall[i].append(time.perf_counter() - t)
            cpu[i] += time.process_time() - c
    return *wall, cpu[1] / cpu[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    import diffusers

    about = f"{platform.machine()}, {args.threads} thread(s), {args.device}; torch {torch.__version__}, diffusers {diffusers.__version__}"
    print(f"{about}; times in ms per step, minimum (median) of {args.rounds} rounds\n")
    print(
        "| case | widths | parameters | frames | outputs differ by | ours | diffusers | ratio | CPU |\n"
        + "| --- " * 9
        + "|"
    )
    for name in args.cases:
        case = CASES[name]
        ours, peer = (m.to(args.device) for m in make_pair(case))
        x = torch.randn(case.batch, 1, case.size, case.size, device=args.device)
        with torch.no_grad():
            out, posterior = ours(x), peer.encode(x).latent_dist
            pairs = (out.mean, posterior.mean), (ours.decode(posterior.mean), peer.decode(posterior.mean).sample)
            differ = max((p - q).abs().max() / q.abs().max() for p, q in pairs)
        noise = torch.randn_like(out.mean)
        a, b, cpu = race(stepper(ours, ours_step, x, noise), stepper(peer, peer_step, x, noise), args.rounds)
        ratios = [q / p for p, q in zip(a, b, strict=True)]
        count = sum(p.numel() for p in ours.parameters()) / 1e6
        print(
            f"| {name} | {', '.join(map(str, case.widths))} | {count:.2f} M | {case.batch} × {case.size}² | {differ:.1e} "
            f"| {1e3 * min(a):.0f} ({1e3 * median(a):.0f}) | {1e3 * min(b):.0f} ({1e3 * median(b):.0f}) "
            f"| {min(b) / min(a):.2f} ({median(ratios):.2f}) | {cpu:.2f} |",
            flush=True,
        )

    for f in (4, 8):
        model = make_autoencoder("tiny", downsampling=f, latent_channels=1 if f == 4 else 4).to(args.device)
        x = torch.randn(4, 1, 128, 128, device=args.device)
        step = stepper(model, ours_step, x, torch.randn(4, *model.latent_shape(128, 128), device=args.device))
        times, _, _ = race(step, step, args.rounds)
        print(f"\ntiny, downsampling {f}, 4 × 128²: {1e3 * min(times):.0f} ({1e3 * median(times):.0f}) ms per step")


if __name__ == "__main__":
    main()
