"""What makes grown frames hard to tell? A model with one thing changed at a time, over seeds of its training.

    OMP_NUM_THREADS=1 python bench/growth.py --folder FOLDER [--seeds 5] [--frames 512] [--only "as it is" ...]
    OMP_NUM_THREADS=1 XRDDIFF_DATA=DATA python bench/growth.py --measured --folder FOLDER [--seeds 1] [--only ...]

The model of `make demo`: samples of each variant are judged beside fresh frames of the same experiment, which no training has seen, by shot group. With `--measured`: a model of windows of every other exposure of the thaumatin_grid_* frames of dials-data in DATA, beside windows of the exposures between them, by exposure.

What is measured is written at once to FOLDER, so several processes may share the seeds: `--begin 3 --seeds 2`. `--page` alone writes bench/results/growth.json and .md from it, with `--measured` growth_measured.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from harness import make_parser, markdown, measured_frames, same_terms, timed, trained_run, write_results
from twin import CELL, GROUP

from xrddiff.config.plan import compose_plan
from xrddiff.config.saved_config import run_place
from xrddiff.core.files import write_text, writing
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.inference.twins import TwinPlan
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.judge.metrics.two_sample import GROUPS, two_sample
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.training.checkpoints import load_checkpoint, save_checkpoint
from xrddiff.physics.indexing.known_lattices import with_lattices
from xrddiff.physics.simulation.simulate import simulate

PARTS = f"plugins=[{Path(__file__).with_name('growth_parts.py')}]"
FRESH = np.arange(500_000, 501_000)
# the ruler; the statistics of frames that no training has seen, and their units
Real = tuple[Ruler, np.ndarray, list[str]]


def fresh_frames() -> Real:
    """Of the demo's experiment."""
    fresh = simulate("demo", FRESH, seed=1).load()
    ruler, units = Ruler(fresh.isel(frame=slice(0, 300))), fresh["shot_group"].values.astype(str).tolist()
    return ruler, ruler.measure(fresh, numbers=FRESH).statistics, units


def measured_windows(number: int = 900) -> Real:
    """Of the exposures that are held out; as samples are, without a gap of the detector. Writes learnt.zarr and held.zarr."""
    halves = {}
    if not Path("held.zarr").exists():
        files = sorted(str(path) for path in measured_frames().glob("thaumatin_grid_*.cbf*"))
        if not files:
            raise SystemExit("XRDDIFF_DATA has no thaumatin_grid_*.cbf; expected the folder of those frames")
        plan = TwinPlan(files, CELL, group=GROUP)
        halves = dict(zip(("learnt", "held"), plan.halves(plan.open()), strict=True))
    for name, half in halves.items():
        save_frames(with_lattices(half.load(), CELL), f"{name}.zarr")

    def windows(name: str) -> Any:
        found = prepare_planned(compose_plan([word.replace("learnt.zarr", f"{name}.zarr") for word in MEASURED.base]))
        rows = np.random.default_rng(0).choice(np.concatenate([found.train, found.held_out]), number, replace=False)
        frames = select_frames(found.frames, np.sort(rows)).load()
        return frames.isel(frame=frames["mask"].values.mean((1, 2)) > 0.985)

    held, ruler = windows("held"), Ruler(windows("learnt"))
    return ruler, ruler.measure(held).statistics, held["frame_source"].values.astype(str).tolist()


@dataclass(frozen=True)
class Variants:
    """The words of a model, and variants of it: with words of another training, or of another sampling."""

    page: str
    title: str
    beside: str
    base: Sequence[str]
    trained: Mapping[str, Sequence[str]]
    sampled: Mapping[str, Sequence[str]]
    real: Callable[[], Real]

    def __iter__(self) -> Iterator[str]:
        return iter((*self.trained, *self.sampled))


DEMO = Variants(
    "growth",
    "Frames that grow photon by photon, with one thing changed",
    f"{len(FRESH)} fresh frames of the demo's experiment",
    ["experiment_type=demo"],
    {
        "as it is": [],
        "the guess alone": [PARTS, "model.network=guess_alone"],
        "the network's factor on every pixel": [PARTS, "model.network=every_pixel"],
        "levels not learnt": [PARTS, "model.network=no_levels"],
        "labels do not set levels": [PARTS, "model.network=untold"],
        "without merged intensities": ["model.condition_maps=[lattice,q,scattering]"],
        "without the pretrained model": ["training.init=null"],
    },
    {"3 evaluations": ["inference.steps=3"], "12 evaluations": ["inference.steps=12"]},
    fresh_frames,
)
MEASURED = Variants(
    "growth_measured",
    "Windows of measured exposures that grow photon by photon, with one thing changed",
    "windows of exposures of thaumatin that it has not learnt from, by exposure",
    [
        "experiment_type=demo", "data.data_path=learnt.zarr", "data.window=128", "data.limit=null",
        "model.condition=[background_level,spot_level]", "model.diff_epochs=2",
        "model.condition_map_options={lattice: {sigma: 1.5}, intensity: {sigma: 1.5}}",
    ],
    {"as it is": []},
    {
        "counts by Poisson's law": ["inference.sampler_options={scatter: 1}"],
        "24 evaluations": ["inference.steps=24"],
        "36 evaluations, from fourteen octaves on": ["inference.steps=36", "inference.schedule_options={grown: 14}"],
    },
    measured_windows,
)  # fmt: skip


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


