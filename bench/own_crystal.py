"""A toy protein in the cell of thaumatin, simulated on measured detectors: what a frame costs, and whether it indexes.

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/own_crystal.py [--frames N] [--pictures PLACE]

FOLDER has frames of dials-data (thaumatin_grid_01, thermolysin_cspad_401, eiger16m*); without it nothing is simulated. `--pictures`: where a simulated frame with its predicted
spots goes. Each detector is a process of its own, with one thread. "Once" is what the first frame waits for: file, mask, structure factors, background. The last columns are of
the indexer, which is told the cell but not the orientations; distances are those between peaks that it found and spots that it predicts. Writes bench/results/own_crystal.json
and own_crystal.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import machine, make_parser, markdown, measured_frames, same_terms, write_results

ROOT = Path(__file__).resolve().parent.parent
# file, options, words of the peak finder
SETS = {
    "Pilatus 6M, 0.2° images": ("thaumatin_grid_01.cbf*", {"rotation": 0.2, "mosaicity": 0.1, "size": 20.0}, {}),
    "Pilatus 6M, pink stills": ("thaumatin_grid_01.cbf*", {"spectrum": "pink", "bandwidth": 3e-3}, {}),
    "CSPAD of 64 panels, SASE stills": (
        "thermolysin_cspad_401.cbf",
        {"spectrum": "sase", "bandwidth": 1e-3, "mosaicity": 0.2, "gain": 20.0, "read_noise": 5.0},
        {"threshold": 80},
    ),
    "Eiger 16M, 0.1° images": ("eiger16m*.cbf*", {"rotation": 0.1, "mosaicity": 0.1, "size": 20.0}, {}),
}

# Prints what a set takes; argv: package, file, options and words of the finder as JSON, number of frames, picture.
CHILD = """
import json, resource, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import gemmi, numpy as np, torch
from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks
from xrddiff.physics.indexing.series import index_series
from xrddiff.physics.simulation import simulate as simulator
from xrddiff.physics.simulation.own_experiments import own_experiment
torch.set_num_threads(1)
options, words, frames, picture = json.loads(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
rng, cell = np.random.default_rng(1), (57.8, 57.8, 150.2, 90.0, 90.0, 90.0)
toy = gemmi.Structure()
toy.cell, toy.spacegroup_hm = gemmi.UnitCell(*cell), "P 41 21 2"
toy.add_model(gemmi.Model(1))
toy[0].add_chain(gemmi.Chain("A"))
x = np.array([15.0, 15, 20])
while toy[0].count_atom_sites() < 1600:  # random walks in a ball of 20 A
    residue = gemmi.Residue()
    residue.name, residue.seqid = "GLY", gemmi.SeqId(str(len(toy[0][0]) + 1))
    for name in ("N", "C", "C", "O", "C", "C", "N", "O"):
        step = rng.normal(size=3)
        y = x + 1.5 * step / np.linalg.norm(step)
        x = y if np.linalg.norm(y - [18, 18, 20]) < 20 else x
        atom = gemmi.Atom()
        atom.name, atom.element, atom.b_iso, atom.pos = name, gemmi.Element(name), 18.0, gemmi.Position(*x)
        residue.add_atom(atom)
    toy[0][0].add_residue(residue)
memory, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time
with tempfile.TemporaryDirectory() as folder:
    toy.write_pdb(f"{folder}/toy.pdb")
    begun = clock()
    experiment = own_experiment(f"{folder}/toy.pdb", sys.argv[2], background=2.0, **options)
simulator._setting(experiment)
once = clock() - begun
begun = clock()
ds = simulator.simulate(experiment, range(frames), threads=1)
each = (clock() - begun) / frames
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peaks = find_frame_peaks(ds, **(PEAKFINDER8 | words if words else {}))
found = index_series(ds, cell, peaks=peaks, controls=50)
own = [found.of(i)[0] for i in range(frames) if found.of(i)]
out = {"once": once, "each": each, "MB": (most - memory) / 1024, "size": int(np.prod(experiment.detector.shape)), "frames": frames,
       "resolution": experiment.resolution, "listed": int(ds.sizes["peak"]), "peaks": len(peaks), "lattices": len(own),
       "indexed": sum(int(x.indexed.sum()) for x in own), "rmsd": float(np.sqrt((np.concatenate([x.error for x in own]) ** 2).mean())) if own else None}
if picture:
    from xrddiff.judge.views.indexing import show_indexing
    ax = show_indexing(ds, found, 0, pixels=1200)
    ax.figure.set_size_inches(11, 11)
    ax.figure.savefig(picture, dpi=110)
print(json.dumps(out))
"""


def look(folder: Path, name: str, frames: int, pictures: Path | None) -> dict[str, Any]:
    """What `CHILD` measures of a detector."""
    pattern, options, words = SETS[name]
    file = sorted(folder.glob(pattern))[0]
    place = (
        "" if pictures is None else str(pictures / f"{name.lower().split(',')[0].replace(' ', '-')}-{len(name)}.png")
    )
    call = [
        sys.executable,
        "-c",
        CHILD,
        str(ROOT),
        str(file),
        json.dumps(options),
        json.dumps(words),
        str(frames),
        place,
    ]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(data: dict[str, Any]) -> list[str]:
    """The table."""
    out = [
        "# A crystal of a file on measured detectors",
        "",
        f"`{data['command']}`, {data['machine']}. A toy protein of 1,600 atoms in the cell of thaumatin; CPU seconds of one thread, MB beyond the imports. The indexer takes the mean wavelength for that of every spot, which those of a pink beam do not have.",
        "",
    ]
    head = [
        "detector",
        "Mpx",
        "to d, Å",
        "once, s",
        "a frame, s",
        "MB",
        "spots in the truth",
        "peaks",
        "on the lattice",
        "frames with it",
        "rmsd, px",
    ]
    rows = [
        [
            name, f"{own['size'] / 1e6:.1f}", f"{own['resolution']:.2f}", f"{own['once']:.1f}", f"{own['each']:.2f}", f"{own['MB']:.0f}", own["listed"],
            own["peaks"], own["indexed"], f"{own['lattices']} of {own['frames']}", "–" if own["rmsd"] is None else f"{own['rmsd']:.2f}",
        ]
        for name, own in data["sets"].items()
    ]  # fmt: skip
    return [*out, *markdown(head, rows, "lr")]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--frames", type=int, default=3, help="frames of each detector (3)")
    parser.add_argument("--pictures", type=Path, help="a folder for the pictures")
    args = parser.parse_args()
    folder = measured_frames()
    there = [name for name, (pattern, *_) in SETS.items() if any(folder.glob(pattern))]
    if not there:
        return print("skipped: XRDDIFF_DATA names no folder with measured frames of dials-data")
    same_terms()
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    sets = {name: look(folder, name, args.frames, args.pictures) for name in there}
    command = "OMP_NUM_THREADS=1 XRDDIFF_DATA=… python bench/own_crystal.py"
    data = {"command": command, "machine": machine("cores", "python", "torch"), "sets": sets}
    print(write_results("own_crystal", page, data))


if __name__ == "__main__":
    main()
