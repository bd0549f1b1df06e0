"""Kills at random moments: 50 of trainings, 20 of samplings, 10 of conversions, each gone on with until it is done and compared bit by bit with what nobody disturbed.

    OMP_NUM_THREADS=1 python bench/kills.py [--seed 0] [--train 50] [--sample 20] [--convert 10] [--minutes M] [--folder DIR]

A job is one command, of at most ten kills. Each attempt is a process that executes the command (forked from one that has imported PyTorch, so that the time is spent in the job) and is sent SIGKILL, or in a third
of the cases SIGTERM, after a time that is uniform over the duration of an undisturbed job. A run goes on by `xrddiff run resume=RUN`, the others by the same command again. Trainings are of a KL autoencoder and
of pixel diffusion, 20 steps on simulated frames of 32 × 32 pixels with a checkpoint every 4, to the end of their report. Compared are all tensors of the last checkpoint (weights, averages, moments, random numbers), the
table of losses without its times, the summary of the judgement, every pixel of samples and reconstructions; of conversions every variable. Writes bench/results/kills.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from harness import make_parser, markdown, same_terms, write_results
from safetensors.numpy import load_file

import xrddiff.judge.inference.sample_jobs
import xrddiff.judge.metrics.reconstruction
import xrddiff.judge.views.judgement
import xrddiff.judge.views.plots  # noqa: F401  imported once, before the first fork
from xrddiff.app.cli.main import main
from xrddiff.data.formats.store import read_store
from xrddiff.learn.training.checkpoints import latest_checkpoint

MOST = 10  # kills of one job
TRAIN = ["experiment_type=test", "data=full", "data.data_id=null", "data.data_path=shots.h5", "data.limit=100"]
TRAIN += [
    "data.crop=[32,32]",
    "training.max_steps=20",
    "training.num_epochs=10",
    "training.batch_size=4",
    "training.checkpoint_every=4",
]
TRAIN += ["training.log_every=1", "inference.limit=4", "inference.steps=2", "inference.num_samples=4", "threads=1"]


def start(argv: list[str]) -> int:
    """A child that executes a command, its output in log.txt; its number."""
    if child := os.fork():
        return child
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    """How a child ended: its exit code, or minus the number of the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass
class Tally:
    """What was done to the jobs of one kind, and what became of them."""

    kind: str
    jobs: int = 0
    equal: int = 0
    signals: Counter = field(default_factory=Counter)
    moments: Counter = field(default_factory=Counter)
    codes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    until: float = math.inf  # no job is killed after this time

    def goes_on(self, wanted: int) -> bool:
        """Are there kills left to be made, and time for them? Keeps what there is so far in tally.json."""
        Path("tally.json").write_text(json.dumps(vars(self)))
        return self.kills < wanted and time.time() < self.until

    @property
    def kills(self) -> int:
        """Signals that met a living process."""
        return sum(self.signals.values())


def disturb(
    tally: Tally,
    command: Callable[[], list[str]],
    moment: Callable[[], str],
    seconds: float,
    most: int,
    rng: random.Random,
) -> None:
    """One job: killed at most so many times, and gone on with until it is done."""
    left = min(MOST, most)
    for _ in range(40):
        child = start(command())
        if not left or time.time() > tally.until:
            code = finish(child)
        else:
            time.sleep(rng.uniform(0, seconds))
            how = signal.SIGTERM if rng.random() < 1 / 3 else signal.SIGKILL
            when = moment()
            os.kill(child, how)  # a child that has ended is still to be waited for
            code = finish(child)
            if code != 0:
                left -= 1
                tally.signals[how.name] += 1
                tally.moments[when] += 1
                tally.codes[str(code)] += 1
                if code not in (-how, 75):
                    tally.faults.append(f"{' '.join(command())}: ended with {code} after {how.name} {when}")
        if code == 0:
            return
    tally.faults.append(f"{' '.join(command())}: not done after 40 attempts")


def run_folder(name: str) -> Path | None:
    """The folder of the run of this name, where it is whole enough to go on."""
    found = [p.parent for p in Path("output").glob(f"*/{name}*/config.yaml")]
    return max(found, key=lambda p: p.stat().st_mtime) if found else None


