"""`xrddiff lab` in a real JupyterLab: a card on the launcher opens a tutorial, with the kernel of this environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import chromium
from conftest import need
from lab import end_server

from xrddiff.app.cli.lab import tutorials


def test_the_tutorials_are_in_reading_order():
    names = [path.name for path in tutorials()]
    assert names[0] == "quickstart.ipynb" and len(set(names)) == len(names)


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
        assert log.read_text().startswith(f"tutorials: {folder} ({len(tutorials())} written, 0 already there)")
        with chromium(1300, 1000) as page:
            page.set_default_timeout(300_000)
            page.goto(f"{url}lab?token={token}")
            cards = page.locator(".jp-Launcher-section", has_text="Tutorials of xrddiff").locator(".jp-LauncherCard")
            cards.first.wait_for()
            assert cards.count() == len(tutorials())
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
