"""The config builder and the training monitor in a real JupyterLab: a run is put together, launched, followed and stopped."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from axe import faults

from xrddiff.core.progress import report_progress
from xrddiff.data.formats.store import save_frames
from xrddiff.learn.telemetry.history import SAMPLES
from xrddiff.learn.telemetry.rules import Finding, write_findings
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution.run_folder import hold_run
from xrddiff.run.execution.status import keeper, stopped_by

pytestmark = pytest.mark.slow


def trained(run: Path, epochs: int) -> Path:
    """The files of a run that has trained for so many of 20 epochs."""
    (run / "metrics").mkdir(parents=True, exist_ok=True)
    n = np.arange(1, epochs + 1)
    loss = 0.2 + 2 * np.exp(-n / 4)
    table = pd.DataFrame(dict(epoch=n, step=10 * n, loss_mean=loss, validation_loss=1.1 * loss, lr=1e-3, seconds=2.0))
    table.to_csv(run / "metrics" / "epochs.csv", index=False)
    steps = pd.DataFrame(dict(step=10 * n, epoch=n, frames=80 * n, split="train", lr=1e-3, loss=loss))
    steps.to_csv(run / "metrics" / "training_metrics.csv", index=False)
    (run / "config.yaml").write_text("model: {model_name: vae_kl}\ntraining: {num_epochs: 20}\n")
    (run / "log.txt").write_text(f"== Training\nepoch {epochs} is done\n")
    report_progress(step=10 * epochs, total=200, per_epoch=10, num_epochs=20, loss=loss[-1])
    if (keeping := keeper()) is not None:
        keeping.write()
    return run


def test_the_monitor_follows_what_another_process_writes(notebooks):
    run, held = trained(notebooks.folder / "run", epochs=5), ExitStack()
    held.enter_context(hold_run(run, "autoencoder"))  # as the process that trains does
    trained(run, epochs=5)
    page = notebooks.open(["import xrddiff as xd", f"w = xd.monitor({str(run)!r})\nw.every = 0.2\nw"])
    w = page.locator(".xrddiff[aria-label='training monitor']")
    curve, badge = w.locator(".xrddiff-light"), w.locator(".xrddiff-badge")
    assert badge.inner_text() == "running" and "Loss, logarithmic" in curve.get_attribute("alt")
    first = curve.get_attribute("src")
    finding = Finding("plateau", "warning", 6, 60, "the loss has not fallen", "It is low.", "Stop.", "rule", 6)
    write_findings(run / "metrics" / "health.json", [finding])
    trained(run, epochs=7)
    w.get_by_label("epochs: 7 of 20").wait_for()
    w.get_by_text("warning, epoch 6:").wait_for()
    w.get_by_text("epoch 7 is done").wait_for()
    w.locator(".xrddiff-light[alt*='epoch 7 of 20']").wait_for()  # the picture is a message of its own
    assert curve.get_attribute("src") != first

    # by keyboard, then by mouse
    choice = w.get_by_label("curve")
    choice.focus()
    page.keyboard.type("Learning")
    w.locator("img[alt^='Learning rate']").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Look now"
    choice.select_option("steps")
    w.locator("img[alt^='Loss of the steps']").first.wait_for()

    # samples of one epoch beside the strip of all of them, by keyboard
    for epoch in (2, 4):
        save_frames(simulate("sim128", range(2)).load(), run / SAMPLES / f"epoch-{epoch:05d}.zarr")
    w.locator("option[value=samples]").wait_for(state="attached")
    choice.select_option("samples")
    w.locator("img[alt='samples after epoch 4']").wait_for()
    slider = w.get_by_role("slider", name="epoch", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    w.locator("img[alt='samples after epoch 2']").wait_for()
    assert slider.get_attribute("aria-valuetext") == "epoch 2"
    assert faults(page, ".xrddiff") == []

    # a process that was killed, and a folder that was removed
    held.close()
    (run / "status.json").unlink()
    (run / ".lock").write_text(f"process 4711 on {socket.gethostname()}")
    w.get_by_text("is gone, without having said why").wait_for()
    assert badge.inner_text() == "killed"
    shutil.rmtree(run)
    page.locator(".xrddiff [role=alert]", has_text=f"{run} is gone").wait_for()
    assert notebooks.strangers() == []


SMALL = ["model=vae_kl", "size=tiny", "data=sim128", "data.limit=32", "data.crop=[64,64]", "threads=1"]
SMALL += ["training.batch_size=4", "training.num_epochs=200", "training.log_every=2", "run_name=from a form"]


def test_a_run_is_put_together_launched_and_stopped(notebooks):
    page = notebooks.open([f"import xrddiff as xd\nw = xd.configure(*{SMALL!r})\nw"])
    w = page.locator(".xrddiff[aria-label='config builder']")
    command, differs = w.get_by_label("command", exact=True), w.get_by_role("region", name="what differs")
    said, alert = w.get_by_role("status"), page.locator(".xrddiff [role=alert]")
    assert shlex.split(command.inner_text()) == ["xrddiff", "run", *SMALL]

    # by keyboard: a value out of range gets the sentence of the command line, and nothing can be started
    w.get_by_label("find a word").focus()
    page.keyboard.type("learning rate of adamw")
    rate = w.get_by_label("lr", exact=True)
    assert not w.get_by_label("num_epochs").is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert rate.evaluate("e => e === document.activeElement")
    page.keyboard.type("-1")
    page.keyboard.press("Enter")
    alert.get_by_text("training.lr: found -1.0, expected more than 0").wait_for()
    assert rate.get_attribute("aria-invalid") == "true" and w.get_by_role("button", name="Train here").is_disabled()
    page.keyboard.press("Control+a")
    page.keyboard.type("2e-3")
    page.keyboard.press("Enter")
    differs.get_by_text("0.002").wait_for()
    assert "training.lr=2e-3" in command.inner_text() and rate.get_attribute("aria-invalid") == "false"

    # by mouse: a preset, a choice of the registry, a profile and its script
    w.get_by_label("find a word").fill("reconstruction term")
    w.get_by_label("recons_loss").select_option("l1")
    differs.get_by_text("training.recons_loss").wait_for()
    w.get_by_label("experiment type").select_option("demo")
    command.get_by_text("experiment_type=demo").wait_for()
    w.get_by_label("experiment type").select_option("")
    w.get_by_label("find a word").fill("")
    w.get_by_label("profile").fill("small")
    w.get_by_label("profile").press("Tab")
    w.get_by_role("button", name="Show the script").click()
    w.get_by_label("batch script", exact=True).get_by_text("#SBATCH --nodes").wait_for()
    assert command.inner_text().startswith("xrddiff cluster submit --profile small model=vae_kl")
    w.get_by_label("profile").fill("")
    w.get_by_label("profile").press("Tab")
    command.get_by_text("xrddiff run").wait_for()
    assert faults(page, ".xrddiff") == []
    notebooks.picture("configure", page.locator(".xrddiff").first)

    # a training in a process of its own, followed below the form, until it is told to stop
    w.get_by_role("button", name="Train here").click()
    training = page.locator(".xrddiff[aria-label='training monitor']")
    training.get_by_label(re.compile(r"epochs: ([4-9]|\d\d) of 200")).wait_for(timeout=240_000)
    training.locator("img[alt^='Loss, log']").first.wait_for()
    notebooks.hide_folders(notebooks.folder)
    notebooks.picture("monitor", training)
    run = notebooks.folder / "output" / "vae_kl" / "from a form"
    assert re.search("l1", (run / "config.yaml").read_text())
    w.get_by_role("button", name="Stop").click()
    said.get_by_text("stopped; it can be resumed").wait_for(timeout=120_000)
    training.get_by_text("SIGTERM").first.wait_for()
    assert stopped_by(run) == "SIGTERM" and notebooks.strangers() == []
