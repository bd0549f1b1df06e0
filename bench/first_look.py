"""What the first look at one frame costs: opened, decoded and masked (`open_frames(FILE).load()`), `data inspect` of it, and the first picture in the explorer.

    OMP_NUM_THREADS=1 XRDDIFF_DATA=FOLDER python bench/first_look.py [--before CHECKOUT] [--rounds 3]

FOLDER holds measured frames of dials-data. `--before`: another checkout of xrddiff, measured in turn. Seconds are CPU time without imports (a small frame is looked at first),
the least of the rounds; decoding is that of fabio, with unpacking. The picture is what a kernel needs until it is on its way to the browser, with the still picture for
places without a kernel; the mask, which is made in a thread, is not in it. Memory is what the largest moment takes beyond that, in multiples of the frame as float32. Each number is from
a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import machine, make_parser, markdown, measured_frames, same_terms, turns, write_results

FILES = ("thaumatin_grid_01.cbf.bz2", "pilatus12m_thaumatin.cbf.gz", "eiger16m_thermolysin.cbf.gz")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Prints what one way of looking at argv[2] takes.
CHILD = """
import asyncio, json, sys, time
import bz2, gzip, fabio, fabio.cbfimage
import numpy as np
import xrddiff as xd
from harness import memory
from xrddiff.data.formats.readers import open_frames
from xrddiff.judge.views.inspection import inspect_file
way, path, small = sys.argv[1:4]
counts = np.random.default_rng(0).poisson(20, (256, 256)).astype(np.int32)
counts[:, 120:130] = 0
header = ["# Detector: PILATUS", "# Pixel_size 172e-6 m x 172e-6 m", "# Wavelength 1.0 A", "# Detector_distance 0.1 m", "# Beam_xy (128, 100) pixels"]
fabio.cbfimage.CbfImage(data=counts, header={"_array_data.header_contents": chr(10).join(header)}).write(small)
assert not open_frames(small).load()["mask"].values.all()
str(inspect_file(small))
xd.explore(small).still()

before, start = memory(), time.process_time()
out = {}
if way == "decoding":
    out["size"] = int(fabio.open(path).data.size)
elif way == "load":
    ds = open_frames(path).load()
    out["masked"] = int((~ds["mask"].values).sum())
elif way == "picture":
    async def show():
        xd.explore(path).still()
        return time.thread_time()

    start = time.thread_time()
    out["seconds"] = asyncio.run(show()) - start
else:
    str(inspect_file(path))
out.setdefault("seconds", time.process_time() - start)
out["bytes"] = memory() - before
print(json.dumps(out))
"""


def look(root: Path, way: str, path: Path) -> dict:
    """What `CHILD` measures with the package in `root`."""
    code = f"import sys; sys.path[:0] = [{str(root)!r}, {str(HERE)!r}]\n{CHILD}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, way, str(path), f"{folder}/small.cbf"]
        alone = os.environ | {"XRDDIFF_CACHE": folder}  # no mask of a series is known
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=alone)
    return json.loads(done.stdout.splitlines()[-1])


def page(found: dict) -> list[str]:
    rows = []
    for name, ways in found["files"].items():
        size = ways["decoding"]["size"]
        for tree in found["trees"]:
            load, inspect = ways[f"{tree} load"], ways[f"{tree} inspect"]
            rows.append(
                [
                    name.split(".")[0],
                    tree,
                    f"{ways['decoding']['seconds']:.2f}",
                    f"{load['seconds']:.2f}",
                    f"{inspect['seconds']:.2f}",
                    f"{ways[f'{tree} picture']['seconds']:.2f}",
                    *(f"{way['bytes'] / size / 4:.1f}" for way in (load, inspect)),
                    f"{load['masked']:,}",
                ]
            )
    head = [
        "frame",
        "",
        "decoding, s",
        "load, s",
        "inspect, s",
        "picture, s",
        "load, frames",
        "inspect, frames",
        "masked pixels",
    ]
    return [
        "# The first look at a frame",
        "",
        f"`{found['command']}`, {found['machine']}. CPU seconds without imports; memory in multiples of the frame as float32.",
        "",
        *markdown(head, rows, "llr"),
    ]


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--before", type=Path)
    args = parser.parse_args()
    same_terms()
    folder = measured_frames()
    if not any((folder / name).is_file() for name in FILES):
        return print(f"skipped: XRDDIFF_DATA names no folder with {FILES[0]}")
    trees = ({"before": args.before.resolve()} if args.before else {}) | {"now": ROOT}
    files: dict[str, dict] = {}
    for name in filter(lambda name: (folder / name).is_file(), FILES):
        ways = {"decoding": (ROOT, "decoding")}
        ways |= {f"{tree} {way}": (root, way) for tree, root in trees.items() for way in ("load", "inspect", "picture")}
        best: dict[str, dict] = {}
        for way in turns(ways, args.rounds):
            one = look(*ways[way], folder / name)
            if way not in best or one["seconds"] < best[way]["seconds"]:
                best[way] = one
        files[name] = best
    command = f"OMP_NUM_THREADS=1 XRDDIFF_DATA=… python bench/first_look.py --rounds {args.rounds}"
    command += " --before CHECKOUT" if args.before else ""
    found = {"command": command, "machine": machine("cores", "python", "day"), "trees": list(trees), "files": files}
    write_results("first_look", page, found)
    print("\n".join(page(found)))


if __name__ == "__main__":
    main()
