"""Trackers: what they are told, that a training goes on in the same run of them, and that nothing leaves the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xrddiff.config.composition import compose_config
from xrddiff.core.errors import BadInput
from xrddiff.core.registry import entries
from xrddiff.learn.telemetry.history import EPOCHS, SAMPLES, read_history
from xrddiff.learn.training import trackers
from xrddiff.learn.training.trackers import Trackers, chosen_trackers
from xrddiff.learn.training.trainer import Trainer

BIN = Path(sys.executable).parent


class Line(torch.nn.Module):
    """(a x − 3x)²."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Linear(1, 1)

    def forward(self, batch, step):
        return {"loss": (self.model(batch["x"][:, None])[:, 0] - 3 * batch["x"]) ** 2}


class Numbers:
    batch_size, index, rank, world_size = 4, range(20), 0, 1

    def batches(self, epoch, start=0):
        x = torch.linspace(-1, 1, 20)
        return ({"index": torch.arange(i, i + 4), "x": x[i : i + 4]} for i in range(start, 20, 4))


def train(folder, names, steps=20, **options):
    told = Trackers(chosen_trackers(names, options), {"training": {"lr": 0.1, "tags": ["a"]}}, name="line", tags=["x"])
    line = Line()
    words = dict(num_epochs=4, batch_size=4, lr=0.1, log_every=1, progress=False, max_steps=steps)
    Trainer(line, Numbers(), folder, callbacks=[told] if names else [], **words).fit(resume=True)
    return line.model.weight.item()


