"""What ranks gain and what it costs to get them going.

    python bench/ranks.py [--parts throughput papermill submit] [--rounds 5]

throughput: frames per second of training on 2 ranks with 1 thread each (gloo) over those of 1 rank with 1 thread, for steps that compute for long (a tiny autoencoder on 128 x 128) and the same frames per rank. Both are
timed inside the trainer, first steps left out; rounds alternate, and are the ratio of ranks that work at the same time on the same cores, so another user of the machine lowers it.
papermill: a run from the call to its return, less the time that its cells took.
submit: from `xrddiff cluster submit` to the first row of training on a toy cluster (slurm/lab; needs root and SLURM), less what SLURM itself takes from `sbatch` to the first line of a trivial `srun` in a job of as many nodes.
Writes bench/results/ranks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import XRDDIFF, machine, make_parser, markdown, same_terms, turns, write_results

HERE = Path(__file__).resolve()
WORDS = ["model=vae_kl", "size=tiny", "experiment_type=test", "data=sim128", "data.limit=64", "threads=1"]


def rank_main(folder: str, steps: int) -> None:
    """One rank of a timed training; rank 0 prints frames per second."""
    import torch

    from xrddiff.config.plan import compose_plan
    from xrddiff.core.ranks.rendezvous import initialize_distributed
    from xrddiff.learn.loading.datasets import prepare_planned
    from xrddiff.learn.losses import VAEObjective
    from xrddiff.learn.models.autoencoder import make_autoencoder
    from xrddiff.learn.recipes.setup import run_accelerator, run_loaders

    same_terms()
    initialize_distributed()
    plan = compose_plan([*WORDS, "training.batch_size=8"])
    prepared, accelerator = prepare_planned(plan), run_accelerator(plan.training)
    loaders = run_loaders(prepared, plan, accelerator, 8)
    torch.manual_seed(0)
    from xrddiff.learn.training.callbacks import Callback
    from xrddiff.learn.training.trainer import Trainer

    start, first = [], 4

    class Clock(Callback):
        def on_step(self, training, record):
            if training.step in (first, steps):  # the last: before the checkpoint of the end
                start.append((time.perf_counter(), training.samples_seen))

    objective = VAEObjective(make_autoencoder("tiny"), prepared.transform)
    options = dict(batch_size=8, max_steps=steps, progress=False, checkpoint_every=10**6)
    trainer = Trainer(objective, loaders[0], folder, callbacks=[Clock()], accelerator=accelerator, **options)
    trainer.fit()
    if accelerator.is_main_process:
        (a, n), (b, m) = start
        print(json.dumps((m - n) / (b - a)))


def frames_per_second(ranks: int, steps: int) -> float:
    """Train on so many ranks, one thread each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            words = [sys.executable, HERE, "--rank", folder, "--steps", str(steps)]
            processes.append(subprocess.Popen(words, env=env | {k: str(v) for k, v in place.items()}, stdout=subprocess.PIPE, text=True))  # fmt: skip
        out = [p.communicate()[0] for p in processes]
    if any(p.returncode for p in processes):
        raise SystemExit("a rank failed")
    return json.loads(out[0].splitlines()[-1])


