"""Training on a real SLURM: what is submitted arrives, what fails says why, and whatever befalls a job, it ends with the weights of one that was left alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from axe import faults
from safetensors.numpy import load_file

from xrddiff.app.verbs.main import main
from xrddiff.config.overrides import as_override
from xrddiff.config.saved_config import load_config
from xrddiff.core.ranks.environment import job_port
from xrddiff.run.execution.status import read_progress, run_state
from xrddiff.run.slurm.ledger import submissions
from xrddiff.run.slurm.profiles import list_profiles

pytestmark = pytest.mark.slow

STEPS = 120
WORDS = [
    "model=vae_kl", "size=tiny", "data=sim128", "data.limit=32", "data.crop=[64,64]", "threads=1",
    "training.global_batch_size=4", f"training.max_steps={STEPS}", "training.num_epochs=1000", "training.log_every=5",
    "training.checkpoint_every=10", "training.validate_every=1000",
]  # fmt: skip
# whole nodes, so that jobs side by side do not share one; a short warning, as a minute is SLURM's shortest limit
PROFILE = """\
nodes: 2
cpus_per_node: 32
memory_per_cpu: 1G
time_limit: 00:10:00
signal_seconds: 10
"""
# Text that is half a program: as a name, as words, and, but for what no path of SLURM's may have, as a folder.
NASTY = 'it\'s "two" $(touch hacked) `touch hacked`; touch hacked #\n#SBATCH --nodes=99\nJOB\ntouch hacked\n\\ é %j'
FOLDER = 'it\'s "two" $(touch hacked) `touch hacked` #50%j é'
HOSTILE = [as_override("run_name", NASTY), as_override("output_dir", FOLDER), "training.test_suffix=' $(touch hacked)'"]
# In every Python of a job: USR1 raises, as a broken notebook would.
HOOK = """\
import signal
def fail(*_):
    raise RuntimeError("a cosmic ray")
signal.signal(signal.SIGUSR1, fail)
"""


def wait_for(true, seconds: float, what: str):
    """What `true` returns, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return found


class Cluster:
    """The lab, a folder to work in, and the command line."""

    def __init__(self, lab, folder: Path):
        self.lab, self.folder = lab, folder

    def __call__(self, *words: str) -> SimpleNamespace:
        """`xrddiff words…`: exit code, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words))
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    def submit(self, *words: str, profile: str = "pair.yaml") -> SimpleNamespace:
        """Submit a run; returns its `id` and the folder of its (first) `run`."""
        done = self("cluster", "submit", "--config", profile, *WORDS, *words)
        assert done.code == 0, done.err
        s = submissions()[-1]
        return SimpleNamespace(id=s.id, run=Path(s.run_dirs[0]), log=s.log_file(0), runs=[Path(r) for r in s.run_dirs])

    def resume(self, job: SimpleNamespace) -> SimpleNamespace:
        """Resume by number; the run stays, the job is another."""
        done = self("cluster", "resume", str(job.id))
        assert done.code == 0, done.err
        s = submissions()[-1]
        assert s.resumes == job.id and s.run_dir() == str(job.run)
        return SimpleNamespace(id=s.id, run=job.run, log=s.log_file())

    def rank(self, job: SimpleNamespace, rank: int = 0) -> int:
        """The pid of a rank of a running job."""
        marks = {f"SLURM_JOB_ID={job.id}".encode(), f"SLURM_PROCID={rank}".encode()}

        def find():
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    if words[1:5] == [b"-P", b"-m", b"xrddiff.run.slurm.job", b"rank"] and marks <= set(
                        (process / "environ").read_bytes().split(b"\0")
                    ):
                        return int(process.name)

        return wait_for(find, 120, f"rank {rank} of job {job.id}")

    def signal(self, job: SimpleNamespace, number: int, ranks: Collection[int] = (0, 1)) -> None:
        """Send a signal to these ranks of a running job."""
        for pid in [self.rank(job, rank) for rank in ranks]:
            os.kill(pid, number)

    def checkpoint(self, job: SimpleNamespace, after: int = 0) -> int:
        """Wait for a checkpoint beyond the step `after`; returns its step."""

        def newest():
            steps = [int(p.name[5:]) for p in job.run.glob("checkpoints/step-*") if (p / "manifest.json").exists()]
            return max([s for s in steps if s > after], default=None)

        return wait_for(newest, 180, f"a checkpoint of job {job.id} after step {after}")

    def ends(self, job: SimpleNamespace, state: str = "COMPLETED", seconds: float = 240) -> None:
        """Wait for the end of a job, which must be this one."""
        self.lab.wait(job.id, {state}, seconds)


@pytest.fixture(scope="module")
def cluster(lab, tmp_path_factory):
    """The command line on a login node of the lab."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "pair.yaml").write_text(PROFILE)
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lab.env.items():
            patch.setenv(name, value)
        patch.setenv("XRDDIFF_STATE", str(folder / "state"))
        patch.setenv("PYTHONPATH", str(folder / "hook"))
        patch.chdir(folder)
        yield Cluster(lab, folder)


