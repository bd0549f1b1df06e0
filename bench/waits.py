"""How long people wait for commands that train nothing: samples of a trained run, the list of a thousand runs, a comparison of two hundred, a file that is inspected, a run that is opened and shown.

    OMP_NUM_THREADS=1 python bench/waits.py RUN [--before CHECKOUT] [--rounds 3] [--only runs compare] [--folder WORK]

RUN is a finished run of `make demo`; nothing is written into it. `--before`: another checkout of xrddiff, measured in turn on copies of its own. Each number is CPU, user and system, of a process as a user starts it, with its
imports and its own children; of the rounds the least and the (median). The runs of the lists are copies of RUN without its weights, large files as hard links. `first`: before anything is kept beside the runs. `--profile` adds the functions that
take most of each. *The demo's rest* is `xrddiff run experiment_type=demo` without its trainings: of the autoencoder, the diffusion model and the network of counts with the frames that this one is taught on. The small networks that judge the samples are trained in it, and said apart. It is measured only when `--only demo` names it, since it takes minutes. Writes bench/results/waits.json and waits.md.
"""

from __future__ import annotations

import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import machine, make_parser, markdown, min_median, read_results, turns, write_results

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "import sys; sys.argv[0] = 'xrddiff'; from xrddiff.app.entry import command_line; command_line()"
OPEN = "import sys; import xrddiff as xd; xd.open_run(sys.argv[1])._repr_html_()"
DEMO = """
import sys, time
from pathlib import Path
import xrddiff.judge.inference.counts_of_runs as counts
from xrddiff.app.entry import command_line
from xrddiff.judge.inference.judges import KeptClassifiers
from xrddiff.judge.metrics.two_sample import PictureClassifier
from xrddiff.learn.training.trainer import Trainer
taken = {"training": 0.0, "judges": 0.0}
def timed(what, function):
    def call(*args, **words):
        before = time.process_time()
        try:
            return function(*args, **words)
        finally:
            taken[what] += time.process_time() - before
    return call
Trainer.fit, counts.train_counts = timed("training", Trainer.fit), timed("training", counts.train_counts)
KeptClassifiers.fit, PictureClassifier.fit = timed("judges", KeptClassifiers.fit), timed("judges", PictureClassifier.fit)
sys.argv[0], trained = "xrddiff", Path(sys.argv.pop())
try:
    command_line()
finally:
    trained.write_text(f"{taken['training']} {taken['judges']}")
"""
SMALL = """
import sys
from xrddiff.data.formats.store import save_frames
from xrddiff.physics.simulation.simulate import simulate
save_frames(simulate("sim128", range(1)), sys.argv[1])
"""
WEIGHTS = {"checkpoints", "judge", "counts", "tracking", "plots"}
LARGE = 20_000  # bytes, from which on a file of a copied run is a hard link
KEPT = (".row.json", ".pictures.json")  # what is kept beside a run that was listed or shown


def copies(run: Path, folder: Path, count: int) -> Path:
    """`count` copies of a run, without its weights and the sets that were drawn later."""
    for k in range(count):
        for here, folders, files in os.walk(run):
            folders[:] = [
                f for f in folders if f not in WEIGHTS and not (here.endswith("samples") and ".zarr" not in f)
            ]
            to = folder / f"run-{k:04d}" / Path(here).relative_to(run)
            to.mkdir(parents=True)
            for file in (Path(here) / name for name in files if name not in KEPT):
                large = file.stat().st_size > LARGE or ".zarr" in here
                (os.link if large else shutil.copyfile)(file, to / file.name)
    return folder


class Side:
    """A checkout, with copies of what it is measured on."""

    def __init__(self, tree: Path, folder: Path, run: Path):
        self.tree, self.folder, self.source = tree, folder, run
        self.judges: float | None = None  # seconds that the demo trained the networks of its evaluation
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def run(self) -> Path:
        """The run that is sampled and opened."""
        if not (self.folder / "run").exists():
            shutil.copytree(self.source, self.folder / "run")
        return self.folder / "run"

    def runs(self, count: int) -> Path:
        """`count` runs."""
        if not (self.folder / f"{count}").exists():
            copies(self.run, self.folder / f"{count}", count)
        return self.folder / f"{count}"

    @property
    def file(self) -> Path:
        """A file of one small frame."""
        if not (file := self.folder / "small.h5").exists():
            self.python(SMALL, str(file))
        return file

    def python(self, code: str, *words: str, profile: Path | None = None) -> float:
        """Seconds of CPU of a Python process with this checkout's package."""
        profiled = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
        script = self.folder / "code.py"
        script.write_text(code)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # who installs it has bytecode
        env |= {"PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-P", *profiled, script, *words], env=env, cwd=self.folder, capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} of {self.tree}: {done.stderr[-2000:]}")
        taken = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        if (trained := self.folder / "trained").exists():
            training, self.judges = map(float, trained.read_text().split())
            print(f"{'':28} training {training:.1f}, networks that judge {self.judges:.1f}", flush=True)
            taken -= training
            trained.unlink()
        return taken


def _sample(count: int, *words: str) -> Callable[[Side], tuple]:
    return lambda side: (COMMAND, "sample", str(side.run), "-n", str(count), "--name", "waited", *words)


