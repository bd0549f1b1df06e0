"""Runs benchmarks of two versions of the package in turn, and compares what they measured.

    OMP_NUM_THREADS=1 python bench/before_after.py CHECKOUT [--benches loader simulator] [--rounds 5] [--out bench/results/rooms.md]

CHECKOUT is the folder of the other version (`git worktree add --detach CHECKOUT COMMIT`); both run under this Python. Each round
runs a benchmark of CHECKOUT, then the same of this folder; a row gives the median and the best of the rounds. Where a benchmark
takes the time of the clock, it is given CPU time of all threads instead, which others on the machine move less.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import make_parser, markdown, table_row, write_results

ROOT = Path(__file__).resolve().parent.parent
# The words of a short run; the columns that name a row; the column that is compared; which end of it is good.
BENCHES = {
    "loader": ("--repeats 5 --megabytes 64", ["file", "way"], "ratio median", max),
    "simulator": ("--sizes 128 512 --no-loop --rounds 8", ["size", "experiment"], "CPU", min),
    "peakfinder": ("--rounds 8", ["frames"], ["ours, its settings", "ours, default"], min),
    "unet": ("--cases tiny --variants eager --rounds 7", ["case", "variant"], "ratio", max),
}
CPU_CLOCK = """
import os, runpy, sys, time
time.perf_counter = time.process_time
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(checkout: Path, bench: str, words: str) -> str:
    """What a benchmark of a checkout prints, with that checkout's package."""
    env = os.environ | {"PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder:
        where = [sys.executable, "-c", "import xrddiff; print(xrddiff.__file__)"]
        found = subprocess.run(where, env=env, cwd=folder, check=True, capture_output=True, text=True).stdout
        assert Path(found.strip()).is_relative_to(checkout), found
        command = [sys.executable, "-c", CPU_CLOCK, checkout / "bench" / f"{bench}.py", *words.split()]
        return subprocess.run(command, env=env, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def rows(text: str, names: list[str], columns: list[str]) -> dict[str, float]:
    """Row and column -> the first number of a cell of the first table in `text`."""
    table = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    head, found = table[0], {}
    for cells in table[2:]:
        row = dict(zip(head, cells, strict=True))
        for column in columns:
            name = ", ".join([*(row[n] for n in names), column])
            found[name] = float(re.match(r"[\d.]+", row[column])[0])
    return found


def main() -> None:
    parser = make_parser(__doc__, rounds=5, out=None)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--benches", nargs="+", choices=BENCHES, default=list(BENCHES))
    args = parser.parse_args()
    sides = (args.checkout.resolve(), ROOT)
    commits = [
        subprocess.run(["git", "-C", side, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        for side in sides
    ]
    lines = [f"Before: {commits[0].stdout.strip()}; now: {commits[1].stdout.strip()}; {args.rounds} rounds.", ""]
    head = ["bench", "what", "better is", "before: median (best)", "now: median (best)", "now / before"]
    lines += markdown(head, [], "l")
    for bench in args.benches:
        words, names, columns, best = BENCHES[bench]
        columns = [columns] if isinstance(columns, str) else columns
        found: list[tuple[dict[str, float], ...]] = []
        for _ in range(args.rounds):
            found.append(tuple(rows(run(side, bench, words), names, columns) for side in sides))
        for name in found[0][0]:
            before, now = zip(*((b[name], n[name]) for b, n in found), strict=True)
            cells = [f"{median(v):.2f} ({best(v):.2f})" for v in (before, now)]
            cells += [f"{median(now) / median(before):.2f} ({best(now) / best(before):.2f})"]
            lines.append(table_row([f"`{bench}.py {words}`", name, best.__name__[:3], *cells]))
            print(lines[-1], flush=True)
    if args.out:
        write_results(args.out, lines)


if __name__ == "__main__":
    main()
