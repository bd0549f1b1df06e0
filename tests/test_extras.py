"""A plain installation: what needs no extra works without its packages, and what needs one names it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xrddiff.core.extras import EXTRAS

# A process in which the packages of all extras cannot be imported, as if they weren't installed.
PLAIN = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(name for names in EXTRAS.values() for name in names)!r}))
sys.argv[0] = "xrddiff"
from xrddiff.app.entry import command_line
command_line()
"""
SWEEP = "metric: {name: loss, goal: minimize}\nmethod: random\nparameters:\n  training.lr: {values: [0.001, 0.01]}\n"
NEEDED = {
    "kernel": "run model=ddpm data=sim128 engine=kernel",
    "trackers": "run model=ddpm data=sim128 training.trackers=[tensorboard]",
    "sweeps": "sweep search.yaml --runs 1",
    "workers": "stream . --workers local:2",
    "remote": "data inspect https://localhost/frames.h5",
    "s3": "data inspect s3://beamline/frames.zarr",
    "lab": "lab",
    "stream2": "data replay sim128 tcp://127.0.0.1:9 --version 2",
}


def plain(*words: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PLAIN, *words], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("extra", NEEDED)
def test_what_is_missing_is_named_with_its_extra(extra, tmp_path):
    (tmp_path / "search.yaml").write_text(SWEEP)
    done = plain(*NEEDED[extra].split(), folder=tmp_path)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2 and f"'xrddiff[{extra}]'" in said[-1], done.stderr
    assert any(name in said[-1] for name in EXTRAS[extra]) and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_plain_installation_trains_draws_and_judges(tmp_path):
    words = "model=ddpm data=sim128 size=tiny data.limit=24 data.avg_pooling=true training.num_epochs=1"
    words += " inference.num_samples=4 inference.index_frames=0 run_name=plain threads=1"
    done = plain("run", *words.split(), folder=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = tmp_path / "output/ddpm/plain"
    done = plain("sample", str(run), "-n", "2", "inference.steps=2", folder=tmp_path)
    assert done.returncode == 0 and (run / "samples/default/samples.zarr").exists(), done.stderr
    assert "plain" in plain("runs", "list", folder=tmp_path).stdout