def throughput(rounds: int, steps: int) -> list[str]:
    """Table of 1 and 2 ranks."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for n in turns(rates, rounds):
        rates[n].append(frames_per_second(n, steps))
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    rows = [[n, f"{max(rates[n]):.1f} ({median(rates[n]):.1f})"] for n in rates]
    ratio = f"{max(rates[2]) / max(rates[1]):.2f} of the best, {median(ratios):.2f} the median of the rounds"
    return [
        "## Two ranks against one", "", f"Frames of 128² per second over {steps - 4} steps of 8 frames per rank, tiny autoencoder, best (median) of {rounds} rounds", "",
        *markdown(["ranks × 1 thread", "frames/s"], rows, "l"), "", f"Ratio: {ratio}.", "",
    ]  # fmt: skip


def overhead(rounds: int) -> list[str]:
    """What the execution of a notebook adds to its cells."""
    code = (
        "import sys, time, json; from xrddiff.run.execution.phases import execute_run; start = time.perf_counter(); "
        "path = execute_run(sys.argv[1:], terminal=False); print(json.dumps([str(path), time.perf_counter() - start]))"
    )
    lost = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            words = [*WORDS, "training.max_steps=4", f"output_dir={folder}", f"run_name=r{i}"]
            out = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout  # fmt: skip
            path, seconds = json.loads(out.splitlines()[-1])
            notebook = json.loads((Path(path) / "notebook.ipynb").read_text())
            cells = sum(c["metadata"].get("papermill", {}).get("duration") or 0 for c in notebook["cells"])
            lost.append(seconds - cells)
    return [
        "## papermill in this process", "",
        f"A run less its cells: {min(lost):.2f} s ({median(lost):.2f} s), minimum (median) of {rounds} runs.", "",
    ]  # fmt: skip


def first_row(run: Path, limit: float = 120) -> float:
    """When the first row of training was written."""
    table, end = run / "metrics" / "training_metrics.csv", time.time() + limit
    while time.time() < end:
        if table.exists() and table.read_text().count("\n") > 1:
            return time.time()
        time.sleep(0.02)
    raise SystemExit(f"no training in {run}")


def submit(rounds: int) -> list[str]:
    """From `xrddiff cluster submit` to the first step, and what of it is SLURM's."""
    lab = HERE.parent.parent / "slurm" / "lab" / "lab.py"
    with tempfile.TemporaryDirectory(prefix="xl") as base:
        folder = ["--folder", f"{base}/lab"]
        os.chmod(base, 0o755)

        def ask(*words: str) -> str:
            return subprocess.run([sys.executable, lab, words[0], *folder, *words[1:]], check=True, capture_output=True, text=True).stdout  # fmt: skip

        ask("up")
        try:
            env = runpy.run_path(str(lab))["environment"](f"{base}/lab")
            env |= {"XRDDIFF_STATE": f"{base}/state", "ACCELERATE_USE_CPU": "true"}
            slurm, ours = [], []
            (Path(base) / "two.yaml").write_text("name: two\nnodes: 2\ncpus_per_node: 1\nmemory_per_cpu: 4G\ntime_limit: '00:05:00'\n")  # fmt: skip
            for i in range(rounds):
                mark, start = Path(base) / f"mark{i}", time.time()
                subprocess.run(["sbatch", "-N2", "--ntasks-per-node=1", f"--output={base}/own", f"--wrap=srun touch {mark}"], env=env, check=True, capture_output=True)  # fmt: skip
                while not mark.exists():
                    time.sleep(0.02)
                slurm.append(mark.stat().st_mtime - start)
                words = [*WORDS, "training.max_steps=4", "training.log_every=1", f"output_dir={base}/out", f"run_name=r{i}"]  # fmt: skip
                start = time.time()
                subprocess.run([XRDDIFF, "submit", "--profile", f"{base}/two.yaml", *words], env=env, cwd=base, check=True, capture_output=True)  # fmt: skip
                sent = time.time() - start
                run = Path(base) / "out" / "vae_kl_test" / f"r{i}"
                ours.append((first_row(run) - start, sent))
                while subprocess.run(["squeue", "-h"], env=env, capture_output=True, text=True).stdout.strip():
                    time.sleep(0.2)
        finally:
            ask("down")
    more = [a - s for (a, _), s in zip(ours, slurm, strict=True)]
    return [
        "## From submit to the first step", "",
        f"Two nodes, one rank each, minimum (median) of {rounds}: from `xrddiff cluster submit` to the first step {min(a for a, _ in ours):.1f} s ({median(a for a, _ in ours):.1f} s), of which the command itself "
        f"{min(b for _, b in ours):.1f} s ({median(b for _, b in ours):.1f} s); SLURM's own share, from `sbatch` to a trivial `srun`, {min(slurm):.1f} s ({median(slurm):.1f} s). "
        f"Beyond SLURM's own: {min(more):.1f} s ({median(more):.1f} s). Both ranks share one machine of {os.cpu_count()} cores here, so they load PyTorch side by side.", "",
    ]  # fmt: skip


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--parts", nargs="+", choices=["throughput", "papermill", "submit"], default=["throughput", "papermill", "submit"])  # fmt: skip
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank_main(args.rank, args.steps)
        raise SystemExit

    lines = ["# Ranks", "", f"`python bench/ranks.py --rounds {args.rounds}` on {machine('cores', 'torch', 'day')}", ""]  # fmt: skip
    for part in args.parts:
        lines += {"throughput": lambda: throughput(args.rounds, args.steps), "papermill": lambda: overhead(args.rounds), "submit": lambda: submit(args.rounds)}[part]()  # fmt: skip
    print("\n".join(lines))
    if set(args.parts) == {"throughput", "papermill", "submit"}:
        write_results("ranks", lines)
