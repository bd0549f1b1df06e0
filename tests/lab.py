"""A real JupyterLab, one for all tests of a worker, and a real Chromium for tests of what people see.

The fixture `notebooks` (tests/conftest.py) is a `Notebooks`: `page = notebooks.open(["import xrddiff as xd", "xd.explore('sim128')"])`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
from browser import chromium
from conftest import need


def end_server(server: subprocess.Popen) -> None:
    """End a JupyterLab, with its kernels if it does not go by itself."""
    server.terminate()  # nothing if it has ended
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)  # it leads a session of its own, kernels included
        server.wait(60)


@contextmanager
def jupyterlab(folder: Path):
    """A JupyterLab server on `folder`, with its own settings; yields its address and token."""
    need("jupyterlab")
    private = {f"JUPYTER_{k}_DIR": str(folder / ".jupyter" / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    # cells that are out of sight are there too; no question about news
    settings = {
        "notebook-extension/tracker": '{"windowingMode": "none"}',
        "apputils-extension/notification": '{"fetchNews": "false"}',
    }
    for name, text in settings.items():
        file = Path(private["JUPYTER_CONFIG_DIR"], "lab/user-settings/@jupyterlab", f"{name}.jupyterlab-settings")
        file.parent.mkdir(parents=True)
        file.write_text(text)
    token = os.urandom(16).hex()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.root_dir={folder}", "--ServerApp.allow_root=True", "--LabApp.news_url=None",
               "--LabApp.expose_app_in_browser=True",
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
        end_server(server)
        log.close()


def menu(page, name: str, item: str) -> None:
    """Choose an item of JupyterLab's menu bar."""
    page.locator(".lm-MenuBar-itemLabel", has_text=name).first.click(timeout=10_000)
    page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click(timeout=10_000)


def dismiss_dialogs(page, seen: list[str]) -> None:
    """Accept whatever JupyterLab asks or tells in a dialog (a connection that was slow to come up), and note its words.

    Where it asks which kernel, that is Python.
    """
    for _ in range(5):
        dialogs = page.locator(".jp-Dialog")
        if not dialogs.count():
            return
        seen += dialogs.all_inner_texts()
        for kernels in page.locator(".jp-Dialog select").all():
            kernels.select_option(label="Python 3 (ipykernel)", timeout=10_000)
        page.locator(".jp-Dialog .jp-mod-accept").last.click(timeout=10_000)
        page.wait_for_timeout(300)


def state(page) -> str:
    """What the kernel and the cells of the page show."""
    kernel = page.locator(".jp-Notebook-ExecutionIndicator").first.get_attribute("data-status", timeout=10_000)
    return f"the kernel is {kernel}, the cells {page.locator('.jp-InputArea-prompt').all_inner_texts()}"


# What is sent to a kernel before the page is connected with it is lost: orders, and the widgets that a kernel makes.
CONNECTED = """() => {
  const panel = window.jupyterapp.shell.currentWidget, session = panel && panel.sessionContext;
  return session && session.isReady && session.session?.kernel?.connectionStatus === "connected";
}"""


