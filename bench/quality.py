"""How good is the autoencoder, against principal components, against per-image min-max, and against a second measurement?

`python bench/quality.py` runs `xrddiff run` for each row on the same budget (1000 training frames of sim128, 5 epochs, 1024 latent values per frame),
reads the tables that the runs leave, and writes bench/results/quality.md and .json. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
XRDDIFF = Path(sys.executable).with_name("xrddiff")
BUDGET = ["experiment_type=demo", "data=sim128", "data.limit=1250", "training.num_epochs=5", "training.batch_size=8",
          "model.downsampling=4", "model.latent_channels=1"]  # fmt: skip
RUNS = {
    "VAE, asinh": [],
    "VAE, per-image min-max": ["data.transform=minmax"],
    "VAE, asinh, learning rate 1e-4": [
        "training.lr=1e-4",
        "training.lr_schedule=constant",
        "training.lr_warmup_steps=0",
    ],
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


def run(label: str, words: list[str], folder: Path) -> dict[str, dict]:
    """The table that one run leaves: rows by name."""
    name = f"run_name={label.replace(',', '').replace(' ', '-').replace(chr(39), '')}"
    subprocess.run([XRDDIFF, "run", *BUDGET, *words, name, f"output_dir={folder}"], check=True, cwd=folder)
    found = next(folder.rglob(f"{name.split('=')[1]}/metrics/held_out.json"))
    return json.loads(found.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(RUNS), help="rows to run")
    args = parser.parse_args()
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        for label in args.only:
            table = run(label, RUNS[label], Path(name))
            for row, values in table.items():
                if row == "vae_kl":
                    rows[label] = values
                elif label == args.only[0]:  # the baselines are the same for all rows in the asinh scale
                    rows[row] = values
    frame = pd.DataFrame.from_dict(rows, orient="index")[COLUMNS].astype(float)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality.json").write_text(json.dumps(rows, indent=2) + "\n")
    head = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    body = [
        f"| {i} | " + " | ".join("" if v != v else f"{v:.3g}" for v in row) + " |"
        for i, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    text = f"# Quality on held-out shots\n\nWritten by `python bench/quality.py`. {' '.join(__doc__.split(chr(10))[2:4]).strip()}\n\n"
    (RESULTS / "quality.md").write_text(text + "\n".join(head + body) + "\n")
    print((RESULTS / "quality.md").read_text())


if __name__ == "__main__":
    main()
