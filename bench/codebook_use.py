"""How much of a codebook of 1024 codes is used after a short training, by VQ and by FSQ?

`python bench/codebook_use.py` trains both with `xrddiff run` on simulated stills (seed 42; one to two minutes of one core each), counts the codes of the held-out frames, and writes bench/results/codebook_use.md.
`--folder` keeps the runs, and takes those that are there. Three figures of a codebook: `running`, the share of the codes in the running count at the end of training; `held out`, the share that
the held-out frames use at least once; and the perplexity of their use, which is 1024 where all codes are used alike. Aim: 95% for both.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from harness import make_parser, markdown, trained_run, write_results

from xrddiff.config.plan import saved_plan
from xrddiff.data.transforms.pipelines import transform_from_state
from xrddiff.learn.loading.datasets import prepare_planned
from xrddiff.learn.models.codebook import perplexity
from xrddiff.learn.recipes.latents import open_autoencoder
from xrddiff.learn.training.checkpoints import load_checkpoint

COMMON = ["model=vq", "experiment_type=scratch", "data.limit=1250", "training.num_epochs=2", "threads=1"]
COMMON += ["model.latent_channels=4"]
ROWS = {"VQ": [], "FSQ": ["model.quantizer=fsq"]}


@torch.no_grad()
def measure(name: str, folder: Path) -> dict[str, float]:
    """Use of the codebook, and how well held-out frames come back."""
    run = trained_run(folder, name, [*COMMON, *ROWS[name]])
    checkpoint = load_checkpoint(run)
    net = open_autoencoder(checkpoint)
    prepared = prepare_planned(saved_plan(run), transform_from_state(checkpoint.state["transform"]))
    loader = prepared.loader(prepared.held_out, batch_size=25, multiple=net.downsampling, shuffle=False)
    counts = torch.zeros(net.quantizer.K)
    for batch in loader.batches():
        counts += net(batch["x"], batch["mask"]).codes.flatten().bincount(minlength=net.quantizer.K)
    judged = json.loads((run / "metrics" / "held_out.json").read_text())["vq"]
    return {
        "codes": net.quantizer.K,
        "running": float(net.quantizer.usage),
        "held out": float((counts > 0).float().mean()),
        "perplexity": float(perplexity(counts)),
        "steps": checkpoint.step,
        "frames": len(prepared.held_out),
        "peak F1": judged["f1"],
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """The results as Markdown."""
    kinds = {"codes": "{:.0f}", "running": "{:.1%}", "held out": "{:.1%}", "perplexity": "{:.0f}", "steps": "{:.0f}", "peak F1": "{:.3f}"}  # fmt: skip
    n = next(iter(rows.values()))["frames"]
    lines = ["# Use of a codebook", "", __doc__.split("\n\n")[1].strip().replace("\n", " "), ""]
    lines += [f"`xrddiff run {' '.join(COMMON)}`, and for FSQ `{' '.join(ROWS['FSQ'])}`; {n} held-out frames of 128², each of 1024 latent pixels; tiny size, batches of 8, learning rate 3e-3 and falling as a cosine.", ""]  # fmt: skip
    cells = [[name, *(f.format(row[k]) for k, f in kinds.items())] for name, row in rows.items()]
    lines += markdown(["", *kinds], cells)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        text = table({name: measure(name, folder) for name in ROWS})
    print(write_results("codebook_use", text))


if __name__ == "__main__":
    main()
