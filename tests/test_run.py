"""The main job from the command line: a whole run folder, resumed after kills to the same weights, and refusals of one sentence."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import warm
from browser import chromium
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("xrddiff")
SMALL = [
    "experiment_type=test",
    "data=sim128",
    "data.limit=100",
    "data.crop=[64,64]",
    "training.num_epochs=2",
    "training.batch_size=8",
    "threads=1",
]


def xrddiff(
    *words: str, folder: Path, check: bool = True, start: bool = False, **options
) -> subprocess.CompletedProcess:
    """`xrddiff words…` in `folder`: started from nothing if `start`, else forked from a process that has imported (tests/warm.py)."""
    if start:
        done = subprocess.run([COMMAND, *words], cwd=folder, text=True, capture_output=True, **options)
    else:
        done = warm.run("xrddiff", *words, cwd=folder, **options)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run, never interrupted, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = xrddiff("run", *SMALL, "run_name=whole", "model.diff_lr=0.1", folder=folder, start=True)
    return folder / "output" / "vae_kl_test" / "whole", done


def weights(run: Path) -> dict[str, np.ndarray]:
    newest = max((run / "checkpoints").glob("step-*"))
    return {
        f"{name}/{k}": v
        for name in ("model", "ema", "optimizer")
        for k, v in load_file(newest / f"{name}.safetensors").items()
    }


def test_the_run_folder_is_complete(finished):
    run, done = finished
    for name in ("notebook.ipynb", "config.yaml", "environment.json", "README.md", "report.md", "report.html", "log.txt", "metrics/training_metrics.csv",
                 "metrics/training_metrics.json", "metrics/held_out.json", "samples/reconstruction.zarr"):  # fmt: skip
        assert (run / name).exists(), name
    assert list((run / "plots").glob("*.png")) and list((run / "checkpoints").glob("step-*"))
    assert "report.html" in done.stdout and "peak F1" in done.stdout
    note = "xrddiff: note: no effect in this run: model.diff_lr (the model has no denoiser)"
    assert done.stderr.splitlines().count(note) == 1 and "no effect" not in done.stdout
    history = pd.read_csv(run / "metrics" / "training_metrics.csv")
    assert set(history["split"]) == {"train", "validation"} and np.isfinite(history["loss"]).all()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["ranks"] == 1


def test_the_reconstruction_is_frames_like_any_other(finished):
    from xrddiff.data.formats.readers import open_frames
    from xrddiff.data.frames.frames import validate_frames

    frames = open_frames(finished[0] / "samples" / "reconstruction.zarr")
    validate_frames(frames, values=True)
    assert frames["intensity"].attrs["units"] == "photon" and frames.attrs["checkpoint"].startswith("step-")
    assert frames.attrs["distance"] > 0 and "mask" in frames


def test_the_report_needs_no_network_and_shows_its_pictures(finished, tmp_path):
    with chromium(1100, 1400) as page:
        page.goto((finished[0] / "report.html").as_uri())
        assert page.locator("h2").count() >= 6
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
        for width, scheme in ((1100, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 27, 34)"
        assert page.evaluate("document.querySelectorAll('[src^=http], [srcset^=http], link').length") == 0
        assert [u for u in page.requested if not u.startswith(("file:", "data:"))] == []
        if folder := os.environ.get("XRDDIFF_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/report.png", full_page=True)


def test_killed_at_random_moments_and_resumed_it_ends_at_the_same_weights(finished, tmp_path):
    rng = random.Random(0)
    words = ["run", *SMALL, "run_name=killed", "training.checkpoint_every=3"]
    run = tmp_path / "output" / "vae_kl_test" / "killed"
    for attempt in range(3):
        child = warm.start("xrddiff", *words, cwd=tmp_path)
        before = set((run / "checkpoints").glob("step-*"))
        for _ in range(1200):  # until it has made some way, then a moment more
            if set((run / "checkpoints").glob("step-*")) - before or child.poll() is not None:
                break
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1.0))
        child.send_signal(signal.SIGKILL if attempt < 2 else signal.SIGTERM)
        child.wait(60)
        assert list((run / "checkpoints").glob("step-*")), "no checkpoint before the kill"
        words = ["run", f"resume={run}"]
    xrddiff(*words, folder=tmp_path)
    ours, whole = weights(run), weights(finished[0])
    assert ours.keys() == whole.keys()
    assert all(np.array_equal(ours[k], whole[k]) for k in whole)
    assert (run / "report.html").exists() and (run / "notebook.1.ipynb").exists()
    names = ["step", "split", "loss", "reconstruction", "kl"]
    a, b = (pd.read_csv(r / "metrics" / "training_metrics.csv")[names] for r in (run, finished[0]))
    pd.testing.assert_frame_equal(
        a[a["split"] == "validation"].reset_index(drop=True), b[b["split"] == "validation"].reset_index(drop=True)
    )


def test_a_sweep_runs_one_after_another(tmp_path):
    words = [*SMALL, "training.max_steps=2", "data.limit=60"]
    xrddiff("run", *words, "training.recons_loss=mse,l1", "run_name=sweep", "-m", folder=tmp_path)
    assert len(list((tmp_path / "output" / "vae_kl_test").glob("sweep*/report.html"))) == 2


def test_frames_of_ones_own(tmp_path):
    xrddiff("data", "simulate", "sim128", "-n", "120", "-o", "mine.h5", folder=tmp_path)
    words = [
        "experiment_type=test",
        "data=full",
        "data.data_id=null",
        "data.data_path=mine.h5",
        "training.max_steps=2",
        "threads=1",
        "run_name=own",
    ]
    done = xrddiff("run", *words, folder=tmp_path)
    assert "report.html" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=vea_kl"], "did you mean 'vae_kl'?"),
        (["training.num_epoch=3"], "did you mean 'training.num_epochs'?"),
        (["experiment_type.recons_loss=mse"], "training.recons_loss"),
        (["data.data_path=nowhere.h5"], "nowhere.h5"),
        (["training.train_vae_from_checkpoint=true"], "pretrained_vae_path"),
        (["data=sim128", "data.avg_pooling=true", "data.pool=7"], "do not divide"),
        (["output_dir=/proc/nowhere"], "/proc"),
    ],
)
def test_refusals_are_one_sentence(words, sentence, tmp_path):
    done = xrddiff("run", *words, folder=tmp_path, check=False)
    assert done.returncode == 2 and sentence in done.stderr
    assert done.stderr.startswith("xrddiff: ") or "\nxrddiff: " in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def broken(path: Path, change) -> Path:
    """A small file of frames of ours with one thing wrong."""
    from xrddiff.data.formats.store import save_frames
    from xrddiff.physics.simulation.simulate import simulate

    frames = simulate("sim128", range(100), truth=False)
    frames["intensity"] = frames["intensity"].astype(np.float32, keep_attrs=True)
    save_frames(frames, path)
    with h5py.File(path, "r+") as f:
        change(f)
    return path


def test_a_frame_with_nan_is_named(tmp_path):
    def change(f):
        f["intensity"][7, 10, 10] = np.nan

    broken(tmp_path / "nan.h5", change)
    words = [
        "experiment_type=test",
        "data=full",
        "data.data_id=null",
        "data.data_path=nan.h5",
        "training.num_epochs=1",
        "threads=1",
    ]
    done = xrddiff("run", *words, folder=tmp_path, check=False)
    assert done.returncode != 0 and "frame 7" in done.stderr and "nan" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_a_truncated_file_is_named(tmp_path):
    whole = broken(tmp_path / "cut.h5", lambda f: None).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    done = xrddiff("run", "data=full", "data.data_path=cut.h5", folder=tmp_path, check=False)
    assert done.returncode == 2 and "cut.h5" in done.stderr and "Traceback" not in done.stderr
