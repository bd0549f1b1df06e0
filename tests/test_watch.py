"""`xrddiff runs watch`: how a run stands from its files, on a terminal, once, and beside the run itself; and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from xrddiff.app.verbs.main import main
from xrddiff.core.progress import Bar, report_progress
from xrddiff.run.execution.dashboard import dashboard
from xrddiff.run.execution.run_folder import hold_run
from xrddiff.run.execution.status import (
    Device,
    Keeper,
    devices,
    keeper,
    last_rows,
    new_status,
    read_log,
    read_progress,
    read_standing,
    severity,
)

CONFIG = """\
model: {model_name: latent_diff, latent_diff: true, autoencoder: vae_kl, diff_epochs: 4}
training: {num_epochs: 2}
presets: {model: latent_diff, data: sim128}
"""
STEPS = "step,epoch,frames,split,lr,loss\n10,1,20,train,0.1,2.5\n10,1,20,validation,,2.2\n20,2,40,train,0.1,1.5\n"
EPOCHS = "epoch,step,loss_mean,validation_loss,batches_per_second,memory_mb\n1,10,2.5,1.1,2,500\n2,20,1.5,1.4,4,600\n"
LOG = """\
--- 2026-01-01 10:00:00 train_generative.ipynb
== Training
 60%|██████    | 24/40 [00:04<00:02,  4.43step/s, epoch=3]
step 24: warning: waiting for data takes 31% of the time. Copy the frames.
"""


def write(run: Path, part: str = "", *, steps: str = STEPS, epochs: str = EPOCHS, log: str = LOG) -> Path:
    (run / part / "metrics").mkdir(parents=True, exist_ok=True)
    (run / part / "metrics" / "training_metrics.csv").write_text(steps)
    (run / part / "metrics" / "epochs.csv").write_text(epochs)
    (run / "config.yaml").write_text(CONFIG)
    (run / "log.txt").write_text(log)
    return run


def drawn(run: Path, capsys, *words: str) -> str:
    assert main(["runs", "watch", str(run), "--once", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def held(tmp_path):
    """A process works on the run in this folder."""
    with hold_run(tmp_path, "denoiser"):
        yield tmp_path


def say_how_far(**numbers) -> None:
    """Report, and write it at once."""
    report_progress(**numbers)
    keeper().status.rate = numbers.get("rate")
    keeper().write()


def test_how_far_a_run_is(held, tmp_path, capsys):
    write(tmp_path)
    numbers = dict(step=24, total=40, per_epoch=10, num_epochs=4, loss=1.5, lr=0.1, epoch=3)
    say_how_far(folder=tmp_path, rate=4.0, **numbers)
    s = read_standing(tmp_path)
    at = s.at
    assert (s.state, s.phase, at.step, at.total, at.epochs_done, at.num_epochs) == ("running", "denoiser", 24, 40, 2, 4)
    assert (at.within, at.per_epoch, at.rate, at.eta, at.epoch_eta) == (4, 10, 4.0, 4.0, 1.5)
    assert (s.best, at.loss, at.lr) == (1, 1.5, 0.1)  # the best on held-out frames
    kept = json.loads((tmp_path / "status.json").read_text())
    assert numbers.items() <= kept.items() and (kept["phase"], kept["eta"], kept["pid"]) == (
        "denoiser",
        4.0,
        os.getpid(),
    )
    assert kept["host"] == socket.gethostname()
    said = drawn(tmp_path, capsys)
    for part in (
        "log",
        "device",
        "training the denoiser",
        "last epochs",
        "2 of 4",
        "4 of 10",
        "step 24 of 40",
        "★ 1",
        "running",
    ):
        assert part in said
    assert "! step 24: warning" in said and "24/40 [" not in said
    wide, narrow = (drawn(tmp_path, capsys, "--width", str(w)).splitlines() for w in (130, 70))
    assert max(map(len, wide)) == 130 and max(map(len, narrow)) == 70
    assert any("log" in line and "device" in line for line in wide)
    assert not any("log" in line and "device" in line for line in narrow)


def test_the_part_that_is_trained(tmp_path):
    """The charts are those of the part that trains; what its bar counts is not taken for steps of a training."""
    write(tmp_path, "autoencoder", epochs="epoch,step,loss_mean\n")
    with hold_run(tmp_path, "autoencoder"):
        say_how_far(folder=tmp_path / "autoencoder", step=21, total=24, per_epoch=12, num_epochs=2)
        s = read_standing(tmp_path)
        assert (s.phase, s.how.part, s.at.step, s.at.num_epochs, s.epochs) == ("autoencoder", "autoencoder", 21, 2, [])
        report_progress(phase="denoiser")
        say_how_far(folder=tmp_path, step=24, total=40, per_epoch=10, num_epochs=4)
        s = read_standing(write(tmp_path))
        assert (s.phase, s.how.part, s.at.step, s.at.total, len(s.epochs)) == ("denoiser", "", 24, 40, 2)
        report_progress(phase="sample")
        with Bar(total=8, unit="sample", disable=True) as bar:
            bar.update(2)
            keeper().write()
            s = read_standing(tmp_path)
            assert (s.at.step, s.at.total, s.at.unit) == (2, 8, "sample") and read_progress(tmp_path).step == 24


@pytest.mark.parametrize("damage", ["", "x", "step", "step,epoch\n1", "\x00\x00", "step,split\nnan,train\n"])
def test_files_that_are_half_written(tmp_path, damage):
    for name in ("config.yaml", "log.txt", "environment.json", "metrics/epochs.csv"):
        run = tmp_path / name.replace("/", "-")
        write(run)
        (run / name).write_text(damage)
        dashboard(read_standing(run), "", [])
    assert read_standing(tmp_path / "nothing").state == "half-written"
    assert last_rows(tmp_path / "nothing") == [] == read_log(tmp_path)


def test_severities():
    kinds = {
        "error": ["Traceback (most recent call last):", "ValueError: no", "step 5: error: loss is not finite"],
        "warning": ["x.py:3: UserWarning: slow", "step 5: warning: waits", "the callback X is switched off: …"],
        "heading": ["== Training", "--- 2026-01-01 train_autoencoder.ipynb"],
        "plain": ["19 training frames, 5 held out", "centroid error, px 0.8"],
    }
    assert {line: severity(line) for lines in kinds.values() for line in lines} == {
        line: kind for kind, lines in kinds.items() for line in lines
    }


def test_another_node_says_what_it_wrote(tmp_path):
    status = new_status(write(tmp_path), "denoiser")
    status.host = "far-away"
    Keeper(tmp_path, status).end()
    assert devices(read_standing(tmp_path)) == (
        "far-away, after epoch 2",
        [Device("memory of rank 0", None, 600.0, None)],
    )


def test_a_picture_needs_nothing_from_elsewhere(tmp_path, capsys):
    run = write(tmp_path / "run")
    assert main(["runs", "watch", str(run), "-o", str(tmp_path / "a.svg"), "--width", "110"]) == 0
    text = (tmp_path / "a.svg").read_text()
    assert "last" in text and "@font-face" not in text and not re.findall(r'(?:href|src)="?http|url\(["\']?http', text)
    assert main(["runs", "watch", str(run), "-o", str(tmp_path / "a.svg" / "b.svg")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{}/empty"], "it has no config.yaml; expected the folder of a run"),
        (["{}/none"], "is neither a job nor a run"),
        (["{}/run", "--every", "0"], "--every: found 0, expected at least 0.2 seconds"),
        (["99999999"], "no run of this job is known"),
    ],
)
def test_refused(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM
    (tmp_path / "empty").mkdir()
    write(tmp_path / "run")
    assert main(["runs", "watch", *(w.format(tmp_path) for w in words)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


BESIDE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from xrddiff.app.verbs.runs import dashboard_beside as beside, is_terminal
print("before", is_terminal(), flush=True)
with beside(is_terminal()) as show:
    show(Path(sys.argv[1]))
    time.sleep(float(sys.argv[2]))
print("after", flush=True)
"""


