"""Faults of accessibility that axe-core finds on a page: what somebody who reads it by ear, by keyboard or in large print meets."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

from conftest import missing

DOCS = Path(__file__).resolve().parent.parent / "docs"
ASKED = """
selector => axe.run(selector || document, {resultTypes: ["violations"]}).then(found => found.violations
  .filter(rule => ["serious", "critical"].includes(rule.impact))
  .flatMap(rule => rule.nodes.map(node => `${rule.id} (${rule.impact}) at ${node.target.join(" ")}: ${rule.help}`)))
"""


def node_module(name: str) -> Path:
    """The folder of a package of docs/package-lock.json; npm installs them where it is missing."""
    folder = DOCS / "node_modules" / name
    with open(DOCS / "package-lock.json") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker installs
        if not folder.is_dir():
            if not shutil.which("npm"):
                missing("Node.js and npm are not installed; the site's formulas and axe-core come from there")
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=DOCS, check=True)
    return folder


def faults(page, selector: str | None = None) -> list[str]:
    """The serious and critical faults of a page, or of the part of it that a CSS selector names; empty is good.

    axe-core is put into the page as it stands: nothing is fetched.
    """
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate((node_module("axe-core") / "axe.min.js").read_text(encoding="utf-8"))
    if selector is not None:
        assert page.locator(selector).count(), f"there is no {selector} on {page.url}"
    return page.evaluate(ASKED, selector)
