"""Are samples of crystals that no training frame had judged with their own cells? `xrddiff evaluate` beside a second indexer that shares nothing with ours (bench/pair_indexer.py).

    OMP_NUM_THREADS=1 python bench/asked_cells.py RUN [inference.WORD=VALUE …] [--frames 48]

RUN is the folder of a run on sim128 that was told lattices (model.condition_maps=[lattice, …]). For each cell, samples are made and judged by the commands that a user types; each frame of both indexers is the same drawn count.
Writes bench/results/asked_cells.json and asked_cells.md.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from harness import XRDDIFF, machine, make_parser, markdown, same_terms, write_results
from pair_indexer import is_indexed, scattering

CELLS = {
    "hexagonal": (35.0, 35.0, 50.0, 90.0, 90.0, 120.0),
    "orthorhombic": (31.0, 44.0, 52.0, 90.0, 90.0, 90.0),
    "triclinic": (29.0, 37.0, 46.0, 82.0, 74.0, 68.0),
    "tetragonal, long axes": (79.0, 79.0, 38.0, 90.0, 90.0, 90.0),
}
TRAINED = (36.0, 44.0, 52.0, 90.0, 90.0, 90.0)  # of sim128


def by_pairs(frames, cell, seed: int) -> np.ndarray:
    """Which of the frames with six peaks or more index by pairs of peaks."""
    from xrddiff.data.frames.geometry import geometry_of
    from xrddiff.data.frames.peaks import find_frame_peaks

    g, rng = geometry_of(frames), np.random.default_rng(seed)
    pixel = g.pixel_size / (g.distance * g.wavelength)  # 1/Å, near the beam
    found = []
    for _, p in find_frame_peaks(frames).groupby("frame"):
        if len(p) < 6:
            continue
        x, y = p["fs"].to_numpy() - g.beam_center[0], p["ss"].to_numpy() - g.beam_center[1]
        s = scattering(x, y, pixel=g.pixel_size, distance=g.distance, wavelength=g.wavelength)
        d_min = 0.97 / np.linalg.norm(s, axis=1).max()
        found.append(is_indexed(s, cell, rng, d_min=d_min, near=0.7 * pixel))
    return np.array(found, bool)


def measure(run: Path, name: str, words: list[str], count: int) -> dict[str, Any]:
    """Sample a cell and judge the samples, as a user would; then index the same frames by pairs."""
    from xrddiff.config.saved_config import load_config
    from xrddiff.data.formats.readers import open_frames
    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.judge.metrics.diversity import wilson_interval

    cell, called = CELLS[name], name.replace(", ", "-").replace(" ", "-")
    asked = f"inference.lattice={{cell: {list(cell)}}}"
    subprocess.run([XRDDIFF, "sample", run, "-n", str(count), "--name", called, asked, *words], check=True)
    judged = [f"inference.index_frames={count}", "inference.limit=250"]
    subprocess.run([XRDDIFF, "evaluate", run, "--samples", called, *judged, *words], check=True)
    summary = json.loads((run / "evaluation" / "metrics" / "summary.json").read_text(encoding="utf-8"))

    frames = open_frames(run / "samples" / called / "samples.zarr").load()
    if frames.attrs["samples_are"] == "expected values":  # the counts that the judge has drawn
        frames = draw_counts(frames, seed=load_config(run / "config.yaml").inference.seed)
    own, trained = by_pairs(frames, cell, 0), by_pairs(frames, TRAINED, 0)
    return {
        "cell": list(cell),
        "frames": count,
        "with peaks": len(own),
        "ours": summary["frames that index"]["samples"],
        "pairs": float(own.mean()),
        "pairs, interval": wilson_interval(float(own.mean()), len(own)),
        "pairs, trained cell": float(trained.mean()),
    }


def page(data: dict[str, Any]) -> str:
    lines = ["# Asked cells that no training frame had", "", data["machine"], ""]
    lines += [
        "Shares of the frames with six peaks or more that index, 95% interval. The judge indexes with the cell that was asked for; the other indexer looks for pairs of peaks and shares no code with it.",
        "The last column is the same indexer given the cell of the training frames.",
        "The judge counts a frame if chance does as well in fewer than one of a thousand; by pairs one counts if three peaks more fit than of any of five turned copies. So frames of six or seven peaks that all fit a lattice with long axes are counted by pairs alone: there chance does as well in one of forty to four hundred.",
        "",
    ]
    head = ["asked for", "Å, °", "frames", "xrddiff evaluate", "by pairs", "interval", "by pairs, trained cell"]
    rows = []
    for name, r in data["cells"].items():
        low, high = r["pairs, interval"]
        share = [f"{r['ours']:.2f}", f"{r['pairs']:.2f}", f"{low:.2f}–{high:.2f}", f"{r['pairs, trained cell']:.2f}"]
        rows.append([name, " ".join(f"{v:g}" for v in r["cell"]), r["with peaks"], *share])
    return "\n".join([*lines, *markdown(head, rows, "llr")])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run that was told lattices")
    parser.add_argument("words", nargs="*", help="inference.WORD=VALUE")
    parser.add_argument("--frames", type=int, default=48, help="of each cell")
    args = parser.parse_args()
    same_terms()
    data = {"machine": machine("python", "torch", f"{args.frames} frames of each cell"), "cells": {}}
    for name in CELLS:
        data["cells"][name] = measure(args.run.absolute(), name, args.words, args.frames)
        print(data["cells"][name], flush=True)
    write_results("asked_cells", page, data)


if __name__ == "__main__":
    main()
