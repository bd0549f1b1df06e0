"""How good is the autoencoder, against principal components, against per-image min-max, and against a second measurement?

`python bench/quality.py` runs `xrddiff run` for each row, reads the tables that the runs leave, and writes bench/results/quality.md and .json:
on simulated stills all rows have the same budget (1000 training frames of sim128, 5 epochs, 1024 latent values per frame); on real frames
(Pilatus reflectivity) whole stretches of the series are held out. About an hour of two cores; `--only sim128` or `--only pilatus` for one of them.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from harness import XRDDIFF, make_parser, markdown, read_results, write_results

FEW_STEPS = [
    "training.lr=3e-3",
    "training.lr_schedule=cosine",
    "training.lr_warmup_steps=30",
    "training.ema_decay=0.99",
    "training.batch_size=4",
]
SETS = {
    "sim128": (
        "Simulated stills, 128 × 128, 1024 latent values per frame",
        [
            "model=vae_kl",
            "experiment_type=scratch",
            "data.limit=1250",
            "training.num_epochs=5",
            "model.latent_channels=1",
        ],
        {
            "VAE, asinh": [],
            "VAE, per-image min-max": ["data.transform=minmax"],
            "VAE, asinh, learning rate 1e-4": [
                "training.lr=1e-4",
                "training.lr_schedule=constant",
                "training.lr_warmup_steps=0",
            ],
        },
    ),
    "pilatus": (
        "Real frames, Pilatus 100k, reflectivity, stretches of the series held out",
        ["data=pilatus", "training.num_epochs=12", *FEW_STEPS],
        {"VAE, negative binomial": ["training.recons_loss=negative_binomial"], "VAE, iwmse": []},
    ),
}
COLUMNS = [
    "precision",
    "recall",
    "f1",
    "drawn_f1",
    "intensity_cc",
    "poisson_deviance",
    "profile_distance",
    "scaled_mse",
    "mse",
]


def run(name: str, words: list[str], folder: Path) -> dict[str, dict]:
    """The table that one run leaves: rows by name."""
    if next(folder.rglob(f"{name}/metrics/held_out.json"), None) is None:
        subprocess.run([XRDDIFF, "run", *words, f"run_name={name}", f"output_dir={folder}"], check=True, cwd=folder)
    return json.loads(next(folder.rglob(f"{name}/metrics/held_out.json")).read_text())


def on_training_frames(run: Path) -> dict[str, float]:
    """The scores of the autoencoder of a run on as many of its training frames as it was judged on: what it fits, whatever it makes of scans that it never saw."""
    import numpy as np

    from xrddiff.config.plan import saved_plan
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.judge.metrics.reconstruction import autoencoder_codec, reconstruct_frames, score_frames
    from xrddiff.learn.loading.datasets import prepare_planned
    from xrddiff.learn.recipes.latents import open_autoencoder

    prepared, net = prepare_planned(saved_plan(run)), open_autoencoder(run)
    few = np.linspace(0, len(prepared.train) - 1, len(prepared.held_out)).round().astype(int)
    loader = prepared.loader(prepared.train[few], batch_size=8, multiple=net.downsampling, shuffle=False)
    made, _ = reconstruct_frames(autoencoder_codec(net.eval()), loader)
    return score_frames(select_frames(prepared.frames, prepared.train[few]).load(), made, transform=prepared.transform)


def measure(name: str, folder: Path) -> dict[str, dict]:
    """All rows of one set."""
    _, budget, runs = SETS[name]
    rows: dict[str, dict] = {}
    for i, (label, words) in enumerate(runs.items()):
        for row, values in run(f"{name}-{i}", budget + words, folder).items():
            if row == "vae_kl":
                rows[label] = values
            elif i == 0:  # the baselines are those of the first row's scale
                rows[row] = values
        if name == "pilatus":
            rows[f"{label}, on frames of its training"] = on_training_frames(next(folder.rglob(f"{name}-{i}")))
    return rows


def table(rows: dict[str, dict]) -> str:
    """Rows as Markdown."""
    cells = [
        [label, *("" if row.get(c) is None or row[c] != row[c] else f"{row[c]:.3g}" for c in COLUMNS)]
        for label, row in rows.items()
    ]
    return "\n".join(markdown(["", *COLUMNS], cells, "l"))


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--only", nargs="*", choices=list(SETS), default=list(SETS), help="which sets to measure")
    args = parser.parse_args()
    results = read_results("quality", {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.only:
            results[name] = measure(name, folder)
    text = "# Quality on held-out frames\n\nWritten by `python bench/quality.py`, which says how.\n"
    for name in (n for n in SETS if n in results):
        text += f"\n## {SETS[name][0]}\n\n`xrddiff run {' '.join(SETS[name][1])} …`\n\n{table(results[name])}\n"
    print(write_results("quality", text, results))


if __name__ == "__main__":
    main()
