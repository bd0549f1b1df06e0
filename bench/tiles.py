"""Whole detectors by parts: a model that was trained on windows of 128 x 128 pixels draws 512 x 512 and 2048 x 2048.

    OMP_NUM_THREADS=1 python bench/tiles.py [RUN] [--frames 24] [--folder FOLDER]

Without RUN, the model is trained first (`TRAIN`), in FOLDER. Samples, with their CPU seconds, stay in the run; rows that are there are not made again. Writes bench/results/tiles.json and tiles.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
XRDDIFF = Path(sys.executable).with_name("xrddiff")
TRAIN = ["experiment_type=demo", "data.name=sim-522", "data.limit=400", "data.window=128", "threads=1"]
TRAIN += ["model.condition_maps=[lattice,q]", "training.num_epochs=12", "model.diff_epochs=40"]
TRAIN += ["inference.num_samples=8", "inference.batch_size=4", "inference.steps=4", "inference.limit=48"]
STEPS, OVERLAPS, TILE = (2, 4, 8, 16), (0, 16, 32, 64), 128
# As sim-522, with four times as many pixels along a side and four times as far away: the same angles.
LARGE = "\n".join(
    ["wavelength = 0.984 A", "clen = 0.48", f"res = {1 / 172e-6}", "adu_per_photon = 1"]
    + [
        f"p0/{word} = {value}"
        for word, value in dict(min_fs=0, max_fs=2047, min_ss=0, max_ss=2047, fs="x", ss="y").items()
    ]
    + [f"p0/corner_x = {-4 * 249.6}", f"p0/corner_y = {-4 * 261.8}"]
)


def train(folder: Path) -> Path:
    """The run, trained unless it is there."""
    run = next(folder.glob("output/*/windows"), None)
    if run is None or not (run / "report.html").exists():
        words = [f"resume={run}"] if run else [*TRAIN, "run_name=windows"]
        before = cpu()
        subprocess.run([XRDDIFF, "run", *words], cwd=folder, check=True, stdout=sys.stderr)
        run = next(folder.glob("output/*/windows"))
        (run / "cpu_seconds.txt").write_text(str(round(cpu() - before)))
    return run


def cpu() -> float:
    """CPU seconds of the processes below this one that have ended."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def sample(run: Path, name: str, *words: str) -> tuple[Path, float]:
    """The folder of a set of samples, made and judged unless it is there, and its CPU seconds."""
    folder = run / "samples" / name
    if not (folder / "cpu_seconds.txt").exists():
        before = cpu()
        subprocess.run([XRDDIFF, "sample", run, *words, f"--name={name}"], check=True, stdout=sys.stderr)
        (folder / "cpu_seconds.txt").write_text(str(cpu() - before))
    return folder, float((folder / "cpu_seconds.txt").read_text())


