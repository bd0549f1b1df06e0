"""Diffusion in the latent against diffusion on pixels: a training step and a sample, with the same U-Net, sampler and batch.

    OMP_NUM_THREADS=1 python bench/latent.py [--size tiny] [--pixels 256] [--cases f4 f8 folded] [--batch 1] [--steps 16] [--rounds 5] [--threads 1] [--device cpu]

Both networks are `make_unet(size)` with the same widths, blocks and attention. Pixels: frames of one channel from `FrameLoader`. Latent: an autoencoder of the same size, with 1 channel at downsampling 4 (`f4`) or
4 channels at 8 (`f8`), frozen; codes from `LatentLoader`, in memory after the first epoch, as in training. `folded` is `f4` against a pixel network that folds blocks of 4 × 4 pixels into channels, which makes it as cheap as the latent one.
A training step is the loader's batch, the objective, backward and AdamW; a sample is `steps` evaluations (dpmpp_2m) from noise to network values, decoding included. Nothing is trained: arithmetic does not depend on the weights.
Each round times both, in alternating order; minimum (median) of wall times are printed, and the ratio pixel/latent of the minima (of the rounds' ratios), and of CPU times over all rounds, which other users of the machine move less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from harness import interleaved, machine, make_parser, markdown, min_median, ratio, same_terms, table_row, timed
from torch import Tensor, nn

from xrddiff.data.frames.frames import make_frames
from xrddiff.data.transforms.pipelines import make_transform
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.diffusion.keyed_sampling import Sampler
from xrddiff.learn.diffusion.objectives import DenoisingObjective
from xrddiff.learn.loading.loader import FrameLoader
from xrddiff.learn.models.autoencoder import make_autoencoder
from xrddiff.learn.models.latent_space import LatentSpace, measure_latents
from xrddiff.learn.models.unet import make_unet
from xrddiff.learn.recipes.latents import LatentLoader
from xrddiff.learn.training.steps import to_device

CASES = {  # downsampling and channels of the latent, pixels that the network on frames folds
    "f4": (4, 1, 1),
    "f8": (8, 4, 1),
    "folded": (4, 1, 4),
}


def make_loader(pixels: int, batch: int) -> FrameLoader:
    """Poisson counts in memory, two batches per epoch."""
    counts = np.random.default_rng(0).poisson(3.0, (2 * batch, pixels, pixels)).astype(np.uint16)
    frames = make_frames(counts, wavelength=1.3)
    return FrameLoader(frames, make_transform("asinh").fit(frames, np.arange(2 * batch)), batch_size=batch, prefetch=0)


def make_network(size: str, channels: int, patch: int, device: str) -> Denoiser:
    """A denoiser whose last layers are not zero, as after some training."""
    net = make_unet(size, in_channels=channels, out_channels=channels, patch=patch)
    for p in net.parameters():
        if p.ndim > 1 and not p.any():
            nn.init.kaiming_uniform_(p)
    return Denoiser(net.to(device))


def finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def trainer(denoiser: Denoiser, loader: Any, device: str) -> Callable[[], None]:
    """One optimiser step, finished when it returns; batches come from epochs in turn."""
    objective = DenoisingObjective(denoiser)
    optimizer = torch.optim.AdamW(denoiser.net.parameters(), lr=1e-5, fused=True)
    batches = (batch for epoch in count() for batch in loader.batches(epoch))
    steps = count()

    def step() -> None:
        batch = to_device(next(batches), torch.device(device))
        objective(batch, next(steps))["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish(device)

    return step


def sampler(
    denoiser: Denoiser, shape: tuple[int, ...], decode: Callable[[Tensor], Tensor], args: argparse.Namespace
) -> Callable[[], None]:
    """One batch of samples as network values, finished when it returns."""
    made = Sampler("dpmpp_2m", steps=args.steps)

    def sample() -> None:
        with torch.no_grad():
            decode(made.sample(denoiser, shape, range(args.batch), seed=0, device=args.device))
        finish(args.device)

    return sample


def row(name: str, what: str, latent: Callable[[], None], pixel: Callable[[], None], args: argparse.Namespace) -> None:
    """Race both and print."""
    a, b = interleaved({"latent": latent, "pixel": pixel}, args.rounds).values()
    times = [min_median(t.clock, ".0f", 1e3 / args.batch) for t in (a, b)]
    cells = [name, what, *times, ratio(b.clock, a.clock, ".1f"), f"{sum(b.cpu) / sum(a.cpu):.1f}"]
    print(table_row(cells), flush=True)


def main() -> None:
    parser = make_parser(__doc__, rounds=5, threads=1, device="cpu")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    same_terms(args.threads)
    torch.manual_seed(0)

    about = f"{machine(f'{args.threads} thread(s)', args.device)}; torch {torch.__version__}"
    print(f"{about}; size {args.size}, {args.batch} × {args.pixels}², {args.steps} evaluations per sample")
    print(f"ms per frame, minimum (median) of {args.rounds} rounds\n")
    print(*markdown(["case", "what", "latent", "pixel", "ratio", "CPU"], [], "l"), sep="\n")
    frames = make_loader(args.pixels, args.batch)
    for name in args.cases:
        f, channels, patch = CASES[name]
        autoencoder = make_autoencoder(args.size, downsampling=f, latent_channels=channels).to(args.device)
        space = LatentSpace(autoencoder, measure_latents(autoencoder.encode, frames, device=args.device)).to(
            args.device
        )
        latents = LatentLoader(frames, space)
        _, spent = timed(lambda latents=latents: [finish(args.device) for _ in latents.batches(0)])
        encoding = spent.clock / len(frames.index)
        ours, theirs = (make_network(args.size, c, p, args.device) for c, p in ((channels, 1), (1, patch)))
        row(name, "training step", trainer(ours, latents, args.device), trainer(theirs, frames, args.device), args)
        made = (
            sampler(ours, space.shape(*frames.shape), space.decode, args),
            sampler(theirs, (1, *frames.shape), nn.Identity(), args),
        )
        row(name, "sample", *made, args)
        print(table_row([name, "encoding, once per frame", f"{1e3 * encoding:.0f}", "", "", ""]), flush=True)


if __name__ == "__main__":
    main()
