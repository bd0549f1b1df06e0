"""Exported models beside the run that they are from: seconds of each graph, in Python and in C++.

    OMP_NUM_THREADS=1 python bench/exported.py [RUN] [--batches 1 32] [--rounds 5]

RUN is a finished run of latent_diff; without it a small one is trained. Its functions are timed eager, with torch.compile, as AOTInductor libraries in Python and in C++ (examples/cpp, built here), and in onnxruntime, all with the same batches and threads. The ways take turns: each round times every way once, in an order that turns round.
Writes bench/results/exported.json and exported.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from harness import machine, make_parser, markdown, min_median, timed, turns, write_results

CPP = Path(__file__).parent.parent / "examples" / "cpp"
WAYS = ("eager", "torch.compile", "pt2", "onnxruntime", "pt2, C++")


def median_seconds(call: Callable[[], object], least: float = 1.0) -> float:
    """The median of repeated calls, five at least, over so many seconds; the first call does not count."""
    call()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < least and len(taken) < 200:
        taken.append(timed(call)[1].clock)
    return median(taken)


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


def measure(run: Path, batches: list[int], rounds: int) -> list[dict[str, object]]:
    """One row for each graph, batch and way: the median seconds of each round."""
    from xrddiff.judge.exports.exporters import export_run
    from xrddiff.judge.exports.graphs import open_exportable
    from xrddiff.judge.exports.runtime import load_exported

    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        packages = {kind: export_run(run, kind, Path(scratch) / kind) for kind in ("pt2", "onnx")}
        program = build(Path(scratch) / "build")
        own = {g.name: g for g in open_exportable(run).graphs}
        ways: dict[str, dict[str, Callable[..., object]]] = {name: {} for name in WAYS[:-1]}
        for name, graph in own.items():
            ways["eager"][name] = graph.module.eval().requires_grad_(False)
            ways["torch.compile"][name] = torch.compile(graph.module, dynamic=True)
        for way, kind in {"pt2": "pt2", "onnxruntime": "onnx"}.items():
            model = load_exported(packages[kind])
            ways[way] = {**model.autoencoder.graphs, "denoiser": model.generator.model.graph}
        given = {(name, n): batch_of(graph.inputs.values(), n) for name, graph in own.items() for n in batches}
        found: dict[tuple[str, int, str], list[float]] = {}
        for k, way in enumerate(turns(WAYS, rounds)):
            if way == "pt2, C++":
                times = cpp_seconds(program, packages["pt2"], batches)
            else:
                times = {key: median_seconds(partial(ways[way][key[0]], *g)) for key, g in given.items()}
            for key, taken in times.items():
                found.setdefault((*key, way), []).append(taken)
            print(f"{way}, round {k // len(WAYS) + 1} of {rounds}", file=sys.stderr, flush=True)
    for (graph, batch, way), seconds in found.items():
        rows.append(dict(graph=graph, batch=batch, way=way, seconds=seconds))
    return rows


def batch_of(inputs: Iterable[torch.Tensor], n: int) -> list[torch.Tensor]:
    """The first of each input, n times."""
    return [t[:1].expand(n, *t.shape[1:]).contiguous() if t.ndim else t for t in inputs]


def cpp_seconds(program: Path, package: Path, batches: list[int]) -> dict[tuple[str, int], float]:
    """What the program of examples/cpp says of each graph and batch."""
    said: dict[tuple[str, int], float] = {}
    for n in batches:
        if all(batch != n for _, batch in said):
            words = [program, "bench", package, "-n", str(n), "--threads", str(torch.get_num_threads())]
            lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
            rows = [json.loads(line) for line in lines]
            said |= {(row["graph"], row["batch"]): row["seconds"] for row in rows if row["batch"] in batches}
    return said


def table(rows: list[dict[str, object]]) -> str:
    cells = []
    for graph, batch in dict.fromkeys((r["graph"], r["batch"]) for r in rows):
        own = {r["way"]: r["seconds"] for r in rows if (r["graph"], r["batch"]) == (graph, batch)}
        ratios = [a / b for a, b in zip(own["pt2, C++"], own["torch.compile"], strict=True)]
        cells.append([graph, batch, *(min_median(own[w], ".3g", 1e3) for w in WAYS), min_median(ratios)])
    return "\n".join(markdown(["graph", "batch", *WAYS, "C++ over compiled"], cells))


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(args.run or train(Path(scratch)), args.batches, args.rounds)
    where = f"{machine('python')}, PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    command = " ".join(["OMP_NUM_THREADS=1 python bench/exported.py", *sys.argv[1:]])
    text = f"# Exported models\n\n`{command}`; {where}.\n\nms of a call: minimum (median) of the rounds, each the median of its calls. The last column is the time in C++ over that of torch.compile in the same round: minimum (median).\n\n{table(rows)}\n"
    write_results("exported", text, dict(where=where, rows=rows))
    print(text)


if __name__ == "__main__":
    main()
