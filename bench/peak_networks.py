"""Are generated frames good for training? A small peak network, trained on simulated frames, on generated ones that were asked for a lattice, and on both, beside classical peak finders, on frames that none of them saw.

    OMP_NUM_THREADS=1 python bench/peak_networks.py [RUN] [--frames 256] [--steps 250]

RUN is the folder of a run on sim128 with model.condition_maps=[lattice, …], such as that of `make demo`; without one, only simulated frames are trained on. Every network is trained for the same number of steps, with the same seed.
Tested on simulated frames of two detectors, on the CSPAD still and, if it can be fetched, on the Laue pattern of germanium. Writes bench/results/peak_networks.md and .json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from harness import machine, make_parser, markdown, same_terms, write_results

import xrddiff as xd
from xrddiff.core.errors import XrddiffError
from xrddiff.data.frames.frames import frame_count, peaks_table
from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks
from xrddiff.judge.metrics.physics import pooled_peaks
from xrddiff.judge.metrics.reconstruction import average_precision, precision_recall
from xrddiff.learn.models.peak_net import find_network_peaks
from xrddiff.learn.recipes.peak_nets import asked_peaks, fit_peak_net, simulated_peaks
from xrddiff.physics.simulation.simulate import simulate

PICTURES = Path(__file__).parents[1] / "docs/pictures"
CELL = "79.1,79.1,37.9,90,90,90"
TEST = 10**6  # first shot of the test frames; nothing was trained on shots from here on
FINDERS = {
    "classical": {},
    "classical, lower thresholds": {"snr": 2.0, "pixel_snr": 2.0, "min_pixels": 1},
    "peakfinder8's settings": PEAKFINDER8,
}
ADU = {"classical, lower thresholds": {"snr": 3.0, "pixel_snr": 4.0}}  # of the CSPAD still, for which no gain is known
Finder = Callable[[Any], pd.DataFrame]


class Test(NamedTuple):
    """Frames with peaks that are true, and spots that count neither way."""

    frames: Any
    peaks: pd.DataFrame
    unsure: pd.DataFrame | None
    found: dict[str, pd.DataFrame]
    column: dict[str, str]


def finders(networks: dict[str, torch.nn.Module], in_adu: bool) -> dict[str, tuple[Finder, str]]:
    """Every contestant: frames → peaks, and the column that ranks them."""
    out: dict[str, tuple[Finder, str]] = {}
    for name, words in FINDERS.items():
        words = words | (ADU.get(name, {}) if in_adu else {})
        words = words | ({"threshold": 80} if in_adu and name.startswith("peakfinder8") else {})
        out[name] = (lambda ds, words=words: find_frame_peaks(ds, **words)), "snr"
    for name, net in networks.items():
        out[f"network, {name}"] = (lambda ds, net=net: find_network_peaks(net, ds, threshold=0.05)), "logit"
    return out


def ranked(
    ds: Any, networks: dict[str, torch.nn.Module]
) -> tuple[dict[str, pd.DataFrame], dict[str, str], dict[str, float]]:
    """The peaks of every contestant, the best first; their columns; seconds per frame."""
    found, column, seconds = {}, {}, {}
    for name, (find, by) in finders(networks, ds["intensity"].attrs["units"] == "ADU").items():
        start = time.process_time()
        found[name] = find(ds).sort_values(by, ascending=False, ignore_index=True)
        seconds[name], column[name] = (time.process_time() - start) / frame_count(ds), by
    return found, column, seconds


def tests(networks: dict[str, torch.nn.Module], count: int) -> tuple[dict[str, Test], dict[str, float], list[str]]:
    """All tests, seconds for a frame of sim128, and what could not be tested."""
    out, seconds, missing = {}, {}, []
    for name, shots in (("sim128", count), ("sim-522", max(count // 16, 2))):
        known = simulated_peaks(simulate(name, range(TEST, TEST + shots), expected=True))
        found, column, spent = ranked(known.frames, networks)
        seconds = spent if name == "sim128" else seconds
        out[f"{name}, {shots} frames"] = Test(known.frames, known.peaks(), known.unsure(), found, column)
    still = xd.load("cspad-lysozyme")
    indexing = xd.index(still, CELL, distance_range=0.03, controls=20)
    found, column, _ = ranked(still, networks)
    table = Path(__file__).parents[1] / "tests/peakfinder8_cspad.csv"
    if table.exists():
        own = pd.read_csv(table, comment="#").assign(frame=0)
        found["peakfinder8 itself"] = own.sort_values("snr", ascending=False, ignore_index=True)
        column["peakfinder8 itself"] = "snr"
    out["CSPAD still"] = Test(still, pooled_peaks(found, indexing, still), None, found, column)
    try:
        laue = xd.load("laue-ge")
        found, column, _ = ranked(laue, networks)
        out["Laue, germanium"] = Test(laue, peaks_table(laue), None, found, column)
    except XrddiffError as error:
        missing.append(f"Laue, germanium: not tested here ({error})")
    return out, seconds, missing


def training_sets(run: Path | None, frames: int, words: list[str]) -> dict[str, list]:
    """Frames with known peaks for each network."""
    simulated = simulated_peaks(simulate("sim128", range(frames), expected=True))
    if run is None:
        return {"simulated": [simulated]}
    # the training crystal, and cells that the model never saw
    cells = {"cubic": [30.0, 30.0, 30.0, 90, 90, 90], "monoclinic": [40.0, 35.0, 55.0, 90, 105, 90]}
    opened, part = xd.open_run(run), frames // 4
    generated = [asked_peaks(opened.sample(frames - 2 * part, *words))]
    generated += [
        asked_peaks(opened.sample(part, *words, lattice={"cell": cell}, seed=k))
        for k, cell in enumerate(cells.values())
    ]
    return {"simulated": [simulated], "generated": generated, "both": [simulated, *generated, simulated]}


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#000000", "#56B4E9")  # Okabe and Ito's


def picture(found: dict[str, Test], path: Path) -> None:
    """Precision against recall, a pane for each test."""
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.4), dpi=70, sharey=True, layout="constrained")
    for ax, (title, test) in zip(axes, found.items(), strict=True):
        for k, (name, peaks) in enumerate(test.found.items()):
            curve = precision_recall(test.peaks, peaks, test.column[name], ignore=test.unsure)
            ax.plot(
                curve["recall"],
                curve["precision"],
                color=COLOURS[k],
                ls="-" if "network" in name else "--",
                lw=1.4,
                label=name,
            )
        ax.set(title=title, xlabel="recall", xlim=(0, 1.02), ylim=(0, 1.03))
    axes[0].set_ylabel("precision")
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    fig.savefig(path)
    plt.close(fig)


def row(test: Test, name: str) -> dict[str, float]:
    """Average precision, and precision and recall of as many peaks as there are true ones."""
    curve = precision_recall(test.peaks, test.found[name], test.column[name], ignore=test.unsure)
    few = precision_recall(test.peaks, test.found[name][: len(test.peaks)], test.column[name], ignore=test.unsure)
    last = few.iloc[-1] if len(few) else {"precision": 0.0, "recall": 0.0}
    return {"ap": average_precision(curve), "precision": float(last["precision"]), "recall": float(last["recall"])}


def page(found: dict) -> str:
    """The results as a page."""
    titles = list(found["tests"])
    names = list(dict.fromkeys(name for rows in found["tests"].values() for name in rows))
    lines = [
        "# Peak finders trained on simulated and on generated frames", "",
        f"`{found['command']}`; {machine('python', 'one thread')}.", "",
        f"A network of {found['size']} parameters, trained for {found['steps']} steps of 16 windows: on {found['frames']} simulated frames; on as many generated ones, half of them asked for crystals like those of the model's training and a quarter for each of two cells that it never saw, which make up a third of the training each; "
        "and on both, two fifths of it simulated. The generative model itself was trained on simulated frames of the same kind. Every finder ranks its peaks; the table has the average precision, and in brackets the precision of as many peaks as are true.", "",
        "True peaks: in simulated frames the spots of at least 5σ (weaker ones count neither way); on the CSPAD still, the pooled peaks of all finders that are on the lattice of lysozyme (the 300 best of each; "
        "by chance a few per cent of all peaks are); in the Laue pattern, the spots that LaueTools indexed, so that other spots of the crystal count as wrong for every finder.", "",
    ]  # fmt: skip
    rows = []
    for name in names:
        cells = [found["tests"][t].get(name) for t in titles]
        ms = found["seconds"].get(name)
        shown = [f"{c['ap']:.3f} ({c['precision']:.2f})" if c else "–" for c in cells]
        rows.append([name, *shown, f"{1e3 * ms:.1f}" if ms is not None else "–"])
    head = ["finder", *(f"{t} ({found['true'][t]} peaks)" for t in titles), "ms a frame, sim128"]
    lines += markdown(head, rows)
    lines += [
        "",
        *(["![Precision against recall](../../docs/pictures/peak_networks.png)", ""]),
        *found["missing"],
        *([""] if found["missing"] else []),
    ]
    lines += [*found["words"], ""]
    lines += [
        "What this does not show: each network was trained once, with one seed. Generated frames are labelled from their expected counts and from what was asked for, simulated ones from their truth, and the former have three crystals, the latter one; "
        "so a difference is one of frames, labels and crystals together. The pool of true peaks of the CSPAD still has peaks of every network, which favours those that agree with another.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def in_words(found: dict) -> list[str]:
    """Who wins, from the numbers."""
    out = []
    for title, rows in found["tests"].items():
        best = max(rows, key=lambda n: rows[n]["ap"])
        classical = max((n for n in rows if not n.startswith("network")), key=lambda n: rows[n]["ap"])
        text = f"- {title}: best is *{best}* ({rows[best]['ap']:.3f}); the best that is no network is *{classical}* ({rows[classical]['ap']:.3f})"
        if "network, generated" in rows:
            a, b, c = (rows[f"network, {n}"]["ap"] for n in ("simulated", "generated", "both"))
            text += f". Networks trained on simulated, generated and both: {a:.3f}, {b:.3f}, {c:.3f}"
        out.append(text + ".")
    return out


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("words", nargs="*", default=[], metavar="inference.WORD=VALUE")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--test", type=int, default=64, help="simulated test frames")
    args = parser.parse_args()
    same_terms()
    networks = {}
    for name, sets in training_sets(args.run, args.frames, args.words).items():
        networks[name] = fit_peak_net(sets, steps=args.steps)
        print(f"trained on {name}: {sum(len(s.peaks()) for s in sets)} peaks", flush=True)
    done, seconds, missing = tests(networks, args.test)
    command = ["OMP_NUM_THREADS=1 python bench/peak_networks.py", *(["RUN"] if args.run else []), *args.words]
    found = {
        "command": " ".join([*command, f"--frames {args.frames} --steps {args.steps} --test {args.test}"]),
        "size": sum(p.numel() for p in next(iter(networks.values())).parameters()),
        "steps": args.steps,
        "frames": args.frames,
        "seconds": seconds,
        "missing": missing,
        "true": {title: len(test.peaks) for title, test in done.items()},
        "tests": {title: {name: row(test, name) for name in test.found} for title, test in done.items()},
    }
    found["words"] = in_words(found)
    picture(done, PICTURES / "peak_networks.png")
    write_results("peak_networks", page, found)
    print(page(found))


if __name__ == "__main__":
    main()
