"""A stranger adds a sampler, a loss, a metric, a transform and a network from a folder outside the package, by the command line alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parent.parent / "nbs" / "tutorials" / "extending.ipynb"
FEW = ["data=sim128", "data.limit=12", "data.crop=[32,32]", "experiment_type=test", "training.max_steps=2", "threads=1"]


def xrddiff(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, with a state folder of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("XRDDIFF_")}
    env |= {"XRDDIFF_STATE": str(folder / "state"), "XRDDIFF_CACHE": os.environ.get("XRDDIFF_CACHE", "")}
    env = {k: v for k, v in env.items() if v}
    code = "import sys; from xrddiff.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A denoiser with the tutorial's network, transform and sampler."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copy(TUTORIAL, folder / "mine.ipynb")
    words = ["model=ddpm", "network=Plain", "model.network_options={width: 8}", "data.transform=cuberoot", *FEW]
    words += ["inference.sampler=damped", "inference.sampler_options={strength: 0.5}", "inference.num_samples=4"]
    words += ["data.train_ratio=0.6"]  # enough held-out frames to compare the samples with
    done = xrddiff(folder, "run", *words, "inference.steps=3", "plugins=[mine.ipynb]", "run_name=one")
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob("output/*/one"))


def test_the_run_keeps_its_plug_in(run):
    kept = run / "plugins"
    assert (kept / "mine.ipynb").read_bytes() == TUTORIAL.read_bytes() and (kept / "manifest.json").is_file()


def test_a_run_is_opened_without_executing_its_plug_in(run):
    """Nothing is executed unless the user names the plug-in or trusts the copy; one that was changed is refused."""
    refused = xrddiff(run, "sample", str(run), "-n", "2")
    assert refused.returncode == 2 and "needs the plug-in mine.ipynb" in refused.stderr
    trusted = xrddiff(run, "sample", str(run), "-n", "2", "inference.sampler_options={strength: 1}", "--trust-plugins")
    assert trusted.returncode == 0, trusted.stderr[-2000:]
    named = xrddiff(
        run.parents[2], "sample", str(run), "inference.sampler_options={strength: 3}", "plugins=[mine.ipynb]"
    )
    assert "strength: found 3.0, expected at least 0 and at most 1" in named.stderr
    kept = run / "plugins" / "mine.ipynb"
    whole = kept.read_text()
    kept.write_text(whole + " ")
    changed = xrddiff(run, "evaluate", str(run), "--trust-plugins")
    kept.write_text(whole)
    assert changed.returncode == 2 and "its SHA-256 is another one" in changed.stderr


def test_a_loss_and_a_row_in_the_report(run):
    folder = run.parents[2]
    words = ["model=vae_kl", "training.recons_loss=charbonnier", "training.loss_options={width: 0.2}", *FEW]
    done = xrddiff(folder, "run", *words, "plugins=[mine.ipynb]", "run_name=two")
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = folder.glob("output/*/two/report.md")
    assert "error of the brightest pixel" in report.read_text() and "| brightest pixel" in report.read_text()


def test_a_metric_of_single_frames_is_a_row_of_samples(run):
    assert "| brightest pixel" in (run / "report.md").read_text()


def test_what_is_listed_and_refused(run):
    folder = run.parents[2]
    (folder / "bad.py").write_text(
        "from xrddiff.registry import register\n@register('sampler')\ndef euler(): 'Mine.'\n"
    )
    shadow = xrddiff(folder, "run", "plugins=[bad.py]", "--dry-run")
    assert shadow.returncode == 2 and "the sampler 'euler' is part of xrddiff already" in shadow.stderr
    assert "there is no file" in xrddiff(folder, "run", "plugins=[none.py]", "--dry-run").stderr
