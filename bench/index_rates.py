"""Do the frames that models make index? Real frames, the same with turned spots, reconstructions of each autoencoder and samples of each generative model.

    OMP_NUM_THREADS=1 python bench/index_rates.py [RUN …] [--only vae_kl ddpm] [--folder FOLDER] [--frames 64]

Each model is trained on simulated stills (sim128, tiny size) for the few hundred steps that its row names, one after another: a trial of each on one core, not the best that it can do. Finished run folders that are named are added as they are. What is expected counts is drawn as the
detector would count it. `--folder` keeps the runs and goes on with those that are there; rows are put into the results that are there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import machine, make_parser, markdown, read_results, same_terms, trained_run, write_results

DATA = ["size=tiny", "data=sim128", "data.limit=1250", "threads=1", "inference.index_frames=0"]
QUICK = ["training.batch_size=8", "training.lr=3e-3", "training.lr_schedule=cosine", "training.lr_warmup_steps=30"]
QUICK += ["training.ema_decay=0.99", "inference.limit=64", "inference.num_samples=48", "inference.batch_size=16"]
CODEC = [*QUICK, "training.num_epochs=100", "training.max_steps=150"]
DRAWS = [*QUICK, "training.lr=1e-3", "model.diff_epochs=100", "training.max_steps=150"]
LATENT = ["model.diff_batch_size=16", "model.diff_lr=1e-3", "model.latent_channels=1"]
MODELS = {
    "vae_kl": ["model=vae_kl", *CODEC[:-1], "training.max_steps=400"],
    "vq": ["model=vq", *CODEC],
    "fsq": ["model=vq", "model.quantizer=fsq", *CODEC],
    "latent_diff": ["model=latent_diff", *CODEC, *LATENT, "model.network_options={patch: 2}", "model.diff_epochs=3"],
    "latent_diff, told the lattice": ["experiment_type=scratch", "model=latent_diff", "inference.num_samples=48"],
    "ddpm": ["model=ddpm", *DRAWS],
    "ddpm, flow": ["model=ddpm", "model.parameterisation=flow", *DRAWS],
    "ddpm, dit": ["model=ddpm", "network=dit", *DRAWS],
    "ddpm, told the lattice": ["model=ddpm", "model.condition_maps=[lattice]", *DRAWS],
    "diff, raster": ["model=diff", *DRAWS],
    "diff, random order": ["model=diff", "model.order=random", *DRAWS],
    "diff, told the lattice": ["model=diff", "model.order=random", "model.condition_maps=[lattice]", *DRAWS],
}
NUMBERS = ("enough", "rate", "on_lattice", "completeness")


def train(name: str, folder: Path) -> Path:
    """The run folder of a model, trained unless it is there."""
    return trained_run(folder, name.replace(", ", "-").replace(" ", "-"), [*DATA, *MODELS[name]])


def index(frames, limit: int, *, turned: bool = False) -> dict:
    """The numbers of the first `limit` frames, with intervals; with `turned`, of their spots turned around the beam."""
    from xrddiff.data.frames.frames import frame_count
    from xrddiff.data.frames.noise import draw_counts
    from xrddiff.data.frames.peaks import find_frame_peaks
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.judge.metrics.physics import lattice_rows, summarise_physics, turned_peaks
    from xrddiff.physics.indexing.indexer import make_indexer

    frames = select_frames(frames, range(min(limit, frame_count(frames)))).load()
    if frames.attrs.get("samples_are") == "expected values":
        frames = draw_counts(frames, seed=0)
    peaks = find_frame_peaks(frames)
    indexer = make_indexer(frames, frames.attrs["unit_cell"], peaks=peaks, lattices=1, controls=60)
    rows = lattice_rows(frames, indexer, turned_peaks(frames, peaks) if turned else peaks)
    numbers = summarise_physics(rows).to_dict(orient="index")
    return {"frames": len(rows), **numbers, "peaks": len(peaks) / len(rows)}


def measure(name: str, run: Path, limit: int) -> dict:
    """The row of a trained run: its samples, or the reconstructions of its autoencoder."""
    from xrddiff.config.saved_config import load_config
    from xrddiff.data.formats.readers import open_frames
    from xrddiff.learn.training.checkpoints import load_checkpoint

    samples = run / "samples" / "samples.zarr"
    draws = samples.is_dir()
    frames = open_frames(samples if draws else run / "samples" / "reconstruction.zarr")
    if not draws:
        frames = frames.assign_attrs(samples_are="expected values")
    checkpoints = {"": run} | ({"autoencoder ": run / "autoencoder"} if (run / "autoencoder").is_dir() else {})
    steps = ", ".join(f"{what}{load_checkpoint(path, verify=False).step}" for what, path in checkpoints.items())
    seconds = run / "cpu_seconds.txt"
    about = {
        "what": "samples" if draws else "reconstructions",
        "steps": steps,
        "model": load_config(run / "config.yaml").presets["model"],
    }
    return about | {"cpu": float(seconds.read_text()) if seconds.exists() else None, **index(frames, limit)}


def real_frames(limit: int) -> dict:
    """The rows of held-out frames of sim128, and of the same with turned spots."""
    from xrddiff.config.plan import compose_plan
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.learn.loading.datasets import prepare_planned

    prepared = prepare_planned(compose_plan([*DATA, "model=vae_kl"]))
    held_out = select_frames(prepared.frames, prepared.held_out[:limit])
    return {
        "real frames": {"what": "held out", **index(held_out, limit)},
        "real frames, turned spots": {"what": "control", **index(held_out, limit, turned=True)},
    }


def page(found: dict) -> str:
    """The results as a page."""
    lines = [
        "# Index rates", "",
        f"`{found['command']}`; {machine('python', 'one thread')}.", "",
        "Simulated stills (sim128) and what models make of them. Each model was trained for the steps of its row and no longer, minutes of one core: a trial of each, not the best that it can do. The one that is told the lattice is `make demo`.", "",
        "- with 6 peaks: share of the frames that have the peaks that indexing needs;",
        "- index: share of these that have a lattice, where chance does as well in fewer than one of a thousand; interval by Wilson, 95 %;",
        "- on one lattice: share of a frame's peaks that its best lattice indexes, median;",
        "- found: share of the predicted spots that have a peak, median of the frames that index;",
        "- turned spots: the same peaks, each turned around the beam by a random angle.", "",
    ]  # fmt: skip
    rows = []
    order = [n for n in ("real frames", "real frames, turned spots", *MODELS) if n in found["rows"]]
    for name in [*order, *(n for n in found["rows"] if n not in order)]:
        row = found["rows"][name]
        enough, rate, lattice, complete = (row.get(k, {}) for k in NUMBERS)
        share = (
            f"{_two(rate.get('value'))} ({_two(rate.get('low'))} to {_two(rate.get('high'))})"
            if _is(rate.get("value"))
            else "–"
        )
        minutes = f"{row['cpu'] / 60:.1f}" if row.get("cpu") else ""
        cells = [name, row["what"], row.get("steps", ""), minutes, row["frames"], f"{row['peaks']:.0f}"]
        cells += [_two(enough.get("value")), share, _two(lattice.get("value")), _two(complete.get("value"))]
        rows.append(cells)
    head = [
        "frames",
        "what",
        "steps",
        "CPU minutes",
        "number",
        "peaks",
        "with 6 peaks",
        "index",
        "on one lattice",
        "found",
    ]
    lines += markdown(head, rows, "llr")
    if missing := [name for name in MODELS if name not in found["rows"]]:
        lines += ["", f"Not measured yet: {'; '.join(missing)}. `--only` adds them."]
    lines += ["", "Settings, beside `" + " ".join(DATA) + "`:", ""]
    lines += [f"- {name}: `{' '.join(words)}`" for name, words in MODELS.items() if name in found["rows"]]
    return "\n".join(lines) + "\n"


def _is(value: float | None) -> bool:
    return value is not None and value == value


def _two(value: float | None) -> str:
    return f"{value:.2f}" if _is(value) else "–"


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("runs", nargs="*", type=Path, help="finished run folders to add")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--frames", type=int, default=64)
    args = parser.parse_args()

    same_terms()
    found = read_results("index_rates", {"rows": {}})
    found["command"] = f"OMP_NUM_THREADS=1 python bench/index_rates.py --frames {args.frames}"

    def keep(rows: dict) -> None:
        found["rows"] |= rows
        write_results("index_rates", page, found)
        print(*rows, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        keep(real_frames(args.frames))
        for name in args.only:
            keep({name: measure(name, train(name, folder), args.frames)})
        for run in args.runs:
            keep({run.name: measure(run.name, run, args.frames)})


if __name__ == "__main__":
    main()