def draw(run: Path, words: list[str], threads: int) -> dict:
    """Time and memory of one frame, in a process of its own."""
    command = [sys.executable, __file__, str(run), "--draw", str(threads), *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw_here(run: Path, words: list[str], threads: int) -> dict:
    """What `draw` starts."""
    import torch

    from xrddiff.inference.generators import open_sample_job

    torch.set_num_threads(threads)
    job = open_sample_job(run, [*words, "inference.num_samples=1", "inference.batch_size=1"])
    clock, used = time.monotonic(), time.process_time()
    frames, _ = job.make(slice(0, 1))
    return {
        "seconds": time.monotonic() - clock,
        "cpu": time.process_time() - used,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "pixels": frames["intensity"].shape[1:],
        "threads": threads,
        "steps": job.sampler.evaluations,
        "tile": job.settings.tile and job.settings.tile * job.generator.space.downsampling,
    }


def strips(images: np.ndarray, mask: np.ndarray, lines: list[int], length: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Features of strips of 16 pixels across these lines, in both directions, and the frame of each."""
    rows, frames = [], []
    for turned in (False, True):
        x, m = (images.swapaxes(1, 2), mask.T) if turned else (images, mask)
        for i, image in enumerate(x):
            for line in lines:
                for y in range(0, len(image) - length + 1, length):
                    area = (slice(y, y + length), slice(line - 8, line + 8))
                    if not m[area].all():
                        continue
                    s = np.arcsinh(image[area])
                    across, steps = s - s.mean(), np.abs(np.diff(s, axis=1))
                    rows.append([*across.mean(0), *across.std(0), *steps.mean(0)])
                    frames.append(i)
    return np.array(rows), np.array(frames)


def seam_auc(images: np.ndarray, mask: np.ndarray, tile: int = TILE, overlap: int = 32) -> float:
    """How well the better of two classifiers tells strips across seams from strips between them; .5 is chance."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from xrddiff.diffusion.tiling import corners

    starts = corners(images.shape[1], tile, overlap, 4)
    seams = [(a + tile + b) // 2 for a, b in zip(starts, starts[1:], strict=False)]
    between = [(a + b) // 2 for a, b in zip([tile // 8, *seams], seams, strict=False)]
    x, y, groups = [], [], []
    for label, lines in ((1, seams), (0, between)):
        features, frames = strips(images, mask, lines)
        x.append(features), y.append(np.full(len(features), label)), groups.append(frames)
    x, y, groups = (np.concatenate(v) for v in (x, y, groups))
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)),
        RandomForestClassifier(200, min_samples_leaf=10, random_state=0),
    )
    folds = GroupKFold(min(5, len(images)))
    found = [cross_val_predict(m, x, y, groups=groups, cv=folds, method="predict_proba")[:, 1] for m in models]
    return max(roc_auc_score(y, p) for p in found)


def row(folder: Path, seconds: float, overlap: int = 32) -> dict:
    """What is known of a set of samples on the detector of the training: its report's numbers and its seams."""
    from xrddiff.formats.store import read_store
    from xrddiff.frames.frames import frame_mask

    samples = read_store(folder / "samples.zarr")
    summary = json.loads((folder / "metrics" / "summary.json").read_text())
    ratios = [v["samples / floor"] for v in summary.values() if np.isfinite(v.get("samples / floor") or np.nan)]
    auc = seam_auc(samples["intensity"].values, frame_mask(samples, 0), overlap=overlap)
    return {"cpu": seconds / len(samples["sample"]), "summary": summary, "ratio": float(np.median(ratios)), "auc": auc}


def asked(folder: Path) -> dict:
    """Peaks of samples on the lattice that they were asked for, as counts."""
    from index_rates import index

    from xrddiff.formats.store import read_store
    from xrddiff.frames.frames import frame_count
    from xrddiff.frames.noise import draw_counts
    from xrddiff.metrics.asked_lattices import asked_and_found

    samples = read_store(folder / "samples.zarr").load()
    table, _ = asked_and_found(draw_counts(samples, seed=0))
    return {"asked": table.to_dict(orient="index"), "index": index(samples, frame_count(samples))}


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# Whole detectors by parts", "",
        f"`{found['command']}`; {platform.machine()}, Python {platform.python_version()}. The model: `xrddiff run {' '.join(TRAIN)}`, {found['training']} CPU seconds.", "",
        f"Frames of 512 × 512 pixels (sim-522), drawn in tiles of {TILE} × {TILE} by a model that was trained on windows of that size. *Index*: share of the frames that have a lattice beyond chance, samples and held-out frames. *On the asked lattice*: share of a frame's "
        "peaks, median; in brackets with the lattices exchanged among the frames. *Distance*: median of the report's distances, over that of two sets of real frames. *Seams*: how well a classifier of strips of 16 pixels tells seams from other places (AUC, .5 is chance); "
        f"of held-out frames at the same places {found['real']['auc']:.2f}.", "",
        "| evaluations | overlap | CPU seconds a frame, with its judgement | index | on the asked lattice | peaks | distance | seams |", "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for r in found["rows"]:
        a, other = r["asked"]["samples"], r["asked"]["lattices exchanged"]
        lines.append(
            f"| {r['steps']} | {r['overlap']} | {r['cpu']:.1f} | {r['index']['rate']['value']:.2f} | {a['on_lattice']:.2f} ({other['on_lattice']:.2f}) "
            f"| {a['peaks']:.0f} | {r['ratio']:.2f} | {r['auc']:.2f} |"
        )
    real = found["real"]["index"]
    lines += ["", f"Held-out frames: index {real['rate']['value']:.2f}, {real['peaks']:.0f} peaks a frame.", ""]
    lines += ["## Time and memory of one frame", "", "| pixels | tiles | evaluations | threads | seconds | CPU seconds | MB |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for r in found["single"]:
        size = " × ".join(map(str, r["pixels"]))
        lines.append(
            f"| {size} | {r['tile'] or 'none'} | {r['steps']} | {r['threads']} | {r['seconds']:.1f} | {r['cpu']:.1f} | {r['megabytes']:.0f} |"
        )
    if "large" in found:
        a, other = found["large"]["asked"]["samples"], found["large"]["asked"]["lattices exchanged"]
        lines += ["", f"{found['large']['frames']} frames of 2048 × 2048 pixels, four times as far away, a detector that the model never saw: {a['peaks']:.0f} peaks a frame, {a['on_lattice']:.2f} of them on the asked lattice "
                  f"({other['on_lattice']:.2f} with the lattices exchanged), index {found['large']['index']['rate']['value']:.2f}, seams {found['large']['auc']:.2f}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--draw", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.draw is not None:
        print(json.dumps(draw_here(args.run, args.words, args.draw)))
        return
    from index_rates import index

    from xrddiff.frames.frames import frame_mask, select_frames
    from xrddiff.loading.datasets import prepare_words
    from xrddiff.saved_config import load_config

    run = (args.run or train(args.folder or Path(tempfile.mkdtemp()))).absolute()
    training = run / "cpu_seconds.txt"
    prepared = prepare_words(load_config(run / "config.yaml"))
    real = select_frames(prepared.frames, prepared.held_out[:48]).load()
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/tiles.py --frames {args.frames}",
        "training": training.read_text() if training.exists() else "unknown",
        "real": {"auc": seam_auc(real["intensity"].values, frame_mask(real, 0)), "index": index(real, 48)},
        "rows": [],
        "single": [],
    }

    def keep() -> None:
        (RESULTS / "tiles.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "tiles.md").write_text(page(found))

    few = [f"inference.num_samples={args.frames}", "inference.batch_size=4"]
    for steps, overlap in [*((s, 32) for s in STEPS), *((4, o) for o in OVERLAPS if o != 32)]:
        words = [*few, f"inference.steps={steps}", f"inference.overlap={overlap}"]
        folder, seconds = sample(run, f"steps-{steps}-overlap-{overlap}", *words)
        found["rows"].append({"steps": steps, "overlap": overlap} | row(folder, seconds, overlap) | asked(folder))
        print(folder.name, flush=True)
        keep()
    geometry = run / "large.geom"
    geometry.write_text(LARGE + "\n")
    large = [f"inference.detector={geometry}"]
    for words, threads in ((["inference.steps=4"], 1), (["inference.steps=4", "inference.tile=0"], 1), ([*large, "inference.steps=4"], 1), ([*large, "inference.steps=4"], 2), ([*large, "inference.steps=16"], 2)):  # fmt: skip
        found["single"].append(draw(run, words, threads))
        keep()
    folder, _ = sample(run, "large", *large, "inference.steps=4", "inference.num_samples=4", "inference.batch_size=1")
    from xrddiff.formats.store import read_store

    made = read_store(folder / "samples.zarr")
    found["large"] = {"frames": 4, "auc": seam_auc(made["intensity"].values, frame_mask(made, 0))} | asked(folder)
    keep()


if __name__ == "__main__":
    main()
