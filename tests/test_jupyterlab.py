"""The run notebook in a real JupyterLab, driven by a real browser: open it, Run All Cells, and the run is there."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "model": "vae_kl",
    "experiment_type": "test",
    "data": "sim128",
    "overrides": ["data.limit=64", "training.max_steps=4", "run_name=in-the-lab", "threads=1"],
}


def test_run_all_in_jupyterlab_is_the_same_run(notebooks):
    notebook = nbformat.read(ROOT / "nbs" / "runs" / "train_autoencoder.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in SMALL.items()) + "\nrun_dir = None"
    page = notebooks.show(notebook)
    report = notebooks.folder / "output" / "vae_kl_test" / "in-the-lab" / "report.html"
    failed = page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg")
    notebooks.run_all(lambda: report.exists() or failed.count() > 0)
    errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    if folder := os.environ.get("XRDDIFF_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/jupyterlab.png")
    assert report.exists(), "\n".join(errors + failed.all_inner_texts())
    assert errors == []
    assert notebooks.strangers() == []
