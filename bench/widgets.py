"""How long a move of the frame explorer's slider takes until the frame is on the screen, measured in the browser.

    OMP_NUM_THREADS=1 python bench/widgets.py [--moves 10]

A real JupyterLab and the system's Chromium without a graphics processor (tests/lab.py). The clock, performance.now(), starts when the
slider moves and stops in the task after the browser has painted the new frame, or its preview: so the way to the kernel, reading, masking, the
way back and drawing are all in it. Zooming and contrast ask no kernel. Frames are Poisson counts with spots, in files such as a
beamline writes. Writes bench/results/widgets.json and widgets.md.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
from harness import machine, make_parser, markdown, write_results

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

MOVE = """async ({frames, selector, whole}) => {
  const root = document.querySelectorAll(".xrddiff")[selector], slider = root.querySelector("input[type=range]");
  const painted = () => new Promise((done) => { const c = new MessageChannel(); c.port1.onmessage = () => done(performance.now()); c.port2.postMessage(0); });
  const times = [];
  for (const frame of frames) {
    const began = performance.now();
    const drawn = new Promise((done) => {
      const f = (e) => { if (e.detail.frame === frame && (e.detail.whole || !whole)) { root.removeEventListener("xrddiff-drawn", f); done(); } };
      root.addEventListener("xrddiff-drawn", f);
    });
    slider.value = frame;
    slider.dispatchEvent(new Event("input"));
    await drawn;
    times.push(await painted() - began);
    await new Promise((done) => setTimeout(done, 60));
  }
  return times;
}"""
ZOOM = """async ({selector, n}) => {
  const root = document.querySelectorAll(".xrddiff")[selector], canvas = root.querySelector(".xrddiff-over"), times = [];
  const painted = () => new Promise((done) => { const c = new MessageChannel(); c.port1.onmessage = () => done(performance.now()); c.port2.postMessage(0); });
  canvas.focus();
  for (let k = 0; k < n; k++) {
    const began = performance.now(), drawn = new Promise((done) => root.addEventListener("xrddiff-drawn", done, {once: true}));
    canvas.dispatchEvent(new KeyboardEvent("keydown", {key: k % 2 ? "-" : "+", bubbles: true}));
    await drawn;
    times.push(await painted() - began);
  }
  return times;
}"""
KERNEL = """\
import time
from xrddiff.app.widgets.explorer import FrameExplorer
spent = []
go = FrameExplorer.show_frame
def timed(self, i):
    began = time.perf_counter()
    go(self, i)
    spent.append(time.perf_counter() - began)
FrameExplorer.show_frame = timed
import xrddiff as xd
geometry = dict(distance=0.1, pixel_size=75e-6, wavelength=1.0)
"""


def write_frames(path: Path, size: int, count: int) -> None:
    """Counts of `count` frames as 16-bit integers, compressed as an Eiger does it, a frame per chunk."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    mean = 2 + 30 * np.exp(-np.hypot(y - size / 2, x - size / 2) / (0.15 * size))
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data", (count, size, size), np.uint16, chunks=(1, size, size), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        for k in range(count):
            frame = rng.poisson(mean)
            for cy, cx in rng.integers(8, size - 8, (size // 8, 2)):
                frame[cy - 1 : cy + 2, cx - 1 : cx + 2] += rng.poisson(400, (3, 3))
            frame[size // 3 : size // 3 + size // 64] = 65535  # a gap
            data[k] = frame


def row(times: list[float]) -> dict[str, float]:
    """Median, nine of ten, and the longest, ms."""
    times = sorted(times)
    return {"median": statistics.median(times), "nine_of_ten": times[int(0.9 * (len(times) - 1))], "longest": times[-1]}


def measure(moves: int) -> dict[str, dict[str, float]]:
    """Times in ms by what was done."""
    os.environ.setdefault("XRDDIFF_TESTS", tempfile.mkdtemp())
    from lab import jupyterlab, notebooks_of

    out = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyterlab(Path(folder)) as server,
        notebooks_of((Path(folder), *server)) as notebooks,
    ):
        for size in (512, 2048):
            write_frames(Path(folder) / f"{size}.h5", size, moves + 2)
            shown = f"w = xd.explore('{size}.h5', beam_center=({size / 2}, {size / 2}), height=600, **geometry)\nw"
            page = notebooks.open([KERNEL, shown])
            page.locator(".xrddiff[data-zoom]").wait_for()
            page.evaluate(MOVE, {"frames": [moves + 1], "selector": 0, "whole": True})  # the first one compiles
            frames = {"frames": list(range(1, moves + 1)), "selector": 0}
            times = page.evaluate(MOVE, frames | {"whole": False})
            out[f"slider, {size} × {size}"] = row(times)
            page.evaluate(MOVE, {"frames": [moves + 1], "selector": 0, "whole": True})
            if size > 724:
                out[f"until every pixel is there, {size} × {size}"] = row(page.evaluate(MOVE, frames | {"whole": True}))
            out[f"zoom, {size} × {size}"] = row(page.evaluate(ZOOM, {"selector": 0, "n": moves}))
            print(size, out[f"slider, {size} × {size}"], out[f"zoom, {size} × {size}"], flush=True)
    return out


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--moves", type=int, default=10)
    moves = parser.parse_args().moves
    load = os.getloadavg()[0]
    found = measure(moves)
    lines = [
        "# How fast the frame explorer is",
        "",
        f"`OMP_NUM_THREADS=1 python bench/widgets.py --moves {moves}`; {machine('cores')}, load {load:.1f} at the start, Chromium without a graphics processor.",
        "",
        "From a move of the slider to the frame on the screen, in the browser: to the kernel and back, reading (16-bit counts, bitshuffle and LZ4), masking, drawing. A frame of more than half a million pixels comes as a preview first, and with every pixel when the slider has rested for 250 ms. Zoom asks no kernel.",
        "",
    ]
    rows = [[name, *(f"{t[k]:.0f}" for k in ("median", "nine_of_ten", "longest"))] for name, t in found.items()]
    lines += markdown(["", "median, ms", "nine of ten, ms", "longest, ms"], rows)
    write_results("widgets", lines, {"moves": moves, "load": load, "ms": found})


if __name__ == "__main__":
    main()
