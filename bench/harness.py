"""What the benchmarks share: whose turn it is, seconds of CPU and of the clock, the terms for both sides, and where and how results are written."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from xrddiff.core.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"
XRDDIFF = Path(sys.executable).with_name("xrddiff")
HELP = {
    "rounds": "each of them times every candidate once",
    "threads": "of PyTorch, the same for all",
    "device": "cpu or cuda",
    "folder": "keep what is made here, and go on with what is there",
    "out": "write the table here",
}


class Spent(NamedTuple):
    """Seconds of CPU and of the clock."""

    cpu: float
    clock: float


class Times(NamedTuple):
    """Seconds of each round."""

    cpu: list[float]
    clock: list[float]


def cpu_seconds(own: bool = True, children: bool = True) -> float:
    """Of this process, and of the processes that it started and that have ended."""
    below = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) if children else 0.0
    return below + (time.process_time() if own else 0.0)


def memory(field: str = "VmHWM") -> int:
    """Bytes of memory of this process: the most that it has had, or "VmRSS", what it has now.

    Not `ru_maxrss`: of a process that another one started, that begins with what the other one had.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def timed(call: Callable[[], Any]) -> tuple[Any, Spent]:
    """What a call returns, and what it took."""
    cpu, clock = cpu_seconds(), time.perf_counter()
    out = call()
    clock = time.perf_counter() - clock
    return out, Spent(cpu_seconds() - cpu, clock)


def trained_run(folder: Path, name: str, words: Iterable[str], as_is: bool = False) -> Path:
    """The run `name` in `folder`, trained with `words` unless it is there; one that was stopped goes on, or is taken `as_is`.

    `cpu_seconds.txt` in it: what training and sampling took, of one that was stopped since then.
    """
    run = next(folder.glob(f"output/*/{name}"), None)
    if run is not None and (as_is or (run / "report.html").exists()):
        return run
    words = [*words, f"run_name={name}"] if run is None else [f"resume={run}"]
    before = cpu_seconds(own=False)
    subprocess.run([XRDDIFF, "run", *words], cwd=folder, check=True, stdout=sys.stderr)
    run = next(folder.glob(f"output/*/{name}"))
    write_text(run / "cpu_seconds.txt", f"{cpu_seconds(own=False) - before}\n")
    return run


def measured_frames() -> Path:
    """The folder XRDDIFF_DATA with measured frames; one that is not there, if it is not set."""
    return Path(os.environ.get("XRDDIFF_DATA") or "/nowhere")


def turns(names: Iterable[Any], rounds: int) -> Iterator[Any]:
    """Every name once a round, forwards and backwards by turns: none always comes first, or after the same other."""
    names = list(names)
    for k in range(rounds):
        yield from names[:: 1 if k % 2 == 0 else -1]


def interleaved(ways: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, Times]:
    """Times of all ways, which take turns; one that returns `Spent` has timed itself, such as a peer in another process."""
    for _ in range(warmup):
        for way in ways.values():
            way()
    found = {name: Times([], []) for name in ways}
    for name in turns(ways, rounds):
        out, spent = timed(ways[name])
        for seconds, value in zip(found[name], out if isinstance(out, Spent) else spent, strict=True):
            seconds.append(value)
    return found


def min_median(values: Sequence[float], form: str = ".2f", times: float = 1.0) -> str:
    """The minimum and (median), multiplied."""
    return f"{times * min(values):{form}} ({times * median(values):{form}})"


def ratio(a: Sequence[float], b: Sequence[float], form: str = ".2f") -> str:
    """a over b: of the minima, and (the median of the rounds' ratios)."""
    return f"{min(a) / min(b):{form}} ({median(x / y for x, y in zip(a, b, strict=True)):{form}})"


def same_terms(threads: int = 1, keep_freed: bool = False) -> None:
    """So many threads for this process and those that it starts; `keep_freed`: the allocator as runs set it, for a peer too."""
    import torch

    from xrddiff.run.execution.run_folder import keep_memory, set_threads

    set_threads(threads)
    torch.set_num_threads(threads)
    if keep_freed:
        keep_memory()


def machine(*what: str) -> str:
    """The line about the machine: its processor, then `what`; cores, python, torch and day stand for what they are here."""
    known: dict[str, Callable[[], str]] = {
        "cores": lambda: f"{os.cpu_count()} cores",
        "python": lambda: f"Python {platform.python_version()}",
        "torch": lambda: f"torch {version('torch')}",
        "day": lambda: str(date.today()),
    }
    return ", ".join([platform.machine(), *(known[word]() if word in known else word for word in what)])


def table_row(cells: Iterable[Any]) -> str:
    """A line of a table, in which bars are escaped."""
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def markdown(head: Sequence[str], rows: Iterable[Iterable[Any]], align: str = "lr") -> list[str]:
    """The lines of a table; `align`: l or r for each column, the last letter for all others."""
    align += align[-1] * (len(head) - len(align))
    rows = [list(row) for row in rows]
    if any(len(row) != len(head) for row in rows):
        raise ValueError(f"expected {len(head)} cells in every row")
    return [table_row(head), table_row("---:" if side == "r" else "---" for side in align), *map(table_row, rows)]


def read_results(name: str | Path, default: Any) -> Any:
    """What an earlier run of a benchmark has left in its JSON file."""
    path = (RESULTS / name).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def write_results(name: str | Path, text: str | Iterable[str] | Callable[[Any], str], data: Any = None) -> str:
    """Write bench/results/NAME.json, if there are data, and NAME.md: text, lines, or what a function makes of the data."""
    path = RESULTS / name
    if data is not None:  # first: a page that fails loses no measurement
        write_text(path.with_suffix(".json"), json.dumps(data, indent=1) + "\n")
    text = text(data) if callable(text) else text
    text = (text if isinstance(text, str) else "\n".join(text)).rstrip("\n") + "\n"
    write_text(path if path.suffix else path.with_suffix(".md"), text)
    return text


def make_parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser that shows the docstring, with some of --rounds, --threads, --device, --folder, --out and their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        kind = {"folder": Path, "out": lambda word: Path(word).absolute()}.get(name, type(value))
        parser.add_argument(f"--{name}", type=kind, default=value, help=HELP[name])
    return parser
