"""Fewer steps from a trained model: a denoiser of simulated frames, trained further on a measured frame, against one from scratch.

    OMP_NUM_THREADS=1 python bench/finetune.py [--steps 240] [--source-steps 600] [--seeds 3] [--folder FOLDER]

The source is a small U-Net trained on crops of simulated stills (sim128). The target is crops of the lysozyme still of the CSPAD, a detector and a beamline that the source has never seen. Runs on the target differ in nothing but the weights that they begin with; both
kinds measure the loss of the same held-out crops with the same noise. `--folder` keeps the runs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from harness import cpu_seconds, machine, make_parser, markdown, write_results

WORDS = [
    "model=ddpm",
    "size=tiny",
    "data.patch=32",
    "data.patch_limit=640",
    "training.batch_size=16",
    "training.lr=1e-3",
    "training.ema_decay=0.99",
]
WORDS += ["threads=1", "training.num_epochs=1000", "training.checkpoint_every=100000"]
SOURCE = ["data=sim128", "data.limit=400"]
TARGET = ["data=cspad", "training.validate_every=10"]


def train(folder: Path, *words: str) -> dict:
    """Train a model in `folder` as the run notebook does, without samples; held-out losses by step."""
    from xrddiff.config.composition import compose_config
    from xrddiff.config.saved_config import to_yaml
    from xrddiff.judge.inference.building import build_generative
    from xrddiff.learn.loading.datasets import prepare_words
    from xrddiff.learn.recipes.setup import run_accelerator

    cfg = compose_config([*WORDS, *words])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(cfg))
    before = cpu_seconds(children=False)
    building = build_generative(cfg, prepare_words(cfg), run_accelerator(cfg.training))
    result = building.trainer(folder).fit(resume=True)
    rows = pd.read_csv(folder / "metrics" / "training_metrics.csv")
    held_out = rows[rows.split == "validation"]
    return {
        "step": held_out.step.tolist(),
        "loss": held_out.loss.tolist(),
        "frames": [len(building.prepared.train), len(building.prepared.held_out)],
        "steps": result.step,
        "cpu_seconds": cpu_seconds(children=False) - before,
    }


def first_step(steps: list[int], losses: list[float], target: float) -> int | None:
    """The first step from which the loss is at most `target`, or None."""
    return next((s for s, loss in zip(steps, losses, strict=True) if loss <= target), None)


def summarise(found: dict) -> dict:
    """For each seed, the loss of the model from scratch after all its steps and at half of them, and the steps to reach it."""
    rows = []
    for seed, pair in found["seeds"].items():
        for share in (0.25, 0.5, 1.0):
            scratch, begun = pair["scratch"], pair["init"]
            at = max(i for i, s in enumerate(scratch["step"]) if s <= share * scratch["steps"])
            loss = min(scratch["loss"][: at + 1])
            rows.append(
                dict(seed=int(seed), loss=loss, scratch=first_step(scratch["step"], scratch["loss"], loss),
                     init=first_step(begun["step"], begun["loss"], loss), share=share)
            )  # fmt: skip
    return {"rows": rows}


def table(found: dict, command: str) -> str:
    """The results as a page."""
    seeds, any_run = found["seeds"], next(iter(found["seeds"].values()))
    lines = [
        "# Fine-tuning",
        "",
        f"`{command}`; {found['machine']}, one thread, {found['cpu_seconds']:.0f} s of CPU.",
        "",
    ]
    train_frames, held_out = any_run["init"]["frames"]
    lines += [
        f"A denoiser (ddpm, tiny, crops of 32 x 32) was trained for {found['source']['steps']} steps on simulated stills (sim128). "
        f"Then it was trained on {train_frames} crops of a measured still (CSPAD, lysozyme) with `init=RUN`, and so was one from scratch, with the same frames, noise and settings. "
        f"Loss: of the averaged weights on {held_out} other crops of the still. It was measured every 10 steps. All crops are of one still, and the steps of the source are not counted. Steps until it was first as low as the best that the model from scratch had reached by a quarter, a half and the end of its steps:",
        "",
    ]
    rows = [
        [row["seed"], f"{row['loss']:.3f}", row["scratch"], "not reached" if row["init"] is None else row["init"]]
        for row in found["rows"]
    ]
    lines += markdown(["seed", "held-out loss", "steps from scratch", "steps with `init`"], rows, "r")
    best = {kind: [min(pair[kind]["loss"]) for pair in seeds.values()] for kind in ("scratch", "init")}
    ends = "; ".join(
        f"{name} {np.mean(best[kind]):.3f} ({min(best[kind]):.3f} to {max(best[kind]):.3f})"
        for name, kind in (("from scratch", "scratch"), ("with `init`", "init"))
    )
    lines += [
        "",
        f"Lowest held-out loss within {any_run['init']['steps']} steps, mean and range over seeds: {ends}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--steps", type=int, default=240, help="steps on the measured frame")
    parser.add_argument("--source-steps", type=int, default=600, help="steps on simulated frames")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = (given.folder or Path(place)).absolute()
        source = train(folder / "source", *SOURCE, f"training.max_steps={given.source_steps}")
        found: dict = {
            "source": source,
            "seeds": {},
            "machine": machine("python"),
        }
        for seed in range(given.seeds):
            words = [*TARGET, f"training.max_steps={given.steps}", f"training.seed={seed}"]
            scratch = train(folder / f"scratch-{seed}", *words)
            begun = train(folder / f"init-{seed}", *words, f"init={folder / 'source'}")
            found["seeds"][str(seed)] = {"scratch": scratch, "init": begun}
    found |= summarise(found) | {"cpu_seconds": cpu_seconds(children=False)}
    command = f"OMP_NUM_THREADS=1 python bench/finetune.py --steps {given.steps} --source-steps {given.source_steps} --seeds {given.seeds}"
    print(write_results("finetune", lambda found: table(found, command), found))


if __name__ == "__main__":
    main()
