"""Trains the base model that is in the package: frames of sim128-like detectors that grow photon by photon.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 bench/train_base.py FOLDER [--epochs 3] [--experiments 40] [--seed 0]

Every experiment has a crystal, a distance, a beam and a background of its own; its frames are read with the maps of its own crystals, whose intensities are merged from its frames, as a run does. Stopped, the same command
goes on from the last checkpoint. `--pack` writes what the package needs of the run in FOLDER: averaged weights in bfloat16, the template, and the card with the numbers of its judgement.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import make_parser, same_terms, timed, trained_run
from train_encoder import cell_of

from xrddiff.config.plan import RunPlan, compose_plan, replan, saved_plan
from xrddiff.core.files import sealed_yaml, writing
from xrddiff.core.ranks.rendezvous import initialize_distributed
from xrddiff.core.seeds import numpy_rng
from xrddiff.data.frames.labels import with_labels
from xrddiff.data.frames.selection import evenly_spaced
from xrddiff.judge.inference.model_from_plan import build_generative
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.loading.loader import FrameLoader, epoch_order
from xrddiff.learn.recipes.setup import run_accelerator
from xrddiff.learn.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from xrddiff.physics.indexing.expected_intensities import kept_intensities, with_intensities
from xrddiff.physics.simulation.crystal import Crystal, Wilson
from xrddiff.physics.simulation.experiments import EXPERIMENTS, Background, Beam, Detector, Experiment, Sample
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution.run_folder import complete_run

SIDE, PIXEL, FRAMES, BATCH = 128, 344e-6, 400, 16
GROUPS = ("P 21 21 21", "P 43 21 2", "P 1 21 1", "P 61 2 2", "P 1")
WORDS = [
    "experiment_type=scratch", "model=photons", "data=sim128", f"model.diff_batch_size={BATCH}", "model.diff_lr=2e-3", "model.network_options={widths:[48,96]}",
    "model.condition_maps=[lattice,intensity,q,scattering]", "training.ema_decay=0.998", "inference.guidance_scale=1", "training.condition_dropout=0.03",
]  # fmt: skip
TUNED = ["experiment_type=demo", "data=sim128", "model.diff_epochs=8", "threads=1"]


def random_experiment(number: int, seed: int) -> Experiment:
    """Crystal, beam and detector number `number`: number 0 is `sim128` itself."""
    if number == 0:
        return EXPERIMENTS["sim128"]
    rng = numpy_rng("base", seed, number)
    wavelength, distance = rng.uniform(1.15, 1.35), rng.uniform(0.040, 0.065)
    a, b, c = wavelength * distance / PIXEL / np.exp(rng.uniform(np.log(2.9), np.log(7.0), 3))  # px between spots
    alpha, beta, gamma = rng.uniform(80, 100, 3)
    group = GROUPS[number % len(GROUPS)]
    cell = cell_of(group, (a, b, c), (alpha, beta, gamma))
    blank, multiple = rng.uniform(0.05, 0.25), rng.uniform(0.05, 0.2)
    sample = Sample(
        Crystal(cell, group, Wilson(b_factor=rng.uniform(14, 24), solvent=rng.uniform(0.35, 0.5), seed=number)),
        size=3.0, size_spread=0.35, profile_radius=9e-4 * rng.uniform(0.8, 1.25), mosaicity=1.2e-3 * rng.uniform(0.8, 1.25),
        hits=(blank, 1 - blank - multiple, multiple),
    )  # fmt: skip
    return Experiment(
        f"base {seed} {number}",
        Beam(wavelength, 2.5e10 * np.exp(rng.normal(0, 0.3)), bandwidth=1.5e-3, jitter=5e-4, spread=0.35),
        sample,
        Background(water=rng.uniform(1.5, 5), air=rng.uniform(0.5, 2), ice=2.0, ice_probability=0.05, dark=0.02),
        Detector(
            f"counting pixel array, 344 µm, {number}", "counting", (SIDE, SIDE), PIXEL, distance,
            tuple(SIDE / 2 + rng.uniform(-4, 4, 2)), psf=rng.uniform(0.85, 1.05), saturation=2**20 - 1, beamstop=4.0, bad=3e-4,
        ),
    )  # fmt: skip


class Mixed:
    """Batches from the loaders of several experiments, a few frames of each; all have as many frames."""

    def __init__(self, loaders: list[FrameLoader], batch_size: int, rank: int, world_size: int, seed: int):
        first = loaders[0]
        self.loaders, self.each = loaders, len(first.index)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.shape, self.drop_last, self.name, self.shuffle = first.shape, False, "base", True
        self.index, self.conditions = np.arange(self.each * len(loaders)), first.conditions

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Any]]:
        """This rank's share of each batch of an epoch, from its frame `start` on."""
        order = epoch_order(len(self.index), self.seed, epoch)
        for k in range(start, len(order), self.batch_size):
            yield self.batch(np.array_split(order[k : k + self.batch_size], self.world_size)[self.rank])

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        rows = np.sort(rows)
        experiment, number = np.divmod(rows, self.each)
        parts = [self.loaders[e].batch(self.loaders[e].index[number[experiment == e]]) for e in np.unique(experiment)]
        out = {name: torch.cat([p[name] for p in parts]) for name in ("x", "mask")}
        cond = {name: torch.cat([p["cond"][name] for p in parts]) for name in parts[0]["cond"]}
        return out | {"index": torch.from_numpy(rows.copy()), "cond": cond}


