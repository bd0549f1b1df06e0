"""Every cell of every notebook runs. Run notebooks are whole jobs; tests/test_run.py runs those, with parameters.

Each notebook has a process of its own: what one registers, sets or leaves open does not reach another, so that a notebook
passes or fails for itself, whichever ran before it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ["index.ipynb"] + sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "nbs").rglob("*.ipynb")
    if path.parent.name != "runs" and not any(part[0] in "._" for part in path.relative_to(ROOT).parts)
)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_cell_runs(notebook):
    done = warm.run(ROOT / "tests" / "cells.py", ROOT / notebook, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
