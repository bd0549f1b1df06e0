"""Does it help to know the lattice when a gap is filled? Frames with a covered third, filled by a model that is told their lattice and by the same model without.

    OMP_NUM_THREADS=1 python bench/filling.py RUN [--frames 16] [--steps 32]

RUN was trained with model.condition_maps=[lattice, …], such as that of `make demo`. The lattice comes from indexing what is not covered; the truth says what is right. Writes bench/results/filling.json and filling.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from harness import machine, make_parser, markdown, same_terms, write_results


def spots(ds, hole: np.ndarray) -> dict[str, float]:
    """Of the peaks in the hole: their number in a frame, and the share that is on the true lattice."""
    from xrddiff.data.frames.peaks import find_frame_peaks
    from xrddiff.physics.indexing.known_lattices import known_lattices

    peaks = find_frame_peaks(ds)
    inside = peaks[hole[peaks["ss"].astype(int), peaks["fs"].astype(int)]]
    found = known_lattices(ds, peaks=inside)
    on = sum(own[0].indexed.sum() for own in found.lattices.values() if own)
    return {"peaks": len(inside) / ds.sizes["frame"], "on_lattice": float(on / max(len(inside), 1))}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    args = parser.parse_args()

    from xrddiff.config.saved_config import load_config
    from xrddiff.data.formats.store import save_frames
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.judge.inference.measured import open_inpainting
    from xrddiff.learn.loading.datasets import prepare_words

    same_terms()
    prepared, folder = prepare_words(load_config(args.run / "config.yaml")), Path(tempfile.mkdtemp())
    single = [i for i in prepared.held_out if prepared.frames["crystals"].values[i] == 1][: args.frames]
    real = select_frames(prepared.frames, single).load()
    hole = np.zeros(real["intensity"].shape[1:], bool)
    hole[:, -hole.shape[1] // 3 :] = True
    truth = {name: real[name] for name in ("cell", "orientation")}
    path = save_frames(real.drop_vars([*truth]), folder / "measured.h5")
    np.save(folder / "mask.npy", ~hole)
    words = [f"inference.steps={args.steps}", "inference.guidance_scale=1", "inference.batch_size=4"]
    rows = {"measured, not covered": spots(real, hole)}
    for name in ("told the lattice", "not told"):
        job = open_inpainting(args.run, words, frames=path, mask=folder / "mask.npy", draws=1)
        if name == "not told":
            job.told = (job.frames, {})
        made = job.make()[0].drop_vars([*truth], errors="ignore")
        x = made["intensity"].values
        drawn = np.random.default_rng(0).poisson(np.maximum(x, 0))  # the model fills in expected counts
        values = np.where(hole & job.holes[0], drawn, x).astype(np.float32)
        known = job.told[0]
        found = float(np.isfinite(known["cell"].values).all(-1).any(-1).mean()) if "cell" in known else 0.0
        rows[name] = spots(
            made.assign(intensity=(made["intensity"].dims, values, made["intensity"].attrs), **truth), hole
        )
        rows[name]["indexed"] = found
    lines = [
        "# Filling a gap with and without the lattice", "",
        f"`OMP_NUM_THREADS=1 python bench/filling.py RUN --frames {args.frames} --steps {args.steps}`; {machine('python', 'one thread')}. RUN is that of `make demo`.", "",
        f"{len(single)} held-out stills with one crystal, a third of each covered and filled. *Indexed*: share of the frames whose lattice was found from what was not covered. *On the true lattice*: share of the peaks in the covered third.", "",
    ]  # fmt: skip
    cells = []
    for name, r in rows.items():
        indexed = f"{r['indexed']:.2f}" if "indexed" in r else ""
        cells.append([name, indexed, f"{r['peaks']:.1f}", f"{r['on_lattice']:.2f}"])
    lines += markdown(["covered third", "indexed", "peaks a frame", "on the true lattice"], cells)
    write_results("filling", lines, rows)


if __name__ == "__main__":
    main()
