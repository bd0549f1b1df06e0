"""How long does the first minute take? README's first commands in fresh clones, one after another.

    python bench/demo.py [--rounds 3]

Each round clones the repository (commits only), installs it (`make venv`), runs `make demo`, draws 16 samples of the pretrained model and inspects a file. Writes bench/results/demo.json and .md.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from harness import cpu_seconds, machine, make_parser, markdown, min_median, timed, write_results

ROOT = Path(__file__).resolve().parent.parent
FRAMES = "run42.h5"
STEPS = {
    "install": ["make", "venv"],
    "make demo": ["make", "demo"],
    "sample": [".venv/bin/xrddiff", "sample", "pretrained:sim128", "-n", "16"],
    "inspect": [".venv/bin/xrddiff", "data", "inspect", FRAMES],
}


def first_minutes(place: Path) -> dict[str, dict[str, float]]:
    """Seconds of CPU and of the clock of each step in a fresh clone at `place`, and the AUC that the demo ends with."""
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    out = {}
    for name, words in STEPS.items():
        if name == "inspect":
            made = [".venv/bin/xrddiff", "data", "simulate", "demo", "-n", "4", "-o", FRAMES]
            subprocess.run(made, cwd=place, check=True, capture_output=True)
        before = cpu_seconds(own=False)
        _, spent = timed(lambda words=words: subprocess.run(words, cwd=place, check=True, capture_output=True))
        out[name] = dict(cpu=cpu_seconds(own=False) - before, clock=spent.clock)
    summary = json.loads(next(place.glob("output/photons/*/*/metrics/summary.json")).read_text())
    return out | {"auc": summary["two-sample AUC"]}


def page(data: dict) -> list[str]:
    """The table."""
    rounds = data["rounds"]
    rows = [
        [f"`{' '.join(words).replace('.venv/bin/', '')}`"]
        + [min_median([r[name][kind] for r in rounds], ".0f") for kind in ("clock", "cpu")]
        for name, words in STEPS.items()
    ]
    aucs = ", ".join(f"{r['auc']['samples']:.2f}" for r in rounds)
    return [
        "# The first minutes", "", f"`python bench/demo.py`; {data['where']}. Seconds, minimum (median) of {len(rounds)} fresh clones.", "",
        *markdown(["command", "clock, s", "CPU, s"], rows), "",
        f"The demo ends with the AUC {aucs}. pip keeps what it has downloaded before, so the installation is mostly unpacking.",
    ]  # fmt: skip


def main() -> None:
    args = make_parser(__doc__, rounds=3).parse_args()
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            rounds.append(first_minutes(Path(scratch) / "xrddiff"))
            print(json.dumps(rounds[-1]), flush=True)
    print(write_results("demo", page, dict(where=machine("cores", "python", "torch", "day"), rounds=rounds)))


if __name__ == "__main__":
    main()
