"""A stranger adds samplers, losses, metrics, networks, readers and more from a folder outside the package, by the command line alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xrddiff.core.errors import BadInput
from xrddiff.core.registry import forget, register, registering_as
from xrddiff.data.formats.readers import open_frames

TUTORIAL = Path(__file__).parent.parent / "nbs" / "tutorials" / "extending.ipynb"
FEW = ["data=sim128", "data.limit=12", "data.crop=[32,32]", "experiment_type=test", "training.max_steps=2", "threads=1"]


def xrddiff(folder: Path, *words: str, plugins: str = "") -> subprocess.CompletedProcess:
    """The command in a process of its own, with a state folder of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("XRDDIFF_")}
    env |= {"XRDDIFF_STATE": str(folder / "state"), "XRDDIFF_CACHE": os.environ.get("XRDDIFF_CACHE", "")}
    env |= {"XRDDIFF_PLUGINS": plugins}
    env = {k: v for k, v in env.items() if v}
    code = "import sys; from xrddiff.app.verbs.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A denoiser with the tutorial's network, transform and sampler."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copy(TUTORIAL, folder / "mine.ipynb")
    words = ["model=ddpm", "network=Plain", "model.network_options={width: 8}", "data.transform=root", *FEW]
    words += ["inference.sampler=damped", "inference.sampler_options={strength: 0.5}", "inference.num_samples=4"]
    words += ["data.train_ratio=0.6"]  # enough held-out frames to compare the samples with
    done = xrddiff(folder, "run", *words, "inference.steps=3", "plugins=[mine.ipynb]", "run_name=one")
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob("output/*/one"))


@pytest.mark.slow
def test_the_run_keeps_its_plug_in(run):
    kept = run / "plugins"
    assert (kept / "mine.ipynb").read_bytes() == TUTORIAL.read_bytes() and (kept / "manifest.json").is_file()


@pytest.mark.slow
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
    assert changed.returncode == 2 and "its SHA-256 differs" in changed.stderr


@pytest.mark.slow
def test_a_loss_and_a_row_in_the_report(run):
    folder = run.parents[2]
    words = ["model=vae_kl", "training.recons_loss=charbonnier", "training.loss_options={width: 0.2}", *FEW]
    done = xrddiff(folder, "run", *words, "plugins=[mine.ipynb]", "run_name=two")
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = folder.glob("output/*/two/report.md")
    assert "error of the brightest pixel" in report.read_text() and "| brightest pixel" in report.read_text()


@pytest.mark.slow
def test_a_metric_of_single_frames_is_a_row_of_samples(run):
    assert "| brightest pixel" in (run / "report.md").read_text()


@pytest.mark.slow
def test_what_is_listed_and_refused(run):
    folder = run.parents[2]
    (folder / "bad.py").write_text(
        "from xrddiff.core.registry import register\n@register('sampler')\ndef euler(): 'Mine.'\n"
    )
    shadow = xrddiff(folder, "run", "plugins=[bad.py]", "--dry-run")
    assert shadow.returncode == 2 and "the sampler 'euler' is part of xrddiff already" in shadow.stderr
    assert "does not exist" in xrddiff(folder, "run", "plugins=[none.py]", "--dry-run").stderr


READER = '''
import numpy as np

from xrddiff.core.registry import register


@register("reader", suffixes=[".tiny"])
def tiny(path):
    """A line with the shape, then 16-bit numbers."""
    head, _, rest = path.read_bytes().partition(b"\\n")
    values = np.frombuffer(rest, "<u2").reshape([int(n) for n in head.split()])
    return dict(intensity=values, units="photon", wavelength=1.0, distance=0.1, pixel_size=1e-4, beam_center=(8, 9))


@register("writer", suffixes=[".tiny"])
def tiny(ds, path, progress):
    """A line with the shape, then 16-bit numbers."""
    values = ds["intensity"].values.astype("<u2")
    path.write_bytes(" ".join(map(str, values.shape)).encode() + b"\\n" + values.tobytes())


@register("mask_rule")
def sevens(x, values):
    """Pixels of the value 7."""
    return x == 7
'''
USE = """
import sys
import numpy as np
from xrddiff.config.plan import compose_plan
from xrddiff.learn.loading.datasets import prepare_planned

words = ["data.data_path=FOLDER/many", "data.automask=[range,sevens]", "data.transform_options={scale: 4}"]
prepared = prepare_planned(compose_plan(["model=vae_kl", "plugins=[mine.py]", *words]))
frames = prepared.frames
assert frames.sizes["frame"] == 12 and frames.attrs["layout"] == "tiny" and prepared.transform.fitted_scale == 4
values = np.load("values.npy")
assert (frames["intensity"].values == np.concatenate([values, values])).all()
assert (frames["mask"].values == (frames["intensity"].values != 7)).all()
"""


def test_a_reader_and_a_writer_of_a_format_and_a_mask_rule(tmp_path):
    """Frames are converted to the format of a plug-in and read from there, by the command line and in a run."""
    values = np.random.default_rng(0).poisson(5, (6, 16, 20)).astype(np.uint16)
    np.save(tmp_path / "values.npy", values)
    (tmp_path / "mine.py").write_text(READER)
    (tmp_path / "many").mkdir()
    told = ["units=photon", "wavelength=1", "distance=0.1", "pixel_size=1e-4", "beam_center=[8,9]"]
    for target in ("many/one.tiny", "many/two.tiny"):
        done = xrddiff(tmp_path, "data", "convert", "values.npy", target, *told, plugins="mine.py")
        assert done.returncode == 0, done.stderr
    shown = xrddiff(tmp_path, "data", "inspect", "many/one.tiny", "--no-png", plugins="mine.py")
    assert shown.returncode == 0 and "tiny" in shown.stdout and "16" in shown.stdout, shown.stderr
    without = xrddiff(tmp_path, "data", "inspect", "many/one.tiny", "--no-png")
    assert without.returncode == 2 and "many/one.tiny" in without.stderr
    code = USE.replace("FOLDER", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_readers_of_one_suffix_are_refused(tmp_path):
    np.save(tmp_path / "values.npy", np.zeros((2, 16, 16), np.uint16))
    try:
        with registering_as("another.py"):
            register("reader", "other", help="A test.", suffixes=[".npy"])(lambda path: {})
        with pytest.raises(BadInput, match="reader other is for files that end in .npy, and so is npy"):
            open_frames(tmp_path / "values.npy", complete=False)
    finally:
        forget("another.py")
