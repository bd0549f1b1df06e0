"""What makes grown frames hard to tell? The model of `make demo` with one thing changed at a time, over seeds of its training.

    OMP_NUM_THREADS=1 python bench/growth.py --folder FOLDER [--seeds 5] [--frames 512] [--only "as it is" ...]

Samples of each variant are judged beside fresh frames of the same experiment, which no training has seen, by shot group. What is measured is written at once to FOLDER, so several processes may share the seeds: `--begin 3 --seeds 2`. `--page` alone writes bench/results/growth.json and .md from it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from harness import make_parser, markdown, same_terms, timed, trained_run, write_results

from xrddiff.config.saved_config import run_place
from xrddiff.core.files import write_text, writing
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.judge.metrics.two_sample import GROUPS, two_sample
from xrddiff.learn.training.checkpoints import load_checkpoint, save_checkpoint
from xrddiff.physics.simulation.simulate import simulate

PARTS = f"plugins=[{Path(__file__).with_name('growth_parts.py')}]"
TRAINED = {
    "as it is": [],
    "the guess alone": [PARTS, "model.network=guess_alone"],
    "the network's factor on every pixel": [PARTS, "model.network=every_pixel"],
    "levels not learnt": [PARTS, "model.network=no_levels"],
    "labels do not set levels": [PARTS, "model.network=untold"],
    "without merged intensities": ["model.condition_maps=[lattice,q,scattering]"],
    "without the pretrained model": ["training.init=null"],
}
SAMPLED = {
    "3 evaluations": ["inference.steps=3"],
    "12 evaluations": ["inference.steps=12"],
}
FRESH = range(500_000, 501_000)


def start_of(folder: Path, network: str) -> Path:
    """The pretrained model with its weights taken for those of another network, as a folder to start from."""
    pretrained, out = run_place("pretrained:sim128"), folder / "starts" / network
    if not out.exists():
        with writing(out) as part:
            shutil.copytree(pretrained, part)
            checkpoint = load_checkpoint(pretrained)
            shutil.rmtree(part / "checkpoints")
            state = dict(checkpoint.state)
            state["generator"] = state["generator"] | {"kind": network}
            save_checkpoint(part / "checkpoints", checkpoint.step, {"model": checkpoint.weights()}, state)
    return out.absolute()


def judged(run: Path, words: list[str], n: int, real: tuple[Ruler, np.ndarray, list[str]]) -> dict[str, Any]:
    """The two-sample test of `n` samples that are drawn with these words."""
    ruler, statistics, units = real
    job = open_sample_job(run, [*words, f"inference.num_samples={n}"])
    (samples, _), spent = timed(lambda: job.make(slice(None)))
    test = two_sample(statistics, ruler.measure(samples).statistics, units=(units, [f"sample {i}" for i in range(n)]))
    return {"table": {name: row.to_dict() for name, row in test.table.iterrows()}, "draw": spent.cpu / n}


def page(rows: dict[str, Any]) -> list[str]:
    """The table: mean ± standard deviation over seeds."""
    lines = [
        "# Frames that grow photon by photon, with one thing changed", "",
        f"`python bench/growth.py`: {rows['frames']} samples beside {len(FRESH)} fresh frames of the demo's experiment. AUC of a classifier, 0.5 is chance: mean ± standard deviation over seeds of the training; the last column is the time of a sample.", "",
    ]  # fmt: skip
    cells = []
    for name in [n for n in (*TRAINED, *SAMPLED) if n in rows["variants"]]:
        own = list(rows["variants"][name].values())
        aucs = [[r["table"][g]["auc"] for r in own] for g in ("all", *GROUPS)]
        told = [f"{mean(a):.2f} ± {stdev(a):.2f}" if len(a) > 1 else f"{a[0]:.2f}" for a in aucs]
        cells.append([name, len(own), *told, f"{mean(r['draw'] for r in own):.2f}"])
    lines += markdown(["variant", "seeds", "AUC", *GROUPS, "CPU s"], cells)
    lines += [
        "",
        "Words of the variants, beside `experiment_type=demo`; networks are of the plug-in `bench/growth_parts.py`:",
        "",
    ]
    told = {name: " ".join(word for word in words if word != PARTS) for name, words in (TRAINED | SAMPLED).items()}
    return lines + [f"- {name}: `{words}`" for name, words in told.items() if words]


def measure(args: argparse.Namespace) -> None:
    """Train and judge what is not there yet."""
    shots = np.array(FRESH)
    fresh = simulate("demo", shots, seed=1).load()
    ruler = Ruler(fresh.isel(frame=slice(0, 300)))
    real = ruler, ruler.measure(fresh, numbers=shots).statistics, fresh["shot_group"].values.astype(str).tolist()
    for seed in range(args.begin, args.begin + args.seeds):
        for name in (*TRAINED, *SAMPLED):
            path = args.folder / f"{name}, seed {seed}.json"
            if path.exists() or args.only and name not in args.only:
                continue
            place = re.sub("[^a-z0-9]+", "-", f"{name if name in TRAINED else 'as it is'} {seed}")
            few = [f"training.seed={seed}", "threads=1", "inference.num_samples=4", "inference.index_frames=0"]
            words = TRAINED.get(name, [])
            own = [w.removeprefix("model.network=") for w in words if w.startswith("model.network=")]
            starts = [f"training.init={start_of(args.folder, network)}" for network in own]
            run = trained_run(args.folder, place, ["experiment_type=demo", *few, *words, *starts])
            plugins = [w for w in words if w == PARTS]
            found = judged(run, [*plugins, *SAMPLED.get(name, [])], args.frames, real)
            write_text(path, json.dumps(found) + "\n")
            print(name, seed, round(found["table"]["all"]["auc"], 3), flush=True)


def main() -> None:
    parser = make_parser(__doc__, folder=Path("growth"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--begin", type=int, default=0, help="the first seed")
    parser.add_argument("--frames", type=int, default=512, help="samples of each variant")
    parser.add_argument("--only", nargs="*", help="variants")
    parser.add_argument("--page", action="store_true", help="write the table of what is there")
    args = parser.parse_args()
    same_terms()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.page:
        measure(args)
    variants: dict[str, Any] = {}
    for path in sorted(args.folder.glob("*, seed *.json")):
        name, seed = path.stem.split(", seed ")
        variants.setdefault(name, {})[seed] = json.loads(path.read_text())
    print(write_results("growth", page, {"frames": args.frames, "variants": variants}))


if __name__ == "__main__":
    main()
