"""What somebody else wrote or changed: hostile folders, studies, files, crystals and messages, flipped bits, outputs that would harm something, programs that behave badly.

    OMP_NUM_THREADS=1 python bench/hostile.py [--only folders,studies,files,crystals,outputs,programs,flips,stream,large] [--flips 10000] [--messages 100000] [--idle 2000] [--share 1] [--commands "run resume,scaling"]

Each case is one command in a process of its own (forked from one that has imported PyTorch, so that the time is that of the command), in a folder of its own, with a secret in its environment. Looked at are its exit
code, what it printed, what it wrote, what it asked a web server on this machine, whether code of the case was executed (it leaves a mark), its seconds of CPU (a *hang* is 5 s more than half as much again as what is not hostile takes, or two minutes by the clock), and its memory beyond that of the process it was forked from.
A *flip* is one bit of one file that xrddiff wrote and reads back: it is *seen* if the file is refused in a sentence, *harmless* if what is read is equal to what was written, *silent* otherwise.
An *output* is a name that holds something of somebody: content, a link, an input; or two commands write it at once, its command is killed ten times, its disk is full. *Lost* is what was there and is not as it was, *left* a half-written part. A *program* is one that `xrddiff recover` starts.
The *stream* answers good frames of a detector's socket beside fuzzed messages and idle connections. Writes bench/results/hostile.md; ends with code 1 if anything was executed, leaked, silent, lost, a traceback or a hang.

All run folders take hours of one core. `--journal FILE` keeps each outcome as it comes, so that a bench that was stopped goes on; `--part 1/2` and `--part 2/2` share the cases between two processes with one journal, and the same call without `--part` then writes the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import psutil
import torch
import xarray as xr
from harness import make_parser, read_results, same_terms, write_results

import xrddiff.judge.inference.sample_jobs
import xrddiff.judge.views.judgement
import xrddiff.judge.views.plots  # noqa: F401  imported once, before the first fork
from xrddiff.app.cli.main import main as xrddiff_main
from xrddiff.core.errors import XrddiffError
from xrddiff.data.formats.store import save_frames

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # the generators of hostile things, which the tests use too

SECRET = "cb5f0a5e-a-secret-of-this-user"
HANG = 5.0  # s of CPU beyond half as much again as what is not hostile takes, after which a command is said to hang
KILL = 120.0  # s after which it is killed
MEMORY = 1 << 30  # bytes for a hostile file


@dataclass
class Outcome:
    """What a command did with a case."""

    area: str
    case: str
    command: str
    code: int = 0
    said: str = ""
    seconds: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0  # bytes beyond those of the process it was forked from
    faults: list[str] = field(default_factory=list)


class Journal:
    """Outcomes on disk, as they come: a bench that was stopped goes on where it was, and several processes share one.

    path: a file of JSON lines; None = nothing is kept. part: (k, n), to try every n-th case from the k-th on.
    """

    def __init__(self, path: Path | None, part: tuple[int, int] = (1, 1)):
        self.path, self.part, self.code = path, part, code_digest()
        rows = path.read_text().splitlines() if path is not None and path.exists() else []
        found = [Outcome(**row) for code, row in map(json.loads, rows) if code == self.code]
        self.known = {(o.area, o.case): o for o in found}

    def tried(self, area: str, cases: Iterable[tuple[str, Callable[[float], Outcome]]]) -> Iterator[Outcome]:
        """The outcomes of the cases of this part, and of those that are known; the others are left out.

        A case is a name and what tries it, given the seconds of CPU that its command takes of what is not hostile.
        """
        usual: dict[str, float] = {}
        for number, (case, attempt_it) in enumerate(cases):
            kind, _, what = case.rpartition(": ")
            found = self.known.get((area, case))
            if found is None and (kind == "not hostile" or number % self.part[1] == self.part[0] - 1):
                found = self._add(proper(attempt_it(usual.get(what, 0.0))))
            if found is not None:
                usual |= {what: found.cpu} if kind == "not hostile" else {}
                yield found

    def _add(self, found: Outcome) -> Outcome:
        for fault in found.faults:
            print(said_of(found, fault), flush=True)
        if self.path is not None:
            row = [self.code, asdict(found) | {"said": found.said[-300:]}]
            with open(self.path, "a") as file:  # a line in one step: other processes write theirs
                file.write(json.dumps(row) + "\n")
        return found


def code_digest() -> str:
    """What tells one state of the package from another: outcomes of another code are not those of this one."""
    sources = sorted((ROOT / "xrddiff").rglob("*.py"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]


def said_of(o: Outcome, fault: str) -> str:
    """A fault as a line."""
    return f"{o.area}, {o.case}: {fault} ({o.code}, {o.cpu:.1f} s): {o.said[-300:]!r}"


class Listener(BaseHTTPRequestHandler):
    """A server that notes what it is asked: nothing here should ask it."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers}")
        self.send_error(404)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def listener() -> Iterator[str]:
    """The address of a web server on this machine that notes in `Listener.asked` what it is asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def attempt(
    area: str,
    case: str,
    argv: list[str],
    folder: Path,
    mark: Path,
    *,
    seconds: float = KILL,
    usual: float = 0.0,
    said: str = "said.txt",
) -> Outcome:
    """Execute a command in a forked process, in `folder`, and look at what it did; after `seconds` it is killed."""
    out, began, before = folder / said, time.monotonic(), set(folder.rglob("*"))
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.chdir(folder)
            with open(out, "wb") as file, open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), 0), os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            code = 1
            try:
                code = xrddiff_main(argv)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            (folder / ".memory").write_text(str(max(0, peak - base)))
            os._exit(code)
        finally:
            os._exit(70)
    timer = threading.Timer(seconds, lambda: os.killpg(child, signal.SIGKILL))
    timer.start()
    _, status, used = os.wait4(child, 0)
    timer.cancel()
    with_errors = out.read_bytes().decode(errors="replace") if out.exists() else ""
    found = Outcome(area, case, argv[0], os.waitstatus_to_exitcode(status), with_errors, time.monotonic() - began)
    kept = folder / ".memory"
    found.memory = 1024.0 * float(kept.exists() and kept.read_text() or used.ru_maxrss)  # none of one that was killed
    found.cpu = used.ru_utime + used.ru_stime
    if "Traceback (most recent call last)" in with_errors:
        found.faults.append("traceback")
    if found.code not in (0, 1, 2, 75):
        found.faults.append("hang" if found.seconds >= seconds else "ended by itself")
    elif found.cpu > HANG + 1.5 * usual:
        found.faults.append("hang")
    if found.memory > MEMORY:
        found.faults.append("memory")
    if mark.exists():
        found.faults.append("executed")
        mark.unlink()
    if SECRET in with_errors or any(_holds(p, SECRET) for p in set(folder.rglob("*")) - before):
        found.faults.append("leaked")
    if Listener.asked:
        found.faults.append("asked a server")
        Listener.asked.clear()
    return found


def _holds(path: Path, text: str) -> bool:
    try:
        return path.is_file() and path.stat().st_size < 64 << 20 and text.encode() in path.read_bytes()
    except OSError:
        return False


SMALL = ["size=tiny", "experiment_type=test", "data=pooling_422", "data.pool=8", "data.limit=64", "threads=1"]
SMALL += ["training.num_epochs=1", "training.batch_size=8", "training.max_steps=4", "inference.num_samples=4"]
TRAIN = ["run", "model=ddpm", *SMALL, "inference.steps=2", "inference.index_frames=0", "run_name=good"]

MERGE = ["--cell", "29,29,29,90,90,90", "--space-group", "P 2 3", "--method", "mean"]
SWEEP = {"method": "random", "metric": {"name": "loss"}, "run_cap": 3}
SWEEP["words"] = ["training.seed=0", *TRAIN[1:-1]]  # a study that is taken up trains honestly, and soon
SWEEP["parameters"] = {"training.lr": {"min": 1e-5, "max": 1e-2, "distribution": "log_uniform"}}

# Each command that opens a run; RUN and GOOD are folders, FRAMES two frames of its detector. The second half executes the model.
CHEAP = {
    "runs": ["runs", "."],
    "compare": ["compare", "RUN", "GOOD", "-o", "pages"],
    "report": ["report", "RUN"],
    "watch": ["watch", "RUN", "--once"],
    "config show": ["config", "show", "RUN"],
    "config diff": ["config", "diff", "RUN", "GOOD"],
    "logs": ["logs", "RUN"],
    "resume": ["resume", "RUN", "--dry-run"],
    "run resume": ["run", "resume=RUN", "--dry-run"],
    "run init": ["run", "model=ddpm", *SMALL, "init=RUN", "--dry-run"],
    "scaling": ["scaling", "RUN"],
}
COSTLY = {
    "sample": ["sample", "RUN", "-n", "1", "inference.steps=1", "inference.index_frames=0"],
    "evaluate": ["evaluate", "RUN", "inference.index_frames=0"],
    "inpaint": ["inpaint", "RUN", "--frames", "FRAMES", "--limit", "1", "inference.steps=1"],
    "interpolate": ["interpolate", "RUN", "FRAMES:0", "FRAMES:1", "inference.steps=1"],
    "posterior": [
        "posterior",
        "pixels",
        "RUN",
        "--frames",
        "FRAMES",
        "--limit",
        "1",
        "--draws",
        "2",
        "inference.steps=1",
    ],
    "export": ["export", "RUN", "--format", "onnx", "-o", "out"],
    "stream": ["stream", "frames", "--run", "RUN", "--idle", "0.2", "-o", "answers"],
}
STUDY = {
    "sweep status": ["sweep", "status", "RUN"],
    "sweep best": ["sweep", "best", "RUN"],
    "sweep again": ["sweep", "RUN", "--agents", "1", "--runs", "1"],
    "runs": ["runs", "."],
}
FILE = {
    "data inspect": ["data", "inspect", "FILE"],
    "data convert": ["data", "convert", "FILE", "out.h5"],
}


def filled(words: list[str], **names: str) -> list[str]:
    """The words of a command with the names of files put in."""
    for name, value in names.items():
        words = [word.replace(name, value) for word in words]
    return words


def forked(argv: list[str], folder: Path) -> None:
    """Execute a command that must succeed, in a forked process."""
    found = attempt("setup", " ".join(argv[:2]), argv, folder, folder / "no-mark", seconds=600)
    if found.code:
        sys.exit(f"{' '.join(argv)}: ended with {found.code}: {found.said[-3000:]}")


def proper(found: Outcome) -> Outcome:
    """The outcome, unless a command refuses what is not hostile: then the bench shows nothing."""
    if found.case.startswith("not hostile") and found.code and found.case.split(": ")[-1] not in REFUSES:
        sys.exit(f"{found.case}: ended with {found.code}: {found.said[-1000:]}")
    return found


REFUSES = ("logs", "resume", "scaling", "run resume", "sweep best")  # of a run that is done and was no job, a new study


def copied(source: Path, target: Path) -> None:
    """A copy of a folder with its links, pipes and odd names."""
    subprocess.run(["cp", "-a", source, target], check=True)


def folders(place: Path, share: float, journal: Journal) -> Iterator[Outcome]:
    """Hostile run folders × every command that opens a run; `share` of those commands that execute the model."""
    from hostile_runs import Trap, hostile_runs

    from xrddiff.physics.simulation.simulate import simulate

    forked(TRAIN, place)
    good = next(place.glob("output/*/good"))
    secret = place / "secret.txt"
    secret.write_text(SECRET)
    mark = place / "mark"
    with listener() as address:
        trap = Trap("XRDDIFF_SECRET", str(mark), address.partition("//")[2], str(secret))
        (place / "hostile").mkdir()
        runs = hostile_runs(place / "hostile", good, trap)
        chance = random.Random(0)
        two = simulate("sim-422", range(2))
        mask = two["mask"].values.copy()
        mask[..., 40:60, 40:60] = False  # something to fill
        two["mask"] = two["mask"].dims, mask

        def cases() -> Iterator[tuple[str, Callable[[float], Outcome]]]:
            for name, run in ({"not hostile": good} | runs).items():
                for what, words in (CHEAP | COSTLY).items():
                    if what not in COSTLY or run == good or chance.random() < share:
                        case = f"{name}: {what}"
                        yield case, partial(one, case, run, what, words)

        def one(case: str, run: Path, what: str, words: list[str], usual: float) -> Outcome:
            with emptied(place / "here") as here:
                (here / "frames").mkdir()
                copied(run, here / run.name)
                save_frames(two, here / "two.h5") if what in COSTLY else None
                argv = filled(words, RUN=run.name, GOOD=str(good), FRAMES="two.h5")
                return attempt("run folders", case, argv, here, mark, usual=usual or KILL)

        yield from journal.tried("run folders", cases())


def crossed(
    names: Iterable[str], commands: dict[str, list[str]], one: Callable[[str, str, list[str], float], Outcome]
) -> Iterator[tuple[str, Callable[[float], Outcome]]]:
    """The cases of every name with every command."""
    for name, (what, words) in itertools.product(names, commands.items()):
        case = f"{name}: {what}"
        yield case, partial(one, case, name, words)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """An empty folder, for one case."""
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def studies(place: Path, share: float, journal: Journal) -> Iterator[Outcome]:
    """Hostile studies × the commands that open one."""
    from hostile_studies import hostile_studies

    from xrddiff.run.studies.study import make_study
    from xrddiff.run.studies.sweep_file import make_plan

    make_study(make_plan(SWEEP), place / "good")
    shutil.rmtree(os.environ["XRDDIFF_STATE"])  # it is somebody else's
    mark = place / "mark"
    (place / "hostile").mkdir()
    with listener():
        made = hostile_studies(place / "hostile", place / "good", mark, "XRDDIFF_SECRET")
        made = {"not hostile": place / "good"} | made

        def one(case: str, name: str, words: list[str], usual: float) -> Outcome:
            with emptied(place / "here") as here:
                copied(made[name], here / name)
                return attempt("studies", case, filled(words, RUN=name), here, mark, usual=usual or KILL)

        yield from journal.tried("studies", crossed(made, STUDY, one))


def files(place: Path, share: float, journal: Journal) -> Iterator[Outcome]:
    """Hostile files of frames, geometry, masks and labels × what opens them."""
    from hostile_files import hostile_files
    from hostile_messages import frames as shots

    good = save_frames(shots(2), place / "good.h5")
    made = {"not hostile": good} | hostile_files(place / "hostile")

    def one(case: str, name: str, words: list[str], usual: float) -> Outcome:
        with emptied(place / "here") as here:
            argv = filled(words, FILE=os.fspath(made[name]))
            return attempt("files", case, argv, here, place / "mark")

    yield from journal.tried("files", crossed(made, FILE, one))


def crystals(place: Path, share: float, journal: Journal) -> Iterator[Outcome]:
    """Hostile MTZ, PDB and CIF files, streams and tables × what opens them."""
    from hostile_crystals import ANSWERED, MADE, made
    from hostile_messages import frames as shots

    good = save_frames(shots(2), place / "good.h5")

    def one(name: str, usual: float) -> Outcome:
        with emptied(place / "here") as here:
            (here / "shots.h5").symlink_to(good)
            found = attempt("crystals", name, made(name, here), here, place / "mark", usual=usual)
        found.faults += ["not refused"] if found.code != 2 and name not in ANSWERED else []
        return found

    yield from journal.tried("crystals", ((name, partial(one, name)) for name in MADE))


def outputs(place: Path, share: float, journal: Journal) -> Iterator[Outcome]:
    """Each command that writes × names that hold something of somebody, two at once, ten kills, a full disk."""
    from hostile_outputs import WRITERS, Case, Writer, cases, make_inputs

    inputs, numbers = make_inputs(place / "in"), itertools.count()

    def work() -> Path:
        (here := place / str(next(numbers))).mkdir()
        return here

    def one(name: str, case: Case, usual: float) -> Outcome:
        found = attempt("outputs", name, case.argv, case.place, place / "mark", usual=usual)
        add_faults(found, case.faults(found.code, found.said))
        shutil.rmtree(case.place)
        return found

    def disturbed(name: str, writer: Writer, how: Callable, usual: float) -> Outcome:
        shutil.copytree(inputs, here := work(), dirs_exist_ok=True)
        found = how(name, writer, here, usual)
        shutil.rmtree(here)
        return found

    def tries() -> Iterator[tuple[str, Callable[[float], Outcome]]]:
        for writer in WRITERS:
            for case in cases(writer, inputs, work):
                if case.refused or not writer.slow:
                    name = f"{case.name}: {writer.name}"
                    yield name, partial(one, name, case)
            for what, how in DISTURBED.items() if not writer.slow else ():
                name = f"{what}: {writer.name}"
                yield name, partial(disturbed, name, writer, how)

    yield from journal.tried("outputs", tries())


def add_faults(found: Outcome, details: list[str]) -> None:
    """Name the faults of an output; what they are in detail is said with what the command said."""
    words = {"lost": "lost", "replaced": "lost", "left": "left", "traceback": "traceback", "not": "not refused"}
    kinds = [words.get(detail.split()[0], "lost") for detail in details]
    found.faults += [kind for kind in dict.fromkeys(kinds) if kind not in found.faults]
    found.said += "".join(f" [{detail}]" for detail in details)


def at_once(name: str, writer: Any, here: Path, usual: float) -> Outcome:
    """Two commands write one output: at least one succeeds, a second is refused or comes later."""
    from hostile_outputs import leftovers, standing

    out = here / f"out{writer.suffix}"
    run = lambda said: attempt("outputs", name, writer.argv(out.name), here, here / "mark", usual=60, said=said)  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(run, ("one.txt", "two.txt")))
    found = max(both, key=lambda o: o.code)
    wrong = [] if sorted(o.code for o in both) in ([0, 2], [0, 0]) else [f"not refused: codes {[o.code for o in both]}"]
    add_faults(found, wrong + standing(writer, out, True) + [f"left {n}" for n in leftovers(here)])
    return found


def killed(name: str, writer: Any, here: Path, usual: float) -> Outcome:
    """Ten kills at moments drawn at random; then the command ends as if nothing had been, and no part is left."""
    from hostile_outputs import hashes, leftovers, standing

    before, out, wrong, chance = hashes(here), here / f"out{writer.suffix}", [], random.Random(name)
    argv = writer.argv(out.name)
    whole = attempt("outputs", name, writer.argv(f"whole{writer.suffix}"), here, here / "mark", usual=60).seconds
    for _ in range(10):
        ended = attempt("outputs", name, argv, here, here / "mark", seconds=whole * chance.uniform(0.05, 1)).code in (
            0,
            2,
        )
        now = hashes(here)
        wrong += [f"lost {key}" for key in before if now.get(key) != before[key]] + standing(writer, out, False)
        if ended and out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    more = ["--overwrite"] if writer.overwrites and writer.kind == "file" else []  # of two files one may be there
    found = attempt("outputs", name, [*argv, *more], here, here / "mark", usual=60)
    if found.code:
        wrong.append(f"not refused: code {found.code} after the kills")
    add_faults(found, wrong + standing(writer, out, True) + [f"left {n}" for n in leftovers(here)])
    return found


def full(name: str, writer: Any, here: Path, usual: float) -> Outcome:
    """A disk on which nothing has room (of memory, mounted; skipped where that is not allowed)."""
    from hostile_outputs import leftovers

    (disk := here / "full").mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "none", disk], capture_output=True
    ).returncode
    if not mounted:
        return Outcome("outputs", name, writer.name, said="no disk can be mounted here")
    try:
        (disk / "filler").write_bytes(bytes(4096))
        found = attempt("outputs", name, writer.argv(f"full/out{writer.suffix}"), here, here / "mark", usual=usual)
        wrong = [] if found.code == 2 else [f"not refused: code {found.code}"]
        add_faults(found, wrong + [f"left {n}" for n in leftovers(disk)])
    finally:
        subprocess.run(["umount", disk], check=True)
    return found


DISTURBED = {"two at once": at_once, "ten kills": killed, "a full disk": full}


def programs(place: Path, share: float, journal: Journal) -> Iterator[Outcome]:
    """Programs that behave badly, started by `xrddiff recover`."""
    from hostile_programs import PROGRAMS, left, script

    from xrddiff.physics.simulation.simulate import simulate

    good = save_frames(simulate("sim128", range(2), seed=5), place / "good.h5")

    def one(name: str, usual: float) -> Outcome:
        mark = f"1000.{random.randrange(10**9)}"
        with emptied(place / "here") as here:
            (here / "find.sh").write_text(script(name, mark))
            argv = ["recover", str(good), "--timeout", "4", "--program", "sh find.sh {frames} {peaks}", "-o", "out"]
            found = attempt("programs", f"{name}: recover", argv, here, place / "mark", usual=30)
            add_faults(found, [f"left process {pid}" for pid in left(mark)])
            if found.code != PROGRAMS[name][1] or PROGRAMS[name][2] not in found.said:
                add_faults(found, [f"not refused: expected code {PROGRAMS[name][1]}, {PROGRAMS[name][2]!r}"])
        return found

    yield from journal.tried("programs", ((f"{name}: recover", partial(one, name)) for name in PROGRAMS))


@dataclass
class Kept:
    """Files that xrddiff wrote, and how what they say is read back, as something that can be compared."""

    name: str
    files: list[Path]
    read: Callable[[], object]


def equal(a: object, b: object) -> bool:
    """Whether what was read twice is the same, to the bit."""
    if isinstance(a, pd.DataFrame | xr.Dataset):
        return type(a) is type(b) and bool(a.equals(b) if isinstance(a, pd.DataFrame) else a.identical(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b or (a != a and b != b)


def kept_files(place: Path) -> Iterator[Kept]:
    """Every kind of file that xrddiff writes and reads back."""
    from hostile_messages import frames as shots
    from hostile_outputs import make_inputs

    from xrddiff.config.saved_config import load_config
    from xrddiff.core.gate import read_json, read_table
    from xrddiff.core.plugins import Plugin, keep_plugins, kept_plugins
    from xrddiff.core.safe_write import read_mark, write_table
    from xrddiff.data.formats.parts import PartStore, parts_done, write_part
    from xrddiff.data.formats.store import read_store
    from xrddiff.data.headers.crystal_gate import read_mtz
    from xrddiff.judge.exports.package import finish_package, read_package
    from xrddiff.learn.telemetry.history import read_epochs, read_history
    from xrddiff.learn.telemetry.rules import read_findings
    from xrddiff.learn.training.checkpoints import latest_checkpoint, load_checkpoint
    from xrddiff.run.streaming.answers import read_answers, read_stream_summary
    from xrddiff.run.streaming.stream import Stream, StreamPlan
    from xrddiff.run.studies import journal
    from xrddiff.run.studies.study import (
        Agent,
        complete_trial,
        living_agents,
        make_study,
        open_study,
        take_trial,
        trial_rows,
    )
    from xrddiff.run.studies.sweep_file import make_plan

    frames = shots(3, 96)
    for name in ("frames.h5", "frames.zarr"):
        store = save_frames(frames, place / name)
        yield Kept(f"store {name[6:]}", found_in(store), lambda store=store: read_store(store).load())
    parts = PartStore.create(place / "parts", frames, 2, about={"seed": 1})
    for i in range(2):
        write_part(parts, i, {"intensity": frames["intensity"].values[2 * i : 2 * i + 2]})
    marks = [parts.path / "plan.json", *sorted((parts.path / "marks").iterdir())]

    def done() -> object:
        """What is done; a mark that does not fit has its part made again, from its seed."""
        store = PartStore(parts.path)
        if len(marked := parts_done(store)) < 2:
            raise XrddiffError("a part is made again")
        return vars(store), marked

    yield Kept("parts of samples", marks, done)

    forked(["run", "model=vae_kl", *SMALL, "run_name=run"], place)
    run = next(place.glob("output/*/run"))
    step = latest_checkpoint(run / "checkpoints")
    yield Kept("checkpoint", found_in(step), lambda: vars(load_checkpoint(step)))
    yield Kept("config.yaml", [run / "config.yaml"], lambda: asdict(load_config(run / "config.yaml")))
    tables = [file for name in ("training_metrics", "epochs") for file in run.glob(f"metrics/{name}.*")]
    yield Kept("tables of a training", tables, lambda: (read_history(run), read_epochs(run)))
    numbers = [run / "environment.json", *(f for f in sorted(run.glob("metrics/*.json")) if f not in tables)]
    read_numbers = lambda: ([read_json(file) for file in numbers], [asdict(f) for f in read_findings(run)])  # noqa: E731
    yield Kept("JSON of a run", numbers, read_numbers)
    for store in sorted(run.glob("samples/*.zarr")):
        yield Kept("samples", found_in(store), lambda store=store: read_store(store).load())

    (package := place / "package").mkdir()
    (package / "graph.bin").write_bytes(random.Random(0).randbytes(4096))
    finish_package(package, {"exporter": "test", "scale": 0.5})
    yield Kept(
        "exported package", found_in(package), lambda: (read_package(package), (package / "graph.bin").read_bytes())
    )

    make_inputs(place / "in")
    argv = ["merge", "in/obs.csv", *MERGE, "--draws", "5", "--shells", "2", "-o", "merge"]
    forked(argv, place)
    merge = place / "merge"
    tables = [merge / "shells.csv", merge / "posterior.csv"]
    yield Kept(
        "tables of a merge", [t for t in tables if t.exists()], lambda: [read_table(t) for t in tables if t.exists()]
    )
    mtz = sorted(merge.glob("*.mtz"))
    yield Kept("MTZ files", mtz, lambda: [[m.history, np.array(m.array, copy=True)] for m in map(read_mtz, mtz)])
    truth = write_table(pd.DataFrame({"frame": [0, 1], "fs": [1.5, 2.5], "intensity": [3.0, 4.0]}), merge / "truth.csv")
    yield Kept("truth of a recovery", [truth], lambda: read_table(truth))

    def mark() -> object:
        """Who wrote a folder; one whose mark is damaged is not taken for ours."""
        if not (found := read_mark(merge)).command:
            raise XrddiffError("a mark that is damaged")
        return msgspec.to_builtins(found)

    yield Kept("mark of a folder", [merge / "xrddiff.json"], mark)

    (own := place / "own").mkdir()
    keep_plugins(own, [Plugin("mine.py", str(place / "mine.py"), b"x = 1\n")])
    yield Kept("manifest of plug-ins", [own / "plugins" / "manifest.json"], lambda: kept_plugins(own))

    journal.SETTLE = 0.0  # damage is not waited for
    study = make_study(make_plan(SWEEP), place / "study").folder
    with Agent(study, "one-1-aaaa") as agent:
        complete_trial(open_study(study), take_trial(open_study(study), agent).number, 0.25)
        take_trial(open_study(study), agent)

    def state() -> object:
        opened = open_study(study)
        return opened.plan.to_json(), trial_rows(opened), living_agents(opened)

    files = [p for part in ("sweep.json", "journal.log", "claims/*", "agents/*.json") for p in study.glob(part)]
    yield Kept("study", files, state)

    (watched := place / "watched").mkdir()
    save_frames(shots(8), watched / "run_1.h5")
    os.utime(watched / "run_1.h5", (0, 0))
    plan, out = StreamPlan(str(watched), idle=0.3, page=0, min_peaks=9), place / "answers"
    Stream(plan, out)()

    def answers() -> object:
        opened = Stream(plan, out)
        opened._hold.close()
        return read_answers(out), read_answers(out, "peaks"), read_stream_summary(out), sorted(opened.answers.names)

    kept = [p for p in found_in(out) if p.name not in ("live.html", "answers.csv", "xrddiff.json")]  # for people
    yield Kept("answers of a stream", kept, answers)


def found_in(place: Path) -> list[Path]:
    """The files of a folder, or the file."""
    return [p for p in sorted(place.rglob("*")) if p.is_file()] if place.is_dir() else [place]


def flips(place: Path, count: int) -> tuple[pd.DataFrame, list[str]]:
    """Flip single bits of the files that xrddiff wrote, the same number for each kind; what became of them, and the faults."""
    kinds, rows, faults, chance = list(kept_files(place)), {}, [], random.Random(0)
    for kept in kinds:
        expected, row = kept.read(), rows.setdefault(kept.name, Counter())
        for _ in range(max(1, count // len(kinds))):
            file = chance.choice(kept.files)
            whole = file.read_bytes()
            if not whole:
                continue
            at, bit = chance.randrange(len(whole)), chance.randrange(8)
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            row["flips"] += 1
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    same = equal(kept.read(), expected)
                    what = "harmless" if same else "seen" if said else "silent"
                except XrddiffError as error:
                    what = "seen" if "\n" not in str(error) else "raw exception"
                except Exception as error:
                    what = "raw exception"
                    said = [f"{type(error).__name__}: {error}"[:200]]
            row[what] += 1
            if what in ("silent", "raw exception"):
                faults.append(f"{kept.name}, {file.name}, byte {at}, bit {bit}: {what} {said and said[0]}")
            file.write_bytes(whole)
    columns = ["flips", "seen", "harmless", "silent", "raw exception"]
    return pd.DataFrame(rows).T.reindex(columns=columns).fillna(0).astype(int), faults


def streamed(place: Path, count: int, idle: int) -> dict[str, object]:
    """Good frames beside fuzzed messages and idle connections; what was answered, and the memory of the stream."""
    import zmq
    from hostile_messages import fuzzed, good

    from xrddiff.run.execution.launched import start_xrddiff
    from xrddiff.run.streaming.answers import read_answers

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, idle + 1000)), hard))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["stream", LISTENS.format(port=port), "--idle", "60", "-o", str(place / "out")]
    with open(place / "said.txt", "wb") as said:
        stream = start_xrddiff(*words, stdout=said, stderr=said, cwd=place)
    wait_until(lambda: connects(port))
    waiting = []
    for _ in range(idle):
        with suppress(OSError):
            waiting.append(socket.create_connection(("127.0.0.1", port), timeout=5))
    whole, every = max(100, count // 100), 100
    with zmq.Context() as context:
        pushes = [context.socket(zmq.PUSH) for _ in range(2)]
        for push in pushes:
            push.connect(f"tcp://127.0.0.1:{port}")
        messages, began = good(whole), time.monotonic()
        pushes[0].send_multipart(next(messages))
        for k, parts in enumerate(fuzzed(count)):
            pushes[1].send_multipart(parts)
            if k % every == 0 and (message := next(messages, None)):
                pushes[0].send_multipart(message)
        for message in messages:
            pushes[0].send_multipart(message)
        sent = time.monotonic() - began
        for push in pushes:
            push.close(linger=600_000)
    peak = psutil.Process(stream.pid).memory_info().rss if stream.poll() is None else 0
    stream.wait(600)
    for one in waiting:
        one.close()
    table = read_answers(place / "out").set_index("name")
    own = [name for name in (f"1:{i}" for i in range(whole)) if name in table.index and not table.loc[name, "why"]]
    row = {"good frames": whole, "answered": len(own), "fuzzed messages": count, "idle connections": len(waiting)}
    tracebacks = (place / "said.txt").read_text(errors="replace").count("Traceback")
    return row | {
        "messages/s": round(count / sent),
        "memory, MB": round(peak / 1e6),
        "tracebacks": tracebacks,
        "code": stream.returncode,
    }


CHUNK = """----- Begin chunk -----
Image filename: /data/run.cxi
Event: //{event}
photon_energy_eV = 9000.0
num_peaks = {peaks}
Peaks from peak search
  fs/px   ss/px (1/d)/nm^-1   Intensity  Panel
{found}
End of peak list
--- Begin crystal
Cell parameters 7.91000 7.91000 3.79000 nm, 90.00000 90.00000 90.00000 deg
astar = +0.1264223 +0.0000000 +0.0000000 nm^-1
bstar = +0.0000000 +0.1264223 +0.0000000 nm^-1
cstar = +0.0000000 +0.0000000 +0.2638522 nm^-1
centering = P
Reflections measured after indexing
   h    k    l          I   sigma(I)       peak background  fs/px  ss/px panel
{rows}
End of reflections
--- End crystal
----- End chunk -----
"""


def large(place: Path, size: int = 1 << 30, peaks: int = 60, rows: int = 400) -> tuple[pd.DataFrame, list[str]]:
    """Read a stream of CrystFEL of 1 GiB in a process of its own: seconds of CPU, and memory."""
    rng = np.random.default_rng(0)
    found = [f"{a:7.2f} {b:7.2f} {q:10.4f} {i:11.2f}   p0" for a, b, q, i in rng.uniform(1, 1900, (peaks, 4))]
    hkl = rng.integers(-40, 40, (rows, 3))
    table = [
        f"{h:4d} {k:4d} {m:4d} {i:10.2f} {i**0.5:10.2f} {i:10.2f} {9:10.2f} {x:6.1f} {y:6.1f} p0"
        for (h, k, m), (i, x, y) in zip(hkl, rng.uniform(1, 1900, (rows, 3)), strict=True)
    ]
    event, file = 0, place / "large.stream"
    chunk = CHUNK.format(event="EVENT", peaks=peaks, found="\n".join(found), rows="\n".join(table))
    with open(file, "w") as out:
        out.write("CrystFEL stream format 2.3\n")
        while out.tell() < size:
            out.write("".join(chunk.replace("EVENT", str(event + i)) for i in range(100)))
            event += 100
    done = subprocess.run([sys.executable, "-c", READ, file], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    row = {"size, MB": file.stat().st_size / 1e6, "frames": event} | said
    row["MB/s of CPU"] = row["size, MB"] / said["CPU, s"]
    whole = said["peaks"] == event * peaks and said["reflections"] == event * rows and said["memory, MB"] < 1074
    return pd.DataFrame({"": row}).T.round(1), [] if whole else [f"a large stream: {row}"]


READ = """
import json, resource, sys
from xrddiff.data.formats.peak_files import read_stream
began = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
found = read_stream(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"peaks": len(found["peaks"]), "reflections": len(found["integrated"]), "CPU, s": used[0] + used[1] - began, "memory, MB": used.ru_maxrss / 1e3}))
"""

LISTENS = "tcp://*:{port}"


def connects(port: int) -> bool:
    """Whether somebody listens on this port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(done: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            sys.exit("the stream does not listen")
        time.sleep(0.2)


def table_of(outcomes: list[Outcome]) -> pd.DataFrame:
    """A row for each command: how many cases, how they ended, the slowest and the largest."""
    rows, command = {}, lambda o: o.case.split(": ")[-1]
    for name, some in itertools.groupby(sorted(outcomes, key=command), command):
        some = list(some)
        ended = dict(refused=sum(o.code == 2 for o in some), answered=sum(o.code in (0, 1, 75) for o in some))
        row = dict(cases=len(some), **ended) | {fault: sum(fault in o.faults for o in some) for fault in FAULTS}
        row |= {"slowest, CPU s": max(o.cpu for o in some), "largest, MB": max(o.memory for o in some) / 1e6}
        rows[name] = row
    table = pd.DataFrame(rows).T
    whole = ["cases", "refused", "answered", *FAULTS]
    return table.astype({name: int for name in whole}).round(1)


FAULTS = ["traceback", "hang", "ended by itself", "memory", "executed", "leaked", "asked a server", "lost", "left"]
FAULTS += ["not refused"]
AREAS = {"folders": folders, "studies": studies, "files": files, "crystals": crystals, "outputs": outputs}
AREAS["programs"] = programs


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--only", default=",".join(HEADS))
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases of commands that execute a model")
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument(
        "--commands",
        help="of folders and studies only these, such as 'run resume,scaling'; their table is printed and not kept",
    )
    parser.add_argument("--journal", type=Path, help="keep outcomes in this file, and go on with those that are in it")
    parser.add_argument(
        "--part", type=lambda word: tuple(map(int, word.split("/"))), default=(1, 1), metavar="K/N",
        help="of folders, studies and files every N-th case from the K-th on; without it, those that other parts left in the "
        "journal are put together",
    )  # fmt: skip
    args = parser.parse_args()
    for commands in (CHEAP, COSTLY, STUDY) if args.commands else ():
        for other in commands.keys() - set(args.commands.split(",")):
            del commands[other]
    os.environ |= {"XRDDIFF_SECRET": SECRET, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    same_terms()
    faults = []
    for name in args.only.split(","):
        began = time.time()
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            os.environ["XRDDIFF_STATE"] = str(Path(folder) / "state")
            table, found = section(name, Path(folder), args)
        faults += found
        if args.commands or args.part != (1, 1):
            print(table.to_markdown(), flush=True)
        else:
            keep(name, table, found, (time.time() - began) / 60)
    print(f"{len(faults)} faults")
    return bool(faults)


def section(name: str, place: Path, args: argparse.Namespace) -> tuple[pd.DataFrame, list[str]]:
    """The table of one part of the bench, and its faults."""
    if name == "flips":
        return flips(place, args.flips)
    if name == "large":
        return large(place)
    if name == "stream":
        row = streamed(place, args.messages, args.idle)
        whole = row["answered"] == row["good frames"] and not row["tracebacks"] and row["code"] == 0
        return pd.DataFrame({"": row}).T, [] if whole else [f"stream: {row}"]
    outcomes = list(AREAS[name](place, args.share, Journal(args.journal, args.part)))
    table = table_of(outcomes)
    table.attrs["minutes"] = sum(o.seconds for o in outcomes) / 60  # of all processes that filled the journal
    return table, [said_of(o, fault) for o in outcomes for fault in o.faults]


def keep(name: str, table: pd.DataFrame, faults: list[str], minutes: float) -> None:
    """Keep what a part found, and write the page of all parts that were kept."""
    kept = read_results("hostile", {})
    minutes = table.attrs.get("minutes", minutes)
    head = f"{HEADS[name]}\n\n{minutes:.0f} minutes on {os.cpu_count()} shared CPU cores, {date.today()}."
    said = (
        "No fault."
        if not faults
        else "\n".join([f"{len(faults)} faults:", "", *(f"- `{f[:400]}`" for f in faults[:20])])
    )
    kept[name] = f"{head}\n\n{table.to_markdown()}\n\n{said}"
    about = "\n".join(__doc__.splitlines()[4:]).strip()
    page = "\n\n".join(["# Hostile input", about, *(kept[n] for n in HEADS if n in kept)])
    print(write_results("hostile", page, kept))


HEADS = {
    "folders": "## Run folders of somebody else",
    "studies": "## Studies of somebody else",
    "files": "## Files of frames, masks, labels and geometry",
    "crystals": "## Files of crystals, streams and tables of peaks",
    "outputs": "## Outputs that would harm something",
    "programs": "## Programs that behave badly",
    "flips": "## One bit",
    "stream": "## A detector's socket",
    "large": "## A large stream of CrystFEL",
}


if __name__ == "__main__":
    sys.exit(main())
