"""What trackers cost a training: `python bench/trackers.py`.

A small training is told to each tracker, and the CPU seconds of this process and of those that it started are counted: to start and to finish, and for each row.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import cpu_seconds, interleaved, make_parser, markdown, same_terms, write_results

ROWS, STEPS_PER_ROW = 400, 10


def tracker_cost(name: str) -> dict[str, float]:
    """Seconds of CPU to start and finish one tracker, and of one row."""
    from xrddiff.learn.training.trackers import Tracked, chosen_trackers, numbers

    row = {
        "step": 0,
        "epoch": 1,
        "frames": 80,
        "split": "train",
        "lr": 1e-4,
        "loss": 0.5,
        "recon": 0.4,
        "kl": 1.0,
        "grad_norm": 2.0,
    }
    with tempfile.TemporaryDirectory() as folder:
        begin = cpu_seconds()
        tracker = chosen_trackers([name])[name](Tracked(Path(folder), "bench", name, id="bench", step=1))
        tracker.start()
        tracker.store_init_configuration({"training.lr": 1e-4})
        started, clock = cpu_seconds(), time.perf_counter()
        for i in range(ROWS):
            tracker.log(numbers(row | {"loss": 1 / (i + 1)}, "train", ("step",)), step=i + 1)
        told, clock = cpu_seconds(), time.perf_counter() - clock
        tracker.finish()
        return dict(
            start_s=started - begin + cpu_seconds() - told,
            row_ms=1e3 * (told - started) / ROWS,
            wait_ms=1e3 * clock / ROWS,
        )


def step_seconds() -> float:
    """CPU seconds of a step of the smallest model (vae_kl, tiny, two frames of 128 x 128)."""
    import torch

    from xrddiff.learn.models.autoencoder import make_autoencoder

    same_terms()
    net, x = make_autoencoder("tiny"), torch.rand(2, 1, 128, 128)
    optimizer = torch.optim.AdamW(net.parameters())

    def step() -> None:
        (net(x).frame - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return median(interleaved({"step": step}, 20, warmup=0)["step"].cpu)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("trackers", nargs="*", default=["jsonl", "tensorboard", "wandb"])
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    import xrddiff.learn.training.trackers  # noqa: F401  what every run imports

    step = step_seconds()
    costs = {name: tracker_cost(name) for name in args.trackers}
    lines = [
        "# What trackers cost",
        "",
        f"CPU time of `python bench/trackers.py`, over {ROWS} rows. A row is told every {STEPS_PER_ROW} steps (`training.log_every`); a step of the smallest model (vae_kl, size tiny, two frames of 128 × 128) takes "
        f"{1e3 * step:.0f} ms on one core. W&B's own process is counted with its start and finish.",
        "",
    ]
    rows = []
    for name, c in costs.items():
        share = c["row_ms"] / 1e3 / (STEPS_PER_ROW * step)
        rows.append([name, f"{c['start_s']:.2f}", f"{c['row_ms']:.3f}", f"{c['wait_ms']:.3f}", f"{100 * share:.2f} %"])
    head = ["tracker", "start and finish, s", "a row, ms", "the training waits for a row, ms"]
    lines += markdown([*head, "share of the steps between two rows"], rows, "l")
    print(write_results("trackers", lines, dict(step_ms=1e3 * step, trackers=costs)))


if __name__ == "__main__":
    main()