def listens_at(pid: int, ports: Collection[int]) -> list[int]:
    """At which of these ports a process listens, by the kernel's table of sockets."""
    own = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # files come and go
            own.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    mine = {int(w[1].rpartition(":")[2], 16) for w in lines if w[3] == "0A" and f"socket:[{w[9]}]" in own}
    return sorted(mine & set(ports))


def assert_as_text(cluster: Cluster, run: Path) -> None:
    """The words of HOSTILE are what they say, in the configuration and in the folder's name, and none was executed."""
    cfg = load_config(run / "config.yaml")
    assert (cfg.run_name, cfg.output_dir, cfg.training.test_suffix) == (NASTY, FOLDER, " $(touch hacked)")
    assert run.parent == cluster.folder / FOLDER / "vae_kl $(touch hacked)" and run.name.startswith(NASTY)
    assert not list(cluster.folder.rglob("hacked"))


def weights(run: Path) -> dict[str, np.ndarray]:
    """The weights at the last step."""
    return load_file(run / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def assert_same(run: Path, other: Path, tolerance: float = 0.0) -> None:
    """The same weights, bit for bit unless a tolerance is given."""
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        # the gradient of the keys' bias is zero but for rounding, which AdamW makes large
        if tolerance == 0 or "to_k.bias" not in name:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def limited(cluster, lab):
    """A job that will meet its time limit of a minute: its ranks are stopped until the warning must have come."""
    job = cluster.submit("--time", "00:01:00", "run_name=limited")
    cluster.checkpoint(job)
    ranks = [cluster.rank(job, r) for r in (0, 1)]
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    minutes, seconds = map(int, lab.call("squeue", "-h", "-j", str(job.id), "-o", "%M").strip().split(":"))

    def go_on():
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def warned():
        go_on()
        with contextlib.suppress(
            BaseException
        ):  # once is enough; a busy machine might not get to the end in any minute
            lab.wait(job.id, {"PENDING"}, 60)
            lab.call("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")

    timer = threading.Timer(max(0, 52 - 60 * minutes - seconds), warned)
    timer.start()
    yield job
    timer.cancel()
    go_on()


@pytest.fixture(scope="module")
def alone(cluster, limited):
    """Undisturbed: on two ranks, and in a single process that is the first task of an array."""
    pair = cluster.submit("run_name=undisturbed")
    array = cluster.submit("--nodes", "1", "--array", "run_name=sweep", "training.seed=42,7")
    return SimpleNamespace(pair=pair, array=array)


# --- what goes in, and what is refused --------------------------------------------------------------------------------


PROBE = """\
import json, os, sys
with open(sys.argv[1], "w") as file:
    json.dump(dict(argv=sys.argv[2:], name=json.loads(os.environ["XRDDIFF_JOB"])["name"]), file)
"""


def test_names_paths_and_words_arrive_as_text(cluster, limited):
    """Through `submit`, and through `submit --dry-run | sbatch`, from a folder and with a name and arguments that are half a program."""
    folder = cluster.folder / FOLDER
    folder.mkdir()
    (folder / "probe $(touch hacked).py").write_text(PROBE)
    with contextlib.chdir(folder):
        words = ["--profile", "debug", "--job-name", NASTY, "--script", "probe $(touch hacked).py", "--"]
        script = cluster("cluster", "submit", "--dry-run", *words, "piped.json", NASTY, "a b")
        assert script.code == 0, script.err
        piped = subprocess.run(
            ["sbatch", "--parsable"], input=script.out, capture_output=True, text=True, check=True
        ).stdout
        done = cluster("cluster", "submit", *words, "sent.json", NASTY, "a b")
        assert done.code == 0, done.err
        sent = submissions()[-1]
        rows = {row["id"]: row for row in json.loads(cluster("cluster", "status", "--json").out)}
        # what went past the ledger is known from the script that SLURM keeps
        assert rows[piped.strip()]["name"] == rows[str(sent.id)]["name"] == NASTY
        assert cluster("cluster", "logs", piped.strip()).code == 0
        for number, file in ((int(piped), "piped.json"), (sent.id, "sent.json")):
            cluster.lab.wait(number, {"COMPLETED"}, 120)
            assert json.loads(Path(file).read_text()) == dict(argv=[NASTY, "a b"], name=NASTY)
        assert sent.log_file().is_file() and sent.log_file().parent == folder / "output" / "slurm"
    assert not list(cluster.folder.rglob("hacked"))


def test_refusals_are_one_sentence(cluster):
    """Of SLURM, of a profile, of words; and nothing is left behind by them."""

    def refused(*words: str) -> str:
        done = cluster("cluster", "submit", *words)
        assert done.code == 2 and done.err.count("\n") == 1 and done.err.startswith("xrddiff: "), done
        return done.err

    assert "sbatch: Batch job submission failed: " in refused(
        "--config", "pair.yaml", "--nodes", "20", *WORDS, "training.global_batch_size=20", "run_name=never"
    )
    assert "26 frames are left to train on; expected at least one for each of the 99 ranks" in refused(
        "--config", "pair.yaml", "--nodes", "99", *WORDS, "training.global_batch_size=99"
    )
    assert "one frame for each of the 99 ranks" in refused("--config", "pair.yaml", "--nodes", "99", *WORDS)
    assert not (cluster.folder / "output" / "vae_kl" / "never").exists()
    assert "invalid partition" in refused("--config", "pair.yaml", "--partition", "nowhere", *WORDS)
    (cluster.folder / "wrong.yaml").write_text("nodes: many\n")
    assert "wrong.yaml: nodes: found 'many'; expected a whole number" in refused("--config", "wrong.yaml", *WORDS)
    assert "nodes: found '$(reboot)'" in refused("--profile", "small", "--nodes", "$(reboot)", *WORDS)
    assert "did you mean 'small'" in refused("--profile", "smal", *WORDS)
    assert "did you mean 'vae_kl'" in refused("--profile", "small", "model=vae_kll")
    assert "expected --profile NAME" in refused("model=vae_kl")
    assert (
        "9999 is not in the ledger" in cluster("cluster", "logs", "9999").err
        and "9999 is not in the ledger" in cluster("cluster", "resume", "9999").err
    )
    assert (done := cluster("cluster", "cancel", "9999")).code == 2 and "9999 is not in the queue" in done.err


def test_no_slurm_here(cluster, monkeypatch, tmp_path):
    """On a laptop: a sentence from what needs a cluster, and a script from what does not."""
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cluster("cluster", "submit", "--profile", "debug", *WORDS)
    assert done.code == 2 and "there is no command scontrol on this machine" in done.err
    assert cluster("cluster", "submit", "--profile", "debug", "--dry-run", *WORDS).out.startswith("#!/bin/bash\n")


def test_comm_test_under_srun(cluster):
    """Two ranks on two nodes; one of them reports."""
    words = [
        Path(sys.executable).parent / "xrddiff",
        "cluster",
        "comm-test",
        "--sizes",
        "4,100k",
        "--rounds",
        "2",
        "--json",
    ]
    done = subprocess.run(["srun", "-N2", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and (report["num_processes"], report["num_nodes"]) == (2, 2)
    for row in report["messages"]:
        row["ms"] = 1 + row["bytes"] / 1e6  # what a quiet network would have taken
    (cluster.folder / "comm.json").write_text(json.dumps(report))
    shown = cluster(
        "cluster", "scaling", "--params", "50M", "--comm", "comm.json", "--nodes", "2,4", "--step-ms", "100"
    )
    assert shown.code == 0 and "ms at 1 GB/s" in shown.out and "efficiency" in shown.out, shown.err


def test_every_cpu_profile_is_accepted(cluster):
    """As it is, by a real sbatch, which checks the request against the nodes."""
    for profile in list_profiles():
        if profile.platform == "cpu":
            script = cluster(
                "cluster", "submit", "--profile", profile.name, "--dry-run", "model=vae_kl", "data=sim128"
            ).out
            done = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
            assert done.returncode == 0, (profile.name, done.stderr)


# --- what befalls a job -----------------------------------------------------------------------------------------------


def test_a_job_that_fails_says_why_and_goes_on(cluster, alone):
    """A rank killed, a rank that raises, a disk that is full: each ends the job; `logs` begins with the reason; `resume` loses nothing."""
    job = cluster.submit("run_name=failing")
    step = cluster.checkpoint(job)
    os.kill(cluster.rank(job, 1), signal.SIGKILL)
    cluster.ends(job, "FAILED")
    shown = cluster("cluster", "logs", str(job.id)).out
    assert shown.startswith("rank 1 on ") and "ended first: Killed" in shown.splitlines()[0]

    job = cluster.resume(job)
    step = cluster.checkpoint(job, step)
    os.kill(cluster.rank(job, 1), signal.SIGUSR1)
    cluster.ends(job, "FAILED")
    shown = cluster("cluster", "logs", str(job.id)).out
    assert shown.startswith("rank 1 on ") and "RuntimeError: a cosmic ray" in shown[: shown.index("\n---\n")]
    assert "rank-0001.ipynb" in shown.splitlines()[1] and "Traceback" in shown[: shown.index("\n---\n")]
    assert "\x1b" not in job.log.read_text() and "\x1b" not in (job.run / "log.txt").read_text()

    job = cluster.resume(job)
    step = cluster.checkpoint(job, step)
    resource.prlimit(
        cluster.rank(job, 0), resource.RLIMIT_FSIZE, (2000, 2000)
    )  # what a quota does: it may not write on
    cluster.ends(job, "FAILED")
    shown = cluster("cluster", "logs", str(job.id)).out
    # a save that fails says it in our words, a write anywhere else in the system's
    assert shown.startswith("rank 0 on ") and re.search(
        "File too large|larger than the limit", shown.partition("\n---\n")[0]
    )

    job = cluster.resume(job)
    cluster.ends(job)
    cluster.ends(alone.pair)
    assert_same(job.run, alone.pair.run)
    done = cluster("cluster", "resume", str(job.id))
    assert done.code == 2 and "is finished" in done.err


def test_a_job_that_is_interrupted_goes_on_by_itself(cluster, alone):
    """Its port is taken; it is told to stop, twice; the controller restarts; a node loses its power. One job all along, one log, and no name is a program."""
    job = cluster.submit(*HOSTILE)
    port = job_port("slurm", job.id, 0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", port))
        taken.listen()
        step = cluster.checkpoint(job)
        # rank 1 has knocked there, rank 0 has met it at the next
        taken.settimeout(60)
        knock, _ = taken.accept()
        with knock, knock.makefile("rb") as said:
            assert json.loads(said.readline())["rank"] == 1
        assert listens_at(cluster.rank(job), (port, port + 1)) == [port + 1]
        done = cluster("cluster", "resume", str(job.id))
        assert done.code == 2 and "is running, and will work on it" in done.err
        subprocess.run(["scancel", "--signal=USR2", str(job.id)], check=True)
        cluster.lab.wait(job.id, {"PENDING"}, 60)
    step = cluster.checkpoint(job, step)
    cluster.signal(job, signal.SIGSTOP)  # the job must not be over when the controller is there again
    cluster.lab.restart_controller()
    cluster.signal(job, signal.SIGCONT)
    step = cluster.checkpoint(job, step)
    node = wait_for(lambda: cluster.lab.job(job.id).get("BatchHost"), 60, "the job's first node")
    cluster.lab.crash(node)
    cluster.lab.wait(job.id, {"PENDING"}, 60)
    # the log was written on that node, and breaks off
    assert cluster("cluster", "logs", str(job.id)).out.startswith(
        f"node {node}, where rank 0 was, failed, or SLURM took it away"
    )
    cluster.lab.start(node)
    step = cluster.checkpoint(job, step)
    shown = cluster("cluster", "logs", str(job.id)).out
    assert shown.startswith(
        "it ended without a word: its first node failed, or SLURM took it away; the job went on (rest"
    )
    subprocess.run(["scancel", "--signal=USR2", str(job.id)], check=True)
    cluster.ends(job)
    assert cluster.lab.job(job.id)["Restarts"] == "3"
    assert job.log.read_text().count("requeued, restart") == 2
    shown = cluster("cluster", "logs", str(job.id)).out.splitlines()
    assert shown[0] == "the time was nearly up: it wrote a checkpoint and was requeued; the job went on (restart 3)"
    assert shown[1].startswith("it ended without a word") and shown[3] == "---"
    assert_as_text(cluster, job.run)
    cluster.ends(alone.pair)
    assert_same(job.run, alone.pair.run)


# A command of a plug-in: particles of a banana, shared by the ranks, with a pause that leaves time to cut the power.
BANANA = """\
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from xrddiff.learn.diffusion.particles import svgd
from xrddiff.core.ranks.agreement import Ranks
from xrddiff.core.ranks.rendezvous import initialize_distributed
from xrddiff.core.ranks.ring import shares
from xrddiff.core.ranks.agreement import StopRequest
from xrddiff.core.registry import register
from xrddiff.run.slurm.job import RankCommand


def score(x):
    bent = x[:, 1] - x[:, 0] ** 2 / 2
    return torch.stack([x[:, 0] * bent - x[:, 0], -bent], 1)


def move(folder, pause, stop=None):
    info = initialize_distributed(backend="gloo")
    ranks = Ranks(SimpleNamespace(process_index=info.process_id, num_processes=info.num_processes))
    x = torch.randn(51, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, last = shares(51, ranks.size)[ranks.rank]
    look = lambda row: time.sleep(pause) or bool(stop)
    words = dict(steps=40, lr=0.1, check_every=0, block=8, ranks=ranks, folder=folder / "state", save_every=1)
    result = svgd(score, x[first:last], callback=look, **words)
    if result.stopped == "callback":
        return 75
    np.save(folder / f"particles-{ranks.rank}.npy", result.particles.numpy())
    if ranks.rank == 0:
        (folder / "report.html").write_text("done")
    return 0


@register("command", "banana", help="a banana")
def banana_on_ranks(words, ranks):
    work = lambda: move(Path(words[words.index("--into") + 1]), 0.2, StopRequest.current())
    return RankCommand(work, Path("output/banana"), None, "--into", "banana")
"""


def test_particles_on_two_nodes_of_which_one_fails(cluster, monkeypatch, tmp_path):
    """A command that all ranks execute together: its job goes back into the queue when a node loses its power, goes on from the newest state, and ends with the particles of one process."""
    (plugin := tmp_path / "banana.py").write_text(BANANA)
    monkeypatch.setenv("XRDDIFF_PLUGINS", str(plugin))
    done = cluster("cluster", "submit", "--config", "pair.yaml", "banana")
    assert done.code == 0, done.err
    sent = submissions()[-1]
    job = SimpleNamespace(id=sent.id, run=Path(sent.run_dir()))
    steps = lambda: max((int(p.name[5:]) for p in job.run.glob("state/step-*")), default=0)  # noqa: E731
    wait_for(lambda: steps() > 2, 120, "a state")
    assert "banana" in (shown := cluster("cluster", "status", str(job.id), "--details").out) and re.search(
        r"^  TimeLimit +00:10:00$", shown, re.M
    )
    node = wait_for(lambda: cluster.lab.job(job.id).get("BatchHost"), 60, "the job's first node")
    cluster.lab.crash(node)
    cluster.lab.wait(job.id, {"PENDING"}, 60)
    before = steps()
    assert 2 < before < 40
    cluster.lab.start(node)
    cluster.ends(job)
    assert cluster.lab.job(job.id)["Restarts"] == "1" and "run: " in cluster("cluster", "logs", str(job.id)).out
    assert [row["state"] for row in json.loads(cluster("cluster", "status", "--json", str(job.id)).out)] == [
        "COMPLETED"
    ]
    assert "is finished" in cluster("cluster", "resume", str(job.id)).err
    alone = {}
    exec(BANANA.replace('@register("command", "banana", help="a banana")', ""), alone)
    assert alone["move"](tmp_path, 0) == 0
    particles = [np.load(job.run / f"particles-{rank}.npy") for rank in (0, 1)]
    assert [len(p) for p in particles] == [25, 26]
    np.testing.assert_allclose(np.concatenate(particles), np.load(tmp_path / "particles-0.npy"), rtol=0, atol=1e-6)


def test_a_time_limit_is_met_with_a_checkpoint(cluster, alone, limited):
    """SLURM warns before the limit; the job goes back into the queue by itself and ends as if there had been none. `logs -f` sees it through."""
    words = [Path(sys.executable).parent / "xrddiff", "cluster", "logs", "-f", "--lines", "0", str(limited.id)]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
    assert "requeued" in shown and f"finished at step {STEPS}" in shown
    cluster.ends(limited)
    assert cluster.lab.job(limited.id)["Restarts"] >= "1" and "requeued, restart 1" in limited.log.read_text()
    cluster.ends(alone.pair)
    assert_same(limited.run, alone.pair.run)


def test_restarts_come_to_an_end(cluster):
    """A job that asks to go on for ever is put back as often as its profile allows, and then says how to go on."""
    (cluster.folder / "never.py").write_text("import sys\nsys.exit(75)\n")
    (cluster.folder / "once.yaml").write_text("cpus_per_node: 1\nmemory_per_cpu: 1G\nmax_requeues: 1\n")
    done = cluster("cluster", "submit", "--config", "once.yaml", "--script", "never.py")
    assert done.code == 0, done.err
    job = submissions()[-1]
    wait_for(lambda: cluster.lab.job(job.id)["Restarts"] == "1", 120, "the restart")
    wait_for(lambda: cluster.lab.job(job.id)["JobState"] == "FAILED", 120, "the end")
    said = job.log_file().read_text()
    assert said.count("requeued, restart 1 of at most 1") == 1 and cluster.lab.job(job.id)["Restarts"] == "1"
    sentence = f"stopped after 1 restarts (max_requeues); to resume: xrddiff cluster resume {job.id}"
    assert said.count(sentence) == 1
    # a restart that is not of its own making, as after a node has failed, is refused at once
    subprocess.run(["scontrol", "requeue", str(job.id)], check=True)
    wait_for(lambda: cluster.lab.job(job.id)["Restarts"] == "2", 120, "the second restart")
    wait_for(lambda: cluster.lab.job(job.id)["JobState"] == "FAILED", 120, "the end")
    assert job.log_file().read_text().removeprefix(said).splitlines() == [f"xrddiff: {sentence}"]


def test_an_array_is_a_sweep(cluster, alone):
    """A task for each combination, seen in `status`; a single process makes the weights of two ranks."""
    job = alone.array
    rows = {row["id"]: row for row in json.loads(cluster("cluster", "status", "--json", str(job.id)).out)}
    assert list(rows) == [f"{job.id}_0", f"{job.id}_1"] and [Path(r["run"]) for r in rows.values()] == job.runs
    assert rows[f"{job.id}_1"]["overrides"][-1] == "training.seed=7"
    cluster.ends(SimpleNamespace(id=f"{job.id}_0", log=job.log))
    cluster.ends(alone.pair)
    assert_same(job.runs[0], alone.pair.run, 1e-5)
    assert run_state(job.runs[0]).finished and read_progress(job.runs[0]).step == STEPS
    cluster.ends(SimpleNamespace(id=f"{job.id}_1", log=job.log))
    pages = [p.relative_to(cluster.folder) for p in cluster.folder.rglob("compare.html")]
    assert pages == [Path("output/comparisons") / str(job.id) / "compare.html"]  # by the task that ended last


def test_a_task_of_an_array_is_cancelled_and_resumed(cluster, alone):
    """By its number, alone: what it had is kept, and the other task stays as it is. Its names are half a program."""
    job = cluster.submit("--nodes", "1", "--array", *HOSTILE, "training.seed=42,7")
    # neither may be over before it is cancelled, however long the commands take
    second, first = (cluster.lab.wait(f"{job.id}_{task}", "RUNNING", 120)["JobId"] for task in (1, 0))
    cluster.signal(SimpleNamespace(id=second), signal.SIGSTOP, [0])
    cluster.checkpoint(SimpleNamespace(id=job.id, run=job.runs[0]))
    cluster.signal(SimpleNamespace(id=first), signal.SIGSTOP, [0])
    assert f"{job.id}_0" in (shown := cluster("cluster", "status").out) and "LOSS" in shown.splitlines()[0]
    done = cluster("cluster", "cancel", f"{job.id}_0", f"{job.id}_1")
    assert done.out == f"cancelled job {job.id}_0, job {job.id}_1\n", done.err
    cluster.ends(SimpleNamespace(id=f"{job.id}_0"), "CANCELLED")
    step = read_progress(job.runs[0]).step
    done = cluster("cluster", "resume", f"{job.id}_0")
    again = submissions()[-1]
    assert done.code == 0 and (again.tasks, again.run_dirs) == ([0], [str(run) for run in job.runs]), done.err
    cluster.ends(SimpleNamespace(id=f"{again.id}_0"))
    assert 0 < step < STEPS == read_progress(job.runs[0]).step and not run_state(job.runs[1]).finished
    cluster.ends(SimpleNamespace(id=f"{alone.array.id}_0"))
    assert_same(job.runs[0], alone.array.runs[0])
    assert_as_text(cluster, job.runs[0])


def test_jobs_in_a_notebook(cluster, notebooks):
    """In JupyterLab: a job is seen with its log, cancelled after a question, sent again, and its training is shown."""
    job = cluster.submit("--nodes", "1", "run_name=seen")
    cluster.checkpoint(job)
    cluster.signal(job, signal.SIGSTOP, [0])  # it must not be over before it is cancelled
    env = {name: os.environ[name] for name in (*cluster.lab.env, "XRDDIFF_STATE")}
    page = notebooks.open([f"import os\nos.environ.update({env!r})\nimport xrddiff as xd\nw = xd.jobs()\nw"])
    w = page.locator(".xrddiff[aria-label='job monitor']")
    row, said = w.locator("tr", has=page.get_by_label(f"job {job.id}", exact=True)), w.get_by_role("status")
    assert "running" in row.inner_text().lower() and w.get_by_text("Cancel…").is_disabled()
    page.get_by_label(f"job {job.id}", exact=True).focus()
    page.keyboard.press("Space")
    w.get_by_role("log").get_by_text("== Training").wait_for()
    with open(job.log, "a") as log:
        log.write("a line that came later\n")
    w.get_by_role("log").get_by_text("a line that came later").wait_for()

    w.get_by_text("Cancel…").click()
    w.get_by_role("alertdialog").get_by_text("its last checkpoint will be lost").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    assert faults(page, ".xrddiff") == []
    page.keyboard.press("Escape")
    w.get_by_role("alertdialog").wait_for(state="hidden")
    assert cluster.lab.job(job.id)["JobState"] == "RUNNING"
    w.get_by_text("Cancel…").click()
    w.get_by_role("alertdialog").wait_for()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    said.get_by_text(f"cancelled job {job.id}").wait_for()
    cluster.ends(job, "CANCELLED")
    row.get_by_text("CANCELLED").wait_for()

    w.get_by_role("button", name="Resume").click()
    said.get_by_text("submitted job").wait_for()
    again = submissions()[-1]
    assert again.resumes == job.id and again.run_dir() == str(job.run)
    w.get_by_label(f"job {again.id}", exact=True).check()
    w.get_by_role("button", name="Show its training").click()
    training = page.locator(".xrddiff[aria-label='training monitor']")
    training.locator("img[alt^='Loss, log']").first.wait_for(timeout=200_000)
    assert training.locator(".xrddiff-badge").inner_text() in ("running", "finished")
    notebooks.hide_folders(cluster.folder)
    notebooks.picture("jobs", page.locator(".xrddiff").first)
    assert notebooks.strangers() == []


def test_the_script_runs_here(cluster, alone):
    """`--local`: two ranks on this machine, without SLURM, make the same weights."""
    words = ["cluster", "submit", "--config", "pair.yaml", "--local", *WORDS, "run_name=here"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run([Path(sys.executable).parent / "xrddiff", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cluster.ends(alone.pair)
    assert_same(cluster.folder / "output" / "vae_kl" / "here", alone.pair.run)
