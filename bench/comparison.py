"""How long does `xrddiff evaluate FILE --reference FILE` take?

    python bench/comparison.py [--frames 10000] [--workers 2] [--folder FOLDER]

Two sets of simulated stills (sim128) are compared from the command line, one thread for each worker: seconds of the clock and of CPU, start and report included, simulation not. On a machine that does other work the clock says little.
`--folder` keeps the frames. Writes bench/results/comparison.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "comparison.md"
XRDDIFF = Path(sys.executable).with_name("xrddiff")


def cpu() -> float:
    """CPU seconds of the processes below this one that have ended."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}-{args.frames}.h5" for name in ("reference", "frames")]
        for seed, file in enumerate(files):
            if not file.exists():
                words = ["-n", str(args.frames), "--seed", str(seed), "-o", str(file)]
                subprocess.run([XRDDIFF, "data", "simulate", "sim128", *words], cwd=folder, check=True)
        start, before = time.monotonic(), cpu()
        words = [
            str(files[1]),
            "--reference",
            str(files[0]),
            "--workers",
            f"local:{args.workers}",
            "-o",
            str(folder / "out"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([XRDDIFF, "evaluate", *words], cwd=folder, env=environment, check=True)
        clock, busy = time.monotonic() - start, cpu() - before
        found = json.loads((folder / "out" / "metrics" / "evaluation.json").read_text())
    rate = {name: table["rate"] for name, table in found["physics"].items()}
    lines = [
        "# Comparing two sets", "",
        f"`python bench/comparison.py --frames {args.frames} --workers {args.workers}`; {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}, Python {platform.python_version()}.", "",
        f"`xrddiff evaluate` of {args.frames} frames beside {args.frames} others:", "",
        "| | |", "| --- | ---: |", f"| CPU seconds | {busy:.0f} |", f"| of a frame, ms | {1000 * busy / (2 * args.frames):.0f} |", f"| seconds of the clock | {clock:.0f} |",
        f"| CPU seconds over {args.workers} workers: the clock of an idle machine, at best | {busy / args.workers:.0f} |", "",
        "Frames that index: " + ", ".join(f"{name} {r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for name, r in rate.items()) + ".",
    ]  # fmt: skip
    RESULT.write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
