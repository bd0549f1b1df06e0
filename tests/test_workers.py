"""Samples and judgements by workers: the same bits as from one process, whoever dies on the way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import warm
from conftest import Lab, listening, local_workers, made_once
from test_run import xrddiff

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import read_store
from xrddiff.learn.telemetry.rules import verdict_words
from xrddiff.run.execution.workers import Workers, open_workers, parse_workers, run_tasks

pytestmark = pytest.mark.slow

# numbers that begin within a chunk, a last chunk that is not whole, and a measurement of each sample besides
WORDS = [
    "-n",
    "38",
    "inference.first_sample=3",
    "inference.batch_size=4",
    "inference.steps=16",
    "inference.poisson=true",
]
WORDS += ["threads=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained latent model, also where another worker has the tests on the cluster. Its folder has a name that no shell must see."""
    words = ["model=latent_diff", "size=tiny", "experiment_type=test", "data=sim128", "data.limit=40", "threads=1"]
    words += ["training.batch_size=4", "training.max_steps=2", "inference.num_samples=8", "inference.steps=2"]
    train = partial(xrddiff, "run", *words, "run_name=whole")
    own = tmp_path_factory.mktemp("workers") / 'it\'s $(touch here) "quoted"'
    folder = made_once("test_workers", lambda folder: train(folder=folder), own)
    return folder / "output" / "latent_diff_test" / "whole"


@pytest.fixture(scope="module")
def whole(run):
    """The samples as one undisturbed process makes them."""
    xrddiff("sample", str(run), *WORDS, "--name", "whole", "--judge", folder=run)
    return read_store(run / "samples" / "whole" / "samples.zarr").load()


started: list[warm.Forked] = []


def start(run: Path, *words: str, **options) -> warm.Forked:
    started.append(warm.start("xrddiff", "sample", run, *WORDS, *words, cwd=run, **options))
    return started[-1]


@pytest.fixture(autouse=True)
def none_left():
    """A test that fails leaves no command behind."""
    yield
    while started:
        started.pop().kill()


def marks(folder: Path) -> int:
    return len(list((folder / "samples.parts" / "marks").glob("[0-9]*.json")))


