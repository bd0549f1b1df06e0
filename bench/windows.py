"""Training on windows of large measured frames: what a step costs beside one on frames of its own, how soon it starts, and how much memory it takes.

    XRDDIFF_DATA=FOLDER OMP_NUM_THREADS=1 python bench/windows.py [--rounds 5] [--steps 10] [--side 128]

FOLDER has measured frames (thaumatin_grid_*.cbf*, eiger16m*.cbf*); without it nothing is measured. A step is that of `vae_kl`, size
tiny, on sixteen images, with the batches read ahead as in a run; the frames of their own are those of sim128. Each start is a
process of its own: with an empty cache, and with what that has left there. Writes bench/results/windows.json and windows.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from harness import (
    interleaved,
    machine,
    make_parser,
    markdown,
    measured_frames,
    memory,
    min_median,
    ratio,
    same_terms,
    write_results,
)

SETS = {"12 × Pilatus 6M": "thaumatin_grid_*.cbf*", "Eiger 16M": "eiger16m*.cbf*"}
BATCH = 16


def prepared(words: list[str]) -> tuple[Any, Any]:
    """(configuration, frames) of a run with these words."""
    from xrddiff.config.composition import compose_config
    from xrddiff.learn.loading.datasets import prepare_words

    cfg = compose_config(["model=vae_kl", "size=tiny", "threads=1", *words])
    return cfg, prepare_words(cfg)


def stepper(words: list[str], steps: int) -> Callable[[], None]:
    """A function that trains so many steps, with batches that are read ahead."""
    import torch

    from xrddiff.learn.recipes.autoencoders import autoencoder_objective, build_autoencoder

    cfg, frames = prepared(words)
    loader, net = frames.loader(frames.train, batch_size=BATCH, prefetch=cfg.data.prefetch), build_autoencoder(cfg)
    objective = autoencoder_objective(net, frames, cfg, len(loader))
    optimizer, state = torch.optim.AdamW(net.parameters(), 1e-4), {"epoch": 0, "batches": iter(())}

    def batch() -> Any:
        found = next(state["batches"], None)
        if found is None or len(found["index"]) < BATCH:
            state["epoch"] += 1
            state["batches"] = loader.batches(state["epoch"])
            found = next(state["batches"])
        return found

    def run() -> None:
        for k in range(steps):
            optimizer.zero_grad()
            objective(batch(), k)["loss"].mean().backward()
            optimizer.step()

    return run


def start(words: list[str]) -> None:
    """Print, as JSON, what it takes until the first batch of a run is there."""
    import torch  # noqa: F401  its import is no part of it

    before, cpu = memory(), time.process_time()
    _, frames = prepared(words)
    next(frames.loader(frames.train, batch_size=BATCH).batches(0))
    most = memory()
    print(json.dumps({"cpu": time.process_time() - cpu, "MB": (most - before) / 2**20, "windows": len(frames.train)}))


def starts(words: list[str]) -> list[dict[str, float]]:
    """What `start` prints with an empty cache, and again with what is in it then."""
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"XRDDIFF_CACHE": cache}
        call = [sys.executable, __file__, "--start", json.dumps(words)]
        outputs = [
            subprocess.run(call, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout for _ in range(2)
        ]
    return [json.loads(text.splitlines()[-1]) for text in outputs]


def page(data: dict[str, Any]) -> list[str]:
    """The tables."""
    names = list(data["steps"])
    out = ["# Training on windows of large frames", "", data["machine"], ""]
    out += [
        f"A step of `vae_kl size=tiny` on {BATCH} images, ms of CPU with what reads its batches, minimum (median):",
        "",
    ]
    rows = [
        [
            n,
            min_median(data["steps"][n], ".0f", 1e3 / data["per_round"]),
            ratio(data["steps"][n], data["steps"][names[0]]),
        ]
        for n in names
    ]
    out += markdown(["images", "ms a step", "ratio"], rows)
    out += ["", "Until the first batch, in a process of its own: seconds of CPU, and MB above PyTorch's.", ""]
    rows = [
        [n, f"{a['windows']}", f"{a['cpu']:.1f}", f"{a['MB']:.0f}", f"{b['cpu']:.1f}", f"{b['MB']:.0f}"]
        for n, (a, b) in data["starts"].items()
    ]
    out += markdown(["images", "to train on", "empty cache, s", "MB", "later, s", "MB"], rows)
    return out


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--side", type=int, default=128, help="of the windows, px")
    parser.add_argument("--start", type=json.loads, help="used by the benchmark itself")
    args = parser.parse_args()
    if args.start:
        return start(args.start)
    folder = measured_frames()
    found = {n: p for n, p in SETS.items() if any(folder.glob(p))}
    if not found:
        return print("skipped: XRDDIFF_DATA names no folder with measured frames (thaumatin_grid_*.cbf, eiger16m*.cbf)")
    same_terms(1)
    words = {"frames of sim128": ["data=sim128", "data.limit=500"]}
    words |= {f"windows of {n}": [f"data.data_path={folder}/{p}", f"data.window={args.side}"] for n, p in found.items()}
    first = {name: starts(own) for name, own in words.items()}
    times = interleaved({name: stepper(own, args.steps) for name, own in words.items()}, args.rounds)
    data = {
        "machine": machine("cores", "python", "torch"),
        "per_round": args.steps,
        "starts": first,
        "steps": {n: t.cpu for n, t in times.items()},
    }
    print(write_results("windows", page, data))


if __name__ == "__main__":
    main()
