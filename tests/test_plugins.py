"""A plug-in reaches every process of a run: the ranks on two nodes, also when the job goes on, and workers. What they make is what one process makes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Lab
from safetensors.numpy import load_file
from test_extending import TUTORIAL
from test_run import xrddiff

from xrddiff.data.formats.store import read_store

pytestmark = pytest.mark.slow

WORDS = [
    "model=ddpm", "network=Plain", "model.network_options={width: 8}", "inference.sampler=damped",
    "inference.sampler_options={strength: 0.5}", "data=sim128", "data.limit=12", "data.crop=[32,32]", "threads=1",
    "training.global_batch_size=4", "training.checkpoint_every=2", "inference.num_samples=4", "inference.steps=3",
]  # fmt: skip
PROFILE = "nodes: 2\ncpus_per_node: 32\nmemory_per_cpu: 1G\ntime_limit: 00:10:00\n"
FIRST, LAST = 3, 6  # steps: before the run goes on, and in all


class Place:
    """A folder with the plug-in, and commands in it on the lab; `alone` is a run in one process."""

    def __init__(self, lab: Lab, folder: Path):
        self.lab, self.folder, self.env = lab, folder, lab.env | {"XRDDIFF_STATE": str(folder / "state")}
        (folder / "pair.yaml").write_text(PROFILE)
        (folder / "worker.yaml").write_text(PROFILE.replace("nodes: 2", "nodes: 1"))
        self.plugin = Path(shutil.copy(TUTORIAL, folder / "mine.ipynb"))
        self("run", *WORDS, "plugins=[mine.ipynb]", f"training.max_steps={LAST}", "run_name=alone")
        self.alone = folder / "output" / "ddpm" / "alone"

    def __call__(self, *words: str, check: bool = True):
        return xrddiff(*words, folder=self.folder, env=self.env, check=check)

    def ends(self, said: str) -> None:
        """The job of which a command has told comes to its end."""
        self.lab.wait(re.search(r"submitted job (\d+)", said)[1], "COMPLETED", 240)


@pytest.fixture(scope="module")
def place(lab: Lab, tmp_path_factory) -> Place:
    return Place(lab, tmp_path_factory.mktemp("plugins"))


def samples(folder: Path) -> np.ndarray:
    return read_store(folder / "samples.zarr")["intensity"].values


def test_ranks_on_two_nodes_and_a_job_that_goes_on(place: Place):
    """The job goes on with the copy that the run keeps, though the user's own notebook is broken by then."""
    words = [*WORDS, "plugins=[mine.ipynb]", "run_name=pair", f"training.max_steps={FIRST}", "inference.match_radius=3"]
    submitted = place("cluster", "submit", "--config", "pair.yaml", *words)
    place.ends(submitted.stdout)
    run, whole = place.folder / "output" / "ddpm" / "pair", place.plugin.read_text()
    place.plugin.write_text("{}")
    job = re.search(r"submitted job (\d+)", submitted.stdout)[1]
    resumed = place("cluster", "resume", job, f"training.max_steps={LAST}", "inference.match_radius=3")
    place.ends(resumed.stdout)
    place.plugin.write_text(whole)
    for said in (submitted, resumed):
        assert (
            said.stderr == "xrddiff: note: no effect in this run: inference.match_radius (no autoencoder is trained)\n"
        )
    assert "no effect" not in "".join(log.read_text() for log in place.folder.glob("output/slurm/*.log"))
    step = f"checkpoints/step-{LAST:08d}/model.safetensors"
    ours, theirs = load_file(run / step), load_file(place.alone / step)
    assert ours.keys() == theirs.keys() and any(name.endswith("level.weight") for name in ours)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5, err_msg=name)
    a, b = samples(run / "samples"), samples(place.alone / "samples")
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_workers_that_sample(place: Place):
    """Bit for bit what one process draws with the sampler's option; without the plug-in nothing is drawn."""
    draw = [
        "sample",
        str(place.alone),
        "-n",
        "6",
        "inference.batch_size=2",
        "inference.sampler_options={strength: 0.7}",
    ]
    place(*draw, "plugins=[mine.ipynb]", "--name", "one")
    place(*draw, "plugins=[mine.ipynb]", "--name", "local", "--workers", "local:2")
    place(*draw, "--trust-plugins", "--name", "slurm", "--workers", "slurm:worker.yaml")
    one, local, slurm = (samples(place.alone / "samples" / name) for name in ("one", "local", "slurm"))
    assert len(one) == 6 and np.array_equal(one, local) and np.array_equal(one, slurm)
    assert not np.allclose(one[:4], samples(place.alone / "samples"))  # whose strength is 0.5
    refused = place(*draw, "--workers", "local:2", check=False)
    assert refused.returncode == 2 and "needs the plug-in mine.ipynb" in refused.stderr
