"""A plain installation: what needs no extra works without its packages, and what needs one names it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from xrddiff.core.extras import EXTRAS

# A process in which the packages of all extras cannot be imported, as if they weren't installed.
PLAIN = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(name for names in EXTRAS.values() for name in names)!r}))
sys.argv[0] = "xrddiff"
from xrddiff.app.entry import command_line
command_line()
"""
SWEEP = "metric: {name: loss, goal: minimize}\nmethod: random\nparameters:\n  training.lr: {values: [0.001, 0.01]}\n"
NEEDED = {
    "kernel": "run model=ddpm data=sim128 engine=kernel",
    "trackers": "run model=ddpm data=sim128 training.trackers=[tensorboard]",
    "sweeps": "sweep search.yaml --runs 1",
    "workers": "stream . --workers local:2",
    "remote": "data inspect https://localhost/frames.h5",
    "s3": "data inspect s3://beamline/frames.zarr",
    "lab": "lab",
    "stream2": "data replay sim128 tcp://127.0.0.1:9 --version 2",
}


def plain(*words: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PLAIN, *words], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("extra", NEEDED)
def test_what_is_missing_is_named_with_its_extra(extra, tmp_path):
    (tmp_path / "search.yaml").write_text(SWEEP)
    done = plain(*NEEDED[extra].split(), folder=tmp_path)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2 and f"'xrddiff[{extra}]'" in said[-1], done.stderr
    assert any(name in said[-1] for name in EXTRAS[extra]) and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_plain_installation_trains_draws_and_judges(tmp_path):
    words = "model=ddpm data=sim128 size=tiny data.limit=24 data.avg_pooling=true training.num_epochs=1"
    words += " inference.num_samples=4 inference.index_frames=0 run_name=plain threads=1"
    done = plain("run", *words.split(), folder=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = tmp_path / "output/ddpm/plain"
    done = plain("sample", str(run), "-n", "2", "inference.steps=2", folder=tmp_path)
    assert done.returncode == 0 and (run / "samples/default/samples.zarr").exists(), done.stderr
    assert "plain" in plain("runs", "list", folder=tmp_path).stdout


ROOT = Path(__file__).resolve().parent.parent
ASKED_FOR = {"diffusers", "pyarrow", "pynvml"}  # who uses them is told what to install
NBDEV = {"nbdev", "fastcore"}  # core.nbdev_pages is imported by nbdev alone


def distribution(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def installed_with(names: set[str]) -> set[str]:
    """These distributions, and all that come with them."""
    out, todo = set(), set(names)
    while todo:
        out.add(name := todo.pop())
        try:
            needed = [r for r in requires(name) or () if "extra ==" not in r]
        except PackageNotFoundError:  # of another system
            needed = []
        todo |= {distribution(r) for r in needed} - out
    return out


def test_what_the_package_imports_is_installed_with_it_or_with_an_extra():
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(ROOT / "settings.ini")
    own = {k: v.split() for k, v in cfg["DEFAULT"].items() if k.endswith("requirements") and k != "dev_requirements"}
    there = installed_with({distribution(r) for words in own.values() for r in words})
    known, missing = packages_distributions(), {}
    for path in (ROOT / "xrddiff").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in named} - sys.stdlib_module_names - {"xrddiff"}:
                if not {distribution(d) for d in known.get(top, ())} & there:
                    missing.setdefault(top, path.name)
    assert missing.keys() <= ASKED_FOR | NBDEV, missing
