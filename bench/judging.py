"""How long `xrddiff evaluate` takes for many frames: simulated stills beside as many others, by physics, lattices and distances.

    OMP_NUM_THREADS=1 python bench/judging.py [--frames 10000] [--workers 2] [--folder FOLDER]

Two files of sim128 are made (and kept, with --folder), and one is judged by the other as a user would: every frame of both is searched for peaks and indexed, the sets are merged and compared. Writes bench/results/judging.json and judging.md.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from harness import XRDDIFF, cpu_seconds, machine, make_parser, markdown, read_results, write_results


def made(folder: Path, name: str, seed: int, n: int) -> Path:
    """A file of n simulated frames, without the truth about their peaks."""
    from xrddiff.data.formats.store import save_frames
    from xrddiff.physics.simulation.simulate import simulate

    path = folder / f"{name}{n}.h5"
    if not path.exists():
        frames = simulate("sim128", range(n), seed=seed)
        save_frames(frames.drop_vars([v for v in frames.variables if "peak" in frames[v].dims]), path)
    return path


def main() -> None:
    parser = make_parser(__doc__, folder=None)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        real, other = made(folder, "real", 1, args.frames), made(folder, "made", 2, args.frames)
        words = ["evaluate", other, "--reference", real, "--limit", str(args.frames), "-o", Path(scratch) / "out"]
        words += ["--workers", str(args.workers)] if args.workers > 1 else []
        before, began = cpu_seconds(own=False), time.monotonic()
        subprocess.run([XRDDIFF, *words], check=True)
        clock, cpu = time.monotonic() - began, cpu_seconds(own=False) - before
    row = dict(frames=args.frames, beside=args.frames, workers=args.workers, minutes=clock / 60, cpu_minutes=cpu / 60)
    rows = read_results("judging", [])
    rows = [r for r in rows if (r["frames"], r["workers"]) != (args.frames, args.workers)] + [row]
    cells = [
        [f"{r['frames']:,}", f"{r['beside']:,}", r["workers"], f"{r['minutes']:.1f}", f"{r['cpu_minutes']:.1f}", f"{(r['frames'] + r['beside']) / r['minutes'] / 60:.0f}"]
        for r in sorted(rows, key=lambda r: (r["frames"], r["workers"]))
    ]  # fmt: skip
    lines = [
        "# Evaluating many frames",
        "",
        f"`OMP_NUM_THREADS=1 python bench/judging.py --frames {args.frames} --workers {args.workers}`; {machine('cores', 'day')}.",
        "",
        "`xrddiff evaluate` of frames of sim128 beside as many others: each frame of both is searched for peaks, measured and indexed, then the sets are merged and compared, with a report. Start and report included.",
        "",
        *markdown(["frames", "beside", "workers", "minutes", "CPU minutes", "frames of both, per second"], cells, "r"),
    ]
    print(write_results("judging", lines, rows))


if __name__ == "__main__":
    main()
