"""A hundred thousand samples over workers that are lost one after another: how many frames a second, and whether they are the right ones.

    OMP_NUM_THREADS=1 python bench/many_samples.py [--frames 100000] [--workers 2] [--kills 8] [--steps 2] [--folder FOLDER]

`xrddiff sample RUN -n FRAMES --workers local:N` of a U-Net of frames of 32 × 32 pixels that has learnt nothing (arithmetic does not depend on the weights). While it draws, a worker that was chosen at random is killed (SIGKILL) each time that another share of the frames is done; the command starts new ones in
their place. Afterwards twenty parts, chosen at random, are drawn again in this process and compared bit for bit. Seconds are those of the clock from the first finished part to the last; the CPU time is that of all processes. Writes bench/results/many_samples.md.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import torch
from harness import XRDDIFF, cpu_seconds, machine, make_parser, same_terms, write_results
from workers import make_run

from xrddiff.data.formats.readers import open_frames
from xrddiff.judge.inference.sample_jobs import open_sample_job


def workers_below(pid: int) -> list[psutil.Process]:
    """The workers of a command: forked from a process that it has started for that."""
    forks = [p for p in psutil.Process(pid).children() if any("multiprocessing.forkserver" in w for w in p.cmdline())]
    return [worker for process in forks for worker in process.children()]


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--part", type=int, default=250)
    args = parser.parse_args()
    same_terms()
    torch.manual_seed(0)
    dice = random.Random(0)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        own = argparse.Namespace(size="tiny", pixels=32, batch=args.part, steps=args.steps)
        run = make_run(Path(name), own)
        words = [f"inference.steps={args.steps}", f"inference.batch_size={args.part}", "inference.limit=40"]
        command = [str(XRDDIFF), "sample", str(run), "-n", str(args.frames), "--workers", f"local:{args.workers}"]
        command += ["--name", "many", "threads=1", *words]
        folder, killed, seen = run / "samples" / "many", [], set()
        before = cpu_seconds(own=False)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        parts, done, began, ended = -(-args.frames // args.part), 0, 0.0, 0.0
        while process.poll() is None:
            now = len(list((folder / "samples.parts" / "marks").glob("[0-9]*.json")))
            if now and not began:
                began, first = time.perf_counter(), now
            if now > done:
                done, ended = now, time.perf_counter()
            if began and len(killed) < args.kills and done > (len(killed) + 1) * parts / (args.kills + 2):
                there = [p for p in workers_below(process.pid) if p.pid not in seen]
                if there:
                    victim = dice.choice(there)
                    seen.add(victim.pid)
                    victim.send_signal(signal.SIGKILL)
                    killed.append(done)
            time.sleep(0.1)
        said = process.communicate()[0]
        assert process.returncode == 0, said[-3000:]
        cpu = cpu_seconds(own=False) - before
        frames = open_frames(folder / "samples.zarr")
        assert frames.sizes["frame"] == args.frames
        job = open_sample_job(run, [*words, f"inference.num_samples={args.frames}"])
        for part in dice.sample(range(parts), min(20, parts)):
            rows = slice(part * args.part, min(args.frames, (part + 1) * args.part))
            again, _ = job.make(rows)
            assert np.array_equal(again["intensity"].values, frames["intensity"][rows].values), part
        rate = (done - first) * args.part / (ended - began)
    text = f"""# A hundred thousand samples

`OMP_NUM_THREADS=1 python bench/many_samples.py --frames {args.frames} --workers {args.workers} --kills {args.kills} --steps {args.steps}` on {machine("cores")} that others use too, torch {torch.__version__}, {date.today()}

`xrddiff sample RUN -n {args.frames} --workers local:{args.workers}`, frames of 32², {args.steps} evaluations of a U-Net of the size tiny, in parts of {args.part}. {len(killed)} workers were killed, after {", ".join(map(str, killed))} of {parts} parts.

| | |
| --- | ---: |
| frames asked for | {args.frames:,} |
| frames there | {frames.sizes["frame"]:,} |
| frames/s, workers lost on the way included | {rate:.0f} |
| CPU ms a frame, starts and report included | {1e3 * cpu / args.frames:.2f} |

Twenty parts, chosen at random and drawn again by one process, are the same bits.
"""
    print(write_results("many_samples", text))


if __name__ == "__main__":
    main()
