"""How long the checks take, step by step, and which tests cost most.

    python bench/suite.py [--before CHECKOUT] [--steps test test-quick]

Each step is a target of make; its seconds are those of the clock and those of the CPU, of all processes that it started, also
of those that left their parents (Linux), as the jobs of a cluster do. On a machine that does other work the clock says little. `--before` measures the same steps in another checkout,
with its own .venv, and keeps them for comparison. Nothing may have to be installed: run `make dev` first.
Writes bench/results/suite.json and bench/results/suite.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import cpu_seconds, machine, make_parser, markdown, read_results, write_results

ROOT = Path(__file__).resolve().parent.parent
STEPS = {
    "test": "lint, every cell of every notebook, every test",
    "test-quick": "lint, the notebooks that changed, every test that is not slow",
}


SUBREAPER = 36  # linux/prctl.h: orphans below this process become its children, and their CPU time its own


def children() -> float:
    """Seconds of CPU of the processes below this one that have ended."""
    end = time.monotonic() + 30
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < end:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.2)
    return cpu_seconds(own=False)


def measure(folder: Path, step: str, *words: str) -> dict[str, float]:
    """Seconds of `make STEP` in a checkout."""
    began, cpu = time.monotonic(), children()
    done = subprocess.run(["make", "-C", str(folder), step, *words], stdin=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    row: dict[str, float] = dict(seconds=round(seconds, 1), cpu=round(children() - cpu, 1))
    return row | ({"failed": True} if done.returncode else {})


def table(found: dict) -> str:
    """The results as a page."""
    now, before, where = found["now"], found.get("before", {}), found["where"]
    clock = lambda row: f"{row['seconds'] / 60:.1f}" if row.get("seconds") else "–"  # noqa: E731
    busy = lambda row: f"{row['cpu'] / 60:.1f}" if row.get("cpu") else "–"  # noqa: E731
    lines = ["# The suite", "", f"`python bench/suite.py` on {where}", "", "Minutes of the clock, and of CPU:", ""]
    rows = []
    for name, what in STEPS.items():
        row, old = now.get(name, {}), before.get(name, {})
        what += " (some failed)" if row.get("failed") else ""
        rows.append([name, what, clock(row), busy(row), clock(old), busy(old)])
    lines += markdown(["`make`", "what", "clock", "CPU", "clock before", "CPU before"], rows, "l")
    if "about" in before:
        lines += ["", f"Before: {before['about']}."]
    if tests := found.get("tests"):
        lines += ["", "## The tests that cost most", "", "A fixture counts for the test that asks for it first."]
        rows = [[f"{t['cpu']:.1f}", f"{t['seconds']:.1f}", f"`{t['test'].removeprefix('tests/')}`"] for t in tests]
        lines += ["", *markdown(["seconds of CPU", "of the clock", "test"], rows, "l")]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    args = parser.parse_args()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    found = read_results("suite", {})
    found["where"] = machine("cores", "day")
    found.setdefault("now", {})
    with tempfile.TemporaryDirectory() as folder:
        cost = Path(folder) / "cost"
        for step in args.steps:
            options = f"{os.environ.get('PYTEST_ARGS', '')} --cost={cost}"
            words = [f"PYTEST_ARGS={options}"] if step == "test" else []
            found["now"][step] = measure(ROOT, step, *words)
        if cost.exists():
            rows = [json.loads(line) for line in cost.read_text().splitlines()]
            found["tests"] = sorted(rows, key=lambda row: -row["cpu"])[:20]
    if args.before:
        found["before"] = {step: measure(args.before, step) for step in args.steps}
    print(write_results("suite", table, found))
    if any(found["now"][step].get("failed") for step in args.steps):
        sys.exit("bench/suite.py: a step has failed; its time is not that of a whole suite")


if __name__ == "__main__":
    main()
