"""A training step of VectorQuantizer (forward, backward, codebook update) against vector-quantize-pytorch with the same codebook.

    python -m venv PEERS && PEERS/bin/pip install -r bench/requirements.txt && PEERS/bin/pip install -e .
    OMP_NUM_THREADS=1 PEERS/bin/python bench/codebook.py [--rounds 21] [--threads 1] [--device cpu]

Both see the same latents; before anything is timed, codes, quantised latents, gradients and codebooks are compared over 20 updates. The peer updates its codebook within forward, ours after it: "forward" is forward and
update of both, "step" has the backward pass too. Each round times both, in alternating order; minimum and (median) over the rounds are printed, and the ratio peer/ours of the minima and (the median of the rounds' ratios): above 1, ours is faster.
`CPU` is the ratio of CPU time over all rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import interleaved, machine, make_parser, markdown, min_median, ratio, same_terms, table_row
from torch import Tensor, nn

from xrddiff.learn.models.codebook import VectorQuantizer

CASES = {"4 x 32², 4 channels": (4, 4, 32), "8 x 32², 8 channels": (8, 8, 32), "1 x 128², 4 channels": (1, 4, 128)}


def make_pair(channels: int, codes: int, rotation_trick: bool, device: str) -> tuple[VectorQuantizer, nn.Module]:
    """Ours and the peer, with equal codebooks."""
    from vector_quantize_pytorch import VectorQuantize

    peer = VectorQuantize(
        channels, codes, decay=0.99, rotation_trick=rotation_trick, commitment_weight=0.25, accept_image_fmap=True
    )
    ours = VectorQuantizer(codes, channels, kmeans_init=False, dead_threshold=0, rotation_trick=rotation_trick)
    start = torch.randn(codes, channels)
    for book in (peer._codebook.embed[0], peer._codebook.embed_avg[0], ours.embed, ours.embed_avg):
        book.copy_(start)
    return ours.to(device), peer.to(device)


def ours_step(vq: VectorQuantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    q, codes = vq(z)
    vq.update(z.detach().movedim(1, -1).flatten(0, -2), codes.flatten())
    return q, 0.25 * (z - q.detach()).square().mean()


def peer_step(vq: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    q, _, loss = vq(z)
    return q, loss


def prepared(
    vq: nn.Module, step: Callable[..., tuple[Tensor, Tensor]], z: Tensor, backward: bool
) -> Callable[[], None]:
    """One step, finished when it returns."""

    def run() -> None:
        leaf = z.clone().requires_grad_()
        q, loss = step(vq, leaf)
        if backward:
            (q.square().mean() + loss).backward()
        if z.is_cuda:
            torch.cuda.synchronize()

    return run


def disagreement(ours: VectorQuantizer, peer: nn.Module, shape: tuple[int, ...], device: str) -> float:
    """Largest difference of gradients and codebooks over 20 updates."""
    worst = 0.0
    for _ in range(20):
        z = torch.randn(shape, device=device)
        grads = []
        for vq, step in ((ours, ours_step), (peer, peer_step)):
            leaf = z.clone().requires_grad_()
            q, loss = step(vq, leaf)
            (q.square().sum() + loss).backward()
            grads.append(leaf.grad)
        books = [(getattr(ours, n), getattr(peer._codebook, n)[0]) for n in ("embed", "embed_avg", "cluster_size")]
        worst = max(worst, *(float((a - b).abs().max()) for a, b in [tuple(grads), *books]))
    return worst


def main() -> None:
    parser = make_parser(__doc__, rounds=21, threads=1, device="cpu")
    parser.add_argument("--codes", type=int, default=1024)
    args = parser.parse_args()
    same_terms(args.threads)
    torch.manual_seed(0)
    from importlib.metadata import version

    print(
        f"{machine(f'{args.threads} thread(s)', args.device)}; torch {torch.__version__}, "
        f"vector-quantize-pytorch {version('vector-quantize-pytorch')}; {args.codes} codes; times in ms, minimum (median) of {args.rounds} rounds\n"
    )
    head = ["latent", "gradient", "timed", "differ by", "ours", "peer", "ratio", "CPU"]
    print(*markdown(head, [], "l"), sep="\n")
    for name, (batch, channels, size) in CASES.items():
        for rotation_trick in (False, True):
            shape = (batch, channels, size, size)
            differ = disagreement(*make_pair(channels, args.codes, rotation_trick, args.device), shape, args.device)
            z = torch.randn(shape, device=args.device)
            for backward in (False, True):
                ours, peer = make_pair(channels, args.codes, rotation_trick, args.device)
                steps = {"ours": prepared(ours, ours_step, z, backward), "peer": prepared(peer, peer_step, z, backward)}
                a, b = interleaved(steps, args.rounds).values()
                cells = [name, "rotation" if rotation_trick else "straight-through"]
                cells += ["step" if backward else "forward", f"{differ:.1e}"]
                cells += [min_median(t.clock, ".1f", 1e3) for t in (a, b)]
                cells += [ratio(b.clock, a.clock, ".1f"), f"{sum(b.cpu) / sum(a.cpu):.1f}"]
                print(table_row(cells), flush=True)


if __name__ == "__main__":
    main()
