"""Sampling by dask workers against one process: 2 workers × 1 thread against 1 process × 1 thread, on the same samples.

    OMP_NUM_THREADS=1 python bench/workers.py [--model ddpm] [--size tiny] [--pixels 128] [--workers 2] [--frames 64] [--batch 4] [--steps 16] [--rounds 5]

A run folder is made with a network that has learnt nothing (arithmetic does not depend on the weights). Workers are started, and have opened the model, before the clock runs; what is timed is
a store from its template to its last mark: sampling, the inverse transform, writing, reading back and hashing, and in the workers' case the scheduler. Rounds alternate; minimum (median) of frames
per second, and the ratio of the rates of the shortest rounds (median of the rounds' ratios). The start of the workers is told by itself. The two stores are compared bit for bit.
Writes bench/results/workers.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import machine, make_parser, markdown, same_terms, turns, write_results
from torch import nn

from xrddiff.config.plan import compose_plan
from xrddiff.data.formats.parts import PartStore, parts_done
from xrddiff.judge.inference.generators import generator_state, keep_template
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.models.unet import make_unet
from xrddiff.learn.training.checkpoints import save_checkpoint
from xrddiff.run.execution.run_folder import create_run
from xrddiff.run.execution.sharing import _sample_job, _sample_part
from xrddiff.run.execution.workers import Workers, open_workers, run_tasks


def make_run(folder: Path, args: argparse.Namespace) -> Path:
    """The folder of a run of pixel diffusion whose last layers are not zero, as after some training."""
    words = [
        "model=ddpm",
        f"size={args.size}",
        "data=sim128",
        "data.limit=40",
        f"data.crop=[{args.pixels},{args.pixels}]",
    ]
    plan = compose_plan(words + [f"inference.batch_size={args.batch}", f"inference.steps={args.steps}"])
    run, prepared = create_run(plan, folder / "run"), prepare_planned(plan)
    net = make_unet(args.size, patch=4 if args.size == "tiny" else None, mask_channel=True)
    for p in net.parameters():
        if p.ndim > 1 and not p.any():
            nn.init.kaiming_uniform_(p)
    model = Denoiser(net, sigma_data=1.0)
    state = generator_state(model, (1, args.pixels, args.pixels), data_range=(-5.0, 8.0))
    save_checkpoint(run / "checkpoints", 1, {"model": net.state_dict()}, {"step": 1, **prepared.state(), **state})
    keep_template(prepared.frames, run)
    return run


def fill(run: Path, words: tuple[str, ...], folder: Path, pool: Any) -> float:
    """Seconds from an empty store to its last mark."""
    job = _sample_job(str(run), words, None)
    i = job.plan.sampling
    store = PartStore.create(folder, job.template(), i.batch_size)
    started = time.perf_counter()
    run_tasks(
        _sample_part, [(str(run), words, str(folder), k) for k in range(len(store.rows))], pool, lambda mark: None
    )
    return time.perf_counter() - started


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    same_terms(keep_freed=True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, words = make_run(folder, args), (f"inference.num_samples={args.frames}", "threads=1")
        started = time.perf_counter()
        with open_workers(Workers(args.workers), 1) as pool:
            fill(run, words, folder / "warm", pool)
            fill(run, words, folder / "warm-one", None)
            first = time.perf_counter() - started
            pools, times = {"one": None, "many": pool}, {"one": [], "many": []}
            for side in turns(pools, args.rounds):
                own = times[side]
                own.append(fill(run, words, folder / f"{side}-{len(own)}", pools[side]))
            one, many = times.values()
        marks = [
            {k: m["sha256"] for k, m in parts_done(PartStore(folder / f"{side}-0")).items()} for side in ("one", "many")
        ]
        assert marks[0] == marks[1] and marks[0], "the samples of the workers are not those of one process"
        ratios = [a / b for a, b in zip(one, many, strict=True)]
        rows = [
            [label, f"{args.frames / min(times):.2f} ({args.frames / median(times):.2f})"]
            for label, times in (("1 process × 1 thread", one), (f"{args.workers} workers × 1 thread", many))
        ]
        text = f"""# Workers

`{shlex.join(["OMP_NUM_THREADS=1", "python", "bench/workers.py", *sys.argv[1:]])}` on {machine("cores", "torch", "day")}

{args.frames} frames of {args.pixels}² by a U-Net of the size {args.size}, {args.steps} evaluations, in parts of {args.batch}; best (median) of {args.rounds} rounds

{chr(10).join(markdown(["", "frames/s"], rows, "l"))}

Ratio: {min(one) / min(many):.2f} of the best, {median(ratios):.2f} the median of the rounds; the samples are the same bits. To start {args.workers} workers, open the model in each and make two stores first: {first:.0f} s.
"""
        print(write_results("workers", text))


if __name__ == "__main__":
    main()
