"""Does every model run from frames to report on a laptop, and how long does it take?

`python bench/models.py` executes `xrddiff run model=M size=tiny experiment_type=test data=pooling_422` for the seven models, one after another, and writes bench/results/models.md and .json: wall and CPU time of the
whole command, whether the run folder is complete, and the figures of its summary. `--only vq ddpm` for some of the models, whose rows are put into the results that are there; `--folder` keeps the runs (a model
that is in it is measured anew, beside the old run); `--threads` of each run; `--words training.num_epochs=1` for a trial, which
is printed and not written. Each model is to take less than ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import XRDDIFF, cpu_seconds, machine, make_parser, markdown, read_results, write_results

WORDS = ["size=tiny", "experiment_type=test", "data=pooling_422"]
MODELS = ("vae_kl", "vae_kl_8", "vq", "vq_8", "ddpm", "diff", "latent_diff")
GENERATIVE = ("ddpm", "diff", "latent_diff")
FILES = (
    "notebook.ipynb",
    "config.yaml",
    "environment.json",
    "log.txt",
    "report.md",
    "report.html",
    "metrics/training_metrics.csv",
    "metrics/training_metrics.json",
    "metrics/summary.json",
)


def missing(run: Path, model: str) -> list[str]:
    """What a complete run folder of the model would have, and this one has not."""
    from xrddiff.core.errors import XrddiffError
    from xrddiff.data.formats.readers import open_frames
    from xrddiff.data.frames.frames import frame_count, validate_frames
    from xrddiff.learn.training.checkpoints import load_checkpoint

    wanted = list(FILES)
    if model in GENERATIVE:
        wanted += ["template.zarr", "metrics/generation.json"]
    if model == "latent_diff":
        wanted += ["autoencoder/notebook.ipynb", "autoencoder/latent_statistics.ipynb", "autoencoder/report.html"]
        wanted += ["autoencoder/metrics/latent_statistics.json", "metrics/final_latent_stats.json"]
    gone = [name for name in wanted if not (run / name).exists()]
    try:
        if not load_checkpoint(run).state["finished"]:
            gone.append("a finished checkpoint")
    except XrddiffError as error:
        gone.append(f"checkpoint ({error})")
    samples = run / "samples" / ("samples.zarr" if model in GENERATIVE else "reconstruction.zarr")
    try:
        if not frame_count(validate_frames(open_frames(samples), values=True)):
            gone.append("samples")
    except (XrddiffError, OSError) as error:
        gone.append(f"samples ({error})")
    return gone


def measure(model: str, folder: Path, threads: int, words: list[str]) -> dict:
    """One run: its minutes, what is missing in its folder, its summary."""
    before = set(folder.glob("output/*/*"))
    start, cpu = time.monotonic(), cpu_seconds(own=False)
    words = [f"model={model}", *WORDS, *words]
    stamp = time.strftime("%H-%M-%S")
    command = [XRDDIFF, "run", *words, f"threads={threads}", f"run_name={model}-{stamp}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr)
    row = {
        "words": words,
        "exit": done.returncode,
        "wall_minutes": (time.monotonic() - start) / 60,
        "cpu_minutes": (cpu_seconds(own=False) - cpu) / 60,
        "threads": threads,
    }
    new = set(folder.glob("output/*/*")) - before
    if len(new) != 1:
        return row | {"missing": ["the run folder"], "summary": {}}
    run = new.pop()
    summary = run / "metrics" / "summary.json"
    return row | {
        "missing": missing(run, model),
        "mib": sum(f.stat().st_size for f in run.rglob("*") if f.is_file()) / 2**20,
        "summary": json.loads(summary.read_text()) if summary.exists() else {},
    }


SHOWN = ("peak F1", "Poisson deviance", "share of the codebook in use", "radial profile", "intensity histogram", "peak count", "pairwise diversity")  # fmt: skip


def figures(row: dict) -> str:
    """The figures of the summary that are shown: of the model, which comes first, or of samples over their floor."""
    out = []
    for name in SHOWN:
        if values := row["summary"].get(name):
            ratio = values.get("samples / floor of real frames")
            out.append(f"{name} {next(iter(values.values())):.3g}" if ratio is None else f"{name} {ratio:.2g}")
    return ("multiples of the floor: " if "radial profile" in row["summary"] else "") + ", ".join(out)


def table(results: dict) -> str:
    """The results as Markdown."""
    lines = ["# Every model, from frames to report", "", __doc__.split("\n\n")[0], ""]
    lines += [f"`xrddiff run model=M {' '.join(WORDS)}`: 256 frames, 20 epochs, a trial of the pipeline and not a result. Complete: notebook, configuration, finished checkpoint, samples or reconstructions, metrics and report are there and can be opened.", ""]  # fmt: skip
    rows = []
    for model, r in results["models"].items():
        complete = "yes" if not r["missing"] and not r["exit"] else f"exit {r['exit']}, missing: {'; '.join(r['missing']) or 'nothing'}"  # fmt: skip
        minutes = [f"{r[k]:.1f}" for k in ("wall_minutes", "cpu_minutes")]
        rows.append([model, *minutes, r["threads"], f"{r.get('mib', 0):.0f}", complete, figures(r)])
    head = ["model", "wall, min", "CPU, min", "threads", "folder, MiB", "complete", "summary"]
    lines += markdown(head, rows, "lrrrrl")
    lines += ["", f"{results['machine']}. CPU time is the better figure where other work shared the machine."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__, threads=2, folder=None)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--words", nargs="+", default=[], help="further words of a trial, whose results are not kept")
    args = parser.parse_args()
    import torch

    from xrddiff.learn.loading.catalog import load

    load("sim-422", limit=256, progress=False)  # what makes the data is not in the times
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for model in args.only:
            row = measure(model, folder, args.threads, args.words)
            about = (
                f"{model}: {row['wall_minutes']:.1f} min, CPU {row['cpu_minutes']:.1f}, {row['missing'] or 'complete'}"
            )
            print(about, figures(row), sep="; ", flush=True)
            if args.words:
                continue
            rows = read_results("models", {"models": {}})["models"]
            rows[model] = row
            where = f"{machine('cores')}; torch {torch.__version__}"
            results = {"machine": where, "models": {m: rows[m] for m in MODELS if m in rows}}
            write_results("models", table, results)
    if not args.words:
        print(table(read_results("models", {})))


if __name__ == "__main__":
    main()
