"""The run notebook in a real JupyterLab, driven by a real browser: open it, Run All Cells, and the run is there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest
from browser import chromium
from conftest import need

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "model": "vae_kl",
    "experiment_type": "test",
    "data": "sim128",
    "overrides": ["data.limit=64", "training.max_steps=4", "run_name=in-the-lab", "threads=1"],
}


@contextmanager
def jupyterlab(folder: Path):
    """A JupyterLab server on `folder`, with its own settings; yields its address and token."""
    need("jupyterlab")
    private = {f"JUPYTER_{k}_DIR": str(folder / ".jupyter" / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    token = os.urandom(16).hex()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.root_dir={folder}", "--ServerApp.allow_root=True", "--LabApp.news_url=None",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    log = open(folder / "lab.log", "w")
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | private | {"JUPYTER_TOKEN": token},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        for _ in range(1800):
            found = list(Path(private["JUPYTER_RUNTIME_DIR"]).glob("jpserver-*.json"))
            if found and (text := found[0].read_text()):
                break
            assert server.poll() is None, (folder / "lab.log").read_text()
            time.sleep(0.1)
        else:
            raise AssertionError((folder / "lab.log").read_text())
        yield json.loads(text)["url"], token
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)  # it leads a session of its own, kernels included
            server.wait(60)
        log.close()


def menu(page, name: str, item: str) -> None:
    """Choose an item of JupyterLab's menu bar."""
    page.locator(".lm-MenuBar-itemLabel", has_text=name).first.click(timeout=10_000)
    page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click(timeout=10_000)


def dismiss_dialogs(page, seen: list[str]) -> None:
    """Accept whatever JupyterLab asks or tells in a dialog (a connection that was slow to come up, which kernel), and note its words."""
    for _ in range(5):
        dialogs = page.locator(".jp-Dialog")
        if not dialogs.count():
            return
        seen += dialogs.all_inner_texts()
        page.locator(".jp-Dialog .jp-mod-accept").last.click(timeout=10_000)
        page.wait_for_timeout(300)


def run_all(page) -> None:
    """Run All Cells, until a cell has run.

    An order that comes before the kernel is connected is lost. The status says idle before that, and the cells may wait, [*],
    for ever. So a kernel that has been idle for ten seconds without a number at any cell is given the order again.
    """
    from playwright.sync_api import TimeoutError

    ran = page.locator(".jp-InputArea-prompt").filter(has_text=re.compile(r"\[\d+\]"))
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    dialogs: list[str] = []
    end = time.monotonic() + 300
    while time.monotonic() < end:
        with suppress(TimeoutError):  # a dialog came in between, or went by itself
            dismiss_dialogs(page, dialogs)
            menu(page, "Run", "Run All Cells")
            quiet = 0
            while quiet < 20 and time.monotonic() < end:
                if ran.count():
                    return
                page.wait_for_timeout(500)
                dismiss_dialogs(page, dialogs)
                quiet = quiet + 1 if idle.count() else 0
    raise AssertionError(f"no cell has run; {state(page)}; JupyterLab said: {dialogs}")


def state(page) -> str:
    """What the kernel and the cells of the page show."""
    kernel = page.locator(".jp-Notebook-ExecutionIndicator").first.get_attribute("data-status", timeout=10_000)
    return f"the kernel is {kernel}, the cells {page.locator('.jp-InputArea-prompt').all_inner_texts()}"


def test_run_all_in_jupyterlab_is_the_same_run(tmp_path):
    notebook = nbformat.read(ROOT / "nbs" / "runs" / "train_autoencoder.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in SMALL.items()) + "\nrun_dir = None"
    nbformat.write(notebook, tmp_path / "train_autoencoder.ipynb")
    with jupyterlab(tmp_path) as (url, token), chromium(1400, 1000) as page:
        page.set_default_timeout(300_000)  # a busy machine takes long for each of them
        page.goto(f"{url}lab/tree/train_autoencoder.ipynb?token={token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        run_all(page)
        report = tmp_path / "output" / "vae_kl_test" / "in-the-lab" / "report.html"
        for _ in range(1200):
            if (
                report.exists()
                or page.locator(
                    ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg"
                ).count()
            ):
                break
            page.wait_for_timeout(500)
        errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
        if folder := os.environ.get("XRDDIFF_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/jupyterlab.png")
        assert report.exists(), "\n".join(errors) or f"no report after ten minutes; {state(page)}"
        assert errors == []
        assert [u for u in page.requested if not u.startswith((url, "data:", "blob:", "ws:"))] == []
