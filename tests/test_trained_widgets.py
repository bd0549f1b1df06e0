"""Sampler, latent explorer and codebook browser on trained runs: what they show is what the run gives, in Python and in a real JupyterLab."""

from __future__ import annotations

import shlex
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from axe import faults
from test_widgets import until
from traitlets import TraitError

import xrddiff as xd
from xrddiff.app.widgets.sampler import SamplerPanel
from xrddiff.config.composition import inference_config
from xrddiff.config.saved_config import to_yaml
from xrddiff.physics.indexing.known_lattices import known_lattices


def done(w: SamplerPanel, seconds: float = 120) -> None:
    """Wait for the thread that draws."""
    w._thread.join(seconds)
    assert not w._thread.is_alive() and not w.working


def test_the_sampler_draws_what_run_sample_draws(runs):
    run = xd.open_run(runs("ddpm"))
    w = run.sampler(count=3)
    assert w.sentence == "" and w.samples is None and w.still().startswith(b"\x89PNG")
    w.sampler, w.steps, w.seed, w.guidance_scale = "ddim", 4, 7, 1.5
    w.sampler_options = {"eta": 0.5}
    w.condition = {"hit_class": "single", "wavelength": 1.3}
    w.beside, w.other = True, {"hit_class": "blank"}
    w.draw()
    assert w._thread.daemon  # the kernel need not wait for it
    done(w)
    assert w.sentence == ""
    assert "hit_class='blank'" in w.line.splitlines()[1] and w.line.count("seed=7") == 2
    for line, command, samples in zip(
        w.line.splitlines(), w.command.splitlines(), (w.samples, w.samples_beside), strict=True
    ):
        same = eval(line, {"run": run})
        xr.testing.assert_identical(samples, same)
        program, verb, folder, option, n, *words = shlex.split(command)
        assert (program, verb, folder, option, n) == ("xrddiff", "sample", str(run.path), "-n", "3")
        asked = inference_config(folder, [*words, f"inference.num_samples={n}"])
        assert to_yaml(asked) == samples.attrs["config"]
    assert not np.array_equal(w.samples["intensity"], w.samples_beside["intensity"])
    # the noise is the same: so is the state before the first step
    first, second = (d.steps[0]["x"] for d in w.drawn)
    assert len(w.drawn[0].steps) == 4 and first.shape == second.shape
    # the estimates on the way are those that `keep_steps` keeps
    kept = w.drawn[0].job.kept_steps([1], count=3)[1]["intensity"].values
    w.sample, w.step = 2, 1
    assert np.allclose(w.view.pictures[0].intensity, kept[2], rtol=1e-3, atol=1e-3)
    assert w._step.text.startswith("after step 2 of 4") and len(w.view.pictures) == 2


def test_drawing_can_be_cancelled_and_what_fails_is_said(runs, tmp_path):
    run = Path(shutil.copytree(runs("ddpm"), tmp_path / "run"))
    w = xd.open_run(run).sampler(count=2)
    w.steps = 3
    w.draw(background=False)
    before = w.samples
    w.steps, gate = 2000, threading.Event()
    w._bar.observe(lambda _: gate.set(), "value")
    w.draw()
    assert gate.wait(60) and w.working
    w.cancel()
    done(w)
    assert w.samples is before and w._said.value == "cancelled" and w.sentence == ""
    w.condition = {"hit_class": "triple"}
    assert "hit_class has no class 'triple'" in w.sentence and w.condition == {}
    w.guidance, w.guidance_scale, w.steps = "classifier", 2.0, 3
    w.draw(background=False)
    assert "classifier" in w.sentence and w.samples is before
    w.guidance = "classifier_free"
    shutil.rmtree(run)
    w.draw(background=False)
    assert str(run) in w.sentence and "internal" not in w.sentence and not w.working
    with pytest.raises(xd.BadInput, match="no generative model"):
        xd.open_run(runs("vae_kl")).sampler()