def new_notebook(cells: Sequence[str]) -> nbformat.NotebookNode:
    """A notebook of these code cells, for Python."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nb


class Notebooks:
    """JupyterLab and a browser that are up. One notebook is open at a time: the one before is closed, with its kernel."""

    def __init__(self, folder: Path, url: str, token: str, page) -> None:
        self.folder, self.url, self.token, self.page, self.opened = folder, url, token, page, 0
        page.set_default_timeout(180_000)  # a busy machine takes a minute to show JupyterLab

    def open(self, cells: Sequence[str], seconds: float = 300):
        """Write a notebook of these code cells, open it and run all; returns the page once every cell has run without an error.

        The kernel's working directory is `self.folder`.
        """
        page = self.show(new_notebook(cells))
        ran = page.locator(".jp-CodeCell .jp-InputArea-prompt").filter(has_text=re.compile(r"\[\d+\]"))
        error = page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-OutputArea-output:has(.ansi-red-fg)"
        )
        self.run_all(lambda: error.count() or ran.count() == len(cells), seconds)
        assert not error.count(), "\n".join(error.all_inner_texts())
        page.evaluate("window.jupyterapp.shell.collapseLeft()")  # the list of files takes a third of the width
        return page

    def show(self, nb: nbformat.NotebookNode):
        """Write a notebook and open it; returns the page, connected with the kernel."""
        self.page.goto(f"{self.url}lab/tree/{self._write(nb)}?reset&token={self.token}")
        self._connect([])
        return self.page

    def run_all(self, done: Callable[[], bool], seconds: float = 600) -> None:
        """Run All Cells, and again if need be, until `done()`, which is asked twice a second.

        On a busy machine an order can still be lost, for all cells or for those after the first; cells may then wait, [*], for ever.
        So a kernel that has been idle for ten seconds with cells that have no number is given the order again.
        """
        from playwright.sync_api import TimeoutError

        page = self.page
        waiting = page.locator(".jp-CodeCell .jp-InputArea-prompt").filter(has_text=re.compile(r"\[[ *]\]"))
        idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        dialogs: list[str] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(TimeoutError):  # a dialog came in between, or went by itself
                self._connect(dialogs)
                menu(page, "Run", "Run All Cells")
                quiet = 0
                while quiet < 20 and time.monotonic() < end:
                    if done():
                        return
                    page.wait_for_timeout(500)
                    dismiss_dialogs(page, dialogs)
                    quiet = quiet + 1 if idle.count() and waiting.count() else 0
        log = (self.folder / "lab.log").read_text()[-3000:]
        raise AssertionError(f"not all cells have run; {state(page)}; JupyterLab said: {dialogs}; its log: {log}")

    def _connect(self, dialogs: list[str]) -> None:
        """Wait until the page is connected with its kernel, and load it again where that takes more than two minutes."""
        from playwright.sync_api import TimeoutError

        page = self.page
        for attempt in range(5):
            if attempt:
                page.reload()
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            for _ in range(240):
                if page.evaluate(CONNECTED):
                    return
                with suppress(TimeoutError):
                    dismiss_dialogs(page, dialogs)
                page.wait_for_timeout(500)
        raise AssertionError(f"no kernel; {state(page)}; JupyterLab said: {dialogs}")

    def open_in_notebook(self, cells: Sequence[str]):
        """As `open`, in Notebook 7; returns the page once every cell was sent to the kernel."""
        name, page = self._write(new_notebook(cells)), self.page
        page.goto(f"{self.url}notebooks/{name}?token={self.token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.click()
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", state="attached")
        for _ in cells:
            page.keyboard.press("Shift+Enter")
        return page

    def _write(self, nb: nbformat.NotebookNode) -> str:
        """The name under which a notebook is written; the one that is open is closed."""
        self.close()
        self.opened += 1
        name = f"notebook-{self.opened}.ipynb"
        nbformat.write(nb, self.folder / name)
        self.page.requested.clear()
        return name

    def strangers(self) -> list[str]:
        """Addresses outside this server that the page asked for since the notebook was opened."""
        own = (self.url, self.url.replace("http", "ws", 1), "data:", "blob:")
        return [u for u in self.page.requested if not u.startswith(own)]

    def picture(self, name: str, element) -> None:
        """With XRDDIFF_SCREENSHOTS=FOLDER, keep the picture of an element of the page as `widget-NAME.png`."""
        if folder := os.environ.get("XRDDIFF_SCREENSHOTS"):
            from PIL import Image

            path = Path(folder) / f"widget-{name}.png"
            element.screenshot(path=path)
            Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)

    def hide_folders(self, *folders: Path) -> None:
        """Write `~/work` for these folders in the text of the page, which is about to become a picture of the docs."""
        script = """folders => {
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) for (const f of folders) walker.currentNode.data = walker.currentNode.data.replaceAll(f, "~/work");
        }"""
        self.page.evaluate(script, [str(folder) for folder in folders])

    def close(self) -> None:
        """End the notebook that is open, and its kernel."""
        for session in self._ask("api/sessions"):
            self._ask(f"api/sessions/{session['id']}", "DELETE")
        self.page.goto("about:blank")

    def _ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@contextmanager
def notebooks_of(server: tuple[Path, str, str]) -> Iterator[Notebooks]:
    """`Notebooks` of a JupyterLab: (folder, address, token).

    The browser is closed at the end: its loop would look like one that runs to whatever else this process tests.
    """
    with chromium(1400, 1100) as page:
        yield Notebooks(*server, page)