def scalars(folder):
    """tag -> [(step, value)] of TensorBoard's files, of those after a purge."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "tracking" / "rows.jsonl").read_text().splitlines()]


def test_a_training_that_goes_on_goes_on_in_the_same_run(tmp_path, monkeypatch):
    from tensorboard.summary.writer import event_file_writer

    # names of files end with this number: those of the second training would sort before those of the first
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    (tmp_path / "plots").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "plots" / "samples.png")
    (tmp_path / SAMPLES).mkdir()
    (tmp_path / SAMPLES / f"{EPOCHS}.csv").write_text("epoch,step,pairwise_mse_mean\n1,5,0.5\n")
    train(tmp_path, ["jsonl", "tensorboard"], steps=10)
    before = json.loads((tmp_path / "tracking" / "run.json").read_text())
    with open(tmp_path / "tracking" / "rows.jsonl", "a") as f:
        f.write('{"step": 11, "train/loss": 9}\n{"step": 1')  # made after the checkpoint, and torn
    train(tmp_path, ["jsonl", "tensorboard"])
    assert json.loads((tmp_path / "tracking" / "run.json").read_text()) == before
    table = read_history(tmp_path)
    rows = [line for line in lines_of(tmp_path) if "train/loss" in line]
    assert [(r["step"], r["train/loss"]) for r in rows] == list(zip(table.step, table.loss, strict=True))
    assert [r["epoch/epoch"] for r in lines_of(tmp_path) if "epoch/epoch" in r] == [1, 2, 3, 4]
    assert [r["pictures"] for r in lines_of(tmp_path) if "pictures" in r][0] == ["samples"]
    diversity = [r for r in lines_of(tmp_path) if "sample_diversity/pairwise_mse_mean" in r]
    assert [(r["step"], r["sample_diversity/pairwise_mse_mean"]) for r in diversity] == [(5, 0.5)]
    seen = scalars(tmp_path / "tracking" / "tensorboard")
    assert seen["train/loss"] == [(s, pytest.approx(v)) for s, v in zip(table.step, table.loss, strict=True)]
    assert len(seen["epoch/loss_mean"]) == 4


def test_a_tracker_that_fails_ends_no_training(tmp_path, monkeypatch):
    class Full(trackers.JsonLines):
        def log(self, values, step=None, **kwargs):
            if step == 7:
                raise OSError("no space left on the server")
            super().log(values, step)

    monkeypatch.setattr(trackers, "JsonLines", Full)
    with pytest.warns(UserWarning, match="Trackers is switched off: on_row at step 7 raised OSError: no space"):
        failed = train(tmp_path / "a", ["jsonl"])
    assert failed == train(tmp_path / "b", [])  # to the bit
    assert [r["step"] for r in lines_of(tmp_path / "a") if "train/loss" in r] == list(range(1, 7))


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_what_is_not_installed_is_said_in_a_sentence(name, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(BadInput, match=f"training.trackers: {name} needs the package {name}.*pip install {name}"):
        chosen_trackers([name])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["training.trackers=[wand]"], "training.trackers: found 'wand'; did you mean 'wandb'"),
        (["training.tracker_options={wandb: {mode: online}}"], "wandb is not in training.trackers"),
        (["training.trackers=[wandb]", "training.tracker_options={wandb: {mode: cloud}}"], "found 'cloud'"),
        (["training.trackers=[wandb]", "training.tracker_options={wandb: 3}"], "expected its options, as in {mode"),
        (["training.trackers=[jsonl]", "training.tracker_options={jsonl: {file: x}}"], "has no option 'file'"),
    ],
)
def test_refused(words, sentence):
    with pytest.raises(BadInput) as refused:
        compose_config(words)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_names():
    assert set(entries("tracker")) == {"jsonl", "tensorboard", "wandb", "mlflow", "trackio"}
    assert compose_config().training.trackers == ["jsonl", "tensorboard"]


def alone(*command: object, **env: str) -> dict:
    """What a command sent from a network without a way out."""
    words = ["unshare", "-rn", sys.executable, str(Path(__file__).with_name("alone.py")), *map(str, command)]
    done = subprocess.run(words, env=dict(os.environ) | env, capture_output=True, text=True, timeout=600)
    if "unshare" in done.stderr:
        pytest.skip("networks of one's own are not allowed here")
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
@pytest.mark.slow
def test_nothing_phones_home(tmp_path):
    """A whole run with W&B offline, and a study: no packet, no name looked up, no connection."""
    call = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 2)\nexcept OSError: pass"
    assert alone(sys.executable, "-c", call)["lost"] > 0  # so a call would be seen
    words = "model=vae_kl data=sim128 experiment_type=test data.limit=24 training.num_epochs=2 threads=1 run_name=run"
    home, run = tmp_path / "wandb", tmp_path / "vae_kl_test" / "run"
    seen = alone(
        BIN / "xrddiff", "run", *words.split(), f"output_dir={tmp_path}", "training.trackers=[jsonl,tensorboard,wandb]",
        "training.project=frames", "training.tags=[first,small]", WANDB_DIR=str(home),
    )  # fmt: skip
    assert (seen["code"], seen["lost"], seen["datagrams"], seen["connections"]) == (0, 0, 0, 0), seen["err"]
    study = "import optuna; optuna.create_study().optimize(lambda t: t.suggest_float('x', 0, 1), n_trials=2)"
    seen = alone(sys.executable, "-c", study)
    assert (seen["code"], seen["lost"], seen["datagrams"], seen["connections"]) == (0, 0, 0, 0), seen["err"]

    kept = json.loads((run / "tracking" / "run.json").read_text())["id"]
    (offline,) = (home / "wandb").glob(f"offline-run-*-{kept}")
    sync = alone(BIN / "wandb", "sync", "--dry-run", offline)
    assert "Would sync 1 run" in sync["out"] + sync["err"]
    content = (offline / f"run-{kept}.wandb").read_bytes()
    assert all(
        part in content for part in (b"train/loss", b"epoch/loss_mean", b"training.num_epochs", b"small", b"frames")
    )
    table = read_history(run)
    rows = [line for line in lines_of(run) if "train/loss" in line]
    own = table[table.split == "train"]
    assert [(r["step"], r["train/loss"]) for r in rows] == list(zip(own.step, own.loss, strict=True))