def judged(run: Path, words: list[str], n: int, real: Real) -> dict[str, Any]:
    """The two-sample test of `n` samples that are drawn with these words."""
    ruler, statistics, units = real
    job = open_sample_job(run, [*words, f"inference.num_samples={n}"])
    (samples, _), spent = timed(lambda: job.make(slice(None)))
    test = two_sample(statistics, ruler.measure(samples).statistics, units=(units, [f"sample {i}" for i in range(n)]))
    return {"table": {name: row.to_dict() for name, row in test.table.iterrows()}, "draw": spent.cpu / n}


def page(of: Variants, rows: dict[str, Any]) -> list[str]:
    """The table: mean ± standard deviation over seeds."""
    command = f"python bench/growth.py{' --measured' if of is MEASURED else ''}"
    lines = [
        f"# {of.title}", "",
        f"`{command}`: {rows['frames']} samples beside {of.beside}. AUC of a classifier, 0.5 is chance: mean ± standard deviation over seeds of the training, with one seed the interval of the test; the last column is the time of a sample.", "",
    ]  # fmt: skip
    cells = []
    for name in [n for n in of if n in rows["variants"]]:
        own = list(rows["variants"][name].values())
        aucs = [[r["table"][g]["auc"] for r in own] for g in ("all", *GROUPS)]
        told = [f"{mean(a):.2f} ± {stdev(a):.2f}" if len(a) > 1 else f"{a[0]:.2f}" for a in aucs]
        if len(own) == 1:
            told[0] += " ({low:.2f} to {high:.2f})".format(**own[0]["table"]["all"])
        cells.append([name, len(own), *told, f"{mean(r['draw'] for r in own):.2f}"])
    lines += markdown(["variant", "seeds", "AUC", *GROUPS, "CPU s"], cells)
    words = {name: " ".join(w for w in words if w != PARTS) for name, words in (of.trained | of.sampled).items()}
    lines += ["", f"Words of the variants, beside `{' '.join(of.base)}`" + ("; networks are of the plug-in `bench/growth_parts.py`:" if of is DEMO else ":"), ""]  # fmt: skip
    return lines + [f"- {name}: `{w}`" for name, w in words.items() if w]


def measure(of: Variants, args: argparse.Namespace) -> None:
    """Train and judge what is not there yet, in the folder."""
    real = of.real()
    for seed in range(args.begin, args.begin + args.seeds):
        for name in of:
            path = Path(f"{name}, seed {seed}.json")
            if path.exists() or args.only and name not in args.only:
                continue
            place = re.sub("[^a-z0-9]+", "-", f"{name if name in of.trained else 'as it is'} {seed}")
            few = [f"training.seed={seed}", "threads=1", "inference.num_samples=4", "inference.index_frames=0"]
            words = of.trained.get(name, [])
            own = [w.removeprefix("model.network=") for w in words if w.startswith("model.network=")]
            starts = [f"training.init={start_of(Path(), network)}" for network in own]
            run = trained_run(Path(), place, [*of.base, *few, *words, *starts])
            plugins = [w for w in words if w == PARTS]
            found = judged(run, [*plugins, *of.sampled.get(name, [])], args.frames, real)
            write_text(path, json.dumps(found) + "\n")
            print(name, seed, round(found["table"]["all"]["auc"], 3), flush=True)


def main() -> None:
    parser = make_parser(__doc__, folder=Path("growth"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--begin", type=int, default=0, help="the first seed")
    parser.add_argument("--frames", type=int, default=512, help="samples of each variant")
    parser.add_argument("--only", nargs="*", help="variants")
    parser.add_argument("--page", action="store_true", help="write the table of what is there")
    parser.add_argument("--measured", action="store_true", help="of measured windows, in place of the demo")
    args = parser.parse_args()
    same_terms()
    args.folder.mkdir(parents=True, exist_ok=True)
    of, variants = MEASURED if args.measured else DEMO, {}
    with chdir(args.folder):
        if not args.page:
            measure(of, args)
        for path in sorted(Path().glob("*, seed *.json")):
            name, seed = path.stem.split(", seed ")
            variants.setdefault(name, {})[seed] = json.loads(path.read_text())
    print(write_results(of.page, partial(page, of), {"frames": args.frames, "variants": variants}))


if __name__ == "__main__":
    main()
