"""How well does the two-sample test see, how often is it wrong, and what does it cost?

    OMP_NUM_THREADS=1 python bench/two_sample.py [--frames 600] [--fresh 50] [--folder FOLDER]

Fresh frames: two sets of `sim128`, of a shot group each frame, drawn without replacement from a pool of ten times as many; the AUC should be 0.5. The model of `make demo`, trained here or taken from --folder, and the spots of the simulator on
measured blanks, which know all of their spots: AUC over the number of frames, against training and held-out frames of the run, by shot group. Changed frames: each statistic's group alone. Writes bench/results/two_sample.json, .md and .png.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from fooling import again
from harness import (
    RESULTS,
    cpu_seconds,
    machine,
    make_parser,
    markdown,
    read_results,
    same_terms,
    trained_run,
    write_results,
)

from xrddiff.config.plan import inference_plan
from xrddiff.config.saved_config import run_place
from xrddiff.data.frames.labels import with_labels
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.evaluation import SampleEvaluation, units_by_name
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.metrics.corruptions import blur, drop_peaks, gaussian_noise, shuffle_spots
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.judge.metrics.two_sample import CLEAR, GROUPS, TwoSample, two_sample
from xrddiff.physics.simulation.experiments import EXPERIMENTS, Background
from xrddiff.physics.simulation.simulate import simulate

SEED, GROUP, POOL = 7, 50, 10


def spots_on_blanks(train: xr.Dataset, count: int, seed: int) -> xr.Dataset:
    """The simulator's spots of new shots on measured frames without any, drawn with replacement."""
    experiment = replace(EXPERIMENTS[train.attrs["experiment"]], background=Background(water=0.0, air=0.0))
    frames = with_labels(simulate(experiment, range(count), seed=1000 + seed).load(), ["hit_class"])
    blank = np.flatnonzero(train["hit_class"].values == 0)
    rng = np.random.default_rng(seed)
    frames["intensity"].values += train["intensity"].values[rng.choice(blank, count)]
    return frames


CHANGED = {
    "blurred by 0.3 px": lambda ds: blur(ds, 0.3),
    "Gaussian noise in 1 of 4 pixels": lambda ds: gaussian_noise(ds, 0.25),
    "1 of 5 peaks gone": lambda ds: drop_peaks(ds, 0.2),
    "all spots at other azimuths": lambda ds: shuffle_spots(ds, 1.0),
    "wavelength + 1%": lambda ds: again(ds, wavelength=1.01),
    "wavelength + 2%": lambda ds: again(ds, wavelength=1.02),
}


