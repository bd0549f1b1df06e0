"""Every measured frame of a folder: opened, masked, searched for peaks and indexed, in a table and as pictures.

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/measured.py [--before CHECKOUT] [--pictures PLACE]

FOLDER has frames of dials-data (thaumatin_grid_*, thermolysin_cspad_*, pilatus12m*, eiger16m*); without it nothing is measured. `--before`: another checkout of xrddiff,
measured too. `--pictures`: where a picture of each frame goes, with its mask, peaks and predicted spots; nothing of a measured frame goes into bench/results. Each set is a
process of its own. CPU time of one thread, without imports; memory is what the largest moment takes beyond them. Other tables go deeper: first_look (against the commit
before), peakfinder (against peakfinder8), refinement (against the truth of simulated series), windows (training). Writes bench/results/measured.json and measured.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import machine, make_parser, markdown, measured_frames, same_terms, write_results

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# files, cell, words of the peak finder
SETS = {
    "Thaumatin, Pilatus 6M": ("thaumatin_grid_*.cbf*", "57.8,57.8,150.2,90,90,90", {}),
    "Thermolysin, CSPAD": ("thermolysin_cspad_*.cbf", "92.9,92.9,130.5,90,90,120", {"threshold": 80}),
    "Thaumatin, Pilatus 12M": (
        "pilatus12m*.cbf*",
        None,
        {},
    ),  # a half-cylinder whose header calls it flat: nothing may be indexed
    # the name of the file says thermolysin; the lattice is thaumatin's
    "Thaumatin, Eiger 16M": ("eiger16m*.cbf*", "57.8,57.8,150.2,90,90,90", {}),
}

# Prints what a set takes, with the package in argv[1]; argv[2:]: files as JSON, cell, words as JSON, folder of pictures, that of the harness.
CHILD = """
import json, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[6]]
from harness import memory
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.frames import frame_mask
from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks
from xrddiff.physics.indexing.indexer import INDEXED, index_frames
try:
    from xrddiff.physics.indexing.series import index_series
except ImportError:
    index_series = index_frames
files, cell, words, pictures = json.loads(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]), sys.argv[5]
before, clock, spent = memory(), time.process_time, {}
begun = clock()
try:
    ds = open_frames(files)
except BadInput as error:  # an older package may not know the format
    print(json.dumps({"why": str(error)}))
    sys.exit()
masks = [frame_mask(ds, i) for i in range(ds.sizes["frame"])]
spent["open and mask"] = clock() - begun
begun = clock()
peaks = find_frame_peaks(ds, **(PEAKFINDER8 | words if words else {}))
spent["peaks"] = clock() - begun
begun, found, why = clock(), None, ""
if cell:
    try:
        found = index_series(ds, cell, peaks=peaks, distance_range=0.03, controls=100)
    except BadInput as error:
        why = str(error)
spent["index"] = clock() - begun
rows = []
for i in range(len(masks)):
    own = found.of(i)[0] if found is not None and i in found.table.index and found.of(i) else None
    hit = own is not None and own.p < INDEXED
    rmsd = float(found.table.loc[i, "rmsd_px"]) if hit else None
    rows.append([i, 1 - float(masks[i].mean()), int((peaks["frame"] == i).sum()), int(own.indexed.sum()) if hit else None, rmsd])
most = memory()
if pictures:
    from xrddiff.judge.views.indexing import show_indexing
    from xrddiff.judge.views.plots import show_peaks
    for i, row in enumerate(rows):
        one = peaks[peaks["frame"] == i]
        ax = show_indexing(ds, found, i, pixels=1200) if row[3] else show_peaks(ds, i, one, pixels=1200)
        ax.figure.set_size_inches(11, 11)
        ax.figure.savefig(f"{pictures}-{i:02d}.png", dpi=110)
print(json.dumps({"spent": spent, "MB": (most - before) / 2**20, "rows": rows, "why": why, "size": int(masks[0].size)}))
"""


def look(root: Path, folder: Path, name: str, pictures: Path | None) -> dict[str, Any]:
    """What `CHILD` measures of a set with the package in `root`."""
    pattern, cell, words = SETS[name]
    files = [str(f) for f in sorted(folder.glob(pattern))]
    place = "" if pictures is None else str(pictures / name.lower().replace(", ", "-").replace(" ", "-"))
    call = [sys.executable, "-c", CHILD, str(root), json.dumps(files), cell or "", json.dumps(words), place]
    with tempfile.TemporaryDirectory() as cache:  # no mask of a series is known
        env = os.environ | {"XRDDIFF_CACHE": cache}
        done = subprocess.run([*call, str(HERE)], stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1]) | {"files": [Path(f).name.split(".")[0] for f in files]}


def page(data: dict[str, Any]) -> list[str]:
    """The tables."""
    out = [
        "# Measured frames",
        "",
        f"`{data['command']}`, {data['machine']}. CPU seconds of a frame; MB beyond the imports, of the whole set.",
        "",
    ]
    head = ["set", "", "frames", "Mpx", "open and mask, s", "peaks, s", "index, s", "MB", "with a lattice"]
    rows = []
    for name, trees in data["sets"].items():
        for tree, own in trees.items():
            if "rows" not in own:
                rows.append([name, tree, "not read", *6 * ["–"]])
                continue
            n = len(own["rows"])
            spent = [f"{own['spent'][k] / n:.2f}" for k in ("open and mask", "peaks", "index")]
            hits = sum(row[3] is not None for row in own["rows"]) if SETS[name][1] else "not tried"
            rows.append([name, tree, n, f"{own['size'] / 1e6:.1f}", *spent, f"{own['MB']:.0f}", hits])
    out += [*markdown(head, rows, "llr"), "", "Each frame as it is found now:", ""]
    head = ["frame", "masked", "peaks", "on the lattice", "rmsd, px"]
    rows = [
        [own["files"][i], f"{masked:.1%}", peaks, "–" if hit is None else hit, "–" if rmsd is None else f"{rmsd:.2f}"]
        for own in (trees["now"] for trees in data["sets"].values())
        for i, masked, peaks, hit, rmsd in own["rows"]
    ]
    return [*out, *markdown(head, rows, "lr")]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--before", type=Path, help="another checkout of xrddiff")
    parser.add_argument("--pictures", type=Path, help="a folder for the pictures")
    args = parser.parse_args()
    folder = measured_frames()
    there = [name for name, (pattern, *_) in SETS.items() if any(folder.glob(pattern))]
    if not there:
        return print("skipped: XRDDIFF_DATA names no folder with measured frames of dials-data")
    same_terms()
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    trees = ({"before": args.before.resolve()} if args.before else {}) | {"now": ROOT}
    sets = {
        n: {t: look(root, folder, n, args.pictures if t == "now" else None) for t, root in trees.items()} for n in there
    }
    command = f"OMP_NUM_THREADS=1 XRDDIFF_DATA=… python bench/measured.py{' --before CHECKOUT' if args.before else ''}"
    print(
        write_results(
            "measured", page, {"command": command, "machine": machine("cores", "python", "torch"), "sets": sets}
        )
    )


if __name__ == "__main__":
    main()
