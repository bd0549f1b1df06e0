"""What makes generated stills index? The demo's model with one thing changed at a time: in its training, and in how it is sampled.

    OMP_NUM_THREADS=1 python bench/ablations.py [--folder FOLDER] [--frames 64] [--only base "narrow map"]

Each variant is `experiment_type=scratch` with the words of its row, trained on one core; those that keep the latent take the autoencoder of the first. Then the first is sampled with other numbers of evaluations and other guidance. `--folder` keeps the runs and goes on
with those that are there. Writes bench/results/ablations.json and ablations.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import index_rates
import numpy as np
from harness import machine, make_parser, markdown, read_results, write_results

TRAINED = {
    "base": [],
    "lattice only": ["model.condition_maps=[lattice]"],
    "no maps": ["model.condition_maps=[]"],
    "narrow map": ["model.condition_map_options={lattice: {wider: 1.0}}"],
    "wide map": ["model.condition_map_options={lattice: {wider: 4.0}}"],
    "2 latent channels": ["model.latent_channels=2"],
    "4 latent channels": ["model.latent_channels=4"],
}
SAMPLED = {
    **{f"{n} evaluations": [f"inference.steps={n}"] for n in (1, 2, 4, 8, 32)},
    **{f"guidance {g}": [f"inference.guidance_scale={g}"] for g in (1, 1.5, 2, 3)},
}
DISTANCES = ("radial profile", "intensity histogram", "peak count", "pairwise diversity", "encoder features (Fréchet)")


def words_of(name: str, folder: Path) -> list[str]:
    """The words of a variant; the autoencoder of the first one where the latent is the same."""
    words = [
        "experiment_type=scratch",
        "inference.num_samples=96",
        "inference.batch_size=32",
        "inference.steps=16",
        *TRAINED[name],
    ]
    if name != "base" and not any(w.startswith("model.latent_channels") for w in words):
        base = next(folder.glob("output/*/base"))
        words += [f"training.pretrained_vae_path={base / 'autoencoder'}"]
    return words


class Judge:
    """Measures samples against the frames that they were learnt from; real frames are measured once.

    prepared: the frames. most: of each part. indexed: samples that are indexed.
    """

    def __init__(self, prepared: Any, most: int, indexed: int):
        from xrddiff.data.frames.selection import select_frames
        from xrddiff.judge.metrics.judgement import judged_rows
        from xrddiff.judge.metrics.set_summaries import Ruler

        rows = judged_rows(prepared.train, prepared.held_out, most)
        self.ruler, self.indexed = Ruler(select_frames(prepared.frames, rows["held out"])), indexed
        self.real = {
            name: self.ruler.measure(select_frames(prepared.frames, at), numbers=at) for name, at in rows.items()
        }

    def __call__(self, samples: Any, told: bool) -> dict[str, Any]:
        """What is said of these frames; `told`: they were asked for a lattice, and are indexed. Expected counts are drawn."""
        from xrddiff.data.frames.noise import draw_counts
        from xrddiff.judge.metrics.distribution import DISTANCES as names
        from xrddiff.judge.metrics.judgement import judge_summaries, title_of
        from xrddiff.judge.metrics.physics import asked_and_found

        expected = samples.attrs["samples_are"] == "expected values"
        measured = self.ruler.measure(samples, draw=0 if expected else None)
        judged = judge_summaries(self.real | {"samples": measured}, self.ruler)
        found: dict[str, Any] = {"ratio": {title_of(d): float(judged.ratio(d)) for d in names}}
        if told:
            counts = draw_counts(samples, seed=0) if expected else samples
            table = asked_and_found(counts)[0].to_dict(orient="index")
            found |= {"index": index_rates.index(samples, self.indexed), "asked": table.get("samples", {})}
        return found


_judges: dict[str, Judge] = {}  # of the frames that were judged so far


def measure(run: Path, words: list[str], frames: int) -> dict:
    """Samples of a run, drawn with these words: how many index, on the lattice that they were asked for, and distances over the floor."""
    from xrddiff.judge.inference.sample_jobs import open_sample_job
    from xrddiff.learn.loading.datasets import prepare_planned

    job = open_sample_job(run, [*words, "inference.num_samples=96", "inference.batch_size=32"])
    before = time.process_time()
    samples, _ = job.make(slice(None))
    seconds = (time.process_time() - before) / job.plan.sampling.num_samples
    samples = samples.assign_attrs(job.about())
    key = repr((job.plan.data, frames))
    if key not in _judges:
        _judges[key] = Judge(prepare_planned(job.plan, job.generator.transform), 500, frames)
    found = _judges[key](samples, "lattice" in used(job))
    if "index" not in found:
        found |= {"index": index_rates.index(samples, frames), "asked": {}}
    return {"evaluations": job.sampler.evaluations, "draw": seconds} | found


def used(job) -> list[str]:
    """The condition maps of the model that a job samples."""
    return list(job.plan.data.maps)


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# What makes samples index", "",
        f"`{found['command']}`; {machine('python', 'one thread')}.", "",
        "`make demo` with one thing changed at a time: first in training, then in sampling of the first run. *Index*: share of the samples with enough peaks that have a lattice beyond chance, with its 95% interval. *On the asked lattice*: share of a frame's peaks, median. "
        "The other columns are distances of 96 samples from held-out frames, over the floor.", "",
    ]  # fmt: skip
    rows = []
    for name in [*TRAINED, *SAMPLED]:
        if name not in found["rows"]:
            continue
        r = found["rows"][name]
        rate, asked = r["index"].get("rate", {}), r["asked"].get("on_lattice")
        share = f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})" if rate and np.isfinite(rate["value"]) else "–"  # fmt: skip
        cells = [name, f"{r['cpu'] / 60:.1f}" if r.get("cpu") else "", r["evaluations"], f"{r['index']['peaks']:.0f}", share, "–" if asked is None else f"{asked:.2f}"]  # fmt: skip
        cells += [f"{r['ratio'][d]:.2f}" if d in r["ratio"] else "–" for d in DISTANCES]
        rows.append(cells)
    head = ["variant", "CPU minutes", "evaluations", "peaks", "index", "on the asked lattice", *DISTANCES]
    lines += markdown(head, rows)
    lines += ["", "Words of the variants, beside `experiment_type=scratch`:", ""]
    lines += [f"- {name}: `{' '.join(words)}`" for name, words in (TRAINED | SAMPLED).items() if words and name in found["rows"]]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=[*TRAINED, *SAMPLED], default=[*TRAINED, *SAMPLED])
    args = parser.parse_args()
    found = read_results("ablations", {"rows": {}})
    found["command"] = f"OMP_NUM_THREADS=1 python bench/ablations.py --frames {args.frames}"

    def keep(name: str, row: dict) -> None:
        found["rows"][name] = row
        write_results("ablations", page, found)
        print(name, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        index_rates.DATA, base = ["threads=1", "inference.index_frames=0"], None
        for name in [n for n in TRAINED if n in args.only or n == "base"]:
            index_rates.MODELS[name] = words_of(name, folder)
            run = index_rates.train(name, folder)
            base = base or run
            if name in args.only:
                seconds = float((run / "cpu_seconds.txt").read_text())
                keep(name, {"cpu": seconds} | measure(run, [], args.frames))
        for name in [n for n in SAMPLED if n in args.only]:
            keep(name, measure(base, SAMPLED[name], args.frames))


if __name__ == "__main__":
    main()
