"""Steps of Stein variational gradient descent: in blocks against the whole matrix, and on several ranks.

    OMP_NUM_THREADS=1 python bench/particles.py [--rounds 5] [--large 100000] [--ranks 1 2 4]

A step moves n particles of 2 coordinates once (kernel `rbf`, bandwidth by the median). The naive step holds the matrix of all pairs: of differences (n, n, 2) and of kernels (n, n), in PyTorch and float64. Both are timed in rounds that alternate; each
measurement of memory is a process of its own, less the memory of one that only imports. Ranks have one thread each and share this machine. Writes bench/results/particles.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from harness import machine, make_parser, markdown, memory, min_median, same_terms, turns, write_results

HERE = Path(__file__).resolve()


def start(n: int):
    """The particles that every process begins with."""
    import torch

    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def naive(x, g):
    """One direction by the matrix of all pairs."""
    import torch

    apart = x[:, None] - x[None]
    squared = apart.square().sum(-1)
    h = torch.pdist(x[:256]).median() ** 2 / math.log(len(x) + 1)
    k = (-squared / h).exp()
    return (k @ g + 2 / h * (k[..., None] * apart).sum(1)) / len(x)


def blocks(x, g, ring):
    """One direction in blocks."""
    from xrddiff.learn.diffusion.particle_kernels import common_sample, rbf, stein_sums

    drive, apart = stein_sums(ring, x, g, rbf().fit(common_sample(ring, x), ring.n))
    return drive + apart


def worker(job: dict) -> dict:
    """What a process of this benchmark does; `job` says which step of how many particles, how often."""

    from xrddiff.core.ranks.agreement import Ranks
    from xrddiff.core.ranks.rendezvous import initialize_distributed
    from xrddiff.core.ranks.ring import Ring, shares

    same_terms()
    n, info = job["n"], initialize_distributed(backend="gloo")
    place = type("Place", (), {"process_index": info.process_id, "num_processes": info.num_processes})
    x = start(n)
    first, last = shares(n, info.num_processes)[info.process_id]
    own = x[first:last].clone()
    ring = Ring(Ranks(place), len(own))
    steps = {"naive": lambda: naive(own, -own), "blocks": lambda: blocks(own, -own, ring), "none": lambda: None}
    times: dict[str, list[float]] = {name: [] for name in job["steps"]}
    for name in turns(job["steps"], job["rounds"]):
        ring.gather(0)
        began = time.perf_counter()
        steps[name]()
        ring.gather(0)
        times[name].append(time.perf_counter() - began)
    return dict(times=times, megabytes=memory() / 2**20, waited=ring.waited)


def on_ranks(script: Path, job: dict, ranks: int = 1):
    """What rank 0 of `script --job JOB` answers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        words = [sys.executable, script, "--job", json.dumps(job)]
        started.append(subprocess.Popen(words, env=env | {k: str(v) for k, v in place.items()}, stdout=subprocess.PIPE, text=True))  # fmt: skip
    out = [p.communicate()[0] for p in started]
    if any(p.returncode for p in started):
        raise SystemExit("a process failed")
    return json.loads(out[0].splitlines()[-1])


def measured(n: int, steps: list[str], rounds: int, ranks: int = 1) -> dict:
    """Times and memory of rank 0."""
    return on_ranks(HERE, dict(n=n, steps=steps, rounds=rounds), ranks)


def ms(times: list[float]) -> str:
    return min_median(times, ".3g", 1e3)


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--large", type=int, default=100_000, help="particles of the one large step; 0: none")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(worker(args.job)))
        return
    idle = measured(1000, ["none"], 1)["megabytes"]
    rows = []
    for n in (1000, 5000):
        both = measured(n, ["naive", "blocks"], args.rounds)["times"]
        room = {name: measured(n, [name], 1)["megabytes"] - idle for name in both}
        ratios = [a / b for a, b in zip(both["naive"], both["blocks"], strict=True)]
        cells = [f"{n:,}", *(cell for way in ("blocks", "naive") for cell in (ms(both[way]), f"{room[way]:.0f}"))]
        rows.append([*cells, f"{max(ratios):.2f} ({median(ratios):.2f})"])
    for n, rounds in ((10_000, args.rounds), (args.large, 1)):
        if n:
            one = measured(n, ["blocks"], rounds)
            whole = 8 * n * n * 5 / 1e9  # differences, their squares, kernels and products
            cells = [f"{n:,}", ms(one["times"]["blocks"]), f"{one['megabytes'] - idle:.0f}"]
            rows.append([*cells, f"not tried: {whole:,.0f} GB", "", ""])
    shared, n = [], 10_000
    alone: list[float] = []
    for ranks in args.ranks:
        found = measured(n, ["blocks"], args.rounds, ranks)
        times = found["times"]["blocks"]
        alone = alone or times
        faster = f"{min(alone) / min(times):.2f} ({median(alone) / median(times):.2f})"
        shared.append([ranks, ms(times), faster, f"{1e3 * found['waited'] / args.rounds:.3g}"])

    text = [
        "# Particles", "",
        f"`python bench/particles.py --rounds {args.rounds}` on {machine('cores', 'torch', 'day')}, load average {os.getloadavg()[1]:.0f} of other work", "",
        "## In blocks against the whole matrix", "",
        "One step of particles of 2 coordinates, 1 thread, float64, `rbf`: ms, minimum (median) of the rounds; MB beyond an idle process; how many times faster, best (median) of the rounds.", "",
        *markdown(["particles", "blocks, ms", "MB", "matrix, ms", "MB", "ratio"], rows, "l"), "",
        "## Ranks", "",
        f"{n:,} particles on ranks of one thread: ms per step, minimum (median); how many times faster than one rank; ms that rank 0 waited for others in a step.", "",
        *markdown(["ranks", "ms", "speed-up", "waiting"], shared, "l"), "",
    ]  # fmt: skip
    print(write_results("particles", text))


if __name__ == "__main__":
    main()