def wait_for(true, process: warm.Forked, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate(10)[0][-3000:]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def finish(process: warm.Forked, seconds: float = 200) -> str:
    said = process.communicate(timeout=seconds)[0]
    assert process.returncode == 0, said[-3000:]
    return said


def check_same(folder: Path, whole) -> None:
    """Every variable to the last bit, and nothing left of the making."""
    found = read_store(folder / "samples.zarr")
    assert set(found.variables) == set(whole.variables) and found.attrs == whole.attrs
    assert [n for n in whole.variables if not np.array_equal(found[n].values, whole[n].values)] == []
    assert not (folder / "samples.parts").exists() and (folder / "report.html").exists()


def test_the_store_of_samples_is_frames_like_any_other(run, whole):
    samples = open_frames(run / "samples" / "whole" / "samples.zarr")
    assert samples["sample"].values.tolist() == list(range(3, 41)) and samples.attrs["distance"] > 0
    again = xrddiff("sample", str(run), "-n", "2", "--name", "two", "inference.first_sample=9", *WORDS[3:], folder=run)
    assert "samples are already made" not in again.stdout
    two = read_store(run / "samples" / "two" / "samples.zarr")
    for name in ("intensity", "drawn"):
        assert np.array_equal(two[name].values, whole[name].values[6:8])


def test_workers_listen_on_this_machine_alone():
    """Each worker at one port, that of its tasks; its scheduler and what forks it on the loopback too."""
    workers = set()
    with open_workers(Workers(2), threads=1) as pool:
        run_tasks(lambda device: os.getpid(), [()] * 6, pool, workers.add)
        assert workers == {worker.pid for worker in local_workers(os.getpid())}
        (forks,) = {psutil.Process(worker).ppid() for worker in workers}
        assert psutil.Process(forks).num_threads() == 1  # an import that started more would make forking unsafe
        places = [listening(pid) for pid in workers]
        assert all(len(p) == 1 and p.pop().startswith("127.0.0.1:") for p in places)
        assert all(place.startswith("127.0.0.1:") for place in listening(forks, os.getpid()))


def test_a_worker_killed_in_mid_chunk_costs_its_chunk(run, whole):
    folder = run / "samples" / "killed"
    process = start(run, "--name", "killed", "--workers", "local:2")
    wait_for(lambda: marks(folder) >= 2, process)
    worker = local_workers(process.pid)[0].pid
    os.kill(worker, signal.SIGSTOP)  # first, so that the chunk that it has cannot end
    assert marks(folder) < 8
    os.kill(worker, signal.SIGKILL)
    finish(process)
    check_same(folder, whole)


def test_the_same_command_goes_on_where_it_was_killed(run, whole):
    folder = run / "samples" / "again"
    process = start(run, "--name", "again")
    wait_for(lambda: marks(folder) >= 3, process)
    process.kill()
    process.wait(30)
    # one part is broken, another has lost its mark: both are made anew
    broken = sorted((folder / "samples.parts" / "frames.zarr" / "intensity" / "c").rglob("*/0/0"))[0]
    broken.write_bytes(broken.read_bytes()[:-5])
    done = marks(folder)
    sorted((folder / "samples.parts" / "marks").glob("[0-9]*.json"))[1].unlink()
    said = finish(start(run, "--name", "again"))
    assert f"{4 * (done - 2)} of 38 samples are already made" in said and f"samples: {folder}\n" in said
    check_same(folder, whole)
    assert (folder / "notebook.1.ipynb").exists()


def test_a_full_disk_is_one_sentence_and_costs_nothing(run, whole):
    # no file may become larger: what a quota says to whoever writes
    full = (resource.RLIMIT_FSIZE, 30_000, resource.RLIM_INFINITY)
    process = start(run, "--name", "full", limits=[full])
    said = process.communicate(timeout=200)[0]
    assert process.returncode not in (0, 130) and "Traceback" not in said
    assert re.search(r"^xrddiff: .*(File too large|larger than the limit)", said, re.M), said[-2000:]
    finish(start(run, "--name", "full"))
    check_same(run / "samples" / "full", whole)


def test_other_words_begin_a_set_of_their_own(run, whole):
    folder = run / "samples" / "other"
    process = start(run, "--name", "other")
    wait_for(lambda: marks(folder) >= 1, process)
    process.kill()
    process.wait(30)
    done = xrddiff("sample", str(run), "-n", "4", "--name", "other", "inference.steps=2", folder=run)
    assert f"samples: {folder}-2" in done.stdout and marks(folder) >= 1


def profile(folder: Path, **fields) -> Path:
    """Two worker jobs of one CPU."""
    fields = dict(nodes=2, cpus_per_node=1, memory_per_cpu="2G", time_limit="00:10:00") | fields
    path = folder / "two.yaml"
    path.write_text(json.dumps(fields))
    return path


@pytest.fixture
def on_lab(lab: Lab, tmp_path):
    """The environment of a command on the lab cluster; no job of it outlives its test."""
    before = set(lab.call("squeue", "-h", "-o%i").split())
    yield lab.env | {"XRDDIFF_STATE": f"/tmp/{tmp_path.name}-{os.getpid()}"}
    left = set(lab.call("squeue", "-h", "-o%i", "-nxrddiff-workers").split()) - before
    if left:
        lab.call("scancel", *left)
    shutil.rmtree(f"/tmp/{tmp_path.name}-{os.getpid()}", ignore_errors=True)


def worker_jobs(lab: Lab, state: str = "RUNNING") -> set[str]:
    return set(lab.call("squeue", "-h", "-o%i", f"-t{state}", "-nxrddiff-workers").split())


def processes_of(job: str) -> list[int]:
    """The processes of a job, on whichever node of the lab."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def stop_job(job: str) -> None:
    """Stop the processes of a job, as they are: what they have begun does not end."""
    for pid in processes_of(job):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGSTOP)


def test_slurm_workers_lost_in_mid_chunk_are_replaced(run, lab: Lab, on_lab, tmp_path):
    """256 frames. One worker is cancelled, the node of another loses its power: others make what they had, and the rest."""
    words = ["-n", "256", "inference.batch_size=4", "inference.steps=2"]
    xrddiff("sample", str(run), *WORDS, *words, "--name", "many", folder=run)
    folder, workers = run / "samples" / "slurm", f"slurm:{profile(tmp_path, cpus_per_node=32)}"  # each has its node
    process = start(run, *words, "--name", "slurm", "--workers", workers, env=on_lab)
    wait_for(lambda: marks(folder) >= 1 and len(worker_jobs(lab)) == 2, process)
    cancelled, stopped = worker_jobs(lab)
    places = listening(process.pid, *processes_of(stopped))
    assert len(places) > 1 and not [p for p in places if p.startswith(("0.0.0.0:", "IPv6"))]
    stop_job(stopped)
    assert marks(folder) < 60
    lab.call("scancel", cancelled)
    node = lab.job(stopped)["NodeList"]
    lab.crash(node)
    try:
        said = finish(process, 400)
        check_same(folder, read_store(run / "samples" / "many" / "samples.zarr").load())
        assert "Traceback" not in said
        assert lab.job(cancelled)["JobState"] == "CANCELLED"
        # SLURM may not have noticed yet, and be told by the command that ends
        assert lab.job(stopped)["JobState"] in {"NODE_FAIL", "CANCELLED"}
    finally:
        lab.start(node)
    end = time.monotonic() + 120
    while lab.call("squeue", "-h", "-o%i", "-nxrddiff-workers").split():
        assert time.monotonic() < end, "worker jobs outlive their command"
        time.sleep(0.2)
    assert not list(Path(on_lab["XRDDIFF_STATE"]).rglob("*.pem")) and not (run.parent / "here").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"partition": "nowhere"}, "SLURM would not take a worker job: "),
        ({"env_vars": {"PYTHONHOME": "/nowhere"}}, "3 worker jobs ended before a worker connected, the last with: "),
    ],
)
def test_worker_jobs_that_cannot_work_end_the_command(run, lab: Lab, on_lab, tmp_path, fields, sentence):
    words = ["-n", "8", "inference.steps=2", "--name", f"not {next(iter(fields))}"]
    command = ["sample", str(run), *words, "--workers", f"slurm:{profile(tmp_path, **fields)}"]
    done = xrddiff(*command, folder=run, check=False, env=on_lab)
    assert done.returncode == 2 and f"xrddiff: {sentence}" in done.stderr and "Traceback" not in done.stderr
    assert not worker_jobs(lab, "PENDING,RUNNING")


@pytest.mark.parametrize(
    "text", ["local", "local:", "local:0", "local:-1", "local:2x", "lokal:2", "slurm:", "0", "-2", "2.0", "two", ""]
)
def test_malformed_workers_are_refused(text):
    with pytest.raises(
        BadInput, match="expected local:N, N processes on this machine, as in `--workers local:2`, or slurm:PROFILE"
    ):
        parse_workers(text)


def test_a_bare_number_is_so_many_processes_here():
    assert parse_workers("2") == parse_workers(2) == parse_workers("local:2") == Workers(2)


def test_a_profile_that_is_not_there_is_refused_before_anything_is_made(run):
    done = xrddiff("sample", str(run), "--name", "never", "--workers", "slurm:smal", folder=run, check=False)
    assert done.returncode == 2 and "did you mean 'small'" in done.stderr
    assert not (run / "samples" / "never").exists()


def test_a_judgement_is_the_same_for_any_number_of_workers(run, whole):
    judged = []
    for words in ([], ["--workers", "local:2"]):
        words += ["inference.index_frames=6"]
        done = xrddiff("evaluate", str(run), "--name", "whole", "threads=1", *words, folder=run)
        judged.append(json.loads((run / "metrics" / "evaluation.json").read_text()))
        assert "radial profile" in done.stdout
    assert judged[0] == judged[1] and judged[0]["sets"]["samples"] == 38
    assert {"samples", "floor", "autoencoder"} == set(judged[0]["rows"])
    # frames of a model that has hardly been trained may have too few peaks to be indexed
    assert {"held out"} <= set(judged[0]["lattices"]) <= {"samples", "held out", "autoencoder"}
    assert judged[0]["lattices"]["held out"]["rate"]["value"] > 0.5
    assert "Frames that index" in (run / "evaluation" / "report.md").read_text()
    sentence = judged[0]["verdict"]["line"]  # where people look, the same one
    assert sentence in done.stdout.replace("\n", " ") and verdict_words(run / "samples" / "whole") == sentence
    assert (run / "evaluation" / "report.html").exists() and (run / "evaluation" / "notebook.1.ipynb").exists()
    # made with the sampling command, judged by the same measures
    assert json.loads((run / "samples" / "whole" / "generation.json").read_text())["rows"] == judged[0]["rows"]


def test_a_judgement_does_not_depend_on_the_blocks(run, whole):
    """The sets above are of one block each; here of many, as those of a large run are."""
    from xrddiff.judge.inference.evaluation import open_evaluation

    evaluation, rows = open_evaluation(run, ["inference.batch_size=4"], "whole"), []
    for size in (64, 4):
        blocks = {name: [slice(a, min(a + size, n)) for a in range(0, n, size)] for name, n in evaluation.sets.items()}
        seen = {name: [evaluation.measure(name, block) for block in own] for name, own in blocks.items()}
        rows.append(evaluation.merge(seen).rows)
    assert len(blocks["samples"]) == 10 and rows[0].keys() == rows[1].keys()
    for name, row in rows[0].items():
        for measure, value in row.items():
            np.testing.assert_allclose(rows[1][name][measure], value, rtol=1e-9, err_msg=f"{name}: {measure}")


def test_what_cannot_be_judged_is_refused_in_one_sentence(run, whole):
    for words, sentence in (
        (["--name", "hole"], "did you mean 'whole'"),
        (["training.lr=1"], "words of inference only"),
    ):
        done = xrddiff("evaluate", str(run), *words, folder=run, check=False)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_metrics_of_this_process_are_not_for_workers(run, whole):
    """What a notebook registers is in no other process: said at once, not by a worker in the midst of it."""
    from xrddiff.core.errors import BadInput
    from xrddiff.core.registry import forget, register
    from xrddiff.run.execution.finished import execute_evaluate

    try:
        register("metric", "total", of="frames")(lambda frames: frames["intensity"].sum(("y", "x")).values)
        with pytest.raises(BadInput, match="do not have the metric 'total'.*test_workers"):
            execute_evaluate(run, samples="whole", workers="local:2")
    finally:
        forget(__name__)
