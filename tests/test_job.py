"""The two commands of a batch job, as processes: what they make of a folder, how they end, what survives in the words."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from xrddiff.config.composition import compose_config
from xrddiff.config.overrides import as_override
from xrddiff.config.saved_config import load_config
from xrddiff.core.errors import BadInput
from xrddiff.core.registry import forget, register
from xrddiff.core.text import plain_text
from xrddiff.run.execution.status import read_failures, stopped_by
from xrddiff.run.slurm.job import REQUEUE, Job, RankCommand, prepare, read_job, run_task, run_words
from xrddiff.run.slurm.profiles import load_profile
from xrddiff.run.slurm.scripts import render_script
from xrddiff.run.slurm.submission import plan_command

# of this test process: ranks of two that ran side by side on one port would take each other for their own
PORT = 20000 + os.getpid() % 3000 * 3
AWKWARD = "it's \"x\" $(touch pwned) `touch pwned` \\' \\\n; #é"


def launch(
    command: str, job: Job, folder: Path, rank: int = 0, ranks: int = 1, port: int = 0, **env: str
) -> subprocess.Popen:
    """`python -P -m xrddiff.run.slurm.job command` on one rank."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "PMI_"))} | env
    env |= {"XRDDIFF_JOB": job.to_json(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        place = dict(RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=ranks, MASTER_PORT=port)
        env |= {k: str(v) for k, v in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    words = [sys.executable, "-P", "-m", "xrddiff.run.slurm.job", *command.split()]
    return subprocess.Popen(words, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("text", [AWKWARD, "plain", "", "\\", "a\\'b", "'", "\\\\", "a,b=[c]{d}", "${x}"])
def test_words_arrive_as_text(text):
    assert compose_config([as_override("run_name", "n" + text)]).run_name == "n" + text if "$" not in text else True
    job = Job(overrides=[[text]], run_dirs=["/" + text], name=text, argv=[text])
    assert Job.from_json(job.to_json()) == job and job.to_json().isascii() and "\n" not in job.to_json()


def test_a_folder_with_an_awkward_name(tmp_path):
    path = tmp_path / AWKWARD.replace("/", "")
    job = Job(overrides=[["model=vq", "data=sim128"]], run_dirs=[str(path)])
    code, out, err = ended(launch("prepare", job, tmp_path))
    assert (code, err) == (0, "") and out == f"run: {plain_text(path)}\n"
    assert compose_config(run_words(job, 0)).resume == str(path) and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_prepare_comes_again(tmp_path):
    """As after a requeue: nothing is lost, marks are cleared, other words are refused."""
    path = tmp_path / "run"
    job = Job(overrides=[["data=sim128", "training.num_epochs=2"]], run_dirs=[str(path)])
    prepare(job)
    (path / "checkpoints" / "kept").mkdir()
    (path / "stopped.json").write_text('{"reason": "SIGUSR2"}')
    (path / "ranks").mkdir()
    (path / "ranks" / "failed-0001.json").write_text("{")
    assert stopped_by(path) == "SIGUSR2" and read_failures(path) == []
    prepare(job)
    assert (
        stopped_by(path) is None and not list((path / "ranks").iterdir()) and (path / "checkpoints" / "kept").is_dir()
    )
    assert load_config(path / "config.yaml").training.num_epochs == 2
    with pytest.raises(BadInput, match="training.lr=1.0 contradicts"):
        prepare(Job(overrides=[["data=sim128", "training.lr=1"]], run_dirs=[str(path)]))


def test_a_task_of_an_array(tmp_path):
    job = Job(overrides=[["model=vq"], ["model=ddpm"]], run_dirs=[str(tmp_path / "a"), str(tmp_path / "b")])
    (file := tmp_path / "job.json").write_text(job.to_json())
    found, task = read_job({"XRDDIFF_JOB_FILE": str(file), "SLURM_ARRAY_TASK_ID": "1"})
    prepare(found, task)
    assert load_config(tmp_path / "b" / "config.yaml").presets["model"] == "ddpm" and not (tmp_path / "a").exists()
    for number in ("2", "x", "-1"):
        with pytest.raises(BadInput, match="expected a number from 0 to 1"):
            read_job({"XRDDIFF_JOB_FILE": str(file), "SLURM_ARRAY_TASK_ID": number})
    with pytest.raises(BadInput, match="cannot read the job from XRDDIFF_JOB_FILE"):
        read_job({"XRDDIFF_JOB_FILE": str(tmp_path / "none")})
    with pytest.raises(BadInput, match="there is no job"):
        read_job({})


def test_refusals_are_one_sentence(tmp_path):
    for job, sentence in (
        (Job(overrides=[["model=vqq"]], run_dirs=[str(tmp_path / "r")]), "did you mean 'vq'"),
        (Job(kind="sample", run_dirs=[str(tmp_path / "r")]), "kind is 'sample'"),
        (Job(kind="script", script=str(tmp_path / "no.py"), run_dirs=[str(tmp_path / "r")]), "does not exist"),
    ):
        code, out, err = ended(launch("prepare", job, tmp_path))
        assert code == 2 and out == "" and sentence in err and err.count("\n") == 1, err


SCRIPT = """
import os, sys
from pathlib import Path
assert __name__ == "__main__" and sys.path[0] == str(Path(__file__).parent)
rank = int(os.environ["RANK"])
Path(f"told-{rank}").write_text(repr((sys.argv[1:], os.environ["WORLD_SIZE"])))
if "fail" in sys.argv and rank == 1:
    raise ValueError("no such thing")
sys.exit(3 if "three" in sys.argv else None)
"""


def test_a_script_of_ones_own(tmp_path):
    (tmp_path / "own script.py").write_text(SCRIPT)

    def run(*argv):
        job = Job(
            kind="script", script=str(tmp_path / "own script.py"), argv=list(argv), run_dirs=[str(tmp_path / "run")]
        )
        prepare(job)
        processes = [launch("rank", job, tmp_path, rank, 2, PORT) for rank in range(2)]
        return [ended(process) for process in processes]

    assert [code for code, *_ in run(AWKWARD, "three")] == [3, 3]
    assert [eval((tmp_path / f"told-{r}").read_text()) for r in range(2)] == [([AWKWARD, "three"], "2")] * 2
    (first, _, _), (second, _, err) = run("fail")
    assert first == 0 and second == 1 and "ValueError: no such thing" in err
    assert [(mark["rank"], mark["error"]) for mark in read_failures(tmp_path / "run")] == [(1, "no such thing")]


def test_a_notebook_of_ones_own(tmp_path):
    cell = nbformat.v4.new_code_cell("steps = 1\nname = ''")
    cell.metadata["tags"] = ["parameters"]
    body = nbformat.v4.new_code_cell("import os\nprint(os.environ['RANK'], steps, name)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, body]), tmp_path / "own.ipynb")
    job = Job(
        kind="script",
        script=str(tmp_path / "own.ipynb"),
        argv=["steps=3", "name=a b"],
        run_dirs=[str(tmp_path / "run")],
    )
    prepare(job)
    processes = [launch("rank", job, tmp_path, rank, 2, PORT + 1) for rank in range(2)]
    assert [ended(process)[0] for process in processes] == [0, 0]
    assert "0 3 a b" in (tmp_path / "run" / "notebook.ipynb").read_text()
    assert "1 3 a b" in (tmp_path / "run" / "ranks" / "rank-0001.ipynb").read_text()


def test_modules_of_the_working_folder(tmp_path):
    """What has the name of one of Python's own is let alone by the launcher and by the ranks; a notebook still finds the others."""
    for name in ("json", "random"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('taken for a module of Python')")
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    cell = nbformat.v4.new_code_cell(
        "import helper, os\nopen(f'told-{os.environ[\"RANK\"]}', 'w').write(str(helper.double(21)))"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "own.ipynb")
    job = Job(kind="script", script=str(tmp_path / "own.ipynb"), run_dirs=[str(tmp_path / "run")])
    profile = replace(load_profile("debug"), tasks_per_node=2)
    (tmp_path / "job.sh").write_text(render_script(profile, job, log="none", folder=tmp_path, local=True, threads=1))
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)] == ["42", "42"]


def test_ranks_without_slurm(tmp_path):
    """Where one fails, the others are ended, and its code is the launcher's."""
    (tmp_path / "own.py").write_text(
        "import os, signal, sys\nsys.exit(3) if os.environ['RANK'] == '1' else signal.pause()"
    )
    job = Job(kind="script", script=str(tmp_path / "own.py"), run_dirs=[str(tmp_path / "run")])
    prepare(job)
    assert ended(launch("ranks 3", job, tmp_path))[0] == 3
    code, _, err = ended(launch("ranks 0", job, tmp_path))
    assert code == 2 and "found 'ranks 0', expected" in err


def test_a_training_is_stopped_and_goes_on(tmp_path):
    """TERM to `submit --local`: both ranks stop in order, 75 and how to go on; the same words go on to the end."""
    words = [
        "experiment_type=test",
        "data=sim128",
        "data.limit=32",
        "data.crop=[32,32]",
        "threads=1",
        "inference.limit=2",
    ]
    words += [
        "training.global_batch_size=8",
        "training.num_epochs=1000",
        "training.max_steps=100000",
        "training.log_every=1",
    ]
    command = [
        Path(sys.executable).parent / "xrddiff",
        "cluster",
        "submit",
        "--local",
        "--profile=debug",
        "--tasks-per-node=2",
    ]
    command += [*words, f"output_dir={tmp_path}", as_override("run_name", "it's")]
    env = os.environ | {"ACCELERATE_USE_CPU": "true"}
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=tmp_path, env=env, **pipe) as process:
        deadline = time.monotonic() + 300
        try:
            while not list(tmp_path.glob("*/*/checkpoints/step-*")) and time.monotonic() < deadline:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    path = Path(out.split("run: ", 1)[1].partition("\n")[0])
    assert process.returncode == 75 and stopped_by(path) == "SIGTERM" and read_failures(path) == []
    (word,) = shlex.split(
        err.splitlines()[-1].removeprefix("xrddiff: stopped before it was done; to resume: the same command with ")
    )
    assert compose_config([*words, word]).resume == str(path) and path.name == "it's"
    step = max(int(p.name.removeprefix("step-")) for p in path.glob("checkpoints/step-*"))

    again = Job(overrides=[[*words[:-2], f"training.max_steps={step + 2}"]], run_dirs=[str(path)])
    assert ended(launch("prepare", again, tmp_path))[0] == 0
    code, _, err = ended(launch("rank", again, tmp_path))  # on one rank now
    assert code == 0 and stopped_by(path) is None, err
    rows = json.loads((path / "metrics" / "training_metrics.json").read_text())
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, step + 3))
    assert (path / "report.html").exists() and (path / "notebook.1.ipynb").exists()


# --- commands that all ranks execute together -------------------------------------------------------------------------


@pytest.fixture
def toy():
    """A command `toy`, which ends with the exit code in its words."""

    def toy_on_ranks(words, ranks):
        if not words:
            raise BadInput("toy: expected an exit code")
        given = Path(words[2]) if "--into" in words else None
        return RankCommand(lambda: int(words[0]), Path("output/toys"), given, "--into", "toy")

    register("command", "toy", help="a toy")(toy_on_ranks)
    yield
    forget(__name__)


def test_a_command_is_planned_with_a_folder(toy, tmp_path, monkeypatch, capsys):
    """It gets a folder of its own unless it names one, and is refused before anything is made."""
    monkeypatch.chdir(tmp_path)
    job, logs = plan_command(["toy", "75"], 4)
    assert (
        job.kind == "command" and job.argv == ["toy", "75", "--into", job.run_dirs[0]] and not any(tmp_path.iterdir())
    )
    assert Path(job.run_dirs[0]).is_relative_to(tmp_path / "output" / "toys") and logs == tmp_path / "output" / "slurm"
    assert plan_command(["toy", "75", "--into", "here"], 4)[0].run_dirs == [str(tmp_path / "here")] != job.run_dirs
    assert prepare(job).is_dir() and prepare(job).is_dir()  # once more, as after a requeue
    with pytest.raises(BadInput, match="expected an exit code"):
        plan_command(["toy"], 4)
    assert Job.from_json(job.to_json()) == job
    with pytest.raises(BadInput, match="expected a command first, one of"):
        Job.from_json(replace(job, argv=["toyy"]).to_json())


def test_a_command_stopped_in_order_goes_back_into_the_queue(toy, tmp_path, monkeypatch):
    """By the exit code of rank 0 alone, as `srun` ends all ranks at the first that is not 0."""
    monkeypatch.setattr(
        "xrddiff.core.ranks.environment.set_environment", lambda info: None
    )  # of this process, for good
    job = Job("command", run_dirs=[str(tmp_path)], argv=["toy", "75", "--into", str(tmp_path)])
    assert run_task(job) == REQUEUE
    for name, value in dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="9").items():
        monkeypatch.setenv(name, value)
    assert run_task(job) == 0 and run_task(replace(job, argv=["toy", "3", *job.argv[2:]])) == 3
    with pytest.raises(BadInput):
        run_task(replace(job, argv=["toy"]))
    assert [f["rank"] for f in read_failures(tmp_path)] == [1]


@pytest.mark.slow
def test_two_ranks_execute_a_command(tmp_path):
    job = Job("command", run_dirs=[str(tmp_path)], argv=["comm-test", "--sizes", "4,1k", "--rounds", "1", "--json"])
    ranks = [launch("rank", job, tmp_path, rank, 2, PORT + 2) for rank in (0, 1)]
    (code, out, err), other = map(ended, ranks)
    assert (code, other[:2]) == (0, (0, "")), err + other[2]
    report = json.loads(out)
    assert report["num_processes"] == 2 and report["passed"]
