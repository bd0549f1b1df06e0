"""`xrddiff lab` in a real JupyterLab: a card on the launcher opens a tutorial, with the kernel of this environment."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import chromium
from conftest import need
from lab import end_server

from xrddiff.app.verbs.lab import PATH, copy_tutorials, tutorial_path, tutorials


def test_every_tutorial_has_its_place_on_the_path():
    numbers = {path.stem: number for path, (number, _) in tutorial_path().items()}
    assert numbers["quickstart"] == "0.1" and len(set(numbers.values())) == len(numbers)
    assert set(numbers) == {name for names in PATH.values() for name in names}  # none comes last for want of a place


def test_a_copy_keeps_its_runs_and_defines_what_it_uses(tmp_path: Path):
    """Cells that take the runs of a page to a temporary folder are gone from the copies, and no other cell needs them."""
    copy_tutorials(tmp_path)
    for source in tutorials():
        cells = json.loads((tmp_path / source.name).read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        assert not any("os.chdir" in text for text in code), source.name
        trees = [ast.parse(re.sub(r"(?m)^[%!].*$", "", text)) for text in code]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        made = names_made(nodes)
        assert used <= made | set(dir(builtins)) | {"display", "get_ipython"}, (source.name, used - made)
        hidden = [cell for cell in cells if "#| hide" in "".join(cell["source"])]
        assert all(cell["metadata"]["jupyter"]["source_hidden"] for cell in hidden)


def names_made(nodes: list[ast.AST]) -> set[str]:
    """The names that assignments, definitions, arguments and imports make."""
    made = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and n.name}
    made |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    return made | {(n.asname or n.name).partition(".")[0] for n in nodes if isinstance(n, ast.alias)}


@pytest.mark.slow
@pytest.mark.xdist_group("lab")
def test_a_card_opens_a_tutorial_with_the_right_kernel(tmp_path: Path):
    need("jupyterlab")
    private = {f"JUPYTER_{k}_DIR": str(tmp_path / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    private["XRDDIFF_STATE"] = str(tmp_path / "state")
    command = [
        sys.executable,
        "-c",
        "from xrddiff.app.entry import command_line; command_line()",
        "lab",
        "--no-browser",
    ]
    command += ["--", "--port=0", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    log = tmp_path / "lab.log"
    with open(log, "w") as out:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | private, stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(1200):
            found = list((tmp_path / "runtime").glob("jpserver-*.json"))
            if found and (text := found[0].read_text()):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        said = json.loads(text)
        url, token, folder = said["url"], said["token"], tmp_path / "xrddiff-tutorials"
        assert token and said["root_dir"] == str(folder)
        assert log.read_text().startswith(f"tutorials: {folder} ({len(tutorials()) + 1} written, 0 already there)")
        with chromium(1300, 1000) as page:
            page.set_default_timeout(300_000)
            page.goto(f"{url}lab?token={token}")
            sections = [page.locator(".jp-Launcher-section", has_text=f"{i} {wish}") for i, wish in enumerate(PATH)]
            start = page.locator(".jp-MarkdownViewer")
            start.get_by_role("link", name="Quickstart").wait_for()
            if pictures := os.environ.get("XRDDIFF_SCREENSHOTS"):
                page.screenshot(path=f"{pictures}/start.png")
            page.keyboard.press("Control+Shift+L")  # a new launcher
            cards = page.locator(".jp-LauncherCard[title^='Open the tutorial']")
            cards.first.wait_for()
            assert cards.count() == len(tutorials()) and all(section.count() == 1 for section in sections)
            cards.first.focus()
            page.keyboard.press("Enter")
            for _ in range(600):  # the kernel is asked for a while after the notebook is opened
                with urllib.request.urlopen(f"{url}api/sessions?token={token}") as answer:
                    kernels = [s["kernel"]["name"] for s in json.load(answer)]
                if kernels:
                    break
                page.wait_for_timeout(100)
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            page.get_by_text("xrddiff | Idle").wait_for()  # the status bar: connected to the kernel of that name
            if pictures := os.environ.get("XRDDIFF_SCREENSHOTS"):
                page.screenshot(path=f"{pictures}/lab.png")
            ours = (url, "data:", "blob:", url.replace("http", "ws"))
            assert [u for u in page.requested if not u.startswith(ours)] == []
            assert kernels == ["xrddiff"]
            assert page.locator(".jp-mod-current.lm-TabBar-tab", has_text=tutorials()[0].name).count()
        (kernel,) = (tmp_path / "state" / "lab").glob("*/share/kernels/xrddiff/kernel.json")
        assert json.loads(kernel.read_text())["argv"][:2] == [sys.executable, "-P"]
    finally:
        end_server(server)