def run_state(run: Path) -> dict[str, object]:
    """All that a finished run came to."""
    newest = latest_checkpoint(run / "checkpoints")
    state: dict[str, object] = {
        f"{p.stem}/{k}": v for p in sorted(newest.glob("*.safetensors")) for k, v in load_file(p).items()
    }
    table = pd.read_csv(run / "metrics" / "training_metrics.csv")
    state["table"] = table.drop(columns=[c for c in table if "time" in c or "second" in c]).to_csv()
    state["summary"] = (run / "metrics" / "summary.json").read_text()
    for store in sorted(run.glob("samples/*.zarr")):
        state[store.name] = read_store(store)["intensity"].values
    return state


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names under which two results are not the same, bit by bit."""

    def same(a: object, b: object) -> bool:
        if isinstance(a, str):
            return a == b
        return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")

    return sorted(set(one) ^ set(other)) + [k for k in one if k in other and not same(one[k], other[k])]


def judge(tally: Tally, name: str, one: dict[str, object], other: dict[str, object]) -> None:
    """Note whether a job ended as the undisturbed one."""
    tally.jobs += 1
    if different := differences(one, other):
        tally.faults.append(f"{name}: {', '.join(different[:5])}")
    else:
        tally.equal += 1


def undisturbed(argv: list[str]) -> float:
    """Execute a command to its end; seconds."""
    started = time.monotonic()
    if code := finish(start(argv)):
        raise SystemExit(f"{' '.join(argv)} ended with {code}:\n" + Path("log.txt").read_text()[-3000:])
    return time.monotonic() - started


def train(model: str, kills: int, rng: random.Random, until: float) -> None:
    """Kills of trainings of a model."""
    tally, words = Tally(f"training, {model}", until=until), ["run", f"model={model}", *TRAIN]
    seconds = undisturbed([*words, f"run_name=whole-{model}"])
    whole = run_state(run_folder(f"whole-{model}"))
    while tally.goes_on(kills):
        name = f"{model}-{tally.jobs}"

        def command(name: str = name) -> list[str]:
            run = run_folder(name)
            return ["run", f"resume={run}"] if run else [*words, f"run_name={name}"]

        def moment(name: str = name) -> str:
            run = run_folder(name)
            if run is None:
                return "before there is a run"
            if not list(run.glob("checkpoints/step-*")):
                return "before the first checkpoint"
            return "judging" if (run / "checkpoints" / "step-00000020").exists() else "training"

        disturb(tally, command, moment, seconds, kills - tally.kills, rng)
        judge(tally, name, run_state(run_folder(name)), whole)


def sample(kills: int, rng: random.Random, until: float) -> None:
    """Kills of `xrddiff sample`."""
    undisturbed(["run", "model=ddpm", *TRAIN, "run_name=trained"])
    tally, run = Tally("sampling", until=until), run_folder("trained").absolute()
    words = ["sample", str(run), "-n", "48", "inference.batch_size=4", "inference.steps=24", "--name"]
    seconds = undisturbed([*words, "whole"])

    def result(name: str) -> dict[str, object]:
        frames = read_store(run / "samples" / name / "samples.zarr")
        found: dict[str, object] = {k: frames[k].values for k in ("intensity", "sample", "mask") if k in frames}
        return found | {"summary": (run / "samples" / name / "metrics" / "summary.json").read_text()}

    whole = result("whole")
    while tally.goes_on(kills):
        folder = run / "samples" / f"killed-{tally.jobs}"

        def moment(folder: Path = folder) -> str:
            if not (folder / "samples.parts" / "plan.json").exists() and not (folder / "samples.zarr").exists():
                return "before the plan"
            return "judging" if (folder / "samples.zarr").exists() else "sampling"

        disturb(tally, lambda folder=folder: [*words, folder.name], moment, seconds, kills - tally.kills, rng)
        judge(tally, folder.name, result(folder.name), whole)
        if more := list(run.glob(f"samples/{folder.name}-*")):
            tally.faults.append(f"{more[0]}: the set did not go on in its own folder")


def convert(kills: int, rng: random.Random, until: float) -> None:
    """Kills of `xrddiff data convert`."""
    tally = Tally("conversion", until=until)
    seconds = undisturbed(["data", "convert", "many.h5", "whole.zarr"])
    result = lambda name: {str(k): v.values for k, v in read_store(name).variables.items()}  # noqa: E731
    whole = result("whole.zarr")
    while tally.goes_on(kills):
        target = f"killed-{tally.jobs}.{('zarr', 'h5')[tally.jobs % 2]}"
        moment = lambda target=target: "after it was there" if Path(target).exists() else "before it was there"  # noqa: E731
        disturb(
            tally,
            lambda target=target: ["data", "convert", "many.h5", target],
            moment,
            seconds,
            kills - tally.kills,
            rng,
        )
        judge(tally, target, result(target), whole)
        if left := [p.name for p in Path().iterdir() if target in p.name and p.name != target]:
            tally.faults.append(f"{target}: {left[0]} is left beside it")


def table(tallies: list[Tally], seed: int, seconds: float) -> str:
    """The results as Markdown."""
    lines = ["# Kills at random moments", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    rows = []
    for t in tallies:
        when = ", ".join(f"{n} {name}" for name, n in t.moments.most_common())
        cells = [t.kind, t.kills, t.signals["SIGKILL"], t.signals["SIGTERM"], t.jobs, f"{t.equal} of {t.jobs}", when]
        rows.append(cells)
    lines += markdown(["", "kills", "SIGKILL", "SIGTERM", "jobs", "bitwise equal", "when"], rows, "lrrrrrl")
    stopped = sum(t.codes["75"] for t in tallies)
    lines += [
        "",
        f"{stopped} of the {sum(t.signals['SIGTERM'] for t in tallies)} processes that were sent SIGTERM ended in order with exit code 75; it ended the others at once.",
    ]
    faults = [fault for t in tallies for fault in t.faults]
    lines += ["", *(["Faults:", "", *(f"- {fault}" for fault in faults)] if faults else ["No fault."])]
    return "\n".join(
        [
            *lines,
            "",
            f"Seed {seed}, {seconds / 60:.0f} minutes on {os.cpu_count()} shared CPU cores, {date.today()}.",
            "",
        ]
    )


PARTS = {
    "vae_kl": lambda *args: train("vae_kl", *args),
    "ddpm": lambda *args: train("ddpm", *args),
    "sample": sample,
    "convert": convert,
}


def part(name: str, kills: int, seed: int, until: float) -> None:
    """One kind of kills, in a folder of its own; its tally goes to tally.json there."""
    Path(name).mkdir(exist_ok=True)
    os.chdir(name)
    for n, file in ((120, "shots.h5"), (1500, "many.h5")):
        if not Path(file).exists() and (name == "convert") == (file == "many.h5"):
            undisturbed(["data", "simulate", "sim128", "-n", str(n), "-o", file])
    PARTS[name](kills, random.Random(f"{seed} {name}"), until)


def bench(args: argparse.Namespace) -> int:
    """All kinds of kills, side by side, and the table of them."""
    os.environ.setdefault("MPLBACKEND", "agg")
    same_terms()
    os.chdir(args.folder)
    until = time.time() + 60 * args.minutes
    began, counts = (
        time.monotonic(),
        dict(vae_kl=-(-args.train // 2), ddpm=args.train // 2, sample=args.sample, convert=args.convert),
    )
    children = {}
    for name, kills in counts.items():
        if not (child := os.fork()):
            code = 1
            try:
                part(name, kills, args.seed, until)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children[name] = child
    codes = {name: finish(child) for name, child in children.items()}
    tallies = []
    for name in counts:
        words = json.loads(file.read_text()) if (file := Path(name, "tally.json")).exists() else {"kind": name}
        if codes[name]:
            words["faults"] = [*words.get("faults", []), f"{name}: the part itself failed, see its log.txt"]
        for field_ in ("signals", "moments", "codes"):
            words[field_] = Counter(words.get(field_, {}))
        tallies.append(Tally(**words))
    text = table(tallies, args.seed, time.monotonic() - began)
    print(write_results("kills", text))
    return 0 if all(t.jobs and t.equal == t.jobs and not t.faults for t in tallies) else 1


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    for name, n in (("train", 50), ("sample", 20), ("convert", 10)):
        parser.add_argument(f"--{name}", type=int, default=n, help=f"kills ({n})")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no job is killed any more")
    parser.add_argument("--folder", help="where the runs are kept (a temporary folder)")
    chosen = parser.parse_args()
    if chosen.folder:
        Path(chosen.folder).mkdir(parents=True, exist_ok=True)
        sys.exit(bench(chosen))
    with tempfile.TemporaryDirectory() as place:
        chosen.folder = place
        sys.exit(bench(chosen))