def _demo(side: Side) -> tuple:
    shutil.rmtree(side.folder / "demo", ignore_errors=True)
    words = ["experiment_type=demo", f"output_dir={side.folder / 'demo'}", "run_name=demo"]
    return DEMO, "run", *words, str(side.folder / "trained")


def _forget(folder: Path) -> None:
    for name in KEPT:
        for file in folder.rglob(name):
            file.unlink()


WAITS: dict[str, Callable[[Side], tuple]] = {
    "sample RUN -n 8": _sample(8),
    "sample RUN -n 64": _sample(64),
    "open_run(RUN), shown first": lambda side: (_forget(side.run), (OPEN, str(side.run)))[1],
    "open_run(RUN), shown again": lambda side: (OPEN, str(side.run)),
    "data inspect, 128 × 128": lambda side: (COMMAND, "data", "inspect", str(side.file)),
    "runs, 1,000, first": lambda side: (_forget(side.runs(1000)), (COMMAND, "runs", str(side.runs(1000))))[1],
    "runs, 1,000, again": lambda side: (COMMAND, "runs", str(side.runs(1000))),
    "compare, 200": lambda side: (COMMAND, "compare", str(side.runs(200)), "-o", str(side.folder / "page")),
    "evaluate RUN": lambda side: (COMMAND, "evaluate", str(side.run)),
    "the demo's rest": _demo,
}
LONG = "the demo's rest"
GOALS = dict(zip(WAITS, (4, 8, None, 1, 1.2, None, 1, 15, None, 45), strict=True))


def page(found: dict[str, Any]) -> list[str]:
    sides = [side for side in ("before", "now") if any(side in row for row in found["waits"].values())]
    rows = [
        [
            f"`{name}`",
            *(min_median(row[side]) if row.get(side) else "–" for side in sides),
            GOALS[name] or "–",
            len(row["now"]),
        ]
        for name, row in found["waits"].items()
    ]
    lines = [
        "# Waiting",
        "",
        f"`{found['command']}`, {found['machine']}. Seconds of CPU, user and system, of a process as a user starts it, with its imports: the least and the (median) of the rounds, which take turns. On a machine with other work the same command takes up to twice as long, on both sides.",
        "",
        *markdown(["", *sides, "goal", "rounds"], rows, "lr"),
    ]
    if judges := found.get("judges"):
        lines += [
            "",
            f"Of the demo's rest, {judges:.1f} s are the training of the networks that judge: the classifier of the condition, and those of the two-sample test.",
        ]
    for name, top in found.get("profiles", {}).items():
        lines += ["", f"## `{name}`, {found['profiled']}", ""]
        lines += markdown(["cumulative s, profiled", "calls", "function"], top, "rrl")
    return lines


def profile_of(side: Side, name: str, most: int = 12) -> list[list[str]]:
    """The functions of this package, and of what it calls, that take most; one row for each."""
    file = side.folder / "profile"
    code, *words = WAITS[name](side)
    side.python(code, *words, profile=file)
    stats = pstats.Stats(str(file)).stats
    found = sorted(((row[3], row[1], key) for key, row in stats.items() if "xrddiff/" in key[0]), reverse=True)
    return [
        [f"{seconds:.2f}", f"{calls}", f"`{path.rpartition('xrddiff/')[2]}` {function}"]
        for seconds, calls, (path, _, function) in found
        if function != "<module>" and "app/cli/main" not in path and "entry" not in path
    ][:most]


def measure(sides: dict[str, Side], args: Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of each wait and side."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in (name for name in WAITS if (any(word in name for word in args.only) if args.only else name != LONG)):
        found[name] = {side: [] for side in sides}
        for _ in range(args.warmup if name != LONG else 0):  # bytecode may be written
            for side in sides.values():
                code, *words = WAITS[name](side)
                side.python(code, *words)
        for who in turns(sides, args.rounds):
            code, *words = WAITS[name](sides[who])
            found[name][who].append(sides[who].python(code, *words))
            print(f"{name:28} {who:8} {found[name][who][-1]:.2f}", flush=True)
    return found


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("run", type=Path)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="waits whose names have one of these")
    parser.add_argument("--folder", type=Path, help="keep the copies here, and go on with what is there")
    parser.add_argument(
        "--warmup", type=int, default=1, help="rounds that are not counted, in which bytecode is written"
    )
    parser.add_argument("--profile", action="store_true", help="profile each wait of this checkout, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)).resolve()
        trees = ({"before": args.before.resolve()} if args.before else {}) | {"now": ROOT}
        sides = {name: Side(tree, folder / name, args.run.resolve()) for name, tree in trees.items()}
        found = read_results("waits", {"waits": {}})
        found["waits"] |= measure(sides, args)
        if sides["now"].judges is not None:
            found["judges"] = sides["now"].judges
        if args.profile:
            kept = found.setdefault("profiles", {})
            kept |= {
                name: profile_of(sides["now"], name)
                for name in found["waits"]
                if not args.only or any(w in name for w in args.only)
            }
            found["profiled"] = "where the time goes now"
    found["waits"] = {name: found["waits"][name] for name in WAITS if name in found["waits"]}
    found["command"] = "OMP_NUM_THREADS=1 python bench/waits.py RUN --before CHECKOUT"
    found["machine"] = machine("cores", f"load {os.getloadavg()[0]:.1f}", "python", "torch", "day")
    print(*page(found), sep="\n")
    write_results("waits", page, found)


if __name__ == "__main__":
    main()
