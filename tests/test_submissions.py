"""Fifty broken submissions: each is refused in one sentence, and nothing is queued, made or left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from xrddiff.app.verbs.main import main
from xrddiff.data.formats.store import save_frames
from xrddiff.physics.simulation.simulate import simulate

GOOD = [
    "model=vae_kl",
    "size=tiny",
    "data=full",
    "data.data_id=null",
    "data.data_path=shots.h5",
    "training.max_steps=20",
]
SIM = ["data=sim128", "data.limit=32"]

# what is wrong -> (options of submit, words, part of the sentence)
BROKEN = {
    # packages
    "tracker not installed": (
        [],
        [*GOOD, "training.trackers=[mlflow]"],
        "mlflow needs the package mlflow, which is not installed",
    ),
    "tracker of no library": ([], [*GOOD, "training.trackers=[wand]"], "did you mean 'wandb'"),
    "tracker's option": (
        [],
        [*GOOD, "training.trackers=[wandb]", "training.tracker_options={wandb: {mode: x}}"],
        "found 'x'",
    ),
    "plug-in missing": ([], [*GOOD, "plugins=[mine.py]"], "mine.py"),
    "plug-in that fails": ([], [*GOOD, "plugins=[broken.py]"], "broken.py"),
    # files and folders
    "no data file": ([], [*GOOD, "data.data_path=none.h5"], "none.h5"),
    "data file torn": ([], [*GOOD, "data.data_path=torn.h5"], "torn.h5"),
    "data file of another kind": ([], [*GOOD, "data.data_path=notes.h5"], "notes.h5"),
    "no such data set in the file": ([], [*GOOD, "data.dataset=/nowhere"], "/nowhere"),
    "no geometry": (
        [],
        [*GOOD, "data.data_path=bare.h5", "model=ddpm", "model.condition_maps=[q]"],
        "the frames have no distance",
    ),
    "reflections missing": (
        [],
        [*GOOD, "model=ddpm", "model.condition_maps=[intensity]", "data.reflections=none.mtz"],
        "none.mtz",
    ),
    "folder that is a file": ([], [*GOOD, "output_dir=notes.h5"], "notes.h5"),
    "folder nobody may write": ([], [*GOOD, "output_dir=/proc/none"], "/proc/none"),
    "folder on no disk": ([], [*GOOD, "output_dir=/dev/full/x"], "/dev/full"),
    "resume of no run": ([], ["resume=empty"], "empty"),
    "resume of no folder": ([], ["resume=none"], "none"),
    "start from nothing": ([], [*GOOD, "training.init=none"], "none"),
    "autoencoder missing": ([], [*GOOD, "model=latent_diff", "training.pretrained_vae_path=none"], "none"),
    "script missing": (["--script", "none.py"], [], "none.py"),
    "script of another kind": (["--script", "notes.h5"], [], "notes.h5"),
    "profile file missing": (["--config", "none.yaml"], GOOD, "none.yaml"),
    # the request to SLURM
    "no profile": (["--no-profile"], GOOD, "which cluster?"),
    "two profiles": (["-p", "small", "--config", "odd.yaml"], GOOD, "each name a profile; expected one of them"),
    "unknown profile": (["-p", "smal"], GOOD, "did you mean 'small'"),
    "profile with a word too many": (["--config", "odd.yaml"], GOOD, "there is no field 'node'"),
    "time that is none": (["--time", "tomorrow"], GOOD, "time"),
    "time with 61 minutes": (["--time", "01:61:00"], GOOD, "time"),
    "time below the signal": (["--time", "00:01:00"], GOOD, "expected at least 240 s, twice signal_seconds"),
    "three minutes": (["--time", "3"], GOOD, "expected at least 240 s, twice signal_seconds"),
    "no node": (["--nodes", "0"], GOOD, "nodes"),
    "nodes in words": (["--nodes", "two"], GOOD, "nodes"),
    "partition that is none": (["--partition", "a b"], GOOD, "partition"),
    "partition unknown to SLURM": (["--partition", "nowhere"], GOOD, "invalid partition specified: nowhere"),
    "memory that is none": (["--config", "memory.yaml"], GOOD, "memory such as 4G"),
    "memory for nothing": (["--config", "little.yaml"], GOOD, "memory_per_cpu: found 10M"),
    "memory below a model": (
        ["--config", "less.yaml"],
        [*GOOD, "model=ddpm", "size=xl"],
        "weights with their gradients and moments",
    ),
    "CPUs that do not divide": (["--config", "odd_cpus.yaml"], GOOD, "multiple of tasks_per_node"),
    "GPUs without a platform": (["--config", "gpus.yaml"], GOOD, "expected cuda or rocm"),
    # the run on its ranks
    "more ranks than frames": (["--nodes", "999"], GOOD, "999 ranks"),
    "batch below the ranks": (
        ["-p", "small"],
        [*GOOD, "training.global_batch_size=1"],
        "one frame for each of the 2 ranks",
    ),
    "kernel on two ranks": (["-p", "small"], [*GOOD, "engine=kernel"], "a kernel is one process"),
    "array and sweep": (["--array", "-m"], [*GOOD, "training.seed=1,2"], "use one of the two"),
    "array of a script": (["--array", "--script", "good.py"], [], "not --script"),
    "command that no ranks execute": ([], ["sample", "RUN"], "cannot execute xrddiff sample together"),
    # words
    "unknown preset": ([], ["model=vae_kll"], "did you mean 'vae_kl'"),
    "unknown word": ([], [*GOOD, "training.learning_rate=1"], "training.learning_rate"),
    "no word": ([], ["vae_kl"], "vae_kl"),
    "rate below zero": ([], [*GOOD, "training.lr=-1"], "training.lr"),
    "steps that are none": ([], [*GOOD, "training.max_steps=many"], "training.max_steps"),
    "crop beyond the frame": ([], [*GOOD, "data.crop=[200,200]"], "at most the frame's 128 x 128"),
    "pool that does not divide": ([], [*GOOD, "data.avg_pooling=true", "data.pool=7"], "do not divide"),
    "one frame": ([], [*GOOD, "data.limit=1"], "at least 2 frames"),
    "cell that is none": ([], [*SIM, "model=ddpm", "model.condition=[colour]"], "colour"),
    "widths that do not fit": ([], [*SIM, "model=ddpm", "size=tiny", "size.widths=[3,5]"], "size.widths"),
    "posterior of no cell": ([], ["posterior", "crystal", "shots.h5", "--cell", "1,2"], "cell"),
    "posterior of no file": ([], ["posterior", "crystal", "none.h5", "--cell", "79,79,38,90,90,90"], "none.h5"),
}
SLURM = {
    "scontrol": 'echo "ClusterName = lab"',
    "squeue": "true",
    "sbatch": """script=$(cat)
