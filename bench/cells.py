"""Is the cell of a crystal found if nothing is known of it? Cells of all fourteen Bravais types with edges of 30 to 400 Å, each from a few stills.

    OMP_NUM_THREADS=1 python bench/cells.py [--cells 20] [--stills 6] [--only aP mP …]

A still is its strongest spots (200 at most) with an error of .3 px in each direction, and 5% more peaks anywhere. The detector is as far away as spots of the longest axis need to be eight pixels apart, and crystals are as perfect as that axis needs: the excitation errors have a standard deviation of 6% of a*.
"""

from __future__ import annotations

import time

from harness import machine, make_parser, markdown, read_results, same_terms, write_results

TYPES = ("aP", "mP", "mC", "oP", "oC", "oI", "oF", "tP", "tI", "hR", "hP", "cP", "cI", "cF")
SHORTEST, LONGEST = 30.0, 400.0  # Å
LEAST_VOLUME = 2e4  # Å³ of a primitive cell: smaller ones have too few spots on a still
PIXEL, SIDE, WAVELENGTH = 75e-6, 2048, 1.24  # m, px, Å


def random_cell(kind: str, rng):
    """A cell of a Bravais type in its conventional setting, with no symmetry that it has only nearly."""
    import numpy as np

    from xrddiff.physics.indexing.bravais import conventional_cell, primitive_basis
    from xrddiff.physics.indexing.cells import Cell, lattice_rotations, reduce_basis

    family, centring = kind
    while True:
        edges, angles = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), 3)), [90.0, 90.0, 90.0]
        edges[: {"c": 3, "t": 2, "h": 2}.get(family, 1)] = edges[0]
        if family == "h":
            angles[2] = 120.0
        elif family == "m":
            angles[1] = rng.uniform(92, 118)
        elif family == "a":
            angles = list(rng.uniform(65, 115, 3))
        try:
            A = reduce_basis(primitive_basis(Cell((*edges, *angles), centring)))
        except ValueError:
            continue  # angles that no cell has
        own, nearly = (len(lattice_rotations(A, tolerance)) for tolerance in (1e-3, 1.5))
        if abs(np.linalg.det(A)) > LEAST_VOLUME and own == nearly:
            return conventional_cell(A, 1e-3)


