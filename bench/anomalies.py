"""Which wrong frames does a trained run notice? Anomaly scores of its autoencoder and its denoiser, beside three numbers that need no model.

    OMP_NUM_THREADS=1 python bench/anomalies.py RUN [--frames 100] [--levels 0.1 0.3 1]

RUN is the folder of a run of latent_diff or ddpm on sim128, such as that of `make demo`. Good frames have one crystal and no ice; the seven kinds of wrong ones are those of `metrics.anomalies`. Writes bench/results/anomalies.md and anomalies.json.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from harness import machine, make_parser, markdown, same_terms, write_results

from xrddiff.judge.inference.anomalies import LEVELS, anomaly_scores
from xrddiff.judge.metrics.anomalies import ANOMALIES, auc_table, darkest_area, good_frames, with_dead_panel
from xrddiff.learn.training.checkpoints import load_checkpoint

FIRST = 2 * 10**6  # first shot; nothing was trained on shots from here on
PLAIN = ("total intensity", "number of peaks", "darkest area")
DARK = {"sim128": 1000, "sim-422": 300, "sim-522": 200}  # good frames of each, by which the threshold is set
SHARES = (1 / 8, 1 / 20, 1 / 50)


def page(found: dict) -> str:
    """The results as a page."""
    columns = list(next(iter(found["auc"].values())))
    lines = [
        "# Which wrong frames a model notices", "",
        f"`{found['command']}`; {machine('python', 'one thread')}. The run: {found['run']}; {found['ms']:.0f} ms a frame for all scores.", "",
        f"Area under the ROC curve for {found['frames']} good frames and as many of each wrong kind: 1 is no mistake, 0.5 a coin. What counts is how untypical a score is, on either side, beside those of {2 * found['frames']} other good frames; the standard error of 0.5 is {chance_error(found['frames']):.2f}. "
        "The run was trained on frames as they come: a tenth of them blank, a tenth with two crystals, one in twenty with ice. The best score of each kind is bold; a model has seven of them, which flatters it a little.", "",
    ]  # fmt: skip
    rows = []
    for kind, row in found["auc"].items():
        best = max(row.values())
        rows.append([kind, *(f"**{v:.2f}**" if v == best else f"{v:.2f}" for v in row.values())])
    lines += [*markdown(["kind", *columns], rows), "", *found["words"], ""]
    head = ["frames", "good", *(f"{share:.1%} of the area" for share in SHARES)]
    rows = [[name, DARK[name], *(f"{v:.3f}" for v in recall.values())] for name, recall in found["dark"].items()]
    text = f"Share of {WITH_HOLE} frames with a dead rectangle that `darkest area` notices, at a threshold that 1% of good frames pass:"
    lines += ["## Parts that count nothing", "", text, "", *markdown(head, rows), ""]
    return "\n".join(lines)


def chance_error(n: int) -> float:
    """Standard error of the area for n good and n wrong frames that are alike."""
    return ((2 * n + 1) / (12 * n * n)) ** 0.5


def in_words(auc: dict, n: int) -> list[str]:
    """For each kind, the best score of a model and the best without one; what counts are two standard errors."""
    out, clear = [], 2 * chance_error(n)
    for kind, row in auc.items():
        plain = max(PLAIN, key=row.get)
        model = max((n for n in row if n not in PLAIN), key=row.get)
        verdict = "about the same"
        if max(row[model], row[plain]) < 0.5 + clear:
            verdict = "neither sees it"
        elif abs(row[model] - row[plain]) > clear:
            verdict = "the model sees more" if row[model] > row[plain] else "the plain number sees more"
        out.append(f"- {kind}: {model} {row[model]:.2f}, {plain} {row[plain]:.2f}: {verdict}.")
    return out


WITH_HOLE = 200


def dark_recalls() -> dict[str, dict[str, float]]:
    """Of each experiment and share of the area, the recall of the darkest area at 1% false alarms."""
    found = {}
    for name, good in DARK.items():
        limit = np.quantile(darkest_area(good_frames(name, range(FIRST, FIRST + good))), 0.01)
        frames = good_frames(name, range(FIRST + good, FIRST + good + WITH_HOLE))
        seen = {share: darkest_area(with_dead_panel(frames, 0, share)) < limit for share in SHARES}
        found[name] = {f"{share:.3f}": float(s.mean()) for share, s in seen.items()}
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS))
    args = parser.parse_args()
    same_terms()
    n, start = args.frames, time.process_time()
    reference = anomaly_scores(args.run, good_frames("sim128", range(FIRST, FIRST + 2 * n)), levels=args.levels)
    good = anomaly_scores(args.run, good_frames("sim128", range(FIRST + 2 * n, FIRST + 3 * n)), levels=args.levels)
    shots = range(FIRST + 3 * n, FIRST + 4 * n)
    wrong = {k: anomaly_scores(args.run, make("sim128", shots), levels=args.levels) for k, make in ANOMALIES.items()}
    auc = auc_table(good, wrong, reference).T.to_dict()
    words = " ".join(f"{level:g}" for level in args.levels)
    parts = {"autoencoder": args.run / "autoencoder", "denoiser": args.run}
    parts = {name: path for name, path in parts.items() if path.exists()}
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/anomalies.py RUN --frames {n} --levels {words}",
        "run": ", ".join(f"{name} {load_checkpoint(path, verify=False).step} steps" for name, path in parts.items()),
        "frames": n,
        "ms": 1e3 * (time.process_time() - start) / (n * (3 + len(wrong))),
        "auc": auc,
        "words": in_words(auc, n),
        "dark": dark_recalls(),
    }
    write_results("anomalies", page, found)
    print(page(found))


if __name__ == "__main__":
    main()
