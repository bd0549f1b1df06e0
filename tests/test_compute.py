"""How the network is computed changes nothing beyond rounding: compilation, gradient checkpointing, memory layout, the precision of `accelerate launch`, reader threads."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from xrddiff.config.plan import compose_plan

NUMBERS = 12


def make_objective(dropout):
    """A residual block between two convolutions, which denoise 16 × 16 frames."""
    import torch
    from torch import nn

    from xrddiff.core.seeds import keyed_normal
    from xrddiff.learn.models.layers import ResnetBlock

    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            blocks = [ResnetBlock(8, groups=2, dropout=dropout) for _ in range(1)]
            self.model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *blocks, nn.Conv2d(8, 1, 3, padding=1))

        def forward(self, batch, step):
            noise = 0.3 * keyed_normal((1, 16, 16), 0, "noise", step, index=batch["index"])
            return {"loss": (self.model(batch["x"] + noise) - batch["x"]).square().mean((1, 2, 3))}

    return Objective()


class Frames:
    num_frames, batch_size = NUMBERS, 4

    def batches(self, epoch, start=0):
        import torch

        from xrddiff.core.seeds import keyed_normal

        for i in torch.arange(start, NUMBERS).split(self.batch_size):
            x = keyed_normal((1, 16, 16), "frames", index=i.tolist())
            yield {"x": x, "index": i, "cond": {}}


def train(folder, dropout=0.1, resume=False, **words):
    """(losses of all rows, final weights) of nine steps."""
    import torch

    from xrddiff.learn.training.trainer import Trainer

    plan = compose_plan(["model=ddpm", *(f"training.{k}={str(v).lower()}" for k, v in words.items())])
    options = replace(plan.training.denoiser, num_epochs=3, batch_size=4, log_every=1, lr=1e-3, progress=False)
    trainer = Trainer(make_objective(dropout), Frames(), folder, options)
    trainer.fit(resume)
    assert not any("forward" in m.__dict__ for m in trainer.objective.modules())  # as it was before
    return trainer.tables.history.frame()["loss"].tolist(), torch.cat(
        [p.detach().flatten() for p in trainer.parameters]
    )


def test_gradient_checkpointing_trains_the_same(tmp_path, one_thread):
    import torch

    losses, weights = train(tmp_path / "plain")
    again, found = train(tmp_path / "again", gradient_checkpointing=True)
    assert losses == again and torch.equal(weights, found)
    assert len(losses) == 9 and len(set(losses)) == 9


def test_channels_last_trains_the_same_to_rounding(tmp_path, one_thread):
    """And a run that was stopped goes on to the same weights, bit for bit."""
    losses, weights = train(tmp_path / "plain", dropout=0.0)
    again, found = train(tmp_path / "moved", dropout=0.0, channels_last=True)
    assert losses == pytest.approx(again, rel=1e-5) and (weights - found).abs().max() < 1e-5
    assert losses != again  # other kernels
    train(tmp_path / "stopped", dropout=0.0, channels_last=True, max_steps=5)
    whole, same = train(tmp_path / "stopped", dropout=0.0, channels_last=True, resume=True)
    assert again == whole and (found == same).all()


@pytest.mark.slow
def test_compiled_training_agrees(tmp_path):
    """In a process of its own, which compiles as users' processes do."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=1500,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    graphs, kept, *apart = json.loads(done.stdout.splitlines()[-1])
    assert graphs > 0 and max(apart) < 1e-5
    assert kept == 1  # the second training of the same network finds what the first compiled


def test_accelerate_launch_decides_precision_where_the_run_does_not(tmp_path):
    from xrddiff.run.slurm.launch import accelerate_config
    from xrddiff.run.slurm.profiles import load_profile

    profile = replace(load_profile("small"), nodes=1, tasks_per_node=1, gpus_per_node=0, platform="cpu")
    (tmp_path / "file.yaml").write_text(accelerate_config(profile, mixed_precision="bf16"))
    (tmp_path / "said.py").write_text(
        "from xrddiff.config.plan import compose_plan\nfrom xrddiff.learn.recipes.setup import run_accelerator\n"
        "for words in ([], ['training.mixed_precision=no']):\n"
        "    print(run_accelerator(compose_plan(words).training).mixed_precision)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "file.yaml")]
    done = subprocess.run([*launch, str(tmp_path / "said.py")], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["bf16", "no"], done.stdout + done.stderr


def test_words_reach_the_training():
    words = ["training.compile=true", "training.gradient_checkpointing=true", "training.mixed_precision=bf16"]
    options = compose_plan([*words, "training.channels_last=true"]).training.autoencoder
    assert (options.compile, options.gradient_checkpointing, options.mixed_precision) == (True, True, "bf16")
    assert options.channels_last
    assert compose_plan([]).training.either.mixed_precision is None


if __name__ == "__main__":
    from contextlib import nullcontext
    from pathlib import Path
    from unittest.mock import patch

    import torch
    from torch._dynamo.utils import counters

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    apart = []
    # kernels are the same with recomputation; what differs is the graph, and that needs no half minute of C++
    compile = torch.compile
    graph_only = patch("torch.compile", lambda forward, options: compile(forward, backend="aot_eager"))
    for n, (words, how) in enumerate(
        (
            ({"dropout": 0.1}, nullcontext()),
            ({"dropout": 0.0, "gradient_checkpointing": True, "channels_last": True}, graph_only),
        )
    ):
        losses, weights = train(folder / f"{n}", **words)
        with how:
            again, found = train(folder / f"{n} compiled", compile=True, **words)
        if n == 0:
            torch._dynamo.reset()
            train(folder / "again", compile=True, **words)
            kept = counters["aot_autograd"]["autograd_cache_hit"]
        apart += [max(abs(a - b) / abs(a) for a, b in zip(losses, again, strict=True))]
        apart += [float((weights - found).abs().max())]
    print(json.dumps([counters["stats"]["unique_graphs"], kept, *apart]))