def test_beside_the_run_itself(tmp_path):
    """On a terminal the dashboard is drawn on a screen of its own, which is gone when the run ends; elsewhere there is none."""
    run = write(tmp_path / "run")
    ours, theirs = pty.openpty()
    env = dict(os.environ, TERM="xterm", COLUMNS="110", LINES="30")
    command = [sys.executable, "-c", BESIDE, str(run), "4"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end was closed
                break
            said += part
    before, _, rest = said.decode().partition("\x1b[?1049h")
    shown, _, after = rest.partition("\x1b[?1049l")
    assert "before True" in before and "last epochs" in shown and "after" in after and "Traceback" not in said.decode()
    plain = subprocess.run([*command[:-1], "0"], env=env, capture_output=True, text=True, check=True).stdout
    assert plain == "before False\nafter\n"


class Library:
    """NVIDIA's library with two GPUs, of which the second is a slice that does not say how busy it is."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, i):
        return i

    def nvmlDeviceGetName(self, i):
        return b"H200" if i else "H200"

    def nvmlDeviceGetUtilizationRates(self, i):
        if i:
            raise self.NVMLError
        return SimpleNamespace(gpu=93)

    def nvmlDeviceGetMemoryInfo(self, i):
        return SimpleNamespace(used=61e9, total=141e9)

    def nvmlDeviceGetTemperature(self, i, kind):
        return 64


def test_gpus_of_this_machine(held, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pynvml", Library())
    found = [Device("GPU 0 H200", 0.93, 61e3, 141e3, 64.0), Device("GPU 1 H200", None, 61e3, 141e3, 64.0)]
    where, seen = devices(read_standing(write(tmp_path)))
    assert where == "this machine" and seen[:2] == found and [d.name for d in seen[2:]] == ["memory"]
    said = drawn(tmp_path, capsys)
    assert "GPU 0 H200" in said and "93 %" in said and "61.0 GB of 141.0 GB" in said and "64 °C" in said
