"""Hashes of results that a change of structure must not change: weights after 50 steps, samples, indexing, merging.

python tools/result_hashes.py > before.txt; ...; python tools/result_hashes.py | diff before.txt -
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "XRDDIFF_STATE": tempfile.mkdtemp()}
WORDS = (
    "model=latent_diff size=tiny data=sim128 threads=1 training.max_steps=50 training.test_pipeline=true run_name=one"
)
TOLD = "inference.steps=5 inference.num_samples=6"


def call(folder: Path, *words: str) -> None:
    """Run a command of xrddiff in a folder; its output is shown if it fails."""
    done = subprocess.run([sys.executable, "-m", "xrddiff", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def digest(values: dict) -> str:
    """A hash of arrays by name."""
    found = hashlib.sha256()
    for name in sorted(values):
        found.update(name.encode() + values[name].tobytes())
    return found.hexdigest()[:16]


def table(file: Path) -> str:
    """Rows and hash of the numbers of a CSV file."""
    import pandas as pd

    found = pd.read_csv(file).select_dtypes("number")
    return f"{len(found)} {digest({c: found[c].values for c in found})}"


def main() -> None:
    """Print a line for each result."""
    import xarray as xr
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        call(folder, "run", *WORDS.split(), *TOLD.split(), "output_dir=out")
        run = next(folder.glob("out/*/one"))
        for part in ("autoencoder", "."):
            files = sorted((run / part / "checkpoints").rglob("model.safetensors"))
            print("weights", part, *(digest(load_file(file)) for file in files[-1:]), flush=True)
        samples = xr.open_zarr(next(run.glob("samples/**/samples.zarr")))
        print("samples", digest({"x": samples["intensity"].values}), flush=True)
        call(folder, "data", "simulate", "sim128", "-o", "frames.zarr", "-n", "60")
        call(folder, "data", "index", "frames.zarr")
        print("lattices", table(next(folder.glob("*.csv"))), flush=True)
        call(folder, "merge", "frames.zarr", "-o", "merged")
        merged = "\n".join(line for line in (folder / "merged/merged.hkl").read_text().splitlines() if " " in line)
        print("merged", merged.count("\n"), hashlib.sha256(merged.encode()).hexdigest()[:16], flush=True)
        if real := os.environ.get("XRDDIFF_DATA"):
            (measured := folder / "measured").mkdir()
            file = Path(real, "thaumatin_grid_01.cbf.bz2")
            call(measured, "data", "index", str(file), "--cell", "58,58,150,90,90,90")
            print("measured", table(next(measured.glob("*.csv"))), flush=True)


if __name__ == "__main__":
    main()
