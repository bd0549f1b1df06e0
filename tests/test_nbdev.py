"""nbdev's own commands on these notebooks, in a copy, with nothing to install and no Quarto to run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# annotations under TYPE_CHECKING, `show_doc`, and examples that import what they need
NOTEBOOKS = ("core/errors", "core/templates", "core/files", "data/headers/gate", "config/words/fields")


@pytest.fixture
def project(tmp_path) -> Path:
    """A few notebooks and the settings; programs called quarto and pip that only note how they are called."""
    shutil.copy(ROOT / "settings.ini", tmp_path)
    for name in NOTEBOOKS:
        (place := tmp_path / "nbs" / f"{name}.ipynb").parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "nbs" / f"{name}.ipynb", place)
    (tmp_path / "bin").mkdir()
    for name in ("quarto", "pip"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/called"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def nbdev(project: Path, name: str, *words: str) -> subprocess.CompletedProcess:
    """A command of nbdev, in this project."""
    own = {"HOME": str(project), "PATH": f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).with_name(name), *words]
    return subprocess.run(command, cwd=project, env=os.environ | own, capture_output=True, text=True)


@pytest.mark.slow
def test_nbdev_prepares_the_notebooks_for_pages(project):
    """Signatures are there also where they name what only type checkers import, and no example is executed."""
    done = nbdev(project, "nbdev_proc_nbs", "--n_workers", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    made = {name: project / "_proc" / f"{name}.ipynb" for name in NOTEBOOKS}
    assert all(page.is_file() for page in made.values()) and not (project / "called").exists()
    cells = json.loads(made["data/headers/gate"].read_text())["cells"]
    assert any("odd_kind" in str(cell.get("outputs")) for cell in cells)


@pytest.mark.slow
def test_nbdev_tests_a_notebook(project):
    for words, code in ((("--path", "nbs/core/errors.ipynb"), 0), (("--path", "nbs/wrong.ipynb"), 1)):
        if code:
            notebook = json.loads((project / "nbs" / "core" / "errors.ipynb").read_text())
            notebook["cells"][-1]["source"] = ["assert 1 == 2"]
            (project / "nbs" / "wrong.ipynb").write_text(json.dumps(notebook))
        done = nbdev(project, "nbdev_test", *words, "--n_workers", "0")
        assert done.returncode == code, done.stderr[-2000:]
