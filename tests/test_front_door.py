"""`import xrddiff as xd`: what a notebook does is what the command line does, bit for bit, and mistakes get their sentence."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from lab import new_notebook
from test_run import weights, xrddiff

import xrddiff as xd
from xrddiff.app.verbs.keywords import as_overrides
from xrddiff.config.composition import compose_config
from xrddiff.core.text import for_html, for_markdown
from xrddiff.data.formats.store import read_store
from xrddiff.data.frames.frames import frame_count
from xrddiff.data.frames.selection import evenly_spaced, select_frames
from xrddiff.physics.simulation.simulate import simulate

pytestmark = pytest.mark.slow

TRAIN = dict(size="tiny", experiment_type="test", num_epochs=1, threads=1, avg_pooling=True, pool=8, diff_epochs=1)


def layout(run: Path) -> set[str]:
    """The files of a run, down to what stores, checkpoints and TensorBoard are made of."""
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    return {n for n in names if not n.startswith(("frames.zarr/", "tracking/tensorboard/"))}


@pytest.fixture(scope="module")
def mine(runs, tmp_path_factory):
    """The run of the fixture `runs("vae_kl")`, trained in Python on frames that are in memory."""
    folder = tmp_path_factory.mktemp("mine")
    frames = xd.load("sim-422", limit=64).load()
    more = {"training.batch_size": 8, "output_dir": str(folder), "run_name": "whole"}
    return xd.train("data=pooling_422", more, data=frames, model="vae_kl", **TRAIN, progress=False), frames


def test_everything_offered_is_there_and_named_once():
    source = ast.parse(Path(xd.__file__).read_text(encoding="utf-8"))
    imported = [a.name for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for a in node.names]
    assert [name for name in imported if name in xd.__all__] == xd.__all__
    assert all(getattr(xd, name).__doc__ for name in xd.__all__) and set(xd.__all__) <= set(dir(xd))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = xd.trian


def test_opening_a_run_needs_no_torch(runs):
    code = "import sys, xrddiff as xd; run = xd.open_run(sys.argv[1]); print(run, run.state, xd.load('sim128', 2))"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, runs("vae_kl")], stdout=subprocess.DEVNULL).returncode == 0


def test_training_is_that_of_the_command_line(runs, mine):
    """The same words give the same weights and the same files, also where the frames came from memory."""
    run, command = mine[0], runs("vae_kl")
    assert run.state == "finished" and run.path.name == "whole"
    theirs, own = weights(command), weights(run.path)
    assert theirs.keys() == own.keys() and all(np.array_equal(theirs[k], own[k]) for k in theirs)
    assert layout(run.path) == layout(command)
    words = ["model=vae_kl", *SMALL, "run_name=whole", f"output_dir={run.path.parent.parent}"]
    asked = compose_config([*words, f"data.data_path='{run.path}/frames.zarr'", "data.limit=256"])
    assert run.config == asked


def test_frames_from_memory_are_kept_with_the_run(mine, tmp_path):
    run, frames = mine
    kept = read_store(run.path / "frames.zarr")
    assert np.array_equal(kept["intensity"], frames["intensity"]) and kept.attrs["experiment"] == "sim-422"
    assert not list(run.path.parent.parent.glob("xrddiff-*"))
    moved = xd.open_run(shutil.copytree(run.path, tmp_path / "elsewhere"))
    os.rename(run.path / "frames.zarr", run.path / "away.zarr")
    try:
        assert moved.config.data.data_path == str(moved.path / "frames.zarr")
        held_out = moved.frames("held_out")
        longer = moved.resume(num_epochs=2, progress=False)
    finally:
        os.rename(run.path / "away.zarr", run.path / "frames.zarr")
    assert longer.step == 2 * run.step and longer.path == moved.path and longer.state == "finished"
    assert (
        len(longer.history) > len(run.history)
        and held_out.sizes["frame"] == run.frames("reconstruction").sizes["frame"]
    )


def test_reconstructions_are_those_of_the_run(mine):
    run, frames = mine
    judged = run.frames("reconstruction")
    np.testing.assert_array_equal(run.reconstruct()["intensity"], judged["intensity"])
    whole = run.reconstruct(xd.select_frames(frames, slice(0, 8)))  # pooled as the run's own were
    assert whole["intensity"].shape == (8, *judged["intensity"].shape[1:])
    assert run.model().downsampling == 4 and run.autoencoder is run


def test_samples_are_those_of_the_command_line(runs):
    path = runs("ddpm")
    run = xd.open_run(path)
    drawn = run.sample(11, hit_class="single", steps=2, sampler="ddim", seed=3, threads=1)
    words = [
        "inference.steps=2",
        "inference.sampler=ddim",
        "inference.seed=3",
        "inference.condition={hit_class: single}",
    ]
    xrddiff("sample", str(path), "-n", "11", "--name", "from python", "threads=1", *words, folder=path)
    theirs = run.frames("from python")
    assert set(theirs.variables) == set(drawn.variables)
    for name in theirs.variables:
        np.testing.assert_array_equal(theirs[name], drawn[name])
    assert {k: v for k, v in theirs.attrs.items() if k != "config"} == {
        k: v for k, v in drawn.attrs.items() if k != "config"
    }
    assert set(drawn["hit_class"].values.tolist()) == {1}
    np.testing.assert_array_equal(run.sample(5, first_sample=3, hit_class=1, steps=2, sampler="ddim", seed=3, threads=1)["intensity"], drawn["intensity"][3:8])  # fmt: skip


def test_a_latent_run_draws_reconstructs_and_is_judged_again(runs, tmp_path):
    run = xd.open_run(shutil.copytree(runs("latent_diff"), tmp_path / "whole"))
    drawn = run.sample(4, steps=2, threads=1, name="four")
    assert run.frames("four").identical(drawn) and (run.samples / "four" / "report.html").exists()
    inner = run.autoencoder
    np.testing.assert_array_equal(run.reconstruct()["intensity"], inner.frames("reconstruction")["intensity"])
    assert len(inner.history) and type(inner.model()) is not type(run.model())
    table = run.evaluate(samples="four", limit=8, threads=1, progress=False)
    assert "samples" in table.columns and (run.path / "evaluation" / "report.html").exists()
    before = (run.path / "report.html").read_text()
    assert (
        "judged again" not in before and (run.samples / "four" / "report.html").exists()
    )  # these were not the run's own
    run.evaluate(limit=12, threads=1, progress=False)
    page, card = (run.path / name for name in ("report.html", "README.md"))
    assert run.verdict and for_html(run.verdict) in page.read_text() and "evaluation/report.html" in page.read_text()
    assert (
        for_markdown(run.verdict) in card.read_text() and "judged again" in card.read_text() and run.state == "finished"
    )
    assert page.read_text().count("In short") == before.count("In short")
    assert len(run.index("four", controls=5).table) == 4
    found, real = run.index("held_out", limit=6, controls=10), run.frames("held_out")
    same = xd.index(select_frames(real, evenly_spaced(range(frame_count(real)), 6)), controls=10, refine=False)
    assert len(found.table) == 6 and found.table.equals(same.table) and found.cell.parameters == tuple(real.unit_cell)
    assert xd.index(simulate("sim128", range(8)), controls=10).rate > 0.5


def test_arrays_are_data(tmp_path):
    frames = np.random.default_rng(0).poisson(3, (20, 32, 32)).astype(np.int32)
    words = {k: v for k, v in TRAIN.items() if k not in ("avg_pooling", "pool")} | {
        "output_dir": str(tmp_path),
        "max_steps": 1,
    }
    run = xd.train(data=frames, model="vae_kl", **words, progress=False)
    np.testing.assert_array_equal(run.frames("all")["intensity"], frames)
    assert run.frames("all")["intensity"].attrs["units"] == "ADU" and run.state == "finished"
    table = xd.runs(tmp_path)
    assert table.index.tolist() == [str(run.path)] and table["state"].tolist() == ["finished"]


def test_a_run_fills_joins_and_says_what_may_have_been(runs, tmp_path):
    """The sets of a run, in Python as by the commands; frames in memory are as good as a file."""
    run = xd.open_run(shutil.copytree(runs("ddpm"), tmp_path / "whole"))
    frames = run.frames("held_out", 2).load()
    holes = frames.assign(mask=frames["mask"] & True)
    holes["mask"].values[..., 3:5, 3:5] = False
    file = xd.convert(holes, tmp_path / "holes.zarr")
    words = dict(steps=2, threads=1, progress=False)
    filled = run.inpaint(holes, draws=2, **words)
    command = ["--frames", str(file), "--draws", "2", "--name", "theirs", "inference.steps=2", "threads=1"]
    xrddiff("posterior", "inpaint", str(run.path), *command, folder=tmp_path)
    np.testing.assert_array_equal(filled["intensity"], run.frames("theirs")["intensity"])
    between = run.interpolate(f"{file}:0", f"{file}:1", n=3, **words)
    assert between.sizes["frame"] == 3 and run.frames("interpolate").identical(between)
    drawn = run.posterior(file, draws=2, limit=1, **words)
    assert run.frames("posterior").identical(drawn) and (run.samples / "posterior" / "report.html").exists()
    assert run.rewrite_report() == run.report and "In short" in run.report.read_text()
    made = xd.evaluate(file, output=tmp_path / "judged", limit=2, progress=False)
    assert made.report.is_file() and len(made.summary)


def test_python_m_is_the_command(tmp_path):
    said = [
        subprocess.run([*words, "--version"], capture_output=True, text=True, cwd=tmp_path).stdout
        for words in ([sys.executable, "-m", "xrddiff"], [Path(sys.executable).with_name("xrddiff")])
    ]
    assert said[0] == said[1] == f"xrddiff {xd.__version__}\n"


MISTAKES = {
    "there is no word 'num_epoch'; did you mean 'num_epochs'?": lambda run: xd.train(num_epoch=2),
    "'seed' may be data.seed or training.seed or inference.seed": lambda run: xd.train(seed=2),
    "training.num_epochs: found 'two', expected a whole number": lambda run: xd.train(num_epochs="two"),
    "training.lr: found 0.0, expected more than 0": lambda run: xd.train({"training": {"lr": 0}}),
    "model=vae: there is no such preset; did you mean 'vae_kl'?": lambda run: xd.train(model="vae"),
    "'sim129' does not exist (expected a file, a preset or a named set); did you mean 'sim128'?": lambda run: xd.train(
        data="sim129"
    ),
    "frames has no variable 'intensity'": lambda run: xd.train(data=xd.load("sim128", 2).drop_vars("intensity")),
    "intensity has rank 2": lambda run: xd.train(data=np.zeros((8, 8))),
    "'data.limit=1,2' names several values": lambda run: xd.train("data.limit=1,2"),
    "found 3 among the words": lambda run: xd.train(3),
    "there is 1 frame, so nothing can be held out": lambda run: xd.train(
        data=np.zeros((1, 8, 8)), output_dir=str(run.path / "new")
    ),
    "there is no data set 'sim129'": lambda run: xd.load("sim129"),
    "nowhere.h5 does not exist": lambda run: xd.open_frames("nowhere.h5"),
    "it has no config.yaml; expected the folder of a run": lambda run: xd.open_run(run.samples),
    "there is no word 'stepps' of inference, and no condition; did you mean 'steps'?": lambda run: run.sample(stepps=2),
    "hit_class=singl: there is no such class": lambda run: run.sample(hit_class="singl"),
    "sampling changes the words of inference only": lambda run: run.sample(num_epochs=2),
    "inference.num_samples: found 0, expected at least 1": lambda run: run.sample(0),
    "has no frames 'heldout'; did you mean 'held_out'?": lambda run: run.frames("heldout"),
    "has no autoencoder; expected a run of vae_kl": lambda run: run.reconstruct(),
    "contradicts resume=": lambda run: run.resume(lr=1),
    "has no samples 'nothing'": lambda run: run.evaluate(samples="nothing"),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_mistakes_get_a_sentence(runs, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = xd.open_run(runs("ddpm"))
    with pytest.raises(xd.BadInput) as refused:
        MISTAKES[said](run)
    assert said.lower() in str(refused.value).lower()
    assert refused.value._render_traceback_()[0] == f"BadInput: {refused.value}"  # what IPython shows
    assert not list(tmp_path.glob("output/*/*")) and not (run.path / "new" / "vae_kl").exists()


def test_a_run_shows_itself_and_all_text_is_escaped(runs, tmp_path):
    name = "<script>alert(1)</script>&'\""
    run = xd.open_run(shutil.copytree(runs("ddpm"), tmp_path / name.replace("/", "_")))
    page, text = run._repr_html_(), repr(run)
    assert text.splitlines()[1].split() == ["model", "ddpm,", "tiny"] and "finished, step" in text
    assert "<script" not in page and "&lt;script&gt;" in page and "alert(1)" in page
    pictures = re.findall('base64,([^"]*)"', page)
    assert len(pictures) == 2 and max(map(len, pictures)) < 70_000 and "radial profile" in page
    report = run.report
    assert isinstance(report, Path) and report.name == "report.html"
    assert (
        '<iframe sandbox srcdoc="&lt;!doctype' in report._repr_html_()[:60].lower()
        and "<script" not in report._repr_html_()
    )
    shutil.rmtree(run.samples)
    for ending in ("csv", "json"):
        (run.metrics / f"training_metrics.{ending}").write_text("nonsense\n\x00")
    report.unlink()
    assert (
        "stopped while evaluating" in run._repr_html_() and "<img" not in run._repr_html_()
    )  # what is not there is left out
    with pytest.raises(xd.BadInput, match="has no report yet: the run is stopped"):
        _ = run.report


def test_what_the_network_sees_and_what_comes_of_it(runs):
    import torch

    run = xd.open_run(runs("vae_kl"))
    batch, encoded = run.batch("held_out", 3), run.encoded("held_out", limit=None)
    assert batch["x"].shape[0] == 3 and batch["index"].tolist() == encoded.rows[:3].tolist()
    with torch.no_grad():
        mean = run.model().encode(batch["x"], batch["mask"]).mean
    space = encoded.space
    assert torch.allclose(encoded.latents[:3] * space.std + space.mean, mean, atol=1e-4)
    assert list(run.health.columns)[:2] == ["rule", "severity"]
    for ask, said in (
        (lambda: run.batch("samples"), "expected held_out or train"),
        (lambda: xd.compare_runs(run), "two or more"),
    ):
        with pytest.raises(xd.BadInput, match=said):
            ask()


def test_threads_of_the_notebook_stay(runs):
    import torch

    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    try:
        xd.open_run(runs("ddpm")).sample(1, steps=1, threads=1)
        assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (2, before[1])
    finally:
        torch.set_num_threads(before[0])


def test_keywords_say_what_the_command_line_says():
    told = as_overrides({"data": {"limit": 64}, "model.condition": ["hit_class"]}, model="ddpm", num_epochs=2, lr=1e-5)
    assert compose_config(told) == compose_config(
        ["data.limit=64", "model.condition=[hit_class]", "model=ddpm", "training.num_epochs=2", "training.lr=1e-5"]
    )


CELLS = (
    "import xrddiff as xd\nframes = xd.load('sim128', limit=64)\nframes",
    "run = xd.train(model='vae_kl', data=frames, size='tiny', experiment_type='test', max_steps=12, threads=1, run_name='lab')",
    "run",
    "xd.show(run.frames(limit=4), run.reconstruct(run.frames(limit=4)))",
    "run.sample(4)",
)


def test_in_jupyterlab(notebooks):
    """A notebook in a real JupyterLab: a live pane while it trains, pictures, and a refusal of one line."""
    page = notebooks.show(new_notebook(CELLS))
    error = page.locator(".jp-OutputArea-output", has_text=re.compile("^BadInput:"))
    pane = page.locator(".jp-OutputArea-output pre", has_text="run: output")
    live: list[str] = []
    notebooks.run_all(lambda: live.extend(pane.all_inner_texts()) or error.count() > 0)
    said = error.first.inner_text()
    if folder := os.environ.get("XRDDIFF_SCREENSHOTS"):
        page.set_viewport_size({"width": 1300, "height": 2400})
        page.screenshot(path=f"{folder}/front-door.png")
    assert said.startswith("BadInput:") and "no generative model" in said and "Traceback" not in said
    assert error.count() == 1 and len(set(live)) > 2, live  # it was drawn again while the run went on
    assert page.locator(".jp-OutputArea-output img[alt='frame 0']").count() == 1
    assert page.locator(".jp-OutputArea-output img[src^='data:image/png']").count() >= 3
    assert (notebooks.folder / "output" / "vae_kl_test" / "lab" / "report.html").exists()
