"""A training step of UNet against diffusers' UNet2DModel of the same architecture and the same weights, and what channels_last, torch.compile and bfloat16 add.

    python -m venv PEERS && PEERS/bin/pip install -r bench/requirements.txt && PEERS/bin/pip install -e .
    OMP_NUM_THREADS=1 PEERS/bin/python bench/unet.py [--cases tiny small] [--variants eager compile] [--rounds 9] [--threads 1] [--device cpu]

Weights go from the peer to ours by name (strict), and the outputs are compared before anything is timed, relative to the largest value. A step is forward, mean squared error and backward.
Each round runs every variant once, one after another, in alternating order: `diffusers` as it comes, ours as it comes (`eager`), in `channels_last` memory, under `torch.compile`, both, and each in bfloat16 autocast.
A row gives the minimum and (median) time of a step over the rounds, CPU time on a CPU (other users of the machine move it less) and wall time on a GPU; `ratio` is diffusers/ours of the minima and
(the median of the rounds' ratios): above 1, ours is faster. Compiling is not in the times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import interleaved, machine, make_parser, markdown, min_median, ratio, same_terms, table_row
from torch import Tensor, nn

from xrddiff.learn.models.unet import UNet, make_unet


@dataclass(frozen=True)
class Case:
    """An architecture, and the maps it is timed on. `channels` goes in and comes out."""

    channels: int
    widths: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    head_dim: int
    groups: int
    size: int
    batch: int


CASES = {
    "tiny": Case(4, (64, 64, 96), 1, (False, False, True), 32, 8, 32, 8),  # latents of 32²
    "frames": Case(16, (64, 64, 96), 1, (False, False, True), 32, 8, 32, 8),  # frames of 128² as patches of 4²
    "small": Case(1, (64, 128, 256), 2, (False, False, True), 32, 32, 32, 4),
    "diffusers": Case(3, (224, 448, 672, 896), 2, (False, True, True, True), 8, 32, 32, 1),  # its defaults
}
VARIANTS = ("eager", "channels_last", "compile", "channels_last+compile")


def make_pair(case: Case) -> tuple[UNet, nn.Module]:
    """Ours and the peer, with equal weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    peer = UNet2DModel(
        in_channels=case.channels, out_channels=case.channels, block_out_channels=case.widths, layers_per_block=case.layers,
        norm_num_groups=case.groups, attention_head_dim=case.head_dim,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in case.attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(case.attention)],
    )  # fmt: skip
    ours = UNet(
        case.channels, case.channels, widths=case.widths, layers_per_block=case.layers, attention=case.attention,
        head_dim=case.head_dim, norm_groups=case.groups,
    )  # fmt: skip
    ours.load_state_dict(peer.state_dict(), strict=True)
    return ours, peer


def make_step(net: nn.Module, x: Tensor, t: Tensor, variant: str, bf16: bool) -> Callable[[], None]:
    """Forward and backward of one variant of `net`, finished when it returns."""
    net = copy.deepcopy(net)
    if "channels_last" in variant:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    run = torch.compile(net) if "compile" in variant else net

    def step() -> None:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            out = run(x, t)
        out = out if isinstance(out, Tensor) else out.sample
        out.float().square().mean().backward()
        net.zero_grad(set_to_none=True)
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def race(steps: dict[str, Callable[[], None]], rounds: int, gpu: bool) -> dict[str, list[float]]:
    """Seconds of every step in each round, of the clock on a GPU and else of CPU; what is compiled, is so in the first steps."""
    return {name: t.clock if gpu else t.cpu for name, t in interleaved(steps, rounds, warmup=2).items()}


def main() -> None:
    parser = make_parser(__doc__, rounds=9, threads=1, device="cpu")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--bf16", action="store_true", help="every variant in bfloat16 autocast too, the peer with it")
    args = parser.parse_args()
    same_terms(args.threads)
    gpu = args.device.startswith("cuda")

    import diffusers

    about = f"{machine(f'{args.threads} thread(s)', args.device)}; torch {torch.__version__}, diffusers {diffusers.__version__}"
    print(
        f"{about}; {'wall' if gpu else 'CPU'} time in ms of forward and backward, minimum (median) of {args.rounds} rounds\n"
    )
    head = ["case", "parameters", "maps", "outputs differ by", "variant", "ms", "ratio"]
    print(*markdown(head, [], "l"), sep="\n")
    for name in args.cases:
        case = CASES[name]
        ours, peer = (m.to(args.device) for m in make_pair(case))
        x = torch.randn(case.batch, case.channels, case.size, case.size, device=args.device)
        t = torch.linspace(0, 999, case.batch, device=args.device)
        with torch.no_grad():
            a, b = ours(x, t), peer(x, t).sample
        about = [f"{sum(p.numel() for p in ours.parameters()) / 1e6:.2f} M"]
        about += [f"{case.batch} × {case.channels} × {case.size}²", f"{(a - b).abs().max() / b.abs().max():.1e}"]
        for bf16 in (False, True) if args.bf16 else (False,):
            end = " bf16" if bf16 else ""
            steps = {"diffusers" + end: make_step(peer, x, t, "eager", bf16)}
            steps |= {v + end: make_step(ours, x, t, v, bf16) for v in args.variants}
            times = race(steps, args.rounds, gpu)
            theirs = times["diffusers" + end]
            for variant, ms in times.items():
                cells = [name, *about, variant, min_median(ms, ".1f", 1e3), ratio(theirs, ms)]
                print(table_row(cells), flush=True)

    for where, words, size in (
        ("frames of 128²", dict(patch=4), 128),
        ("latents of 32²", dict(in_channels=4, out_channels=4), 32),
    ):
        net = make_unet("tiny", **words).to(args.device)
        x, t = torch.randn(8, net.in_channels, size, size, device=args.device), torch.rand(8, device=args.device)
        times = race({"tiny": make_step(net, x, t, "eager", False)}, args.rounds, gpu)["tiny"]
        print(f"\ntiny on 8 {where}: {min_median(times, '.0f', 1e3)} ms per step")


if __name__ == "__main__":
    main()
