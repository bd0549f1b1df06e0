"""How many evaluations does a sample need? The demo's model by each sampler, and after it was tuned to need one.

    OMP_NUM_THREADS=1 python bench/evaluations.py [--folder FOLDER] [--seeds 5] [--frames 64] [--only "consistency 2"]

The model of the demo (`base` of bench/ablations.py), that model tuned with `training.objective=consistency`, a mean flow, and an untrained one. Each row draws 96 samples with each seed. Runs in `--folder` are not trained again. Writes bench/results/evaluations.json, .md
and a picture.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import ablations
import index_rates
import numpy as np
from harness import RESULTS, machine, make_parser, markdown, read_results, same_terms, write_results

DEMO = ["experiment_type=scratch", "inference.num_samples=48", "inference.batch_size=16"]
TUNED = ["training.objective=consistency", "model.diff_epochs=14", "model.diff_lr=3e-4", "inference=fast"]
RUNS = {
    "tuned": ("base", TUNED),
    "tuned with guidance": ("base", [*TUNED, "training.objective_options={guidance: 1.25}"]),
    "flow": (None, ["training.objective=mean_flow", "training.objective_options={jumps: 0.5}", "model.diff_epochs=10", "inference=mean_flow"]),
    "untrained": (None, ["model.diff_epochs=1", "training.max_steps=1"]),
    "pixels": (None, ["model=ddpm", "model.diff_epochs=10"]),
    "pixels tuned": ("pixels", ["model=ddpm", *TUNED]),
}  # fmt: skip
FEW = ["inference.sampler=consistency", "inference.schedule=few"]
KARRAS = "inference.schedule=karras"
ROWS = {
    "untrained, unipc 16": ("untrained", ["inference.sampler=unipc", KARRAS, "inference.steps=16"]),
    **{f"unipc {n}": ("base", ["inference.sampler=unipc", KARRAS, f"inference.steps={n}"]) for n in (1, 2, 4, 8, 16, 50)},
    **{f"dpmpp_2m {n}": ("base", ["inference.sampler=dpmpp_2m", KARRAS, f"inference.steps={n}"]) for n in (4, 8, 16)},
    **{f"ddim {n}": ("base", ["inference.sampler=ddim", KARRAS, f"inference.steps={n}"]) for n in (1, 4, 16, 50)},
    "heun 31": ("base", ["inference.sampler=heun", KARRAS, "inference.steps=16"]),
    **{f"ddpm {n}": ("base", ["inference.sampler=ddpm", KARRAS, f"inference.steps={n}"]) for n in (16, 50, 1000)},
    **{f"consistency {n}": ("tuned", [*FEW, "inference.guidance_scale=1", f"inference.steps={n}"]) for n in (1, 2, 4)},
    **{f"mean flow {n}": ("flow", ["inference.sampler=mean_flow", "inference.schedule=flow", f"inference.steps={n}"]) for n in (1, 2, 4)},
    **{f"consistency {n}, guided": ("tuned", [*FEW, "inference.guidance_scale=1.25", f"inference.steps={n}"]) for n in (1, 2)},
    **{f"consistency {n}, guidance tuned in": ("tuned with guidance", [*FEW, "inference.guidance_scale=1", f"inference.steps={n}"]) for n in (1, 2, 4)},
    **{f"pixels, unipc {n}": ("pixels", ["inference.sampler=unipc", KARRAS, f"inference.steps={n}"]) for n in (1, 16)},
    **{f"pixels, consistency {n}": ("pixels tuned", [*FEW, "inference.guidance_scale=1", f"inference.steps={n}"]) for n in (1, 2, 4)},
}  # fmt: skip
ONCE = ("unipc 50", "ddim 50", "ddpm 50", "ddpm 1000", "untrained, unipc 16")  # one seed tells enough
FEWEST = ("consistency 1, guidance tuned in", "consistency 2, guidance tuned in", "consistency 1", "consistency 2")
SHOWN = ("unipc 1", "unipc 16", "consistency 1, guidance tuned in", "consistency 2, guidance tuned in", "mean flow 1")


def words_of(name: str, folder: Path) -> list[str]:
    """The words of a run; the autoencoder is that of `base`."""
    if name == "base":
        return ablations.words_of("base", folder)
    before, words = RUNS[name]
    words = [*DEMO, *words]
    if not name.startswith("pixels"):
        codec = next(folder.glob("output/*/base")) / "autoencoder"
        words += [f"training.pretrained_vae_path={codec}"]
    return words + ([f"training.init={next(folder.glob(f'output/*/{before}'))}"] if before else [])


def spread(values: list[float]) -> dict:
    """Mean and standard deviation over seeds, of those that are numbers."""
    good = [v for v in values if v is not None and np.isfinite(v)]
    sd = statistics.stdev(good) if len(good) > 1 else None
    return {"mean": statistics.fmean(good) if good else None, "sd": sd, "seeds": len(good)}


def row(run: Path, words: list[str], seeds: int, frames: int) -> dict:
    """The numbers of a row over seeds."""
    each = [ablations.measure(run, [*words, f"inference.seed={seed}"], frames) for seed in range(seeds)]
    picks = {
        "peaks": lambda r: r["index"]["peaks"],
        "index": lambda r: (r["index"].get("rate") or {}).get("value"),
        "on_lattice": lambda r: r["asked"].get("on_lattice"),
        "seconds": lambda r: r["draw"],
        **{d: lambda r, d=d: r["ratio"].get(d) for d in ablations.DISTANCES},
    }
    return {"evaluations": each[0]["evaluations"]} | {name: spread([f(r) for r in each]) for name, f in picks.items()}


def cell(value: dict, digits: int = 2) -> str:
    if value["mean"] is None:
        return "–"
    return f"{value['mean']:.{digits}f}" + (f" ± {value['sd']:.{digits}f}" if value["sd"] is not None else "")


def page(found: dict) -> str:
    """The results as a page."""

    def minutes(run: str) -> str:
        return f"{found['cpu'].get(run, np.nan) / 60:.0f}"

    names = ("peaks", "index", "on_lattice", *ablations.DISTANCES)
    lines = [
        "# How many evaluations a sample needs", "",
        f"`{found['command']}`; {machine('python', 'one thread')}.", "",
        "The model of `make demo`, sampled in several ways. *Consistency* is that model after it was tuned with `training.objective=consistency` "
        f"({minutes('tuned')} CPU minutes after the {minutes('base')} of its training; {minutes('tuned with guidance')} with *guidance tuned in*); *mean flow* was trained from scratch, with the same autoencoder ({minutes('flow')} minutes). "
        f"*Pixels*: a model of the frames themselves ({minutes('pixels')} minutes, and {minutes('pixels tuned')} to tune it). Mean and standard deviation over seeds of 96 samples each. *Index*: share of the samples with enough peaks that have a lattice beyond chance. "
        "*On the asked lattice*: share of a frame's peaks, median. The other columns are distances from held-out frames, over the floor. A guided evaluation is two of the network.", "",
    ]  # fmt: skip
    rows = []
    for name in ROWS:
        if r := found["rows"].get(name):
            ms = {k: None if v is None else v * (1 if k == "seeds" else 1e3) for k, v in r["seconds"].items()}
            rows.append([name, cell(ms, 0), *(cell(r[n], 0 if n == "peaks" else 2) for n in names)])
    head = ["sampler and evaluations", "CPU ms a frame", "peaks", "index", "on the asked lattice"]
    lines += markdown([*head, *ablations.DISTANCES], rows)
    lines += ["", *(said for few in FEWEST if (said := beside(found["rows"], few, "unipc 16")))]
    lines += ["", "![Samples of the same seed](evaluations.png)", ""] if found.get("picture") else [""]
    lines += [f"The runs: `xrddiff run {' '.join(DEMO)}` and", ""]
    lines += [f"- {name}: `{' '.join(words)}`" + (f", begun from *{before}*" if before else "") for name, (before, words) in RUNS.items()]  # fmt: skip
    lines += ["", "The rows:", ""]
    lines += [f"- {name}: `{' '.join(words)}`" for name, (_, words) in ROWS.items() if name in found["rows"]]
    return "\n".join(lines) + "\n"


def beside(rows: dict, few: str, many: str) -> str:
    """How two rows compare, in a sentence: means over seeds, the worst column of the distances."""
    if few not in rows or many not in rows:
        return ""
    ratio = {name: rows[few][name]["mean"] / rows[many][name]["mean"] for name in ("index", "on_lattice", *ablations.DISTANCES)}  # fmt: skip
    worst = max(ablations.DISTANCES, key=ratio.__getitem__)
    return f"*{few}* over *{many}*: index {ratio['index']:.2f}, on the asked lattice {ratio['on_lattice']:.2f}, distances {min(ratio[d] for d in ablations.DISTANCES):.2f} to {ratio[worst]:.2f} ({worst}).\n"


def picture(runs: dict[str, Path], path: Path) -> None:
    """The first samples of the rows `SHOWN`, with the same numbers and seed."""
    from xrddiff.judge.inference.sample_jobs import open_sample_job
    from xrddiff.judge.views.plots import INTENSITY, SMALL, Picture, intensity_norm, png

    figure, norm = Picture(7.6, 1.75 * len(SHOWN)), None
    for axes, name in zip(figure.subplots(len(SHOWN), 4), SHOWN, strict=True):
        run, words = ROWS[name]
        samples, _ = open_sample_job(runs[run], [*words, "inference.num_samples=4", "inference.seed=0"]).make(slice(None))  # fmt: skip
        images = samples["intensity"].values
        norm = norm or intensity_norm(images, "asinh", None)
        for ax, image in zip(axes, images, strict=True):
            ax.imshow(image, cmap=INTENSITY, norm=norm)
            ax.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name.replace(", ", ",\n"), fontsize=SMALL)
    path.write_bytes(png(figure, dpi=90))


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()

    same_terms()
    path = RESULTS / "evaluations.json"
    found = read_results("evaluations", {"rows": {}, "cpu": {}})
    found["command"] = f"OMP_NUM_THREADS=1 python bench/evaluations.py --seeds {args.seeds} --frames {args.frames}"
    with tempfile.TemporaryDirectory() as scratch:
        folder, runs = (args.folder or Path(scratch)).absolute(), {}
        folder.mkdir(parents=True, exist_ok=True)
        index_rates.DATA = ["threads=1", "inference.index_frames=0"]
        needed = {ROWS[name][0] for name in (*args.only, *SHOWN)}
        for name in [
            n for n in ("base", *RUNS) if n == "base" or n in needed | {RUNS[m][0] for m in needed & set(RUNS)}
        ]:
            index_rates.MODELS[name] = words_of(name, folder)
            runs[name] = index_rates.train(name, folder)
            if (told := runs[name] / "cpu_seconds.txt").exists():
                found["cpu"][name] = float(told.read_text())
        for name in args.only:
            run, words = ROWS[name]
            measured = row(runs[run], words, 1 if name in ONCE else args.seeds, args.frames)
            found["rows"] = read_results("evaluations", {"rows": {}})["rows"] | {name: measured}  # others may write too
            write_results("evaluations", page, found)
            print(name, found["rows"][name]["index"], file=sys.stderr, flush=True)
        picture(runs, path.with_suffix(".png"))
        found["picture"] = True
        write_results("evaluations", page, found)


if __name__ == "__main__":
    main()
