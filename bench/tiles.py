"""Whole detectors by parts: models of 128 x 128 pixels draw 512 x 512 and 2048 x 2048.

    OMP_NUM_THREADS=1 python bench/tiles.py [--folder FOLDER] [--frames 8] [--only windows frames]

`windows` is trained on windows of frames of 512 x 512 pixels (sim-522), and draws such frames. `frames` is trained on whole frames of sim128. Both also draw on detectors that they never saw: as those of their frames, with four or sixteen times as many pixels
along a side, and as many times as far away, so that angles stay. Runs and sets of samples that are in the folder are not made again. Writes bench/results/tiles.json and tiles.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import machine, make_parser, markdown, memory, read_results, same_terms, trained_run, write_results

FEW = ["experiment_type=scratch", "threads=1", "inference.limit=48"]
MODELS = {
    "windows": [*FEW, "model.condition_maps=[lattice,intensity,q]", "model.condition=[background_level]", "data.name=sim-522", "data.limit=400", "data.window=128", "training.num_epochs=12", "model.diff_epochs=40", "inference.num_samples=8", "inference.batch_size=4", "inference.steps=4"],
    "frames": [*FEW, "model.condition_maps=[lattice,q]", "inference.num_samples=16", "inference.batch_size=8", "inference.steps=8", "inference.index_frames=16"],
}  # fmt: skip
TILE = 128
DETECTOR = {"windows": "sim-522", "frames": "sim128"}  # of the training frames
WHOLE = 4_000_000  # pixels of a frame that is also drawn by itself, for time and memory
SETS = {  # (times as many pixels as the training frames and as far away, or a named set with another detector; evaluations, overlap, tile)
    "windows": [
        (None, 4, 32, 128),
        (None, 2, 32, 128),
        (None, 8, 32, 128),
        (None, 4, 0, 128),
        (4, 4, 32, 128),
        ("cspad-lysozyme", 4, 32, 128),
    ],
    "frames": [(4, 4, 32, 128), (16, 4, 32, 128), (4, 8, 32, 128), (4, 2, 32, 128), (4, 4, 32, 0), (4, 16, 32, 128)],
}


def detector(name: str, times: int = 1, farther: float | None = None) -> str:
    """The detector of a named set with so many times as many pixels along a side, and as many times as far away, or `farther` times: a `.geom` file."""
    from xrddiff.physics.simulation.experiments import EXPERIMENTS

    beam, d = EXPERIMENTS[name].beam, EXPERIMENTS[name].detector
    size, (x, y) = times * d.shape[0], d.beam_center
    panel = dict(
        min_fs=0, max_fs=size - 1, min_ss=0, max_ss=size - 1, corner_x=-times * x, corner_y=-times * y, fs="x", ss="y"
    )
    words = dict(
        wavelength=f"{beam.wavelength} A", clen=(farther or times) * d.distance, res=1 / d.pixel_size, adu_per_photon=1
    )
    lines = [f"{name} = {value}" for name, value in words.items()]
    return "\n".join([*lines, *(f"p0/{name} = {value}" for name, value in panel.items())]) + "\n"


def sample(run: Path, name: str, *words: str) -> tuple[Path, float]:
    """The store of a set of samples, drawn unless it is there, and the CPU seconds of a frame."""
    from xrddiff.data.formats.store import save_frames
    from xrddiff.judge.inference.sample_jobs import open_sample_job

    path = run / "tiles" / f"{name}.zarr"
    seconds = path.with_suffix(".txt")
    if not seconds.exists():
        job, before = open_sample_job(run, words), time.process_time()
        frames, _ = job.make(slice(None))
        spent = (time.process_time() - before) / job.count
        path.parent.mkdir(exist_ok=True)
        save_frames(frames.assign_attrs(job.about()), path)
        seconds.write_text(str(spent))
    return path, float(seconds.read_text())


def draw(run: Path, words: list[str], threads: int) -> dict:
    """Time and memory of one frame, in a process of its own."""
    command = [sys.executable, __file__, "--draw", str(threads), str(run), *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw_here(run: Path, words: list[str], threads: int) -> dict:
    """What `draw` starts."""

    from xrddiff.judge.inference.sample_jobs import open_sample_job

    same_terms(threads)
    job = open_sample_job(run, [*words, "inference.num_samples=1", "inference.batch_size=1"])
    clock, used = time.monotonic(), time.process_time()
    frames, _ = job.make(slice(0, 1))
    return {
        "seconds": time.monotonic() - clock,
        "cpu": time.process_time() - used,
        "megabytes": memory() / 1e6,
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

    from xrddiff.learn.diffusion.tiling import corners

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


def measured(path: Path, overlap: int = 32) -> dict:
    """Seams of a set of samples; its peaks, as counts, on the lattice that was asked for; how many index."""
    from index_rates import index

    from xrddiff.data.formats.store import read_store
    from xrddiff.data.frames.frames import frame_count, frame_mask
    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.judge.metrics.physics import asked_and_found

    samples = read_store(path).load()
    table, _ = asked_and_found(draw_counts(samples, seed=0))
    found = {"asked": table.to_dict(orient="index"), "index": index(samples, frame_count(samples))}
    one = samples["intensity"].ndim == 3  # panels are smaller than what is needed to look for seams
    seams = seam_auc(samples["intensity"].values, frame_mask(samples, 0), overlap=overlap) if one else None
    return found | {"auc": seams}


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# Whole detectors by parts", "",
        f"{' and '.join(f'`{c}`' for c in found['commands'].values())}; {machine('python', 'one thread')} unless said.", "",
        "Two models that know 128 × 128 pixels: `windows` was trained on random windows of frames of 512 × 512 pixels (sim-522) and draws such frames; `frames` was trained on whole frames of sim128. Both also draw on detectors that they never saw, with more pixels, "
        "farther away, so that angles stay, and `windows` on the 64 panels of the CSPAD of `cspad-lysozyme`, each in its place. Both were told the lattice and q, `windows` the intensities and the level of the background too. Tiles of 128 px are blended at every evaluation; *none*: the whole frame at once.", "",
        "*Index*: share of the frames that have a lattice beyond chance, with its 95% interval. *On the asked lattice*: share of a frame's peaks, median; in brackets with the lattices exchanged among the frames. *Seams*: how well the better of two classifiers of strips "
        "of 16 pixels tells seams from other places (AUC on frames that it was not fitted on; .5 is chance). A model of whole frames takes each tile for a whole frame.", "",
    ]  # fmt: skip
    rows = []
    for r in found["rows"]:
        a, other = r["asked"]["samples"], r["asked"]["lattices exchanged"]
        size, tiles = " × ".join(map(str, r["pixels"])), r["tile"] or "none"
        cells = [r["model"], size, r["frames"], r["steps"], tiles, r["overlap"], f"{r['cpu']:.1f}", rate(r)]
        cells += [f"{a['on_lattice']:.2f} ({other['on_lattice']:.2f})", f"{a['peaks']:.0f}"]
        rows.append([*cells, "–" if r["auc"] is None else f"{r['auc']:.2f}"])
    head = ["model", "pixels", "frames", "evaluations", "tiles", "overlap", "CPU seconds a frame", "index"]
    lines += markdown([*head, "on the asked lattice", "peaks", "seams"], rows, "llrrlr")
    lines.append("")
    for name, real in found["real"].items():
        lines += [f"Measured frames beside `{name}`, of its training detector: index {rate(real)}, {real['index']['peaks']:.0f} peaks a frame{real['seams']}.", ""]  # fmt: skip
    for name, ratios in found["distances"].items():
        said = ", ".join(f"{distance} {value:.2f}" for distance, value in ratios.items())
        lines += [f"Distances of the samples that the run `{name}` ended with, over their floor: {said}.", ""]
    for r in found["single"]:
        size = " × ".join(map(str, r["pixels"]))
        lines += [f"One frame of {size} pixels from `{r['model']}`, {r['steps']} evaluations, {r['threads']} threads of two cores that had other work too: {r['cpu']:.0f} CPU seconds, {r['seconds']:.0f} seconds by the clock, at most {r['megabytes']:.0f} MB of memory.", ""]  # fmt: skip
    lines += [f"`{name}`: `xrddiff run {' '.join(MODELS[name])}`, {seconds} CPU seconds, {found.get('commits', {}).get(name, 'commit unknown')}.  " for name, seconds in found["training"].items()]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def rate(found: dict) -> str:
    """The index rate with its interval."""
    if "rate" not in found["index"]:
        return "–"
    r = found["index"]["rate"]
    return f"{r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f})"


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=[*MODELS])
    parser.add_argument("--as-is", action="store_true", help="take runs that have not ended as they are")
    parser.add_argument("--draw", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.draw is not None:
        print(json.dumps(draw_here(Path(args.words[0]), args.words[1:], args.draw)))
        return
    from index_rates import index

    from xrddiff.config.plan import saved_plan
    from xrddiff.data.formats.store import read_store
    from xrddiff.data.frames.frames import frame_mask
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.learn.loading.datasets import prepare_planned

    folder = (args.folder or Path(tempfile.mkdtemp())).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = {"commands": {}, "training": {}, "real": {}, "distances": {}, "rows": [], "single": []}
    found |= read_results("tiles", {})
    found["single"] = [r for r in found["single"] if "model" in r]

    def keep() -> None:
        """Write what there is."""
        for path in folder.glob("output/*/*/environment.json"):
            if path.parent.name in MODELS:
                git = json.loads(path.read_text()).get("git") or {}
                said = f"commit {str(git.get('commit'))[:7]}{' with changes' if git.get('dirty') else ''}"
                found.setdefault("commits", {})[path.parent.name] = said
                run, name = path.parent, path.parent.name
                summary = run / "metrics" / "summary.json"
                known = json.loads(summary.read_text()) if summary.exists() else {}
                ratios = {title: row.get("samples / floor of reference frames") for title, row in known.items()}
                found["distances"][name] = {title: v for title, v in ratios.items() if v is not None and np.isfinite(v)}
                seconds = run / "cpu_seconds.txt"
                found["training"][name] = seconds.read_text().strip() if seconds.exists() else "unknown"
        write_results("tiles", page, found)

    for name in args.only:
        run = trained_run(folder, name, MODELS[name], args.as_is)
        found["commands"][name] = f"OMP_NUM_THREADS=1 python bench/tiles.py --only {name} --frames {args.frames}"
        found["rows"] = [r for r in found["rows"] if r["model"] != name]
        prepared = prepare_planned(saved_plan(run))
        real = select_frames(prepared.frames, prepared.held_out[:48]).load()
        seams, side = "", real["intensity"].shape[1]
        if real["intensity"].shape[1] > TILE:
            seams = f"; at the same places, seams {seam_auc(real['intensity'].values, frame_mask(real, 0)):.2f}"
        found["real"][name] = {"index": index(real, 48), "seams": seams}
        for times, steps, overlap, tile in SETS[name]:
            words = [f"inference.steps={steps}", f"inference.overlap={overlap}", f"inference.tile={tile}"]
            named = isinstance(times, str)
            large = not named and times is not None and (times * side) ** 2 > WHOLE
            count, at_once = (2, 1) if large or named else (args.frames, min(4, args.frames))
            words += [f"inference.num_samples={count}", f"inference.batch_size={at_once}"]
            if named:
                words.append(f"inference.detector={times}")
            elif times is not None:
                geometry = run / f"times-{times}.geom"
                geometry.write_text(detector(DETECTOR[name], times))
                words.append(f"inference.detector={geometry}")
            path, seconds = sample(run, f"times-{times or 1}-steps-{steps}-overlap-{overlap}-tile-{tile}", *words)
            made = read_store(path)["intensity"]
            about = {
                "model": name,
                "pixels": made.shape[1:],
                "frames": len(made),
                "steps": steps,
                "overlap": overlap,
                "tile": tile,
            }
            found["rows"].append(about | {"cpu": seconds} | measured(path, overlap))
            print(name, path.name, flush=True)
            keep()
            if large:
                found["single"] = [r for r in found["single"] if r["model"] != name]
                found["single"].append({"model": name} | draw(run, words, 2))
    keep()


if __name__ == "__main__":
    main()
