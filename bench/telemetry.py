"""What looking at a training costs: steps with the table of epochs and the rules of health, and without.

    OMP_NUM_THREADS=1 python bench/telemetry.py [--steps 400]

One training goes on in turns of twenty steps, with and without the meter of epochs, the rules of health and their rows; everything else is the same. The network is a small convolutional one, whose steps are short: a step of any model of this package takes longer, and what is added to it does not. Writes
bench/results/telemetry.json and telemetry.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import machine, make_parser, markdown, same_terms, write_results
from torch import nn

TURN = 20


class Loader:
    num_frames, batch_size, rank, world_size = 10**6, 8, 0, 1

    def __init__(self):
        self.x = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 1, 64, 64)).astype(np.float32))

    def batches(self, epoch, start=0):
        for k in range(start, self.num_frames, 8):
            i = torch.arange(k, k + 8) % 64
            yield {"x": self.x[i], "index": i, "cond": {}}


class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 24, 3, padding=1), nn.SiLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(24, 1, 3, padding=1))

    def forward(self, batch, step):
        error = (self.model(batch["x"]) - batch["x"]).square().mean((1, 2, 3))
        return {"loss": error, "error": error}


def measure(steps: int) -> dict[str, list[float]]:
    """Seconds of CPU of turns of steps, with and without, interleaved."""
    from xrddiff.learn.telemetry.rules import Monitor
    from xrddiff.learn.training.trainer import Trainer

    folder = Path(tempfile.mkdtemp())
    words = dict(num_epochs=1, batch_size=8, lr=1e-3, ema_decay=0.999, log_every=10, progress=False)
    trainer = Trainer(Objective(), Loader(), folder, health=Monitor(path=folder / "metrics" / "health.json"), **words)
    meter, checkup = trainer.tables.meter, trainer.checkup
    add_step, look = meter.add_step, checkup.look
    times: dict[str, list[float]] = {"with": [], "without": []}
    finish_step, clock = trainer.finish_step, [0, 0.0]

    def counted(*args):
        if clock[0] % TURN == 0:
            now = time.process_time()
            if clock[0]:
                times["with" if clock[0] // TURN % 2 else "without"].append((now - clock[1]) / TURN)
            with_it = (clock[0] // TURN + 1) % 2
            meter.add_step = add_step if with_it else lambda *a: None
            checkup.look = look if with_it else lambda *a: None
            clock[1] = time.process_time()
        clock[0] += 1
        if clock[0] > steps:
            trainer.stop.request("the end of the benchmark")
        stopped = finish_step(*args)
        if clock[0] % TURN == TURN - 1 and meter.add_step is add_step:  # as if an epoch had TURN steps
            trainer.tables.add_epoch(trainer.place, trainer.forward, trainer.averages)
            look("epoch", trainer.place.step)
        return stopped

    trainer.finish_step = counted
    trainer.fit()
    return times


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    same_terms()
    times = measure(args.steps)
    least, middle = ({k: f(v[2:]) for k, v in times.items()} for f in (min, statistics.median))
    found = {"command": f"OMP_NUM_THREADS=1 python bench/telemetry.py --steps {args.steps}"}
    found |= {"turns": len(times["with"]), "ms_per_step": {k: 1e3 * v for k, v in middle.items()}}
    found |= {"cost": {"min": least["with"] / least["without"] - 1, "median": middle["with"] / middle["without"] - 1}}
    lines = [
        "# What telemetry costs", "",
        f"`{found['command']}`; {machine('python', 'one thread')}.", "",
        f"Steps of a small convolutional network on 64 × 64 pixels, {found['turns']} turns of {TURN} steps each, with and without the table of epochs and the rules of health; with them, every {TURN} steps end an epoch.", "",
        *markdown(["", "ms of CPU per step"], [[f"{k} telemetry", f"{v:.2f}"] for k, v in found["ms_per_step"].items()]), "",
        f"Cost: {found['cost']['median']:+.1%} (median), {found['cost']['min']:+.1%} (min).",
    ]  # fmt: skip
    write_results("telemetry", lines, found)
    print(found)


if __name__ == "__main__":
    main()