def test_a_run_that_is_told_a_crystal_can_be_asked_for_one(runs):
    run = xd.open_run(runs("latent_diff"))
    w = run.sampler(count=1)
    cell, turns, _ = w._lattice.children
    cell.value = "38,38,38,90,90,90"
    assert w.lattice == {"cell": "38,38,38,90,90,90"} and "lattice={'cell': '38,38,38,90,90,90'}" in w.line
    w.steps = 2
    w.draw(background=False)
    assert w.sentence == ""
    assert np.allclose(w.samples["cell"].values[0, 0], [38, 38, 38, 90, 90, 90])
    # the reflections that it was asked for are those that the report looks for, in every picture of the sample
    spots = known_lattices(w.samples).of(0)[0].spots
    for step in (-1, 0):
        w.step = step
        (mark,) = w.view.pictures[0].marks
        assert mark.kind == "asked" and len(mark.x) > 0 and w.sentence == ""
        assert np.array_equal(mark.x, spots["fs"]) and np.array_equal(mark.y, spots["ss"])
    turns.value = "nowhere.npy"
    w.draw(background=False)
    assert "nowhere.npy" in w.sentence


def test_a_weaker_model_leads_the_sampler(runs):
    run = xd.open_run(runs("ddpm"))
    w = run.sampler(count=1)
    assert w._weaker.layout.display == "none"
    w.steps, w.guidance, w.guidance_scale = 2, "autoguidance", 2.0
    first = w._weaker.steps[0]
    assert w._weaker.layout.display is None and len(w._weaker.steps) > 1
    w.draw(background=False)
    assert "needs a weaker model" in w.sentence and w.samples is None
    w._weaker._step.value = first
    w._weaker._run.value = str(run.path)
    assert (w.guidance_run, w.guidance_step) == (str(run.path), first) and f"guidance_step={first}" in w.line
    w.draw(background=False)
    assert w.sentence == "" and f"step {first} of" in w.drawn[0].job.how
    xr.testing.assert_identical(w.samples, eval(w.line, {"run": run}))
    w.guidance_step = 4711
    assert "keeps no checkpoint of step 4711; expected one of" in w.sentence and w.guidance_step == first
    w.guidance = "classifier_free"
    assert "guidance_step" not in w.line and "guidance_run" not in w.command
    assert not run.compare(limit=2).sentence  # frames beside the samples that the run ended with


def test_the_latent_explorer_shows_what_the_run_reconstructs(runs):
    run = xd.open_run(runs("latent_diff"))
    w = run.latents(limit=20)
    frames = w.encoded.frames
    reconstructed = run.reconstruct(frames)["intensity"].values
    assert np.allclose(w.encoded.decode(w.encoded.latents), reconstructed, rtol=1e-2, atol=1e-2)
    w.frame = 7
    measured, shown = w.view.pictures
    assert np.array_equal(measured.intensity, frames["intensity"].values[7])
    assert np.allclose(shown.intensity, reconstructed[7], rtol=1e-2, atol=1e-2)
    with pytest.raises(TraitError, match="no label 'hit_clas'.*hit_class"):
        w.label = "hit_clas"
    with pytest.raises(xd.BadInput, match="no autoencoder"):
        xd.open_run(runs("ddpm")).latents()


def test_the_codebook_is_that_of_the_run(runs):
    run = xd.open_run(runs("vq"))
    w = run.codebook(limit=20)
    model = run.model()
    assert len(w.pictures) == model.quantizer.K and w.use.counts.sum() == w.codes.size
    k, places = w.code, w.codes[0]
    assert w.use.counts[k] == w.use.counts.max() == (w.codes == k).sum()
    assert w.within.pictures[0].marks[0].x.size == (places == k).sum()
    with pytest.raises(xd.BadInput, match="no codebook"):
        xd.open_run(runs("vae_kl")).codebook()


CELLS = [
    "import xrddiff as xd",
    "w = xd.open_run({ddpm!r}).sampler(count=2)\nw.steps = 3\nw",
    "e = xd.open_run({vq!r}).latents('hit_class', limit=24)\ne",
    "c = xd.open_run({vq!r}).codebook(limit=24)\nc",
]


