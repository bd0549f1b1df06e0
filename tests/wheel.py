"""Build wheel and sdist, install the wheel in an empty environment away from the checkout, and run the main job there.

`python tests/wheel.py [PYTHON …]`, with other interpreters if some are named; CI and `make wheel-test` call it. It is a script and not a pytest: an
environment takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (
    "xrddiff/py.typed",
    "xrddiff/config/conf/config.yaml",
    *(f"xrddiff/_notebooks/{p.name}" for p in sorted((ROOT / "nbs" / "runs").glob("*.ipynb"))),
    *(f"xrddiff/_tutorials/{p.name}" for p in sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))),
    *(p.relative_to(ROOT).as_posix() for kind in ("j2", "css", "js") for p in (ROOT / "xrddiff").glob(f"*/*/*.{kind}")),
    "xrddiff/core/table.html.j2",
    "xrddiff/app/labextension/xrddiff/package.json",
    "xrddiff/app/labextension/xrddiff/static/remoteEntry.js",
    "xrddiff/data/samples/cspad_lysozyme_r0015.h5",
    "xrddiff/data/samples/NOTICE.md",
    *(f"xrddiff/judge/weights/{p.name}" for p in sorted((ROOT / "xrddiff" / "judge" / "weights").iterdir())),
)


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """A command's output; its failure ends this script with what it printed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with {done.returncode}:\n{done.stdout[-6000:]}")
    return done.stdout


def try_wheel(wheel: Path, interpreter: str, away: Path) -> None:
    """Install the wheel in an environment of its own, train a small model with it, and draw from it."""
    version = run(interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])", cwd=away).strip()
    away = away / version
    away.mkdir()
    run(interpreter, "-m", "venv", away / "env", cwd=away)
    python = away / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, cwd=away)
    print(f"Python {version}: {run(python, '-m', 'pip', 'list', '--format=freeze', cwd=away).count(chr(10))} packages")
    where = run(python, "-c", "import xrddiff; print(xrddiff.__file__)", cwd=away).strip()
    assert str(away) in where, f"xrddiff was imported from {where}, not from the wheel's environment"
    small = (
        "experiment_type=scratch",
        "data.limit=48",
        "training.num_epochs=1",
        "model.diff_epochs=1",
        "inference.num_samples=8",
        "run_name=wheel",
    )
    print(run(away / "env" / "bin" / "xrddiff", "run", *small, cwd=away, XRDDIFF_CACHE=str(away / "cache"))[-2500:])
    folder = away / "output" / "latent_diff" / "wheel"
    xrddiff = away / "env" / "bin" / "xrddiff"
    print(
        run(xrddiff, "sample", folder, "-n", "4", "inference.steps=2", cwd=away, XRDDIFF_CACHE=str(away / "cache"))[
            -500:
        ]
    )
    for expected in (
        "notebook.ipynb",
        "config.yaml",
        "environment.json",
        "report.md",
        "metrics",
        "checkpoints",
        "samples/default/report.html",
    ):
        assert (folder / expected).exists(), f"the run folder lacks {expected}"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="xrddiff-wheel-") as name:
        away = Path(name)
        run(sys.executable, "-m", "build", "--outdir", away / "dist", ROOT, cwd=away)
        wheel, sdist = next((away / "dist").glob("*.whl")), next((away / "dist").glob("*.tar.gz"))
        inside = set(zipfile.ZipFile(wheel).namelist())
        absent = [p for p in SHIPPED if p not in inside]
        assert not absent, f"the wheel lacks {', '.join(absent)}"
        names = {n.partition("/")[2] for n in tarfile.open(sdist).getnames()}
        absent = [n for n in ("settings.ini", "tests/conftest.py", "docs/build.py", "paper.md") if n not in names]
        assert not absent, f"the sdist lacks {', '.join(absent)}"
        for interpreter in sys.argv[1:] or [sys.executable]:
            try_wheel(wheel, interpreter, away)
    print(f"wheel and sdist work: {wheel.name}, {sdist.name}")


if __name__ == "__main__":
    main()
