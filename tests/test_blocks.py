"""Every command in the README, the guides and the tutorials' text runs: on small frames and models, in a folder of its own.

`PLACE` is that folder, with the files and runs that the text speaks of. Trainings get `SMALL`, samplings `QUICK`; what needs a cluster is written or
checked instead of submitted (`--dry-run`). What cannot run here is in `NOT_HERE`, with the reason; a reason that no page needs any more fails too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import warm
from range_server import RangeServer

from xrddiff.data.formats.store import save_frames
from xrddiff.learn.loading.catalog import load
from xrddiff.learn.recipes.saved_peak_nets import save_peak_net, train_peak_net

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", ROOT / "docs" / "home.md"]
PAGES += [
    ROOT / "docs" / f"{name}.md"
    for name in ("commands", "health", "many_runs", "tracking", "widgets", "exports", "streams", "servers")
]
PAGES += sorted((ROOT / "docs" / "guides").glob("*.md"))
TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))

SMALL = "training.max_steps=1 training.num_epochs=1 training.batch_size=8 threads=1 inference.num_samples=4 inference.steps=2 inference.index_frames=0".split()
FEW = "size=tiny data.limit=16 data.avg_pooling=true data.pool=8".split()  # data of a preset, which may be large
QUICK = ["inference.steps=2", "inference.index_frames=0", "threads=1"]
NOT_HERE = {
    r"make (demo|test|lab)$": "sets up its own environment; CI runs both",
    r"(apt-get|srun|mpirun|torchrun|eval|\. )": "needs a cluster or a launcher; tests/test_slurm.py and test_ranks_runs.py run them",
    r"python slurm/lab/lab.py": "a toy cluster, as root; tests/test_lab.py",
    r"xrddiff cluster (status|logs|cancel|resume)\b": "asks SLURM about jobs; tests/test_slurm.py does, on the toy cluster",
    r"xrddiff runs watch \d+": "a job of a cluster; tests/test_watch.py",
    r"xrddiff (sample|evaluate) .*slurm:": "needs a cluster; tests/test_workers.py",
    r"xrddiff sample .*inference.detector=": "minutes of a large frame; tests/test_tiles.py",
    r"xrddiff sample .*inference.lattice=": "needs a model with few conditions; tests/test_generate.py",
    r"xrddiff (stream|data replay) .*(tcp|listen)://": "needs a detector, and somebody who listens; tests/test_streaming.py",
    r"xrddiff (twin|recover) ": "a minute of indexing; tests/test_twin.py and test_recover.py",
    r"xrddiff stream \S+ --cell ": "needs frames with a lattice, as they come; tests/test_enough.py",
    r"xrddiff merge ": "needs frames with a lattice, or a stream; tests/test_merging.py",
    r"xrddiff sweep .*(--profile|losses.yaml)": "a swarm of jobs, or six trainings; tests/test_studies.py",
    r"(tensorboard|wandb|mlflow|trackio|cd ~)": "a program of others, with a server",
}


def lines_of(block: str) -> list[str]:
    """The commands of a block: continued lines joined, without prompts, comments and output."""
    joined = re.sub(r"\\\\?\n\s*", " ", block)
    found = []
    for line in joined.splitlines():
        words = re.sub(r"(^|\s)#.*$", "", line).strip()
        if words:
            found.append(words)
    return found


def fenced(text: str) -> list[tuple[str, str]]:
    """(language, block) of a page."""
    found, inside, language = [], None, ""
    for line in text.splitlines():
        fence = re.match(r"\s*```(\w*)\s*$", line)
        if fence and inside is None:
            inside, language = [], fence[1]
        elif fence:
            found.append((language, "\n".join(inside) + "\n"))
            inside = None
        elif inside is not None:
            inside.append(line)
    return found


def blocks(text: str) -> list[str]:
    """The shell blocks of a page; a block without a language is one if it begins with a command."""
    return [b for language, b in fenced(text) if language == "bash" or (not language and b.startswith("xrddiff "))]


def text_of(page: Path) -> str:
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


COMMANDS = [(p, line) for p in [*PAGES, *TUTORIALS] for b in blocks(text_of(p)) for line in lines_of(b)]


def why_not(line: str) -> str | None:
    return next((why for pattern, why in NOT_HERE.items() if re.match(pattern, line)), None)


def here(page: Path, line: str) -> str:
    return f"{page.relative_to(ROOT).as_posix()}: {line}"[:150]


FIRST = {line: page for page, line in reversed(COMMANDS)}  # what several pages say runs once
HERE = {here(page, line): line for line, page in reversed(FIRST.items()) if why_not(line) is None}


@pytest.fixture(scope="module")
def place(tmp_path_factory, runs):
    """A folder with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("reader")
    frames = load("sim128", limit=16).load()
    counts = frames["intensity"].values.astype(np.uint16)
    x, y = frames.attrs["beam_center"]
    with h5py.File(folder / "run42.cxi", "w") as file:
        file["entry_1/data_1/data"] = counts
        file["entry_1/instrument_1/source_1/energy"] = np.full(16, 1.6e-15)
        file["entry_1/instrument_1/detector_1/distance"] = 0.05
        file["entry_1/instrument_1/detector_1/x_pixel_size"] = 344e-6
    with h5py.File(folder / "raw.h5", "w") as file:
        file.create_dataset("data", data=np.ones((2, 2048, 2048), np.uint16), compression="gzip")
    geometry = ["clen = 0.05", "res = 2907", "dim0 = %", "dim1 = ss", "dim2 = fs", "data = /entry_1/data_1/data"]
    panel = dict(
        min_ss=0, max_ss=127, min_fs=0, max_fs=127, fs="+1.0x +0.0y", ss="+0.0x +1.0y", corner_x=-x, corner_y=-y
    )
    geometry += [f"all/{name} = {value}" for name, value in panel.items()]
    for name in ("cspad.geom", "four.geom"):
        (folder / name).write_text("\n".join(geometry) + "\n")
    (folder / "shots.csv").write_text("frame,protein\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(16)))
    atom = "ATOM  {:5d}  CA  GLY A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           C"
    places = np.random.default_rng(0).uniform(2, 30, (12, 3))
    atoms = [atom.format(i + 1, i + 1, *at) for i, at in enumerate(places)]
    cell = "CRYST1   40.000   44.000   60.000  90.00  90.00  90.00 P 21 21 21"
    for name in ("my.pdb", "lysozyme.pdb"):
        (folder / name).write_text("\n".join([cell, *atoms, "END"]))
    shutil.copy(folder / "run42.cxi", folder / "as-written.h5")
    shutil.copy(ROOT / "nbs" / "tutorials" / "extending.ipynb", folder)
    large = load("sim-422", limit=13).load()
    save_frames(large, folder / "run_17.h5")
    save_frames(large, folder / "still.cxi")
    (folder / "incoming").mkdir()
    save_frames(large, folder / "incoming" / "run_1.h5")
    valid = np.ones(large["intensity"].shape[1:], bool)
    valid[100:160, 60:300] = False
    np.save(folder / "valid.npy", valid)
    for page, _ in COMMANDS:  # files that a page shows
        for language, text in fenced(text_of(page)):
            if language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", text)):
                (folder / name[1]).write_text(text.replace("run_cap: 8", "run_cap: 1"))
    shutil.copytree(runs("vae_kl"), folder / "output" / "vae_kl" / "2026-05-04")
    shutil.copytree(runs("vae_kl"), folder / "output" / "vq" / "2026-05-04")
    for name in ("vae_kl/2026-11-20/10-30-00", "vae_kl/2026-01-31/12-00-00"):
        shutil.copytree(runs("vae_kl"), folder / "output" / name)
    shutil.copytree(runs("ddpm"), folder / "RUN")
    for name in ("shots.zarr", "photons.h5"):
        save_frames(frames, folder / name)
    for name in ("mine", "shots-twin"):
        (folder / name).mkdir()
        save_frames(frames, folder / name / "frames.h5")
    save_peak_net(train_peak_net(frames, steps=2), folder / "peaks.safetensors")
    with RangeServer(folder) as web:
        (folder / "host").write_text(web.address)
        yield folder


def served(text: str, place: Path) -> str:
    """The text with the address of the server of this folder."""
    return text.replace("https://host", (place / "host").read_text())


def command(line: str, train: bool = True) -> list[str]:
    """The words of a line, made small; `…` stands for what is said elsewhere. Without `train`, and for several
    runs, a training is composed and checked only (`--dry-run`): each costs ten seconds, and other tests train the same models.
    """
    line = line.replace("convert run42.h5", "convert as-written.h5")  # the README has made another run42.h5
    line = line.replace("--detector run42.h5", "--detector as-written.h5")
    words = [w for w in shlex.split(line) if w != "…"]
    assert words[0] == "xrddiff", line
    what = words[2] if words[1] in ("cluster", "posterior", "runs") else words[1]
    if what in ("run", "submit"):
        several = "-m" in words or "--multirun" in words or "--array" in words
        if what == "submit" and "--local" not in words:
            return [
                "cluster",
                "submit",
                *([] if "--dry-run" in words else ["--dry-run"]),
                *words[3:],
            ]  # a command has its own
        if several or not train or "--help" in words or "--dry-run" in words:
            return [*words[1:], *([] if "--help" in words or "--dry-run" in words else ["--dry-run"])]
        if not any(w.startswith(("resume=", "init=")) for w in words):
            if "experiment_type=demo" not in words:  # which has a model of its own, of whole frames
                own = any("data_path=" in w for w in words)
                words += ["data.avg_pooling=true"] if own else FEW
                words += [] if any(w.startswith("model=") for w in words) else ["model=vae_kl"]
            return [*words[1:], *SMALL]
        resumed = any(w.startswith("resume=") for w in words)
        return [*words[1:], *(["threads=1"] if resumed else [*FEW, *SMALL])]
    if words[1:3] == ["data", "simulate"]:
        words[words.index("-n") + 1] = "2"
        words.append("--overwrite")  # several pages call their frames shots.h5
    if what in ("sample", "inpaint", "interpolate"):
        if "-n" in words:
            words[words.index("-n") + 1] = "2"
        kept = [w for w in words if not w.startswith("inference.steps")]
        return [*kept[1:], *QUICK, *(["--limit", "1"] if what == "inpaint" else [])]
    if words[1:3] == ["posterior", "pixels"]:
        return [*words[1:], "inference.steps=2", "threads=1", "--limit", "1", "--draws", "3"]
    if what == "evaluate":
        return [*words[1:], "inference.index_frames=0", "threads=1"]
    if what == "export" and "peaks" in words:
        words[words.index("-o") + 1] = "own-peaks.safetensors"  # the other blocks use the one that is there
        return [*words[1:], "--steps", "2", "--overwrite"]
    if what == "watch":
        return [*words[1:], *([] if "--once" in words else ["--once"])]
    return words[1:]


@pytest.mark.slow
@pytest.mark.parametrize("said", HERE)
def test_a_command_of_the_docs_runs(said, place):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    words = command(served(HERE[said], place), train="data_path=" in said or "resume=" in said)
    done = warm.run("xrddiff", *words, cwd=place, env=env)
    assert done.returncode == 0, f"{words}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"


def test_what_does_not_run_says_why():
    """Each reason is needed, each command is one of ours or has a reason, and most of them run."""
    for pattern in NOT_HERE:
        assert any(re.match(pattern, line) for _, line in COMMANDS), f"no page has {pattern!r} any more"
    strangers = [line for line in HERE.values() if not line.startswith("xrddiff ")]
    assert strangers == [] and len(HERE) > 40


PYTHON = [(p, b) for p in PAGES for language, b in fenced(text_of(p)) if language == "python"]
SHORT = {
    "num_epochs=10": "num_epochs=1, max_steps=1, avg_pooling=True, threads=1, num_samples=2, steps=2, index_frames=0, size='tiny', progress=False",
    "run.sample(16": "run.sample(2",
    ".resume()": "",
    "output/latent_diff/2026-11-20/10-30-00": "RUN",
    '"run42.cxi"': '"run42.cxi", geometry="cspad.geom"',
    "return Logbook(server, run.name, run.id)": "return None",
}


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for _, b in PYTHON], ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(PYTHON)])
def test_a_block_of_python_runs(block, place):
    for long, short in SHORT.items():
        block = block.replace(long, short)
    script = place / "block.py"
    script.write_text(served(block, place))
    done = warm.run(script, cwd=place)
    assert done.returncode == 0, f"{block}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
