"""The toy cluster is what its README says: jobs run, nodes crash and come back, and nothing is left of it."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LAB, Lab, bring_up

from xrddiff.app.verbs.main import main, parse
from xrddiff.run.slurm.profiles import Profile, list_profiles

pytestmark = pytest.mark.slow


def request(p: Profile) -> list[str]:
    """The profile as options of sbatch."""
    words = dict(
        nodes=p.nodes,
        ntasks_per_node=p.tasks_per_node,
        cpus_per_task=p.cpus_per_task,
        mem_per_cpu=p.memory_per_cpu,
        time=p.time_limit,
        gpus_per_node=p.gpus_per_node or None,
        gpu_bind=p.gpu_bind,
        partition=p.partition,
        account=p.account,
        qos=p.qos,
        constraint=p.constraint,
    )
    return [f"--{k.replace('_', '-')}={v}" for k, v in words.items() if v is not None]


def test_jobs_run_on_nodes_with_names_of_their_own(lab: Lab):
    nodes = lab.call("srun", "-N2", "hostname").split()
    assert len(set(nodes)) == 2 and {*nodes} <= {f"n{k}" for k in range(1, 9)}
    assert set(lab.call("sinfo", "-hN", "-o%c %m %G").splitlines()) == {"32 262144 gpu:4"}


def test_the_environment_of_a_lab_is_that_of_its_shell(lab: Lab, tmp_path: Path, monkeypatch):
    """`environment` for Python, `env` for a shell; another cluster's words are left behind."""
    monkeypatch.setenv("SLURM_CONF", "/another/cluster")
    monkeypatch.setenv("SBATCH_PARTITION", "another")
    module = runpy.run_path(str(LAB))
    found = module["environment"](lab.folder)
    names = ("SLURM_CONF", "PATH", "HOME", "SBATCH_PARTITION")
    assert [found.get(n) for n in names] == [lab.env["SLURM_CONF"], lab.env["PATH"], os.environ["HOME"], None]
    shell = f'eval "$({sys.executable} {LAB} env --folder {lab.folder})"; echo "$SLURM_CONF"; echo "$PATH"'
    said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60).stdout
    assert said.splitlines() == [found["SLURM_CONF"], found["PATH"]]
    with pytest.raises(module["LabError"], match="there is no lab"):
        module["environment"](tmp_path)


def test_every_cpu_profile_runs_as_it_is(lab: Lab, tmp_path: Path):
    profiles = [p for p in list_profiles() if p.platform == "cpu"]
    jobs = {}
    for p in profiles:
        jobs[p.name] = lab.submit(*request(p), f"--output={tmp_path}/{p.name}", "--wrap", "srun hostname")
    for p in profiles:
        lab.wait(jobs[p.name], "COMPLETED", timeout=90)
        assert len(set((tmp_path / p.name).read_text().split())) == p.nodes


def test_a_node_crashes_its_job_is_requeued_and_the_node_comes_back(lab: Lab, tmp_path: Path):
    script = "echo run $SLURM_RESTART_COUNT on $(hostname); srun sleep $((SLURM_RESTART_COUNT ? 0 : 600))"
    job = lab.submit("-N2", f"--output={tmp_path}/out", "--open-mode=append", "--wrap", script)
    first = lab.wait(job, "RUNNING")
    node = first["BatchHost"]
    lab.crash(node)
    try:
        lab.wait_node(node, "DOWN")
        again = lab.wait(job, "COMPLETED")
        assert again["Restarts"] == "1" and again["BatchHost"] != node
        assert [line.split()[:2] for line in (tmp_path / "out").read_text().splitlines() if "run" in line][0] == [
            "run",
            "on",
        ]
    finally:
        lab.start(node)
    assert lab.call("srun", "-w", node, "hostname").strip() == node


def test_the_controller_is_restarted_under_a_running_job(lab: Lab, tmp_path: Path):
    job = lab.submit(
        f"--output={tmp_path}/out", "--wrap", f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; echo whole"
    )
    lab.wait(job, "RUNNING")
    lab.restart_controller()
    lab.restart_controller(crash=True)
    assert lab.job(job)["JobState"] == "RUNNING"
    (tmp_path / "go").touch()
    assert lab.wait(job, "COMPLETED")["Restarts"] == "0"
    assert (tmp_path / "out").read_text() == "whole\n"