def loader_of(number: int, seed: int, like: FrameLoader, plan: RunPlan, folder: Path) -> FrameLoader:
    """The frames of an experiment, with the conditions of `like` and the maps of the plan; merged intensities are kept in `folder`."""
    names = list(like.conditions)
    frames = with_labels(simulate(random_experiment(number, seed), range(FRAMES), seed).load(), names)
    (own := folder / "merged" / f"{number:03d}").mkdir(parents=True, exist_ok=True)
    frames = with_intensities(frames, kept_intensities(own, frames))
    return FrameLoader(
        frames, like.transform, batch_size=BATCH, multiple=8, prefetch=0, cond=names, maps=plan.data.maps
    )


def train(args: argparse.Namespace) -> None:
    """Train, or go on, on all ranks."""
    initialize_distributed()
    plan = compose_plan([*WORDS, f"training.seed={args.seed}", f"model.diff_epochs={args.epochs}"])
    prepared, accelerator = prepare_planned(plan), run_accelerator(plan.training)
    if accelerator.is_main_process and not (args.folder / "config.yaml").exists():
        complete_run(args.folder, plan)
    accelerator.wait_for_everyone()
    building = build_generative(plan, prepared, accelerator)
    like = building.loaders[0]
    loaders = [loader_of(n, args.seed, like, plan, args.folder) for n in range(args.experiments)]
    mixed = Mixed(loaders, like.batch_size, like.rank, like.world_size, args.seed)
    building.loaders = (mixed, building.loaders[1])
    print(building, building.trainer(args.folder).fit(resume=True), flush=True)


def pack(args: argparse.Namespace) -> None:
    """Write what the package needs of the run: averaged weights in bfloat16, a thousand rows of conditions, the template, and the card."""
    run, out = (
        trained_run(args.folder, "sim128", [*TUNED, f"init={args.folder.absolute()}", f"training.seed={args.seed}"]),
        args.pack,
    )
    checkpoint = load_checkpoint(run)
    state = json.loads(json.dumps(dict(checkpoint.state)).replace(str(args.folder.absolute()), "base"))
    g = dict(state["generator"])
    rows = evenly_spaced(np.arange(len(g["lattices"])), 1000).tolist()
    g["lattices"] = [g["lattices"][i] for i in rows]
    g["conditions"] = {name: [column[i] for i in rows] for name, column in g["conditions"].items()}
    weights = {name: value.bfloat16() for name, value in checkpoint.weights().items()}
    with writing(out, replace=True) as part:
        part.mkdir()
        save_checkpoint(part / "checkpoints", checkpoint.step, {"model": weights}, state | {"generator": g})
        plan = replan(saved_plan(run), {"training.init": None, "output_dir": "output"})  # nothing of this machine
        (part / "plan.yaml").write_text(plan.text, encoding="utf-8")
        (part / "config.yaml").write_text(sealed_yaml(plan.words), encoding="utf-8")
        shutil.copytree(run / "template.zarr", part / "template.zarr")
        (part / "README.md").write_text("\n".join(card(run, checkpoint, args)) + "\n", encoding="utf-8")


def card(run: Path, checkpoint: Checkpoint, args: argparse.Namespace) -> list[str]:
    """The card: data, steps, seconds, and the numbers of the run's own judgement."""
    frames, size = args.experiments * FRAMES, sum(v.numel() for v in checkpoint.weights().values())
    lines = [
        f"# {args.pack.name}, a pretrained model", "",
        f"Frames of 128 × 128 pixels that grow photon by photon, told the maps of a crystal (`model=photons`); {size / 1e6:.2f} M weights in bfloat16.", "",
        f"- Data: {frames} frames that xrddiff simulates, of {args.experiments} experiments, each with a crystal, distance, beam and background of its own; one of them is `sim128`. Simulated, CC0.",
        f"- Training: {load_checkpoint(args.folder).step} steps of {BATCH} frames on each rank, {(args.folder / 'cpu_seconds.txt').read_text().strip()} s of CPU, seed {args.seed}: `torchrun --nproc-per-node 2 bench/train_base.py FOLDER --epochs {args.epochs} --experiments {args.experiments}`; then {checkpoint.step} steps on `sim128` alone, with `--pack`.",
        "- Licence of the weights: Apache-2.0.",
        f"- Weights before they were rounded: checkpoint {checkpoint.sha256}.",
    ]  # fmt: skip
    told = json.loads((run / "metrics" / "summary.json").read_text())
    names = [name for name in ("two-sample AUC", "frames that index") if name in told]
    lines += ["", "| 512 samples beside frames of `sim128` | samples | held-out frames |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {told[name]['samples']:.3f} | {told[name].get('held out') or told[name].get('train | held out'):.3f} |"
        for name in names
    ]
    return [
        *lines,
        "",
        "What the simulation leaves out, the model has not seen either. Frames of detectors unlike these were not tested.",
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3, help="over the frames of all experiments")
    parser.add_argument("--experiments", type=int, default=40, help="crystals with a beam and a detector each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pack",
        type=Path,
        help="write what the package needs of a trained FOLDER here, as xrddiff/judge/pretrained/sim128",
    )
    args = parser.parse_args()
    same_terms()
    if args.pack is not None:
        pack(args)
        return
    _, spent = timed(lambda: train(args))
    if int(os.environ.get("RANK", 0)) == 0:
        before = args.folder / "cpu_seconds.txt"
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        before.write_text(f"{ranks * spent.cpu + (float(before.read_text()) if before.exists() else 0):.0f}\n")


if __name__ == "__main__":
    main()
