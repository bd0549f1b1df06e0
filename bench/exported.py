"""Exported models beside the run that they are from: seconds of each graph, in Python and in C++.

    OMP_NUM_THREADS=1 python bench/exported.py [RUN] [--batches 1 32] [--seconds 3]

RUN is a finished run of latent_diff; without it a small one is trained. Its functions are timed eager, with torch.compile, as AOTInductor libraries in Python and in C++ (examples/cpp, built here), and in onnxruntime, all with the same batches and threads, one after another in turns.
Writes bench/results/exported.json and exported.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
CPP = Path(__file__).parent.parent / "examples" / "cpp"
WAYS = ("eager", "torch.compile", "pt2, Python", "pt2, C++", "onnxruntime")


def median_seconds(call: Callable[[], object], least: float) -> float:
    """The median of repeated calls, over at least so many seconds."""
    call()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < least and len(taken) < 200:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def build(folder: Path) -> Path:
    """The program of examples/cpp."""
    words = ["-S", CPP, "-B", folder, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    subprocess.run(["cmake", *words], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "xrddiff-infer"


def train(folder: Path) -> Path:
    """A run of the size of `make demo`, hardly trained: its speed is what is asked for."""
    words = ["model=latent_diff", "size=tiny", "experiment_type=test", "data=sim128", "data.limit=64", "run_name=run"]
    words += ["training.num_epochs=1", "model.diff_epochs=1"]
    command = [Path(sys.executable).with_name("xrddiff"), "run", *words]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    return next(folder.glob("output/*/run"))


def measure(run: Path, batches: list[int], seconds: float) -> list[dict[str, object]]:
    from xrddiff.exports.exporters import export_run
    from xrddiff.exports.graphs import open_exportable
    from xrddiff.exports.runtime import load_exported

    with tempfile.TemporaryDirectory() as scratch:
        packages = {kind: export_run(run, kind, Path(scratch) / kind) for kind in ("pt2", "onnx")}
        opened = {kind: load_exported(path) for kind, path in packages.items()}
        program, rows = build(Path(scratch) / "build"), []
        own = {g.name: g for g in open_exportable(run).graphs}
        exported = {
            kind: {
                "encoder": m.autoencoder.graphs["encoder"],
                "decoder": m.autoencoder.graphs["decoder"],
                "denoiser": m.generator.model.graph,
            }
            for kind, m in opened.items()
        }
        for name, graph in own.items():
            graph.module.eval().requires_grad_(False)
            compiled = torch.compile(graph.module, dynamic=True)
            for batch in batches:
                given = [
                    t.expand(batch, *t.shape[1:]).contiguous() if t.ndim else t
                    for t in (t[:1] if t.ndim else t for t in graph.inputs.values())
                ]
                ways = {
                    "eager": graph.module,
                    "torch.compile": compiled,
                    "pt2, Python": exported["pt2"][name],
                    "onnxruntime": exported["onnx"][name],
                }
                with torch.no_grad():
                    rows += [
                        dict(graph=name, batch=batch, way=way, seconds=median_seconds(partial(call, *given), seconds))
                        for way, call in ways.items()
                    ]
        threads = ["--threads", str(torch.get_num_threads())]
        for batch in batches:
            done = subprocess.run(
                [program, "bench", packages["pt2"], "-n", str(batch), *threads],
                check=True,
                capture_output=True,
                text=True,
            )
            said = [json.loads(line) for line in done.stdout.splitlines()]
            rows += [{**row, "way": "pt2, C++"} for row in said if row["batch"] == batch]
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| graph | batch | " + " | ".join(WAYS) + " | C++ over compiled |",
        "| --- | ---: | " + " | ".join("---:" for _ in WAYS) + " | ---: |",
    ]
    for graph, batch in dict.fromkeys((r["graph"], r["batch"]) for r in rows):
        own = {r["way"]: r["seconds"] for r in rows if (r["graph"], r["batch"]) == (graph, batch)}
        cells = [f"{1e3 * own[w]:.3g} ms ({batch / own[w]:.3g}/s)" for w in WAYS]
        lines.append(
            f"| {graph} | {batch} | " + " | ".join(cells) + f" | {own['pt2, C++'] / own['torch.compile']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(args.run or train(Path(scratch)), args.batches, args.seconds)
    where = f"{platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    command = " ".join(["OMP_NUM_THREADS=1 python bench/exported.py", *sys.argv[1:]])
    text = f"# Exported models\n\n`{command}`; {where}.\n\nMedian time of a call, and frames a second; the last column is the time in C++ over that of torch.compile.\n\n{table(rows)}\n"
    (RESULTS / "exported.json").write_text(json.dumps(dict(where=where, rows=rows), indent=1) + "\n")
    (RESULTS / "exported.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