def test_a_second_lab_stands_beside_the_first_and_leaves_nothing(lab: Lab, tmp_path: Path):
    """The second one claims what GPU sites have, so that their profiles can be submitted as they are."""
    partitions = ",".join({p.partition for p in list_profiles() if p.partition})
    claims = [
        "--nodes=10",
        "--cpus=128",
        f"--memory={1024 * 1024}",
        "--gpus=8",
        f"--partitions={partitions}",
        "--features=gpu,L40S",
    ]
    other = bring_up(*claims)
    try:
        for p in list_profiles():
            other.call("sbatch", "--test-only", *request(p), "--wrap", "true")
        gpus = other.call("srun", "--gres=gpu:2", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES").strip()
        assert gpus == "0,1"
        # a task that detaches itself, as a forgotten server would
        job = other.submit(f"--output={tmp_path}/out", "--wrap", "setsid sleep 601 & echo $!; wait")
        other.wait(job, "RUNNING")
        while not (out := tmp_path / "out").exists() or not out.read_text().strip():
            time.sleep(0.05)
        detached = int(out.read_text())
        keepers = [int(path.read_text().split()[0]) for path in (other.folder / "run").glob("*.pid")]
        assert len(keepers) == 13 and all(Path(f"/proc/{pid}").exists() for pid in [*keepers, detached])
        other.crash("n1")
        assert lab.call("srun", "-w", "n1", "hostname").strip() == "n1"
    finally:
        other.down()
    assert not any(alive(pid) for pid in [*keepers, detached])
    assert remains(str(other.folder)) == []
    assert lab.call("srun", "hostname").strip() in {f"n{i}" for i in range(1, 9)}


def test_what_is_typed_on_the_page_of_the_cluster_is_still_understood(tmp_path: Path, monkeypatch, capsys):
    """docs/cluster_tour.py takes minutes to make that page; here its commands are read, and what it submits is rendered or refused as shown."""
    page = (LAB.parents[2] / "docs" / "cluster_tour.md").read_text()
    words = runpy.run_path(str(LAB.parents[2] / "docs" / "cluster_tour.py"))["TRAIN"]
    assert words in page, "docs/cluster_tour.py types other words than the page shows: run it"
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"```python\n# (\S+)\n(.+?)```", page, re.S):
        Path(name).write_text(text)
    seen = []
    for command, answer in re.findall(r"^\$ ((?:.*\\\n)*.*)\n(.*)", page, re.M):
        typed = shlex.split(command.replace("$WORDS", words).replace("\\\n", " "))
        if typed[0] == "srun":
            typed = typed[2:]
        if typed[0] != "xrddiff":
            continue
        own = 3 if typed[1] == "cluster" else 2
        seen.append(typed[own - 1])
        parse(typed[1:])
        if seen[-1] in ("submit", "run"):
            refused = answer.startswith("xrddiff: ")
            code = main([*typed[1:own], "--dry-run", *[w for w in typed[own:] if w != "--dry-run"]])
            assert code == (2 if refused else 0), (command, capsys.readouterr().err)
            assert not refused or capsys.readouterr().err == f"{answer}\n"
    assert {"submit", "status", "logs", "run", "sample", "comm-test", "scaling", "resume", "data"} == set(seen)


def alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def remains(folder: str) -> list[str]:
    """What there is of a lab: processes that have its folder in their command lines, names in /etc/hosts, the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if folder in line and path.parent.name != str(os.getpid()):
            found.append(f"process {path.parent.name}: {line}")
    found += [f"/etc/hosts: {line}" for line in Path("/etc/hosts").read_text().splitlines() if folder in line]
    listed = [os.path.join(where, name) for where, *names in os.walk(folder) for name in sum(names, [])]  # may vanish
    return found + [name for name in [folder, *listed] if os.path.lexists(name)]


def wait_for_nothing(folder: str, seconds: float = 20) -> None:
    """What was killed takes a moment to go."""
    end = time.monotonic() + seconds
    while (found := remains(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not found, "\n".join(found)


@pytest.fixture
def folder() -> Iterator[str]:
    """A short path for a lab that a test brings up by itself."""
    path = tempfile.mkdtemp(prefix="lab-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("moment", ["lab.json", "slurm.conf", "run/munged.pid", "run/slurmctld.pid", "run/n1.pid"])
def test_a_lab_that_is_stopped_while_it_comes_up_leaves_no_process(lab: Lab, folder: str, moment: str):
    """Also between the note of a process that is to keep a daemon and the daemon's own start."""
    coming = subprocess.Popen([sys.executable, str(LAB), "up", f"--folder={folder}", "--nodes=1"])
    while coming.poll() is None and not Path(folder, moment).exists():
        time.sleep(0.0005)
    coming.terminate()
    assert coming.wait(60) == 143
    shutil.rmtree(folder)  # the logs, which say why a lab did not come up
    wait_for_nothing(folder)


def test_a_lab_goes_down_with_its_owner(lab: Lab, folder: str):
    owner = subprocess.Popen(["sleep", "600"])
    up = [sys.executable, str(LAB), "up", f"--folder={folder}", "--nodes=1", f"--until={owner.pid}"]
    subprocess.run(up, check=True, timeout=60, stdin=subprocess.DEVNULL)
    assert remains(folder)
    owner.kill()
    owner.wait()
    wait_for_nothing(folder)


def test_mistakes_are_refused_with_a_sentence(lab: Lab, tmp_path: Path, monkeypatch):
    def said(*words: str) -> str:
        done = subprocess.run([sys.executable, str(LAB), *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        return done.stderr

    here = f"--folder={lab.folder}"
    assert "expected one of n1, n2" in said("crash", "n9", here)
    assert "runs already" in said("start", "n1", here)
    assert "is up in" in said("up", here)
    assert "there is no lab" in said("env", f"--folder={tmp_path}/none")
    monkeypatch.setenv("XRDDIFF_LAB", str(lab.folder))
    assert "is up in" in said("up")
    (tmp_path / "mine").write_text("mine")
    assert "is not empty and no lab" in said("up", f"--folder={tmp_path}")
    assert (tmp_path / "mine").read_text() == "mine"
    assert "too long" in said("up", f"--folder={tmp_path}/{'x' * 80}")


@pytest.mark.parametrize(
    ("name", "function", "reason"),
    [("os.geteuid", lambda: 1000, "needs root"), ("shutil.which", lambda *a, **k: None, "apt-get install")],
)
def test_a_machine_that_cannot_have_a_lab_is_told_why(monkeypatch, capsys, tmp_path: Path, name, function, reason):
    module = {"os": os, "shutil": shutil}[name.partition(".")[0]]
    monkeypatch.setattr(module, name.partition(".")[2], function)
    assert runpy.run_path(str(LAB))["main"](["up", f"--folder={tmp_path}/lab"]) == 1
    assert reason in capsys.readouterr().err
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        bring_up()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI needs it"):
        bring_up()
