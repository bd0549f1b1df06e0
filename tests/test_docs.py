"""The documentation site, in a real browser: formulas are rendered, search finds, and nothing is asked of the network."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from browser import chromium
from conftest import missing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "docs" / "_build" / "html"


@pytest.fixture(scope="module")
def site():
    """The address of the built site on a local server; it is built where it is missing or older than a notebook."""
    newest = max(p.stat().st_mtime for p in (ROOT / "nbs").rglob("*.ipynb"))
    if not (SITE / "index.html").exists() or (SITE / "index.html").stat().st_mtime < newest:
        if not shutil.which("npm"):
            missing("Node.js and npm are not installed; the site's formulas need them")
        if not (ROOT / "docs" / "node_modules" / "katex").exists():
            subprocess.run(["npm", "ci", "--silent"], cwd=ROOT / "docs", check=True)
        subprocess.run([sys.executable, ROOT / "docs" / "build.py"], check=True)
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_formulas_are_rendered_and_nothing_comes_from_outside(site):
    with chromium() as page:
        page.goto(f"{site}/losses.html", wait_until="networkidle")
        assert page.locator(".katex").count() > 5
        assert page.locator(".katex-error").count() == 0
        assert page.evaluate("document.fonts.check('16px KaTeX_Main')")
        assert [u for u in page.requested if not u.startswith((site, "data:", "blob:"))] == []


def test_search_finds_a_function(site):
    with chromium() as page:
        page.goto(f"{site}/search.html?q=keyed_normal", wait_until="networkidle")
        page.wait_for_selector("#search-results li", timeout=10000)
        assert "seeds.html" in page.inner_html("#search-results")


def test_every_link_inside_the_site_leads_somewhere(site):
    import re

    broken = []
    for page in SITE.rglob("*.html"):
        for link in re.findall(r'href="([^"#?:]+\.html)', page.read_text(encoding="utf-8")):
            if not (page.parent / link).resolve().exists():
                broken.append(f"{page.relative_to(SITE)} -> {link}")
    assert broken == []
