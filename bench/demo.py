"""The demo on this machine's device: how fast it trains, draws and answers, in float32 and in bfloat16.

    OMP_NUM_THREADS=1 python bench/demo.py [--precisions no bf16] [--folder FOLDER] [--commit HASH]

For each precision: `xrddiff run experiment_type=demo training.mixed_precision=P`, then `xrddiff sample RUN -n 512`, then `xrddiff posterior pixels` on twelve held-out frames of its set with a tenth of the pixels hidden. All three take the
GPU if there is one. Seconds are of the clock, of whole commands with their start-up and reports; frames a second are those of the training steps alone, as the run notes them.

Rows are put into bench/results/demo.json and .md, beside those of other devices.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import make_parser, markdown, read_results, timed, write_results

MODULE = [sys.executable, "-m", "xrddiff"]
FRAMES, SAMPLES = 12, 512


def command(folder: Path, *words: str) -> float:
    """Seconds of the clock of `xrddiff WORDS` in a folder."""
    _, spent = timed(lambda: subprocess.run([*MODULE, *words], cwd=folder, check=True, stdout=sys.stderr))
    return spent.clock


def frames_a_second(folder: Path) -> float:
    """Of the training steps of a run, or of its autoencoder."""
    text = (folder / "metrics" / "speed.json").read_text(encoding="utf-8")
    spans, _ = json.JSONDecoder().raw_decode(text)  # what follows is its checksum
    return sum(s["frames"] for s in spans) / sum(s["seconds"] for s in spans)


def held_out(run: Path, where: Path) -> Path:
    """A file with frames that the run has not seen."""
    from xrddiff.config.saved_config import load_config
    from xrddiff.data.formats.store import save_frames
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.learn.loading.datasets import prepare_words

    prepared = prepare_words(load_config(run / "config.yaml"))
    save_frames(select_frames(prepared.frames, prepared.held_out[:FRAMES]).load(), where)
    return where


def measure(folder: Path, precision: str) -> dict[str, Any]:
    """The row of a precision."""
    name = f"demo-{precision}"
    words = ["experiment_type=demo", f"training.mixed_precision={precision}", f"run_name={name}"]
    row: dict[str, Any] = dict(precision=precision, run=command(folder, "run", *words))
    run = next(folder.glob(f"output/*/{name}"))
    row |= dict(autoencoder=frames_a_second(run / "autoencoder"), denoiser=frames_a_second(run))
    row["auc"] = json.JSONDecoder().raw_decode((run / "metrics" / "summary.json").read_text())[0]["two-sample AUC"]["samples"]  # fmt: skip
    row["sample"] = command(folder, "sample", str(run), "-n", str(SAMPLES))
    frames = held_out(run, folder / f"{name}.zarr")
    row["posterior"] = command(folder, "posterior", "pixels", str(run), "--frames", str(frames), "--hold-out", "0.1")
    return row


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    _, _, method, _ = __doc__.split("\n\n")  # without the command
    head = ["device", "commit", "precision", "whole run, s", "autoencoder, frames/s", "denoiser, frames/s"]
    head += [f"{SAMPLES} samples, s", f"posterior of {FRAMES} frames, s", "AUC of samples"]
    rows = [
        [name, found["commit"], r["precision"], f"{r['run']:.0f}", f"{r['autoencoder']:.0f}", f"{r['denoiser']:.0f}",
         f"{r['sample']:.1f}", f"{r['posterior']:.1f}", f"{r['auc']:.2f}"]
        for name, found in results.items() for r in found["rows"]
    ]  # fmt: skip
    commands = [f"`{found['command']}`" for found in results.values()]
    return "\n".join(["# The demo on a device", "", *commands[:1], "", method, "", *markdown(head, rows, "llr"), ""])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--precisions", nargs="+", choices=("no", "bf16"), default=["no", "bf16"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "xrddiff-demo")
    parser.add_argument("--commit", default="", help="of the code, where git cannot say it")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {os.cpu_count()} cores"
    name += f", torch {torch.__version__}"
    results = read_results("demo", {})
    command = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python bench/demo.py"
    found = dict(commit=args.commit, command=command, rows=[])
    for precision in args.precisions:
        found["rows"].append(measure(args.folder, precision))
        print(found["rows"][-1], flush=True)
        write_results("demo", table, results | {name: found})


if __name__ == "__main__":
    main()
