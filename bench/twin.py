"""Is a twin of a measured series as near to held-out exposures as other exposures are?

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/twin.py [--seeds 5]

FOLDER has the thaumatin_grid_* frames of dials-data; without it nothing is measured. The twin is learnt once from every other exposure, and judged beside the others with as many seeds, each
of which draws other frames, other windows and another classifier. Writes bench/results/twin.json and twin.md.
"""

from __future__ import annotations

import numpy as np
from harness import Spent, machine, make_parser, markdown, measured_frames, memory, same_terms, timed, write_results

from xrddiff.judge.inference.twin_plan import TwinPlan
from xrddiff.judge.inference.twins import WAYS, judge_twin, twin_table, twin_words

CELL, GROUP = "57.8,57.8,150.2,90,90,90", "P 41 21 2"


def cells(title: str, tables: list, columns: list[str]) -> list[str]:
    """A row: mean ± spread over the seeds of each column."""
    out = [title]
    for column in columns:
        values = [t.loc[title, column] for t in tables if title in t.index and column in t]
        values = [v for v in values if np.isfinite(v)]
        if not values:
            out.append("–")
            continue
        form = ".2f" if max(map(abs, values)) < 10 else ".0f"
        spread = f" ± {np.std(values):{form}}" if np.std(values) > 0 else ""
        out.append(f"{np.mean(values):{form}}{spread}")
    return out


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    files = sorted(measured_frames().glob("thaumatin_grid_*.cbf*"))
    if not files:
        return print("skipped: XRDDIFF_DATA names no folder with thaumatin_grid_* frames")
    same_terms()
    plan, before = TwinPlan([str(f) for f in files], CELL, group=GROUP), memory()
    learnt, held = (half.load() for half in plan.halves(plan.open()))
    twin, spent = timed(lambda: plan.learn(learnt, None))
    _, drawn = timed(lambda: twin.frames(1)["intensity"].values)
    tables, said, judging = [], [], Spent(0, 0)
    for seed in range(args.seeds):
        judged, took = timed(lambda seed=seed: judge_twin(twin, held, seed=seed))
        tables.append(twin_table(judged))
        said.append({"best": judged.best, "words": twin_words(judged)})
        judging = Spent(*(a + b for a, b in zip(judging, took, strict=True)))
        print(tables[-1].round(3).to_string(), *said[-1]["words"], sep="\n", flush=True)
    columns = ["learnt exposures", "held-out exposures", *WAYS.values()]
    command = f"OMP_NUM_THREADS=1 XRDDIFF_DATA=… python bench/twin.py --seeds {args.seeds}"
    n = len(files)
    page = [
        "# A twin of a measured series",
        "",
        f"`{command}`; {machine('one thread')}.",
        "",
        f"{n} exposures of thaumatin on a Pilatus 6M: learnt from {learnt.sizes['frame']}, judged beside {held.sizes['frame']}. Mean ± spread of {args.seeds} seeds. AUC: of a classifier that looks at windows of 128 px; in the column of held-out exposures, of these against the learnt ones. "
        "A distance is in floors, times that of the learnt exposures from the held-out ones. Spots in measured blanks are the simple way: the pixels between the spots are those of an exposure.",
        "",
        *markdown(["", *columns], [cells(title, tables, columns) for title in tables[0].index]),
        "",
        f"Learning takes {spent.cpu:.0f} s of CPU ({learnt.sizes['frame']} frames), a new frame {drawn.cpu:.1f} s, judging {judging.cpu / args.seeds:.0f} s; {(memory() - before) / 1e6:.0f} MB at most beyond what was there before, with all {n} frames in memory.",
    ]
    record = [{"table": t.to_dict(orient="index")} | s for t, s in zip(tables, said, strict=True)]
    write_results("twin", page, record)


if __name__ == "__main__":
    main()