case "$script" in *"--partition=nowhere"*) echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1;; esac
echo "$script" >> "$QUEUED"; echo 4711""",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with what the submissions name, and a SLURM that writes down what is queued."""
    folder = tmp_path_factory.mktemp("submissions")
    frames = simulate("sim128", range(40), truth=False)
    save_frames(frames, folder / "shots.h5")
    whole = (folder / "shots.h5").read_bytes()
    (folder / "torn.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.h5").write_text("a day at the beamline")
    with h5py.File(folder / "bare.h5", "w") as file:
        file["entry/data/data"] = frames["intensity"].values.astype(np.float32)
    (folder / "empty").mkdir()
    texts = {
        "broken.py": "raise RuntimeError('no')", "good.py": "print(1)", "odd.yaml": "node: 3", "memory.yaml": "memory_per_cpu: lots",
        "little.yaml": "memory_per_cpu: 10M", "less.yaml": "memory_per_cpu: 300M", "odd_cpus.yaml": "tasks_per_node: 3\ncpus_per_node: 4", "gpus.yaml": "gpus_per_node: 2",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "bin").mkdir()
    for name, text in SLURM.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def place(files, monkeypatch):
    """The command line in that folder."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("PATH", f"{files}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUED", str(files / "queued"))
    monkeypatch.setenv("XRDDIFF_STATE", str(files / "state"))
    return files


def listed(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


def submit(options, words):
    profile = [] if {"-p", "--config", "--no-profile"} & {*options} else ["-p", "debug"]
    return main(["cluster", "submit", *profile, *[o for o in options if o != "--no-profile"], *words])


@pytest.mark.parametrize("case", BROKEN)
def test_refused(case, place, monkeypatch, capsys):
    if case == "tracker not installed":
        monkeypatch.setattr("xrddiff.core.extras.find_spec", lambda package: None)
    before = listed(place)
    options, words, sentence = BROKEN[case]
    code, said = submit(options, words), capsys.readouterr()
    assert code == 2, (code, said)
    assert said.out == "" and said.err.startswith("xrddiff: ") and said.err.count("\n") == 1, said.err
    assert sentence in said.err
    left = {name for name in listed(place) - before if name.split("/")[0] != "state"}
    assert not [name for name in left if (place / name).is_file()], (
        left
    )  # nothing is queued, no script, no configuration
    assert not [name for name in left if name.startswith("output/") and name.split("/")[1] != "slurm"], left


def test_there_are_fifty():
    assert len(BROKEN) >= 50


def test_what_is_not_broken_is_queued(place, capsys):
    assert submit([], GOOD) == 0
    said = capsys.readouterr().out
    assert "submitted job 4711" in said
    (place / "queued").unlink()
    assert json.loads((place / "state" / "jobs.jsonl").read_text().splitlines()[-1])["id"] == 4711
