"""Trackers: what they are told, that a training goes on in the same run of them, and that nothing leaves the machine."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import need
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

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
    about = {"training": {"lr": 0.1, "tags": ["a"], "max_steps": steps}}
    told = Trackers(chosen_trackers(names, options), about, name="line", project="frames", tags=["x"])
    line = Line()
    words = dict(num_epochs=4, batch_size=4, lr=0.1, log_every=1, progress=False, max_steps=steps)
    Trainer(line, Numbers(), folder, callbacks=[told] if names else [], **words).fit(resume=True)
    return line.model.weight.item()


def scalars(folder):
    """tag -> [(step, value)] of TensorBoard's files, of those after a purge."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "tracking" / "rows.jsonl").read_text().splitlines()]


def test_a_training_that_goes_on_goes_on_in_the_same_run(tmp_path, monkeypatch):
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


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A training that W&B, MLflow, Trackio and TensorBoard follow, killed after step 13 and gone on with from step 10."""
    for package in ("wandb", "mlflow"):
        need(package)
    folder = tmp_path_factory.mktemp("followed")
    names = ["tensorboard", "wandb", "mlflow", "trackio"]
    (folder / "plots").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "plots" / "samples.png")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_DIR", "WANDB_MODE", "TRACKIO_SPACE_ID"):
            patch.delenv(name, raising=False)
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # read when the package is imported
        assert need("trackio").utils.TRACKIO_DIR == folder / "trackio"
        patch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".* is switched off")
            train(folder, names, steps=10)
            for name in ("checkpoints", "metrics"):
                shutil.copytree(folder / name, folder / "kept" / name)
            train(folder, names, steps=13)
            for name in ("checkpoints", "metrics"):
                shutil.rmtree(folder / name)
                shutil.move(folder / "kept" / name, folder / name)
            train(folder, names)
        kept = json.loads((folder / "tracking" / "run.json").read_text())
        yield SimpleNamespace(folder=folder, table=read_history(folder), kept=kept)


EPOCHS_TOLD = [5, 10, 13, 15, 20]  # that of step 13 was not over when it was killed


def told_once(followed, rows, tolerance=0.0):
    """Whether rows of (step, train/loss) are those of the run's own table, each once."""
    own = list(zip(followed.table.step, followed.table.loss, strict=True))
    assert [step for step, _ in rows] == [step for step, _ in own] == list(range(1, 21))
    assert [value for _, value in rows] == pytest.approx([value for _, value in own], rel=tolerance, abs=0)


def test_tensorboard_has_it_all(followed):
    seen = scalars(followed.folder / "tracking" / "tensorboard")
    told_once(followed, seen["train/loss"], 1e-6)  # 32 bits
    assert [step for step, _ in seen["epoch/loss_mean"]] == [5, 10, 15, 20]  # what was told of step 13 is purged
    events = EventAccumulator(str(followed.folder / "tracking" / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["samples"]
    assert (
        b"training.lr" in b"".join(p.read_bytes() for p in followed.folder.rglob("*hparams*"))
        or events.Tags()["tensors"]
    )


def test_mlflow_has_it_all(followed):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{followed.folder}/tracking/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("frames")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (followed.kept["mlflow"], "line", "FINISHED")
    told_once(followed, [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")])
    epochs = client.get_metric_history(run.info.run_id, "epoch/loss_mean")
    assert [m.step for m in epochs] == EPOCHS_TOLD
    assert run.data.params == {"training.lr": "0.1", "training.tags": '["a"]', "training.max_steps": "10"}
    assert run.data.tags["resumed.training.max_steps"] == "20" and run.data.tags["tags"] == "x"
    pictures = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")]
    assert any(name.startswith("samples+step+5+") and name.endswith(".png") for name in pictures)
    assert Path(run.info.artifact_uri).is_relative_to(followed.folder)


def test_trackio_has_it_all(followed):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("frames")
    assert run.name == f"line {followed.kept['id']}"
    assert (run.config["training.lr"], run.config["training.tags"]) == (0.1, '["a"]')
    rows = SQLiteStorage.get_logs("frames", run.name)
    told_once(followed, [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row])
    assert [row["step"] for row in rows if "epoch/loss_mean" in row] == EPOCHS_TOLD
    assert [row["step"] for row in rows if "samples" in row][0] == 5


def wandb_records(file):
    """The records of a file of W&B, which are framed as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(part)
            part = b""


def test_wandb_has_it_all(followed):
    attempts = sorted((followed.folder / "tracking" / "wandb").rglob("offline-run-*"))
    assert {p.name.rpartition("-")[2] for p in attempts} == {followed.kept["id"]}  # which `wandb sync` makes one run
    records = [list(wandb_records(file)) for place in attempts for file in place.glob("*.wandb")]
    rows = {}
    for record in (r for attempt in records for r in attempt if r.WhichOneof("record_type") == "history"):
        row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in row:
            rows.setdefault(
                json.loads(row["_step"]), json.loads(row["train/loss"])
            )  # as its server does: the first stays
    told_once(followed, sorted(rows.items()))
    runs = [r.run for attempt in records for r in attempt if r.WhichOneof("record_type") == "run"]
    assert {(run.display_name, run.project, tuple(run.tags)) for run in runs} == {("line", "frames", ("x",))}
    said = b"".join(p.read_bytes() for place in attempts for p in place.glob("*.wandb"))
    assert b"training.lr" in said and list(attempts[0].rglob("samples_*.png"))


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


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "trackio", "wandb"])
def test_what_is_not_installed_is_said_in_a_sentence(name, monkeypatch):
    monkeypatch.setattr("xrddiff.core.extras.find_spec", lambda package: None)
    with pytest.raises(
        BadInput, match=f"training.trackers: {name} needs the package {name}.*pip install {name}, or 'xrddiff.trackers"
    ):
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
    assert compose_config().training.trackers == ["jsonl"]


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
    """A whole run with W&B offline, MLflow and Trackio, and a study: no packet, no name looked up, no connection."""
    call = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 2)\nexcept OSError: pass"
    assert alone(sys.executable, "-c", call)["lost"] > 0  # so a call would be seen
    words = "model=vae_kl data=sim128 experiment_type=test data.limit=24 training.num_epochs=2 threads=1 run_name=run"
    home, run = tmp_path / "wandb", tmp_path / "vae_kl_test" / "run"
    no_tests = dict.fromkeys(
        ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST"), ""
    )  # by which MLflow would know itself tested
    seen = alone(
        BIN / "xrddiff", "run", *words.split(), f"output_dir={tmp_path}", 
        "training.trackers=[jsonl,tensorboard,wandb,mlflow,trackio]", "training.project=frames",
        "training.tags=[first,small]", WANDB_DIR=str(home), TRACKIO_DIR=str(tmp_path / "trackio"), **no_tests,
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