def test_they_are_moved_by_mouse_and_by_keyboard(runs, notebooks):
    where = dict(ddpm=str(runs("ddpm")), vq=str(runs("vq")))
    page = notebooks.open([cell.format(**where) for cell in CELLS])
    panel, explorer, browser = (page.locator(".jp-OutputArea-output .xrddiff.widget-vbox").nth(k) for k in range(3))
    # sampler: the keyboard sets the steps, a click draws, the arrows scrub
    seed = panel.get_by_label("seed")
    seed.fill("3")
    seed.press("Tab")
    code = panel.locator("pre").first
    until(page, lambda: "seed=3" in code.inner_text())
    panel.get_by_label("hit_class").first.select_option("single")
    until(page, lambda: "hit_class='single'" in code.inner_text())
    panel.get_by_label("same noise, other condition beside it").check()
    panel.get_by_label("other hit_class").select_option("blank")
    until(page, lambda: "hit_class='blank'" in code.inner_text())
    panel.get_by_role("button", name="Draw").click()
    picture = panel.locator("canvas.xrddiff-over")
    until(page, lambda: picture.count() == 2 and "2 samples by" in panel.inner_text(), 120)
    notebooks.picture("sampler", panel)
    step = panel.get_by_label("step", exact=True)
    step.focus()
    step.press("ArrowLeft")
    until(page, lambda: "after step 3 of 3" in panel.inner_text())
    # latent explorer: the pointer shows a frame, a click picks it, arrows go on
    points = explorer.locator("canvas.xrddiff-map")
    points.scroll_into_view_if_needed()
    box = points.bounding_box()

    def sweep() -> bool:
        for y in range(20, int(box["height"]), 14):
            for x in range(46, int(box["width"]), 14):
                page.mouse.move(box["x"] + x, box["y"] + y)
                if int(points.get_attribute("data-under") or -1) >= 0:
                    return True
        return False

    assert sweep()
    under = points.get_attribute("data-under")
    card = explorer.locator(".xrddiff-card")
    until(page, lambda: card.is_visible() and "hit_class" in card.inner_text())
    page.mouse.down()
    page.mouse.up()
    until(page, lambda: points.get_attribute("aria-valuenow") == under)
    points.focus()
    page.keyboard.press("Home")
    until(page, lambda: points.get_attribute("aria-valuenow") == "0" and ", measured" in str(titles(explorer)))
    notebooks.picture("latents", explorer)
    explorer.get_by_role("button", name="between two").click()
    until(page, lambda: any("50% of the way" in t for t in titles(explorer)))
    explorer.get_by_label("fraction").press("ArrowLeft")
    until(page, lambda: any("45% of the way" in t for t in titles(explorer)))
    # codebook: arrows and clicks pick a code
    tiles = browser.locator("canvas.xrddiff-tiles")
    tiles.scroll_into_view_if_needed()
    tiles.focus()
    before = tiles.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowRight")
    until(page, lambda: tiles.get_attribute("aria-valuenow") == "1" and tiles.get_attribute("aria-valuetext") != before)
    notebooks.picture("codebook", browser)
    tiles.click(position={"x": 10, "y": 10})
    until(page, lambda: tiles.get_attribute("aria-valuetext") == before)
    assert faults(page, ".xrddiff") == []
    assert notebooks.strangers() == []
    # a run that is gone is said in the widget
    shutil.move(where["ddpm"], where["ddpm"] + "-gone")
    try:
        panel.get_by_role("button", name="Draw").click()
        alert = panel.get_by_role("alert")
        until(page, lambda: alert.count() and "does not exist" in alert.first.inner_text())
    finally:
        shutil.move(where["ddpm"] + "-gone", where["ddpm"])


def titles(panel) -> list[str]:
    """Above the pictures of a panel."""
    return panel.locator("figcaption").all_inner_texts()
