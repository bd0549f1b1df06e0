"""Outputs that would harm something: each writing command × folders with content, links, inputs as outputs, two at once, kills, full disks.

Used by `test_outputs.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

PRECIOUS = "years of work\n"


@dataclass(frozen=True)
class Writer:
    """A command that writes.

    words: its arguments; OUT stands for the output. kind: "file", or "folder" for a folder of results. suffix: of the output.
    reads: the files and folders among its words. overwrites: has it --overwrite? slow: it takes more than some seconds.
    """

    name: str
    words: tuple[str, ...]
    kind: str = "file"
    suffix: str = ""
    reads: tuple[str, ...] = ()
    overwrites: bool = True
    slow: bool = False

    def argv(self, out: str | os.PathLike, *more: str) -> list[str]:
        """The arguments, with the name of the output."""
        return [word.replace("OUT", os.fspath(out)) for word in self.words] + list(more)


CELL = "29,29,29,90,90,90"
WRITERS = [
    Writer("data simulate", ("data", "simulate", "salt.cif", "-n", "2", "--detector", "det.h5", "-o", "OUT"), suffix=".h5", reads=("det.h5", "salt.cif")),
    Writer("data simulate zarr", ("data", "simulate", "sim128", "-n", "2", "-o", "OUT"), suffix=".zarr"),
    Writer("data convert", ("data", "convert", "shots.h5", "OUT", "mask=mask.npy"), suffix=".h5", reads=("shots.h5", "mask.npy")),
    Writer("data convert folder", ("data", "convert", "series", "OUT"), suffix=".zarr", reads=("series", "series/a.npy")),
    Writer("data convert cxi", ("data", "convert", "shots.h5", "OUT"), suffix=".cxi", reads=("shots.h5",)),
    Writer("data mask", ("data", "mask", "shots.h5", "--png", "m.png", "-o", "OUT", "mask=mask.npy"), suffix=".npy", reads=("shots.h5", "mask.npy")),
    Writer("data mask picture", ("data", "mask", "shots.h5", "--png", "OUT"), suffix=".png", reads=("shots.h5",)),
    Writer("data inspect", ("data", "inspect", "shots.h5", "--png", "OUT"), suffix=".png", reads=("shots.h5",)),
    Writer("data index", ("data", "index", "shots.h5", "--controls", "10", "--png", "OUT.png", "--stream", "OUT"), suffix=".stream", reads=("shots.h5",)),
    Writer("data index geometry", ("data", "index", "shots.h5", "--controls", "10", "--geometry", "OUT"), suffix=".geom", reads=("shots.h5",)),
    Writer("export peaks", ("export", "shots.h5", "--format", "peaks", "--steps", "1", "-o", "OUT"), suffix=".safetensors", reads=("shots.h5",)),
    Writer("submit", ("cluster", "submit", "--profile", "small", "-o", "OUT", "model=vae_kl", "data=sim128"), suffix=".sh"),
    Writer("accelerate-config", ("cluster", "accelerate-config", "small", "-o", "OUT"), suffix=".yaml"),
    Writer("scaling", ("cluster", "scaling", "--params", "50M", "--bandwidth", "25", "--step-ms", "100", "-o", "OUT"), suffix=".png"),
    Writer("merge", ("merge", "obs.csv", "--cell", CELL, "--space-group", "P 2 3", "--method", "mean", "--draws", "5", "--shells", "2", "-o", "OUT"), "folder", reads=("obs.csv",)),
    Writer("recover", ("recover", "shots.h5", "--program", "classical", "-o", "OUT"), "folder", reads=("shots.h5",)),
    Writer("recover command", ("recover", "shots.h5", "--program", "sh find.sh {frames} {peaks}", "-o", "OUT"), "folder", reads=("shots.h5", "find.sh")),
    Writer("evaluate", ("evaluate", "shots.h5", "--limit", "4", "-o", "OUT"), "folder", reads=("shots.h5",)),
    Writer("stream", ("stream", "series", "--idle", "0.1", "--page", "0", "-o", "OUT"), "folder"),
    Writer("twin", ("twin", "bare.h5", "--cell", CELL, "-n", "2", "-o", "OUT"), "folder", reads=("bare.h5",), slow=True),
    Writer("posterior crystal", ("posterior", "crystal", "shots.h5", "--cell", CELL, "-o", "OUT"), "folder", reads=("shots.h5",), slow=True),
    Writer("sweep", ("sweep", "sweep.yaml", "-o", "OUT"), "folder", reads=("sweep.yaml",), slow=True),
]  # fmt: skip
WRITTEN = (
    "report.html",
    "truth.csv",
    "log.txt",
    "peaks.txt",
    "merged.mtz",
    "frames.cxi",
    "frames.h5",
    "plan.json",
    "metrics/summary.json",
)


def make_inputs(folder: Path) -> Path:
    """The files that the commands read."""
    from xrddiff.core.files import package_folder
    from xrddiff.data.formats.store import save_frames
    from xrddiff.data.frames.selection import select_frames
    from xrddiff.physics.simulation.simulate import simulate

    folder.mkdir(parents=True, exist_ok=True)
    shots = simulate("sim128", range(10), seed=5).load()
    save_frames(select_frames(shots, range(4)), folder / "shots.h5")
    save_frames(shots.drop_dims("peak").isel(frame=[0]), folder / "det.h5")
    save_frames(shots.drop_dims("peak"), folder / "bare.h5")
    shutil.copy(package_folder() / "data" / "samples" / "halite.cif", folder / "salt.cif")
    np.save(folder / "mask.npy", np.ones((128, 128), bool))
    (folder / "series").mkdir()
    for name in "ab":
        np.save(folder / "series" / f"{name}.npy", np.random.default_rng(3).poisson(3, (64, 64)).astype(np.int32))
    (folder / "find.sh").write_text('printf "frame,fs,ss\\n0,10,10\\n" > "$2.csv"\n')
    (folder / "sweep.yaml").write_text(
        "words: [model=vae_kl, data=sim128]\nmetric: {name: loss}\nparameters: {training.lr: {values: [1e-3]}}\n"
    )
    rng, rows = np.random.default_rng(0), []
    for crystal in range(12):
        for h, k, l in rng.integers(1, 8, (60, 3)):  # noqa: E741
            rows.append(
                (
                    crystal,
                    h,
                    k,
                    l,
                    29 / np.sqrt(h * h + k * k + l * l),
                    100.0 / (h + k + l) * rng.lognormal(0, 0.1),
                    2.0,
                )
            )
    names = ["frame", "h", "k", "l", "d", "intensity", "sigma"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "obs.csv", index=False)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """What a folder holds: name -> hash, or the target of a link."""
    out = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            key = path.relative_to(folder).as_posix()
            out[key] = f"-> {os.readlink(path)}" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
    return out


@dataclass
class Case:
    """A call that must not harm: `argv` in the folder `place`; `kept`: what must be as it was, with its hashes.

    refused: it must end with code 2. out: the output.
    """

    name: str
    argv: list[str]
    place: Path
    kept: dict[Path, dict[str, str]]
    out: Path
    refused: bool = True

    def faults(self, code: int, said: str) -> list[str]:
        """What is wrong after it ended."""
        found = []
        if self.refused and code != 2:
            found.append(f"not refused (code {code})")
        if code not in (0, 1, 2, 75) or "Traceback" in said:
            found.append("traceback" if "Traceback" in said else f"code {code}")
        for folder, before in self.kept.items():
            now = hashes(folder)
            found += [f"lost {name}" for name in before.keys() - now.keys()]
            found += [f"replaced {name}" for name in before if name in now and now[name] != before[name]]
        if code == 2 and (left := leftovers(self.place)):
            found.append(f"left {left[0]}")
        return found


def leftovers(place: Path) -> list[str]:
    """Hidden parts and claims."""
    return sorted(n for n in (p.name for p in place.rglob(".*")) if n.endswith((".part", ".old", ".claim")))


def standing(writer: Writer, out: Path, finished: bool) -> list[str]:
    """What is wrong with an output whose command was killed, or has ended: it is whole, or says that it is not."""
    from xrddiff.core.safe_write import read_mark
    from xrddiff.data.formats.readers import open_frames

    if not os.path.lexists(out):
        return ["there is no output"] if finished else []
    if writer.kind == "folder":
        mark = read_mark(out)
        state = "empty" if mark is None and not any(out.iterdir()) else mark.state if mark else "unmarked"
        return [] if state in (("finished",) if finished else ("finished", "running", "empty")) else [f"state {state}"]
    if out.suffix in (".h5", ".zarr"):
        with open_frames(out) as frames:
            frames.load()
    return [] if out.is_dir() or out.stat().st_size else ["an empty output"]


def cases(writer: Writer, inputs: Path, work: Callable[[], Path]) -> Iterator[Case]:
    """The harmful calls of a command; `work` makes an empty folder for each, into which the inputs are copied."""

    def fresh() -> Path:
        place = work()
        shutil.copytree(inputs, place, dirs_exist_ok=True, symlinks=True)
        (place / "precious").mkdir()
        (place / "precious" / "thesis.txt").write_text(PRECIOUS)
        return place

    def case(name: str, place: Path, out: str | Path, *more: str, refused: bool = True) -> Case:
        return Case(name, writer.argv(out, *more), place, {place: hashes(place)}, place / out, refused)

    over = ["--overwrite"] if writer.overwrites and writer.kind == "file" else []
    out = f"out{writer.suffix}"
    if not writer.slow:
        yield case("not hostile", fresh(), out, refused=False)
    if writer.kind == "file":
        place = fresh()
        (place / out).write_text(PRECIOUS)
        yield case("a file of the user", place, out)
        place = fresh()
        (place / out).symlink_to("precious/thesis.txt")
        yield case("a link to a file of the user", place, out)
        place = fresh()
        (place / out).symlink_to("precious/thesis.txt")
        yield Case(
            "a link that may be replaced",
            writer.argv(out, *over),
            place,
            {place / "precious": hashes(place / "precious")},
            place / out,
            refused=False,
        )
        place = fresh()
        (place / out).mkdir()
        (place / out / "notes.txt").write_text(PRECIOUS)
        yield case("a folder of the user in place of the file", place, out, *over)
    else:
        place = fresh()
        (place / out / "metrics").mkdir(parents=True)
        for name in WRITTEN:
            (place / out / name).write_text(PRECIOUS)
        yield case("a folder with content", place, out)
        place = fresh()
        (place / out).mkdir()
        (place / out / "truth.csv").symlink_to(place / "precious" / "thesis.txt")
        (place / out / "log.txt").symlink_to(place / "precious" / "thesis.txt")
        yield case("a link within", place, out)
        place = fresh()
        (place / out).mkdir()
        mark = dict(
            command="xrddiff", version="0.1.0", state="failed", host="h", place="p", pid=1, start="1", began=1.0
        )
        (place / out / "xrddiff.json").write_text(json.dumps(mark))
        (place / out / "metrics").symlink_to(place / "precious")
        yield case("a link within a folder that carries our mark", place, out)
        place = fresh()
        (place / out).symlink_to("nowhere")
        yield case("a link that leads nowhere", place, out, refused=False)
        place = fresh()
        (place / out).write_text(PRECIOUS)
        yield case("a file in place of the folder", place, out)
    place = fresh()
    (place / "above").symlink_to("precious")
    yield case("a link above", place, f"above/{out}", refused=False)
    for read in writer.reads:
        place = fresh()
        yield case(f"the input {read} as output", place, read, *over)
        if writer.kind == "file" and Path(read).suffix == writer.suffix:
            place = fresh()
            os.link(place / read, place / out)
            yield case(f"another name of the input {read}", place, out, *over)
            place = fresh()
            (place / "folder").mkdir()
            (place / read).rename(place / "folder" / Path(read).name)
            (place / read).symlink_to(f"folder/{Path(read).name}")
            yield case(f"the file behind the input {read}", place, f"folder/{Path(read).name}", *over)
    if any((inputs / read).is_dir() for read in writer.reads):
        place = fresh()
        yield case("a member of the input", place, "series/a.npy", *over)