def stills(cell, count: int, rng) -> list:
    """Scattering vectors of the peaks of stills of a crystal in random orientations."""
    import numpy as np
    import pandas as pd

    from xrddiff.data.frames.geometry import Geometry
    from xrddiff.physics.indexing.rays import miller_sphere, predict_spots, scattering_vectors
    from xrddiff.physics.simulation.crystal import random_rotation

    longest = max(cell.parameters[:3])
    distance = max(0.08, 8 * PIXEL * longest / WAVELENGTH)
    detector = Geometry(WAVELENGTH, distance, PIXEL, (SIDE / 2, SIDE / 2), (SIDE, SIDE))
    width = min(5e-4, 0.06 / longest)
    sphere = miller_sphere(cell, WAVELENGTH / (2 * np.sin(0.5 * np.arctan(SIDE / 2 * PIXEL / distance))))
    sphere, found = sphere[cell.present(sphere)], []
    for U in random_rotation(rng, count):
        spots = predict_spots(sphere, cell.A @ U.T, detector, 3 * width)
        bright = rng.exponential(1, len(spots)) * np.exp(-20 / spots["d"] ** 2 - (spots["excitation"] / width) ** 2 / 2)
        spots = spots.iloc[np.argsort(-bright.to_numpy())[:200]][["panel", "fs", "ss"]]
        spots[["fs", "ss"]] += rng.normal(0, 0.3, (len(spots), 2))
        stray = pd.DataFrame(rng.uniform(0, SIDE, (len(spots) // 20, 2)), columns=["fs", "ss"]).assign(panel=0)
        found.append(scattering_vectors(pd.concat([spots, stray], ignore_index=True), detector))
    return found


def right(found, true) -> bool:
    """The same centring, edges to 1%, angles to half a degree, and exactly what the symmetry says."""
    import numpy as np

    from xrddiff.physics.indexing.cells import Cell

    a, b = np.array(found.parameters), np.array(true.parameters)
    if (
        true.parameters[3:] != np.round(true.parameters[3:])
    ).all():  # triclinic: near 90° the reduced cell may be of either kind
        a[3:], b[3:] = (90 - np.abs(90 - v[3:]) for v in (a, b))
        return found.centring == "P" and Cell(tuple(b)).like(a, 0.01, 0.5)
    fixed = np.isin(b[3:].round(9), (90, 120))
    equal = all(
        (a[i] == a[j]) or abs(a[i] / a[j] - 1) < 1e-9 for i, j in ((0, 1), (1, 2)) if abs(b[i] / b[j] - 1) < 1e-9
    )
    exact = bool((np.abs(a[3:] - b[3:])[fixed] < 1e-6).all())
    return found.centring == true.centring and true.like(a, 0.01, 0.5) and equal and exact


def row(kind: str, cells: int, count: int) -> dict:
    """How many cells of a type are found, from how many stills, in what time; and those that are not."""
    import numpy as np

    from xrddiff.core.errors import BadInput
    from xrddiff.physics.indexing.lattice_search import common_cell, find_lattice

    hits, used, wrong, start = 0, [], [], time.process_time()
    for i in range(cells):
        rng = np.random.default_rng((TYPES.index(kind), i))
        true, looked = random_cell(kind, rng), []

        def search(vectors, looked=looked):
            for s in vectors:
                looked.append(len(s))
                yield find_lattice(s)

        try:
            found = common_cell(search(stills(true, count, rng)), enough=2)
        except BadInput:
            found = None
        used.append(len(looked))
        if found is not None and right(found, true):
            hits += 1
        else:
            wrong.append([str(true), str(found)])
    return {"right": hits, "cells": cells, "stills": float(np.mean(used)), "wrong": wrong, "cpu": (time.process_time() - start) / cells}  # fmt: skip


def page(found: dict) -> str:
    """The results as a page."""
    rows_ = {k: found["rows"][k] for k in TYPES if k in found["rows"]}
    rows = [[k, f"{r['right']} of {r['cells']}", f"{r['stills']:.1f}", f"{r['cpu']:.1f}"] for k, r in rows_.items()]
    right_, all_ = (sum(r[k] for r in found["rows"].values()) for k in ("right", "cells"))
    lines = [
        "# Unknown cells", "",
        f"`{found['command']}`; {machine('python', 'one thread')}.", "",
        "Cells of all Bravais types, edges of 30 to 400 Å, found from a few simulated stills of which nothing is known but the detector. *Right*: centring, edges to 1% and angles to .5°, in the conventional setting, with what the symmetry fixes exactly so; of a triclinic cell with an angle near 90° either of the two reduced cells. "
        "*Stills*: how many were searched until two agreed, mean. The seconds of CPU are those of all of them. What the stills are like stands in `bench/cells.py`.", "",
        *markdown(["type", "right", "stills", "CPU s a cell"], rows, "lrrr"), "",
        f"All together {right_} of {all_}.",
    ]  # fmt: skip
    if wrong := [[k, *w] for k, r in found["rows"].items() for w in r["wrong"]]:
        lines += ["", "Those that were not found:", "", *markdown(["type", "simulated", "found"], wrong, "lll")]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--stills", type=int, default=6)
    parser.add_argument("--only", nargs="*", choices=TYPES, default=list(TYPES))
    args = parser.parse_args()

    same_terms()
    found = {
        "command": f"OMP_NUM_THREADS=1 python bench/cells.py --cells {args.cells} --stills {args.stills}",
        "rows": {},
    }
    if len(args.only) < len(TYPES):
        found["rows"] = read_results("cells", found)["rows"]
    for kind in args.only:
        found["rows"][kind] = row(kind, args.cells, args.stills)
        print(kind, found["rows"][kind], flush=True)
        write_results("cells", page, found)


if __name__ == "__main__":
    main()