def pool(n: int) -> tuple[Ruler, np.ndarray]:
    """Statistics of so many fresh frames, of a shot group each, and the ruler that they were measured with."""
    shots, rows = GROUP * np.arange(n) + 7, []
    ruler = Ruler(simulate("sim128", shots[:500], SEED))
    for part in np.array_split(shots, max(n // 500, 1)):
        rows.append(ruler.measure(simulate("sim128", part, SEED), numbers=part).statistics)
    return ruler, np.concatenate(rows)


def record(test: TwoSample) -> dict[str, Any]:
    """The numbers of a test that the page shows."""
    table = {name: row.to_dict() for name, row in test.table.iterrows()}
    return {"table": table, "curve": test.curve.to_dict("list"), "limit": test.limit, "units": list(test.units)}


def of_the_demo(folder: Path, n: int) -> dict[str, dict[str, Any]]:
    """The tests of samples of the model of `make demo`, and of the simulator's spots on measured blanks."""
    run = trained_run(folder, "demo", ["experiment_type=demo"])
    words = [f"inference.num_samples={n}", "inference.batch_size=50", "inference.limit=1000"]
    e = SampleEvaluation(run, inference_plan(run, words), run / "samples" / "samples.zarr")
    named, sets = (
        units_by_name(e.prepared.frames, e.numbers),
        [e.measure(k, slice(None)) for k in ("train", "held out")],
    )
    real, units = (
        np.concatenate([s.statistics for s in sets]),
        np.concatenate([named["train"], named["held out"]]).astype(str),
    )
    drawn, _ = open_sample_job(run, words).make(slice(None))
    learnt = select_frames(e.prepared.frames, e.prepared.train).load()
    drawing = 0 if drawn.attrs["samples_are"] == "expected values" else None  # of counts, where there are none yet
    made = {"demo": e.ruler.measure(drawn, draw=drawing), "blanks": e.ruler.measure(spots_on_blanks(learnt, n, 0))}
    own = [f"sample {i}" for i in range(n)]
    return {name: record(two_sample(real, s.statistics, units=(units, own), curve=True)) for name, s in made.items()}


def of_the_pretrained(n: int) -> dict[str, Any]:
    """The test of samples of the model in the package, beside twice as many fresh frames of `sim128`."""
    fresh = simulate("sim128", GROUP * np.arange(2 * 10**5, 2 * 10**5 + 2 * n) + 7, SEED).load()
    ruler = Ruler(select_frames(fresh, range(n)))
    drawn, _ = open_sample_job(run_place("pretrained:sim128"), [f"inference.num_samples={n}"]).make(slice(None))
    return record(two_sample(ruler.measure(fresh).statistics, ruler.measure(drawn).statistics, curve=True))


def changed(ruler: Ruler, rows: np.ndarray, n: int) -> dict[str, dict[str, Any]]:
    """The tests of changed frames."""
    fresh: xr.Dataset = simulate("sim128", GROUP * np.arange(10**5, 10**5 + n) + 7, SEED).load()
    return {
        name: record(two_sample(rows[:n], ruler.measure(change(fresh)).statistics)) for name, change in CHANGED.items()
    }


def picture(found: dict[str, Any]) -> None:
    """bench/results/two_sample.png: AUC over the number of frames."""
    from xrddiff.judge.views.plots import Picture, png

    figure = Picture(5.0, 2.8)
    ax = figure.subplots()
    for name, title in TITLES.items():
        curve = found[name]["curve"]
        clear = found[name]["table"]["all"]["low"] > CLEAR
        more = f"; very many: {found[name]['limit']:.2f}" if clear else ""
        ax.plot(curve["frames"], curve["auc"], "o-", ms=4, lw=1, label=f"{title}{more}")
    ax.axhline(0.5, color="k", lw=0.8, ls=":")
    ticks = [100, 200, 300, 400, 600]
    ax.set(xscale="log", ylim=(0.4, 1.02), xlabel="frames of either kind", ylabel="AUC")
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.legend(fontsize=8, frameon=False)
    (RESULTS / "two_sample.png").write_bytes(png(figure))


TITLES = {
    "demo": "samples of the demo",
    "pretrained": "samples of the pretrained model",
    "blanks": "the simulator's spots on measured blanks",
}


def page(found: dict[str, Any]) -> list[str]:
    """The page of the results."""
    null, n = np.array(found["null"]["auc"]), found["frames"]
    low, high = np.quantile(null, [0.025, 0.975])
    head = ["set", "AUC", "95% CI", *GROUPS, "linear", "boosted"]
    rows = []
    for name, own in (found["changed"] | {TITLES[k]: found[k] for k in TITLES}).items():
        t = own["table"]
        ends = f"{t['all']['low']:.2f} to {t['all']['high']:.2f}"
        rows.append(
            [name, f"{t['all']['auc']:.2f}", ends, *(f"{t[k]['auc']:.2f}" for k in (*GROUPS, "linear", "boosted"))]
        )
    return [
        "# Two-sample test",
        "",
        f"`OMP_NUM_THREADS=1 python bench/two_sample.py`; {machine('one thread')}; {n} frames of 128 × 128 pixels in each set, the run's training and held-out frames for the demo.",
        "",
        f"Two sets of fresh frames, {len(null)} times: AUC {null.mean():.3f} ± {null.std():.3f}, 95% of them between {low:.3f} and {high:.3f}; {np.mean((null > 0.47) & (null < 0.55)):.0%} between 0.47 and 0.55. The interval lies above 0.5 in {np.mean(np.array(found['null']['low']) > 0.5):.0%}.",
        "",
        f"A test of {n} and {n} frames shows a difference with a probability of 80% if very many frames would give an AUC of {found['null']['least']:.2f}. It takes {found['null']['cpu']:.0f} s of CPU.",
        "",
        "![AUC over the number of frames](two_sample.png)",
        "",
        *markdown(head, sorted(rows, key=lambda row: row[1]), "l" + "r" * (len(head) - 1)),
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--frames", type=int, default=600, help="of each set")
    parser.add_argument(
        "--fresh",
        type=int,
        default=50,
        help="pairs of fresh sets; 0: those and the changed frames are kept from the last run",
    )
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    same_terms()
    n = args.frames
    found: dict[str, Any] = {"frames": n}
    with tempfile.TemporaryDirectory() as own:
        found |= of_the_demo(args.folder or Path(own), n)
    found["pretrained"] = of_the_pretrained(n)
    if not args.fresh:
        found |= {name: read_results("two_sample", {})[name] for name in ("changed", "null")}
        picture(found)
        write_results("two_sample", page, found)
        return
    ruler, rows = pool(POOL * n)
    found["changed"] = changed(ruler, rows, n)
    rng, tests, start = np.random.default_rng(SEED), [], cpu_seconds()
    for k in range(args.fresh):
        at = rng.permutation(len(rows))[: 2 * n]
        tests.append(two_sample(rows[at[:n]], rows[at[n:]], seed=k))
    spent = (cpu_seconds() - start) / max(args.fresh, 1)
    found["null"] = {"auc": [t.value for t in tests], "low": [t.interval[0] for t in tests]}
    found["null"] |= {"least": float(np.median([t.least for t in tests])), "cpu": spent}
    picture(found)
    write_results("two_sample", page, found)


if __name__ == "__main__":
    main()
